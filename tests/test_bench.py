"""The benchmark runs, its contenders agree, and its table says what was measured."""

from __future__ import annotations

import pandas as pd
import pytest

from w2s import cli
from w2s.params import HOME, ParameterError


def test_a_quick_one_from_the_command_line(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    assert cli.main(["bench", "reward", "simpo", "--quick", "--to", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "All contenders agree" in out
    table = pd.read_csv(tmp_path / "tables" / "benchmark.csv")
    assert set(table["contender"]) == {"w2s", "w2s, padded", "research loop", "TRL"} and len(table) == 2 * 2 * 4
    assert (table["low"] > 0).all() and (table["low"] <= table["ms"]).all() and (table["ms"] <= table["high"]).all()
    assert table.groupby("task")["products"].count().tolist() == [2, 2]
    assert (tmp_path / "figures" / "benchmark.png").stat().st_size > 1000


def test_outside_a_checkout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "BENCHMARK", tmp_path / "bench.py")
    assert cli.main(["bench"]) == 2
    assert "bench.py: no benchmark there; run w2s bench from a checkout of the kit\n" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(HOME / "tests" / "benchmarks")


@pytest.fixture
def outcome():
    import outcome

    return outcome


def test_words_choose_the_cases(tmp_path):
    import bench
    import material

    folder, none = tmp_path / "x", pd.DataFrame()
    cases = [
        bench.Case(method, model, context, folder, none, none, 32, "HH")
        for method in ("reward", "dpo")
        for model in ("4x128", "6x384")
        for context in (512, 128)
    ]
    assert bench.chosen(cases, []) == cases
    assert [c.name for c in bench.chosen(cases, ["dpo", "128"])] == ["dpo 4x128 128", "dpo 6x384 128"]
    with pytest.raises(ValueError, match="'rewrad': no such case; choose among 128, 4x128, 512, 6x384, dpo, reward"):
        bench.chosen(cases, ["dpo", "rewrad"])
    pairs = material.generated_pairs(40, 0)
    with pytest.raises(ParameterError, match="pairs fit in 128 tokens, 41 are needed"):
        material.fitting(pairs, material.learned_tokenizer(pairs, 600), 128, 41)


NAMES = ("w2s", "TRL", "without GELU")
SHARES = {"products": 0.25, "attention": 0.5, "log_softmax": 0.0625, "tokenizing": 0.0625, "python": 0.0625}
PROFILE = -100
ALL = ("w2s", "TRL", "research loop")


def rows(seconds: dict[str, list[float]], losses: dict[str, float]) -> pd.DataFrame:
    """Repetitions of one case, the first of each to warm up."""
    kind = {"method": "dpo", "model": "4x128", "context": 512, "task": "train", "pairs": 10, "data": "HH"}
    made = [
        kind
        | {
            "contender": name,
            "repetition": i,
            "seconds": s,
            "date": "2026-01-02",
            "outcome": losses[name],
            "memory": 10.0 * i,
        }
        for name, times in seconds.items()
        for i, s in enumerate(times)
    ]
    shares = [kind | {"contender": name, "repetition": PROFILE} | SHARES for name in seconds]
    return pd.DataFrame(made + shares)


def test_the_table_by_hand(outcome):
    """ms per pair from the repetitions but the first; memory from all of them."""
    table = outcome.summary(
        rows({"w2s": [9.0, 0.1, 0.3, 0.2], "TRL": [9.0, 0.8, 1.0, 0.9]}, {"w2s": 0.5, "TRL": 0.50005})
    ).set_index("contender")
    assert table.loc["w2s", ["ms", "low", "high"]].tolist() == pytest.approx([20.0, 10.0, 30.0])
    assert table.loc["TRL", ["pairs_per_s", "memory_mib", "products", "attention"]].tolist() == pytest.approx(
        [1000 / 90, 30.0, 0.25, 0.5]
    )
    assert "| 20.0 (10.0 to 30.0) |  |  | 90.0 (80.0 to 100.0): 4.5 |" in outcome.as_text(table.reset_index())


def test_goals_and_profile_by_hand(outcome):
    """Twice as slow a research loop and TRL in training, 8 times in scoring; of TRL's memory a third and all."""
    train = rows({"w2s": [9.0, 1.0], "TRL": [9.0, 10.0], "research loop": [9.0, 2.04]}, dict.fromkeys(ALL, 0.5))
    score = rows({"w2s": [9.0, 1.0], "TRL": [9.0, 2.0], "research loop": [9.0, 8.0]}, dict.fromkeys(ALL, 0.5))
    train.loc[train["contender"] == "TRL", "memory"] *= 3
    table = outcome.summary(pd.concat([train, score.assign(task="score")]))
    found = outcome.goals(table).splitlines()[-1]
    assert found == "| dpo | 4x128 | 512 | **2.0** (4) | 10.0 (10) | 8.0 (8) | 0.33 (0.5) | **1.0** (0.5) |"
    assert outcome.profiles(table).splitlines()[-1] == (
        "| dpo | 4x128 | 512 | score | 25% | 50% | 6% | 6% | 6% | 6% | 8.0 | 10.7 |"
    )


def test_each_trick_by_hand(outcome):
    """Times without one against the kit's; they stand in a table of their own."""
    made = rows({"w2s": [9.0, 0.2], "TRL": [9.0, 0.9], "without GELU": [9.0, 0.3]}, dict.fromkeys(NAMES, 0.5))
    table = outcome.summary(made)
    assert outcome.tricks(table).splitlines() == ["|  | dpo, train |", "| --- | --- |", "| GELU | 1.50 |"]
    assert "GELU" not in outcome.as_text(table) + outcome.details(table)
    assert outcome.tricks(table[table["contender"] != "without GELU"]) == "Not measured."


def test_cases_measured_before_stay(outcome, tmp_path):
    """A case that is measured again loses its earlier rows, all of them."""
    old = rows({"w2s": [1.0, 1.0], "TRL": [1.0, 1.0]}, dict.fromkeys(NAMES, 0.5))
    old = pd.concat([old, old.assign(method="reward")], ignore_index=True)
    assert outcome.with_earlier(old, tmp_path).equals(old)
    (tmp_path / "tables").mkdir()
    old.to_parquet(tmp_path / "tables" / "benchmark_rows.parquet")
    new = rows({"w2s": [2.0, 2.0]}, dict.fromkeys(NAMES, 0.5))
    both = outcome.with_earlier(new, tmp_path)
    assert set(both[both["method"] == "reward"]["contender"]) == {"w2s", "TRL"}
    assert both[both["method"] == "dpo"]["seconds"].dropna().tolist() == [2.0, 2.0]


def test_a_trick_is_something_that_the_kit_has(monkeypatch):
    """Taken away by name: a name that is not there would take nothing away."""
    import contenders

    for module, name, instead in contenders.TRICKS.values():
        assert getattr(module, name) != instead
    assert len(contenders.contenders_of("reward", tricks=True)) == len(contenders.contenders_of("reward")) + 6
    assert contenders.contenders_of("sft") == ["w2s", "w2s, padded", "research loop"]


def test_the_profile_counts_the_products_of_the_kit(tmp_path):
    """Its operators go by other names where oneDNN multiplies."""
    import bench
    import measuring

    case = next(case for case in bench.make_cases(tmp_path, quick=True, large=False) if case.method == "reward")
    measuring.load("w2s", case)
    found = measuring.shares("w2s", case.name, "train")
    assert 0.05 < found["products"] < 0.9 and 0 < found["attention"] < 0.5
    assert found["tokenizing"] > 0 and found["python"] > 0 and sum(found.values()) < 1
    assert found["log_softmax"] == 0  # of reward models


def test_losses_that_differ_are_named(outcome, capsys):
    same, other = ({"w2s": 0.5, "TRL": loss} for loss in (0.50009, 0.5002))
    for losses, status in ((same, 0), (other, 1)):
        table = outcome.summary(rows({"w2s": [1.0, 1.0], "TRL": [1.0, 1.0]}, losses))
        assert outcome.report_differences(table) == status
    assert "dpo 4x128 512 train: w2s has 0.500000, TRL 0.500200" in capsys.readouterr().out


def test_the_page_names_machine_versions_and_date(outcome):
    made = rows({"w2s": [1.0, 1.0], "TRL": [1.0, 2.0], "research loop": [1.0, 1.0]}, dict.fromkeys(ALL, 0.5))
    score = made.assign(task="score")
    page = outcome.page(outcome.summary(pd.concat([made, score])), pd.concat([made, score]))
    assert all(word in page for word in (outcome.machine(), "torch 2.", "trl 1.", "Pairs: HH, 10 for training"))
    assert "None: all agree" in page and "{" not in page
