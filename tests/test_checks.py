"""The exercises: every check says when an answer is right, and names every slip; the folded solutions are right."""

import ast
import io
import re
from contextlib import redirect_stdout
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from w2s import deception, intervals
from w2s.course import checks
from w2s.data import training_pairs
from w2s.losses import explicit_conflict_loss, reward_loss
from w2s.params import HOME, PACKAGE
from w2s.world import World

NOTEBOOKS = {path.stem[:2]: nbformat.read(path, 4).cells for path in (HOME / "notebooks").glob("*.ipynb")}


def cell(notebook: str, cell_id: str) -> str:
    return next(c.source for c in NOTEBOOKS[notebook] if c.id == cell_id)


# The toy rows of notebook 01: pairs w2s-0 to w2s-3, labels in another order, two helpful pairs.
FIRST: dict = {"pd": pd, "SimpleNamespace": SimpleNamespace, "training_pairs": training_pairs}
exec(cell("01", "01-30"), FIRST)
W2S, HELPFUL, LABELS = FIRST["toy"].w2s, FIRST["toy"].helpful, FIRST["labels"]
DANGEROUS = [True, False, False, False]
FIRST_TABLE, SECOND_TABLE = (pd.DataFrame({"prompt": list(prompts)}) for prompts in ("aaabcc", "ccad"))
P = np.array([0.9, 0.8, 0.95, 0.1, 0.6, 0.7, 0.4, 0.55, 0.3, 0.52])  # 4 of 10 are confident, 3 of these right
TOY = {  # of notebook 04: reference, conflicted, ceiling, weak
    "reference": [0.92, 0.85, 0.80, 0.70, 0.65, 0.60, 0.70, 0.40],
    "conflicted": [0.88, 0.40, 0.30, 0.20, 0.60, 0.35, 0.45, 0.30],
    "ceiling": [0.95, 0.90, 0.88, 0.85, 0.80, 0.10, 0.60, 0.55],
    "weak": [0.90, 0.80, 0.60, 0.45, 0.55, 0.65, 0.85, 0.60],
}
MARGINS = torch.tensor([-2.0, 0.5, 2.0])
GOLD = torch.ones(3)

CONTROLS = pd.DataFrame({
    "labels": ["weak", "gold", "shuffled"], "conflict": "explicit", "seed": 4,
    "tax_share": [0.4, 0.05, 0.3], "tax": [40, 5, 30],
})  # fmt: skip

CALLS = {
    "implicit_mix": lambda a: checks.check_implicit_mix(a, W2S, LABELS, HELPFUL),
    "contradicting_share": lambda a: checks.check_contradicting_share(a, DANGEROUS),
    "duplicates": lambda a: checks.check_duplicates(a, FIRST_TABLE, SECOND_TABLE),
    "last_token": checks.check_last_token,
    "reward_gradient": checks.check_reward_gradient,
    "confident_accuracy": lambda a: checks.check_confident_accuracy(a, P, 0.75),
    "simpo_loss": checks.check_simpo_loss,
    "alpha_zero": lambda a: checks.check_alpha_zero(a, MARGINS.tolist(), GOLD.tolist()),
    "resting_margin": lambda a: checks.check_resting_margin(a, 0.6, 0.5),
    "pgr": lambda a: checks.check_pgr(a, 0.60, 0.69, 0.80),
    "control": checks.check_control,
    "misplaced_tax": lambda a: checks.check_misplaced_tax(a, CONTROLS, "explicit"),
    "deception_score": checks.check_deception_score,
    "null_score": checks.check_null_score,
    "known_by_gold": lambda a: checks.check_known_by_gold(a, *TOY.values(), 0.75),
    "chain_splits": checks.check_chain_splits,
    "paired_interval": checks.check_paired_interval,
    "adaptive_verdicts": checks.check_adaptive_verdicts,
    "reverse_gradient": checks.check_reverse_gradient,
    "holm": checks.check_holm,
}


