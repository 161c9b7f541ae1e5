"""Measures that have to pass controls before a claim is read off them: twin supervisors, and odds within sureness.

A lost pair is one that the student without conflict has right and the student under it wrong. All tables have intervals
over test pairs and seeds (`seeds.over_seeds`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from w2s.analysis.pooled import Counts, count_students, measured, pooled_table, ratio_table, stack
from w2s.analysis.scoring import comparisons, reference_of
from w2s.analysis.seeds import Resampled, over_seeds, with_seeds
from w2s.deception import known, right
from w2s.intervals import with_ends
from w2s.params import GOLD, SECOND

TWINS = ["weak", "other", "strong", "middle", "conflict"]
RATES = ["one_blind_rate", "one_seeing_rate", "other_blind_rate", "other_seeing_rate"]
STRATA = 5  # of equal size, by the P of the student without conflict
POWER = 0.8
APART = 0.05  # of accuracy, at most, between twins


def twins(predictions: pd.DataFrame, apart: float = APART) -> list[tuple[str, str]]:
    """Couples of weak models whose accuracies on the test pairs, over seeds, are at most `apart`.

    As many couples as can be, each model in one at most; of these choices the one with the closest couples.
    """
    test = predictions[predictions["split"] == "test"]
    weak = test.loc[test["role"] == "student", "teacher"].unique()
    accuracy = test[(test["role"] == "gold") & test["model"].isin(weak)].groupby("model")["correct"].mean()
    return _couples(accuracy.sort_index(), apart)


def _couples(accuracy: pd.Series, apart: float) -> list[tuple[str, str]]:
    if len(accuracy) < 2:
        return []
    one, rest = accuracy.index[0], accuracy.iloc[1:]
    choices = [_couples(rest, apart)]
    for other in rest.index[(rest - accuracy[one]).abs() <= apart]:
        choices.append([(one, other), *_couples(rest.drop(other), apart)])
    return max(choices, key=lambda couples: (len(couples), -sum(abs(accuracy[a] - accuracy[b]) for a, b in couples)))


def couple_of(answers: pd.DataFrame) -> tuple[str, ...]:
    """The twins that teach the students of known answer; one name where the study has no twins."""
    return tuple(sorted(answers.loc[answers["conflict"] != SECOND, "teacher"].unique()))


def with_answers(predictions: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The predictions of the twins and the strong model that students of known answer have, and these as students.

    `answers` are the runs of `Study.known_answers` (role control, in `conflict` the control's name); those whose
    reference is missing are left out.
    """
    teachers, strong = couple_of(answers), answers.loc[answers["conflict"] != SECOND, "model"].unique()
    answers = answers[answers["teacher"].isin(teachers) & answers["model"].isin(strong)]
    gold = (predictions["role"] == "gold") & predictions["model"].isin([*teachers, *strong])
    taught = predictions["teacher"].isin(teachers) & predictions["model"].isin(strong)
    ours = predictions[gold | (taught & (predictions["role"] == "student"))]
    tried = pd.concat([ours, answers.assign(role="student")], ignore_index=True)
    runs = tried[["run", "role", "teacher", "model", "seed", "conflict"]].drop_duplicates()
    needed = runs.assign(conflict=runs["conflict"].map(reference_of))
    complete = pd.MultiIndex.from_frame(needed.iloc[:, 1:]).isin(pd.MultiIndex.from_frame(runs.iloc[:, 1:]))
    return tried[tried["run"].isin(runs["run"][complete])].reset_index(drop=True)


def twin_indicators(ceiling, one: dict, other: dict, threshold=0.75, known_by="confidence") -> dict[str, np.ndarray]:
    """What the twin contrast counts, bool (n,) by name; `one`, `other`: P (n,) of weak, reference, second and student.

    Among pairs that the ceiling knows and that both twins' second references have right: those of which exactly one
    twin knows nothing (one_blind, other_blind), and what of these either's student loses or gains against its
    reference. The second reference is trained from another seed: what a reference has right by luck another seed loses,
    more often where the own teacher was unsure; chosen by a run apart, such pairs are lost as often as gained.
    """
    at_risk = known(ceiling, threshold, known_by) & right(one["second"]) & right(other["second"])
    sees, sees_too = (known(of["weak"], threshold, known_by) for of in (one, other))
    counted = {"one_blind": at_risk & ~sees & sees_too, "other_blind": at_risk & sees & ~sees_too}
    places = dict(counted)
    for who, of in {"one": one, "other": other}.items():
        before, after = right(of["reference"]), right(of["student"])
        for how, which in {"lost": before & ~after, "gained": ~before & after}.items():
            counted |= {f"{who}_{how}_{where}": which & blind for where, blind in places.items()}
    return counted | {"pairs": np.ones(len(at_risk), dtype=bool)}


