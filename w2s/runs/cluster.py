"""Many runs at once: an estimate first, progress meanwhile, on local workers or a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from w2s import models
from w2s.files import located
from w2s.params import ParameterError
from w2s.predict import with_probability
from w2s.runs import code, estimate, execute, frozen, sharded, store
from w2s.runs.progress import Progress
from w2s.spec import RunSpec
from w2s.study import Study


class Interrupted(KeyboardInterrupt):
    """Training that a person has stopped; a notebook shows its one line and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def run_all(specs: list[RunSpec], root: Path, workers: int = 1, scheduler: str | None = None) -> dict[str, str]:
    """Train every run that is not in the cache, teachers first, in `workers` processes of the runs' own threads.

    scheduler: address of a Dask scheduler whose workers share `root`, instead of local ones. A run that fails stops
    none but those that need it. Returns why each run that is missing is missing, by name.
    """
    todo = announce(specs, root, workers, scheduler)
    try:
        failed = _train(todo, root, min(workers, len(todo)), scheduler) if todo else {}
    except KeyboardInterrupt:
        done = sum(store.is_done(spec, root) for spec in {*specs, *todo})
        kept = f"interrupted: {done} of {len({*specs, *todo})} runs are finished and kept"
        raise Interrupted(f"{kept}; run this cell again, and it goes on from there") from None
    for name, why in failed.items():
        print(f"FAILED  {name}: {why.removeprefix(f'{name}: ')}", flush=True)
    return failed


def _train(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None) -> dict[str, str]:
    failed: dict[str, str] = {}
    with Progress([spec.name for spec in todo]) as progress:
        if workers > 1 or scheduler:
            from w2s.runs import workers as many  # imports of a second that a kernel with all runs goes without

            return many.train(todo, root, workers, scheduler, progress)
        for spec in todo:
            try:
                if any(needed.name in failed for needed in spec.before):
                    raise execute.RunFailed(execute.LACKS)
                sharded.execute(spec, root, report=partial(progress.update, spec.name))
            except execute.RunFailed as error:
                failed[spec.name] = str(error)
            progress.finish(spec.name)
    return failed


def results(study: Study, specs: dict[RunSpec, dict]) -> pd.DataFrame:
    """Train what is not in the cache, then return the predictions of all runs with their names.

    Where a run failed, students that nothing can be said of without it are left out; RunFailed where none is left.
    With `frozen`, nothing is trained: ParameterError for a run whose predictions do not ship with the kit.
    """
    p, load = study.params, frozen.load_predictions
    if not p.frozen:
        load = partial(store.load_predictions, root=study.root)
        store.store_data(study.root, study.data)
        adopt(study, specs)
        if failed := run_all(list(specs), study.root, p.workers, p.scheduler):
            specs = _comparable(study, specs)
        if not specs:
            raise execute.RunFailed(f"none of the runs is left: {next(iter(failed.values()))}")
    tables = [load(spec).assign(run=spec.name, **tags) for spec, tags in specs.items()]
    return judged(pd.concat(tables, ignore_index=True), study)


def adopt(study: Study, specs: Iterable[RunSpec]) -> None:
    """Take the finished runs of the cache that `read_from` names; ParameterError where there is none."""
    if study.params.read_from:
        source = located(study.params.read_from)
        if not (source / "runs").is_dir():
            raise ParameterError(f"read_from = {str(source)!r}: no runs there; name an outputs folder of the kit")
        if n := store.adopt(specs, study.root, source):
            print(f"{n} run{'s' * (n > 1)} taken from {source}", flush=True)


def judged(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Predictions with the probabilities that the study's `confidence` makes of their margins."""
    return with_probability(table, study.params.confidence, study.params.method, study.beta)


def _comparable(study: Study, specs: dict[RunSpec, dict]) -> dict[RunSpec, dict]:
    """The finished runs among `specs`; of students those whose ceiling and student without conflict are finished."""
    done = {spec: tags for spec, tags in specs.items() if store.is_done(spec, study.root)}
    references = [tags for tags in done.values() if tags.get("conflict") == "none"]

    def comparable(spec: RunSpec, tags: dict) -> bool:
        if tags.get("role") in (None, "gold", "control", "baseline"):
            return True
        ceiling = study.gold(spec.model, spec.seed)
        return (tags | {"conflict": "none"}) in references and store.is_done(ceiling, study.root)

    return {spec: tags for spec, tags in done.items() if comparable(spec, tags)}


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
    """The runs still to do, as `pending` orders them, checked by `estimate.check`; prints what they will cost."""
    todo = pending(specs, root)
    if todo:
        code.check()
    for line in store.why_again(todo, root):
        print(line, flush=True)
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
            if spec.name not in wanted or spec.save_model:  # one that keeps its model is both
                wanted[spec.name] = spec

    for spec in specs:
        add(spec)
    return sorted(wanted.values(), key=lambda s: (s.depth, -models.n_parameters(s.model)))
