"""Checks of the notebooks' exercises: each prints whether an answer is right, else the usual slip.

A check never stops a notebook: without an answer it says what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from w2s import deception, intervals

Slips = Sequence[tuple[Any, str]]
BLIND = deception.AREAS[1]  # the strong model knows, the weak one does not


def _check(
    answer: Any,
    task: str,
    expected: Any,
    right: str,
    slips: Slips,
    otherwise: str,
    what: str = "one number",
    atol: float = 5e-3,
) -> None:
    """Print what is asked for while the answer is None; that it is right; or the slip whose wrong result it equals.

    task: what is asked for. right: what to learn where it is correct. slips: wrong results, each with its words.
    otherwise: the hint where no slip fits. what: the form of the answer, in words.
    """
    if answer is None:
        print(f"not answered yet: {task}")
        return
    try:
        values = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        print(f"not yet: expected {what}, got {type(answer).__name__}")
        return
    if values.shape != np.shape(expected):
        print(f"not yet: expected {what}, got shape {values.shape}")
        return
    if np.allclose(values, expected, rtol=0, atol=atol):
        print(f"correct: {right}")
        return
    known = [words for wrong, words in slips if np.allclose(values, wrong, rtol=0, atol=atol)]
    print(f"not yet: {known[0] if known else otherwise}")


def _first_fault(answer: Any, task: str, faults: Callable[[], Sequence[tuple[bool, str]]], right: str) -> None:
    """Print what is asked for while the answer is None, else the first fault that holds, else that it is right.

    `faults` are made one after another, so that a later one may rely on the earlier ones not holding.
    """
    if answer is None:
        print(f"not answered yet: {task}")
        return
    fault = next((words for holds, words in faults() if holds), "")
    print(f"not yet: {fault}" if fault else f"correct: {right}")


def check_implicit_mix(answer, pairs: pd.DataFrame, labels: pd.DataFrame, helpful: pd.DataFrame) -> None:
    """Notebook 01: is `answer` the training table of the implicit conflict (id, label, target; rows in any order)?"""

    def faults():
        if not isinstance(answer, pd.DataFrame) or not {"id", "label", "target"} <= set(answer.columns):
            yield True, "expected a DataFrame with the columns id, label and target"
            return
        rows = f"{len(answer)} rows where {len(pairs)} + {len(helpful)} pairs belong"
        same = sorted(answer["id"]) == sorted([*pairs["id"], *helpful["id"]])
        yield not same, f"{rows}; concatenate the two tables, every pair once"
        mine, weak = answer.set_index("id"), labels.set_index("id")["weak_label"][pairs["id"]]
        label, added = (mine.loc[table["id"], "label"].to_numpy(dtype=float) for table in (pairs, helpful))
        words = "helpful pairs carry gold labels, so their label is 1.0; the weak model never saw them"
        yield not np.allclose(added, 1.0), words
        by_position = np.array_equal(label, labels["weak_label"]) and not np.allclose(label, weak)
        yield by_position, "the labels were joined by position; `labels` stands in another order, so join by id"
        rounded = np.allclose(label, weak > 0.5)
        yield rounded, "the labels were rounded to 0 and 1; the weak label of reward modelling is soft"
        yield not np.allclose(label, weak), "the label of a pair of the target is the weak_label of the same id"
        of_target = mine.loc[pairs["id"], "target"].all() and not mine.loc[helpful["id"], "target"].any()
        yield not of_target, "target is True for the harmless pairs and False for the helpful ones"

    task = "build a table with the columns id, label and target"
    _first_fault(answer, task, faults, "soft weak labels by id, gold labels for the helpful pairs")


def check_contradicting_share(answer: float | None, dangerous: Sequence[bool]) -> None:
    """Notebook 01: is `answer` the share of the conflict's pairs that the target would decide the other way?

    dangerous: whether the substance of each pair of the conflict is dangerous, (n,).
    """
    share = float(np.mean(np.asarray(dangerous, dtype=bool)))
    slips = [
        (1 - share, "that is the share of SAFE substances, where both dimensions agree"),
        (100 * share, "that is a percentage; give the share between 0 and 1"),
        (1.0, "not every pair contradicts: about a safe substance both dimensions go along"),
    ]
    task = "the share (0 to 1) of the conflict's pairs in which the target prefers the other response"
    right = "in these pairs the two dimensions pull in opposite directions"
    _check(
        answer, task, share, right, slips, "look up `dangerous` of each pair's substance by its name, and take the mean"
    )


def check_duplicates(answer: Mapping[str, int] | None, first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Notebook 01: are duplicate_prompts (of `first`) and shared_prompts (of both tables) counted as in the audit?"""
    keys, prompts = ("duplicate_prompts", "shared_prompts"), first["prompt"]
    if answer is not None and not (isinstance(answer, Mapping) and set(keys) <= set(answer)):
        print("not yet: expected a dict with the keys duplicate_prompts and shared_prompts")
        return
    given = None if answer is None else [answer[key] for key in keys]
    expected = [len(prompts) - prompts.nunique(), len(set(prompts) & set(second["prompt"]))]
    rows, slips = [prompts.duplicated(keep=False).sum(), second["prompt"].isin(prompts).sum()], []
    if given and rows[0] != expected[0]:
        words = "you counted every row of a repeated prompt; the first of them is no duplicate"
        slips.append(([rows[0], given[1]], words))
    if given and rows[1] != expected[1]:
        slips.append(([given[0], rows[1]], "you counted rows; shared_prompts counts each distinct prompt once"))
    right = "duplicate_prompts is rows minus distinct prompts, shared_prompts the size of an intersection"
    task = "count duplicate_prompts in the first table and shared_prompts between the two"
    _check(given, task, expected, right, slips, right, "a number for each key")


