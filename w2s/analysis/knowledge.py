"""Areas by what the language models knew before any fine-tuning, beside the areas by confidence; pocket world alone.

There every answer is followed by a reaction that tells the truth, so that `zoo.judge` can ask a language model
which of two answers is right. A model knows a pair when it judges it rightly, which is a matter of its body and
the same for all seeds. One that has no idea is right half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from w2s.analysis.pooled import POOLED, Counts, Sums, ratio_table, slope_table
from w2s.analysis.scoring import SETTING, comparisons, indicators
from w2s.deception import AREAS as BY_CONFIDENCE
from w2s.deception import areas, conflict_tax, right
from w2s.intervals import ratio

AREAS = ("S-knows/W-knows", "S-knows/W-not", "S-not/W-knows", "S-not/W-not")
WAYS = ("confidence", "knowledge", "sure_knowledge")
ALWAYS = ("pairs", "reference", "student", "tax")
BY_WAY = ("weak", "ceiling", "blind_tax", "blind_at_risk")


def knowing(predictions: pd.DataFrame, judged: pd.DataFrame, reference="none") -> Iterator[tuple[dict, dict, dict]]:
    """`deception.comparisons`, with the P of the two language models beside those of the four runs.

    Yields setting, probabilities, and {"weak", "ceiling"} of the language models, (n,) each, joined by id;
    settings of a model that was not judged are left out.
    """
    chances = judged.pivot(index="id", columns="model", values="probability").sort_index()
    for setting, p in comparisons(predictions, reference):
        if {setting["weak"], setting["strong"]} <= set(chances):
            own = {"weak": chances[setting["weak"]].to_numpy(), "ceiling": chances[setting["strong"]].to_numpy()}
            yield setting, p, own


def count_knowledge(
    predictions: pd.DataFrame, judged: pd.DataFrame, threshold=0.75, known_by="confidence", reference="none"
) -> Counts:
    """`pooled.count`, with weak, ceiling, blind_tax and blind_at_risk counted in each of WAYS (as <name>_<way>).

    By knowledge a pair is known where the language model judges it rightly, by sure_knowledge where its P
    reaches `threshold`; weak and ceiling are then right judgements, so that their difference is one of knowledge.
    """
    settings, counted = [], []
    for setting, p, own in knowing(predictions, judged, reference):
        ways = [indicators(p, threshold, known_by)]
        ways += [indicators(p | own, level, "gold") for level in (0.5, threshold)]
        row = {name: ways[0][name] for name in ALWAYS}
        row |= {f"{name}_{way}": of[name] for way, of in zip(WAYS, ways, strict=True) for name in BY_WAY}
        settings.append(setting)
        counted.append(row)
    stacked = {name: np.stack([row[name] for row in counted]) for name in (counted[0] if counted else ())}
    return Counts(pd.DataFrame(settings, columns=SETTING), stacked)


def cross_table(
    predictions: pd.DataFrame, judged: pd.DataFrame, threshold=0.75, known_by="confidence", reference="none"
) -> pd.DataFrame:
    """The areas by confidence against those by knowledge, 16 rows a setting.

    Columns: SETTING, by_confidence, by_knowledge, pairs, at_risk (right by the reference) and tax, in pairs.
    """
    cells = pd.MultiIndex.from_product([BY_CONFIDENCE, AREAS], names=[f"by_{way}" for way in WAYS[:2]])
    tables = []
    for setting, p, own in knowing(predictions, judged, reference):
        known = areas(own["ceiling"], own["weak"], 0.5, "gold")
        pairs = pd.DataFrame(
            {
                "by_confidence": areas(p["ceiling"], p["weak"], threshold, known_by),
                "by_knowledge": np.array(AREAS)[[BY_CONFIDENCE.index(area) for area in known]],
                "pairs": 1,
                "at_risk": right(p["reference"]).astype(int),
                "tax": conflict_tax(p["reference"], p["student"]).astype(int),
            }
        )
        counted = pairs.groupby(cells.names).sum().reindex(cells, fill_value=0).reset_index()
        tables.append(counted.assign(**setting)[[*SETTING, *counted.columns]])
    return pd.concat(tables, ignore_index=True)


def scores_by_knowledge(counts: Counts, by=tuple(POOLED), bootstrap=2000, seed=0) -> pd.DataFrame:
    """Score, null and lift with areas in each of WAYS, one row a setting (or group of `by`) with a tax, and way.

    Over runs as in `pooled.pooled_table`. Columns: those of `by`, known_by, runs, seeds, pairs, tax (pairs of all
    runs), and with _low and _high tax_share, gap (of accuracy; of knowledge), score, null, lift and lost: the Score
    by confidence minus this one, in the same samples.
    """
    tables = [ratio_table(_by(counts, way), _parts, (), by, bootstrap, seed).assign(known_by=way) for way in WAYS]
    table = pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)
    table["tax"] = (table["tax_share"] * table["runs"] * table["pairs"]).round().astype(int)
    first = [*by, "known_by", "runs", "seeds", "pairs", "tax"]
    return table.loc[table["tax"] > 0, [*first, *table.columns.difference(first, sort=False)]].reset_index(drop=True)


def _by(counts: Counts, way: str) -> Counts:
    """The indicators of one of WAYS under the names of `deception.indicators`, and blind_by_confidence."""
    named = {name: counts.indicators[name] for name in ALWAYS} | {
        name: counts.indicators[f"{name}_{way}"] for name in BY_WAY
    }
    return Counts(counts.settings, named | {"blind_by_confidence": counts.indicators[f"blind_tax_{WAYS[0]}"]})


def _parts(sums: Sums) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    tax, blind, n = sums["tax"], sums["blind_tax"], sums["pairs"]
    even = np.nan_to_num(tax * ratio(sums["blind_at_risk"], sums["reference"]))
    parts = {"tax_share": (tax, n), "gap": (sums["ceiling"] - sums["weak"], n), "score": (blind, tax)}
    return parts | {"null": (even, tax), "lift": (blind, even), "lost": (sums["blind_by_confidence"] - blind, tax)}


def slopes(counts: Counts, bootstrap=2000, seed=0) -> pd.DataFrame:
    """`pooled.slope_table` of the Score in each of WAYS over two gaps: of accuracy (ceiling - weak), of knowledge.

    Columns: known_by, gap ("accuracy" or "knowledge"), and those of `slope_table`.
    """
    tables = []
    for way in WAYS:
        for gap, of in (("accuracy", WAYS[0]), ("knowledge", WAYS[1])):
            models = {name: counts.indicators[f"{name}_{of}"] for name in ("weak", "ceiling")}
            scored = Counts(counts.settings, _by(counts, way).indicators | models)
            tables.append(slope_table(scored, bootstrap, seed).assign(known_by=way, gap=gap))
    table = pd.concat(tables, ignore_index=True).sort_values("conflict", kind="stable", ignore_index=True)
    return table[
        ["conflict", "known_by", "gap", *table.columns.difference(["conflict", "known_by", "gap"], sort=False)]
    ]
