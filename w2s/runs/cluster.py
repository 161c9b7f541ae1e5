"""Many runs at once: an estimate first, progress meanwhile, on local workers or a Dask cluster."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from w2s import models
from w2s.files import Progress
from w2s.predict import with_probability
from w2s.runs import estimate, execute, frozen, store
from w2s.spec import RunSpec
from w2s.study import Study


def run_all(specs: list[RunSpec], root: Path, workers: int = 1, scheduler: str | None = None) -> None:
    """Train every run that is not in the cache, teachers first; nothing is trained twice.

    Args:
        workers: processes on this machine, each with the runs' own number of threads.
        scheduler: address of a Dask scheduler whose workers share `root`; instead of local ones.
    """
    todo = checked(specs, root, workers, scheduler)
    announce(todo, len(set(specs)), root, workers, scheduler)
    if not todo:
        return
    workers = min(workers, len(todo))
    with Progress([spec.name for spec in todo]) as progress:
        if workers == 1 and scheduler is None:
            for spec in todo:
                execute.execute(spec, root, report=partial(progress.update, spec.name))
                progress.finish(spec.name)
        else:
            _on_cluster(todo, root, workers, scheduler, progress)


def results(study: Study, specs: dict[RunSpec, dict]) -> pd.DataFrame:
    """Train what is not in the cache, then return the predictions of all runs with their names.

    With `frozen`, nothing is trained: the predictions are those that ship with the kit.

    Raises:
        ParameterError: `frozen`, and a run that does not ship.
    """
    p = study.params
    if p.frozen:
        load = frozen.load_predictions
    else:
        store.store_data(study.root, study.data)
        run_all(list(specs), study.root, p.workers, p.scheduler)
        load = partial(store.load_predictions, root=study.root)
    tables = [load(spec).assign(run=spec.name, **tags) for spec, tags in specs.items()]
    return with_probability(pd.concat(tables, ignore_index=True), p.confidence, p.method, study.beta)


def helpful_pairs(study: Study, times: float) -> dict[str, Any]:
    """The fields of a RunSpec for `times` as many helpful pairs as the study has, the same ones first.

    Up to once, the study's own are cut. For more, they are read again with a larger n_helpful; all other pairs stay
    the same, and so do the runs that teach.

    Raises:
        ParameterError: the data have fewer.
    """
    n = round(times * len(study.data.helpful))
    if n <= len(study.data.helpful):
        return {} if n == len(study.data.helpful) else {"n_helpful": n}
    larger = Study.open(study.params.model_copy(update={"n_helpful": n}))
    store.store_data(study.root, larger.data)
    return {"helpful_from": larger.data.fingerprint}


def checked(specs: list[RunSpec], root: Path, workers: int, scheduler: str | None) -> list[RunSpec]:
    """The runs still to do, as `pending` orders them.

    Raises:
        ParameterError: they cannot fit, as `estimate.check` finds.
    """
    todo = pending(specs, root)
    estimate.check(todo, root, workers, scheduler)
    return todo


def announce(todo: list[RunSpec], wanted: int, root: Path, workers: int, scheduler: str | None) -> None:
    """Print what the runs still to do, of those that are wanted, will cost."""
    print(estimate.forecast(todo, wanted, root, workers, scheduler), flush=True)


def pending(specs: list[RunSpec], root: Path) -> list[RunSpec]:
    """The runs still to do, their teachers included, in an order that has teachers first."""
    wanted: dict[str, RunSpec] = {}

    def add(spec: RunSpec) -> None:
        if not store.is_done(spec, root):
            for needed in spec.before:
                add(needed)
            wanted.setdefault(spec.name, spec)

    for spec in specs:
        add(spec)
    return sorted(wanted.values(), key=lambda s: (s.depth, -models.n_parameters(s.model)))


def _on_cluster(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None, progress: Progress) -> None:
    """Train on local worker processes, or on those of a scheduler."""
    import dask
    from distributed import Client, LocalCluster, wait

    # Torch's memory is none of Dask's business.
    settings = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        if scheduler is None:
            scheduler = stack.enter_context(
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            )
        client = stack.enter_context(Client(scheduler))
        futures = {}
        for spec in todo:
            after = [futures[needed.name] for needed in spec.before if needed.name in futures]
            futures[spec.name] = client.submit(execute.execute, spec, root, after, key=spec.name, pure=False)
        left = set(futures)
        while left:
            with suppress(TimeoutError):  # wake each second to show the steps
                wait([futures[name] for name in left], timeout=1, return_when="FIRST_COMPLETED")
            for name in sorted(left):
                if futures[name].done():
                    futures[name].result()  # raises what the run raised
                    progress.finish(name)
                    left.remove(name)
                elif any(steps := store.steps_logged(root / "runs" / name)):
                    progress.update(name, *steps)
