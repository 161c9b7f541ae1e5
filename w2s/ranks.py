"""Several processes that do one job together: started, watched, and ended with the first that fails."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from w2s.files import write_atomic

POLL_SECONDS = 0.1


def launch(job: Callable[[], None], ranks: int, threads: int = 1, watch: Callable[[], None] = lambda: None) -> None:
    """Call `job`, which must pickle, in `ranks` processes at once, and `watch` now and then in this one.

    Each finds its rank where torch.distributed looks for it, and ends with this process, however that ends.
    They are plain child processes: multiprocessing starts none from a worker of Dask.

    Raises:
        Exception: what the first rank to fail raised, with its traceback as a note.
        RuntimeError: a rank was ended from outside; with the end of its output.
    """
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), _free_port()
        (folder / "job").write_bytes(pickle.dumps(job))
        processes = [stack.enter_context(_start(folder, rank, ranks, port, threads)) for rank in range(ranks)]
        stack.callback(lambda: [process.kill() for process in processes])  # also after Ctrl-C
        while any(process.poll() is None for process in processes):
            _raise_failure(processes, folder)
            watch()
            time.sleep(POLL_SECONDS)
        _raise_failure(processes, folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(folder: Path, rank: int, ranks: int, port: int, threads: int) -> subprocess.Popen:
    """The process of one rank; its standard input says when this process ends."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    settings = {**places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    with open(folder / f"{rank}.out", "w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "-c", f"from w2s import ranks; ranks.main({str(folder)!r}, {rank})"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {key: str(value) for key, value in settings.items()},
        )


def _raise_failure(processes: list[subprocess.Popen], folder: Path) -> None:
    """Raise what ended the first rank that failed, if one did."""
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    killed = [rank for rank in failed if not (folder / f"{rank}.error").exists()]
    if killed:  # of which the others can only have failed in turn
        code, words = processes[killed[0]].returncode, (folder / f"{killed[0]}.out").read_text(errors="replace")
        raise RuntimeError(
            f"rank {killed[0]} of {len(processes)} was ended from outside with exit code {code} (out of memory?); "
            f"its last words: {' '.join(words.split())[-300:] or 'none'}"
        )
    if failed:
        errors = [folder / f"{rank}.error" for rank in failed]
        raise pickle.loads(min(errors, key=lambda file: file.stat().st_mtime_ns).read_bytes())


def main(folder: str, rank: int) -> None:
    """What the process of a rank does: the job, and leave behind what it raises."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pickle.loads((Path(folder) / "job").read_bytes())()
    except BaseException as error:
        content = _pickled(error)
        write_atomic(Path(folder) / f"{rank}.error", lambda path: path.write_bytes(content))
        os._exit(1)
    os._exit(0)  # the usual end can abort in the threads of a process group


def _end_with_parent() -> None:
    """Standard input closes when the parent ends, of whatever cause."""
    sys.stdin.buffer.read()
    os._exit(1)


def _pickled(error: BaseException) -> bytes:
    """An exception with its traceback as a note; a RuntimeError with its words where it does not pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note("".join(traceback.format_exception(error)))
    return pickle.dumps(error)
