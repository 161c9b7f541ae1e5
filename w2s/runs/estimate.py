"""What a study will cost: parameters, memory and time of every model, before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import psutil
import torch

from w2s import models
from w2s.fast import packed
from w2s.files import duration
from w2s.models import AT_ONCE
from w2s.params import Lora, ParameterError
from w2s.runs import execute, sharded, states, store
from w2s.spec import SPLITS, RunSpec

GIB = 2**30
PROCESS = 0.5 * GIB  # the interpreter with torch
# Numbers that a layer keeps of a token for the backward pass, for each unit of its width and each unit of its MLP.
KEPT_OF_WIDTH, KEPT_OF_MLP = 11, {"relu": 1, "gelu": 2, "gelu_pytorch_tanh": 2}
KEPT_OF_OTHER_MLP = 4  # gated
KEPT_OF_TEXTS = 4  # of the width: what attention takes out of a packed row, and gives back
HALF, FROZEN = 0.65, 0.75  # the share of these bytes with bfloat16, and with LoRA
HEAP_SHARE, HEAP_LIMIT = 1.2, 1.1 * GIB  # what the C library's heap holds on to of them, in blocks below 32 MiB

ALIKE = ("model_fingerprint", "data", "method", "lora", "trained_blocks")
ALIKE += ("batch_pairs", "max_length", "device", "dtype", "threads")
CHARACTERS = 4  # of a token, about
EFFICIENCY = 0.6  # of the rate of one large matrix product, while a model trains
RUN, STEP, START = 0.5, 0.018, 6.0  # seconds of each run, of each block of a step, and to start workers


@lru_cache
def _config(spec: RunSpec):
    return models.load_config(spec.model).get_text_config()


@lru_cache
def _parameters(spec: RunSpec) -> tuple[int, int]:
    """How many parameters the model of a run has, and how many it trains."""
    head = spec.method != "reward"
    total = models.n_parameters(spec.model, head)
    if not spec.epochs:
        return total, 0
    return total, models.n_trained(spec.model, head, spec.lora, spec.trained_blocks)


@lru_cache
def _characters(data: str, root: Path) -> tuple[float, float]:
    """The mean number of characters of a gt pair's prompt, and of its responses together."""
    table = store.pair_table(root, data, "gt")
    prompt, chosen, rejected = (float(table[text].str.len().mean()) for text in ("prompt", "chosen", "rejected"))
    return prompt, chosen + rejected


@lru_cache
def memory(spec: RunSpec, root: Path) -> dict[str, float]:
    """Bytes to train the model of a run, by what they hold, on each of its shards, without the process (PROCESS).

    Weights are float32, or with LoRA the run's dtype; gradients and Adam's moments take 12 bytes for each trained one.
    Shards split these, and each holds two whole layers at a time. docs/measurements.md has how close this comes.
    """
    config, half, (total, trained) = _config(spec), 2 if spec.dtype == "bfloat16" else 4, _parameters(spec)
    tokens, layers = spec.tokens_per_batch, config.num_hidden_layers
    prompt, responses = _characters(spec.data, root)
    weights = total * (half if spec.lora else 4) / spec.shards
    if spec.shards > 1:
        weights += 2 * half * total / layers
    elif half == 2 and not spec.lora:
        weights += half * total  # autocast's copy
    kept = _kept(spec)
    if config.model_type in packed.TESTED:  # which have the prompt of a pair once, but for attention
        once = 1 if spec.method == "sft" else (prompt + responses) / (2 * prompt + responses)
        kept = once * kept + 4 * KEPT_OF_TEXTS * config.hidden_size * layers * tokens
    heap = 0.0 if spec.device.startswith("cuda") else min(HEAP_SHARE * kept, HEAP_LIMIT)
    if spec.trained_blocks is not None:
        kept *= min(1.0, max(spec.trained_blocks, 1) / layers)
    if spec.gradient_checkpointing:  # of each layer its input, and one layer at a time the rest
        kept = 4 * tokens * config.hidden_size * layers + kept / layers
    if spec.method != "reward":  # log-probabilities of a block's responses, and of AT_ONCE tokens twice more
        read = tokens * responses / (2 * prompt + responses)
        kept += 4 * (read + 2 * min(read, AT_ONCE[torch.device(spec.device).type])) * config.vocab_size
    return {"weights": weights, "optimizer": 12 * trained / spec.shards, "activations": kept, "heap": heap}


