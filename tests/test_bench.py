"""The benchmark runs, its contenders agree, and its page says what was measured."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AttentionInterface

from w2s import batches, models
from w2s.app import cli
from w2s.fast import packed
from w2s.params import HOME, ParameterError

SHARES = {"products": 0.25, "attention": 0.5, "log_softmax": 0.0625, "tokenizing": 0.0625, "python": 0.0625}
KIND = {"device": "cpu", "dtype": "float32", "pairs": 10, "data": "HH", "date": "2026-01-02"}
KIND |= {"method": "dpo", "model": "4x128", "context": 512, "task": "train"}
PROFILE = -100
NO_GPU = "w2s bench: device = 'cuda': this machine has none; set device to auto or cpu\n"


@pytest.fixture(scope="module")
def bench():
    """The benchmark, which makes a few dozen pairs where a real one makes thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOME / "tests" / "benchmarks")
        module = import_module("bench")
        made = module.material.generated_pairs
        patch.setattr(module.material, "generated_pairs", lambda n, seed: made(min(n, 60), seed))
        patch.setattr(module, "SETTINGS", {})  # of the environment, and one core
        patch.setattr(module.os, "sched_setaffinity", lambda *_: None, raising=False)
        yield module


@pytest.fixture(scope="module")
def cases(bench, tmp_path_factory) -> dict:
    return {case.method: case for case in bench.make_cases(tmp_path_factory.mktemp("cases"), quick=True, large=False)}


def rows(seconds: dict[str, list[float]], trl_loss: float = 0.5, **changes) -> pd.DataFrame:
    """Repetitions of one case, the first of each to warm up; a loss of 0.5 of all others."""
    made = [KIND | changes | {"contender": name, "repetition": PROFILE} | SHARES for name in seconds]
    for name, times in seconds.items():
        own = KIND | changes | {"contender": name, "outcome": trl_loss if name == "TRL" else 0.5}
        made += [own | {"repetition": i, "seconds": s, "memory": 10.0 * i} for i, s in enumerate(times)]
    return pd.DataFrame(made)


@pytest.mark.slow
def test_a_quick_one_from_the_command_line(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    assert cli.main(["bench", "reward", "simpo", "--quick", "--to", str(tmp_path)]) == 0
    assert "All contenders agree" in capfd.readouterr().out
    table = pd.read_csv(tmp_path / "tables" / "benchmark.csv")
    assert set(table["contender"]) == {"w2s", "w2s, padded", "research loop", "TRL"} and len(table) == 2 * 2 * 4
    assert (table["low"] > 0).all() and (table["low"] <= table["ms"]).all() and (table["ms"] <= table["high"]).all()
    assert table.groupby("task")["products"].count().tolist() == [2, 2]
    assert (tmp_path / "figures" / "benchmark.png").stat().st_size > 1000
    if not torch.cuda.is_available():
        assert cli.main(["bench", "--device", "cuda", "--to", str(tmp_path)]) == 2
        assert capfd.readouterr().err == NO_GPU


def test_words_choose_the_cases_and_wrong_input_is_named(bench, tmp_path, capsys, monkeypatch):
    none, shapes = pd.DataFrame(), [(method, model) for method in ("reward", "dpo") for model in ("4x128", "6x384")]
    cases = [bench.Case(*s, context, tmp_path, none, none, 32, "HH") for s in shapes for context in (512, 128)]
    assert bench.chosen(cases, []) == cases
    assert [c.name for c in bench.chosen(cases, ["dpo", "128"])] == ["dpo 4x128 128", "dpo 6x384 128"]
    with pytest.raises(ValueError, match="'rewrad': no such case; choose among 128, 4x128, 512, 6x384, dpo, reward"):
        bench.chosen(cases, ["dpo", "rewrad"])
    pairs = bench.material.generated_pairs(40, 0)
    with pytest.raises(ParameterError, match="pairs fit in 128 tokens, 41 are needed"):
        bench.material.fitting(pairs, bench.material.learned_tokenizer(pairs, 600), 128, 41)
    monkeypatch.setattr(cli, "BENCHMARK", tmp_path / "bench.py")
    assert cli.main(["bench"]) == 2
    assert "bench.py: no benchmark there; run w2s bench from a checkout of the kit\n" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["--device", "cuda", "--to", str(tmp_path)]) == 2
        assert capsys.readouterr().err == NO_GPU