def nothing(*_, **__):
    return None


def mix(label, target=(True, True, True, True, False, False), n=6) -> pd.DataFrame:
    return pd.DataFrame({"id": [*W2S["id"], *HELPFUL["id"]], "label": label, "target": target}).head(n)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


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


def back(reference, conflicted, ceiling, weak):
    return score(blind_tax)(conflicted, reference, ceiling, weak)


def resampled(statistic, apart=False):
    """The 95% interval of statistic(first, second) over samples of pairs, with a random generator of the test's own."""

    def answer(first, second):
        rng = np.random.default_rng(9)
        picks = rng.integers(len(first), size=(4000, len(first)))
        others = rng.permutation(picks) if apart else picks
        return np.quantile(statistic(first[picks].mean(1), second[others].mean(1)), [0.025, 0.975])

    return answer


def softplus(x):
    return np.log1p(np.exp(x))


def simpo(loss, mean=True):
    """An answer from loss(difference of log-probabilities, gamma, beta); of their means a token, or of the sums."""

    def answer(chosen, rejected, n_chosen, n_rejected, beta, gamma):
        return loss(chosen / (n_chosen if mean else 1) - rejected / (n_rejected if mean else 1), gamma, beta)

    return answer


CORRECT = {
    "implicit_mix": mix([0.3, 0.8, 0.9, 0.6, 1.0, 1.0]).sample(frac=1, random_state=0),
    "contradicting_share": 0.25,
    "duplicates": {"duplicate_prompts": 3, "shared_prompts": 2},
    "last_token": lambda ids, mask: mask.sum(1) - 1,
    "reward_gradient": lambda z, y: sigmoid(z) - y,
    "confident_accuracy": 0.75,
    "simpo_loss": simpo(lambda u, g, b: softplus(g - b * u)),
    "alpha_zero": [0.0, 0.0, 0.0],
    "resting_margin": -0.405,
    "pgr": 0.45,
    "control": "gold",
    "misplaced_tax": 0.1,
    "deception_score": score(blind_tax),
    "null_score": lambda r, s, w: blind_tax(r > 0.5, s, w).sum() / (r > 0.5).sum(),
    "known_by_gold": 0.4,
    "chain_splits": ["gt", "w2s", "gt", "w2s"],
    "paired_interval": resampled(lambda a, b: a - b),
    "adaptive_verdicts": [1, 1, 1, 1, 1],
    "reverse_gradient": lambda z, y: -sigmoid(z) * sigmoid(-z) * np.log(y / (1 - y)),
    "holm": 2,
}

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
    ("contradicting_share", "a quarter", "expected one number, got str"),
    ("duplicates", (3, 2), "expected a dict with the keys duplicate_prompts and shared_prompts"),
    ("duplicates", {"duplicate_prompts": 3}, "expected a dict with the keys"),
    ("duplicates", {"duplicate_prompts": [1], "shared_prompts": 2}, "expected a number for each key"),
    ("duplicates", {"duplicate_prompts": 5, "shared_prompts": 2}, "counted every row of a repeated prompt"),
    ("duplicates", {"duplicate_prompts": 3, "shared_prompts": 3}, "counts each distinct prompt once"),
    ("duplicates", {"duplicate_prompts": 0, "shared_prompts": 0}, "rows minus distinct prompts"),
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
    ("confident_accuracy", 0.7, "accuracy over all pairs"),
    ("confident_accuracy", 0.3, "not by all pairs"),
    ("confident_accuracy", 0.4, "share of confident pairs, not their accuracy"),
    ("confident_accuracy", 1.0, "keeps right answers alone"),
    ("confident_accuracy", 0.5, "then average P > 0.5"),
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
    ("control", "weak", "the noisy labels themselves"),
    ("control", "own", "less noise, not none"),
    ("control", "shuffled", "moves the noise to other pairs"),
    ("control", "random", "half of these labels are wrong"),
    ("control", "noise", "choose one of the five kinds"),
    ("misplaced_tax", -0.1, "weak less shuffled"),
    ("misplaced_tax", 0.35, "gold labels have no noise"),
    ("misplaced_tax", 10, "those are pairs"),
    ("misplaced_tax", 0.2, "less that of the row shuffled"),
    ("pgr", 0.09 / 0.80, "divide by the gap"),
    ("pgr", 0.69 / 0.80, "a ratio of accuracies"),
    ("pgr", 0.19 / 0.30, "not chance"),
    ("pgr", 0.55, "share NOT recovered"),
    ("pgr", 0.1, "(student - weak) / (ceiling - weak)"),
    ("deception_score", lambda **_: [1, 2], "expected one number, got shape"),
    ("deception_score", score(blind_tax, lambda t, s, w: np.ones(len(t))), "not by all pairs"),
    ("deception_score", score(blind_tax, lambda t, s, w: sure(s) & ~sure(w)), "tax rate inside the area"),
    ("deception_score", score(lambda t, s, w: t & ~sure(s) & sure(w)), "swapped"),
    ("deception_score", score(lambda t, s, w: t & (s >= 0.75) & (w < 0.75)), "a confidently wrong model counts"),
    ("deception_score", score(lambda t, s, w: t & ~sure(w)), "the ceiling must know the pair"),
    ("deception_score", back, "what the REFERENCE has right"),
    ("deception_score", lambda **_: 0.0, "count tax pairs that are S-known and W-unknown"),
    ("null_score", lambda r, s, w: blind_tax(True, s, w).mean(), "share of ALL pairs"),
    ("null_score", lambda r, s, w: blind_tax(r > 0.5, s, w).mean(), "divide by the pairs at risk"),
    ("null_score", lambda r, s, w: (r > 0.5)[blind_tax(True, s, w)].mean(), "accuracy inside the area"),
    ("null_score", lambda r, s, w: 0.25, "not equally large"),
    ("null_score", lambda r, s, w: 0.0, "take the share in S-known/W-unknown"),
    ("known_by_gold", 0.6, "that is the Score by confidence"),
    ("known_by_gold", 3 / 7, "that is the null of it"),
    ("known_by_gold", 0.9, "which tax pairs change area?"),
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
    ("holm", 4, "without any adjustment"),
    ("holm", 1, "that is Bonferroni"),
    ("holm", 3, "0.018 times 3 is 0.054"),
    ("holm", 0, "up to the first failure"),
    ("holm", "two", "expected one number, got str"),
]
CASES = [*((name, answer, "correct: ") for name, answer in CORRECT.items()), *SLIPS]
FUNCTIONS = ("last_token", "reward_gradient", "simpo_loss", "deception_score", "null_score", "paired_interval")
FUNCTIONS += ("reverse_gradient",)
UNANSWERED = {name: nothing if name in FUNCTIONS else None for name in CALLS}
# Not the case of the notebook's own exercise, and what is printed then.
OTHERS = [
    (lambda: checks.check_confident_accuracy(0.5, [0.6, 0.4], 0.75), "no pair reaches the confidence 0.75"),
    (lambda: checks.check_resting_margin(-1.0, 0.8, 0.5), "label 0.8 is not below (1 + alpha) / 2 = 0.75"),
    # With the label 0.6 this slip has the number of another.
    (lambda: checks.check_resting_margin(np.log(2), 0.5, 0.5), "the sign is turned round"),
]


