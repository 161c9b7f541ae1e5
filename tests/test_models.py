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
EVERY = np.arange(len(PAIRS))


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return models.load_tokenizer(tiny_models[1])


@pytest.fixture(scope="module")
def model(tiny_models):
    model = RewardModel.load(tiny_models[1], seed=3)
    model.unit.weight.data.mul_(50)  # margins of size 1, so that differences would show
    return model.eval()


def test_reward_is_the_unit_at_the_last_real_token(model, tokenizer):
    ids = tokenizer("\n\nHuman: can i?\n\nAssistant: yes!")["input_ids"]
    with torch.no_grad():
        hidden = model.body(input_ids=torch.tensor([ids])).last_hidden_state[0, len(ids) - 1]
        expected = hidden @ model.unit.weight[0]
        assert model(*pad([ids, ids * 3]))[0] == pytest.approx(expected.item(), abs=1e-5)


def test_token_id_zero_is_a_real_token(model):
    ids, mask = pad([[5, 0, 0], [5, 6]])
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    with torch.no_grad():
        together, alone = model(ids, mask), model(torch.tensor([[5, 0, 0]]), torch.ones(1, 3, dtype=torch.long))
    assert together[0] == pytest.approx(alone.item(), abs=1e-5)


def test_scores_join_by_id_in_any_order(model, tokenizer):
    tables = (PAIRS, PAIRS.sample(frac=1, random_state=0))
    a, b = (predict(model, table, tokenizer, 128, 500).set_index("id").margin for table in tables)
    pd.testing.assert_series_equal(a, b[a.index], atol=1e-5)


def test_swapping_the_responses_turns_the_margin_round(model, tokenizer):
    swapped = PAIRS.assign(chosen=PAIRS.rejected, rejected=PAIRS.chosen)
    a, b = (predict(model, table, tokenizer, 128, 10_000) for table in (PAIRS, swapped))
    np.testing.assert_allclose(a.margin, -b.margin, atol=1e-5)
    assert np.abs(a.margin).mean() > 0.05
    np.testing.assert_allclose(a.probability, 1 / (1 + np.exp(-a.margin.astype(float))))
    assert (a.correct == (a.margin > 0)).all()


def test_saved_and_reloaded_scores_are_the_same_bytes(model, tokenizer, tmp_path):
    model.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    a, b = (predict(m, PAIRS, tokenizer, 128, 1000) for m in (model, RewardModel.load(str(tmp_path))))
    pd.testing.assert_frame_equal(a, b)


def test_blocks_keep_the_budget_and_every_pair(tokenizer):
    blocks = list(PairTexts(PAIRS, tokenizer, 128).batches(EVERY, 200))
    assert sorted(np.concatenate([b.index for b in blocks])) == EVERY.tolist()
    assert all(b.input_ids.numel() <= 200 for b in blocks) and len(blocks) > 1


def test_each_epoch_shows_each_pair_once(tokenizer):
    texts = PairTexts(PAIRS, tokenizer, 128)
    steps = [(n, np.concatenate([b.index for b in blocks])) for n, blocks in texts.steps(8, 2, 10_000, seed=1)]
    assert len(steps) == n_steps(len(PAIRS), 8, 2) == 10
    first, second = (np.concatenate([index for _, index in half]) for half in (steps[:5], steps[5:]))
    assert sorted(first) == sorted(second) == EVERY.tolist() and first.tolist() != second.tolist()
    assert [n for n, _ in steps] == [len(index) for _, index in steps]


def test_a_seed_draws_the_unit(tiny_models):
    a, b, c = (RewardModel.load(tiny_models[0], seed).unit.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_fingerprints_and_sizes_tell_models_apart(tiny_models):
    assert len({models.fingerprint(m) for m in tiny_models}) == 3
    sizes, body = [models.n_parameters(m) for m in tiny_models], models.load_language_model(tiny_models[0]).base_model
    assert sizes == sorted(sizes) and sizes[0] == sum(p.numel() for p in body.parameters())


@pytest.mark.parametrize(
    ("name", "words"), [("pocket-640", "pocket-64"), ("./nowhere", "config.json"), ("/", "config.json")]
)
def test_a_model_that_is_not_there(name, words):
    with pytest.raises(ParameterError, match=words) as caught:
        RewardModel.load(name)
    assert repr(name) in str(caught.value)


def test_a_model_off_the_hub_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ParameterError, match="no-such/model.*cannot be loaded"):
        models.load_tokenizer("no-such/model")


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ParameterError, match="'cuda'.*auto"):
        models.choose_device("cuda")
    assert models.choose_device("auto").type == "cpu"