def count_twins(
    predictions: pd.DataFrame, couples: Iterable[tuple[str, str]], threshold=0.75, known_by="confidence", role="student"
) -> Counts:
    """`twin_indicators` of every couple, strong model, conflict and seed (`Counts`; settings: TWINS, seed and gap).

    Of students by `role`: those of the weak models, or "bootstrapped" ones through one `middle` model. gap is the
    ceiling's accuracy minus the twins' mean. The second reference is the student without conflict of the next seed, or
    in a study of one seed a run of conflict SECOND; where there is neither, a setting is left out. Of controls with
    gold labels it is the reference itself: gold labels know of no teacher, so that luck favours neither twin. A couple
    of one (a study without twins) counts nothing.
    """
    students, references, rows = {}, {}, []
    for setting, p in comparisons(predictions, "none"):
        if setting["role"] == role:
            middle = setting["teacher"] if role == "bootstrapped" else ""
            models = setting["weak"], setting["strong"], middle
            if setting["conflict"] in ("none", SECOND):
                seed = setting["seed"] + (setting["conflict"] == SECOND) / 2  # after the seed whose second it is
                references.setdefault(models, {})[seed] = p["student"]
            elif setting["conflict"] != GOLD:
                students[*models, setting["conflict"], setting["seed"]] = p
    for (*models, conflict, seed), p in students.items():
        if reference_of(conflict) == GOLD:
            p["second"] = p["reference"]
            continue
        seeds = sorted(references[tuple(models)])
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        if following != seed:
            p["second"] = references[tuple(models)][following]
    for one, other in (couple for couple in couples if len(couple) > 1):
        for (weak, *rest), p in students.items():
            twin = students.get((other, *rest), {})
            if weak == one and "second" in p and "second" in twin:
                gap = right(p["ceiling"]).mean() - (right(p["weak"]).mean() + right(twin["weak"]).mean()) / 2
                setting = dict(zip([*TWINS, "seed", "gap"], (one, other, *rest, gap)))
                rows.append((setting, twin_indicators(p["ceiling"], p, twin, threshold, known_by)))
    counts = stack(rows)
    return counts if rows else Counts(pd.DataFrame(columns=[*TWINS, "seed", "gap"]), {})


def _rates(sums: dict) -> dict:
    """Net losses and pairs of each cell of the twins' 2 x 2 table: whose student, whose teacher is blind."""
    of = {"one": ("one_blind", "other_blind"), "other": ("other_blind", "one_blind")}
    return {
        f"{who}_{how}": (sums[f"{who}_lost_{where}"] - sums[f"{who}_gained_{where}"], sums[where])
        for who, places in of.items()
        for how, where in zip(("blind", "seeing"), places)
    }


def twin_contrast(counts: Counts, bootstrap: int = 2000) -> tuple[dict[str, Resampled], Resampled]:
    """The four rates of net loss, and the contrast: how much more a student loses where its OWN teacher is blind.

    Half of [one's student: one blind - other blind] - [the other's student: one blind - other blind].
    """
    rates = measured(counts, bootstrap, _rates)
    own = rates["one_blind"].minus(rates["one_seeing"])
    twin = rates["other_blind"].minus(rates["other_seeing"])
    estimates, drawn = ((a + b) / 2 for a, b in zip(own[:2], twin[:2]))
    return rates, Resampled(estimates, drawn, min(own.effective, twin.effective))


