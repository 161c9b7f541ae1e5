"""One run on two processes (gloo on the CPU): the same results, and an end to all of it when one fails."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import small_params
from torch import distributed
from torch.distributed.tensor import DTensor

from w2s import models, train
from w2s.params import Lora, ParameterError
from w2s.runs import cluster, execute, sharded, store, workers
from w2s.runs.labels import labelled_pairs
from w2s.runs.progress import Progress
from w2s.spec import RunSpec
from w2s.study import Study
from w2s.train import Schedule, fit

# One pair is left for two ranks in the last step of 33, and in some blocks of 41; many blocks a step.
ODD = {"n_gt": 33, "n_w2s": 35, "n_test": 41, "tokens_per_batch": 400, "learning_rate": 1e-2, "save_models": True}
CLIPS = (None, 0.01)


def train_all(specs: list[RunSpec], root: Path) -> None:
    """What a rank does: several runs one after another, of which `sharded.train` does one."""
    distributed.init_process_group("gloo")
    for spec in specs:
        execute.train_and_score(sharded.Rank(spec, root), root / "runs" / spec.name)
        distributed.barrier()
    weights = list(sharded.Rank(specs[0], root).load().parameters())
    share = sum(w.to_local().numel() for w in weights) / sum(w.numel() for w in weights)
    assert share < 0.6 or distributed.get_world_size() == 1, "not sharded"
    stepped = [gradients(sharded.Rank(specs[0], root), clip) for clip in CLIPS]
    if distributed.get_rank() == 0:
        torch.save(stepped, root / "gradients")
    distributed.destroy_process_group()


def gradients(team: execute.Alone, clip: float | None) -> dict[str, torch.Tensor]:
    """The gradient of a run's last step, of one pair, and of all pairs in one step, as the optimizer gets them."""
    model, pairs, result = team.load(), labelled_pairs(team.spec, team.root), {}
    texts = train.training_texts(team.spec, pairs, models.load_tokenizer(team.spec.model))
    each = train.training_objective(team.spec, pairs, team.device)
    *_, last = team.steps(texts)
    team.spec = replace(team.spec, batch_pairs=len(pairs))
    for name, step in (("last", last), ("all", next(team.steps(texts)))):
        fit(model, [step], team.objective(each), Schedule(1e-9, clip=clip), 1)
        for parameter, weight in model.named_parameters():
            gradient = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
            result[f"{name} {parameter.removeprefix('model.')}"] = gradient
    return result


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The processes of the ranks find the jobs of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


def wanted(names: list[str], root: Path) -> dict[str, RunSpec]:
    """One run of every kind, by its name here; each after the runs that it needs."""
    weak, strong = names[0], names[2]
    # By DPO at 1e-2 the rounding of two processes grows to 1e-3 of one margin on some processors.
    dpo = {"method": "dpo", "n_helpful": 0, "learning_rate": 5e-3, "sft_learning_rate": 1e-2}
    settings = ({"method": "reward"}, dpo, {"method": "simpo"})
    studies = [Study.open(small_params(names, root, **(ODD | changes))) for changes in settings]
    for study in studies:
        store.store_data(root, study.data)
    reward, dpo, simpo = studies
    lora = replace(reward.gold(strong, 0), lora=Lora(rank=2, alpha=4))
    students = {conflict: reward.student(weak, strong, conflict, 0) for conflict in ("none", "explicit", "implicit")}
    remedies = {"gold_checks": 5, "label_loss": "confidence", "confidence_weight": 0.5, "weighting": "reliability"}
    policies = {
        "dpo": dpo.gold(weak, 0),
        "simpo": simpo.gold(strong, 0),
        "taught": dpo.student(weak, strong, "explicit", 0),
    }
    return {
        "teacher": reward.gold(weak, 0),
        **students,
        "remedies": replace(students["explicit"], **remedies),
        "lora": lora,
        "half": replace(lora, dtype="bfloat16", lora=None, gradient_checkpointing=True),
        "half lora": replace(lora, dtype="bfloat16"),
        **{f"start of {name}": policies[name].start for name in ("dpo", "simpo")},
        **{name: policies[name] for name in ("dpo", "simpo")},
        "start of taught": policies["taught"].start,
        "taught": policies["taught"],
    }


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """The runs by name, and two folders with all of them: of one process, and of two.

    In the second, two processes continue the SimPO run from a warm start of one, and one the last run from two.
    """
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    specs = wanted(tiny_models, alone)
    assert wanted(tiny_models, together) == specs
    for spec in specs.values():
        execute.execute(spec, alone)
        (together / "runs" / spec.name).mkdir()
    first, last = specs["start of simpo"], specs["taught"]
    execute.train_and_score(execute.Alone(first, together), together / "runs" / first.name)
    shared = [replace(spec, shards=2) for spec in specs.values() if spec not in (first, last)]
    sharded.launch(partial(train_all, shared, together), 2)
    execute.train_and_score(execute.Alone(last, together), together / "runs" / last.name)
    return specs, alone, together


