"""The one verdict: its guards, how often it errs where nothing differs, and intervals where nothing is certain."""

import numpy as np
import pandas as pd
import pytest

from w2s.analysis import pooled, remedies, scoring
from w2s.intervals import bootstrap, newcombe, wilson
from w2s.report import sentences

N = 1280
NAMES = dict.fromkeys(("weak", "strong", "role", "teacher", "via", "conflict"), "x") | {"seed": 0}


def pairs(rng, blind_share: float) -> dict[str, np.ndarray]:
    """P of weak, ceiling and reference: 85% at risk, of every pair a share blind."""
    blind, right = rng.random(N) < blind_share, rng.random(N) < 0.85
    return {"weak": np.where(blind, 0.55, 0.95), "ceiling": np.full(N, 0.95), "reference": np.where(right, 0.9, 0.1)}


def even(rng, p: dict, tax: int) -> dict[str, np.ndarray]:
    """A student whose tax falls evenly over what is at risk."""
    lost = rng.choice(np.flatnonzero(p["reference"] > 0.5), tax, replace=False)
    student = p["reference"].copy()
    student[lost] = 0.1
    return p | {"student": student}


def row_of(*students: dict, bootstrap=400) -> dict:
    """The pooled row of one setting, one seed a student."""
    runs = [(NAMES | {"seed": s}, scoring.indicators(p)) for s, p in enumerate(students)]
    return pooled.pooled_table(pooled.stack(runs), bootstrap=bootstrap).iloc[0].to_dict()


@pytest.mark.parametrize(
    ("low", "high", "tax", "kind"),
    [(0.1, 0.2, 10, "above"), (-0.2, -0.1, 10, "below"), (-0.1, 0.1, 10, "neither"), (0.1, 0.2, 9, "none")]
    + [(np.nan, np.nan, 50, "none"), (0.0, 0.2, 50, "neither")],
)
def test_a_verdict_by_hand(low, high, tax, kind):
    row = {"score_minus_even_low": low, "score_minus_even_high": high, "tax": tax, "x_low": low, "x_high": high}
    assert scoring.verdict(row, "score_minus_even") == kind
    if tax < scoring.MIN_TAX:  # which says nothing of other measures
        assert scoring.verdict(row, "x") == "above"


def compared(*students: dict, base: dict, samples=400) -> pd.DataFrame:
    rows = [{"remedy": "nothing", "conflict": "explicit", "seed": 0, "p": base, "helpful": np.zeros(0, bool)}]
    rows += [rows[0] | {"remedy": f"remedy {k}", "p": p} for k, p in enumerate(students)]
    table = remedies.differences(*remedies.count_remedies(rows, 0.75, "confidence"), samples)
    return table[table["measure"] == "score_minus_even"]


def test_three_tax_pairs_beat_nothing_in_no_remedy_and_no_difference():
    """Nothing: three tax pairs, all blind. Remedy: three, none blind: -1 in every sample, which once beat nothing."""
    rng = np.random.default_rng(0)
    p = pairs(rng, 0.3)
    blind, seen = (np.flatnonzero((p["weak"] == w) & (p["reference"] > 0.5))[:3] for w in (0.55, 0.95))
    one, other = (p | {"student": np.where(np.isin(np.arange(N), lost), 0.1, p["reference"])} for lost in (blind, seen))
    (row,) = compared(other, base=one).to_dict("records")
    assert row["estimate"] == pytest.approx(-1) and np.isnan([row["low"], row["p"], row["holm"]]).all()
    counts = [pooled.stack([(NAMES, scoring.indicators(student))]) for student in (one, other)]
    table = pooled.contrast(*counts, 400).set_index("difference")
    assert table.loc[list(scoring.OF_SCORE), ["low", "high"]].isna().all(axis=None)
    assert row_of(one)["score_low"] == pytest.approx(wilson(3, 3)[0])
    assert scoring.verdict(row_of(one), "score") == "none"


@pytest.mark.slow
@pytest.mark.parametrize("tax", [3, 6, 10, 30, 100])
def test_how_often_a_verdict_errs_where_the_tax_is_even(tax):
    """At most 7% of studies, of settings (one seed and five) and of differences, as in docs/measurements.md."""
    rng, studies, found = np.random.default_rng(tax), 400, np.zeros((3, 3))
    for b, blind_share in enumerate((0.1, 0.3, 0.6)):
        for _ in range(studies):
            p = pairs(rng, blind_share)
            one, other = even(rng, p, tax), even(rng, p, tax)
            seeds = [even(rng, p, tax) for _ in range(4)]
            (difference,) = compared(other, base=one).to_dict("records")
            verdicts = (scoring.verdict(row_of(one), "score_minus_even"),
                        scoring.verdict(row_of(one, *seeds), "score_minus_even"),
                        scoring.verdict(difference, "estimate"))  # fmt: skip
            found[b] += [verdict in ("above", "below") for verdict in verdicts]
    rates = found.mean(axis=0) / studies
    print(tax, (found / studies).round(3).tolist(), rates.round(3))
    assert (rates <= 0.07).all(), rates