def printed(call, *arguments) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert call(*arguments) is None
    return out.getvalue()


def test_every_check_is_tested():
    assert {f"check_{name}" for name in CALLS} == {name for name in vars(checks) if name.startswith("check_")}
    assert set(CORRECT) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_without_an_answer_the_task_is_said(name):
    line = printed(CALLS[name], UNANSWERED[name])
    assert line.startswith("not answered yet: ") and line.count("\n") == 1


@pytest.mark.parametrize(("name", "answer", "message"), CASES, ids=[f"{n}: {m}" for n, _, m in CASES])
def test_an_answer_is_right_or_its_slip_is_named(name, answer, message):
    line = printed(CALLS[name], answer)
    assert line.startswith("correct: " if message == "correct: " else "not yet: ") and line.count("\n") == 1
    assert message in line


@pytest.mark.parametrize(("call", "message"), OTHERS)
def test_other_cases_than_those_of_the_notebooks(call, message):
    assert message in printed(call)


def test_every_message_of_every_check_is_provoked_above():
    lines = [printed(CALLS[name], answer) for name, answer, _ in CASES]
    lines += [printed(CALLS[name], UNANSWERED[name]) for name in CALLS] + [printed(call) for call, _ in OTHERS]
    words = yaml.safe_load((PACKAGE / "course" / "exercises.yaml").read_text())
    assert set(words) == set(CALLS)
    messages = [text for exercise in words.values() for text in [*exercise["slips"].values(), *exercise.values()]]
    parts = [max(re.split(r"{.*?}", text), key=len) for text in messages if isinstance(text, str) and " " in text]
    whats = [words[name].get("what", "").partition("{")[0] for name in CALLS]
    assert (
        len(parts) > 80
        and [text for text in parts if not any(text in line for line in lines) and text not in whats] == []
    )


