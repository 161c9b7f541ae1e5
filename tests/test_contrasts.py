"""Controls: what is counted, differences inside a bootstrap sample, and sentences that follow the numbers."""

import pandas as pd
import pytest

from w2s.analysis import controls
from w2s.analysis.pooled import pooled_table
from w2s.report import sentences_extensions

N = 10  # test pairs, and what each made-up run gives to the truly preferred response
CHANCES = {"weak": [0.6] * N, "ceiling": [0.9] * 8 + [0.6] * 2, "reference": [0.9] * 9 + [0.1]}
CHANCES |= {"one": [0.1] * 4 + [0.9] * 6}  # loses 4 of the reference's pairs
CHANCES |= {"two": [0.9] * 6 + [0.1] * 4}  # loses 3, of which 1 where the ceiling is unsure
CHANCES = pd.DataFrame(CHANCES | {"same": CHANCES["one"]}, index=[f"test-{i}" for i in range(N)])


def row(student, labels, seed=0, conflict="explicit"):
    runs = {"weak": "weak", "ceiling": "ceiling", "reference": "reference", "student": student}
    return runs | {"labels": labels, "conflict": conflict, "seed": seed}


ROWS = pd.DataFrame([row("one", "weak"), row("two", "gold"), row("same", "shuffled")])


def test_counts_by_hand():
    counts = controls.count_controls(ROWS, CHANCES)
    assert counts.indicators["tax"].sum(axis=1).tolist() == [4, 3, 4]
    assert counts.indicators["blind_tax"].sum(axis=1).tolist() == [4, 2, 4]  # blind: the first eight pairs
    table = pooled_table(counts, ["labels", "conflict"], bootstrap=100).set_index("labels")
    assert table.loc["gold", ["tax", "pairs"]].tolist() == [3, N]
    assert table.loc["gold", "score"] == pytest.approx(2 / 3) and table.loc["weak", "even_share"] == pytest.approx(
        8 / 9
    )
    assert counts.settings.columns[:3].tolist() == ["labels", "conflict", "seed"]


def test_what_cannot_be_counted_is_named():
    unscored = CHANCES.assign(one=CHANCES["one"].where(CHANCES.index != "test-3"))
    for rows, chances, message in (
        (ROWS.head(0), CHANCES, "^rows: no control"),
        (pd.DataFrame([row("absent", "weak")]), CHANCES, "^run absent: it lacks predictions"),
        (ROWS, unscored, "^run one: it lacks predictions"),
    ):
        with pytest.raises(ValueError, match=message):
            controls.count_controls(rows, chances)


def test_a_difference_is_taken_on_the_same_pairs():
    counts = controls.count_controls(ROWS, CHANCES)
    weak, gold, shuffled = ({"labels": k, "conflict": "explicit"} for k in ("weak", "gold", "shuffled"))
    result = controls.tax_difference(counts, weak, gold, 500)
    assert result["estimate"] == pytest.approx(0.1) and result["low"] < 0 < result["high"] and result["seeds"] == 1
    # The same tax on the same pairs: in every sample the difference is 0, whatever pairs are drawn.
    same = controls.tax_difference(counts, weak, shuffled, 500)
    assert same["estimate"] == 0 and -0.4 < same["low"] == -same["high"] < 0
    # Over seeds it is their mean.
    rows = pd.DataFrame([row("one", "weak", 0), row("two", "weak", 1), row("two", "gold", 0), row("two", "gold", 1)])
    result = controls.tax_difference(controls.count_controls(rows, CHANCES), weak, gold, 500)
    assert result["estimate"] == pytest.approx((0.1 + 0) / 2) and result["seeds"] == 2


def difference(estimate, low, high, **names):
    return names | {"estimate": estimate, "low": low, "high": high, "seeds": 1}


def pooled_row(**values):
    usual = {"seeds": 3, "pairs": 1000, "tax": 120, "reference_accuracy": 0.8, "even_share": 0.4, "gap": 0.2}
    usual |= {"weak_accuracy": 0.6, "ceiling_accuracy": 0.8, "student_accuracy": 0.7, "conflict": "explicit"}
    for name, value in {"tax_share": 0.12, "score": 0.5, "score_minus_even": 0.1}.items():
        usual |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
    return pd.Series(usual | values)


