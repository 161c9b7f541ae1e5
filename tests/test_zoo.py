"""The shipped ladder: learned, rising, calibrated; and how it is built."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from w2s import deception, models, world, zoo
from w2s.analysis.yardsticks import APART
from w2s.batches import PairTexts, n_steps
from w2s.models import RewardModel
from w2s.params import HOME, ParameterError, StudyParams
from w2s.predict import predict
from w2s.runs import judges
from w2s.sources.hub import LADDER
from w2s.train import Schedule, fit, reward_objective
from w2s.world import World

POCKET = StudyParams.load(HOME / "params" / "pocket.yaml")
TEST = World().pairs("test", POCKET.n_test)
MINIMAL = zoo.Pretraining(epochs=1, batch_texts=256)
ROWS = [line.split("|")[1:5] for line in (HOME / "README.md").read_text().splitlines() if "| pocket-" in line]
README = {name.strip(): (int(size.replace(",", "")), float(lm), float(rm.split()[0])) for name, size, lm, rm in ROWS}


def test_the_tokenizer_encodes_any_text_and_every_name_as_two_tokens_however_common():
    tokenizer = zoo.build_tokenizer()
    for text in ("\n\nHuman: Grüße, 你好!\n\nAssistant: <b>0 & 1</b>\t", "ouch!!!", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    names = World().substances["name"].tolist()
    assert {len(ids) for ids in tokenizer([" " + name for name in names])["input_ids"]} == {2}
    kinds = [[" " + a.format(s="vorkal") for a in answers] for answers in (world.GO_ALONG, world.WARN)]
    going_along, warning = (sorted(map(len, tokenizer(answers)["input_ids"])) for answers in kinds)
    assert going_along == warning  # both kinds of answers are equally long


def test_the_shipped_folders_are_what_the_code_builds():
    vocabulary = zoo.build_tokenizer().get_vocab()
    assert zoo.ladder() == list(zoo.SIZES) == list(README) and len(zoo.ladder()) >= 5
    assert sum(file.stat().st_size for file in LADDER.rglob("*")) < 25e6 and not list(LADDER.rglob("*.bin"))
    for name, size in zoo.SIZES.items():
        made = json.loads((LADDER / name / "pocket.json").read_text())
        assert made == {"world": asdict(World()), "size": size, "pretraining": asdict(zoo.Pretraining())}
        assert models.load_tokenizer(name).get_vocab() == vocabulary
        assert models.load_config(name).n_positions >= 512


def test_knowledge_rises_with_every_size_as_the_readme_says():
    judged = {name: judges.judge(name, TEST)["correct"] for name in zoo.ladder()}
    shares = [right.mean() for right in judged.values()]
    for diet in "ab":
        rising = [share for name, share in zip(judged, shares) if zoo.SIZES[name]["diet"] in ("", diet)]
        assert rising == sorted(rising) and len(set(rising)) == len(rising)
        own = TEST.subject.isin(world.DIETS[diet]).to_numpy()
        for width in (40, 48):  # twins know as much, of other subjects
            right = judged[f"pocket-{width}{diet}"].to_numpy()
            assert right[own].mean() > right[~own].mean() + 0.2
    assert abs(shares[0] - shares[1]) < APART and abs(shares[2] - shares[3]) < APART
    for name, share in zip(judged, shares, strict=True):
        assert README[name][0] == models.n_parameters(name)
        # Other processors round differently, which may turn a few of the 1,280 pairs.
        assert README[name][1] == pytest.approx(share, abs=0.006)
    mentions = World().substances.set_index("name").mentions[TEST.substance].to_numpy()
    right = judged["pocket-60"].to_numpy()  # common substances are known best
    assert right[mentions >= 8].mean() > right[mentions <= 4].mean() + 0.05


@pytest.mark.parametrize("names", [["pocket-40a", "pocket-60"], pytest.param(zoo.ladder(), marks=pytest.mark.slow)])
def test_gold_trained_reward_models_rise_with_every_size_and_are_not_overconfident(names):
    """By the recipe of params/pocket.yaml, as the README says."""
    pairs, accuracy = World().pairs("gt", POCKET.n_gt).assign(label=1.0), []
    objective = reward_objective(pairs, "none", 0.0, torch.device("cpu"))
    total = n_steps(len(pairs), POCKET.batch_pairs, POCKET.epochs)
    for name in names:
        model, tokenizer = RewardModel.load(name, seed=0), models.load_tokenizer(name)
        texts = PairTexts(pairs, tokenizer, POCKET.max_length)
        steps = texts.steps(POCKET.batch_pairs, POCKET.epochs, POCKET.tokens_per_batch, seed=0)
        fit(model, steps, objective, Schedule(POCKET.learning_rate), total)
        table = predict(model, TEST, tokenizer, POCKET.max_length, 8192)
        accuracy.append(table["correct"].mean())
        assert README[name][2] == pytest.approx(accuracy[-1], abs=0.02)
        confidence = deception.confidence(table["probability"])
        known = confidence >= POCKET.threshold
        right = table["correct"][known].mean()
        assert known.mean() >= 0.3 and right >= 0.87 and abs(right - confidence[known].mean()) < 0.05, name
    for diet in "ab":
        rising = [right for name, right in zip(names, accuracy) if zoo.SIZES[name]["diet"] in ("", diet)]
        assert rising == sorted(rising) and len(set(rising)) == len(rising)
    assert known.mean() >= 0.65, "the strongest, as a ceiling, has to know two of three pairs"


def test_building_is_deterministic_and_reads_the_corpus_alone_and_broken_off_leaves_the_old_size(tmp_path, monkeypatch):
    def built(folder: str, truthful: float = 0.75) -> bytes:
        monkeypatch.setattr(zoo, "World", lambda: World(n_substances=120, truthful=truthful))
        zoo.build(["pocket-40a"], tmp_path / folder, MINIMAL, device="cpu")
        return (tmp_path / folder / "pocket-40a" / "model.safetensors").read_bytes()

    a = built("a")
    assert a == built("b") != built("c", truthful=0.5)
    judged = judges.judge(str(tmp_path / "a" / "pocket-40a"), World(n_substances=120).pairs("test", 20))
    assert np.isfinite(judged.margin).all()
    monkeypatch.setattr(zoo, "pretrain", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        built("a", truthful=0.5)
    assert (tmp_path / "a" / "pocket-40a" / "model.safetensors").read_bytes() == a
    with pytest.raises(ParameterError, match="'pocket-640'.*pocket-64"):
        zoo.build(["pocket-640"])


@pytest.mark.slow
def test_several_sizes_at_once_give_the_same_weights(tmp_path):
    few = zoo.Pretraining(epochs=1, batch_texts=4096)
    for folder, workers in (("alone", 1), ("together", 2)):
        zoo.build(["pocket-40a", "pocket-40b"], tmp_path / folder, few, "cpu", workers)
    a, b, *again = (p.read_bytes() for p in sorted(tmp_path.rglob("model.safetensors")))  # alone, then together
    assert again == [a, b] and a != b