def test_table_goals_and_profile_by_hand(bench):
    """ms per pair from the repetitions but the first, memory from all of them; ratios of the two, with their goals."""
    outcome = bench.outcome
    seconds = {"w2s": [9.0, 0.1, 0.3, 0.2], "TRL": [9.0, 0.8, 1.0, 0.9]}
    table = outcome.summary(rows(seconds, 0.50005)).set_index("contender")
    assert table.loc["w2s", ["ms", "low", "high"]].tolist() == pytest.approx([20.0, 10.0, 30.0])
    columns = ["pairs_per_s", "memory_mib", "products", "attention"]
    assert table.loc["TRL", columns].tolist() == pytest.approx([1000 / 90, 30.0, 0.25, 0.5])
    assert "| 20.0 (10.0 to 30.0) |  |  | 90.0 (80.0 to 100.0): 4.5 |" in outcome.as_text(table.reset_index())
    # Twice as slow a research loop and TRL in training, 8 times in scoring; of TRL's memory a third and all.
    train = rows({"w2s": [9.0, 1.0], "TRL": [9.0, 10.0], "research loop": [9.0, 2.04]})
    score = rows({"w2s": [9.0, 1.0], "TRL": [9.0, 2.0], "research loop": [9.0, 8.0]}, task="score")
    train.loc[train["contender"] == "TRL", "memory"] *= 3
    train["tensors"] = train["contender"].map({"w2s": 30.0, "TRL": 120.0}).where(train["repetition"] == PROFILE)
    table = outcome.summary(pd.concat([train, score]))
    ratios = "**2.0** (4) | 10.0 (10) | 8.0 (8) | 0.33 (0.5) | **1.0** (0.5) | 0.25 |"
    # Tensors in scoring were not measured.
    assert outcome.goals(table).splitlines()[-1] == f"| dpo | 4x128 | 512 | {ratios}  |"
    profile = "| dpo | 4x128 | 512 | score | 25% | 50% | 6% | 6% | 6% | 6% | 8.0 | 10.7 |"
    assert outcome.profiles(table).splitlines()[-1] == profile


def test_each_trick_by_hand(bench):
    """Times without one, or with one, against the kit's; a task in which none was measured has no column."""
    outcome, score = bench.outcome, rows({"w2s": [9.0, 0.2], "with flex": [9.0, 0.1]}, task="score")
    train = rows({"w2s": [9.0, 0.2], "TRL": [9.0, 0.9], "without GELU": [9.0, 0.3], "with norms": [9.0, 0.4]})
    table = outcome.summary(pd.concat([train, score]))
    assert outcome.tricks(table, "without ").splitlines()[::2] == ["|  | dpo, train |", "| GELU | 1.50 (1.00) |"]
    head, lines = "|  | dpo, train | dpo, score |", ["| norms | 2.00 (1.00) |  |", "| flex |  | 0.50 (1.00) |"]
    assert outcome.tricks(table, "with ").splitlines() == [head, "| --- | --- | --- |", *lines]
    assert not any(name in outcome.as_text(table) + outcome.details(table) for name in ("GELU", "flex"))
    assert outcome.tricks(outcome.summary(rows({"w2s": [9.0, 0.2]})), "with ") == "Not measured."


