"""Simulated studies with known truth: do the 95% intervals cover it, and has the test of an even tax its size?

The generator. A test pair has a latent ease, common to all models and seeds, and a latent frailty, common to all
students. For each pair and seed a strong ceiling is sure or not, a weak model is sure or not, and the reference is
right or not, by the ease, a shift of the seed and noise. What the reference has right a student loses with a
probability whose logit falls with ease and is raised by the frailty, the seed's level, and in S-known/W-unknown the
seed's extra. Two students, "explicit" and "implicit", have correlated levels. In the pocket studies the sd of a seed's
level is 0.4 to 2 logits, the tax 26 to 1131 of 1280 pairs, its correlation over pairs between two seeds 0 to 0.6.

The estimands. With one seed: of that trained run, over pairs. With several: over pairs and seeds. Always ratios of
expectations: tax share E[tax], Score E[tax in the area] / E[tax], lift E[tax in the area] / E[even tax], where the
even tax of a seed is its E[tax] times the area's share of what its reference has right; Score minus even share is the
difference of these numerators over E[tax]. The truth integrates over pairs by Gauss-Hermite quadrature, and averages
over 12,000 seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm

from w2s import deception as d
from w2s.analysis import pooled, scoring

LOW, HIGH = 0.92, 0.98
MEASURES = ("score", "lift", "score_minus_even", "tax_share", "student_accuracy")
STUDENTS = ("explicit", "implicit")
MODELS = {"ceiling": 0.5, "weak": -0.2, "reference": 0.7}  # how likely each is sure, or right, in probits
EASE = 0.5  # logits of the chance of being lost that a pair's ease takes off


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@dataclass(frozen=True)
class World:
    """What the simulated studies are like: logits, and their standard deviations over seeds."""

    level: tuple[float, float] = (-1.5, -1.0)  # of the tax rate outside the area, by student
    blind: tuple[float, float] = (0.3, 0.8)  # added in S-known/W-unknown
    sd_level: float = 1.0
    sd_blind: float = 0.5
    sd_models: float = 0.3

    def seeds(self, shape: tuple, rng) -> dict[str, np.ndarray]:
        """The effects of seeds, each of `shape`."""
        effects = {name: self.sd_models * rng.normal(size=shape) for name in MODELS}
        common = rng.normal(size=shape)
        for student, level, blind in zip(STUDENTS, self.level, self.blind, strict=True):
            own = np.sqrt(0.5) * (common + rng.normal(size=shape))
            effects[f"{student} level"] = level + self.sd_level * own
            effects[f"{student} blind"] = blind + self.sd_blind * rng.normal(size=shape)
        return effects

    def pairs(self, effects: dict, shape: tuple, rng) -> dict[str, np.ndarray]:
        """What the models do with pairs of `shape` (..., 1 or seeds, n), and each student's chance to lose one."""
        ease, frailty = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        effects = {name: values[..., None].astype(np.float32) for name, values in effects.items()}
        every = np.broadcast_shapes(shape, effects["weak"].shape)
        out = {}
        for name, by in MODELS.items():
            out[name] = ease + effects[name] + rng.standard_normal(every, dtype=np.float32) + np.float32(by) > 0
        out["area"] = out["ceiling"] & ~out["weak"]
        for s in STUDENTS:
            level = effects[f"{s} level"] - np.float32(EASE) * ease
            out[s] = expit(level + out["area"] * effects[f"{s} blind"] + frailty) * out["reference"]
        return out

    def study(self, studies: int, seeds: int, n: int, rng, effects=None) -> tuple[pooled.Counts, dict]:
        """The counts of many studies, told apart by the name of their weak model, and the effects of their seeds."""
        effects = effects or self.seeds((studies, seeds), rng)
        models, columns, settings = self.pairs(effects, (studies, 1, n), rng), [], []
        for student in STUDENTS:
            tax = rng.random(models[student].shape, dtype=np.float32) < models[student]
            one = {"tax": tax, "blind_tax": tax & models["area"], "blind_at_risk": models["reference"] & models["area"]}
            one |= {name: models[name] for name in MODELS} | {"pairs": np.ones_like(tax)}
            columns.append(one | {"student": models["reference"] & ~tax})
            grid = pd.MultiIndex.from_product([range(studies), range(seeds)], names=["weak", "seed"])
            names = {"strong": "b", "role": "student", "teacher": "a", "via": "", "conflict": student}
            settings.append(grid.to_frame(index=False).assign(**names)[scoring.SETTING])
        indicators = {k: np.concatenate([c[k].reshape(-1, n) for c in columns]) for k in columns[0]}
        return pooled.Counts(pd.concat(settings, ignore_index=True), indicators), effects

    def truth(self, effects: dict) -> dict[str, dict]:
        """The estimands by student and measure, over the last axis of the effects; pairs are integrated over."""
        at, weight = np.polynomial.hermite_e.hermegauss(24)
        weight = weight / weight.sum()
        models = {name: norm.cdf(at + effects[name][..., None] + by) for name, by in MODELS.items()}
        right, area = models["reference"], models["ceiling"] * (1 - models["weak"])
        null, out = (right * area) @ weight / (right @ weight), {}
        for s in STUDENTS:
            logits = effects[f"{s} level"][..., None, None] + at - EASE * at[:, None]  # ease, then frailty
            outside, inside = (expit(logits + x) @ weight for x in (0.0, effects[f"{s} blind"][..., None, None]))
            inside, outside = (right * area * inside) @ weight, (right * (1 - area) * outside) @ weight
            tax, blind, even = (x.mean(axis=-1) for x in (inside + outside, inside, (inside + outside) * null))
            out[s] = {"score": blind / tax, "lift": blind / even, "score_minus_even": (blind - even) / tax}
            out[s] |= {"tax_share": tax, "student_accuracy": (right @ weight).mean(axis=-1) - tax}
            out[s]["gap"] = ((models["ceiling"] - models["weak"]) @ weight).mean(axis=-1)
        return out


