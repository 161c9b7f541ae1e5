"""The reward model and its batches: right position, invariances, clear errors."""

import numpy as np
import pandas as pd
import pytest
import torch

from w2s import models
from w2s.batches import PairTexts, n_steps, pad
from w2s.models import RewardModel
from w2s.params import ParameterError
from w2s.predict import predict
from w2s.world import World

PAIRS = World().pairs("gt", 37)
EVERY = list(range(len(PAIRS)))


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return models.load_tokenizer(tiny_models[1])


@pytest.fixture(scope="module")
def model(tiny_models):
    model = RewardModel.load(tiny_models[1], seed=3)
    model.unit.weight.data.mul_(50)  # margins of size 1, so that differences would show
    return model.eval()


@torch.no_grad()
def test_reward_is_the_unit_at_the_last_real_token(model, tokenizer):
    ids = tokenizer("\n\nHuman: can i?\n\nAssistant: yes!")["input_ids"]
    hidden = model.body(input_ids=torch.tensor([ids])).last_hidden_state[0, len(ids) - 1]
    assert model(*pad([ids, ids * 3]))[0] == pytest.approx((hidden @ model.unit.weight[0]).item(), abs=1e-5)
    ids, mask = pad([[5, 0, 0], [5, 6]])  # id 0 is a real token
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    alone = model(torch.tensor([[5, 0, 0]]), torch.ones(1, 3, dtype=torch.long))
    assert model(ids, mask)[0] == pytest.approx(alone.item(), abs=1e-5)


def test_scores_join_by_id_swap_with_the_responses_and_are_the_same_bytes_when_reloaded(model, tokenizer, tmp_path):
    tables = (PAIRS, PAIRS.sample(frac=1, random_state=0), PAIRS.assign(chosen=PAIRS.rejected, rejected=PAIRS.chosen))
    a, b, c = (predict(model, table, tokenizer, 128, 500).set_index("id") for table in tables)
    pd.testing.assert_series_equal(a.margin, b.margin[a.index], atol=1e-5)
    np.testing.assert_allclose(a.margin, -c.margin, atol=1e-5)
    assert np.abs(a.margin).mean() > 0.05 and (a.correct == (a.margin > 0)).all()
    np.testing.assert_allclose(a.probability, 1 / (1 + np.exp(-a.margin.astype(float))))
    model.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = predict(RewardModel.load(str(tmp_path)), PAIRS, models.load_tokenizer(str(tmp_path)), 128, 500)
    pd.testing.assert_frame_equal(a, again.set_index("id"))


def test_blocks_keep_the_budget_and_each_epoch_shows_each_pair_once(tokenizer):
    texts = PairTexts(PAIRS, tokenizer, 128)
    blocks = list(texts.batches(np.array(EVERY), 200))
    assert sorted(np.concatenate([b.index for b in blocks])) == EVERY
    assert all(b.input_ids.numel() <= 200 for b in blocks) and len(blocks) > 1
    steps = [(n, np.concatenate([b.index for b in blocks])) for n, blocks in texts.steps(8, 2, 10_000, seed=1)]
    assert len(steps) == n_steps(len(PAIRS), 8, 2) == 10 and all(n == len(index) for n, index in steps)
    first, second = (np.concatenate([index for _, index in half]).tolist() for half in (steps[:5], steps[5:]))
    assert sorted(first) == sorted(second) == EVERY and first != second


def test_a_seed_draws_the_unit_and_fingerprints_and_sizes_tell_models_apart(tiny_models):
    a, b, c = (RewardModel.load(tiny_models[0], seed).unit.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert len({models.fingerprint(m) for m in tiny_models}) == 3
    sizes, body = [models.n_parameters(m) for m in tiny_models], models.load_language_model(tiny_models[0]).base_model
    assert sizes == sorted(sizes) and sizes[0] == sum(p.numel() for p in body.parameters())


MISSING = [("pocket-640", "pocket-64"), ("./nowhere", "config.json"), ("/", "config.json")]


@pytest.mark.parametrize(("name", "words"), [*MISSING, ("no-such/model", "no-such/model.*cannot be loaded")])
def test_a_model_that_is_not_there(name, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (RewardModel.load, models.load_tokenizer):
        with pytest.raises(ParameterError, match=words) as caught:
            load(name)
        assert repr(name) in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ParameterError, match="'cuda'.*auto"):
        models.choose_device("cuda")
    assert models.choose_device("auto").type == "cpu"