def _kept(spec: RunSpec) -> float:
    """Bytes that the layers keep of a block of padded texts for the backward pass, without checkpointing."""
    if not spec.epochs:
        return 0.0
    config = _config(spec)
    sizes = (getattr(config, key, None) for key in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"))
    mlp = next(filter(None, sizes), 4 * config.hidden_size)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    numbers = KEPT_OF_WIDTH * config.hidden_size + KEPT_OF_MLP.get(activation, KEPT_OF_OTHER_MLP) * mlp
    share = (HALF if spec.dtype == "bfloat16" else 1) * (FROZEN if spec.lora else 1)
    return 4 * share * numbers * config.num_hidden_layers * spec.tokens_per_batch


def check(todo: list[RunSpec], root: Path, workers: int, scheduler: str | None = None) -> None:
    """Raises ParameterError where runs cannot fit in context, devices, memory or disk, with what to change."""
    for spec in {(s.model, s.method): s for s in todo}.values():
        context = getattr(_config(spec), "max_position_embeddings", None)
        if context and spec.max_length > context:
            what = f"max_length = {spec.max_length}: model {spec.model!r} reads {context} tokens"
            raise ParameterError(f"{what}; set max_length to that")
    if todo and scheduler is None:  # what another machine has is not known here
        sharded.check_devices(todo[0])
        _check_memory(max(todo, key=lambda s: sum(memory(s, root).values())), root, min(workers, len(todo)))
    place = next(path for path in (root, *root.parents) if path.exists())
    if todo and not os.access(place, os.W_OK):
        raise ParameterError(f"{len(todo)} runs to train, and {place} may not be written; set output_dir to your own")
    saved = sum(4 * _parameters(s)[0 if s.trained_blocks is not None else 1] for s in todo if s.save_model)
    saved += sum(size for _, size in states_to_make(todo, root).values())
    if saved and saved > (free := shutil.disk_usage(place).free):
        need = f"the models and states to save take about {saved / GIB:.1f} GiB and {free / GIB:.1f} GiB are free"
        raise ParameterError(f"{root}: {need}; set output_dir to another disk, or lora, or fewer models")


def _check_memory(spec: RunSpec, root: Path, workers: int) -> None:
    def needed(**changes) -> float:
        return sum(memory(replace(spec, **changes), root).values())

    at_once = workers * (spec.shards if spec.device == "cpu" else 1)  # which on a CPU share its memory
    need, free = at_once * (needed() + PROCESS), free_memory(spec.device)
    if need <= free:
        return
    changes = {
        f"a lower tokens_per_batch (now {spec.tokens_per_batch})": {"tokens_per_batch": spec.tokens_per_batch // 2},
        "gradient_checkpointing: true": {"gradient_checkpointing": True},
        "lora: {rank: 8, alpha: 16}": {"lora": spec.lora or Lora(rank=8, alpha=16)},
        "dtype: bfloat16": {"dtype": "bfloat16"},
        f"a higher shards (now {spec.shards})": {"shards": 2 * spec.shards} if spec.device == "cuda" else {},
    }
    remedies = [f"workers: 1 (now {workers})"] if workers > 1 else []
    remedies += [words for words, change in changes.items() if needed(**change) < needed()]
    raise ParameterError(
        f"model {spec.model!r}: {f'{at_once} processes need' if at_once > 1 else 'training needs'} about "
        f"{need / GIB:.1f} GiB and {free / GIB:.1f} GiB are free on {spec.device}; "
        f"set {' or '.join(remedies)}, or take a smaller model"
    )


def free_memory(device: str) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def forecast(todo: list[RunSpec], wanted: int, root: Path, workers: int, scheduler: str | None = None) -> str:
    """How many runs are to be trained and about how long that takes, then one line for each model."""
    if not todo:
        return f"all {wanted} runs are in the cache"
    workers, seconds = min(workers, len(todo)), {}
    if scheduler is not None or todo[0].shards > 1:
        expected = f"time not estimated for {'runs of several shards' if scheduler is None else 'the scheduler'}"
    else:
        rates, states_first = measured(root), states_to_make(todo, root)
        seconds = {s.name: run_seconds(s, root, rates) + states_first.get(s.name, (0, 0))[0] for s in todo}
        expected = f"about {duration(total_seconds(todo, seconds, workers))} on {workers} worker{'s' * (workers > 1)}"
    by_model = {spec.model: [other for other in todo if other.model == spec.model] for spec in todo}
    lines = [_model_line(specs, seconds, root) for specs in by_model.values()]
    return "\n".join([f"{len(todo)} run{'s' * (len(todo) > 1)} to train, {wanted} wanted: {expected}", *lines])


def _model_line(specs: list[RunSpec], seconds: dict[str, float], root: Path) -> str:
    needs = {sum(memory(spec, root).values()): spec for spec in specs}
    total, trained = _parameters(needs[max(needs)])
    adapters = f", {trained:,} of them trained" if 0 < trained != total else ""
    shards = f" on each of {specs[0].shards} shards" if specs[0].shards > 1 else ""
    n = len(specs)
    each = f" of {duration(sum(seconds[s.name] for s in specs) / n)}{' each' * (n > 1)}" if seconds else ""
    need = f"about {max(needs) / GIB:.2f} GiB{' to train' * (trained > 0)}{shards}"
    return f"  {Path(specs[0].model).name}: {total:,} parameters{adapters}, {need}, {n} run{'s' * (n > 1)}{each}"


def total_seconds(todo: list[RunSpec], seconds: dict[str, float], workers: int) -> float:
    """The time of all runs, some at the same time, each after the runs that it needs (which stand before it)."""
    ends: dict[str, float] = {}
    for spec in todo:
        ends[spec.name] = seconds[spec.name] + max((ends.get(run.name, 0.0) for run in spec.before), default=0.0)
    cores = (os.cpu_count() or 1) if todo[0].device == "cpu" else todo[0].threads  # a GPU computes one run at a time
    at_once = min(workers, max(1, cores // todo[0].threads))
    return START * (workers > 1) + max(sum(seconds.values()) / at_once, *ends.values())


def measured(root: Path) -> dict[str, float]:
    """Seconds a pair that the training of finished runs took, their median, by their fields ALIKE."""
    paces = defaultdict(list)
    for done in root.glob("runs/*/DONE"):
        identity, log = store.read_json(done.with_name("spec.json")), store.log_lines(done.parent)
        if log and identity and "gold_checks" not in identity:  # which are scoring
            paces[_alike(identity)].append(log[-1]["seconds"] / (log[-1]["steps"] * identity["batch_pairs"]))
    return {alike: median(values) for alike, values in paces.items()}


def _alike(identity: dict) -> str:
    return json.dumps([identity.get(field) for field in ALIKE])


def run_seconds(spec: RunSpec, root: Path, rates: Mapping[str, float] | None = None) -> float:
    """About how long a run takes on one worker, by `measured` rates or `pair_seconds`; scoring takes a third."""
    size = {split: len(store.split_table(spec, root, split)) for split in {*SPLITS, *execute.scored_splits(spec)}}
    helpful = size["helpful"] if spec.n_helpful is None else spec.n_helpful
    trained = (size[spec.split] + (helpful if spec.conflict == "implicit" else 0)) * spec.epochs
    scored = sum(size[split] for split in execute.scored_splits(spec)) + spec.gold_checks * size["validation"]
    return RUN + ((rates or {}).get(_alike(spec.identity)) or pair_seconds(spec, root)) * (trained + scored / 3)


def states_to_make(todo: list[RunSpec], root: Path) -> dict[str, tuple[float, float]]:
    """First run of a model that trains its last blocks -> seconds to compute what the others make of all texts, bytes.

    Nothing where some of these states are there: a study that was interrupted is expected to end sooner.
    """
    first: dict[tuple, tuple[RunSpec, int]] = {}
    for spec in (s for s in todo if s.trained_blocks is not None):
        n = _config(spec).num_hidden_layers - spec.trained_blocks
        folder = states.folder_of(spec, n, root)
        if n > 0 and not folder.exists():
            first.setdefault((folder, spec.method == "reward"), (spec, n))  # reward models read no end token
    made = {}
    for spec, n in first.values():
        prompt, responses = _characters(spec.data, root)
        splits = {*SPLITS, *execute.scored_splits(spec)}
        tokens = _pair_tokens(spec, root) * sum(len(store.split_table(spec, root, split)) for split in splits)
        operations = 2 * models.n_trained(spec.model, head=False, blocks=n) * tokens
        size = 4 * _config(spec).hidden_size * tokens * (2 * prompt + responses) / (prompt + responses)
        made[spec.name] = _compute_seconds(spec, operations), size
    return made


def pair_seconds(spec: RunSpec, root: Path) -> float:
    """About how long training on a pair takes: 6 operations for each weight and token, and what each step costs."""
    tokens = _pair_tokens(spec, root)
    looked_up = _config(spec).vocab_size * _config(spec).hidden_size if spec.method == "reward" else 0
    computed = _parameters(spec)[0] - looked_up if spec.trained_blocks is None else max(1, _parameters(spec)[1])
    blocks = max(1 / spec.batch_pairs, tokens / spec.tokens_per_batch)
    return _compute_seconds(spec, 6 * computed * tokens) + STEP * blocks


def _pair_tokens(spec: RunSpec, root: Path) -> float:
    return min(sum(_characters(spec.data, root)) / CHARACTERS, 2 * spec.max_length)


def _compute_seconds(spec: RunSpec, operations: float) -> float:
    return operations / (EFFICIENCY * product_rate(spec.device, spec.dtype, spec.threads))


@lru_cache
def product_rate(device: str, dtype: str, threads: int) -> float:
    """Operations a second of a product of two large matrices, the fastest of a few."""
    n, before, seconds = 512 if device == "cpu" else 4096, torch.get_num_threads(), []
    matrix = torch.ones(n, n, device=device, dtype=getattr(torch, dtype))
    torch.set_num_threads(threads)
    for _ in range(8):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which a GPU ends before
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2 * n**3 / min(seconds)