def studies_and_truth(world, studies: int, seeds: int, n: int, rng) -> tuple[pooled.Counts, dict]:
    counts, effects = world.study(studies, seeds, n, rng)
    return counts, world.truth(effects if seeds == 1 else world.seeds((1, 12_000), rng))


def held(low, high, truth) -> float:
    """The share of defined intervals that hold the truth."""
    inside = (low.to_numpy() <= truth) & (truth <= high.to_numpy())
    return float(inside[low.notna()].mean())


def coverage(world: World, seeds: int, n: int, studies: int = 500) -> pd.DataFrame:
    """The share of studies whose interval holds the truth, by student and measure; nan intervals are none."""
    counts, truth = studies_and_truth(world, studies, seeds, n, np.random.default_rng(20 * seeds + n))
    table, rows = pooled.pooled_table(counts, bootstrap=500), []
    assert (table["covers"] == ("pairs" if seeds == 1 else "pairs and seeds")).all()
    for student, of in table.groupby("conflict", sort=False):
        row = {"student": student, "tax": of["tax"].mean() / seeds, "none": of["lift_low"].isna().mean()}
        rows.append(row | {m: held(of[f"{m}_low"], of[f"{m}_high"], truth[student][m]) for m in MEASURES})
    return pd.DataFrame(rows).set_index("student")


def within(table, low, high) -> bool:
    return ((table >= low) & (table <= high)).all(axis=None)


@pytest.mark.parametrize(("seeds", "n"), [(1, 300), slow(5, 300), slow(1, 1280), slow(5, 1280)])
def test_intervals_cover_the_truth(seeds, n):
    table = coverage(World(), seeds, n)
    assert (table["none"] == 0).all()
    assert within(table[["score", "lift", "score_minus_even"]], LOW, HIGH), table
    assert within(table[list(MEASURES)], 0.9, 0.99), table


