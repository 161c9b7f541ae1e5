"""Runs on several processes at once: local workers, or those of a Dask scheduler."""

from __future__ import annotations

import logging
import signal
from asyncio import CancelledError
from collections.abc import Iterator
from concurrent.futures import CancelledError as FuturesCancelled  # of one, or of several
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dask
from distributed import Client, KilledWorker, WorkerPlugin, wait
from distributed.comm import CommClosedError

from w2s.fast import cpu
from w2s.files import spell_out
from w2s.params import ParameterError
from w2s.runs import code, store
from w2s.runs.execute import LACKS, RunFailed
from w2s.runs.progress import Progress
from w2s.runs.sharded import execute
from w2s.spec import RunSpec


class _Prepare(WorkerPlugin):
    def setup(self, worker) -> None:
        cpu.keep_memory()
        spell_out()
        logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started here does not hear the interrupt that a terminal or a notebook sends to all of its processes."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where children hear none
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_no_closing(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio is other than what an interrupted conversation with the workers leaves."""
    return not (record.exc_info and isinstance(record.exc_info[1], CommClosedError | CancelledError))


def train(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None, progress: Progress) -> dict[str, str]:
    """Train on local worker processes, or on those of a scheduler; a run whose worker is killed goes to another.

    Returns why each run that failed did, by name. Raises ConnectionError where the scheduler is gone.
    """
    failed: dict[str, str] = {}
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    # Torch's memory is none of Dask's business.
    settings = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")}
    for logger in ("distributed", "distributed.client"):  # what Dask would log in many lines is said in one below
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_no_closing)
    try:
        with dask.config.set(settings), ExitStack() as stack:
            with _deaf():
                client = stack.enter_context(Client(**({"address": scheduler} if scheduler else local)))
            if not scheduler:
                client.register_plugin(_Prepare())
            elif any(theirs != code.IMPORTED for theirs in client.run(lambda: code.IMPORTED).values()):
                raise ParameterError(f"scheduler = {scheduler!r}: a worker has other code; start it from this checkout")
            futures = {}
            for spec in todo:
                after = [futures[needed] for needed in spec.before if needed in futures]
                futures[spec] = client.submit(execute, spec, root, after, key=spec.name, pure=False)
            while futures:
                with suppress(TimeoutError):  # wake each second to show the steps
                    wait(list(futures.values()), timeout=1, return_when="FIRST_COMPLETED")
                for spec in sorted(futures, key=lambda spec: spec.name):
                    if futures[spec].done():
                        try:
                            futures.pop(spec).result()  # raises what the run raised, or one that it needs
                        except RunFailed as error:
                            failed[spec.name] = str(error) if str(error).startswith(spec.name) else LACKS
                        except KilledWorker as error:
                            n = error.allowed_failures + 1
                            failed[spec.name] = f"{n} workers were killed while they trained it (out of memory?)"
                        progress.finish(spec.name)
                    else:
                        progress.update(spec.name, *store.steps_logged(spec, root))
    except (CommClosedError, CancelledError, FuturesCancelled) as error:
        through = f" through {scheduler}" if scheduler else ""
        raise ConnectionError(f"the workers cannot be reached{through}; start them, and this, again") from error
    return failed
