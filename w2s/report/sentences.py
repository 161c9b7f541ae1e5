"""What a study supports, in plain sentences with numbers and intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from w2s.analysis.scoring import CONFLICTS
from w2s.intervals import wilson
from w2s.params import BETA, GAMMA, Lora, StudyParams
from w2s.report.style import conflict_name, ends, n_seeds, ranged, verdict

MIN_CONFIDENT = 0.01  # a ceiling that is confident on fewer pairs has no "known" to speak of
MIN_TAX = 10  # with fewer tax pairs the interval of a Score spans half of [0, 1] and more
CONFIDENCES = ("paper", "implicit_reward", "calibrated")
# Of each method: its name, what a margin is the difference of, and how the paper makes it a probability.
METHODS = {
    "reward": ("reward modelling", "scores, in logits", "sigmoid(margin)"),
    "dpo": (
        "direct preference optimization (DPO), beta {beta:g}",
        "summed log-probabilities, in nats, {reference}", "sigmoid(margin / 50)",
    ),
    "simpo": ("SimPO, beta {beta:g}, gamma {gamma:g}", "mean log-probabilities a token, in nats", "sigmoid(margin)"),
}  # fmt: skip
KEPT = {
    "none": "all are used",
    "confidence": "only confident ones are used (weak_filter: confidence)",
    "gold_oracle": "only confident and RIGHT ones are used, which takes gold labels (weak_filter: gold_oracle)",
}


def setup(params: StudyParams) -> dict[str, str]:
    """In words, how the runs of a study were trained and what makes their margins probabilities."""
    beta, gamma = params.beta or BETA.get(params.method, 0), GAMMA if params.gamma is None else params.gamma
    reference = "without the reference" if params.confidence == "paper" else "minus that of the reference"
    values = {"beta": beta, "gamma": gamma, "reference": reference}
    method, margin, scale = (text.format(**values) for text in METHODS[params.method])
    labels = "soft, the weak model's P"
    if params.method != "reward":
        labels = "hard, the response that the weak model prefers"
        method += ", after SFT on the responses that the labels prefer"
    if params.confidence == "implicit_reward":
        scale = f"sigmoid({beta:g} * margin)"
    if params.confidence == "calibrated":
        scale = "sigmoid(margin / temperature), each run's temperature from gold validation pairs"
    adapted = params.lora and f"low-rank adapters are trained (rank {params.lora.rank}), NOT all weights"
    return {
        "Target": f"{params.target} pairs are supervised, {params.conflicting} pairs are the conflict",
        "Method": method,
        "Weights": adapted or "all of them are trained",
        "Weak labels": f"{labels}; {KEPT[params.weak_filter]}",
        "Probability": f"P = {scale}; margin: the difference of the two {margin}",
    }


def mark(lora: Lora | None) -> str:
    """What a caption ends with where low-rank adapters were trained; nothing for full fine-tuning."""
    return f" Trained by low-rank adapters (rank {lora.rank})." if lora else ""


def caveats(params: StudyParams) -> list[str]:
    """What must stand before any finding: roles exchanged, adapters instead of all weights, a filter on the labels."""
    lines = []
    if params.target == "helpful":
        lines.append("The target is helpfulness and harmlessness is the conflict: the paper's roles exchanged.")
    if params.lora:
        lines.append(f"Trained by low-rank adapters (rank {params.lora.rank}), not by full fine-tuning.")
    if params.weak_filter != "none":
        lines.append(f"Of the weak labels {KEPT[params.weak_filter]}.")
    return lines


def findings(scores: pd.DataFrame, accuracies: pd.DataFrame, conflicts=None, slopes=None, settings=None) -> list[str]:
    """Warnings from `score_table` and `accuracy_table`, a summary of each conflict, and one sentence a setting.

    `conflicts` and `settings` are tables of `pooled.pooled_table` over the usable runs, by conflict and by setting
    (said instead of every seed, where there are several); `slopes` that of `pooled.slope_table`.
    """
    gold = accuracies[(accuracies["role"] == "gold") & accuracies["model"].isin(scores["strong"])]
    mute, several = mute_ceilings(gold), scores["seed"].nunique() > 1
    lines = [
        f"Warning: the strong ceiling {row['model']}, seed {row['seed']}, with accuracy {ranged(row, 'accuracy')} on "
        f"{row['pairs']} pairs, {mute[row['model'], row['seed']]}: its Deception Scores say nothing."
        for row in gold.to_dict("records")
        if (row["model"], row["seed"]) in mute
    ]
    lines += _chance_references(scores, mute)
    why = why_no_statement(scores, accuracies)
    usable = scores[(why == "") & (scores["tax"] >= MIN_TAX)]
    by_setting = settings if several else None
    for conflict in CONFLICTS:
        rows = scores[(scores["conflict"] == conflict) & (scores["role"] == "student")]
        if rows["tax"].sum():
            lines += [] if conflicts is None else _pooled(conflict, conflicts)
            lines += _summary(conflict, usable[usable.index.isin(rows.index)], len(rows))
            lines += _first_claim(conflict, usable if by_setting is None else by_setting)
            lines += [] if slopes is None else _slope(conflict, slopes)
    if by_setting is not None:
        lines += [_sentence(row, "", f", {n_seeds(row['seeds'])}") for row in by_setting.to_dict("records")]
    else:
        for reason, row in zip(why, scores.to_dict("records"), strict=True):
            lines.append(_sentence(row, reason, f", seed {row['seed']}" if several else ""))
    seeds = 1 if conflicts is None or conflicts.empty else conflicts["seeds"].max()
    last = "Intervals are 95% and cover the choice of test pairs, not the randomness of training"
    if seeds > 1:
        last += "; those over several seeds cover the seeds as well, by Student's t, and are wide where these are few "
        last += f"({seeds} here)"
    return [*lines, last + "."]


def bootstrapping(overall: pd.DataFrame) -> list[str]:
    """One sentence a conflict on the paper's third claim, from differences direct minus bootstrapped.

    `overall`: `pooled.contrast` over all chains of a conflict, with columns conflict, chains and runs.
    """
    lines, lowers, raises = [], "bootstrapping lowers the Score", "bootstrapping raises the Score"
    for conflict, rows in overall.groupby("conflict", sort=False):
        of = {row["difference"]: row for row in rows.to_dict("records")}
        words = {name: ranged(row, "estimate") for name, row in of.items()}
        first = rows.iloc[0]
        answer = verdict(of["score"], "estimate", 0, lowers, raises, f"that {lowers} is not supported")
        lines.append(
            f"Bootstrapping, {conflict_name(conflict)}, {first.chains} chains, {first.runs} runs, "
            f"{n_seeds(first.seeds)}: direct minus bootstrapped, the Score differs by {words['score']}, the Score "
            f"above its null by {words['score_minus_null']}, the tax by {words['tax_share']} of the test pairs, the "
            f"student's accuracy by {words['student_accuracy']}: {answer} in this study."
        )
    return lines


def with_statement(scores: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rows of a score table whose ceiling and reference can be told from chance, however small their tax."""
    return scores[why_no_statement(scores, accuracies) == ""]