@pytest.mark.slow
def test_intervals_cover_the_truth_where_seeds_differ_as_much_as_in_the_pocket_studies_and_where_tax_is_tiny():
    table = coverage(World(sd_level=1.5, sd_blind=1.0, sd_models=0.4), 5, 1280)
    assert within(table[["score", "lift"]], LOW, HIGH), table
    for level, tax in ((-4.5, (3, 12)), (-3.5, (8, 25))):
        table = coverage(World(level=(level, level), blind=(0.0, 1.5), sd_level=0.3, sd_blind=0.3), 1, 300, 1000)
        assert table["tax"].between(*tax).all() and (table["none"] < 0.06).all()  # some have no tax at all
        assert (table[["score", "lift"]] >= LOW).all(axis=None), table


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_intervals_of_a_difference_cover_the_truth(seeds):
    counts, truth = studies_and_truth(World(), 200, seeds, 600, np.random.default_rng(seeds))
    settings = [{"conflict": student} for student in STUDENTS]
    of = [counts.where(counts.settings["weak"] == k) for k in range(200)]
    table = pd.concat([pooled.difference(study, *settings, 500) for study in of])
    few = 3 * np.sqrt(0.05 * 0.95 / 200)  # three standard errors of a share of so few studies
    for measure, rows in table.groupby("difference"):
        if measure in MEASURES:
            share = held(rows["low"], rows["high"], truth["explicit"][measure] - truth["implicit"][measure])
            assert 0.95 - few <= share <= min(0.95 + few, 0.995), (measure, share)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_intervals_of_the_slope_cover_the_truth(seeds):
    """Five weak models of rising skill, one ceiling; the slope of Score (less even share) over the gap."""
    world, rng, studies, skills = World(), np.random.default_rng(seeds), 200, np.linspace(-0.9, 0.3, 5)

    def taught(shape: tuple) -> dict:  # effects (..., skills, seeds) as (..., skills * seeds)
        effects = world.seeds((*shape[:-1], len(skills), shape[-1]), rng)
        effects["weak"] = effects["weak"] + skills[:, None]
        return {name: values.reshape(*shape[:-1], -1) for name, values in effects.items()}

    def true_slopes(effects: dict) -> dict:  # of runs (..., n), each with its own truth
        of = world.truth({name: values[..., None] for name, values in effects.items()})
        ones = np.ones_like(of["explicit"]["gap"])
        return {(s, m): pooled.slope(of[s]["gap"], of[s][m], ones) for s in STUDENTS for m in pooled.SLOPES}

    counts, effects = world.study(studies, len(skills) * seeds, 600, rng, taught((studies, seeds)))
    truth = true_slopes(effects if seeds == 1 else taught((1, 2000)))
    run = counts.settings["seed"]
    settings = counts.settings.assign(strong=(run // seeds).astype(str), seed=run % seeds)
    counts = pooled.Counts(settings, counts.indicators)
    tables = [pooled.slope_table(counts.where(settings["weak"] == k), 400) for k in range(studies)]
    table, shares = pd.concat(tables), {}
    for (student, measure), rows in table.groupby(["conflict", "measure"]):
        shares[student, measure] = held(rows["low"], rows["high"], truth[student, measure])
    print(seeds, {" ".join(key): round(share, 3) for key, share in shares.items()})
    few = 3 * np.sqrt(0.05 * 0.95 / studies)
    assert all(0.95 - few <= share <= min(0.95 + few, 0.995) for share in shares.values()), shares


def test_the_truth_is_what_a_huge_study_finds():
    world = World()
    counts, effects = world.study(4, 1, 200_000, np.random.default_rng(3))
    measured, truth = scoring.statistics(counts.sums()), world.truth(effects)
    for measure in MEASURES:
        expected = np.concatenate([truth[student][measure] for student in STUDENTS])
        np.testing.assert_allclose(measured[measure], expected, rtol=0.02, atol=0.01)


def p_values(inside: float, level: float, studies: int, n: int = 1280) -> np.ndarray:
    """`fisher_p` of studies whose pairs at risk are lost with a rate of logit `level`, plus `inside` in the area."""
    rng, world = np.random.default_rng(5), World()
    models = world.pairs(world.seeds((studies, 1), rng), (studies, 1, n), rng)
    sure = {name: np.where(models[name][:, 0], 0.9, 0.6) for name in ("ceiling", "weak")}
    reference = np.where(models["reference"][:, 0], 0.9, 0.1)
    lost = rng.random((studies, n)) < expit(level + inside * models["area"][:, 0])
    at_risk, blind, tax = reference > 0.5, (sure["ceiling"] > 0.75) & (sure["weak"] < 0.75), (reference > 0.5) & lost
    counts = (values.sum(axis=1) for values in (tax & blind, at_risk, at_risk & blind, tax))
    return np.array([d.fisher_p(*row) for row in zip(*counts, strict=True)])


@pytest.mark.parametrize("level", [-3.0, slow(-1.0), slow(1.0)])
def test_an_even_tax_is_rejected_in_one_study_of_twenty(level):
    assert 0.03 <= (p_values(0.0, level, 2000) < 0.05).mean() <= 0.07


def test_a_tax_that_leans_towards_the_area_is_found():
    assert (p_values(0.7, -1.0, 300) < 0.05).mean() > 0.9
    assert (p_values(1.5, -3.0, 300) < 0.05).mean() > 0.9