def test_the_page_of_a_cpu_and_of_a_gpu_which_has_goals_of_its_own(bench, capsys):
    """Machine, versions and date; on a GPU twenty times the research loop and half of TRL, half the ceiling."""
    made, outcome = rows({"w2s": [1.0, 1.0], "TRL": [1.0, 2.0], "research loop": [1.0, 1.0]}), bench.outcome
    page = bench.page.text("cpu", "float32", pd.concat([made, made.assign(task="score")]))
    assert all(word in page for word in (bench.page.machine(), "torch 2.", "trl 1.", "Pairs: HH, 10 for training"))
    assert "None: all agree" in page and "{" not in page
    small = rows({"w2s": [9.0, 1.0], "TRL": [9.0, 0.5], "research loop": [9.0, 20.0]})
    large = rows({"w2s": [9.0, 2.0]}).assign(model="48x1600", flops=4e13, ceiling=4e13)
    gpu = pd.concat([small.assign(model="12x768"), large], ignore_index=True)
    gpu = gpu.assign(device="NVIDIA X1", dtype="bfloat16")
    goals = ["| dpo | 12x768 | 512 | 20.0 (20) | **0.5** (2) |  |", "| dpo | 48x1600 | 512 |  |  | 0.5 (0.45) |"]
    assert outcome.gpu_goals(outcome.summary(gpu)).splitlines()[2:] == goals
    assert outcome.peaks(outcome.summary(gpu)).splitlines()[2:] == ["| dpo | 48x1600 | 512 | train | 40 | 40 | 50% |"]
    parts = outcome.parts(pd.concat([gpu, small], ignore_index=True))
    assert [(device, len(part)) for device, _, part in parts] == [("cpu", len(small)), ("NVIDIA X1", len(gpu))]
    page = bench.page.text("NVIDIA X1", "bfloat16", pd.concat([gpu, gpu.assign(task="score")], ignore_index=True))
    assert "NVIDIA X1, bfloat16 by autocast" in page and "(performance_nvidia_x1.png)" in page and "{" not in page
    # Losses that differ are named: in float32 from 1e-4 on.
    assert outcome.differences(outcome.summary(small), "float32") == []
    off = outcome.summary(small.assign(outcome=small["outcome"].where(small["contender"] == "w2s", 0.51)))
    assert len(outcome.differences(off, "float32")) == 2 and outcome.differences(off, "bfloat16") == []
    for loss, status in ((0.50009, 0), (0.5002, 1)):
        assert outcome.report(rows({"w2s": [1.0, 1.0], "TRL": [1.0, 1.0]}, loss)) == status
    assert "dpo 4x128 512 train: w2s has 0.500000, TRL 0.500200" in capsys.readouterr().out


def test_cases_measured_before_stay(bench, tmp_path):
    """A case that is measured again loses its earlier rows, all of them."""
    times = {"w2s": [1.0, 1.0], "TRL": [1.0, 1.0]}
    old = pd.concat([rows(times), rows(times, method="reward")], ignore_index=True)
    assert bench.outcome.replaced(bench.outcome.earlier(tmp_path), old).equals(old)
    (tmp_path / "tables").mkdir()
    old.to_parquet(tmp_path / "tables" / "benchmark_rows.parquet")
    both = bench.outcome.replaced(bench.outcome.earlier(tmp_path), rows({"w2s": [2.0, 2.0]})).groupby("method")
    assert set(both["contender"].get_group("reward")) == {"w2s", "TRL"}
    assert both["seconds"].get_group("dpo").dropna().tolist() == [2.0, 2.0]


def test_a_contender_that_is_killed_costs_its_case_alone(bench, tmp_path, capsys, monkeypatch):
    """The cases before it are in the table."""

    def measured(case, *_):
        if case.method == "simpo":
            raise BrokenProcessPool("killed")
        yield from rows({"w2s": [9.0, 0.2], "TRL": [9.0, 0.9]}, method=case.method).to_dict("records")

    monkeypatch.setattr(bench, "measured", measured)
    assert bench.main(["reward", "simpo", "--quick", "--to", str(tmp_path)]) == 2
    assert "simpo 2x16 128: a contender's process was killed" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "tables" / "benchmark.csv")["method"]) == {"reward"}


def test_a_trick_is_something_that_the_kit_has(bench, monkeypatch):
    """Taken away by name: a name that is not there would take nothing away. Without a compiler less is tried."""
    contenders = bench.contenders
    assert all(getattr(module, name) != instead for module, name, instead in contenders.TRICKS.values())
    few, every = (contenders.contenders_of("dpo", "score", tricks) for tricks in (False, True))
    assert len(every) == len(few) + len(contenders.TRICKS) + len(contenders.TRIED)
    assert contenders.contenders_of("sft", "train") == ["w2s", "w2s, padded", "research loop"]
    assert contenders.without_use("dpo", "train") == {"flex attention over the row"}
    monkeypatch.setenv("CXX", "no-such-compiler")
    rest = {"one tree mask over the row", "rows of a multiple of 64 tokens", "four times as many logits at once"}
    assert set(contenders.TRIED) - contenders.without_use("dpo", "score") == rest


def outcome_of(bench, name: str, case, task: str) -> float:
    return bench.measuring.measure(name, case.name, task)["outcome"]