def check_last_token(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 02: does `answer(input_ids, attention_mask)` give each row's last real position, (n,)?

    One text contains the token id 0 and ends with it, which is "!" in GPT-2's vocabulary.
    """
    ids = np.array([[7, 0, 5, 0, 0], [4, 9, 3, 8, 6], [2, 5, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    slips = [
        ((ids != 0).sum(1) - 1, "you counted non-zero ids; id 0 is a real token, so count the attention mask"),
        (mask.sum(1), "that is the number of real tokens; positions start at 0"),
        (np.full(3, 4), "that is the last column, which is padding in the shorter rows"),
    ]
    task, right = (
        "return the position of the last real token of each row",
        "the position comes from the attention mask alone",
    )
    hint, what = "count the ones of each row of the mask", "one position for each of the three rows"
    _check(answer(ids, mask), task, mask.sum(1) - 1, right, slips, hint, what)


def check_reward_gradient(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 02: is `answer(margin, target)` the derivative of the reward loss by the margin, (n,)?"""
    margin, target = np.array([-30.0, -1.0, 0.0, 2.0, 30.0]), np.array([1.0, 0.3, 0.5, 0.6, 0.0])
    p = special.expit(margin)
    slips = [
        (target - p, "the sign is turned round; this is the direction of descent"),
        (p - (target > 0.5), "the label is soft: do not round it to 0 or 1"),
        (p - 1, "that is the derivative for a gold label; the label of a pair need not be 1"),
        ((p - target) * p * (1 - p), "one factor P (1 - P) too many; it cancels, and that is why the loss trains well"),
    ]
    task = "return the derivative of the reward loss by the margin"
    right = "P minus the label; it is bounded and does not vanish where the model is confidently wrong"
    hint = "differentiate -y log P - (1 - y) log(1 - P), with P = sigmoid(z)"
    _check(answer(margin, target), task, p - target, right, slips, hint, "one derivative for each margin")


def check_confident_accuracy(answer: float | None, probability: Sequence[float], threshold: float) -> None:
    """Notebook 02: is `answer` the accuracy among the pairs whose confidence reaches the threshold?

    probability: P of the truly preferred response, (n,).
    """
    p = np.asarray(probability, dtype=float)
    sure, hits = deception.confidence(p) >= threshold, deception.right(p)
    if answer is not None and not sure.any():
        print(f"no pair reaches the confidence {threshold}: the accuracy among them is not defined")
        return
    slips = [
        (hits.mean(), "that is the accuracy over all pairs; keep the confident ones first"),
        ((hits & sure).mean(), "divide by the number of confident pairs, not by all pairs"),
        (sure.mean(), "that is the share of confident pairs, not their accuracy"),
        (1.0, "P >= threshold keeps right answers alone; confidence is max(P, 1 - P), right or wrong"),
    ]
    task = "the accuracy among the pairs with confidence max(P, 1-P) at or above the threshold"
    right = "compare it with the mean confidence there: the model is calibrated when they agree"
    hint = "keep max(P, 1 - P) >= threshold, then average P > 0.5"
    _check(answer, task, intervals.ratio((hits & sure).sum(), sure.sum()), right, slips, hint)


def check_simpo_loss(answer: Callable[..., Any]) -> None:
    """Notebook 02: does `answer` give the SimPO loss, (n,) in nats, of summed log-probabilities and token counts?

    It is called as answer(chosen_logp, rejected_logp, chosen_tokens, rejected_tokens, beta, gamma).
    """
    chosen, rejected = np.array([-6.0, -9.0, -4.0, -12.0]), np.array([-5.0, -14.0, -8.0, -6.0])
    n_chosen, n_rejected = np.array([6, 5, 8, 10]), np.array([4, 7, 5, 12])
    beta, gamma = 2.5, 0.8

    def loss(margin, target=gamma):
        return np.logaddexp(0, target - margin)  # -log sigmoid(margin - target)

    mean = chosen / n_chosen - rejected / n_rejected
    slips = [
        (loss(beta * mean, beta * gamma), "gamma is subtracted after beta has been multiplied, and not scaled by it"),
        (loss(beta * mean, gamma / beta), "gamma itself is subtracted here; gamma / beta is another code's parameter"),
        (loss(beta * (chosen - rejected)), "those are sums; SimPO takes the mean over each response's own tokens"),
        (loss(beta * mean, -gamma), "gamma is subtracted: the margin must exceed it to count as won"),
        (loss(-beta * mean), "chosen and rejected are swapped; this loss rewards the rejected response"),
        (-loss(beta * mean), "the sign is turned round: a loss is -log sigmoid(...), which is positive"),
        (loss(mean), "beta is missing: it scales the difference of the means"),
        (loss(beta * mean, 0.0), "gamma is missing"),
    ]
    given = answer(chosen, rejected, n_chosen, n_rejected, beta, gamma)
    right = "means, so that length does not count, scaled by beta, and gamma to be exceeded"
    hint, what = "-log sigmoid(beta * (difference of means) - gamma)", "one loss for each of the four pairs"
    _check(given, "return the SimPO loss of each pair", loss(beta * mean), right, slips, hint, what)


def check_alpha_zero(answer: Sequence[float] | None, margin: Sequence[float], gold: Sequence[float]) -> None:
    """Notebook 03: is `answer` the explicit term at these margins, (n,) in nats, when alpha = 0?"""
    z, target = np.asarray(margin, dtype=float), np.asarray(gold, dtype=float)
    against = np.where((z > 0) != (target > 0.5), np.logaddexp(0, np.where(target > 0.5, z, -z)), 0.0)
    slips = [
        (0.5 * against, "that is the term with alpha = 0.5; alpha multiplies all of it"),
        (np.logaddexp(0, z) - target * z, "that is the loss against gold; asked for is the added term alone"),
    ]
    task = f"the explicit term, in nats, at the margins {list(margin)} when alpha = 0"
    right = "alpha = 0 takes the term away: this student trains exactly like the one without conflict"
    _check(answer, task, 0 * z, right, slips, "alpha multiplies the whole term", f"{len(margin)} numbers")


def check_resting_margin(answer: float | None, label: float, alpha: float) -> None:
    """Notebook 03: is `answer` the negative margin, in logits, at which the loss with the explicit term is flat?"""
    p = label / (1 + alpha)
    if answer is not None and p >= 0.5:
        print(f"there is none: label {label} is not below (1 + alpha) / 2 = {(1 + alpha) / 2:.2f}")
        return
    slips = [
        (special.logit(label), "there the loss rests without conflict; the term acts at negative margins alone"),
        (p, "that is P; the margin is its log-odds, log(P / (1 - P))"),
        (-special.logit(p), "the sign is turned round: a pair that contradicts gold has a negative margin"),
    ]
    task = "the negative margin at which the derivative of the loss with the explicit term is 0"
    right = "a contradicting pair is driven to this margin and stays wrong"
    hint = "solve (1 + alpha) P = label for P, then take its log-odds, to two decimals"
    _check(answer, task, special.logit(p), right, slips, hint)


def check_pgr(answer: float | None, weak: float, student: float, ceiling: float) -> None:
    """Notebook 03: is `answer` the performance gap recovered, given three accuracies?"""
    slips = [
        ((student - weak) / ceiling, "divide by the gap ceiling - weak, not by the ceiling"),
        (student / ceiling, "that is a ratio of accuracies; the weak model's accuracy is the zero of the scale"),
        ((student - 0.5) / (ceiling - 0.5), "the zero of the scale is the weak model, not chance"),
        ((ceiling - student) / (ceiling - weak), "that is the share NOT recovered"),
    ]
    recovered, right = (student - weak) / (ceiling - weak), "0 is the weak model's accuracy, 1 the ceiling's"
    _check(answer, "the performance gap recovered", recovered, right, slips, "(student - weak) / (ceiling - weak)")


def check_control(answer: str | None) -> None:
    """Notebook 06: which labels take the noise of the weak labels away and keep everything else?"""
    slips = {
        "weak": "these are the noisy labels themselves",
        "own": "the ceiling's labels have errors too: less noise, not none",
        "shuffled": "shuffling moves the noise to other pairs, and takes none of it away",
        "random": "that is noise alone; half of these labels are wrong",
    }
    faults = [(answer != "gold", slips.get(answer, "choose one of the five kinds"))]
    right = "with gold labels every label is right, and the conflict is all that is left"
    _first_fault(answer, "one of weak, gold, own, shuffled, random", lambda: faults, right)


def check_misplaced_tax(answer: float | None, controls: pd.DataFrame, conflict: str) -> None:
    """Notebook 06: is `answer` the tax share with weak labels less that with shuffled ones, in the first seed?"""
    rows = controls[(controls["conflict"] == conflict) & (controls["seed"] == controls["seed"].iloc[0])]
    share, pairs = (rows.set_index("labels")[column] for column in ("tax_share", "tax"))
    slips = [
        (share["shuffled"] - share["weak"], "the sign is turned round: weak less shuffled"),
        (share["weak"] - share["gold"], "gold labels have no noise at all; shuffled ones have the same, elsewhere"),
        (pairs["weak"] - pairs["shuffled"], "those are pairs; tax_share is the share of all test pairs"),
    ]
    task = f"the tax share with weak labels less that with shuffled ones, {conflict} conflict, first seed"
    right = "what is left is the part that depends on WHERE the weak model errs"
    hint = "tax_share of the row weak, less that of the row shuffled"
    _check(answer, task, share["weak"] - share["shuffled"], right, slips, hint, atol=1e-6)


def _pairs_for_checks() -> dict[str, np.ndarray]:
    """Made-up P of 400 pairs, (n,) each: reference, conflicted, ceiling, weak; the same at every call."""
    rng = np.random.default_rng(4)
    p = {"reference": rng.uniform(0.2, 1, 400), "conflicted": rng.uniform(0, 1, 400)}
    return p | {"ceiling": rng.beta(1.5, 0.5, 400), "weak": rng.beta(0.7, 0.5, 400)}


def check_deception_score(answer: Callable[..., Any]) -> None:
    """Notebook 04: does `answer(reference, conflicted, ceiling, weak)` give the Deception Score at threshold 0.75?"""
    p = _pairs_for_checks()
    tax, back = (
        deception.conflict_tax(p[a], p[b]) for a, b in (("reference", "conflicted"), ("conflicted", "reference"))
    )
    blind, swapped = (deception.areas(p[a], p[b]) == BLIND for a, b in (("ceiling", "weak"), ("weak", "ceiling")))
    by_gold = deception.areas(p["ceiling"], p["weak"], known_by="gold") == BLIND
    slips = [
        ((tax & blind).mean(), "divide by the number of tax pairs, not by all pairs"),
        ((tax & blind).sum() / blind.sum(), "that is the tax rate inside the area; divide by the number of tax pairs"),
        ((tax & swapped).sum() / tax.sum(), "ceiling and weak are swapped: the strong knows, the weak does not"),
        ((tax & by_gold).sum() / tax.sum(), "known is max(P, 1-P) >= threshold: a confidently wrong model counts"),
        ((tax & ~deception.known(p["weak"])).sum() / tax.sum(), "the ceiling must know the pair as well"),
        ((back & blind).sum() / back.sum(), "the tax is what the REFERENCE has right and the student wrong"),
    ]
    task = "return the share of the conflict tax that lies in S-known/W-unknown"
    hint = "count tax pairs that are S-known and W-unknown, and divide by the number of tax pairs"
    right = "the share of the tax where the supervisor is blind"
    _check(answer(**p), task, (tax & blind).sum() / tax.sum(), right, slips, hint, atol=1e-9)


def check_null_score(answer: Callable[..., Any]) -> None:
    """Notebook 04: does `answer(reference, ceiling, weak)` give the Score of a tax that falls evenly?"""
    p = _pairs_for_checks()
    at_risk, blind = deception.right(p["reference"]), deception.areas(p["ceiling"], p["weak"]) == BLIND
    slips = [
        (blind.mean(), "that is the area's share of ALL pairs; only what the reference has right can be lost"),
        ((at_risk & blind).mean(), "divide by the pairs at risk, not by all pairs"),
        ((at_risk & blind).sum() / blind.sum(), "that is the reference's accuracy inside the area"),
        (0.25, "the four areas are not equally large"),
    ]
    given, expected = answer(p["reference"], p["ceiling"], p["weak"]), (at_risk & blind).sum() / at_risk.sum()
    task, right = (
        "return the Score to be expected of a tax that falls evenly",
        "a Score says something only beside this number",
    )
    hint = "among the pairs that the reference has right, take the share in S-known/W-unknown"
    _check(given, task, expected, right, slips, hint, atol=1e-9)


def check_known_by_gold(answer: float | None, reference, conflicted, ceiling, weak, threshold: float) -> None:
    """Notebook 04: is `answer` the Deception Score of these arrays (n,) when a pair is known by P >= threshold?"""
    arrays = (reference, conflicted, ceiling, weak, threshold)
    slips = [
        (deception.deception_score(*arrays), "that is the Score by confidence; a P near 0 is confident, and not gold"),
        (deception.null_score(reference, ceiling, weak, threshold, "gold"), "that is the null of it, not the Score"),
    ]
    task, expected = (
        'the Deception Score of the toy with known_by="gold"',
        deception.deception_score(*arrays, known_by="gold"),
    )
    right = "by gold, a confidently wrong ceiling knows nothing that it could hide"
    _check(answer, task, expected, right, slips, "only the areas change, not the tax: which tax pairs change area?")


def check_chain_splits(answer: Sequence[str] | None) -> None:
    """Notebook 05: is `answer` the training split of weak, first, second intermediate and strong, in this order?"""
    splits = list(answer) if isinstance(answer, list | tuple) else [answer]
    unnamed = len(splits) != 4 or any(split not in ("gt", "w2s") for split in splits)
    seen = "a model would be trained on pairs that its teacher was trained on; labels there are memories"
    faults = [
        (unnamed, f"expected four names, each gt or w2s, got {splits}"),
        (splits[0] != "gt", "the weak model learns from gold labels, and those are used on gt alone"),
        (splits != ["gt", "w2s", "gt", "w2s"], seen),
    ]
    task = "the training splits of weak, first intermediate, second intermediate and strong"
    right = "the splits alternate, so that every teacher labels pairs that it has not seen"
    _first_fault(answer, task, lambda: faults, right)


def check_paired_interval(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 05: does `answer(first, second)` give the paired 95% interval of an accuracy difference, (low, high)?

    The two students agree on most of 500 pairs. A tolerance of 0.01 allows for another random generator.
    """
    rng = np.random.default_rng(5)
    first = rng.random(500) < 0.7
    second = np.where(rng.random(500) < 0.06, ~first, first)
    draws, others = (intervals.draws(len(first), seed=seed) for seed in (0, 1))

    def interval(a, b) -> np.ndarray:
        return np.quantile((a - b) / len(first), [0.025, 0.975])

    expected = interval(draws @ first, draws @ second)
    slips = [
        (interval(draws @ first, others @ second), "the students were drawn apart: use the same pairs for both"),
        (-expected[::-1], "the sign is turned round: first minus second"),
        (interval(draws @ first, 0.0), "that is the interval of the first accuracy, not of the difference"),
    ]
    task = "return (low, high) of the paired 95% interval of accuracy(first) - accuracy(second)"
    right = "pairs on which both agree cannot move the difference, so the interval is narrow"
    hint = "resample pairs, take the difference inside each sample"
    _check(answer(first, second), task, expected, right, slips, hint, "two numbers, low and high", atol=0.01)


def check_adaptive_verdicts(answer: Sequence[int] | None) -> None:
    """Notebook 07: are these the verdicts of five pairs when as many of them are 1 as gold labels are?"""
    slips = [
        ([0, 0, 1, 1, 1], "that is the threshold 0, which knows nothing of gold"),
        ([0, 0, 0, 0, 0], "chosen is the preferred response, and its label is 1"),
        ([0, 0, 0, 1, 1], "that is about one half; gold labels are no coin: look at them in this kit"),
    ]
    task, what = "five verdicts, each 0 or 1", "five numbers, 0 or 1"
    right = "each own verdict is then the gold label, and the weak labels hardly matter"
    hint = "how often is gold 1, when chosen is always the preferred response?"
    _check(answer, task, [1, 1, 1, 1, 1], right, slips, hint, what)


def check_reverse_gradient(answer: Callable[..., Any]) -> None:
    """Notebook 07: does `answer(margin, label)` give the derivative of the reverse loss with respect to the margin?"""
    margin, label = np.array([-2.0, -0.5, 0.5, 3.0]), np.array([0.8, 0.4, 0.9, 0.3])
    p, odds = special.expit(margin), special.logit(label)
    slips = [
        (p * (1 - p) * odds, "the sign is turned round: a label above 1/2 must raise the margin"),
        (-odds, "that is the slope in P; by the chain rule a factor P (1 - P) is missing"),
        (p - label, "that is the gradient of the ordinary cross-entropy"),
        (-p * (1 - p) * np.log(label), "the term of 1 - P depends on the margin as well"),
    ]
    task, what = (
        "return the derivative of the reverse loss with respect to the margin",
        "one derivative for each of the four margins",
    )
    right = "an undecided label does not pull, and a sure student hardly moves"
    hint = "the loss is linear in P: its slope times dP/dz"
    _check(answer(margin, label), task, -p * (1 - p) * odds, right, slips, hint, what)


def check_holm(answer: int | None) -> None:
    """Notebook 07: how many of 0.004, 0.012, 0.018, 0.03 and 0.2 are left at the level 0.05 by Holm's adjustment?"""
    slips = [
        (4, "so many are below 0.05 by themselves, without any adjustment"),
        (1, "that is Bonferroni, which takes all of them times 5; Holm's factor falls"),
        (3, "0.018 times 3 is 0.054, above the level"),
    ]
    task = "how many of the five p-values are left after Holm's adjustment"
    right = "0.02 and 0.048 pass, 0.054 does not, and the procedure stops there"
    _check(answer, task, 2, right, slips, "times 5, 4, 3, ... in rising order, up to the first failure")