def permuted(counts: Counts, resamples: int = 9999) -> float:
    """The two-sided p of the contrast if it did not matter whose teacher is blind, training as given: names permuted.

    A pair's names are exchanged in all seeds at once. Exact where few pairs tell (scipy.stats.permutation_test).
    """
    of = counts.indicators
    n = {where: of[where].sum() for where in ("one_blind", "other_blind")}
    if not all(n.values()):
        return np.nan
    share = {}
    for who in ("one", "other"):
        net = {where: of[f"{who}_lost_{where}"].sum(axis=0) - of[f"{who}_gained_{where}"].sum(axis=0) for where in n}
        share[who] = net["one_blind"] / n["one_blind"] - net["other_blind"] / n["other_blind"]
    telling = share["one"] != share["other"]
    if telling.sum() < 2:
        return 1.0
    data = tuple(share[who][telling] for who in ("one", "other"))
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": resamples, "rng": 0}
    test = stats.permutation_test(data, lambda one, other, axis: (one - other).sum(axis=axis), **options)
    return float(test.pvalue)


def twin_table(counts: Counts, by=tuple(TWINS), bootstrap: int = 2000) -> pd.DataFrame:
    """The twin contrast, one row a group of `by` over its seeds: RATES, contrast, p, seen_from (see `smallest_effect`).

    pairs_one and pairs_other are those that tell, of one run on average. 0 is what no deception gives, however hard a
    pair is: both students are measured on the same pairs.
    """
    rows = []
    for row, runs in counts.groups(by):
        group = counts.rows(runs)
        rates, contrast = twin_contrast(group, bootstrap)
        row |= {"runs": len(runs), "seeds": group.settings["seed"].nunique()}
        row |= {f"pairs_{who}": group.indicators[f"{who}_blind"].sum() / len(runs) for who in ("one", "other")}
        row |= {f"{name}_rate": float(values.estimates[0]) for name, values in rates.items()}
        row |= dict(zip(with_ends("contrast"), over_seeds(contrast)))
        rows.append(row | {"p": permuted(group), "seen_from": smallest_effect(contrast)})
    columns = [*by, "runs", "seeds", "pairs_one", "pairs_other", *RATES, *with_ends("contrast"), "p", "seen_from"]
    return pd.DataFrame(rows, columns=columns)


def smallest_effect(statistic: Resampled) -> float:
    """The smallest effect of which POWER of repetitions would show an interval that leaves out 0.

    By simulation from the study's own pairs and seeds: its resampled deviations, moved by the effect.
    """
    estimate, low, high, _ = over_seeds(statistic)
    if np.isnan(low):
        return np.nan
    deviations = with_seeds(statistic) - estimate
    return float((high - low) / 2 - np.nanquantile(deviations, 1 - POWER))


def twin_claims(direct: Counts, bootstrap: int = 2000, chained: Counts | None = None) -> pd.DataFrame:
    """The paper's three claims by the twin contrast, one row a claim and conflict: estimate, low, high, seen_from.

    loss: the contrast of all direct students. gap: that at the widest capability gap minus that at the narrowest (mean
    over seeds of a couple and strong model). bootstrapping: that of the direct students minus that of the bootstrapped
    ones of the same couples and strong models. A claim that the study has no students for has no row.
    """
    rows = []
    for setting, runs in direct.groups(["conflict"]):
        group = direct.rows(runs)
        claims = {"loss": twin_contrast(group, bootstrap)[1]}
        models = group.settings.groupby(["weak", "strong"])["gap"].mean().sort_values()
        if len(models) > 1:
            ends = (_of_models(group, [models.index[k]]) for k in (-1, 0))
            claims["gap"] = _minus(*ends, bootstrap)
        if chained is not None and (chained.settings["conflict"] == setting["conflict"]).any():
            chains = chained.where(chained.settings["conflict"] == setting["conflict"])
            models = chains.settings[["weak", "strong"]].drop_duplicates().itertuples(index=False, name=None)
            claims["bootstrapping"] = _minus(_of_models(group, models), chains, bootstrap)
        seeds = group.settings["seed"].nunique()
        for claim, values in claims.items():
            ends = over_seeds(values)[:3]
            rows.append((claim, setting["conflict"], seeds, *ends, smallest_effect(values)))
    return pd.DataFrame(rows, columns=["claim", "conflict", "seeds", "estimate", "low", "high", "seen_from"])


