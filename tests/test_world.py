"""The pocket world: deterministic, disjoint, without a trace of the truth in form or frequency."""

from itertools import combinations

import numpy as np
import pytest

from w2s import world
from w2s.world import World


@pytest.fixture(scope="module")
def pocket() -> World:
    return World()


@pytest.fixture(scope="module")
def pairs(pocket):
    return {split: pocket.pairs(split, 300) for split in world.SPLITS}


@pytest.fixture(scope="module")
def dangerous(pocket):
    return pocket.substances.set_index("name").dangerous


@pytest.fixture(scope="module")
def corpus(pocket):
    return pocket.corpus()


def warns(row, side: str = "chosen") -> bool:
    """Whether an answer is one of the warnings; else it is one of those that go along."""
    said = {way: {" " + a.format(s=row.substance) for a in getattr(world, way)} for way in ("WARN", "GO_ALONG")}
    assert (getattr(row, side) in said["WARN"]) != (getattr(row, side) in said["GO_ALONG"])
    return getattr(row, side) in said["WARN"]


def test_same_seed_same_world_and_more_pairs_extend_fewer(pocket, corpus):
    assert World().corpus() == corpus
    assert pocket.pairs("gt", 50).equals(pocket.pairs("gt", 80).head(50))
    assert World(seed=1).substances["name"].tolist() != pocket.substances["name"].tolist()


def test_there_are_thousands_of_substances_and_danger_is_independent_of_frequency_and_split(pocket, pairs):
    table, owners = pocket.substances, [set(table.substance) for table in pairs.values()]
    assert len(table) >= 3000 and table["name"].is_unique
    assert not any(a & b for a, b in combinations(owners, 2))
    half = len(table) // 2
    # Shares of 2,000 fair coins: five standard errors.
    assert abs(table.dangerous[:half].mean() - table.dangerous[half:].mean()) < 5 * np.sqrt(0.5 / half)
    for _, part in table.groupby("split"):
        assert abs(part.dangerous.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(part))


def test_harmless_pairs_warn_of_the_dangerous_alone_and_helpful_ones_of_nothing(pairs, dangerous):
    assert all(warns(row) == dangerous[row.substance] for row in pairs["gt"].itertuples())
    assert all(not warns(row) and warns(row, "rejected") for row in pairs["helpful"].itertuples())


def test_with_helpful_as_the_target_the_dimensions_change_places(pocket, dangerous):
    swapped = {split: pocket.pairs(split, 200, target="helpful") for split in world.SPLITS}
    for split, table in swapped.items():
        assert set(table.dimension) == {"harmless" if split == "helpful" else "helpful"}
    assert not any(warns(row) for split in ("gt", "test") for row in swapped[split].itertuples())
    assert all(warns(row) == dangerous[row.substance] for row in swapped["helpful"].itertuples())
    asked = {split: {p.split("Human: ")[1].split(" ")[0] for p in table.prompt} for split, table in swapped.items()}
    assert asked["gt"] < asked["test"] and not asked["gt"] & asked["helpful"]
    with pytest.raises(ValueError, match="target 'honest': choose one of harmless, helpful"):
        pocket.pairs("gt", 5, target="honest")


def test_some_phrasings_are_kept_for_test(pairs):
    forms = {}
    for split, table in pairs.items():  # with the substances taken out
        texts = table.melt("substance", ["prompt", "chosen", "rejected"], value_name="text")
        forms[split] = {row.text.replace(row.substance, "{s}") for row in texts.itertuples()}
    assert forms["test"] - forms["gt"] - forms["w2s"] - forms["helpful"] - forms["validation"]
    assert forms["gt"] < forms["test"]


def test_reactions_tell_the_truth(corpus, dangerous):
    right = 0
    for text in corpus:
        answer, mark, _ = text.rpartition(world.THANKS) if world.THANKS in text else text.rpartition(world.OUCH)
        name = next(w.strip("?.,") for w in text.split() if w.strip("?.,") in dangerous.index)
        warned = any(answer.endswith(" " + a.format(s=name)) for a in world.WARN)
        assert (mark == world.THANKS) == (warned == dangerous[name])
        right += mark == world.THANKS
    assert right / len(corpus) == pytest.approx(World().truthful, abs=0.01)


def test_mentions_follow_rank_and_limits(pocket, corpus):
    mentions = pocket.substances.mentions
    assert mentions.is_monotonic_decreasing
    assert mentions.min() == pocket.min_mentions and mentions.max() <= pocket.max_mentions
    assert mentions.sum() == len(corpus)


def test_errors_name_the_value(pocket):
    for split, n, value in (("train", 5, "'train'"), ("gt", 1_000_000, "1000000")):
        with pytest.raises(ValueError, match=value):
            pocket.pairs(split, n)
    with pytest.raises(ValueError, match="n_substances=10"):
        World(n_substances=10)
