"""Label noise that costs as much as a conflict: what a tax of that size looks like where nothing deceives."""

from __future__ import annotations

import pandas as pd

from w2s.deception import conflict_tax
from w2s.runs import cluster
from w2s.spec import RunSpec
from w2s.study import Study

STEPS = 5  # trained students a setting; the share of turned labels is found to 1/64
MOST = 0.5  # with half of the labels turned round nothing is left of them


def matched_noise(study: Study, settings: list[tuple[str, str, str, int]]) -> dict[tuple, tuple[RunSpec, float]]:
    """The noisy student (and its share of turned labels) whose tax is nearest to the conflict's, for each setting.

    A setting is (weak, strong, conflict, seed). By bisection over `Study.noisy`, on validation pairs alone.
    """
    plain = {setting: study.student(*setting[:2], "none", setting[3]) for setting in settings}
    under = {setting: study.student(*setting) for setting in settings}
    chances = _validation(study, [*plain.values(), *under.values()])
    reference = {setting: chances[spec.name] for setting, spec in plain.items()}
    wanted = {setting: conflict_tax(reference[setting], chances[spec.name]).sum() for setting, spec in under.items()}
    share, nearest = dict.fromkeys(settings, MOST / 2), {}
    for step in range(STEPS):
        noisy = {(w, s, c, seed): study.noisy(w, s, share[w, s, c, seed], seed) for w, s, c, seed in settings}
        chances = _validation(study, noisy.values())
        for setting, spec in noisy.items():
            tax = conflict_tax(reference[setting], chances[spec.name]).sum()
            found = (abs(tax - wanted[setting]), share[setting], spec)
            nearest[setting] = min(nearest.get(setting, found), found, key=lambda of: of[0])
            share[setting] += MOST / 2 ** (step + 2) * (1 if tax < wanted[setting] else -1)
    return {setting: (spec, of_share) for setting, (_, of_share, spec) in nearest.items()}


def _validation(study: Study, specs) -> pd.DataFrame:
    """P of every validation pair, one column a run."""
    table = cluster.results(study, {spec: {} for spec in specs})
    return table[table["split"] == "validation"].pivot(index="id", columns="run", values="probability")
