"""Label noise that costs as much as a conflict: what a tax of that size looks like where nothing deceives."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pandas as pd

from w2s.deception import conflict_tax
from w2s.runs import cluster
from w2s.spec import RunSpec
from w2s.study import Study

STEPS = 5  # trained students a setting; the share of turned labels is found to 1/64
MOST = 0.5  # with half of the labels turned round nothing is left of them


def matched_noise(
    study: Study, settings: dict[Hashable, tuple[RunSpec, RunSpec, Callable[[float], RunSpec]]]
) -> dict[Hashable, tuple[RunSpec, float]]:
    """The noisy student (and its share of turned labels) whose tax is nearest to another student's, by setting.

    A setting is the student that both are compared with, the other student, and the noisy one of a share. By bisection,
    on validation pairs alone.
    """
    chances = _validation(study, [run for reference, costly, _ in settings.values() for run in (reference, costly)])
    reference = {key: chances[before.name] for key, (before, *_) in settings.items()}
    wanted = {key: conflict_tax(reference[key], chances[costly.name]).sum() for key, (_, costly, _) in settings.items()}
    share, nearest = dict.fromkeys(settings, MOST / 2), {}
    for step in range(STEPS):
        noisy = {key: of_share(share[key]) for key, (*_, of_share) in settings.items()}
        chances = _validation(study, noisy.values())
        for key, spec in noisy.items():
            tax = conflict_tax(reference[key], chances[spec.name]).sum()
            found = (abs(tax - wanted[key]), share[key], spec)
            nearest[key] = min(nearest.get(key, found), found, key=lambda of: of[0])
            share[key] += MOST / 2 ** (step + 2) * (1 if tax < wanted[key] else -1)
    return {key: (spec, of_share) for key, (_, of_share, spec) in nearest.items()}


def _validation(study: Study, specs) -> pd.DataFrame:
    """P of every validation pair, one column a run."""
    table = cluster.results(study, {spec: {} for spec in specs})
    return table[table["split"] == "validation"].pivot(index="id", columns="run", values="probability")