def assert_alike(spec: RunSpec, alone: Path, together: Path) -> None:
    """Two folders with the same files; predictions, logged losses and saved model of one run agree."""
    one, two = (store.load_predictions(spec, root) for root in (alone, together))
    assert list(one.columns) == list(two.columns) and (one.dtypes == two.dtypes).all()
    assert one["id"].equals(two["id"]) and one["split"].equals(two["split"])
    for column in one.columns.drop(["id", "split", "correct"]):
        np.testing.assert_allclose(two[column], one[column], atol=1e-4, rtol=1e-5, err_msg=column)
    assert one["margin"].std() > 5e-3  # smaller margins would agree whatever happened
    logs = [(root / "runs" / spec.name / "log.jsonl").read_text().splitlines() for root in (alone, together)]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=3e-5)
    folders = [root / "runs" / spec.name / "model" for root in (alone, together)]
    assert len({tuple(sorted(file.name for file in folder.iterdir())) for folder in folders}) == 1
    model = execute.load_model(replace(spec, start=None, model=str(folders[1])), together)
    tokenizer, pairs = models.load_tokenizer(str(folders[1])), store.pair_table(together, spec.data, "test")
    margin = execute.score(spec, model, pairs, tokenizer, together)["margin"]
    np.testing.assert_allclose(margin, two[two["split"] == "test"]["margin"], atol=1e-4, rtol=1e-5)


KINDS = ["teacher", "none", "explicit", "implicit", "remedies", "lora"]
KINDS += ["start of dpo", "dpo", "start of simpo", "simpo", "taught"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_score_and_save_as_one(trained, kind):
    specs, *roots = trained
    assert_alike(specs[kind], *roots)


@pytest.mark.parametrize("kind", ["simpo", pytest.param("teacher", marks=pytest.mark.slow)])
def test_a_single_rank_trains_scores_and_saves_as_a_process_alone(tiny_models, tmp_path, monkeypatch, kind):
    specs, *_ = wanted(tiny_models, tmp_path / "alone"), wanted(tiny_models, tmp_path / "rank")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(key, str(value))
    for spec in filter(None, (specs[kind].start, specs[kind])):
        execute.execute(spec, tmp_path / "alone")
        folder = tmp_path / "rank" / "runs" / spec.name
        folder.mkdir()
        sharded.train_rank(spec, tmp_path / "rank", folder)
        assert_alike(spec, tmp_path / "alone", tmp_path / "rank")


@pytest.mark.slow
def test_two_processes_get_the_gradient_of_one(trained):
    """Which Adam would get at any scale: the scores cannot tell a sum from a mean over the processes."""
    specs, alone, together = trained
    for clip, two in zip(CLIPS, torch.load(together / "gradients")):
        one = gradients(execute.Alone(specs["teacher"], alone), clip)
        assert one.keys() == two.keys() and any(name.startswith("last") for name in one)
        for name, gradient in one.items():
            torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-4, msg=f"{name}, clip {clip}")
        norm = torch.stack([two[name].norm() for name in two if name.startswith("all")]).norm()
        assert norm > 0.05 if clip is None else norm == pytest.approx(clip, rel=1e-3)
    none, *others = (store.load_predictions(specs[kind], alone) for kind in ("none", "explicit", "implicit"))
    for other in others:  # training changes the scores by more than the tolerance
        merged = none.merge(other, on=["id", "split"])
        assert (merged["margin_x"] - merged["margin_y"]).abs().median() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["half", "half lora"])
def test_in_half_precision_they_score_alike(trained, kind):
    """bfloat16 has three digits: cutting steps into other blocks changes the scores as much."""
    specs, *roots = trained
    one, two = (store.load_predictions(specs[kind], root)["margin"] for root in roots)
    assert (one - two).abs().max() < 0.15 * one.std()


