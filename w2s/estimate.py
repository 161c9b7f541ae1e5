"""What a study will cost: parameters, memory and time of every model, before anything is trained."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch

from w2s import models, runs
from w2s.params import ParameterError
from w2s.progress import duration
from w2s.runs import RunSpec
from w2s.train import fit

PROBE_PAIRS = 32
GIB = 2**30
# Bytes kept for the backward pass, per token, layer and unit of width, in half precision and with
# fused attention: Korthikanti et al. (2022), equation 2 without its attention term.
KEPT_PER_UNIT = 34
PROCESS = 0.5 * GIB  # the interpreter with torch


@dataclass(frozen=True)
class Memory:
    """Bytes that training one model takes, by what they hold."""

    weights: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.activations


def memory(spec: RunSpec, root: Path) -> Memory:
    """Bytes to train the model of a run, from its configuration and the lengths of its texts.

    Weights are float32, or with LoRA the run's dtype; gradients and Adam's two moments take 12
    bytes for each weight that is trained. Activations are those of one block of tokens_per_batch,
    of which the responses go through the language model's head.
    """
    config, half = models.load_config(spec.model), 2 if spec.dtype == "bfloat16" else 4
    total = models.n_parameters(spec.model, head=spec.method != "reward")
    trained = models.n_adapter_parameters(spec.model, spec.lora) if spec.lora else total
    copies = half if spec.dtype == "bfloat16" and not spec.lora else 0  # autocast's copy of the weights
    weights = total * ((half if spec.lora else 4) + copies)
    width, layers, tokens = config.hidden_size, config.num_hidden_layers, spec.tokens_per_batch
    kept = tokens * width * KEPT_PER_UNIT * half / 2
    body = kept + tokens * width * half * layers if spec.gradient_checkpointing else kept * layers
    head = 0 if spec.method == "reward" else 3 * 4 * tokens * _response_share(spec.data, root) * config.vocab_size
    return Memory(weights, 12 * trained, body + head)


@lru_cache
def _response_share(data: str, root: Path) -> float:
    """The share of all characters of the gt texts that are in the responses."""
    table = runs.pair_table(root, data, "gt")
    prompt, chosen, rejected = (table[column].str.len().sum() for column in ("prompt", "chosen", "rejected"))
    return float((chosen + rejected) / (2 * prompt + chosen + rejected))


def check(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None = None) -> None:
    """Stop before anything is trained where the runs cannot fit.

    Raises:
        ParameterError: a text longer than a model's context, too little memory, or too little disk;
            with what to change.
    """
    for spec in {(s.model, s.method): s for s in todo}.values():
        context = getattr(models.load_config(spec.model), "max_position_embeddings", None)
        if context and spec.max_length > context:
            raise ParameterError(
                f"max_length = {spec.max_length}: model {spec.model!r} reads {context} tokens; set max_length to that"
            )
    if todo and scheduler is None:  # another machine's memory is not known here
        largest = max(todo, key=lambda s: memory(s, root).total)
        _check_memory(largest, memory(largest, root).total, min(workers, len(todo)))
    _check_disk(todo, root)


def _check_memory(spec: RunSpec, each: float, workers: int) -> None:
    need, free = workers * (each + PROCESS), free_memory(spec.device)
    if need <= free:
        return
    remedies = [f"a lower tokens_per_batch (now {spec.tokens_per_batch})"]
    remedies += [f"workers: 1 (now {workers})"] if workers > 1 else []
    remedies += [] if spec.gradient_checkpointing else ["gradient_checkpointing: true"]
    remedies += [] if spec.lora else ["lora: {rank: 8, alpha: 16}"]
    remedies += [] if spec.dtype == "bfloat16" else ["dtype: bfloat16"]
    times = f"{workers} at a time need" if workers > 1 else "training needs"
    raise ParameterError(
        f"model {spec.model!r}: {times} about {need / GIB:.1f} GiB and {free / GIB:.1f} GiB are free on "
        f"{spec.device}; set {' or '.join(remedies)}, or take a smaller model"
    )


def free_memory(device: str) -> float:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def _check_disk(todo: list[RunSpec], root: Path) -> None:
    """Models that runs save: all warm starts, and every model with save_models."""
    saved = [s for s in todo if s.save_model]
    need = 4 * sum(
        models.n_adapter_parameters(s.model, s.lora) if s.lora else models.n_parameters(s.model) for s in saved
    )
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
    if need > free:
        raise ParameterError(
            f"{root}: the models to save take about {need / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; "
            "set output_dir to another disk, or lora, or fewer models"
        )


def forecast(todo: list[RunSpec], wanted: int, root: Path, workers: int) -> str:
    """How many runs are to be trained and about how long that takes, then one line for each model."""
    if not todo:
        return f"all {wanted} runs are in the cache"
    workers, lines, seconds = min(workers, len(todo)), [], 0.0
    for name in dict.fromkeys(s.model for s in todo):
        specs = [s for s in todo if s.model == name]
        need, took = max(memory(s, root).total for s in specs), sum(run_seconds(s, root) for s in specs)
        seconds += took
        lines.append(
            f"  {Path(name).name}: {models.n_parameters(name):,} parameters, about {need / GIB:.2f} GiB to train, "
            f"{len(specs)} runs of {duration(took / len(specs))} each"
        )
    # Workers on one machine share its caches and its clock: on two cores, two are half as fast again as one.
    expected = duration(seconds / (1 + (workers - 1) / 2))
    return "\n".join([f"{len(todo)} runs to train, {wanted} wanted: about {expected} on {workers} workers", *lines])


def run_seconds(spec: RunSpec, root: Path) -> float:
    """Seconds that a run takes on one worker; scoring a pair counts as a third of training on it."""
    to_load, per_pair = _probe(replace(spec, start=None, teacher=None, conflict="none", split="gt", seed=0), root)
    size = {split: len(runs.pair_table(root, spec.data, split)) for split in runs.SPLITS}
    trained = (size[spec.split] + (size["helpful"] if spec.conflict == "implicit" else 0)) * spec.epochs
    return to_load + per_pair * (trained + sum(size[split] for split in runs.scored_splits(spec)) / 3)


@lru_cache
def _probe(spec: RunSpec, root: Path) -> tuple[float, float]:
    """Seconds to load a model and its tokenizer, and for a pair in the second of two training steps."""
    torch.set_num_threads(spec.threads)
    sample = runs.pair_table(root, spec.data, spec.split).head(PROBE_PAIRS).assign(label=1.0)
    device, marks = torch.device(spec.device), [time.perf_counter()]
    model = runs.load_model(spec, root).to(device)
    texts = runs.training_texts(spec, sample, models.load_tokenizer(spec.model))
    to_load = time.perf_counter() - marks[0]
    if spec.method in ("dpo", "simpo"):
        objective = runs.preference_objective(spec, sample, np.zeros(len(sample)), device)
    else:
        objective = runs.training_objective(spec, sample, root, device)
    steps = texts.steps(len(sample), 2, spec.tokens_per_batch, seed=0)
    dtype = getattr(torch, spec.dtype)
    fit(model, steps, objective, runs.schedule(spec), 2, dtype, lambda step, loss: marks.append(time.perf_counter()))
    return to_load, (marks[-1] - marks[-2]) / len(sample)
