"""Nothing finished is lost and nothing is mixed: kills at any moment, full disks, files that vanish, several at once.

All through the command line, on one tiny study (`undisturbed`), whose tables every disturbed study must give again.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np
import psutil
import pytest
import yaml
from conftest import small_params
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from w2s.app import headless
from w2s.params import HOME
from w2s.world import World

pytestmark = pytest.mark.slow
LONG = pytest.mark.skipif("W2S_KILLS" not in os.environ, reason="a minute and more each: set W2S_KILLS=1")
WHOLE = (sys.executable, "-m", "w2s.app.cli", "run")
TRAIN = (sys.executable, "-c", """if __name__ == "__main__":
    import sys
    from pathlib import Path
    from w2s.files import read_yaml
    from w2s.params import StudyParams
    from w2s.runs import cluster
    from w2s.study import Study
    study = Study.open(StudyParams.check(read_yaml(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    cluster.results(study, study.all_runs())
""")  # fmt: skip
MARK = "W2S_TEST_MARK"  # in the environment of every process of a study
WITH_WORKERS = "runs/tiny-16-*.part/log.jsonl"  # notebook 02 has one run alone to train, and needs none
LEFT = ("*.tmp", "*.part", "*.old", "*.failed")


class Kit:
    """One study in a folder of its own, run by `w2s run` in processes that can be told from all others."""

    marks: ClassVar[set[str]] = set()

    def __init__(self, models, folder: Path, **changes):
        self.root, self.mark = folder / "out", uuid4().hex
        self.marks.add(self.mark)
        params = small_params(models, self.root, conflicts=["none", "explicit"], bootstrap=20, **changes)
        self.study, self.file = self.root / params.study, folder / f"{params.study}.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(params.model_dump()), encoding="utf-8")

    def start(self, *more: str, command=WHOLE) -> subprocess.Popen:
        # Into a file: a pipe would wait for every process that has inherited it, and so hide the ones left behind.
        path = self.file.with_name(f"{uuid4().hex}.log")
        with open(path, "w", encoding="utf-8") as log:
            process = subprocess.Popen([*command, str(self.file), *more], env=os.environ | {MARK: self.mark},
                                       stdout=log, stderr=subprocess.STDOUT)  # fmt: skip
        process.log = path
        return process

    def run(self, *more: str) -> str:
        process = self.start(*more)
        text = ended(process)
        assert process.returncode == 0, text
        return text

    def processes(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if _environment(p).get(MARK) == self.mark]

    def nothing_is_left(self) -> None:
        for _ in range(100):
            if not (left := self.processes()):
                return
            time.sleep(0.1)
        assert left == []

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.study / "tables").glob("*"))}

    def predictions(self) -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in self.root.glob("runs/*/predictions.parquet")}

    def finished(self) -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in self.root.glob("runs/*/DONE")}

    def no_leftovers(self) -> None:
        assert [path for pattern in LEFT for path in self.root.rglob(pattern)] == []

    def wait_for(self, what, process: subprocess.Popen) -> None:
        until = time.monotonic() + 300
        while not what():
            assert process.poll() is None and time.monotonic() < until, process.log.read_text(encoding="utf-8")
            time.sleep(0.05)
        assert process.poll() is None, process.log.read_text(encoding="utf-8")


def ended(process: subprocess.Popen, timeout: float = 600) -> str:
    """What a process has printed, once it is over; the ones that it started may still live."""
    process.wait(timeout)
    return process.log.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def end_what_is_left():
    """A test that fails leaves no process of its own behind."""
    Kit.marks.clear()
    yield
    for process in psutil.process_iter():
        if _environment(process).get(MARK) in Kit.marks:
            process.kill()


def _environment(process: psutil.Process) -> dict:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture(scope="module")
def whole(tiny_models, tmp_path_factory) -> Kit:
    """An undisturbed study."""
    kit = Kit(tiny_models, tmp_path_factory.mktemp("undisturbed"))
    kit.run()
    return kit


@pytest.fixture
def undisturbed(whole):
    return whole.tables()


def victim(kit: Kit, process: subprocess.Popen, rng) -> tuple[str, psutil.Process]:
    """The main process, a kernel or a worker: one of those that there are."""
    kinds = {"main": psutil.Process(process.pid)}
    for other in kit.processes():
        words = " ".join(other.cmdline()) if other.is_running() else ""
        kinds |= {kind: other for kind, word in (("kernel", "ipykernel"), ("worker", "spawn_main")) if word in words}
    kind = rng.choice(sorted(kinds))
    return kind, kinds[kind]


@pytest.mark.parametrize(
    ("command", "kills"), [pytest.param(TRAIN, 40, id="training"), pytest.param(WHOLE, 10, id="study", marks=LONG)]
)
def test_random_kills_lose_nothing(tiny_models, tmp_path, whole, command, kills):
    rng, studies, where = np.random.default_rng(0), 0, []
    kit, done, start = Kit(tiny_models, tmp_path / "once", workers=2), {}, time.monotonic()
    process = kit.start(command=command)
    assert (text := ended(process)) and process.returncode == 0, text
    seconds, kit = time.monotonic() - start, Kit(tiny_models, tmp_path / "0", workers=2)
    while len(where) < kills:
        process = kit.start(command=command)
        try:
            process.wait(rng.uniform(1, seconds))
        except subprocess.TimeoutExpired:
            kind, target = victim(kit, process, rng)
            how = signal.Signals(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            where.append(f"{kind} {how.name}{' in training' if list(kit.root.glob('runs/*.part')) else ''}")
            target.send_signal(how)
            text = ended(process, 120)
            assert command == TRAIN or "Traceback" not in text, text
        kit.nothing_is_left()
        now = kit.finished()
        assert {name: now.get(name) for name in done} == done  # nothing finished was trained again, or lost
        done = now
        if process.returncode == 0 or len(where) == kills:
            kit.run() if command == WHOLE else ended(kit.start(command=command))
            kit.no_leftovers()
            assert kit.predictions() == whole.predictions() and len(done) <= 13
            assert command == TRAIN or kit.tables() == whole.tables()
            assert {name: kit.finished()[name] for name in done} == done
            studies += 1
            kit, done = Kit(tiny_models, tmp_path / str(studies), workers=2), {}
    print(f"{kills} kills survived over {studies} studies:", Counter(where))


def test_a_killed_worker_costs_its_run_a_second_start_alone(tiny_models, tmp_path):
    kit = Kit(tiny_models, tmp_path, workers=2, epochs=30)
    process = kit.start()
    kit.wait_for(lambda: list(kit.root.glob(WITH_WORKERS)), process)
    workers = [p for p in kit.processes() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    text = ended(process, 600)
    assert process.returncode == 0 and "Traceback" not in text, text
    assert len(kit.finished()) == 13
    kit.no_leftovers()
    kit.nothing_is_left()


def test_without_its_scheduler_a_study_ends_in_a_line_and_goes_on_later(tiny_models, tmp_path):
    kit = Kit(tiny_models, tmp_path, epochs=30)
    script = "import time; from distributed import LocalCluster; c = LocalCluster(n_workers=1, threads_per_worker=1)"
    script += "; print(c.scheduler_address, flush=True); time.sleep(600)"
    cluster = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n {script}"], stdout=-1, text=True)
    address = cluster.stdout.readline().strip()
    process = kit.start("--set", f"scheduler={address}")
    kit.wait_for(lambda: kit.finished() and list(kit.root.glob("runs/*.part/log.jsonl")), process)
    children = psutil.Process(cluster.pid).children(recursive=True)
    cluster.kill()
    for child in children:
        child.kill()
    text = ended(process, 120)
    done = kit.finished()
    assert process.returncode == 1 and "Traceback" not in text and done
    assert address in text.splitlines()[-2] and "start them, and this, again" in text
    kit.nothing_is_left()
    kit.run()
    assert {name: kit.finished()[name] for name in done} == done


@contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


MOMENTS = ["runs/*.part/log.jsonl", "small/02_weak_training.ipynb", "small/tables/04_scores.csv"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_is_one_line_and_the_cache_stays_sound(tiny_models, tmp_path, undisturbed, moment):
    with small_disk(tmp_path / "disk", "64m") as disk:
        kit = Kit(tiny_models, disk)
        process = kit.start()
        kit.wait_for(lambda: list(kit.root.glob(moment)), process)
        filler = fill(disk)
        text = ended(process, 300)
        assert process.returncode == 1 and "Traceback" not in text, text
        assert "No space left" in text or "disk" in text.splitlines()[-1], text
        filler.unlink()
        kit.run()
        kit.no_leftovers()
        assert kit.tables() == undisturbed


def fill(disk: Path) -> Path:
    with open(disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    return disk / "filler"


def test_a_failure_on_a_full_disk_says_its_own_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(headless, "gettempdir", lambda: str(tmp_path))
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk)
        try:
            raise RuntimeError("its own cause")
        except RuntimeError:
            assert headless.log_error(disk / "study") == tmp_path / "w2s_error.log"
    assert "RuntimeError: its own cause" in (tmp_path / "w2s_error.log").read_text()


def test_two_commands_for_one_study_and_two_studies_of_the_same_runs(tiny_models, tmp_path, undisturbed):
    kit, other = Kit(tiny_models, tmp_path), Kit(tiny_models, tmp_path, study="other")
    processes = [kit.start(), kit.start(), other.start()]
    texts = [ended(process, 900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], texts
    assert sum("waiting for small: " in text for text in texts[:2]) == 1, texts
    assert kit.tables() == undisturbed and other.tables() == undisturbed
    kit.no_leftovers()


def test_a_notebook_in_jupyter_beside_the_command(tiny_models, tmp_path, undisturbed):
    kit = Kit(tiny_models, tmp_path)
    papermill = [sys.executable, "-m", "papermill", "--cwd", str(HOME / "notebooks")]
    books = [str(HOME / "notebooks" / "03_strong_training.ipynb"), str(tmp_path / "copy.ipynb"), "-f"]
    process, beside = kit.start(), kit.start(command=(*papermill, *books))
    texts = [ended(each, 600) for each in (process, beside)]
    assert (process.returncode, beside.returncode) == (0, 0), texts
    assert kit.tables() == undisturbed


@pytest.mark.parametrize("what", ["model", "data"])
def test_what_vanishes_costs_one_line_and_no_finished_run(tiny_models, tmp_path, what):
    models = [shutil.copytree(name, tmp_path / "models" / Path(name).name) for name in tiny_models]
    (pairs := tmp_path / "pairs").mkdir()
    for split in ("gt", "w2s", "helpful", "validation", "test"):
        table = World().pairs(split, 60)[["prompt", "chosen", "rejected"]]
        table.to_json(pairs / f"{split}.jsonl", orient="records", lines=True)
    kit = Kit(list(map(str, models)), tmp_path, epochs=30, data=str(pairs))
    process = kit.start()
    kit.wait_for(kit.finished, process)
    gone = {"model": models[2], "data": pairs}[what]
    gone.rename(tmp_path / "elsewhere")
    text = ended(process, 600)
    assert process.returncode in (1, 2) and "Traceback" not in text and str(gone) in text, text
    done = kit.finished()
    (tmp_path / "elsewhere").rename(gone)
    kit.run()
    assert done and {name: kit.finished()[name] for name in done} == done


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_cell_says_in_one_line_what_is_finished_and_goes_on(tiny_models, tmp_path, workers):
    """In a kernel as JupyterLab has it, whose whole group of processes hears the interrupt."""
    given = small_params(tiny_models, tmp_path, workers=workers, epochs=4).model_dump(exclude_defaults=True)
    train = "len(lab.train(lab.direct_runs()))"
    sources = f"from w2s.lab import Lab\nlab = Lab.ready({given!r})", train, train
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    client = NotebookClient(notebook, allow_errors=True, timeout=300, kernel_name="python3")

    def stop() -> None:
        while not list(tmp_path.glob("runs/*/DONE")):
            time.sleep(0.05)
        os.killpg(client.km.provisioner.pgid, signal.SIGINT)

    threading.Thread(target=stop).start()
    client.execute(cwd=str(HOME))
    outputs = [[out for out in cell.outputs if out.output_type != "display_data"] for cell in notebook.cells]
    assert not [out for cell in outputs for out in cell if out.get("name") == "stderr"], outputs
    error, result = outputs[1][-1], outputs[2][-1]
    line = r"interrupted: [1-8] of 9 runs are finished and kept; run this cell again, and it goes on from there"
    assert len(error["traceback"]) == 1 and re.fullmatch(line, error["traceback"][0])
    assert int(result["data"]["text/plain"]) > 0
