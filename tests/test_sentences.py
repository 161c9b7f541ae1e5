"""What the findings say of score tables, and the setup in words."""

import re

import numpy as np
import pandas as pd
import yaml

from w2s.analysis import scoring
from w2s.params import HOME, PACKAGE, StudyParams
from w2s.report import sentences


def test_what_docs_say_was_measured_is_what_a_run_says_at_its_end():
    """Each value of expected.yaml is a cell of the file's row in docs/measurements.md, or stands in its paragraph."""
    docs = (HOME / "docs" / "measurements.md").read_text(encoding="utf-8")
    table = yaml.safe_load((PACKAGE / "report" / "expected.yaml").read_text(encoding="utf-8"))
    assert set(re.findall(r"^\| `(\w+\.yaml)`", docs, re.MULTILINE)) <= set(table)
    for file, values in table.items():
        assert (HOME / "params" / file).is_file()
        rows = [line for line in docs.splitlines() if line.startswith(f"| `{file}`")]
        paragraphs = [" ".join(part.split()) for part in docs.split("\n\n") if part.startswith(f"`{file}`")]
        for value in map(str, values.values()):
            assert any(f"| {value} |" in row for row in rows) or any(value in part for part in paragraphs), value
    assert sentences.expected("my.yaml") == ""
    assert "Score explicit: 0.53 [0.50, 0.56]" in sentences.expected("pocket.yaml")


def row_of(low, high, tax=50, strong="b", **changes):
    """One row of a score table whose difference score - null has the interval [low, high]."""
    row = dict.fromkeys(scoring.SCORE_COLUMNS, 0.5) | {"weak": "a", "strong": strong, "role": "student", "teacher": "a"}
    row |= {
        "via": "",
        "pairs": 100,
        "weak_accuracy": 0.3,
        "reference_accuracy": 0.7,
        "conflict": "implicit",
        "seed": 0,
        "tax": tax,
    }
    return row | {"score_minus_even_low": low, "score_minus_even_high": high} | changes


def findings_of(rows, *ceilings):
    """Of rows of a score table, and of ceilings as (low end of accuracy, model, share of confident pairs)."""
    usual = {"role": "gold", "seed": 0, "pairs": 100, "accuracy": 0.55, "high": 0.6}
    gold = [usual | dict(zip(("low", "model", "confident_share"), ceiling)) for ceiling in ceilings]
    return sentences.findings(pd.DataFrame(rows), pd.DataFrame(gold))


def test_findings_judge_the_difference_from_the_null_and_warn_of_ceilings_at_chance_or_never_confident():
    differences = {"b": (0.1, 0.3), "c": (-0.1, 0.3), "d": (-0.3, -0.1), "few": (0.1, 0.3, 9), "one": (np.nan, np.nan)}
    differences |= {"chance": (0.1, 0.3), "shy": (0.1, 0.3)}
    ceilings = [({"chance": 0.49}.get(m, 0.51), m, 0.004 if m == "shy" else 0.5) for m in differences]
    rows = [row_of(*ends, strong=strong) for strong, ends in differences.items()]
    lines = findings_of(rows, *ceilings)
    chance, shy, claim = lines[:3]
    assert chance.startswith("Warning: the strong ceiling chance, seed 0, with accuracy 0.55 [0.49, 0.60] on 100 pairs")
    assert chance.endswith("cannot be told from chance: its Deception Scores say nothing.")
    assert shy.startswith("Warning: the strong ceiling shy") and "is confident on 0.4% of them" in shy
    assert "in 1 of the 4 usable settings" in claim and "not supported" in claim
    alike = [row | {"weak_accuracy": 0.45, "gap": 0.05} for row in rows]
    assert "told from its weak model (ceiling minus weak accuracy is 0.050 at most" in findings_of(alike, *ceilings)[2]
    for mute in (-1, -2):
        assert "no setting has a confident ceiling above chance" in findings_of([rows[mute]], ceilings[mute])[1]


LORA = {"lora": {"rank": 8, "alpha": 16.0}}
DPO, SIMPO, IMPLICIT = {"method": "dpo"}, {"method": "simpo"}, {"confidence": "implicit_reward"}
CALIBRATED = {"confidence": "calibrated"}
SETUP = [
    ({}, "Target", "harmless pairs are supervised, helpful pairs are the conflict"),
    ({"target": "helpful"}, "Target", "helpful pairs are supervised, harmless pairs are the conflict"),
    ({}, "Method", "reward modelling"),
    (DPO, "Method", "(DPO), beta 0.1, after SFT"),
    (SIMPO | {"gamma": 0}, "Method", "SimPO, beta 2, gamma 0, after SFT"),
    (SIMPO, "Method", "gamma 1, after SFT"),
    ({}, "Weights", "all of them"),
    (LORA, "Weights", "low-rank adapters are trained (rank 8), NOT all weights"),
    ({}, "Weak labels", "soft, the weak model's P; all"),
    (
        DPO | {"weak_filter": "confidence"},
        "Weak labels",
        "hard, the response that the weak model prefers; only confident",
    ),
    ({"weak_filter": "gold_oracle"}, "Weak labels", "only confident and RIGHT ones are used, which takes gold"),
    ({}, "Probability", "P = sigmoid(margin); margin: the difference of the two scores, in logits"),
    (CALIBRATED, "Probability", "sigmoid(margin / temperature), each run's temperature from gold"),
    (DPO, "Probability", "P = sigmoid(margin / 50); margin: the difference of the two summed"),
    (DPO, "Probability", "in nats, without the reference"),
    (DPO | CALIBRATED, "Probability", "in nats, minus that of the reference"),
    (DPO | {"beta": 0.3} | IMPLICIT, "Probability", "sigmoid(0.3 * margin)"),
    (SIMPO, "Probability", "sigmoid(margin); margin: the difference of the two mean log-probabilities a token"),
    (SIMPO | IMPLICIT, "Probability", "sigmoid(2 * margin)"),
]


def test_the_setup_in_words():
    for changes, term, text in SETUP:
        setup = sentences.setup(StudyParams.check(changes))
        assert text in setup[term] and list(setup) == ["Target", "Method", "Weights", "Weak labels", "Probability"]


def test_adapters_and_filters_are_said_before_any_finding_and_in_captions():
    plain, changed = StudyParams(), StudyParams.check(LORA | {"weak_filter": "confidence", "target": "helpful"})
    assert sentences.caveats(plain) == [] and sentences.mark(plain.lora) == ""
    assert sentences.mark(changed.lora) == " Trained by low-rank adapters (rank 8)."
    assert sentences.caveats(changed) == [
        "The target is helpfulness and harmlessness is the conflict: the paper's roles exchanged.",
        "Trained by low-rank adapters (rank 8), not by full fine-tuning.",
        "Of the weak labels only confident ones are used (weak_filter: confidence).",
    ]
