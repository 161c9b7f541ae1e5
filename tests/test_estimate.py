"""The estimate before a study: memory against what torch holds, checks that stop, time by rates, the lines shown."""

import json
import pickle
import re
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_params
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, LlamaConfig, OPTConfig

from w2s import files, models, zoo
from w2s.files import duration
from w2s.models import RewardModel, autocast
from w2s.params import HOME, Lora, ParameterError, StudyParams
from w2s.runs import cluster, estimate, execute, store
from w2s.runs.estimate import GIB, memory
from w2s.sources import adapters
from w2s.spec import SPLITS, RunSpec
from w2s.study import Study
from w2s.world import World

LORA = Lora(rank=2, alpha=4)


@pytest.fixture
def study(small_study) -> Study:
    """A study whose pair tables are in the cache."""
    store.store_data(small_study.root, small_study.data)
    return small_study


@pytest.fixture
def spec(study) -> RunSpec:
    return study.gold(study.params.strong_models[-1], 0)


def total(spec: RunSpec, root: Path, **changes) -> float:
    return sum(memory(replace(spec, **changes), root).values())


def test_weights_gradients_and_adam_of_a_hand_counted_model(spec, study):
    n, head = models.n_parameters(spec.model), models.n_parameters(spec.model, head=True)

    def held(**changes) -> tuple[float, float]:
        needs = memory(replace(spec, **changes), study.root)
        return needs["weights"], needs["optimizer"]

    assert held() == (4 * n, 12 * n) and held(dtype="bfloat16") == (6 * n, 12 * n)
    assert held(method="simpo")[0] == 4 * head
    assert held(lora=LORA, dtype="bfloat16") == (2 * n, 12 * models.n_trained(spec.model, lora=LORA))
    assert held(shards=4) == (n + 4 * n, 3 * n)  # two layers of two are gathered
    assert memory(replace(spec, shards=4), study.root)["activations"] == memory(spec, study.root)["activations"]


def test_what_saves_memory_saves_memory(spec, study):
    deep = replace(spec, method="simpo")
    cheaper = [{"tokens_per_batch": 64}, {"gradient_checkpointing": True}, {"lora": LORA}, {"device": "cuda"}]
    assert all(total(deep, study.root, **change) < total(deep, study.root) for change in cheaper)
    assert memory(deep, study.root)["activations"] > memory(spec, study.root)["activations"]  # the logits
    assert memory(replace(deep, device="cuda"), study.root)["heap"] == 0


SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 500}
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 2}
ARCHITECTURES = {
    "gpt2": GPT2Config(**GPT2, vocab_size=500, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
    "llama": LlamaConfig(**SHAPE, intermediate_size=352),
    "neox": GPTNeoXConfig(**SHAPE, intermediate_size=512),
    "opt": OPTConfig(**SHAPE, ffn_dim=512, word_embed_proj_dim=128, dropout=0.0),
}


FORMS = [(None, "float32"), (LORA, "bfloat16")], [(None, "bfloat16"), (LORA, "float32")]  # pairwise


@pytest.mark.parametrize(
    ("name", "lora", "dtype"), [(name, *form) for k, name in enumerate(ARCHITECTURES) for form in FORMS[k % 2]]
)
def test_the_bytes_kept_are_those_that_autograd_saves(spec, monkeypatch, name, lora, dtype):
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
from w2s.runs import execute
spec, root = pickle.loads(Path(sys.argv[1]).read_bytes())
execute.train_and_score(execute.Alone(spec, root), root)
print(1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured there")
def test_the_peak_of_a_training_process(tmp_path):
    """The memory of a model of 4 x 128 and blocks of 4,096 tokens, of which there are several."""
    config = GPT2Config(**GPT2, vocab_size=8192, n_positions=256, bos_token_id=0, eos_token_id=0)
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
    assert 0.8 < (total(spec, tmp_path) + estimate.PROCESS) / int(run.stdout) < 1.5


def test_nothing_is_checked_when_nothing_is_to_do(study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: pytest.fail("checked"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: pytest.fail("checked"))
    estimate.check([], study.root, workers=1)
    assert estimate.forecast([], 7, study.root, workers=1) == "all 7 runs are in the cache"


def test_texts_longer_than_the_context(spec, study):
    estimate.check([spec], study.root, workers=1)
    message = r"max_length = 129: model '.*tiny-24' reads 128 tokens; set max_length to that"
    with pytest.raises(ParameterError, match=message):
        estimate.check([replace(spec, max_length=129)], study.root, workers=1)


def test_too_little_memory_names_what_would_take_less(spec, study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0.25 * GIB)
    with pytest.raises(ParameterError, match="training needs about .* GiB and 0.2 GiB are free on cpu; set") as caught:
        estimate.check([spec], study.root, workers=2)
    for remedy in ("a lower tokens_per_batch (now 4096)", "gradient_checkpointing: true", "lora: {rank: 8, alpha: 16}"):
        assert remedy in str(caught.value)
    assert not any(word in str(caught.value) for word in ("workers", "shards", "\n"))
    small = replace(spec, gradient_checkpointing=True, lora=LORA, dtype="bfloat16", tokens_per_batch=16)
    with pytest.raises(ParameterError) as caught:
        estimate.check([small, replace(small, seed=1)], study.root, workers=3)
    message = str(caught.value)
    assert "2 processes need about 1.0 GiB" in message and "set workers: 1 (now 2)" in message
    assert not any(remedy in message for remedy in ("checkpointing", "lora", "dtype"))  # set already


def test_shards_share_a_cpu_and_need_devices(spec, study, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda device: 2 * GIB)
    estimate.check([spec], study.root, workers=2)
    with pytest.raises(ParameterError, match="4 processes need about"):
        estimate.check([replace(spec, shards=4)], study.root, workers=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    two = replace(spec, device="cuda", shards=2)
    with pytest.raises(ParameterError, match="shards = 2: this machine has 1 CUDA devices"):
        estimate.check([two], study.root, workers=1)
    estimate.check([two], study.root, workers=1, scheduler="tcp://elsewhere:1")
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0)
    with pytest.raises(ParameterError, match=r"free on cuda; set .* or a higher shards \(now 1\)"):
        estimate.check([replace(spec, device="cuda")], study.root, workers=1)


def test_too_little_disk_for_the_models_to_save(spec, study, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(4 * models.n_parameters(spec.model)))
    saved = [replace(spec, save_model=True), replace(spec, seed=1)]
    estimate.check(saved, study.root, workers=1)
    adapted = replace(spec, seed=2, save_model=True, lora=LORA)
    with pytest.raises(
        ParameterError, match="models and states to save take about .* set output_dir to another disk, or lora"
    ):
        estimate.check([*saved, adapted], study.root, workers=1)


def test_before_a_study_it_is_checked_and_a_line_shown_for_each_model(study, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "pair_seconds", lambda spec, root: 0.5)
    specs = list(study.all_runs())
    todo = cluster.announce(specs, study.root, 1, None)
    first, *lines = capsys.readouterr().out.splitlines()
    expected = duration(sum(estimate.run_seconds(spec, study.root) for spec in todo))
    assert len(todo) == 16 and first == f"16 runs to train, 16 wanted: about {expected} on 1 worker"
    weak, *strong = (Path(name).name for name in [*study.params.weak_models, *study.params.strong_models])
    assert {line.split(":")[0].strip() for line in lines} == {weak, *strong}
    (line,) = (line for line in lines if weak in line)
    n = models.n_parameters(study.params.weak_models[0])
    assert re.fullmatch(rf"  {weak}: {n:,} parameters, about \d\.\d\d GiB to train, 1 run of 42 s", line)
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0)
    with pytest.raises(ParameterError):
        cluster.announce(specs, study.root, 2, None)


def test_of_adapters_the_trained_parameters_are_shown(tiny_models, tmp_path):
    study = Study.open(small_params(tiny_models, tmp_path, lora=LORA.model_dump(), method="simpo"))
    store.store_data(study.root, study.data)
    spec = study.gold(tiny_models[0], 0)
    n, trained = models.n_parameters(tiny_models[0], head=True), models.n_trained(tiny_models[0], lora=LORA)
    *_, line = estimate.forecast([spec.start, spec], 1, tmp_path, workers=1).splitlines()
    assert f"{n:,} parameters, {trained:,} of them trained, about" in line and "2 runs of" in line


@pytest.mark.parametrize(
    ("change", "scheduler", "words"), [({"shards": 2}, None, "several shards"), ({}, "tcp://host:1", "the scheduler")]
)
def test_where_the_rate_is_not_known_no_time_is_made_up(spec, study, change, scheduler, words):
    first, line = estimate.forecast([replace(spec, **change)], 1, study.root, 1, scheduler).splitlines()
    assert "time not estimated" in first and words in first
    assert ("on each of 2 shards" in line) == (scheduler is None) and line.endswith("1 run")


def test_the_time_of_a_run_counts_its_pairs(study, monkeypatch):
    monkeypatch.setattr(estimate, "pair_seconds", lambda spec, root: 3.0)
    p, (weak, strong) = study.params, (study.params.weak_models[0], study.params.strong_models[0])
    scored, implicit = p.n_validation + p.n_test, study.student(weak, strong, "implicit", 0)
    every = scored + p.n_gt + p.n_w2s + p.n_helpful
    expected = [
        (study.gold(weak, 0), 3 * p.n_gt + scored + p.n_w2s),
        (replace(implicit, epochs=3), 9 * (p.n_w2s + p.n_helpful) + scored),
        (replace(implicit, method="sft"), 3 * (p.n_w2s + p.n_helpful) + every),
        (replace(implicit, gold_checks=2, n_helpful=5), 3 * (p.n_w2s + 5) + scored + 2 * p.n_validation),
    ]
    for spec, seconds in expected:
        assert estimate.run_seconds(spec, study.root) == pytest.approx(estimate.RUN + seconds)


def test_finished_runs_alike_give_the_rate(study, monkeypatch):
    monkeypatch.setattr(estimate, "pair_seconds", lambda spec, root: 0.0)
    weak, strong = study.params.weak_models[0], study.params.strong_models[0]
    first, spec = study.gold(strong, 0), study.student(weak, strong, "explicit", 1)
    for n, (run, seconds) in enumerate([(first, 6.4), (replace(first, seed=1), 9.6), (replace(first, seed=2), 99.0)]):
        folder = study.root / "runs" / run.name
        files.write_json(folder / "spec.json", run.identity | ({"gold_checks": 2} if n == 2 else {}))
        (folder / "log.jsonl").write_text(json.dumps({"step": 2, "steps": 2, "seconds": seconds}) + "\n")
        (folder / "DONE").touch()
    rates = estimate.measured(study.root)
    pairs = study.params.n_w2s + (study.params.n_validation + study.params.n_test) / 3
    assert estimate.run_seconds(spec, study.root, rates) == pytest.approx(estimate.RUN + 0.125 * pairs)
    for other in (
        {"threads": 2},
        {"method": "simpo"},
        {"lora": LORA},
        {"model_fingerprint": "x"},
        {"data": first.data},
    ):
        same = "data" in other
        assert (estimate.run_seconds(replace(spec, **other), study.root, rates) > 1) == same
    execute.execute(replace(first, epochs=0), study.root)  # its log is empty
    execute.execute(study.gold(weak, 0), study.root)
    assert len(estimate.measured(study.root)) == 2


def test_the_pocket_study_without_finished_runs(tmp_path, monkeypatch):
    """On this machine's two cores it took 82 s, and one product ran at 1.1e11 operations a second."""
    monkeypatch.setattr(estimate, "product_rate", lambda *of: 1.1e11)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 2)
    study = Study.open(StudyParams.load(HOME / "params" / "pocket.yaml", output_dir=str(tmp_path)))
    store.store_data(study.root, study.data)
    todo = cluster.pending(list(study.all_runs()), study.root)
    seconds = {spec.name: estimate.run_seconds(spec, study.root) for spec in todo}
    assert 41 < estimate.total_seconds(todo, seconds, 2) < 164
    large = replace(todo[0], model="pocket-64", tokens_per_batch=2**20)
    four = estimate.pair_seconds(replace(large, batch_pairs=1), tmp_path) - estimate.pair_seconds(large, tmp_path)
    assert four == pytest.approx(estimate.STEP * (1 - 1 / large.batch_pairs))


def test_the_rate_is_that_of_a_product_and_leaves_threads_and_draws_alone():
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    assert 1e8 < estimate.product_rate("cpu", "float32", 2) < 1e14
    assert torch.get_num_threads() == before and torch.equal(torch.random.get_rng_state(), state)


def test_the_time_of_all_runs_on_several_workers(study, monkeypatch):
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 4)
    weak, strong = study.params.weak_models[0], study.params.strong_models[-1]
    gold, student = study.gold(weak, 0), study.student(weak, strong, "none", 0)
    todo = [gold, *(study.gold(strong, seed) for seed in range(4)), student]
    seconds = {spec.name: 10.0 for spec in todo} | {student.name: 40.0}

    def busy(workers: int) -> float:
        return estimate.total_seconds(todo, seconds, workers) - estimate.START

    assert estimate.total_seconds(todo, seconds, 1) == 90.0
    assert busy(2) == busy(4) == pytest.approx(50.0)  # the student waits for its teacher: 10 + 40
    seconds[student.name] = 10.0
    assert busy(2) == pytest.approx(30.0) and busy(4) == pytest.approx(20.0)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 2)
    assert busy(4) == pytest.approx(30.0)  # two cores for four workers