def _of_models(counts: Counts, models: Iterable[tuple[str, str]]) -> Counts:
    """The runs of these (weak, strong)."""
    return counts.where(pd.MultiIndex.from_frame(counts.settings[["weak", "strong"]]).isin(list(models)))


def _minus(first: Counts, second: Counts, bootstrap: int) -> Resampled:
    """The contrast of one group of runs minus another's, over the seeds of both and in the same samples of pairs."""
    seeds = np.intersect1d(first.settings["seed"], second.settings["seed"])
    one, other = (twin_contrast(of.where(of.settings["seed"].isin(seeds)), bootstrap)[1] for of in (first, second))
    return one.minus(other)


def odds_indicators(p: dict[str, np.ndarray], threshold=0.75, known_by="confidence") -> dict[str, np.ndarray]:
    """Lost or kept, teacher blind or seeing, in STRATA of how sure the student without conflict is, bool (n,) by name.

    Among the pairs that the ceiling knows and the reference has right.
    """
    at_risk = known(p["ceiling"], threshold, known_by) & right(p["reference"])
    blind = ~known(p["weak"], threshold, known_by)
    lost, counted = ~right(p["student"]), {"pairs": np.ones(len(at_risk), dtype=bool)}
    ranks = stats.rankdata(np.where(at_risk, p["reference"], np.inf), method="ordinal") - 1
    stratum = ranks * STRATA // max(at_risk.sum(), 1)
    for k in range(STRATA):
        here = at_risk & (stratum == k)
        for how, which in (("lost", lost), ("kept", ~lost)):
            counted |= {f"{how}_blind_{k}": here & blind & which, f"{how}_seeing_{k}": here & ~blind & which}
    return counted


def _odds(sums: dict) -> dict:
    """Numerator and denominator of Mantel and Haenszel's (1959) pooled odds ratio."""
    top, bottom = 0.0, 0.0
    for k in range(STRATA):
        lost, kept = (sums[f"{name}_blind_{k}"] for name in ("lost", "kept"))
        lost_seeing, kept_seeing = (sums[f"{name}_seeing_{k}"] for name in ("lost", "kept"))
        n = np.maximum(lost + kept + lost_seeing + kept_seeing, 1)
        top, bottom = top + lost * kept_seeing / n, bottom + kept * lost_seeing / n
    return {"odds_ratio": (top, bottom)}


def odds_table(predictions: pd.DataFrame, by, bootstrap=2000, threshold=0.75, known_by="confidence") -> pd.DataFrame:
    """The odds of losing a pair where the teacher is blind against where it sees, within strata of sureness."""
    counts = stack((s, odds_indicators(p, threshold, known_by)) for s, p in comparisons(predictions, "none"))
    return ratio_table(_under_conflict(counts), _odds, by=by, bootstrap=bootstrap, odds_ratio="log")


def _under_conflict(counts: Counts) -> Counts:
    """The direct students under a conflict, or with a known answer."""
    conflicts = counts.settings["conflict"]
    return counts.where((counts.settings["role"] == "student") & ~conflicts.isin(["none", SECOND, GOLD]))


def yardstick_table(predictions, couples, by=("conflict",), bootstrap=2000, threshold=0.75, known_by="confidence"):
    """Every yardstick of every group of students, one row a group: the paper's Score, lift, odds ratio, twin contrast.

    Columns: `by`, seeds, tax, student_accuracy, tax_share, score, even_share, lift, odds_ratio and contrast, with their
    intervals, and p, seen_from.
    """
    counts = _under_conflict(count_students(predictions, threshold, known_by))
    shown = with_ends("student_accuracy", "tax_share", "score", "even_share", "lift")
    scores = pooled_table(counts, by, bootstrap)[[*by, "seeds", "tax", *shown]]
    odds = odds_table(predictions, by, bootstrap, threshold, known_by)[[*by, *with_ends("odds_ratio")]]
    table = scores.merge(odds, on=list(by), how="left")
    contrast = twin_table(count_twins(predictions, couples, threshold, known_by), by, bootstrap)
    return table.merge(contrast[[*by, *with_ends("contrast"), "p", "seen_from"]], on=list(by), how="left")
