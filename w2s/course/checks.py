"""Checks of the notebooks' exercises: each prints whether an answer is right, else the usual slip.

A check never stops a notebook: without an answer it says what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from w2s import deception, intervals

Slips = Sequence[tuple[Any, str]]


def _missing(answer: Any, task: str) -> bool:
    """Say what is asked for while the answer is None."""
    if answer is None:
        print(f"not answered yet: {task}")
    return answer is None


def _numbers(answer: Any, shape: tuple[int, ...], what: str) -> np.ndarray | None:
    """The answer as floats of the expected shape; None, after one line, when it is none."""
    try:
        values = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        values = None
    if values is None or values.shape != shape:
        found = f"shape {values.shape}" if values is not None else type(answer).__name__
        print(f"not yet: expected {what}, got {found}")
        return None
    return values


def _compare(values: np.ndarray, expected: Any, right: str, slips: Slips, otherwise: str, atol: float = 5e-3) -> None:
    """Print `right`, or the message of the first slip whose wrong result the values equal, or `otherwise`."""
    if np.allclose(values, expected, rtol=0, atol=atol):
        print(f"correct: {right}")
        return
    found = [message for wrong, message in slips if np.allclose(values, wrong, rtol=0, atol=atol)]
    print(f"not yet: {found[0] if found else otherwise}")


def check_implicit_mix(
    answer: pd.DataFrame | None, pairs: pd.DataFrame, labels: pd.DataFrame, helpful: pd.DataFrame
) -> None:
    """Notebook 01: is `answer` the training table of the implicit conflict?

    Expected columns: id, label (probability that chosen is preferred), target (bool), in any order
    of rows; `pairs` with the weak labels of their own id, then `helpful` with gold labels.
    """
    if _missing(answer, "build a table with the columns id, label and target"):
        return
    if not isinstance(answer, pd.DataFrame) or not {"id", "label", "target"} <= set(answer.columns):
        print("not yet: expected a DataFrame with the columns id, label and target")
        return
    if sorted(answer["id"]) != sorted([*pairs["id"], *helpful["id"]]):
        found = f"{len(answer)} rows where {len(pairs)} + {len(helpful)} pairs belong"
        print(f"not yet: {found}; concatenate the two tables, every pair once")
        return
    mine = answer.set_index("id")
    weak = labels.set_index("id")["weak_label"]
    target = mine.loc[pairs["id"], "label"].to_numpy(dtype=float)
    if not np.allclose(mine.loc[helpful["id"], "label"].to_numpy(dtype=float), 1.0):
        print("not yet: helpful pairs carry gold labels, so their label is 1.0; the weak model never saw them")
    elif np.array_equal(target, labels["weak_label"]) and not np.allclose(target, weak[pairs["id"]]):
        print("not yet: the labels were joined by position; `labels` stands in another order, so join by id")
    elif np.allclose(target, weak[pairs["id"]] > 0.5):
        print("not yet: the labels were rounded to 0 and 1; the weak label of reward modelling is soft")
    elif not np.allclose(target, weak[pairs["id"]]):
        print("not yet: the label of a pair of the target is the weak_label of the same id")
    elif not (mine.loc[pairs["id"], "target"].all() and not mine.loc[helpful["id"], "target"].any()):
        print("not yet: target is True for the harmless pairs and False for the helpful ones")
    else:
        print("correct: soft weak labels by id, gold labels for the helpful pairs")


def check_contradicting_share(answer: float | None, dangerous: Sequence[bool]) -> None:
    """Notebook 01: is `answer` the share of the conflict's pairs that the target would decide the other way?

    dangerous: whether the substance of each pair of the conflict is dangerous, (n,).
    """
    if _missing(answer, "the share (0 to 1) of the conflict's pairs in which the target prefers the other response"):
        return
    share = float(np.mean(np.asarray(dangerous, dtype=bool)))
    slips = [
        (1 - share, "that is the share of SAFE substances, where both dimensions agree"),
        (100 * share, "that is a percentage; give the share between 0 and 1"),
        (1.0, "not every pair contradicts: about a safe substance both dimensions go along"),
    ]
    otherwise = "look up `dangerous` of each pair's substance by its name, and take the mean"
    values = _numbers(answer, (), "one number")
    if values is not None:
        _compare(values, share, "in these pairs the two dimensions pull in opposite directions", slips, otherwise)


def check_duplicates(answer: Mapping[str, int] | None, first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Notebook 01: are duplicate_prompts (of `first`) and shared_prompts (of both tables) counted as in the audit?"""
    if _missing(answer, "count duplicate_prompts in the first table and shared_prompts between the two"):
        return
    if not isinstance(answer, Mapping) or not {"duplicate_prompts", "shared_prompts"} <= set(answer):
        print("not yet: expected a dict with the keys duplicate_prompts and shared_prompts")
        return
    values = _numbers([answer["duplicate_prompts"], answer["shared_prompts"]], (2,), "a number for each key")
    if values is None:
        return
    prompts = first["prompt"]
    duplicates = len(prompts) - prompts.nunique()
    shared = len(set(prompts) & set(second["prompt"]))
    if values[0] == prompts.duplicated(keep=False).sum() != duplicates:
        print("not yet: you counted every row of a repeated prompt; the first of them is no duplicate")
    elif values[1] == second["prompt"].isin(prompts).sum() != shared:
        print("not yet: you counted rows; shared_prompts counts each distinct prompt once")
    else:
        message = "duplicate_prompts is rows minus distinct prompts, shared_prompts the size of an intersection"
        _compare(values, [duplicates, shared], message, [], message)