# What the cells before an exercise have made, as far as stub and solution need it.
substances = World().substances
asked = SimpleNamespace(helpful=pd.DataFrame({"substance": substances["name"].head(40)}))
dangerous = substances.set_index("name")["dangerous"]
MADE = {
    "01": FIRST | {"pocket": World(), "lab": SimpleNamespace(data=asked), "dangerous": dangerous},
    "02": {"test": pd.DataFrame({"run": "only", "probability": P})},
    "03": {"torch": torch, "explicit_conflict_loss": explicit_conflict_loss},
    "04": {"arrays": [np.array(values) for values in TOY.values()]},
    "05": {"intervals": intervals},
    "06": {"controls": CONTROLS},
    "07": {},
}
PARAMS = SimpleNamespace(data="pocket", n_helpful=40, threshold=0.75)


def exercises():
    """Notebook, number, stub and solution (None where it is no code) of every exercise."""
    for notebook, cells in sorted(NOTEBOOKS.items()):
        for task, stub, answer in zip(cells, cells[1:], cells[2:]):
            if task.cell_type == "markdown" and stub.cell_type == "code" and "<summary>Solution" in answer.source:
                folded = answer.source.split("</details>")[0]
                solution = folded.split("```python\n")[1].split("```")[0] if "```python" in folded else None
                number = task.source.rpartition("\n**")[2][0]
                yield pytest.param(notebook, stub.source, solution, id=f"{notebook}-{number}")


def without_stub(source: str) -> str:
    """The cell without what the reader replaces: the function, or the name that is None."""
    kept = [
        node
        for node in ast.parse(source).body
        if not isinstance(node, ast.FunctionDef)
        and not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    ]
    return ast.unparse(ast.Module(kept, []))


@pytest.mark.parametrize(("notebook", "stub", "solution"), list(exercises()))
def test_the_stub_asks_and_the_folded_solution_is_right(notebook, stub, solution):
    names = {"np": np, "pd": pd, "checks": checks, "deception": deception, "params": PARAMS} | MADE[notebook]
    assert printed(exec, stub, names).startswith("not answered yet: ")
    if solution is None:
        return
    exec(solution, names)
    assert printed(exec, without_stub(stub), names).startswith("correct: ")


def test_each_notebook_has_two_to_four_exercises_and_most_solutions_are_code():
    found = [param.values for param in exercises()]
    counts = {"01": 3, "02": 4, "03": 3, "04": 3, "05": 2, "06": 2, "07": 3}
    assert {number: sum(values[0] == number for values in found) for number in counts} == counts
    assert sum(solution is None for _, _, solution in found) == 2  # pencil and paper