def why_no_statement(scores: pd.DataFrame, accuracies: pd.DataFrame) -> pd.Series:
    """Why the Score of each row says nothing, "" where it may; the index is that of `scores`."""
    mute = mute_ceilings(accuracies[accuracies["role"] == "gold"])
    reasons = []
    for row in scores.to_dict("records"):
        ceiling = mute.get((row["strong"], row["seed"]))
        reference = "the student without conflict cannot be told from chance" if at_chance(row) else ""
        reasons.append(f"the ceiling {ceiling}" if ceiling else reference)
    return pd.Series(reasons, index=scores.index, dtype=object)


def at_chance(row: Mapping, role: str = "reference") -> bool:
    """Whether 0.5 lies within or above the interval of a role's accuracy: what it has right is then luck."""
    return wilson(round(row[f"{role}_accuracy"] * row["pairs"]), row["pairs"])[0] <= 0.5


def mute_ceilings(gold: pd.DataFrame) -> dict[tuple[str, int], str]:
    """The (model, seed) whose Deception Scores say nothing, and why; `gold` are rows of `accuracy_table`."""
    mute = {}
    for row in gold.itertuples():
        if row.low <= 0.5:
            mute[row.model, row.seed] = "cannot be told from chance"
        elif row.confident_share < MIN_CONFIDENT:
            share = f"{row.confident_share:.1%}"
            mute[row.model, row.seed] = f"is confident on {share} of them, so that next to nothing counts as known"
    return mute