def check_last_token(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 02: does `answer(input_ids, attention_mask)` give each row's last real position, (n,)?

    One text contains the token id 0 and ends with it, which is "!" in GPT-2's vocabulary.
    """
    ids = np.array([[7, 0, 5, 0, 0], [4, 9, 3, 8, 6], [2, 5, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = answer(ids, mask)
    if _missing(found, "return the position of the last real token of each row"):
        return
    values = _numbers(found, (3,), "one position for each of the three rows")
    slips = [
        ((ids != 0).sum(1) - 1, "you counted non-zero ids; id 0 is a real token, so count the attention mask"),
        (mask.sum(1), "that is the number of real tokens; positions start at 0"),
        (np.full(3, 4), "that is the last column, which is padding in the shorter rows"),
    ]
    if values is not None:
        right = "the position comes from the attention mask alone"
        _compare(values, mask.sum(1) - 1, right, slips, "count the ones of each row of the mask")


def check_reward_gradient(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 02: is `answer(margin, target)` the derivative of the reward loss by the margin, (n,)?"""
    margin, target = np.array([-30.0, -1.0, 0.0, 2.0, 30.0]), np.array([1.0, 0.3, 0.5, 0.6, 0.0])
    found = answer(margin, target)
    if _missing(found, "return the derivative of the reward loss by the margin"):
        return
    p = 1 / (1 + np.exp(-margin))
    values = _numbers(found, margin.shape, "one derivative for each margin")
    slips = [
        (target - p, "the sign is turned round; this is the direction of descent"),
        (p - (target > 0.5), "the label is soft: do not round it to 0 or 1"),
        (p - 1, "that is the derivative for a gold label; the label of a pair need not be 1"),
        ((p - target) * p * (1 - p), "one factor P (1 - P) too many; it cancels, and that is why the loss trains well"),
    ]
    if values is not None:
        right = "P minus the label; it is bounded and does not vanish where the model is confidently wrong"
        _compare(values, p - target, right, slips, "differentiate -y log P - (1 - y) log(1 - P), with P = sigmoid(z)")


def check_confident_accuracy(answer: float | None, probability: Sequence[float], threshold: float) -> None:
    """Notebook 02: is `answer` the accuracy among the pairs whose confidence reaches the threshold?

    probability: P of the truly preferred response, (n,).
    """
    if _missing(answer, "the accuracy among the pairs with confidence max(P, 1-P) at or above the threshold"):
        return
    p = np.asarray(probability, dtype=float)
    sure, hits = deception.confidence(p) >= threshold, deception.right(p)
    if not sure.any():
        print(f"no pair reaches the confidence {threshold}: the accuracy among them is not defined")
        return
    values = _numbers(answer, (), "one number")
    slips = [
        (hits.mean(), "that is the accuracy over all pairs; keep the confident ones first"),
        ((hits & sure).mean(), "divide by the number of confident pairs, not by all pairs"),
        (sure.mean(), "that is the share of confident pairs, not their accuracy"),
        (1.0, "P >= threshold keeps right answers alone; confidence is max(P, 1 - P), right or wrong"),
    ]
    if values is not None:
        right = "compare it with the mean confidence there: the model is calibrated when they agree"
        _compare(values, hits[sure].mean(), right, slips, "keep max(P, 1 - P) >= threshold, then average P > 0.5")


def check_simpo_loss(answer: Callable[..., Any]) -> None:
    """Notebook 02: does `answer` give the SimPO loss, (n,) in nats, of summed log-probabilities and token counts?

    It is called as answer(chosen_logp, rejected_logp, chosen_tokens, rejected_tokens, beta, gamma).
    """
    chosen, rejected = np.array([-6.0, -9.0, -4.0, -12.0]), np.array([-5.0, -14.0, -8.0, -6.0])
    n_chosen, n_rejected = np.array([6, 5, 8, 10]), np.array([4, 7, 5, 12])
    beta, gamma = 2.5, 0.8
    found = answer(chosen, rejected, n_chosen, n_rejected, beta, gamma)
    if _missing(found, "return the SimPO loss of each pair"):
        return
    values = _numbers(found, (4,), "one loss for each of the four pairs")

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
    if values is not None:
        right = "means, so that length does not count, scaled by beta, and gamma to be exceeded"
        _compare(values, loss(beta * mean), right, slips, "-log sigmoid(beta * (difference of means) - gamma)")


def check_alpha_zero(answer: Sequence[float] | None, margin: Sequence[float], gold: Sequence[float]) -> None:
    """Notebook 03: is `answer` the explicit term at these margins, (n,) in nats, when alpha = 0?"""
    if _missing(answer, f"the explicit term, in nats, at the margins {list(margin)} when alpha = 0"):
        return
    import torch

    from w2s.losses import explicit_conflict_loss, reward_loss

    z, g = torch.tensor(margin), torch.tensor(gold)
    values = _numbers(answer, (len(margin),), f"{len(margin)} numbers")
    slips = [
        (explicit_conflict_loss(z, g, 0.5).numpy(), "that is the term with alpha = 0.5; alpha multiplies all of it"),
        (reward_loss(z, g).numpy(), "that is the loss against gold; asked for is the added term alone"),
    ]
    if values is not None:
        right = "alpha = 0 takes the term away: this student trains exactly like the one without conflict"
        expected = explicit_conflict_loss(z, g, 0.0).numpy()
        _compare(values, expected, right, slips, "alpha multiplies the whole term")


def check_resting_margin(answer: float | None, label: float, alpha: float) -> None:
    """Notebook 03: is `answer` the negative margin, in logits, at which the loss with the explicit term is flat?"""
    if _missing(answer, "the negative margin at which the derivative of the loss with the explicit term is 0"):
        return
    p = label / (1 + alpha)
    if p >= 0.5:
        print(f"there is none: label {label} is not below (1 + alpha) / 2 = {(1 + alpha) / 2:.2f}")
        return
    values = _numbers(answer, (), "one number")
    slips = [
        (np.log(label / (1 - label)), "there the loss rests without conflict; the term acts at negative margins alone"),
        (p, "that is P; the margin is its log-odds, log(P / (1 - P))"),
        (np.log((1 - p) / p), "the sign is turned round: a pair that contradicts gold has a negative margin"),
    ]
    if values is not None:
        right = "a contradicting pair is driven to this margin and stays wrong"
        otherwise = "solve (1 + alpha) P = label for P, then take its log-odds, to two decimals"
        _compare(values, np.log(p / (1 - p)), right, slips, otherwise)


def check_pgr(answer: float | None, weak: float, student: float, ceiling: float) -> None:
    """Notebook 03: is `answer` the performance gap recovered, given three accuracies?"""
    if _missing(answer, "the performance gap recovered"):
        return
    values = _numbers(answer, (), "one number")
    slips = [
        ((student - weak) / ceiling, "divide by the gap ceiling - weak, not by the ceiling"),
        (student / ceiling, "that is a ratio of accuracies; the weak model's accuracy is the zero of the scale"),
        ((student - 0.5) / (ceiling - 0.5), "the zero of the scale is the weak model, not chance"),
        ((ceiling - student) / (ceiling - weak), "that is the share NOT recovered"),
    ]
    if values is not None:
        right = "0 is the weak model's accuracy, 1 the ceiling's"
        _compare(values, (student - weak) / (ceiling - weak), right, slips, "(student - weak) / (ceiling - weak)")


def check_control(answer: str | None) -> None:
    """Notebook 06: which labels take the noise of the weak labels away and keep everything else?"""
    if _missing(answer, "one of weak, gold, own, shuffled, random"):
        return
    slips = {
        "weak": "these are the noisy labels themselves",
        "own": "the ceiling's labels have errors too: less noise, not none",
        "shuffled": "shuffling moves the noise to other pairs, and takes none of it away",
        "random": "that is noise alone; half of these labels are wrong",
    }
    right = "with gold labels every label is right, and the conflict is all that is left"
    print(f"correct: {right}" if answer == "gold" else f"not yet: {slips.get(answer, 'choose one of the five kinds')}")


def check_misplaced_tax(answer: float | None, controls: pd.DataFrame, conflict: str) -> None:
    """Notebook 06: is `answer` the tax share with weak labels less that with shuffled ones, in the first seed?"""
    if _missing(
        answer, f"the tax share with weak labels less that with shuffled ones, {conflict} conflict, first seed"
    ):
        return
    rows = controls[(controls["conflict"] == conflict) & (controls["seed"] == controls["seed"].iloc[0])]
    share, count = (rows.set_index("labels")[column] for column in ("tax_share", "tax"))
    values = _numbers(answer, (), "one number")
    slips = [
        (share["shuffled"] - share["weak"], "the sign is turned round: weak less shuffled"),
        (share["weak"] - share["gold"], "gold labels have no noise at all; shuffled ones have the same, elsewhere"),
        (count["weak"] - count["shuffled"], "those are pairs; tax_share is the share of all test pairs"),
    ]
    if values is not None:
        right = "what is left is the part that depends on WHERE the weak model errs"
        expected = share["weak"] - share["shuffled"]
        _compare(values, expected, right, slips, "tax_share of the row weak, less that of the row shuffled", atol=1e-6)


def _pairs_for_checks() -> dict[str, np.ndarray]:
    """Made-up P of 400 pairs, (n,) each: reference, conflicted, ceiling, weak; the same at every call."""
    rng = np.random.default_rng(4)
    p = {"reference": rng.uniform(0.2, 1, 400), "conflicted": rng.uniform(0, 1, 400)}
    return p | {"ceiling": rng.beta(1.5, 0.5, 400), "weak": rng.beta(0.7, 0.5, 400)}


def check_deception_score(answer: Callable[..., Any]) -> None:
    """Notebook 04: does `answer(reference, conflicted, ceiling, weak)` give the Deception Score at threshold 0.75?"""
    p = _pairs_for_checks()
    found = answer(**p)
    if _missing(found, "return the share of the conflict tax that lies in S-known/W-unknown"):
        return
    tax = deception.conflict_tax(p["reference"], p["conflicted"])
    blind = deception.areas(p["ceiling"], p["weak"]) == "S-known/W-unknown"
    turned = deception.areas(p["weak"], p["ceiling"]) == "S-known/W-unknown"
    by_gold = deception.areas(p["ceiling"], p["weak"], known_by="gold") == "S-known/W-unknown"
    back = deception.conflict_tax(p["conflicted"], p["reference"])
    slips = [
        ((tax & blind).mean(), "divide by the number of tax pairs, not by all pairs"),
        ((tax & blind).sum() / blind.sum(), "that is the tax rate inside the area; divide by the number of tax pairs"),
        ((tax & turned).sum() / tax.sum(), "ceiling and weak are swapped: the strong knows, the weak does not"),
        ((tax & by_gold).sum() / tax.sum(), "known is max(P, 1-P) >= threshold: a confidently wrong model counts"),
        ((tax & ~deception.known(p["weak"])).sum() / tax.sum(), "the ceiling must know the pair as well"),
        ((back & blind).sum() / back.sum(), "the tax is what the REFERENCE has right and the student wrong"),
    ]
    values = _numbers(found, (), "one number")
    if values is not None:
        right = "the share of the tax where the supervisor is blind"
        otherwise = "count tax pairs that are S-known and W-unknown, and divide by the number of tax pairs"
        _compare(values, (tax & blind).sum() / tax.sum(), right, slips, otherwise, atol=1e-9)


def check_null_score(answer: Callable[..., Any]) -> None:
    """Notebook 04: does `answer(reference, ceiling, weak)` give the Score of a tax that falls evenly?"""
    p = _pairs_for_checks()
    found = answer(p["reference"], p["ceiling"], p["weak"])
    if _missing(found, "return the Score to be expected of a tax that falls evenly"):
        return
    at_risk, area = deception.right(p["reference"]), deception.areas(p["ceiling"], p["weak"])
    blind = area == "S-known/W-unknown"
    slips = [
        (blind.mean(), "that is the area's share of ALL pairs; only what the reference has right can be lost"),
        ((at_risk & blind).mean(), "divide by the pairs at risk, not by all pairs"),
        ((at_risk & blind).sum() / blind.sum(), "that is the reference's accuracy inside the area"),
        (0.25, "the four areas are not equally large"),
    ]
    values = _numbers(found, (), "one number")
    if values is not None:
        right = "a Score says something only beside this number"
        otherwise = "among the pairs that the reference has right, take the share in S-known/W-unknown"
        _compare(values, (at_risk & blind).sum() / at_risk.sum(), right, slips, otherwise, atol=1e-9)


def check_known_by_gold(answer: float | None, reference, conflicted, ceiling, weak, threshold: float) -> None:
    """Notebook 04: is `answer` the Deception Score of these arrays (n,) when a pair is known by P >= threshold?"""
    if _missing(answer, 'the Deception Score of the toy with known_by="gold"'):
        return
    arrays = (reference, conflicted, ceiling, weak, threshold)
    expected = deception.deception_score(*arrays, known_by="gold")
    slips = [
        (deception.deception_score(*arrays), "that is the Score by confidence; a P near 0 is confident, and not gold"),
        (deception.null_score(reference, ceiling, weak, threshold, "gold"), "that is the null of it, not the Score"),
    ]
    values = _numbers(answer, (), "one number")
    if values is not None:
        right = "by gold, a confidently wrong ceiling knows nothing that it could hide"
        _compare(values, expected, right, slips, "only the areas change, not the tax: which tax pairs change area?")


def check_chain_splits(answer: Sequence[str] | None) -> None:
    """Notebook 05: is `answer` the training split of weak, first, second intermediate and strong, in this order?"""
    if _missing(answer, "the training splits of weak, first intermediate, second intermediate and strong"):
        return
    splits = list(answer) if isinstance(answer, list | tuple) else [answer]
    if len(splits) != 4 or any(split not in ("gt", "w2s") for split in splits):
        print(f"not yet: expected four names, each gt or w2s, got {splits}")
    elif splits[0] != "gt":
        print("not yet: the weak model learns from gold labels, and those are used on gt alone")
    elif splits != ["gt", "w2s", "gt", "w2s"]:
        print("not yet: a model would be trained on pairs that its teacher was trained on; labels there are memories")
    else:
        print("correct: the splits alternate, so that every teacher labels pairs that it has not seen")


def check_paired_interval(answer: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Notebook 05: does `answer(first, second)` give the paired 95% interval of an accuracy difference, (low, high)?

    The two students agree on most of 500 pairs. A tolerance of 0.01 allows for another random generator.
    """
    rng = np.random.default_rng(5)
    first = rng.random(500) < 0.7
    second = np.where(rng.random(500) < 0.06, ~first, first)
    found = answer(first, second)
    if _missing(found, "return (low, high) of the paired 95% interval of accuracy(first) - accuracy(second)"):
        return

    def interval(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.quantile((a - b) / len(first), [0.025, 0.975])

    draws, others = (intervals.draws(len(first), seed=seed) for seed in (0, 1))
    expected = interval(draws @ first, draws @ second)
    slips = [
        (interval(draws @ first, others @ second), "the students were drawn apart: use the same pairs for both"),
        (-expected[::-1], "the sign is turned round: first minus second"),
        (interval(draws @ first, 0.0), "that is the interval of the first accuracy, not of the difference"),
    ]
    values = _numbers(found, (2,), "two numbers, low and high")
    if values is not None:
        right = "pairs on which both agree cannot move the difference, so the interval is narrow"
        _compare(values, expected, right, slips, "resample pairs, take the difference inside each sample", atol=0.01)


def check_adaptive_verdicts(answer: Sequence[int] | None) -> None:
    """Notebook 07: are these the verdicts of five pairs when as many of them are 1 as gold labels are?"""
    if _missing(answer, "five verdicts, each 0 or 1"):
        return
    values = _numbers(answer, (5,), "five numbers, 0 or 1")
    slips = [
        (np.array([0, 0, 1, 1, 1]), "that is the threshold 0, which knows nothing of gold"),
        (np.zeros(5), "chosen is the preferred response, and its label is 1"),
        (np.array([0, 0, 0, 1, 1]), "that is about one half; gold labels are no coin: look at them in this kit"),
    ]
    if values is not None:
        right = "each own verdict is then the gold label, and the weak labels hardly matter"
        _compare(values, np.ones(5), right, slips, "how often is gold 1, when chosen is always the preferred response?")


def check_reverse_gradient(answer: Callable[..., Any]) -> None:
    """Notebook 07: does `answer(margin, label)` give the derivative of the reverse loss with respect to the margin?"""
    margin, label = np.array([-2.0, -0.5, 0.5, 3.0]), np.array([0.8, 0.4, 0.9, 0.3])
    found = answer(margin, label)
    if _missing(found, "return the derivative of the reverse loss with respect to the margin"):
        return
    p, odds = 1 / (1 + np.exp(-margin)), np.log(label / (1 - label))
    slips = [
        (p * (1 - p) * odds, "the sign is turned round: a label above 1/2 must raise the margin"),
        (-odds, "that is the slope in P; by the chain rule a factor P (1 - P) is missing"),
        (p - label, "that is the gradient of the ordinary cross-entropy"),
        (-p * (1 - p) * np.log(label), "the term of 1 - P depends on the margin as well"),
    ]
    values = _numbers(found, (4,), "one derivative for each of the four margins")
    if values is not None:
        right = "an undecided label does not pull, and a sure student hardly moves"
        _compare(values, -p * (1 - p) * odds, right, slips, "the loss is linear in P: its slope times dP/dz")


def check_holm(answer: int | None) -> None:
    """Notebook 07: how many of 0.004, 0.012, 0.018, 0.03 and 0.2 are left at the level 0.05 by Holm's adjustment?"""
    if _missing(answer, "how many of the five p-values are left after Holm's adjustment"):
        return
    values = _numbers(answer, (), "one number")
    slips = [
        (4, "so many are below 0.05 by themselves, without any adjustment"),
        (1, "that is Bonferroni, which takes all of them times 5; Holm's factor falls"),
        (3, "0.018 times 3 is 0.054, above the level"),
    ]
    if values is not None:
        right = "0.02 and 0.048 pass, 0.054 does not, and the procedure stops there"
        _compare(values, np.array(2.0), right, slips, "times 5, 4, 3, ... in rising order, up to the first failure")
