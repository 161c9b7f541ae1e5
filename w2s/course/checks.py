"""Checks of the notebooks' exercises: each prints whether an answer is right, else the usual slip.

A check never stops a notebook: without an answer it says what is asked for. The words are in exercises.yaml beside this
file, with the right results and the wrong ones that slips give; here stand the rules.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from w2s import deception, intervals
from w2s.course.answers import Answer, exercises, kept

# What formulas may name, beside the values of their exercise.
NAMES = {"np": np, "expit": special.expit, "logit": special.logit, "softplus": partial(np.logaddexp, 0)}
NAMES |= {name: getattr(deception, name) for name in ("conflict_tax", "blind_spot", "known", "right")}
NAMES |= {"draws": intervals.draws, "interval": partial(np.quantile, q=[0.025, 0.975])}


def _made_up() -> dict[str, np.ndarray]:
    """P of 400 pairs by each model, and which of 500 pairs two students have right that agree on most of them."""
    rng = np.random.default_rng(4)
    p = {"reference": rng.uniform(0.2, 1, 400), "conflicted": rng.uniform(0, 1, 400)}
    p |= {"ceiling": rng.beta(1.5, 0.5, 400), "weak": rng.beta(0.7, 0.5, 400)}
    rng = np.random.default_rng(5)
    first = rng.random(500) < 0.7
    return p | {"first": first, "second": np.where(rng.random(500) < 0.06, ~first, first)}


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


def _first(name: str, answer: Any, faults: Mapping[str, bool], **values: Any) -> Answer:
    """Say of another answer that it is right, or the first of its faults, which are names of exercises.yaml."""
    words = exercises()[name]
    if answer is None:
        return Answer(name, None, f"not answered yet: {words['task']}")
    for fault in (fault for fault, found in faults.items() if found):
        slip = words["slips"][fault].format(**values)
        return Answer(name, False, f"not yet: {' '.join(slip.split())}")  # of an answer of many lines, too
    return Answer(name, True, f"correct: {words['right']}")


def check_implicit_mix(answer, pairs: pd.DataFrame, labels: pd.DataFrame, helpful: pd.DataFrame) -> Answer:
    """Notebook 01: is `answer` the training table of the implicit conflict (id, label, target; rows in any order)?"""
    if not isinstance(answer, pd.DataFrame) or not {"id", "label", "target"} <= set(answer.columns):
        return _first("implicit_mix", answer, {"columns": True})
    if sorted(answer["id"]) != sorted([*pairs["id"], *helpful["id"]]):
        numbers = {"rows": len(answer), "pairs": len(pairs), "helpful": len(helpful)}
        return _first("implicit_mix", answer, {"rows": True}, **numbers)
    mine, weak = answer.set_index("id"), labels.set_index("id")["weak_label"][pairs["id"]]
    label, added = (mine.loc[table["id"], "label"].to_numpy(dtype=float) for table in (pairs, helpful))
    wrong = not np.allclose(label, weak)
    faults = {
        "helpful": not np.allclose(added, 1.0),
        "by position": wrong and np.array_equal(label, labels["weak_label"]),
        "rounded": wrong and np.allclose(label, weak > 0.5),
        "other labels": wrong,
        "target": not mine.loc[pairs["id"], "target"].all() or mine.loc[helpful["id"], "target"].any(),
    }
    return _first("implicit_mix", answer, faults)


def check_chain_splits(answer: Sequence[str] | None) -> Answer:
    """Notebook 05: is `answer` the training split of weak, first, second intermediate and strong, in this order?"""
    splits = list(answer) if isinstance(answer, list | tuple) else [answer]
    faults = {"names": len(splits) != 4 or any(split not in ("gt", "w2s") for split in splits)}
    faults |= {"first": splits[:1] != ["gt"], "seen": splits != ["gt", "w2s", "gt", "w2s"]}
    return _first("chain_splits", answer, faults, splits=splits)


def check_resting_margin(answer: float | None, label: float, alpha: float) -> Answer:
    """Notebook 03: is `answer` the negative margin, in logits, at which the loss with the explicit term is flat?"""
    bound = (1 + alpha) / 2
    if answer is not None and label >= bound:
        undefined = exercises()["resting_margin"]["undefined"].format(label=label, bound=bound)
        return Answer("resting_margin", False, undefined)
    return _by_formulas("resting_margin", answer, {"label": label, "alpha": alpha})


def _by_formulas(name: str, answer: Any, values: Mapping[str, Any]) -> Answer:
    words, names = exercises()[name], NAMES | values
    for key, formula in words.get("where", {}).items():
        names[key] = eval(formula, {}, names)
    results = {key: eval(formula, {}, names) for key, formula in words["formulas"].items()}
    right = results.pop("right")
    return _compare(name, answer, right, results, words.get("within", 5e-3), **values, n=np.size(right))


def _of_formulas(name: str) -> Callable[..., Answer]:
    """The check of an exercise with formulas, of an answer in numbers or of a function that gives them."""
    given, inputs = exercises()[name].get("given", []), exercises()[name].get("called_with")
    if isinstance(inputs, Mapping):
        inputs = {key: np.array(value) for key, value in inputs.items()}
    elif inputs:
        made_up = _made_up()
        inputs = {key: made_up[key] for key in inputs}

    def check(answer, *values, **more) -> Answer:
        if inputs:
            return _by_formulas(name, answer(*inputs.values()), inputs)
        return _by_formulas(name, answer, dict(zip(given, values)) | more)

    return check


def _fixed(name: str) -> Callable[[Any], Answer]:
    """The check of an exercise whose right answer, and the wrong ones as its slips, stand in exercises.yaml."""
    words = exercises()[name]

    def check(answer) -> Answer:
        if not isinstance(words["answer"], str):
            slips = {wrong: wrong for wrong in words["slips"]}
            return _compare(name, answer, words["answer"], slips, words.get("within", 5e-3))
        given = answer.strip().lower() if isinstance(answer, str) else "other"
        slip = given if given in words["slips"] else "other"
        return _first(name, answer, {slip: given != words["answer"]})

    return check


for _name, _words in exercises().items():
    _check = globals().get(f"check_{_name}") or (_fixed if "answer" in _words else _of_formulas)(_name)
    _check.__name__, _check.__doc__ = f"check_{_name}", _check.__doc__ or _words["task"]
    globals()[_check.__name__] = kept(_check)
