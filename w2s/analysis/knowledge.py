"""Areas by what the language models knew before any fine-tuning, beside the areas by confidence; pocket world alone.

There a reaction that tells the truth follows every answer, so that `zoo.judge` can ask a language model which of two
answers is right: then it knows the pair, whatever the seed. One that has no idea is right half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd

from w2s.analysis.pooled import POOLED, Counts, Sums, even_tax, ratio_table, slope_table, stack
from w2s.analysis.scoring import SETTING, comparisons, indicators
from w2s.deception import AREAS as BY_CONFIDENCE
from w2s.deception import areas, conflict_tax, right

AREAS = ("S-knows/W-knows", "S-knows/W-not", "S-not/W-knows", "S-not/W-not")
WAYS = ("confidence", "knowledge", "sure_knowledge")
ALWAYS = ("pairs", "reference", "student", "tax")
BY_WAY = ("weak", "ceiling", "blind_tax", "blind_at_risk")


def _knowing(predictions: pd.DataFrame, judged: pd.DataFrame, reference: str) -> Iterator[tuple[dict, dict, dict]]:
    """`scoring.comparisons` of judged models, and P of the language models of weak and ceiling, (n,) each, by id."""
    chances = judged.pivot(index="id", columns="model", values="probability").sort_index()
    for setting, p in comparisons(predictions, reference):
        models = {"weak": setting["weak"], "ceiling": setting["strong"]}
        if set(models.values()) <= set(chances):
            yield setting, p, {part: chances[model].to_numpy() for part, model in models.items()}


def count_knowledge(predictions, judged, threshold=0.75, known_by="confidence", reference="none") -> Counts:
    """`pooled.count_students`, with BY_WAY counted in each of WAYS (as <name>_<way>).

    By knowledge a pair is known where the language model judges it rightly, by sure_knowledge where its P
    reaches `threshold`; weak and ceiling are then right judgements, so that their difference is one of knowledge.
    """
    runs = []
    for setting, p, own in _knowing(predictions, judged, reference):
        ways = [indicators(p, threshold, known_by)]
        ways += [indicators(p | own, level, "gold") for level in (0.5, threshold)]
        counted = {name: ways[0][name] for name in ALWAYS}
        runs.append((setting, counted | {f"{name}_{way}": of[name] for way, of in zip(WAYS, ways) for name in BY_WAY}))
    return stack(runs)


def cross_table(predictions, judged, threshold=0.75, known_by="confidence", reference="none") -> pd.DataFrame:
    """Pairs, at_risk (right by the reference) and tax in areas by confidence and by knowledge, 16 rows a setting."""
    cells = pd.MultiIndex.from_product([BY_CONFIDENCE, AREAS], names=["by_confidence", "by_knowledge"])
    by_knowledge, tables = dict(zip(BY_CONFIDENCE, AREAS)), []
    for setting, p, own in _knowing(predictions, judged, reference):
        pairs = pd.DataFrame({"by_confidence": areas(p["ceiling"], p["weak"], threshold, known_by)})
        pairs["by_knowledge"] = [by_knowledge[area] for area in areas(own["ceiling"], own["weak"], 0.5, "gold")]
        pairs["pairs"], pairs["at_risk"] = 1, right(p["reference"]).astype(int)
        pairs["tax"] = conflict_tax(p["reference"], p["student"]).astype(int)
        counted = pairs.groupby(cells.names).sum().reindex(cells, fill_value=0).reset_index()
        tables.append(counted.assign(**setting)[[*SETTING, *counted.columns]])
    return pd.concat(tables, ignore_index=True)


def scores_by_knowledge(counts: Counts, by=tuple(POOLED), bootstrap=2000) -> pd.DataFrame:
    """Score, even share and lift with areas in each of WAYS, one row a setting (or group of `by`) with a tax, and way.

    Over runs as in `pooled.pooled_table`. tax is that of all runs, gap one of accuracy (of knowledge), lost the Score
    by confidence minus this one, in the same samples.
    """
    tables = []
    for way in WAYS:
        table = ratio_table(_by(counts, way), _parts, (), by, bootstrap)
        tax = (table["tax_share"] * table["runs"] * table["pairs"]).round().astype(int)
        table.insert(len(by), "known_by", way)
        table.insert(len(by) + 4, "tax", tax)
        tables.append(table[tax > 0])
    return pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)


def _by(counts: Counts, way: str) -> Counts:
    """The indicators of one of WAYS under the names of `scoring.indicators`, and blind_by_confidence."""
    named = {name: counts.indicators[name] for name in ALWAYS}
    named |= {name: counts.indicators[f"{name}_{way}"] for name in BY_WAY}
    return Counts(counts.settings, named | {"blind_by_confidence": counts.indicators["blind_tax_confidence"]})


def _parts(sums: Sums) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    tax, blind, even, n = sums["tax"], sums["blind_tax"], even_tax(sums), sums["pairs"]
    gap, lost = sums["ceiling"] - sums["weak"], sums["blind_by_confidence"] - blind
    parts = {"tax_share": (tax, n), "gap": (gap, n), "score": (blind, tax), "even_share": (even, tax)}
    return parts | {"lift": (blind, even), "lost": (lost, tax)}


def slopes(counts: Counts, bootstrap=2000) -> pd.DataFrame:
    """`pooled.slope_table` of the Score in each of WAYS (known_by) over two gaps: of "accuracy", of "knowledge"."""
    tables = []
    for way, (gap, of) in product(WAYS, (("accuracy", "confidence"), ("knowledge", "knowledge"))):
        models = {name: counts.indicators[f"{name}_{of}"] for name in ("weak", "ceiling")}
        table = slope_table(Counts(counts.settings, _by(counts, way).indicators | models), bootstrap)
        table.insert(1, "known_by", way)
        table.insert(2, "gap", gap)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).sort_values("conflict", kind="stable", ignore_index=True)
