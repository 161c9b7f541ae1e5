"""Checks of the notebooks' exercises: each prints whether an answer is right, else the usual slip.

A check never stops a notebook: without an answer it says what is asked for. The words are in exercises.yaml beside this
file; here stand the right result of each exercise and the wrong ones that its slips give, under the same names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from w2s import deception, intervals
from w2s.course.answers import Answer, exercises, kept

BLIND = deception.AREAS[1]  # the strong model knows, the weak one does not


def _compare(name: str, answer: Any, expected: Any, slips: Mapping[str, Any], atol=5e-3, **values: Any) -> Answer:
    """Say of an answer in numbers that it is right, or the first slip whose wrong result it equals, or the hint.

    expected: the right result. slips: wrong results by the names of exercises.yaml. values: for its {fields}.
    """
    words, what = exercises()[name], exercises()[name].get("what", "one number").format(**values)
    if answer is None:
        return Answer(name, None, f"not answered yet: {words['task'].format(**values)}")
    try:
        numbers = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        return Answer(name, False, f"not yet: expected {what}, got {type(answer).__name__}")
    if numbers.shape != np.shape(expected):
        return Answer(name, False, f"not yet: expected {what}, got shape {numbers.shape}")
    if np.allclose(numbers, expected, rtol=0, atol=atol):
        return Answer(name, True, f"correct: {words['right']}")
    equal = [words["slips"][key] for key, wrong in slips.items() if np.allclose(numbers, wrong, rtol=0, atol=atol)]
    return Answer(name, False, f"not yet: {equal[0] if equal else words['hint']}")


def _first(name: str, answer: Any, faults: Callable[[], Iterable[str]], **values: Any) -> Answer:
    """Say of another answer that it is right, or the first of its faults, which are names of exercises.yaml."""
    words = exercises()[name]
    if answer is None:
        return Answer(name, None, f"not answered yet: {words['task']}")
    fault = next(iter(faults()), None)
    slip = " ".join(words["slips"][fault].format(**values).split()) if fault else ""  # of an answer of many lines, too
    return Answer(name, not fault, f"not yet: {slip}" if fault else f"correct: {words['right']}")


def check_implicit_mix(answer, pairs: pd.DataFrame, labels: pd.DataFrame, helpful: pd.DataFrame) -> Answer:
    """Notebook 01: is `answer` the training table of the implicit conflict (id, label, target; rows in any order)?"""

    def faults():
        if not isinstance(answer, pd.DataFrame) or not {"id", "label", "target"} <= set(answer.columns):
            yield "columns"
        if sorted(answer["id"]) != sorted([*pairs["id"], *helpful["id"]]):
            yield "rows"
        mine, weak = answer.set_index("id"), labels.set_index("id")["weak_label"][pairs["id"]]
        label, added = (mine.loc[table["id"], "label"].to_numpy(dtype=float) for table in (pairs, helpful))
        if not np.allclose(added, 1.0):
            yield "helpful"
        if not np.allclose(label, weak):
            by_position = np.array_equal(label, labels["weak_label"])
            yield "by position" if by_position else "rounded" if np.allclose(label, weak > 0.5) else "other labels"
        if not mine.loc[pairs["id"], "target"].all() or mine.loc[helpful["id"], "target"].any():
            yield "target"

    n = len(answer) if hasattr(answer, "__len__") else 0
    return _first("implicit_mix", answer, faults, rows=n, pairs=len(pairs), helpful=len(helpful))


def check_contradicting_share(answer: float | None, dangerous: Sequence[bool]) -> Answer:
    """Notebook 01: the share of the conflict's pairs, dangerous or not (n,), that the target would decide otherwise."""
    share = float(np.mean(np.asarray(dangerous, dtype=bool)))
    return _compare("contradicting_share", answer, share, {"safe": 1 - share, "percent": 100 * share, "all": 1.0}, 1e-3)