@pytest.mark.slow
def test_a_dask_worker_trains_a_run_on_two_processes(trained, tiny_models, tmp_path):
    specs, alone, _ = trained
    study = Study.open(small_params(tiny_models, tmp_path, shards=2, **ODD))
    store.store_data(study.root, study.data)
    spec = study.gold(tiny_models[0], 0)
    workers.train([spec], tmp_path, 1, None, Progress([spec.name]))
    assert store.is_done(spec, tmp_path) and spec.name == specs["teacher"].name
    one, two = (store.load_predictions(spec, root)["margin"] for root in (alone, tmp_path))
    np.testing.assert_allclose(two, one, atol=1e-4)
    files = [{file.name for file in (root / "runs" / spec.name).iterdir()} for root in (alone, tmp_path)]
    assert files[0] == files[1]


def ranks_alive() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "w2s.runs.sharded" in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from w2s.params import ParameterError; raise ParameterError('none')", "^ParameterError: none\n.*Traceback"),
        (r"print('the last of\nmany words', flush=True); os.kill(os.getpid(), 9)",
         "^rank 1 of 3 was ended from outside with exit code -9 .*its last words: the last of many words$"),
    ],
)  # fmt: skip
def test_a_rank_that_fails_or_is_killed_ends_the_others_and_says_why(code, words):
    job = partial(exec, f"import os, time\nif os.environ['RANK'] == '1':\n {code}\ntime.sleep(600)")
    with pytest.raises(RuntimeError, match=words):
        sharded.launch(job, 3)
    assert not ranks_alive()


FAILS = """import json, os, pathlib, sys
error = {"message": {"message": "ValueError: no", "extraInfo": {"py_callstack": "Traceback of rank 1"}}}
pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(error)); sys.exit(1)"""


def test_what_torchrun_leaves_behind_is_raised(monkeypatch):
    monkeypatch.setattr(sharded, "TORCHRUN", (sys.executable, "-c", FAILS))
    with pytest.raises(RuntimeError, match="ValueError: no") as caught:
        sharded.launch(time.time, 2)
    assert caught.value.__notes__ == ["Traceback of rank 1"]
    monkeypatch.setattr(sharded, "TORCHRUN", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(RuntimeError, match=r"rank \* of 2 .* exit code -9 \(out of memory\?\)"):
        sharded.launch(time.time, 2)


@pytest.mark.slow
def test_an_interrupt_ends_all_ranks():
    def interrupt():
        if len(ranks_alive()) == 3:  # with torchrun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharded.launch(partial(time.sleep, 600), 2, watch=interrupt)
    soon(lambda: not ranks_alive())


PARENT = """
import os, sys
from functools import partial
from pathlib import Path
from w2s.runs import sharded

folder = Path(sys.argv[1])
job = partial(exec, f"import os, time; open({str(folder)!r} + '/' + str(os.getpid()), 'w'); time.sleep(600)")
sharded.launch(job, 2, watch=lambda: len(list(folder.iterdir())) == 2 and os.kill(os.getpid(), 9))
"""


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(tmp_path):
    assert subprocess.run([sys.executable, "-c", PARENT, str(tmp_path)], timeout=120).returncode == -9
    left = [int(file.name) for file in tmp_path.iterdir()]
    assert len(left) == 2
    soon(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in left))


def soon(holds, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_cluster_chooses_who_trains_a_run(small_study, monkeypatch):
    """Ranks for a run of several shards, whose steps are shown; this process for any other."""
    store.store_data(small_study.root, small_study.data)
    names = small_study.params.weak_models[0], small_study.params.strong_models[0]
    alone, shared = (small_study.gold(name, 0) for name in names)
    reported, launched = [], []

    def launch(job, ranks, threads, watch):
        watch()
        launched.append((job.args[0], ranks, threads))
        execute.train_and_score(execute.Alone(*job.args[:2]), job.args[2])
        watch()

    monkeypatch.setattr(sharded, "launch", launch)
    monkeypatch.setattr(Progress, "update", lambda self, *steps: reported.append(steps))
    shared = replace(shared, shards=2, threads=1)
    cluster.run_all([alone, shared], small_study.root)
    assert launched == [(shared, 2, 1)] and (shared.name, 2, 2) in reported
    assert store.is_done(alone, small_study.root) and store.is_done(shared, small_study.root)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "shards = 3: this machine has 2 CUDA devices; set shards to that or less"),
     ("cuda:1", "shards = 3: not with device cuda:1"), ("mps", "shards = 3: not with device mps")],
)  # fmt: skip
def test_fewer_devices_than_shards(small_study, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    spec = replace(small_study.gold(small_study.params.weak_models[0], 0), device=device, shards=3)
    with pytest.raises(ParameterError, match=message):
        sharded.execute(spec, small_study.root)
    sharded.check_devices(replace(spec, device="cuda", shards=2))
    sharded.check_devices(replace(spec, shards=1))
