"""The cache of runs: what makes a finished run valid, and that nothing finished is lost or taken for what it is not."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import small_params
from test_structure import needed_by

from w2s import files
from w2s.params import PACKAGE, ParameterError
from w2s.runs import cluster, code, estimate, execute, store
from w2s.study import Study


@pytest.fixture
def trained(small_study):
    """A study with one finished run: the study, the run, its folder."""
    spec = small_study.gold(small_study.params.weak_models[0], 0)
    cluster.results(small_study, {spec: {}})
    return small_study, spec, store.folder_of(spec, small_study.root)


def content(folder: Path) -> dict[str, bytes]:
    others = ("DONE", "log.jsonl", "model")
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.name not in others}


def test_comments_and_docstrings_do_not_change_code_and_everything_else_does():
    source = 'def f(x):\n    """Text."""\n    return x  # why\n'
    same = 'def f(x):\n    """Other."""\n\n    # because\n    return x\n'
    assert code._hash(source) == code._hash(same) != code._hash(source.replace("return x", "return -x"))
    assert code._hash("class A:\n    'doc'\n    x = 1\n") == code._hash("class A:\n    x = 1\n")


def test_what_a_run_depends_on_is_in_its_code():
    """Every module that training a run imports computes it, or is known to change no result."""
    used = {f"{name.removeprefix('w2s.').replace('.', '/')}.py" for name in needed_by("w2s.runs.sharded")}
    no_result = {"params.py", "files.py", "spec.py", "world.py", "runs/store.py", "runs/code.py"}
    no_result |= {f"sources/{name}.py" for name in ("hub", "quantized", "pairs", "audit")}  # these have fingerprints
    no_result |= {"sources.py"}
    assert used - no_result == set(code.COMPUTES)


def test_a_run_of_other_code_is_trained_again_and_the_log_says_why(trained, monkeypatch, capsys):
    study, spec, folder = trained
    before = content(folder)
    monkeypatch.setitem(code.IMPORTED, "losses.py", "another")
    assert not store.is_done(spec, study.root)
    monkeypatch.setattr(code, "read", lambda: dict(code.IMPORTED))
    cluster.results(study, {spec: {}})
    assert "losses.py has changed since: 1 run is trained again" in capsys.readouterr().out
    assert store.is_done(spec, study.root) and content(folder) == before
    (folder / "DONE").write_bytes(b"")  # as before there was a record
    assert store.why_again([spec], study.root) == ["made by code that left no record: 1 run is trained again"]


def test_code_that_was_edited_after_its_import_trains_nothing(small_study, monkeypatch):
    monkeypatch.setattr(code, "read", lambda: code.IMPORTED | {"losses.py": "edited"})
    with pytest.raises(
        ParameterError, match=r"^losses\.py: changed since this process imported it; restart the kernel"
    ):
        cluster.results(small_study, {small_study.gold(small_study.params.weak_models[0], 0): {}})


@pytest.mark.slow
def test_an_edited_loss_is_used_by_the_next_start(trained, tmp_path):
    study, spec, folder = trained
    shutil.copytree(PACKAGE, tmp_path / "w2s", ignore=shutil.ignore_patterns("__pycache__", "frozen"))
    losses = tmp_path / "w2s" / "losses.py"
    text = losses.read_text()
    start = text.index('"""', text.index("def reward_loss"))
    end = text.index('"""', start + 3) + 3
    losses.write_text(f"{text[:end]}\n    return 0 * margin.sum() + 0 * margin{text[end:]}")
    script = f"""from w2s.params import StudyParams; from w2s.study import Study; from w2s.runs import cluster
study = Study.open(StudyParams.check({study.params.model_dump()!r}))
cluster.results(study, {{study.gold({spec.model!r}, 0): {{}}}})"""
    before = content(folder)
    run = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "losses.py has changed since: 1 run is trained again" in result.stdout, result.stderr
    assert content(folder)["predictions.parquet"] != before["predictions.parquet"]