@pytest.mark.slow
def test_what_was_tried_has_the_same_outcome(bench, cases, monkeypatch):
    """In one process here, one after the other; what each changes in the kit is put back."""
    monkeypatch.setattr(batches.Layout, "of", batches.Layout.of)
    monkeypatch.setattr(models, "next_token_loss", models.next_token_loss)
    monkeypatch.setitem(models.AT_ONCE, "cpu", models.AT_ONCE["cpu"])
    case, tried, found = cases["simpo"], ["with " + trick for trick in bench.contenders.TRIED], {}
    for task in bench.TASKS:
        for name in ["w2s", *tried]:
            if name in bench.contenders.contenders_of("simpo", task, tricks=True):
                try:
                    bench.measuring.load(name, case)
                    found[name, task] = outcome_of(bench, name, case, task)
                finally:
                    AttentionInterface.register(packed.NAME, packed.attend)
    assert len(found) == 2 * len(tried) + 1  # flex attention does not train
    for (name, task), value in found.items():
        assert value == pytest.approx(found["w2s", task], abs=1e-5), name


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_contenders_agree(bench, dtype, tmp_path):
    """In bfloat16 also the models of billions of parameters, here tiny ones, which train whole and by adapters."""
    setting, near = bench.Setting("cpu", dtype, 8192, 2048), 1e-4 if dtype == "float32" else 2e-2
    cases = list(bench.make_cases(tmp_path, quick=True, large=False, setting=setting))
    billions = [("reward", "2x32", False), ("simpo", "2x32", False), ("reward", "2x64", True), ("simpo", "2x64", True)]
    alone = [(case.method, case.model, bool(case.lora)) for case in cases if case.alone]
    assert alone == (billions if dtype == "bfloat16" else [])
    for case in (case for case in cases if case.method in ("reward", "dpo") or case.alone):
        found = {}
        for name in bench.contenders.contenders_of(case.method, "train", alone=case.alone):
            bench.measuring.load(name, case)
            found[name] = [bench.measuring.measure(name, case.name, task)["outcome"] for task in bench.TASKS]
        assert len(found) == (1 if case.alone else 5 if case.method == "dpo" else 4)
        for values in found.values():
            assert values == pytest.approx(found["w2s"], rel=2e-2 if dtype == "bfloat16" else 0, abs=near)


@pytest.mark.slow  # of times, which other programs on the machine change
def test_where_the_time_goes(bench, cases):
    """Products go by other names where oneDNN multiplies."""
    case, measuring = cases["reward"], bench.measuring
    measuring.load("w2s", case)
    passes = [measuring.shares("w2s", case.name, "train") for _ in range(3)]
    found = max(passes, key=lambda shares: shares["products"])  # the pass that other programs disturbed least
    assert 0.05 < found["products"] < 0.9 and 0 < found["attention"] < 0.5
    assert found["tokenizing"] > 0 and found["python"] > 0 and sum(found.values()) < 1
    assert found["log_softmax"] == 0  # of reward models


def test_what_is_counted(bench, cases):
    """Tensors, which grow with a block; operations."""
    case, measuring = cases["reward"], bench.measuring
    alike, tensors = case.test.loc[[0] * 32].assign(id=range(32)), []
    for n in (8, 32):
        measuring.load("w2s", replace(case, test=alike.head(n)))
        tensors.append(measuring.tensors("w2s", case.name, "score")["tensors"])
    assert 3 < tensors[1] / tensors[0] < 4.5  # not what the model itself takes
    # Operations of a reward model: 2 a weight and token in scoring, and what attention does; 3 times that in training.
    measuring.load("w2s, padded", replace(case, train=case.test))
    found = {task: measuring.operations("w2s, padded", case.name, task) for task in ("score", "train")}
    texts = batches.PairTexts(case.test, measuring._loaded["w2s, padded", case.name][0].tokenizer, case.context)
    layers, width, least, most = 2, 16, 0, 0
    for batch in texts.batches(np.arange(len(texts)), 8192):
        n, length = batch.input_ids.shape
        products = 2 * n * length * 12 * width**2 * layers
        least, most = least + products, most + products + layers * 4 * n * length**2 * width + 2 * n * width
    assert least < found["score"]["flops"] <= most and found["score"]["ceiling"] > 1e9
    assert 2.2 < found["train"]["flops"] / found["score"]["flops"] < 3.6  # as many pairs
