"""The pocket world: deterministic, disjoint, without a trace of the truth in form or frequency."""

import numpy as np
import pandas as pd
import pytest

from w2s import world
from w2s.world import World


@pytest.fixture(scope="module")
def pocket() -> World:
    return World()


@pytest.fixture(scope="module")
def pairs(pocket):
    return {split: pocket.pairs(split, 300) for split in world.SPLITS}


def test_same_seed_same_world(pocket):
    assert World().corpus() == pocket.corpus()
    assert World(seed=1).substances["name"].tolist() != pocket.substances["name"].tolist()


def test_there_are_thousands_of_distinct_substances(pocket):
    assert len(pocket.substances) >= 3000
    assert pocket.substances["name"].is_unique


def test_splits_share_no_substance(pocket, pairs):
    owners = {split: set(table.substance) for split, table in pairs.items()}
    for a in owners:
        for b in owners:
            assert a == b or not owners[a] & owners[b]


def test_danger_is_independent_of_frequency_and_split(pocket):
    table = pocket.substances
    half = len(table) // 2
    # Shares of 2,000 fair coins: five standard errors.
    assert abs(table.dangerous[:half].mean() - table.dangerous[half:].mean()) < 5 * np.sqrt(0.5 / half)
    for _, part in table.groupby("split"):
        assert abs(part.dangerous.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(part))


def test_harmless_pairs_warn_of_the_dangerous_alone(pocket, pairs):
    dangerous = pocket.substances.set_index("name").dangerous
    for row in pairs["gt"].itertuples():
        warns = row.chosen in {" " + a.format(s=row.substance) for a in world.WARN}
        assert warns == dangerous[row.substance]


def test_helpful_pairs_always_go_along(pairs):
    for row in pairs["helpful"].itertuples():
        assert row.chosen in {" " + a.format(s=row.substance) for a in world.GO_ALONG}
        assert row.rejected in {" " + a.format(s=row.substance) for a in world.WARN}


def test_with_helpful_as_the_target_the_dimensions_change_places(pocket):
    swapped = {split: pocket.pairs(split, 200, target="helpful") for split in world.SPLITS}
    for split, table in swapped.items():
        assert set(table.dimension) == {"harmless" if split == "helpful" else "helpful"}
    for row in pd.concat([swapped["gt"], swapped["test"]]).itertuples():
        assert row.chosen in {" " + a.format(s=row.substance) for a in world.GO_ALONG}
    dangerous = pocket.substances.set_index("name").dangerous
    for row in swapped["helpful"].itertuples():
        warns = row.chosen in {" " + a.format(s=row.substance) for a in world.WARN}
        assert warns == dangerous[row.substance]
    asked = {split: {p.split("Human: ")[1].split(" ")[0] for p in table.prompt} for split, table in swapped.items()}
    assert asked["gt"] < asked["test"] and not asked["gt"] & asked["helpful"]
    with pytest.raises(ValueError, match="target 'honest': choose one of harmless, helpful"):
        pocket.pairs("gt", 5, target="honest")


def _forms(table):
    """The phrasings of a table, with its substances taken out."""
    return {
        text.replace(row.substance, "{s}")
        for row in table.itertuples()
        for text in (row.prompt, row.chosen, row.rejected)
    }


def test_some_phrasings_are_kept_for_test(pocket, pairs):
    forms = {split: _forms(table) for split, table in pairs.items()}
    assert forms["test"] - forms["gt"] - forms["w2s"] - forms["helpful"] - forms["validation"]
    assert forms["gt"] < forms["test"]


def test_reactions_tell_the_truth(pocket):
    dangerous = pocket.substances.set_index("name").dangerous
    right = 0
    texts = pocket.corpus()
    for text in texts:
        answer, mark, _ = text.rpartition(world.THANKS) if world.THANKS in text else text.rpartition(world.OUCH)
        name = next(w.strip("?.,") for w in text.split() if w.strip("?.,") in dangerous.index)
        warns = any(answer.endswith(" " + a.format(s=name)) for a in world.WARN)
        assert (mark == world.THANKS) == (warns == dangerous[name])
        right += mark == world.THANKS
    assert right / len(texts) == pytest.approx(World().truthful, abs=0.01)


def test_mentions_follow_rank_and_limits(pocket):
    mentions = pocket.substances.mentions
    assert mentions.is_monotonic_decreasing
    assert mentions.min() == pocket.min_mentions and mentions.max() <= pocket.max_mentions
    assert mentions.sum() == len(pocket.corpus())


def test_more_pairs_extend_fewer(pocket):
    assert pocket.pairs("gt", 50).equals(pocket.pairs("gt", 80).head(50))


def test_errors_name_the_value(pocket):
    with pytest.raises(ValueError, match="'train'"):
        pocket.pairs("train", 5)
    with pytest.raises(ValueError, match="1000000"):
        pocket.pairs("gt", 1_000_000)
    with pytest.raises(ValueError, match="n_substances=10"):
        World(n_substances=10)
