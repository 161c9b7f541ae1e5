"""The exercises: every check says when an answer is right, and names every slip; the folded solutions are right."""

import ast
import io
import re
from contextlib import redirect_stdout
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import expit as sigmoid

from w2s import deception
from w2s.course import checks
from w2s.data import training_pairs
from w2s.losses import explicit_conflict_loss, reward_loss
from w2s.params import HOME, PACKAGE

NOTEBOOKS = {path.stem[:2]: nbformat.read(path, 4).cells for path in sorted((HOME / "notebooks").glob("*.ipynb"))}
NAMES = {"np": np, "pd": pd, "torch": torch, "SimpleNamespace": SimpleNamespace, "training_pairs": training_pairs}
NAMES |= {"checks": checks, "deception": deception, "explicit_conflict_loss": explicit_conflict_loss}
# The toy rows of notebook 01: pairs w2s-0 to w2s-3, labels in another order, two helpful pairs.
exec(next(cell.source for cell in NOTEBOOKS["01"] if cell.id == "01-30"), NAMES)
W2S, HELPFUL = NAMES["toy"].w2s, NAMES["toy"].helpful
SUBSTANCES = pd.DataFrame({"name": list("abcd"), "dangerous": [True, False, False, False]})
CONTROLS = {"labels": ["weak", "gold", "shuffled"], "tax_share": [0.4, 0.05, 0.3], "tax": [40, 5, 30]}
MARGINS, GOLD = torch.tensor([-2.0, 0.5, 2.0]), torch.ones(3)
# What the cells before an exercise have made, as far as stub and solution need it.
NAMES |= {"pocket": SimpleNamespace(substances=SUBSTANCES), "dangerous": SUBSTANCES.set_index("name")["dangerous"]}
NAMES |= {"pocket_data": SimpleNamespace(helpful=pd.DataFrame({"substance": list("abcd")}))}
NAMES |= {"controls": pd.DataFrame(CONTROLS | {"conflict": "explicit", "seed": 4})}


def printed(code, **names) -> str:
    """What a call or a cell prints: one line."""
    with redirect_stdout(io.StringIO()) as out:
        code() if callable(code) else exec(code, NAMES | names)
    assert out.getvalue().count("\n") == 1
    return out.getvalue()


def exercises() -> dict[str, SimpleNamespace]:
    """By check: notebook, stub, what it prepares and its call, the name it asks for, and the solution (or None)."""
    found = {}
    for notebook, cells in NOTEBOOKS.items():
        for stub, answer in pairwise(cells):
            if stub.cell_type == "code" and "<summary>Solution" in answer.source:
                solution = re.search("```python\n(.*?)```", answer.source.split("</details>")[0], re.DOTALL)
                parts = ast.parse(stub.source).body
                kept = [p for p in parts if not isinstance(p, ast.FunctionDef) and "None" not in ast.unparse(p)]
                check, asked = re.search(r"checks\.check_(\w+)\((\w+)", stub.source).groups()
                setup, call = ast.unparse(ast.Module(kept[:-1], [])), ast.unparse(kept[-1])
                found[check] = SimpleNamespace(notebook=notebook, stub=stub.source, setup=setup, call=call)
                found[check].asked, found[check].solution = asked, solution and solution[1]
    return found


EXERCISES = exercises()
softplus = partial(np.logaddexp, 0)
PENCIL = {"chain_splits": ["gt", "w2s", "gt", "w2s"]}  # no code solves them


def answered(check: str, answer) -> str:
    exercise = EXERCISES[check]
    return printed(f"{exercise.setup}\n{exercise.call}", **{exercise.asked: answer})


def solved(check: str) -> str:
    exercise = EXERCISES[check]
    if exercise.solution is None:
        return answered(check, PENCIL[check])
    return printed(f"{exercise.setup}\n{exercise.solution}\n{exercise.call}")


def mix(label, target=(True, True, True, True, False, False), n=6) -> pd.DataFrame:
    return pd.DataFrame({"id": [*W2S["id"], *HELPFUL["id"]], "label": label, "target": target}).head(n)


def sure(p):
    return np.maximum(p, 1 - p) >= 0.75


def score(counted, divisor=lambda tax, s, w: tax):
    """A Score whose counted pairs and divisor are functions of (tax, ceiling, weak)."""

    def answer(reference, conflicted, ceiling, weak):
        tax = (reference > 0.5) & (conflicted <= 0.5)
        return counted(tax, ceiling, weak).sum() / divisor(tax, ceiling, weak).sum()

    return answer


