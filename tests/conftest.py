"""Small worlds and models for the tests, made once."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from transformers import GPT2Config, GPT2LMHeadModel

from w2s import files, zoo
from w2s.params import StudyParams
from w2s.study import Study

plt.switch_backend("Agg")
SMALL = {"n_gt": 48, "n_w2s": 48, "n_helpful": 32, "n_validation": 16, "n_test": 40}
SMALL |= {"epochs": 1, "max_length": 128, "workers": 1, "bootstrap": 100}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> list[str]:
    """Three random GPT-2 folders of rising size, with the pocket tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), zoo.build_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_positions": 128, "n_layer": 2, "n_head": 2}
    names = {width: str(folder / f"tiny-{width}") for width in (8, 16, 24)}
    for width, name in names.items():
        torch.manual_seed(width)
        GPT2LMHeadModel(GPT2Config(**sizes, n_embd=width, bos_token_id=0, eos_token_id=0)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    return list(names.values())


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Nothing that somebody has fetched reaches a test."""
    monkeypatch.setenv("W2S_HUB", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def no_open_study(monkeypatch):
    """No check keeps its answer in the folder of an earlier test."""
    monkeypatch.setattr(files, "open_study", None)


@pytest.fixture(scope="module")
def one_thread():
    """Models of a few numbers are computed by one thread: more wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_study(tiny_models, tmp_path) -> Study:
    """A study of the pocket world with tiny random models, in a folder of its own."""
    return Study.open(small_params(tiny_models, tmp_path))


def small_params(models: list[str], folder: Path, **changes) -> StudyParams:
    named = {"weak_models": models[:1], "strong_models": models[1:], "intermediate_models": models[1:2]}
    return StudyParams.check({"study": "small", "output_dir": str(folder), **named, **SMALL, **changes})


@pytest.fixture
def close_figures():
    yield
    plt.close("all")


def shown(part: Axes | Figure) -> list[Text]:
    """All texts that are drawn: labels, titles, annotations, ticks and legends."""
    part.figure.canvas.draw()
    return [text for text in part.findobj(Text) if text.get_visible() and text.get_text()]


def texts(part: Axes | Figure) -> str:
    return "\n".join(text.get_text() for text in shown(part))