def test_the_answer_follows_the_intervals():
    settings = pd.DataFrame([pooled_row(labels="weak"), pooled_row(labels="random", reference_accuracy=0.51)])
    for gold, shuffled, *words in (
        ((0.2, 0.1, 0.3), (0.1, 0.05, 0.2), "weak labels add to the tax", "cost more than the same errors"),
        ((-0.2, -0.3, -0.1), (-0.1, -0.2, -0.05), "make it smaller", "cost less than the same errors"),
        ((0.0, -0.1, 0.1), (0.0, 0.0, 0.1), "add to it is not supported", "model errs is not supported"),
    ):
        ends = {"gold": gold, "shuffled": shuffled}
        rows = pd.DataFrame([difference(*ends[less], conflict="explicit", less=less) for less in ends])
        tax, answer = sentences_extensions.label_lines(settings, rows, "a -> b")
        assert "0.12 [0.07, 0.17] with weak labels" in tax and "a -> b, 3 seeds" in tax
        assert "its tax is noise: random)" in tax and "noise: weak" not in tax
        assert all(part in answer for part in words), answer
    # no reference at chance, no word of it
    assert "chance" not in sentences_extensions.label_lines(settings.head(1), rows, "a -> b")[0]


def test_the_score_without_conflict():
    for values, words in (
        ({}, "Deception Score 0.50 [0.45, 0.55] over 120 tax pairs, 0.40 if they fell evenly: more than even"),
        ({"score_minus_even_low": -0.2, "score_minus_even_high": -0.1}, "less than even where the weak model is blind"),
        ({"score_minus_even_low": -0.2}, "a difference is not supported in this study"),
        ({"tax": 9}, "9 tax pairs, too few for a Score"),
        (
            {"reference_accuracy": 0.07},
            "no Score: the accuracy of the reference lies BELOW chance (are chosen and rejected",
        ),
        ({"reference_accuracy": 0.51}, "no Score: the accuracy of the reference cannot be told from chance"),
    ):
        line = sentences_extensions.no_conflict_line(pooled_row(**values), "a -> b")
        assert words in line and "loses 0.12 [0.07, 0.17] of the test pairs by weak supervision alone" in line


def test_whether_the_tax_rises_with_the_strength():
    step = {"conflict": "explicit", "measure": "in alpha", "smallest": 0.0, "largest": 2.0}
    rows = [difference(0.8, 0.7, 0.9, labels="weak", **step), difference(0.0, -0.1, 0.1, labels="gold", **step)]
    (line,) = sentences_extensions.strength_lines(pd.DataFrame(rows), "a -> b")
    assert "from 0 to 2 in alpha" in line and "0.800 [0.700, 0.900] with weak labels (it rises)" in line
    assert "with gold labels (a change is not supported in this study)" in line


def test_without_a_gap_or_a_ceiling_exchanged_roles_say_nothing():
    for gap, ceiling, silent in ((0.019, 0.8, True), (0.021, 0.8, False), (-0.3, 0.8, True), (0.1, 0.52, True)):
        names = {"target": "helpful", "conflicting": "harmless", "gap": gap, "ceiling_accuracy": ceiling}
        table = pd.DataFrame([pooled_row(**names, conflict="none"), pooled_row(**names)])
        (line,) = sentences_extensions.swapped_lines(table, "a -> b")
        assert "target helpful, conflict harmless" in line and "has 0.60 of the test" in line
        assert ("this control says nothing" in line) == silent and ("Deception Score" in line) != silent


def test_a_mute_ceiling_and_a_student_at_chance_are_warnings_of_their_seed():
    gold = {"role": "gold", "pairs": 1000, "accuracy": 0.5, "high": 0.53, "confident_share": 0.5}
    rows = [gold | {"model": m, "seed": s, "low": low} for m, s, low in (("b", 0, 0.6), ("b", 1, 0.47), ("a", 0, 0.4))]
    named = [
        ("weak", "none", 0, 0.8),
        ("weak", "none", 1, 0.51),
        ("weak", "explicit", 0, 0.1),
        ("gold", "none", 0, 0.5),
    ]
    columns = ["labels", "conflict", "seed", "student_accuracy"]
    students = pd.DataFrame([pooled_row(**dict(zip(columns, values))) for values in named])
    ceiling, student = sentences_extensions.control_warnings(pd.DataFrame(rows), "b", students)
    assert ceiling.startswith("Warning: the strong ceiling b, seed 1, cannot be told from chance")
    assert student.startswith(
        "Warning: seed 1: the accuracy 0.51 of the student with weak labels and no conflict cannot"
    )


def test_coverage_names_the_seeds():
    assert "not the randomness of training" in sentences_extensions.coverage([4])
    assert "3 seeds" in sentences_extensions.coverage([1, 2, 3])