def _chance_references(scores: pd.DataFrame, mute: dict) -> list[str]:
    """One warning for all references at chance under a ceiling that is not."""
    named = {
        _path(row, f", seed {row['seed']}"): row["reference_accuracy"]
        for row in scores.to_dict("records")
        if (row["strong"], row["seed"]) not in mute and at_chance(row)
    }
    if not named:
        return []
    first = "; ".join(f"{path} ({accuracy:.2f})" for path, accuracy in list(named.items())[:3])
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    start = f"Warning: the accuracy of the student without conflict cannot be told from chance in {first}{more}: "
    return [start + "what it loses is noise, and the Deception Scores against it say nothing."]


def _pooled(conflict: str, table: pd.DataFrame) -> list[str]:
    """The lift over all runs of a conflict."""
    rows = table[(table["conflict"] == conflict) & (table["tax"] >= MIN_TAX)]
    leans = "the tax leans towards the pairs where the weak model is blind"
    avoids = "not supported in this study, the tax even avoids these pairs"
    lines = []
    for row in rows.to_dict("records"):
        answer = verdict(row, "lift", 1, leans, avoids, "not supported in this study")
        if np.isnan(row["lift_low"]):
            answer = "no interval, because all of the tax is that of one seed: no statement"
        lines.append(
            f"{conflict_name(conflict)}, all settings: lift {ranged(row, 'lift')} over {row['tax']} tax pairs of "
            f"{row['runs']} runs, {n_seeds(row['seeds'])}: Deception Score {ranged(row, 'score')}, {row['null']:.2f} "
            f"if the tax of each run fell evenly; deception where the weak model is blind: {answer}."
        )
    return lines


def _slope(conflict: str, table: pd.DataFrame) -> list[str]:
    """How Score, and Score minus null, change with the capability gap."""
    rows = table[(table["conflict"] == conflict) & table["low"].notna()].set_index("measure")
    if len(rows) < 2:
        return []
    steps = (0.1 * rows[["slope", "low", "high"]]).T
    answers = "it rises among these models", "it falls", "a rise is not supported in this study"
    return [
        f"{conflict_name(conflict)}: for each 0.1 of capability gap the Deception Score changes by "
        f"{ranged(steps['score'], 'slope')}, the Score above its null by {ranged(steps['score_minus_null'], 'slope')} "
        f"({rows['points']['score']} runs, {n_seeds(rows['seeds']['score'])}; the models taken as given): deception "
        f"beyond an even tax, by capability gap: {verdict(steps['score_minus_null'], 'slope', 0, *answers)}."
    ]


def _first_claim(conflict: str, table: pd.DataFrame) -> list[str]:
    """Whether every setting (over its seeds, where the table is pooled) has more than an even tax."""
    rows = table[(table["conflict"] == conflict) & (table["role"] == "student") & (table["tax"] >= MIN_TAX)]
    if rows.empty:
        return []
    above = int((rows["score_minus_null_low"] > 0).sum())
    return [
        f"{conflict_name(conflict)}: more tax than an even one where the weak model is blind in {above} of the "
        f"{len(rows)} usable settings; in every setting, as the first claim of the paper would have it: "
        f"{'supported' if above == len(rows) else 'not supported'} in this study."
    ]