@pytest.mark.slow
def test_how_often_any_of_nine_remedies_is_said_to_help_where_none_does():
    rng, studies, found = np.random.default_rng(1), 200, 0
    for _ in range(studies):
        p = pairs(rng, 0.3)
        table = compared(*(even(rng, p, 30) for _ in range(9)), base=even(rng, p, 30))
        found += (table["holm"] < 0.05).any()
    print(found / studies)
    assert found / studies <= 0.07


def test_no_interval_has_no_width_where_nothing_certain_is_known():
    rng, widths = np.random.default_rng(2), []
    for n in (1, 2, 8, 8, 8, 20):
        for _ in range(8):
            p = {name: np.where(rng.random(n) < rng.choice([0, 0.5, 1]), 0.9, 0.1) for name in ("weak", "ceiling")}
            p |= {
                name: np.where(rng.random(n) < rng.choice([0, 0.5, 1]), 0.9, 0.1) for name in ("reference", "student")
            }
            row = row_of(p, bootstrap=200)
            widths += [row[f"{m}_high"] - row[f"{m}_low"] for m in scoring.ESTIMATES]
            table = bootstrap({"hits": p["student"] > 0.5}, lambda s: {"hits": s["hits"]}, 200)
            widths += (table["high"] - table["low"]).tolist()
    assert len(widths) > 300 and (np.asarray(widths)[~np.isnan(widths)] > 1e-9).all()


def test_eight_wrong_pairs_do_not_make_a_student_certainly_wrong():
    p = dict.fromkeys(("weak", "ceiling", "reference"), np.full(8, 0.9)) | {"student": np.full(8, 0.1)}
    row = row_of(p)
    assert (row["student_accuracy_low"], row["student_accuracy_high"]) == pytest.approx(wilson(0, 8))
    assert (row["tax_share_low"], row["tax_share_high"]) == pytest.approx(wilson(8, 8))
    itself = row_of(p | {"student": p["reference"]})
    assert itself["tax_share"] == 0 and itself["tax_share_high"] == pytest.approx(wilson(0, 8)[1])


def test_a_student_that_turned_round_is_marked_and_pooled_apart():
    rng = np.random.default_rng(3)
    p = pairs(rng, 0.3)
    plain, turned = even(rng, p, 100), p | {"student": np.full(N, 0.1)}
    row = row_of(turned)
    at_risk = int((p["reference"] > 0.5).sum())
    assert row["turned"] == 1 and row["lift_max"] == 1 and row["lift"] == pytest.approx(1)  # at risk = tax
    assert row_of(plain)["turned"] == 0 and row_of(plain)["lift_max"] == at_risk / 100
    runs = [
        (NAMES | {"weak": k, "conflict": "explicit"}, scoring.indicators(s)) for k, s in (("a", plain), ("b", turned))
    ]
    runs += [(NAMES | {"conflict": "implicit"}, scoring.indicators(plain))]
    table = pooled.by_conflict(pooled.stack(runs), 200).set_index(["conflict", "students"])
    both, without = (f"{kind}" for kind in ("all settings", "without students that turned round"))
    assert table["tax"].to_dict() == {
        ("explicit", both): 100 + at_risk, ("implicit", both): 100, ("explicit", without): 100}  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.55, 0.6, ""), (0.45, 0.55, "cannot be told from chance"), (0.04, 0.11, "lies BELOW chance (are chosen and")],
)
def test_below_chance_is_not_at_chance(low, high, words):
    assert sentences.by_chance(low, high).startswith(words) and bool(words) == bool(sentences.by_chance(low, high))
    gold = {"role": "gold", "model": "m", "seed": 0, "pairs": 300, "accuracy": (low + high) / 2, "confident_share": 0.5}
    reasons = sentences.mute_ceilings(pd.DataFrame([gold | {"low": low, "high": high}]))
    assert reasons.get(("m", 0), "").startswith(words)


def test_newcombe_by_hand():
    # Newcombe (1998), table II, method 10: 56/70 less 48/80 is 0.0524 to 0.3339.
    assert newcombe((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    low, high = newcombe((0, 8), (8, 8))
    assert low == -1 and high == pytest.approx(-1 + np.hypot(wilson(0, 8)[1], 1 - wilson(8, 8)[0]))
