"""What a study will cost: parameters, memory and time of every model, before anything is trained."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch

from w2s import models
from w2s.fast import packed
from w2s.files import duration
from w2s.params import Lora, ParameterError
from w2s.predict import AT_ONCE
from w2s.runs import execute, store
from w2s.spec import SPLITS, RunSpec
from w2s.train import fit, preference_objective, training_objective, training_texts

GIB = 2**30
PROCESS = 0.5 * GIB  # the interpreter with torch
# Numbers that a layer keeps of a token for the backward pass, for each unit of its width and each unit of its MLP.
KEPT_OF_WIDTH, KEPT_OF_MLP = 11, {"relu": 1, "gelu": 2, "gelu_pytorch_tanh": 2}
KEPT_OF_OTHER_MLP = 4  # gated
KEPT_OF_TEXTS = 4  # of the width: what attention takes out of a packed row, and gives back
HALF, FROZEN = 0.65, 0.75  # the share of these bytes with bfloat16, and with LoRA
HEAP_SHARE, HEAP_LIMIT = 1.2, 1.1 * GIB  # what the C library's heap holds on to of them, in blocks below 32 MiB

MOMENT = 0.3  # seconds: shorter calls can be long for other reasons, on a busy machine
PROBE_PAIRS = 256
START_WORKERS = 6.0  # seconds
CROWDING = 1.3  # runs at the same time share caches and memory, and take so much longer


@dataclass(frozen=True)
class Memory:
    """Bytes that training a model takes in one process, by what they hold."""

    weights: float
    optimizer: float
    activations: float
    heap: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.activations + self.heap


def memory(spec: RunSpec, root: Path) -> Memory:
    """Bytes to train the model of a run, on each of its shards, without the process itself (PROCESS).

    Weights are float32, or with LoRA the run's dtype; gradients and Adam's two moments take 12 bytes
    for each weight that is trained. Shards split these, and each holds two whole layers at a time.

    Of 38 trial runs on a CPU (GPT-2 and Llama shapes of 4 x 128 to 12 x 768, blocks of 1,024 to 16,384
    tokens, reward and simpo, checkpointing, LoRA, bfloat16) this gave 0.9 to 1.4 times the peak of the
    process, with padded texts; packed ones were measured once (tests/test_estimate.py). On a GPU it has
    not been measured; there is no heap there.
    """
    config, half = _config(spec), 2 if spec.dtype == "bfloat16" else 4
    total = models.n_parameters(spec.model, head=spec.method != "reward")
    trained = models.n_adapter_parameters(spec.model, spec.lora) if spec.lora else total
    weights = total * (half if spec.lora else 4) / spec.shards
    if spec.shards > 1:
        weights += 2 * half * total / config.num_hidden_layers
    elif half == 2 and not spec.lora:
        weights += half * total  # autocast's copy
    kept = _kept(spec)
    if config.model_type in packed.TESTED:  # which have the prompt of a pair once, but for attention
        once = (1 + _response_share(spec.data, root)) / 2 if spec.method != "sft" else 1
        texts = 4 * KEPT_OF_TEXTS * config.hidden_size * config.num_hidden_layers * spec.tokens_per_batch
        kept = once * kept + texts
    heap = 0.0 if spec.device.startswith("cuda") else min(HEAP_SHARE * kept, HEAP_LIMIT)
    if spec.gradient_checkpointing:  # of each layer its input, and one layer at a time the rest
        inputs = 4 * spec.tokens_per_batch * config.hidden_size * config.num_hidden_layers
        kept = inputs + kept / config.num_hidden_layers
    return Memory(weights, 12 * trained / spec.shards, kept + _logits(spec, root), heap)


def _config(spec: RunSpec):
    return models.load_config(spec.model).get_text_config()


def _kept(spec: RunSpec) -> float:
    """Bytes that the layers keep of a block of padded texts for the backward pass, without checkpointing."""
    config = _config(spec)
    sizes = (getattr(config, key, None) for key in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"))
    mlp = next(filter(None, sizes), 4 * config.hidden_size)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    numbers = KEPT_OF_WIDTH * config.hidden_size + KEPT_OF_MLP.get(activation, KEPT_OF_OTHER_MLP) * mlp
    share = (HALF if spec.dtype == "bfloat16" else 1) * (FROZEN if spec.lora else 1)
    return 4 * share * numbers * config.num_hidden_layers * spec.tokens_per_batch


def _logits(spec: RunSpec, root: Path) -> float:
    """Bytes of log-probabilities in float32: those of a block's responses, and of AT_ONCE tokens twice more."""
    if spec.method == "reward":
        return 0.0
    tokens = spec.tokens_per_batch * _response_share(spec.data, root)
    return 4 * (tokens + 2 * min(tokens, AT_ONCE[torch.device(spec.device).type])) * _config(spec).vocab_size