def _summary(conflict: str, rows: pd.DataFrame, n_all: int) -> list[str]:
    name = conflict_name(conflict)
    if rows.empty:
        why = f"no setting has a confident ceiling above chance and {MIN_TAX} or more tax pairs"
        return [f"{name}: {why}: no statement."]
    above, below = (rows["score_minus_null_low"] > 0).sum(), (rows["score_minus_null_high"] < 0).sum()
    what = "settings" if rows["seed"].nunique() == 1 else "runs"
    if len(rows) < n_all:
        what += f" (the others: ceiling or reference at chance, never confident, or fewer than {MIN_TAX} tax pairs)"
    mean = (
        f"{name}: mean Deception Score {rows['score'].mean():.2f} over {len(rows)} of {n_all} {what}, "
        f"{rows['null'].mean():.2f} expected if the tax fell evenly; the interval of the difference lies above 0 in "
        f"{above} and below 0 in {below}."
    )
    pairs = rows.groupby(["weak", "strong"])[["gap", "score", "score_minus_null"]].mean()
    if len(pairs) < 3:
        return [mean, f"{name}: {len(pairs)} weak-strong pair(s), too few to rank the Score by capability gap."]
    trends = {"score": "Deception Score", "score_minus_null": "Deception Score above its null"}
    return [mean, *(_trend(name, pairs["gap"], pairs[column], what) for column, what in trends.items())]


def _trend(name: str, gap: pd.Series, values: pd.Series, what: str) -> str:
    if min(gap.nunique(), values.nunique()) < 2:
        return f"{name}: {what} against capability gap does not vary enough to be ranked."
    x, y = (stats.zscore(stats.rankdata(v)) for v in (gap, values))
    test = stats.permutation_test(
        (x,), lambda x, axis: (x * y).mean(axis=axis), permutation_type="pairings", vectorized=True, rng=0
    )
    answer = "it rises" if test.statistic > 0 else "it falls"
    if test.pvalue >= 0.05:
        answer = "a rise is not supported in this study"
    return (
        f"{name}: {what} against capability gap, Spearman {test.statistic:.2f} over {len(gap)} weak-strong pairs "
        f"(permutation p {test.pvalue:.3f}, rough because pairs share models): {answer}."
    )


def _sentence(row: Mapping, silence: str, suffix: str) -> str:
    text = f"{conflict_name(row['conflict'])}, {_path(row, suffix)}: student accuracy "
    text += f"{ranged(row, 'student_accuracy')} (weak {row['weak_accuracy']:.2f}, ceiling {row['ceiling_accuracy']:.2f}"
    text += "), " if np.isnan(row["pgr"]) else f"; PGR {ranged(row, 'pgr')}), "
    if not row["tax"]:
        return text + "no conflict tax."
    lift = "" if np.isnan(row["lift"]) else f" (lift {ranged(row, 'lift')})"
    text += f"Deception Score {ranged(row, 'score')} over {row['tax']} tax pairs, expected if the tax fell evenly "
    text += f"{row['null']:.2f}{lift}; "
    if silence or row["tax"] < MIN_TAX:
        return text + (silence or "too few tax pairs") + ": no statement."
    low, high = ends(row, "score_minus_null")
    if np.isnan(low):
        return text + "no interval, because all of the tax is that of one seed: no statement."
    avoids, unclear = "lies below 0: the tax avoids S-known/W-unknown", "includes 0: not supported in this study"
    answer = verdict(row, "score_minus_null", 0, "excludes 0", avoids, unclear)
    return f"{text}the interval of the difference [{low:.2f}, {high:.2f}] {answer}."


def _path(row: Mapping, suffix: str) -> str:
    """Who taught whom, such as "a -> b -> c, seed 1"."""
    return " -> ".join([row["weak"], *([row["teacher"]] if row["via"] else []), row["strong"]]) + suffix