def blind_tax(tax, s, w):
    return tax & sure(s) & ~sure(w)


def resampled(statistic, apart=False):
    """The 95% interval of statistic(first, second) over samples of pairs, with a random generator of the test's own."""

    def answer(first, second):
        rng = np.random.default_rng(9)
        picks = rng.integers(len(first), size=(4000, len(first)))
        others = rng.permutation(picks) if apart else picks
        return np.quantile(statistic(first[picks].mean(1), second[others].mean(1)), [0.025, 0.975])

    return answer


def simpo(loss, mean=True):
    """An answer from loss(difference of log-probabilities, gamma, beta); of their means a token, or of the sums."""

    def answer(chosen, rejected, n_chosen, n_rejected, beta, gamma):
        return loss(chosen / (n_chosen if mean else 1) - rejected / (n_rejected if mean else 1), gamma, beta)

    return answer


SLIPS = [
    ("implicit_mix", [0.3, 0.8], "expected a DataFrame with the columns id, label and target"),
    ("implicit_mix", mix(1.0).drop(columns="target"), "expected a DataFrame with the columns"),
    ("implicit_mix", mix(1.0, n=4), "4 rows where 4 + 2 pairs belong; concatenate the two tables"),
    ("implicit_mix", mix([0.3, 0.8, 0.9, 0.6, 0.5, 0.5]), "helpful pairs carry gold labels"),
    ("implicit_mix", mix([0.9, 0.3, 0.6, 0.8, 1, 1]), "joined by position"),
    ("implicit_mix", mix([0.0, 1.0, 1.0, 1.0, 1, 1]), "rounded to 0 and 1"),
    ("implicit_mix", mix(1.0), "is the weak_label of the same id"),
    ("implicit_mix", mix([0.3, 0.8, 0.9, 0.6, 1, 1], True), "False for the helpful ones"),
    ("contradicting_share", 0.75, "SAFE substances"),
    ("contradicting_share", 25, "percentage"),
    ("contradicting_share", 1.0, "not every pair contradicts"),
    ("contradicting_share", 0.4, "look up `dangerous`"),
    ("contradicting_share", 0.253, "look up `dangerous`"),  # shares of both goals may lie as close
    ("contradicting_share", "a quarter", "expected one number, got str"),
    ("last_token", lambda ids, mask: 4, "expected one position for each of the three rows, got shape ()"),
    ("last_token", lambda ids, mask: (ids != 0).sum(1) - 1, "you counted non-zero ids"),
    ("last_token", lambda ids, mask: mask.sum(1), "positions start at 0"),
    ("last_token", lambda ids, mask: [ids.shape[1] - 1] * 3, "is padding in the shorter rows"),
    ("last_token", lambda ids, mask: [0, 0, 0], "count the ones of each row"),
    ("reward_gradient", lambda z, y: 0.0, "expected one derivative for each margin"),
    ("reward_gradient", lambda z, y: y - sigmoid(z), "sign is turned round"),
    ("reward_gradient", lambda z, y: sigmoid(z) - (y > 0.5), "do not round it"),
    ("reward_gradient", lambda z, y: sigmoid(z) - 1, "for a gold label"),
    ("reward_gradient", lambda z, y: (sigmoid(z) - y) * sigmoid(z) * sigmoid(-z), "one factor P (1 - P) too many"),
    ("reward_gradient", lambda z, y: z - y, "differentiate -y log P"),
    ("simpo_loss", simpo(lambda u, g, b: 0.0), "expected one loss for each of the four pairs, got shape ()"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(b * g - b * u)), "not scaled by it"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(g / b - b * u)), "another code's parameter"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(g - b * u), mean=False), "those are sums"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(-g - b * u)), "gamma is subtracted: the margin must exceed it"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(g + b * u)), "chosen and rejected are swapped"),
    ("simpo_loss", simpo(lambda u, g, b: -softplus(g - b * u)), "the sign is turned round: a loss is"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(g - u)), "beta is missing"),
    ("simpo_loss", simpo(lambda u, g, b: softplus(-b * u)), "gamma is missing"),
    ("simpo_loss", simpo(lambda u, g, b: u), "(difference of means) - gamma)"),
    ("alpha_zero", [0.0, 0.0], "expected 3 numbers, got shape (2,)"),
    ("alpha_zero", explicit_conflict_loss(MARGINS, GOLD, 0.5), "that is the term with alpha = 0.5"),
    ("alpha_zero", reward_loss(MARGINS, GOLD), "that is the loss against gold"),
    ("alpha_zero", [1, 2, 3], "alpha multiplies the whole term"),
    ("resting_margin", 0.405, "there the loss rests without conflict"),
    ("resting_margin", 0.4, "that is P; the margin is its log-odds"),
    ("resting_margin", -2.0, "solve (1 + alpha) P = label"),
    ("misplaced_tax", -0.1, "weak less shuffled"),
    ("misplaced_tax", 0.35, "gold labels have no noise"),
    ("misplaced_tax", 10, "those are pairs"),
    ("misplaced_tax", 0.2, "less that of the row shuffled"),
    ("pgr", 0.09 / 0.80, "divide by the gap"),
    ("pgr", 0.69 / 0.80, "a ratio of accuracies"),
    ("pgr", 0.19 / 0.30, "not chance"),
    ("pgr", 0.55, "share NOT recovered"),
    ("pgr", 0.1, "(student - weak) / (ceiling - weak)"),
    ("deception_score", lambda *_: [1, 2], "expected one number, got shape"),
    ("deception_score", score(blind_tax, lambda t, s, w: np.ones(len(t))), "not by all pairs"),
    ("deception_score", score(blind_tax, lambda t, s, w: sure(s) & ~sure(w)), "tax rate inside the area"),
    ("deception_score", score(lambda t, s, w: t & ~sure(s) & sure(w)), "swapped"),
    ("deception_score", score(lambda t, s, w: t & (s >= 0.75) & (w < 0.75)), "a confidently wrong model counts"),
    ("deception_score", score(lambda t, s, w: t & ~sure(w)), "the ceiling must know the pair"),
    (
        "deception_score",
        lambda reference, conflicted, *p: score(blind_tax)(conflicted, reference, *p),
        "what the REFERENCE has right",
    ),
    ("deception_score", lambda *_: 0.0, "count tax pairs that are S-known and W-unknown"),
    ("null_score", lambda r, s, w: blind_tax(True, s, w).mean(), "share of ALL pairs"),
    ("null_score", lambda r, s, w: blind_tax(r > 0.5, s, w).mean(), "divide by the pairs at risk"),
    ("null_score", lambda r, s, w: (r > 0.5)[blind_tax(True, s, w)].mean(), "accuracy inside the area"),
    ("null_score", lambda r, s, w: 0.25, "not equally large"),
    ("null_score", lambda r, s, w: 0.0, "take the share in S-known/W-unknown"),
    ("chain_splits", 4, "expected four names"),
    ("chain_splits", "gt", "expected four names"),
    ("chain_splits", ["gt", "w2s", "test", "gt"], "expected four names"),
    ("chain_splits", ["w2s", "gt", "w2s", "gt"], "learns from gold labels"),
    ("chain_splits", ["gt", "w2s", "w2s", "gt"], "labels there are memories"),
    ("paired_interval", lambda a, b: 0.1, "expected two numbers, low and high"),
    ("paired_interval", resampled(lambda a, b: a - b, apart=True), "drawn apart"),
    ("paired_interval", resampled(lambda a, b: b - a), "sign is turned round"),
    ("paired_interval", resampled(lambda a, b: a), "interval of the first accuracy"),
    ("paired_interval", lambda a, b: (0.5, 0.6), "resample pairs"),
    ("adaptive_verdicts", [1, 1], "expected five numbers, 0 or 1"),
    ("adaptive_verdicts", [0, 0, 1, 1, 1], "which knows nothing of gold"),
    ("adaptive_verdicts", [0, 0, 0, 0, 0], "its label is 1"),
    ("adaptive_verdicts", [0, 0, 0, 1, 1], "gold labels are no coin"),
    ("adaptive_verdicts", [1, 0, 1, 0, 1], "how often is gold 1"),
    ("reverse_gradient", lambda z, y: 0.0, "expected one derivative for each of the four margins"),
    ("reverse_gradient", lambda z, y: sigmoid(z) * sigmoid(-z) * np.log(y / (1 - y)), "the sign is turned round"),
    ("reverse_gradient", lambda z, y: -np.log(y / (1 - y)), "a factor P (1 - P) is missing"),
    ("reverse_gradient", lambda z, y: sigmoid(z) - y, "of the ordinary cross-entropy"),
    ("reverse_gradient", lambda z, y: -sigmoid(z) * sigmoid(-z) * np.log(y), "the term of 1 - P depends"),
    ("reverse_gradient", lambda z, y: z, "its slope times dP/dz"),
]
WORDS = yaml.safe_load((PACKAGE / "course" / "exercises.yaml").read_text())
# Those whose wrong answers stand in exercises.yaml; no answer of a choice is a slip of its own.
FIXED = {name: words for name, words in WORDS.items() if "answer" in words}
SLIPS += [(name, wrong, text) for name, words in FIXED.items() for wrong, text in words["slips"].items()]
SLIPS += [(name, 12345, words["hint"]) for name, words in FIXED.items() if "hint" in words]
# Whatever a student may hand in: a check says one line and goes on.
ODD = [[], {}, "two", [None], [[1, 2], [3]], object(), np.array([]), np.array(["a"]), pd.DataFrame({"id": [1, 1]})]
ODD += [1 + 2j, float("nan"), torch.ones(3, requires_grad=True), pd.Series([0.5]), b"x", {"duplicate_prompts": None}]
ODD += [lambda: 1, lambda *_: None, lambda *_: 1 / 0, lambda *_, **__: "x", lambda *_, **__: [[1], [2, 3]], 10**400]
SHUFFLED = mix([0.3, 0.8, 0.9, 0.6, 1.0, 1.0]).sample(frac=1, random_state=0)
# Not the case of the notebook's own exercise, and what is printed then.
OTHERS = [
    (lambda: checks.check_resting_margin(-1.0, 0.8, 0.5), "label 0.8 is not below (1 + alpha) / 2 = 0.75"),
    (lambda: checks.check_implicit_mix(SHUFFLED, W2S, NAMES["labels"], HELPFUL), "correct: "),
    (lambda: checks.check_paired_interval(resampled(lambda a, b: a - b)), "correct: "),  # other draws
    # With the label 0.6 this slip has the number of another.
    (lambda: checks.check_resting_margin(np.log(2), 0.5, 0.5), "the sign is turned round"),
]


