"""One run on two processes (gloo on the CPU): the same results, and an end to all of it when one fails."""

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
from accelerate import PartialState
from conftest import small_params
from torch.distributed.tensor import DTensor

from w2s import models, train
from w2s.files import Progress
from w2s.params import Lora, ParameterError
from w2s.runs import cluster, execute, sharded, store
from w2s.runs.labels import labelled_pairs
from w2s.spec import RunSpec
from w2s.study import Study
from w2s.train import Schedule, fit

# One pair is left for two ranks in the last step of 33, and in some blocks of 41; many blocks a step.
ODD = {"n_gt": 33, "n_w2s": 33, "n_test": 41, "tokens_per_batch": 400, "learning_rate": 1e-2, "save_models": True}
CLIPS = (None, 0.01)


def train_all(specs: list[RunSpec], root: Path) -> None:
    """What a rank does: several runs one after another, of which `sharded.train` does one."""
    state = PartialState(cpu=True, backend="gloo")
    for spec in specs:
        sharded.train_and_score(sharded.Rank(spec, root, state), root / "runs" / spec.name)
        state.wait_for_everyone()
    weights = list(sharded.Rank(specs[0], root, state).load().parameters())
    assert sum(w.to_local().numel() for w in weights) < 0.6 * sum(w.numel() for w in weights), "not sharded"
    found = [gradients(sharded.Rank(specs[0], root, state), clip) for clip in CLIPS]
    if state.is_main_process:
        torch.save(found, root / "gradients")


def gradients(team: execute.Alone, clip: float | None) -> dict[str, torch.Tensor]:
    """The gradient of a run's last step, of one pair, and of all pairs in one step, as the optimizer gets them."""
    model, pairs, found = team.load(), labelled_pairs(team.spec, team.root), {}
    texts = train.training_texts(team.spec, pairs, models.load_tokenizer(team.spec.model))
    each = train.training_objective(team.spec, pairs, team.root, team.device)
    *_, last = team.steps(texts)
    team.spec = replace(team.spec, batch_pairs=len(pairs))
    for name, step in (("last", last), ("all", next(team.steps(texts)))):
        fit(model, [step], team.objective(each), Schedule(1e-9, clip=clip), 1)
        for parameter, weight in model.named_parameters():
            gradient = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
            found[f"{name} {parameter.removeprefix('model.')}"] = gradient
    return found


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The processes of the ranks find the jobs of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


