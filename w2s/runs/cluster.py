"""Many runs at once: an estimate first, progress meanwhile, on local workers or a Dask cluster."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from w2s import models
from w2s.files import Progress
from w2s.predict import with_probability
from w2s.runs import estimate, execute, frozen, sharded, store
from w2s.spec import RunSpec
from w2s.study import Study


def run_all(specs: list[RunSpec], root: Path, workers: int = 1, scheduler: str | None = None) -> None:
    """Train every run that is not in the cache, teachers first, in `workers` processes of the runs' own threads.

    scheduler: address of a Dask scheduler whose workers share `root`, instead of local ones.
    """
    todo = announce(specs, root, workers, scheduler)
    if not todo:
        return
    workers = min(workers, len(todo))
    with Progress([spec.name for spec in todo]) as progress:
        if workers > 1 or scheduler:
            _on_cluster(todo, root, workers, scheduler, progress)
        else:
            for spec in todo:
                _trainer(spec)(spec, root, report=partial(progress.update, spec.name))
                progress.finish(spec.name)


def results(study: Study, specs: dict[RunSpec, dict]) -> pd.DataFrame:
    """Train what is not in the cache, then return the predictions of all runs with their names.

    Raises:
        ParameterError: with `frozen`, where nothing is trained, a run whose predictions do not ship with the kit.
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

    More than it has are read anew (ParameterError: the data have fewer); all other pairs and teachers stay the same.
    """
    own, n = len(study.data.helpful), round(times * len(study.data.helpful))
    if n <= own:
        return {} if n == own else {"n_helpful": n}
    larger = Study.open(study.params.model_copy(update={"n_helpful": n}))
    store.store_data(study.root, larger.data)
    return {"helpful_from": larger.data.fingerprint}


def announce(specs: list[RunSpec], root: Path, workers: int, scheduler: str | None) -> list[RunSpec]:
    """The runs still to do, as `pending` orders and `estimate.check` allows them; prints what they will cost."""
    todo = pending(specs, root)
    estimate.check(todo, root, workers, scheduler)
    print(estimate.forecast(todo, len(set(specs)), root, workers, scheduler), flush=True)
    return todo


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


def _trainer(spec: RunSpec):
    return sharded.execute if spec.shards > 1 else execute.execute


def _on_cluster(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None, progress: Progress) -> None:
    """Train on local worker processes, or on those of a scheduler."""
    import dask
    from distributed import Client, wait

    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    # Torch's memory is none of Dask's business.
    settings = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")}
    with dask.config.set(settings), Client(**({"address": scheduler} if scheduler else local)) as client:
        futures = {}
        for spec in todo:
            after = [futures[needed.name] for needed in spec.before if needed.name in futures]
            futures[spec.name] = client.submit(_trainer(spec), spec, root, after, key=spec.name, pure=False)
        while futures:
            with suppress(TimeoutError):  # wake each second to show the steps
                wait(list(futures.values()), timeout=1, return_when="FIRST_COMPLETED")
            for name in sorted(futures):
                if futures[name].done():
                    futures.pop(name).result()  # raises what the run raised
                    progress.finish(name)
                elif any(steps := store.steps_logged(root / "runs" / name)):
                    progress.update(name, *steps)