def check_last_token(answer: Callable[[np.ndarray, np.ndarray], Any]) -> Answer:
    """Notebook 02: does `answer(input_ids, attention_mask)` give each row's last real position, (n,)?

    One text contains the token id 0 and ends with it, which is "!" in GPT-2's vocabulary.
    """
    ids = np.array([[7, 0, 5, 0, 0], [4, 9, 3, 8, 6], [2, 5, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    slips = {"ids": (ids != 0).sum(1) - 1, "count": mask.sum(1), "last column": np.full(3, 4)}
    return _compare("last_token", answer(ids, mask), mask.sum(1) - 1, slips)


def check_reward_gradient(answer: Callable[[np.ndarray, np.ndarray], Any]) -> Answer:
    """Notebook 02: is `answer(margin, target)` the derivative of the reward loss by the margin, (n,)?"""
    margin, target = np.array([-30.0, -1.0, 0.0, 2.0, 30.0]), np.array([1.0, 0.3, 0.5, 0.6, 0.0])
    p = special.expit(margin)
    slips = {"sign": target - p, "rounded": p - (target > 0.5), "gold": p - 1, "factor": (p - target) * p * (1 - p)}
    return _compare("reward_gradient", answer(margin, target), p - target, slips)


def check_simpo_loss(answer: Callable[..., Any]) -> Answer:
    """Notebook 02: does `answer` give the SimPO loss, (n,) in nats, of summed log-probabilities and token counts?

    It is called as answer(chosen_logp, rejected_logp, chosen_tokens, rejected_tokens, beta, gamma).
    """
    chosen, rejected = np.array([-6.0, -9.0, -4.0, -12.0]), np.array([-5.0, -14.0, -8.0, -6.0])
    n_chosen, n_rejected = np.array([6, 5, 8, 10]), np.array([4, 7, 5, 12])
    beta, gamma = 2.5, 0.8

    def loss(margin, target=gamma):
        return np.logaddexp(0, target - margin)  # -log sigmoid(margin - target)

    mean = chosen / n_chosen - rejected / n_rejected
    margin, sums = beta * mean, beta * (chosen - rejected)
    slips = {"gamma scaled": loss(margin, beta * gamma), "gamma over beta": loss(margin, gamma / beta)}
    slips |= {"sums": loss(sums), "gamma added": loss(margin, -gamma), "swapped": loss(-margin), "sign": -loss(margin)}
    slips |= {"no beta": loss(mean), "no gamma": loss(margin, 0.0)}
    return _compare("simpo_loss", answer(chosen, rejected, n_chosen, n_rejected, beta, gamma), loss(margin), slips)


def check_alpha_zero(answer: Sequence[float] | None, margin: Sequence[float], gold: Sequence[float]) -> Answer:
    """Notebook 03: is `answer` the explicit term at these margins, (n,) in nats, when alpha = 0?"""
    z, target = np.asarray(margin, dtype=float), np.asarray(gold, dtype=float)
    against = np.where((z > 0) != (target > 0.5), np.logaddexp(0, np.where(target > 0.5, z, -z)), 0.0)
    slips = {"half": 0.5 * against, "gold": np.logaddexp(0, z) - target * z}
    return _compare("alpha_zero", answer, 0 * z, slips, margin=list(margin), n=len(z))


def check_resting_margin(answer: float | None, label: float, alpha: float) -> Answer:
    """Notebook 03: is `answer` the negative margin, in logits, at which the loss with the explicit term is flat?"""
    p = label / (1 + alpha)
    if answer is not None and p >= 0.5:
        undefined = exercises()["resting_margin"]["undefined"].format(label=label, bound=(1 + alpha) / 2)
        return Answer("resting_margin", False, undefined)
    slips = {"no conflict": special.logit(label), "chance": p, "sign": -special.logit(p)}
    return _compare("resting_margin", answer, special.logit(p), slips)


def check_pgr(answer: float | None, weak: float, student: float, ceiling: float) -> Answer:
    """Notebook 03: is `answer` the performance gap recovered, given three accuracies?"""
    gap, of_chance = ceiling - weak, (student - 0.5) / (ceiling - 0.5)
    slips = {"of ceiling": (student - weak) / ceiling, "ratio": student / ceiling, "of chance": of_chance}
    return _compare("pgr", answer, (student - weak) / gap, slips | {"missing share": (ceiling - student) / gap})


def _pairs_for_checks() -> dict[str, np.ndarray]:
    """Made-up P of 400 pairs, (n,) each: reference, conflicted, ceiling, weak; the same at every call."""
    rng = np.random.default_rng(4)
    p = {"reference": rng.uniform(0.2, 1, 400), "conflicted": rng.uniform(0, 1, 400)}
    return p | {"ceiling": rng.beta(1.5, 0.5, 400), "weak": rng.beta(0.7, 0.5, 400)}


def check_deception_score(answer: Callable[..., Any]) -> Answer:
    """Notebook 04: does `answer(reference, conflicted, ceiling, weak)` give the Deception Score at threshold 0.75?"""
    p = _pairs_for_checks()
    tax = deception.conflict_tax(p["reference"], p["conflicted"])
    gained = deception.conflict_tax(p["conflicted"], p["reference"])
    blind = deception.areas(p["ceiling"], p["weak"]) == BLIND
    by_gold = deception.areas(p["ceiling"], p["weak"], known_by="gold") == BLIND
    swapped, weak_alone = deception.areas(p["weak"], p["ceiling"]) == BLIND, ~deception.known(p["weak"])
    places = {"swapped": swapped, "by gold": by_gold, "weak alone": weak_alone}
    slips = {name: (tax & place).sum() / tax.sum() for name, place in places.items()}
    slips |= {"of all": (tax & blind).mean(), "rate": (tax & blind).sum() / blind.sum()}
    slips["backwards"] = (gained & blind).sum() / gained.sum()
    return _compare("deception_score", answer(**p), (tax & blind).sum() / tax.sum(), slips, atol=1e-9)


def check_null_score(answer: Callable[..., Any]) -> Answer:
    """Notebook 08: does `answer(reference, ceiling, weak)` give the Score of a tax that falls evenly?"""
    p = _pairs_for_checks()
    at_risk, blind = deception.right(p["reference"]), deception.areas(p["ceiling"], p["weak"]) == BLIND
    both = at_risk & blind
    slips = {"of all": blind.mean(), "not at risk": both.mean(), "accuracy": both.sum() / blind.sum(), "quarter": 0.25}
    given = answer(p["reference"], p["ceiling"], p["weak"])
    return _compare("null_score", given, both.sum() / at_risk.sum(), slips, atol=1e-9)


def check_chain_splits(answer: Sequence[str] | None) -> Answer:
    """Notebook 05: is `answer` the training split of weak, first, second intermediate and strong, in this order?"""
    splits = list(answer) if isinstance(answer, list | tuple) else [answer]

    def faults():
        if len(splits) != 4 or any(split not in ("gt", "w2s") for split in splits):
            yield "names"
        if splits != ["gt", "w2s", "gt", "w2s"]:
            yield "seen" if splits[0] == "gt" else "first"

    return _first("chain_splits", answer, faults, splits=splits)


def check_paired_interval(answer: Callable[[np.ndarray, np.ndarray], Any]) -> Answer:
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
    slips = {"apart": interval(draws @ first, others @ second), "sign": -expected[::-1]}
    slips["one"] = interval(draws @ first, 0.0)
    return _compare("paired_interval", answer(first, second), expected, slips, atol=0.01)


def check_misplaced_tax(answer: float | None, controls: pd.DataFrame, conflict: str) -> Answer:
    """Notebook 06: is `answer` the tax share with weak labels less that with shuffled ones, in the first seed?"""
    rows = controls[(controls["conflict"] == conflict) & (controls["seed"] == controls["seed"].iloc[0])]
    share, pairs = (rows.set_index("labels")[column] for column in ("tax_share", "tax"))
    expected = share["weak"] - share["shuffled"]
    slips = {"sign": -expected, "gold": share["weak"] - share["gold"], "pairs": pairs["weak"] - pairs["shuffled"]}
    return _compare("misplaced_tax", answer, expected, slips, atol=1e-6, conflict=conflict)


def check_adaptive_verdicts(answer: Sequence[int] | None) -> Answer:
    """Notebook 07: are these the verdicts of five pairs when as many of them are 1 as gold labels are?"""
    slips = {"fixed": [0, 0, 1, 1, 1], "zero": [0, 0, 0, 0, 0], "half": [0, 0, 0, 1, 1]}
    return _compare("adaptive_verdicts", answer, [1, 1, 1, 1, 1], slips)


def check_reverse_gradient(answer: Callable[..., Any]) -> Answer:
    """Notebook 07: does `answer(margin, label)` give the derivative of the reverse loss with respect to the margin?"""
    margin, label = np.array([-2.0, -0.5, 0.5, 3.0]), np.array([0.8, 0.4, 0.9, 0.3])
    p, odds = special.expit(margin), special.logit(label)
    slips = {"sign": p * (1 - p) * odds, "in P": -odds, "cross-entropy": p - label}
    slips["one term"] = -p * (1 - p) * np.log(label)
    return _compare("reverse_gradient", answer(margin, label), -p * (1 - p) * odds, slips)


def _fixed(name: str) -> Callable[[Any], Answer]:
    """The check of an exercise whose right answer, and the wrong ones as its slips, stand in exercises.yaml."""
    words = exercises()[name]

    def check(answer) -> Answer:
        if not isinstance(words["answer"], str):
            slips = {wrong: wrong for wrong in words["slips"]}
            return _compare(name, answer, words["answer"], slips, words.get("within", 5e-3))
        given = answer.strip().lower() if isinstance(answer, str) else "other"
        slip = given if given in words["slips"] else "other"
        return _first(name, answer, lambda: [] if given == words["answer"] else [slip])

    check.__name__ = f"check_{name}"
    return check


for _name in [name for name, words in exercises().items() if "answer" in words]:
    globals()[f"check_{_name}"] = _fixed(_name)
for _name in [name for name in globals() if name.startswith("check_")]:
    globals()[_name] = kept(globals()[_name])