DAMAGE = {
    "predictions.parquet": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "spec.json": lambda path: path.write_text("{"),
    "log.jsonl": lambda path: path.write_text('{"step": 1'),
    "metrics.json": Path.unlink,
    "DONE": lambda path: path.write_text('{"code": {'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_of_a_run_is_named_and_made_anew(trained, name, capsys):
    study, spec, folder = trained
    before = content(folder)
    DAMAGE[name](folder / name)
    assert not store.is_done(spec, study.root)
    assert estimate.measured(study.root) is not None  # which reads every finished run
    cluster.results(study, {spec: {}})
    out, kind = capsys.readouterr().out, "gone" if name == "metrics.json" else "damaged"
    assert f"{folder / name} is {kind}: 1 run is trained again" in out
    assert content(folder) == before


def test_a_damaged_pair_table_is_named_and_written_anew(trained, capsys):
    study, _, _ = trained
    (table,) = (study.root / "runs" / "data").glob("*/gt.parquet")
    whole = table.read_bytes()
    table.write_bytes(whole[:50])
    with pytest.raises(ParameterError, match="gt.parquet: cannot be read"):
        store.pair_table.__wrapped__(study.root, study.data.fingerprint, "gt")
    store.store_data(study.root, study.data)
    assert table.read_bytes() == whole and f"{table} is damaged" in capsys.readouterr().out


def test_a_finished_run_stands_until_another_can_take_its_place(trained):
    study, spec, folder = trained
    before, keeping = content(folder), replace(spec, save_model=True)

    def interrupted(spec, root, part, report):
        (part / "log.jsonl").write_text('{"step": 1, "steps": 2}\n{"step": 2, "st')
        assert store.steps_logged(spec, root) == (1, 2) and store.state(keeping, root) == "running"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute.execute(keeping, study.root, train=interrupted)
    assert content(folder) == before and store.is_done(spec, study.root) and not store.is_done(keeping, study.root)
    assert cluster.pending([spec, keeping], study.root) == cluster.pending([keeping, spec], study.root) == [keeping]
    cluster.run_all([spec, keeping], study.root)
    assert store.is_done(keeping, study.root) and content(folder) == before
    weights = next((folder / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ParameterError, match=r"damaged; delete .*, and the run is trained again"):
        store.check_model(spec, study.root)


def test_a_kill_before_a_finished_run_is_in_the_place_of_an_older_one_loses_nothing(trained):
    study, spec, folder = trained
    before, written = content(folder), (folder / "DONE").stat().st_mtime_ns
    os.replace(folder, store.beside(folder, "part"))
    (folder / "half of the older one").mkdir(parents=True)
    cluster.run_all([spec], study.root)
    assert content(folder) == before and (folder / "DONE").stat().st_mtime_ns == written
    assert {path.name for path in folder.parent.glob(f"{folder.name}*")} <= {folder.name, f"{folder.name}.lock"}


def test_writers_of_one_file_do_not_meet_and_what_a_killed_one_left_is_swept(tmp_path):
    errors = []

    def write():
        try:
            for n in range(100):
                files.write_json(tmp_path / "one.json", n)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["one.json"]
    script = "import os, sys; from w2s import files; path = files.Path(sys.argv[1])"
    script += "; files.write_atomic(path, lambda p: (p.touch(), os._exit(9)))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "two.json")], check=False)
    own = tmp_path / f".three.json.{files._host()}-{os.getpid()}-abc.tmp"
    own.touch()
    assert len(list(tmp_path.glob(".two.json.*"))) == 1
    files.sweep(tmp_path)
    assert not list(tmp_path.glob(".two.json.*")) and own.exists()  # this process lives


def test_a_failed_run_stops_none_but_those_that_need_it(tiny_models, tmp_path, capsys):
    study = Study.open(small_params(tiny_models, tmp_path, conflicts=["none", "explicit"]))
    weak, middle, strong = tiny_models
    specs = study.direct_runs()
    bad = next(spec for spec, tags in specs.items() if tags["role"] == "student" and spec.model == strong)
    broken = {replace(spec, learning_rate=1e30) if spec == bad else spec: tags for spec, tags in specs.items()}
    table = cluster.results(study, broken)
    out = capsys.readouterr().out
    kept = set(table["run"])
    assert study.student(weak, middle, "explicit", 0).name in kept and study.gold(strong, 0).name in kept
    assert study.student(weak, strong, "explicit", 0).name not in kept  # nothing to compare it with
    failed = next(spec for spec in broken if spec.learning_rate > 1)
    assert f"FAILED  {failed.name}: the loss is nan at step" in out
    record = json.loads(store.beside(store.folder_of(failed, study.root), "failed").read_text())
    assert record["step"] >= 1 and set(record["pairs"]) <= set(study.data.w2s["id"]) and record["traceback"]
    assert store.state(failed, study.root).startswith("failed: the loss is nan")
    needs_it = replace(study.student(weak, strong, "none", 0), teacher=replace(study.gold(weak, 0), learning_rate=1e30))
    assert cluster.run_all([needs_it], study.root)[needs_it.name] == "a run that it needs failed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="users are those of a Unix system")
def test_the_cache_of_another_user_is_read_without_a_write(trained, tmp_path_factory):
    study, spec, _ = trained
    own = tmp_path_factory.mktemp("own")
    own.chmod(0o777)
    mine = Study(study.params.model_copy(update={"output_dir": str(own), "read_from": str(study.root)}))
    before = {path: path.stat().st_mtime_ns for path in study.root.rglob("*")}

    def as_reader() -> None:
        store.store_data(study.root, study.data)
        assert store.is_done(spec, study.root) and store.state(spec, study.root) == "done"
        assert len(cluster.results(study, {spec: {}}))
        assert len(cluster.results(mine, {spec: {}})) and store.is_done(spec, own)

    for path in [*before, study.root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (own, *own.parents, *study.root.parents)[:-1]:  # pytest's folders are closed to others
        if path.stat().st_uid == os.getuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            as_reader()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert {path: path.stat().st_mtime_ns for path in study.root.rglob("*")} == before
    for path in [study.root, *before]:
        path.chmod(0o755)


def test_what_another_cache_has_finished_is_copied_whole_and_nothing_else(trained, tmp_path):
    study, spec, folder = trained
    student = study.student(spec.model, study.params.strong_models[-1], "none", 0)
    own = tmp_path / "own"
    assert store.adopt([student], own, study.root) == 1  # the teacher, which it needs
    assert content(store.folder_of(spec, own)) == content(folder) and store.is_done(spec, own)
    assert store.adopt([student], own, study.root) == 0 and not store.is_done(student, own)
    saved = replace(spec, save_model=True)
    assert store.adopt([saved], tmp_path / "saved", study.root) == 0  # its model was not kept
    (folder / "predictions.parquet").write_bytes(b"damaged")
    assert store.adopt([spec], tmp_path / "third", study.root) == 0 and not (tmp_path / "third").exists()
    with pytest.raises(ParameterError, match="read_from = .*nowhere'?: no runs there; name an outputs folder"):
        nowhere = study.params.model_copy(update={"read_from": str(tmp_path / "nowhere")})
        cluster.results(Study(nowhere), {student: {}})


def test_two_processes_train_a_run_once(small_study):
    spec, root = small_study.gold(small_study.params.weak_models[0], 0), small_study.root
    store.store_data(root, small_study.data)
    trained = []

    def train(spec, root, part, report):
        trained.append(part)
        time.sleep(0.3)
        pd.DataFrame({"split": ["test"], "correct": [True]}).to_parquet(part / "predictions.parquet")

    threads = [threading.Thread(target=execute.execute, args=(spec, root), kwargs={"train": train}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1 and store.is_done(spec, root)