@lru_cache
def _response_share(data: str, root: Path) -> float:
    """The share of all characters of the gt texts that are in the responses."""
    table = store.pair_table(root, data, "gt")
    prompt, chosen, rejected = (table[column].str.len().sum() for column in ("prompt", "chosen", "rejected"))
    return float((chosen + rejected) / (2 * prompt + chosen + rejected))


def check(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None = None) -> None:
    """Stop before anything is trained where the runs cannot fit.

    Raises:
        ParameterError: a text longer than a model's context, too few devices, too little memory, or too
            little disk; with what to change.
    """
    for spec in {(s.model, s.method): s for s in todo}.values():
        context = getattr(_config(spec), "max_position_embeddings", None)
        if context and spec.max_length > context:
            raise ParameterError(
                f"max_length = {spec.max_length}: model {spec.model!r} reads {context} tokens; set max_length to that"
            )
    if todo and scheduler is None:  # what another machine has is not known here
        if todo[0].shards > 1:
            from w2s.runs import sharded

            sharded.check_devices(todo[0])
        _check_memory(max(todo, key=lambda s: memory(s, root).total), root, min(workers, len(todo)))
    if todo:
        _check_disk(todo, root)


def _check_memory(spec: RunSpec, root: Path, workers: int) -> None:
    each = memory(spec, root).total
    at_once = workers * (spec.shards if spec.device == "cpu" else 1)  # which on a CPU share its memory
    need, free = at_once * (each + PROCESS), free_memory(spec.device)
    if need <= free:
        return
    changes = {
        f"a lower tokens_per_batch (now {spec.tokens_per_batch})": {"tokens_per_batch": spec.tokens_per_batch // 2},
        "gradient_checkpointing: true": {"gradient_checkpointing": True},
        "lora: {rank: 8, alpha: 16}": {"lora": spec.lora or Lora(rank=8, alpha=16)},
        "dtype: bfloat16": {"dtype": "bfloat16"},
        **({f"a higher shards (now {spec.shards})": {"shards": 2 * spec.shards}} if spec.device == "cuda" else {}),
    }
    remedies = [f"workers: 1 (now {workers})"] if workers > 1 else []
    remedies += [words for words, change in changes.items() if memory(replace(spec, **change), root).total < each]
    raise ParameterError(
        f"model {spec.model!r}: {f'{at_once} processes need' if at_once > 1 else 'training needs'} about "
        f"{need / GIB:.1f} GiB and {free / GIB:.1f} GiB are free on {spec.device}; "
        f"set {' or '.join(remedies)}, or take a smaller model"
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


def forecast(todo: list[RunSpec], wanted: int, root: Path, workers: int, scheduler: str | None = None) -> str:
    """How many runs are to be trained and about how long that takes, then one line for each model."""
    if not todo:
        return f"all {wanted} runs are in the cache"
    workers, seconds = min(workers, len(todo)), {}
    if scheduler is not None:
        expected = "time not estimated, for the workers of the scheduler were not tried"
    elif todo[0].shards > 1:
        expected = "time not estimated, for runs of several shards are not tried"
    else:
        seconds = {spec.name: run_seconds(spec, root) for spec in todo}
        torch.cuda.empty_cache()  # what the trials took
        expected = f"about {duration(total_seconds(todo, seconds, workers))} on {workers} workers"
    by_model = [[spec for spec in todo if spec.model == name] for name in dict.fromkeys(s.model for s in todo)]
    lines = [_model_line(specs, seconds, root) for specs in by_model]
    return "\n".join([f"{len(todo)} runs to train, {wanted} wanted: {expected}", *lines])


def _model_line(specs: list[RunSpec], seconds: dict[str, float], root: Path) -> str:
    """A model's parameters, memory, runs, and the time of each."""
    spec = max(specs, key=lambda s: memory(s, root).total)
    parameters = f"{models.n_parameters(spec.model, head=spec.method != 'reward'):,} parameters"
    if spec.lora:
        parameters += f", {models.n_adapter_parameters(spec.model, spec.lora):,} of them trained"
    where = f" on each of {spec.shards} shards" if spec.shards > 1 else ""
    each = f" of {duration(sum(seconds[s.name] for s in specs) / len(specs))} each" if seconds else ""
    need = f"about {memory(spec, root).total / GIB:.2f} GiB to train{where}"
    return f"  {Path(spec.model).name}: {parameters}, {need}, {len(specs)} runs{each}"


def total_seconds(todo: list[RunSpec], seconds: dict[str, float], workers: int) -> float:
    """The time of all runs, some at the same time, each after the runs that it needs (which stand before it)."""
    if workers == 1:
        return sum(seconds.values())
    ends: dict[str, float] = {}
    for spec in todo:
        ends[spec.name] = seconds[spec.name] + max((ends.get(run.name, 0.0) for run in spec.before), default=0.0)
    cores = (os.cpu_count() or 1) if todo[0].device == "cpu" else todo[0].threads  # a GPU computes one run at a time
    share = min(workers, max(1, cores // todo[0].threads))
    return START_WORKERS + CROWDING * max(sum(seconds.values()) / share, *ends.values())


def run_seconds(spec: RunSpec, root: Path) -> float:
    """Seconds that a run takes on one worker, by a trial of its model and method."""
    alike = {"start": None, "teacher": None, "conflict": "none", "alpha": 0.0, "split": "gt", "seed": 0, "keep": "none"}
    alike |= {"keep_threshold": None, "keep_by": None, "relabel": "none", "n_helpful": None, "helpful_from": None}
    alike |= {"ensemble": (), "chance_by": None, "weighting": "none", "label_loss": "cross_entropy"}
    alike |= {"confidence_weight": None, "gold_checks": 0}
    to_load, per_pair, per_scored = _probe(replace(spec, **alike), root)
    size = {split: len(store.split_table(spec, root, split)) for split in SPLITS}
    helpful = size["helpful"] if spec.n_helpful is None else spec.n_helpful
    trained = (size[spec.split] + (helpful if spec.conflict == "implicit" else 0)) * spec.epochs
    scored = sum(size[split] for split in execute.scored_splits(spec)) + spec.gold_checks * size["validation"]
    return to_load + per_pair * trained + per_scored * scored


@lru_cache
def _probe(spec: RunSpec, root: Path) -> tuple[float, float, float]:
    """Seconds to load a model, to train on a pair, and to score one."""
    torch.set_num_threads(spec.threads)
    sample = store.pair_table(root, spec.data, spec.split).head(PROBE_PAIRS).assign(label=1.0)
    device, dtype, started = torch.device(spec.device), getattr(torch, spec.dtype), time.perf_counter()
    model, tokenizer = execute.load_model(spec, root).to(device), models.load_tokenizer(spec.model)
    to_load = time.perf_counter() - started
    texts = training_texts(spec, sample, tokenizer)
    if spec.method in ("dpo", "simpo"):
        objective = preference_objective(spec, sample, np.zeros(len(sample)), device)
    else:
        objective = training_objective(spec, sample, device)

    def train(n: int) -> None:
        step = (n, texts.batches(np.arange(n), spec.tokens_per_batch))
        fit(model, [step], objective, execute.schedule(spec), 1, dtype)

    scored = replace(spec, method="reward" if spec.method == "reward" else "simpo")  # dpo needs its warm start

    def score(n: int) -> None:
        execute.score(scored, model, sample.head(n), tokenizer, root)

    pace = seconds_per_token(train, texts.length[: spec.batch_pairs]), seconds_per_token(score, texts.length)
    return to_load, *(float(seconds * texts.length.mean()) for seconds in pace)


def seconds_per_token(work: Callable[[int], None], lengths: np.ndarray) -> float:
    """Seconds for each token that `work` takes, at its fastest on ever more pairs, until one call takes a moment."""
    n, paces = 1, []
    while True:
        started = time.perf_counter()
        work(n)
        took = time.perf_counter() - started
        paces.append(took / lengths[:n].sum())
        if took > MOMENT or n == len(lengths):
            return min(paces)
        n = min(4 * n, len(lengths))