def test_each_notebook_has_at_least_three_exercises_and_every_check_is_one():
    found = pd.Series([exercise.notebook for exercise in EXERCISES.values()]).value_counts().to_dict()
    assert found.keys() == NOTEBOOKS.keys() and min(found.values()) >= 3 and sum(found.values()) == len(WORDS) == 51
    assert {f"check_{name}" for name in EXERCISES} == {name for name in vars(checks) if name.startswith("check_")}
    assert {name for name, exercise in EXERCISES.items() if exercise.solution is None} == set(PENCIL)


@pytest.mark.parametrize("check", EXERCISES)
def test_the_stub_asks_and_the_solution_is_right(check):
    assert printed(EXERCISES[check].stub).startswith("not answered yet: ")
    assert solved(check).startswith("correct: ")


@pytest.mark.parametrize(("check", "answer", "message"), SLIPS, ids=[f"{n}: {m}" for n, _, m in SLIPS])
def test_a_slip_is_named(check, answer, message):
    line = answered(check, answer)
    assert line.startswith("not yet: ") and message in line


@pytest.mark.parametrize("check", EXERCISES)
def test_no_answer_stops_a_notebook(check):
    for odd in ODD:
        assert answered(check, odd).startswith(("not yet: ", "not answered yet: ")), odd


@pytest.mark.parametrize(("call", "message"), OTHERS)
def test_other_cases_than_those_of_the_notebooks(call, message):
    assert message in printed(call)


def test_every_message_of_every_check_is_provoked_above():
    lines = [answered(check, answer) for check, answer, _ in SLIPS] + [printed(call) for call, _ in OTHERS]
    lines += [printed(exercise.stub) for exercise in EXERCISES.values()] + list(map(solved, EXERCISES))
    assert set(WORDS) == set(EXERCISES)
    messages = [text for exercise in WORDS.values() for text in [*exercise["slips"].values(), *exercise.values()]]
    parts = [max(re.split(r"{.*?}", text), key=len) for text in messages if isinstance(text, str) and " " in text]
    whats = [exercise.get("what", "").partition("{")[0] for exercise in WORDS.values()]
    assert len(parts) > 80
    assert [text for text in parts if not any(text in line for line in lines) and text not in whats] == []
