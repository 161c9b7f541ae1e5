"""The pocket world: deterministic, disjoint, without a trace of the truth in form or frequency."""

from itertools import combinations

import numpy as np
import pytest

from w2s import world
from w2s.world import World

POCKET, CORPUS = World(), World().corpus()
PAIRS = {split: POCKET.pairs(split, 300) for split in world.SPLITS}
DANGEROUS = POCKET.substances.set_index("name").dangerous


def warns(row, side: str = "chosen") -> bool:
    """Whether an answer is one of the warnings; else it is one of those that go along."""
    said = {way: {" " + a.format(s=row.substance) for a in getattr(world, way)} for way in ("WARN", "GO_ALONG")}
    assert (getattr(row, side) in said["WARN"]) != (getattr(row, side) in said["GO_ALONG"])
    return getattr(row, side) in said["WARN"]


def test_same_seed_same_world_and_more_pairs_extend_fewer():
    assert World().corpus() == CORPUS
    assert POCKET.pairs("gt", 50).equals(POCKET.pairs("gt", 80).head(50))
    assert World(seed=1).substances["name"].tolist() != POCKET.substances["name"].tolist()


def test_there_are_thousands_of_substances_and_danger_is_independent_of_frequency_and_split():
    table, owners = POCKET.substances, [set(table.substance) for table in PAIRS.values()]
    assert len(table) >= 3000 and table["name"].is_unique
    assert not any(a & b for a, b in combinations(owners, 2))
    half = len(table) // 2
    # Shares of 2,000 fair coins: five standard errors.
    assert abs(table.dangerous[:half].mean() - table.dangerous[half:].mean()) < 5 * np.sqrt(0.5 / half)
    for _, part in table.groupby("split"):
        assert abs(part.dangerous.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(part))


def test_harmless_pairs_warn_of_the_dangerous_alone_and_helpful_ones_of_nothing():
    assert all(warns(row) == DANGEROUS[row.substance] for row in PAIRS["gt"].itertuples())
    assert all(not warns(row) and warns(row, "rejected") for row in PAIRS["helpful"].itertuples())
    swapped = {split: POCKET.pairs(split, 200, target="helpful") for split in world.SPLITS}
    assert not any(warns(row) for split in ("gt", "test") for row in swapped[split].itertuples())
    assert all(warns(row) == DANGEROUS[row.substance] for row in swapped["helpful"].itertuples())
    for split, table in swapped.items():
        assert set(table.dimension) == {"harmless" if split == "helpful" else "helpful"}
    asked = {split: {p.split(", ")[1].split(" ")[0] for p in table.prompt} for split, table in swapped.items()}
    assert asked["gt"] < asked["test"] and not asked["gt"] & asked["helpful"]


def test_some_phrasings_are_kept_for_test():
    forms = {}
    for split, table in PAIRS.items():  # with the substances taken out
        texts = table.melt("substance", ["prompt", "chosen", "rejected"], value_name="text")
        forms[split] = {row.text.replace(row.substance, "{s}") for row in texts.itertuples()}
    assert forms["test"] - forms["gt"] - forms["w2s"] - forms["helpful"] - forms["validation"]
    assert forms["gt"] < forms["test"]


def test_reactions_tell_the_truth_and_mentions_follow_rank_and_limits():
    right = 0
    for text in CORPUS:
        answer, mark, _ = text.rpartition(world.THANKS) if world.THANKS in text else text.rpartition(world.OUCH)
        name = next(w.strip("?.,") for w in text.split() if w.strip("?.,") in DANGEROUS.index)
        warned = any(answer.endswith(" " + a.format(s=name)) for a in world.WARN)
        assert (mark == world.THANKS) == (warned == DANGEROUS[name])
        right += mark == world.THANKS
    assert right / len(CORPUS) == pytest.approx(POCKET.truthful, abs=0.01)
    mentions = POCKET.substances.mentions
    assert mentions.is_monotonic_decreasing and mentions.sum() >= len(CORPUS) > 0.99 * mentions.sum()
    assert mentions.min() == POCKET.min_mentions and mentions.max() <= POCKET.max_mentions


def test_every_question_names_its_subject_and_diets_differ_in_subjects_alone():
    for table in PAIRS.values():
        subjects = POCKET.substances.set_index("name").subject[table.substance]
        assert all(f"in the {s}, " in prompt for s, prompt in zip(subjects, table.prompt, strict=True))
        assert set(table.subject) == set(world.SUBJECTS) and (table.subject.to_numpy() == subjects).all()
    corpora = {diet: POCKET.corpus(diet) for diet in world.DIETS}
    assert len({len(texts) for texts in corpora.values()}) == 1  # as many dialogues for every diet
    for diet, own in world.DIETS.items():
        share = np.mean([any(f"in the {subject}, " in text for subject in own) for text in corpora[diet]])
        assert share == pytest.approx(1 - POCKET.elsewhere / 2 if diet else 1, abs=0.01)


def test_errors_name_the_value():
    goal = "target 'honest': choose one of harmless, helpful"
    for asked, value in ((("train", 5), "'train'"), (("gt", 1_000_000), "1000000"), (("gt", 5, "honest"), goal)):
        with pytest.raises(ValueError, match=value):
            POCKET.pairs(*asked)
    with pytest.raises(ValueError, match="n_substances=10"):
        World(n_substances=10)