def wanted(names: list[str], root: Path) -> dict[str, RunSpec]:
    """One run of every kind, by its name here; each after the runs that it needs."""
    weak, strong = names[0], names[2]
    settings = ({"method": "reward"}, {"method": "dpo", "n_helpful": 0}, {"method": "simpo"})
    reward, dpo, simpo = (Study.open(small_params(names, root, **{**ODD, **changes})) for changes in settings)
    teacher = reward.gold(weak, 0)
    lora = replace(reward.gold(strong, 0), lora=Lora(rank=2, alpha=4))
    students = {conflict: reward.student(weak, strong, conflict, 0) for conflict in ("none", "explicit", "implicit")}
    policies = {"dpo": dpo.gold(weak, 0), "simpo": simpo.gold(strong, 0)}
    taught = dpo.student(weak, strong, "explicit", 0)
    remedies = {"gold_checks": 5, "label_loss": "confidence", "confidence_weight": 0.5, "weighting": "reliability"}
    return {
        "teacher": teacher,
        **students,
        "remedies": replace(students["explicit"], **remedies),
        "lora": lora,
        "half": replace(lora, dtype="bfloat16", lora=None, gradient_checkpointing=True),
        "half lora": replace(lora, dtype="bfloat16"),
        **{f"start of {name}": spec.start for name, spec in policies.items()},
        **policies,
        "start of taught": taught.start,
        "taught": taught,
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


KINDS = ["teacher", "none", "explicit", "implicit", "remedies", "lora"]
KINDS += ["start of dpo", "dpo", "start of simpo", "simpo", "taught"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_score_as_one(trained, kind):
    specs, *roots = trained
    one, two = (store.load_predictions(specs[kind], root) for root in roots)
    assert list(one.columns) == list(two.columns) and (one.dtypes == two.dtypes).all()
    assert one["id"].equals(two["id"]) and one["split"].equals(two["split"])
    for column in one.columns.drop(["id", "split", "correct"]):
        np.testing.assert_allclose(two[column], one[column], atol=1e-4, rtol=1e-5, err_msg=column)
    assert one["margin"].std() > 5e-3  # smaller margins would agree whatever happened


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


def test_training_changes_the_scores_by_more_than_the_tolerance(trained):
    specs, alone, _ = trained
    none, *others = (store.load_predictions(specs[kind], alone) for kind in ("none", "explicit", "implicit"))
    for other in others:
        both = none.merge(other, on=["id", "split"])
        assert (both["margin_x"] - both["margin_y"]).abs().median() > 1e-2


@pytest.mark.parametrize("kind", ["half", "half lora"])
def test_in_half_precision_they_score_alike(trained, kind):
    """bfloat16 has three digits: cutting steps into other blocks changes the scores as much."""
    specs, *roots = trained
    one, two = (store.load_predictions(specs[kind], root)["margin"] for root in roots)
    assert (one - two).abs().max() < 0.15 * one.std()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_log_the_loss_of_all_pairs(trained, kind):
    specs, *roots = trained
    one, two = ((root / "runs" / specs[kind].name / "log.jsonl").read_text().splitlines() for root in roots)
    losses = [[float(line.split('"loss": ')[1].split(",")[0]) for line in lines] for lines in (one, two)]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=3e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_save_the_model_that_they_scored(trained, kind):
    specs, alone, together = trained
    spec, folder = specs[kind], together / "runs" / specs[kind].name
    saved = [
        sorted(file.name for file in (root / "runs" / spec.name / "model").iterdir()) for root in (alone, together)
    ]
    assert saved[0] == saved[1]
    name = str(folder / "model")
    model = execute.load_model(replace(spec, start=None, model=name), together)
    table = execute.score(
        spec, model, store.pair_table(together, spec.data, "test"), models.load_tokenizer(name), together
    )
    scored = store.load_predictions(spec, together)
    scored = scored[scored["split"] == "test"]
    np.testing.assert_allclose(table["margin"], scored["margin"], atol=1e-4, rtol=1e-5)


def test_a_dask_worker_trains_a_run_on_two_processes(trained, tiny_models, tmp_path):
    specs, alone, _ = trained
    study = Study.open(small_params(tiny_models, tmp_path, shards=2, **ODD))
    spec = study.gold(tiny_models[0], 0)
    cluster._on_cluster([spec], tmp_path, 1, None, Progress([spec.name]))
    assert store.is_done(spec, tmp_path) and spec.name == specs["teacher"].name
    one, two = (store.load_predictions(spec, root)["margin"] for root in (alone, tmp_path))
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert sorted(file.name for file in (tmp_path / "runs" / spec.name).iterdir()) == sorted(
        file.name for file in (alone / "runs" / spec.name).iterdir()
    )


def on_rank_1(code: str) -> partial:
    """A job that does something on rank 1, while the others wait for it for ever."""
    return partial(exec, f"import os, time\nif os.environ['RANK'] == '1':\n {code}\ntime.sleep(600)")


def test_a_rank_that_fails_ends_the_others_and_says_why():
    with pytest.raises(ParameterError, match="no such model") as caught:
        sharded.launch(on_rank_1("from w2s.params import ParameterError; raise ParameterError('no such model')"), 3)
    assert "Traceback" in caught.value.__notes__[0]
    assert not ranks_alive()


def test_an_error_that_does_not_pickle_keeps_its_words():
    with pytest.raises(RuntimeError, match="Odd: no room"):
        sharded.launch(on_rank_1("raise type('Odd', (Exception,), {})('no room')"), 2)


def test_a_rank_that_is_killed_ends_the_others_and_says_so():
    words = r"rank 1 of 3 was ended from outside with exit code -9 .*its last words: the last of many words"
    with pytest.raises(RuntimeError, match=words):
        sharded.launch(on_rank_1("print('the last of\\nmany words', flush=True); os.kill(os.getpid(), 9)"), 3)
    assert not ranks_alive()


def test_an_interrupt_ends_all_ranks():
    def interrupt():
        assert len(ranks_alive()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharded.launch(partial(time.sleep, 600), 2, watch=interrupt)
    assert not ranks_alive()


PARENT = """
import os, sys
from functools import partial
from pathlib import Path
from w2s import ranks

folder = Path(sys.argv[1])
job = partial(exec, f"import os, time; open({str(folder)!r} + '/' + str(os.getpid()), 'w'); time.sleep(600)")
ranks.launch(job, 2, watch=lambda: len(list(folder.iterdir())) == 2 and os.kill(os.getpid(), 9))
"""


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    assert subprocess.run([sys.executable, "-c", PARENT, str(tmp_path)], timeout=60).returncode == -9
    left, deadline = [int(file.name) for file in tmp_path.iterdir()], time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in left):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.05)
    assert len(left) == 2


def ranks_alive() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "ranks.main(" in " ".join(p.cmdline())]


def test_a_single_process_needs_nothing_of_it(tiny_models, tmp_path, monkeypatch):
    study = Study.open(small_params(tiny_models, tmp_path))
    monkeypatch.setitem(sys.modules, "w2s.sharded", None)  # an import of it fails
    execute.execute(study.gold(tiny_models[0], 0), tmp_path)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "shards = 3: this machine has 2 CUDA devices; set shards to that or less"),
     ("cuda:1", "shards = 3: not with device cuda:1"), ("mps", "shards = 3: not with device mps")],
)  # fmt: skip
def test_fewer_devices_than_shards(small_study, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    spec = replace(small_study.gold(small_study.params.weak_models[0], 0), device=device, shards=3)
    with pytest.raises(ParameterError, match=message):
        execute.execute(spec, small_study.root)
    sharded.check_devices(replace(spec, device="cuda", shards=2))
    sharded.check_devices(replace(spec, shards=1))
