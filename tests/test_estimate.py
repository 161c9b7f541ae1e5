"""The estimate before a study: memory against what torch holds, checks that stop, time by trial, the lines shown."""

import pickle
import re
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import small_params
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, LlamaConfig, OPTConfig

from w2s import files, models, zoo
from w2s.files import duration
from w2s.models import RewardModel, autocast
from w2s.params import Lora, ParameterError
from w2s.runs import cluster, estimate, execute
from w2s.runs.estimate import GIB, memory
from w2s.sources import adapters
from w2s.spec import SPLITS, RunSpec
from w2s.study import Study
from w2s.world import World

LORA = Lora(rank=2, alpha=4)


@pytest.fixture
def spec(small_study) -> RunSpec:
    return small_study.gold(small_study.params.strong_models[-1], 0)


def test_weights_gradients_and_adam_of_a_hand_counted_model(spec, small_study):
    root, n, head = small_study.root, models.n_parameters(spec.model), models.n_parameters(spec.model, head=True)
    plain, half = memory(spec, root), memory(replace(spec, dtype="bfloat16"), root)
    assert (plain.weights, plain.optimizer) == (4 * n, 12 * n)
    assert (half.weights, half.optimizer) == (6 * n, 12 * n)
    assert memory(replace(spec, method="simpo"), root).weights == 4 * head
    adapted = memory(replace(spec, lora=LORA, dtype="bfloat16"), root)
    assert (adapted.weights, adapted.optimizer) == (2 * n, 12 * models.n_adapter_parameters(spec.model, LORA))
    four = memory(replace(spec, shards=4), root)
    assert (four.weights, four.optimizer) == (n + 4 * n, 3 * n)  # two layers of two are gathered
    assert four.activations == plain.activations


def test_what_saves_memory_saves_memory(spec, small_study):
    root, deep = small_study.root, replace(spec, method="simpo")
    cheaper = [{"tokens_per_batch": 64}, {"gradient_checkpointing": True}, {"lora": LORA}, {"device": "cuda"}]
    assert all(memory(replace(deep, **change), root).total < memory(deep, root).total for change in cheaper)
    assert memory(deep, root).activations > memory(spec, root).activations  # the logits
    assert memory(replace(deep, device="cuda"), root).heap == 0


SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 500}
ARCHITECTURES = {
    "gpt2": GPT2Config(n_embd=128, n_layer=4, n_head=2, vocab_size=500, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
    "llama": LlamaConfig(**SHAPE, intermediate_size=352),
    "neox": GPTNeoXConfig(**SHAPE, intermediate_size=512),
    "opt": OPTConfig(**SHAPE, ffn_dim=512, word_embed_proj_dim=128, dropout=0.0),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_bytes_kept_are_those_that_autograd_saves(spec, small_study, monkeypatch, name, lora, dtype):
    body, precision = AutoModel.from_config(ARCHITECTURES[name]), getattr(torch, dtype)
    monkeypatch.setattr(models, "load_config", lambda _: ARCHITECTURES[name])
    if lora:
        adapters.add(body, name, lora, seed=0)
        for weight in body.parameters():
            weight.data = weight.data if weight.requires_grad else weight.data.to(precision)
    model, ids = RewardModel(body).train(), torch.ones(64, 64, dtype=torch.long)
    ours, saved = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other gets its address
        return tensor

    mask = torch.ones_like(ids).index_fill(1, torch.tensor([63]), 0)  # else it is left out
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(ids.device, precision):
        model(ids, mask)
    kept = estimate._kept(replace(spec, model=name, lora=lora, dtype=dtype, tokens_per_batch=ids.numel()))
    assert 0.75 < kept / sum(n for n, _ in saved.values()) < 1.7


PEAK = r"""
import pickle, re, sys
from pathlib import Path
from w2s import runs
spec, root = pickle.loads(Path(sys.argv[1]).read_bytes())
runs.train_and_score(runs.Alone(spec, root), root)
print(1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured there")
def test_the_peak_of_a_training_process(tmp_path):
    """The memory of a model of 4 x 128 and blocks of 4,096 tokens, of which there are several."""
    config = GPT2Config(
        n_embd=128, n_layer=4, n_head=2, vocab_size=8192, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    zoo.build_tokenizer().save_pretrained(tmp_path / "model")
    pairs = World().pairs("gt", 60)
    pairs["prompt"] = 6 * pairs["prompt"]
    for split in SPLITS:
        files.write_table(tmp_path / "runs" / "data" / "long" / f"{split}.parquet", pairs)
    spec = RunSpec(str(tmp_path / "model"), "", "long", "gt", 0, method="simpo", beta=2.0, gamma=1.0)
    spec = replace(spec, batch_pairs=60, tokens_per_batch=4096)
    (tmp_path / "spec").write_bytes(pickle.dumps((spec, tmp_path)))
    run = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "spec"], capture_output=True, text=True, check=True)
    assert 0.8 < (memory(spec, tmp_path).total + estimate.PROCESS) / int(run.stdout) < 1.5


def test_nothing_is_checked_when_nothing_is_to_do(small_study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: pytest.fail("checked"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: pytest.fail("checked"))
    estimate.check([], small_study.root, workers=1)
    assert estimate.forecast([], 7, small_study.root, workers=1) == "all 7 runs are in the cache"


def test_texts_longer_than_the_context(spec, small_study):
    estimate.check([spec], small_study.root, workers=1)
    message = r"max_length = 129: model '.*tiny-24' reads 128 tokens; set max_length to that"
    with pytest.raises(ParameterError, match=message):
        estimate.check([replace(spec, max_length=129)], small_study.root, workers=1)


def test_too_little_memory_names_what_would_take_less(spec, small_study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0.25 * GIB)
    with pytest.raises(ParameterError, match="training needs about .* GiB and 0.2 GiB are free on cpu; set") as caught:
        estimate.check([spec], small_study.root, workers=2)
    for remedy in ("a lower tokens_per_batch (now 4096)", "gradient_checkpointing: true", "lora: {rank: 8, alpha: 16}"):
        assert remedy in str(caught.value)
    assert "workers" not in str(caught.value) and "\n" not in str(caught.value)
    small = replace(spec, gradient_checkpointing=True, lora=LORA, dtype="bfloat16", tokens_per_batch=16)
    with pytest.raises(ParameterError) as caught:
        estimate.check([small, replace(small, seed=1)], small_study.root, workers=3)
    message = str(caught.value)
    assert "2 processes need about 1.0 GiB" in message and "set workers: 1 (now 2)" in message
    assert not any(remedy in message for remedy in ("checkpointing", "lora", "dtype"))  # set already


def test_shards_of_a_cpu_share_its_memory(spec, small_study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: 2 * GIB)
    estimate.check([spec], small_study.root, workers=2)
    with pytest.raises(ParameterError, match="4 processes need about"):
        estimate.check([replace(spec, shards=4)], small_study.root, workers=2)


def test_more_shards_than_devices(spec, small_study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ParameterError, match="shards = 2: this machine has 1 CUDA devices"):
        estimate.check([replace(spec, device="cuda", shards=2)], small_study.root, workers=1)
    estimate.check([replace(spec, device="cuda", shards=2)], small_study.root, workers=1, scheduler="tcp://elsewhere:1")


def test_a_gpu_too_small_may_be_shared_by_more_shards(spec, small_study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0)
    with pytest.raises(ParameterError, match=r"free on cuda; set .* or a higher shards \(now 1\)"):
        estimate.check([replace(spec, device="cuda")], small_study.root, workers=1)


def test_too_little_disk_for_the_models_to_save(spec, small_study, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(4 * models.n_parameters(spec.model)))
    saved = [replace(spec, save_model=True), replace(spec, seed=1)]
    estimate.check(saved, small_study.root, workers=1)
    adapted = replace(spec, seed=2, save_model=True, lora=LORA)
    with pytest.raises(ParameterError, match="models to save take about .* set output_dir to another disk, or lora"):
        estimate.check([*saved, adapted], small_study.root, workers=1)


def test_free_memory_is_that_of_the_machine():
    assert estimate.free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_one_line_for_each_model_still_to_train(small_study, monkeypatch):
    monkeypatch.setattr(estimate, "_probe", lambda spec, root: (1.0, 0.5, 0.25))
    weak, middle, strong = (Path(m).name for m in [*small_study.params.weak_models, *small_study.params.strong_models])
    todo = cluster.pending(list(small_study.all_runs()), small_study.root)
    first, *lines = estimate.forecast(todo, 15, small_study.root, workers=1).splitlines()
    expected = duration(sum(estimate.run_seconds(spec, small_study.root) for spec in todo))
    assert first == f"{len(todo)} runs to train, 15 wanted: about {expected} on 1 workers"
    assert {line.split(":")[0].strip() for line in lines} == {weak, middle, strong}
    (line,) = (line for line in lines if weak in line)
    n = models.n_parameters(small_study.params.weak_models[0])
    assert re.fullmatch(rf"  {weak}: {n:,} parameters, about \d\.\d\d GiB to train, 1 runs of 51 s each", line)


def test_of_adapters_the_trained_parameters_are_shown(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "_probe", lambda spec, root: (1.0, 0.0, 0.0))
    study = Study.open(small_params(tiny_models, tmp_path, lora=LORA.model_dump(), method="simpo"))
    spec = study.gold(tiny_models[0], 0)
    n, trained = models.n_parameters(tiny_models[0], head=True), models.n_adapter_parameters(tiny_models[0], LORA)
    *_, line = estimate.forecast([spec.start, spec], 1, tmp_path, workers=1).splitlines()
    assert f"{n:,} parameters, {trained:,} of them trained, about" in line and line.endswith("2 runs of 1 s each")


@pytest.mark.parametrize(
    ("change", "scheduler", "words"), [({"shards": 2}, None, "several shards"), ({}, "tcp://host:1", "the scheduler")]
)
def test_where_no_trial_is_possible_no_time_is_made_up(spec, small_study, monkeypatch, change, scheduler, words):
    monkeypatch.setattr(estimate, "_probe", lambda *a: pytest.fail("tried"))
    first, line = estimate.forecast([replace(spec, **change)], 1, small_study.root, 1, scheduler).splitlines()
    assert "time not estimated" in first and words in first
    assert ("on each of 2 shards" in line) == (scheduler is None) and line.endswith("1 runs")


def test_the_time_of_a_run_counts_its_pairs(small_study, monkeypatch):
    monkeypatch.setattr(estimate, "_probe", lambda spec, root: (1000.0, 1.0, 0.01))
    p, (weak, strong) = small_study.params, (small_study.params.weak_models[0], small_study.params.strong_models[0])
    scored = p.n_validation + p.n_test

    def seconds(spec: RunSpec) -> float:
        return estimate.run_seconds(spec, small_study.root)

    assert seconds(small_study.gold(weak, 0)) == pytest.approx(1000 + p.n_gt + 0.01 * (scored + p.n_w2s))
    implicit = small_study.student(weak, strong, "implicit", 0)
    assert seconds(replace(implicit, epochs=3)) == pytest.approx(1000 + 3 * (p.n_w2s + p.n_helpful) + 0.01 * scored)
    start = replace(implicit, method="sft")
    assert seconds(start) == pytest.approx(
        1000 + p.n_w2s + p.n_helpful + 0.01 * (scored + p.n_gt + p.n_w2s + p.n_helpful)
    )


def test_a_model_and_method_are_tried_once(small_study, monkeypatch):
    loaded, load = [], execute.load_model
    monkeypatch.setattr(
        execute, "load_model", lambda spec, root: loaded.append((spec.model, spec.method)) or load(spec, root)
    )
    simpo = Study.open(small_study.params.model_copy(update={"method": "simpo", "weak_filter": "confidence"}))
    for study in (small_study, simpo):
        todo = cluster.pending(list(study.all_runs()), study.root)
        assert all(estimate.run_seconds(spec, study.root) > 0 for spec in todo)
    assert len(loaded) == 9 and set(loaded) == {(m, k) for m, _ in loaded for k in ("reward", "sft", "simpo")}


def test_dpo_is_tried_without_its_warm_start(tiny_models, tmp_path):
    study = Study.open(small_params(tiny_models, tmp_path, method="dpo"))
    assert estimate.run_seconds(study.gold(tiny_models[0], 0), tmp_path) > 0


def test_a_trial_takes_ever_more_pairs_until_it_takes_a_moment(monkeypatch):
    now, tried = [0.0], []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])

    def work(n: int) -> None:
        """A second for each 100 pairs, and 10 milliseconds for any; the first time, more."""
        now[0] += 0.01 + n / 100 + (0.1 if not tried else 0.0)
        tried.append(n)

    assert estimate.seconds_per_token(work, np.full(200, 2)) == pytest.approx((0.01 + 0.64) / 64 / 2)
    assert tried == [1, 4, 16, 64]
    tried.clear()
    assert estimate.seconds_per_token(work, np.full(5, 2)) == pytest.approx((0.01 + 0.05) / 5 / 2)
    assert tried == [1, 4, 5]


def test_the_time_of_all_runs_on_several_workers(small_study, monkeypatch):
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 4)
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    gold, student = small_study.gold(weak, 0), small_study.student(weak, strong, "none", 0)
    others = [small_study.gold(strong, seed) for seed in range(4)]
    todo = [gold, *others, student]
    seconds = {spec.name: 10.0 for spec in todo} | {student.name: 40.0}

    def busy(workers: int) -> float:
        return (estimate.total_seconds(todo, seconds, workers) - estimate.START_WORKERS) / estimate.CROWDING

    assert estimate.total_seconds(todo, seconds, 1) == 90.0
    assert busy(2) == pytest.approx(50.0)  # the student waits for its teacher: 10 + 40
    assert busy(4) == pytest.approx(50.0)
    seconds[student.name] = 10.0
    assert busy(2) == pytest.approx(30.0) and busy(4) == pytest.approx(20.0)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 2)
    assert busy(4) == pytest.approx(30.0)  # two cores for four workers


def test_before_a_study_the_estimate_is_printed_and_checked(small_study, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "_probe", lambda spec, root: (1.0, 0.0, 0.0))
    specs = list(small_study.all_runs())
    todo = cluster.checked(specs, small_study.root, 2, None)
    assert len(todo) == len(specs)
    cluster.announce(todo, 7, small_study.root, 2, None)
    told = capsys.readouterr().out
    assert f"{len(specs)} runs to train, 7 wanted" in told and "time not" not in told
    cluster.announce(todo, 7, small_study.root, 2, "tcp://host:1")
    assert "time not estimated" in capsys.readouterr().out
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0)
    with pytest.raises(ParameterError):
        cluster.checked(specs, small_study.root, 2, None)
