"""Training runs: RunSpec -> folder; nothing is trained twice."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from w2s import models
from w2s.batches import PairTexts, n_steps
from w2s.files import write_json, write_table
from w2s.losses import Clock
from w2s.params import ParameterError
from w2s.predict import margins_of, predict, predict_logps, predictions
from w2s.runs import states, store
from w2s.runs.labels import labelled_pairs, reference_margins
from w2s.runs.store import is_done, pair_table, split_table
from w2s.spec import SPLITS, RunSpec
from w2s.train import BestWeights, NotFinite, Schedule, check_steps, fit, training_objective, training_texts

LOG_EVERY = 10
LACKS = "a run that it needs failed"
Report = Callable[[int, int], None]  # gets a step and the number of steps


class RunFailed(RuntimeError):
    """A run that could not be trained; its text names the run and the cause."""


def execute(spec: RunSpec, root: Path, after=None, report: Report = lambda step, steps: None, train=None) -> str:
    """Train and score one run unless it is done; returns its name.

    `after` only orders a Dask graph; `train` trains in place of this process (`sharded.execute`).
    Raises RunFailed, such as for a loss that is not finite; <name>.failed then holds step, pair ids and traceback.
    """
    folder = store.folder_of(spec, root)
    if is_done(spec, root):  # of another user perhaps, whose lock is none of ours
        return spec.name
    with store.locked(folder):
        store.recover(folder)
        if not is_done(spec, root):
            part = store.beside(folder, "part")
            write_json(part / "spec.json", spec.identity)
            try:
                train(spec, root, part, report) if train else train_and_score(Alone(spec, root), part, report)
            except (OSError, ParameterError):  # of the machine or the input, not of this run
                raise
            except Exception as error:
                why, failed = " ".join(str(error).split()) or type(error).__name__, store.beside(folder, "failed")
                where = {name: getattr(error, name, None) for name in ("step", "pairs")}
                write_json(failed, {"why": why, "traceback": traceback.format_exc().splitlines(), **where})
                raise RunFailed(f"{spec.name}: {why} (see {failed})") from None
            right = pd.read_parquet(part / "predictions.parquet").groupby("split")["correct"]
            write_json(part / "metrics.json", right.agg(pairs="size", accuracy="mean").to_dict("index"))
            store.finish(folder)
    return spec.name


class Alone:
    """The process that trains a run by itself; a `sharded.Rank` is one of several that train it together."""

    first = True  # the one that writes files

    def __init__(self, spec: RunSpec, root: Path):
        self.spec, self.root, self.device = spec, root, torch.device(spec.device)

    def load(self):
        return load_model(self.spec, self.root).to(self.device)

    def steps(self, texts: PairTexts):
        return texts.steps(self.spec.batch_pairs, self.spec.epochs, self.spec.tokens_per_batch, self.spec.seed)

    def objective(self, each):
        """What `fit` minimizes, from the loss of each pair of a batch."""
        return each

    def score(self, model, pairs: pd.DataFrame, tokenizer) -> pd.DataFrame:
        return score(self.spec, model, pairs, tokenizer, self.root)

    def save(self, model, tokenizer, folder: Path) -> None:
        model.save(folder) if self.spec.method == "reward" else models.save(model, folder)
        tokenizer.save_pretrained(folder)


def train_and_score(team: Alone, folder: Path, report: Report = lambda step, steps: None) -> None:
    """Write a run's log, model and predictions; `team` says what of it this process does."""
    spec, root = team.spec, team.root
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    tokenizer, model = models.load_tokenizer(spec.model), team.load()
    if spec.trained_blocks is not None:
        _compute_states(spec, root, model, tokenizer)
    _train(team, model, tokenizer, folder, report)
    if spec.save_model:
        team.save(model, tokenizer, folder / "model")
    tables = [team.score(model, split_table(spec, root, split), tokenizer) for split in scored_splits(spec)]
    for split, table in zip(scored_splits(spec), tables, strict=True):
        table.insert(1, "split", split)
    if team.first:
        write_table(folder / "predictions.parquet", pd.concat(tables, ignore_index=True))


def _compute_states(spec: RunSpec, root: Path, model, tokenizer) -> None:
    """Have in the cache what the blocks that are not trained make of the run's texts, and let the model use it."""
    lower = (model.body if spec.method == "reward" else model.base_model).lower
    if lower.n:
        lower.find = states.States(states.folder_of(spec, lower.n, root), lower)
        for split in scored_splits(spec):
            texts = PairTexts(split_table(spec, root, split), tokenizer, spec.max_length, end=spec.method != "reward")
            lower.find.need(texts, spec)
        lower.find.need(training_texts(spec, labelled_pairs(spec, root), tokenizer), spec)


def _train(team: Alone, model, tokenizer, folder: Path, report: Report) -> None:
    """Train a run's model in place, write its log, and end with its best weights where the run stops early."""
    spec, root = team.spec, team.root
    pairs = labelled_pairs(spec, root)
    clock, total = Clock(), n_steps(len(pairs), spec.batch_pairs, spec.epochs)
    each = training_objective(spec, pairs, team.device, clock, reference_margins(spec, root, pairs["id"]))
    steps = team.steps(training_texts(spec, pairs, tokenizer))

    def accuracy() -> float:
        return float(team.score(model, pair_table(root, spec.data, "validation"), tokenizer)["correct"].mean())

    best = BestWeights(model, accuracy, check_steps(total, spec.gold_checks))  # no checks: it never looks
    started = time.monotonic()
    with open(folder / "log.jsonl" if team.first else os.devnull, "w", encoding="utf-8") as log:

        def after(step: int, loss: float) -> None:
            clock.done = step / total
            if step == 1 or step % LOG_EVERY == 0 or step == total:
                seconds = round(time.monotonic() - started, 2)
                line = {"step": step, "steps": total, "loss": round(loss, 5), "seconds": seconds}
                print(json.dumps(line), file=log, flush=True)
                report(step, total)
            best.look(step)

        try:
            fit(model, steps, team.objective(each), schedule(spec), total, getattr(torch, spec.dtype), after)
        except NotFinite as error:
            error.pairs = sorted({pairs["id"].iloc[row] for row in error.rows})
            raise
    if spec.gold_checks:
        best.restore()
        if team.first:
            write_json(folder / "best.json", {"step": best.step, "steps": total, "validation_accuracy": best.best})


def scored_splits(spec: RunSpec) -> list[str]:
    """A warm start is the reference of its run on every split; a teacher labels the split it has not seen."""
    other = ["other"] if spec.other else []
    if spec.method == "sft":
        return [*SPLITS, *other]
    teaches = spec.conflict == "none" and spec.method != "baseline"
    return [*(["w2s" if spec.split == "gt" else "gt"] if teaches else []), "validation", "test", *other]


def schedule(spec: RunSpec) -> Schedule:
    """Reward models: cosine to zero. Preference optimization: 10% warm-up, then constant (the paper's recipes)."""
    return Schedule(spec.learning_rate) if spec.method == "reward" else Schedule(spec.learning_rate, 0.1, decay=False)


def load_model(spec: RunSpec, root: Path):
    """The weights that a run starts from: the pretrained ones, or those of its warm start."""
    name = str(store.check_model(spec.start, root)) if spec.start else spec.model
    load = models.RewardModel.load if spec.method == "reward" else models.load_language_model
    how = {"lora": spec.lora, "seed": spec.seed, "dtype": getattr(torch, spec.dtype)}
    model = load(name, **how, trained_blocks=spec.trained_blocks)
    if spec.gradient_checkpointing:
        body = model.body if spec.method == "reward" else model
        body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def score(spec: RunSpec, model, pairs: pd.DataFrame, tokenizer, root: Path) -> pd.DataFrame:
    """The predictions table of one split; with log-probabilities and tokens where the model has no reward unit.

    These have no probability yet: `predict.with_probability` makes one by the study's confidence, and says by which.
    """
    how = (tokenizer, spec.max_length, 2 * spec.tokens_per_batch, getattr(torch, spec.dtype))
    if spec.method == "reward":
        return predict(model, pairs, *how)
    table = predict_logps(model, pairs, *how)
    if spec.method == "dpo":
        table["reference_margin"] = reference_margins(spec, root, table["id"])
    method = "simpo" if spec.method == "simpo" else "dpo"  # a warm start is scored as its policy would be
    if spec.method == "baseline":
        return predictions(table["id"], margins_of(table, "simpo")).drop(columns="probability")
    of_margins = predictions(table["id"], margins_of(table, method, spec.against_reference))
    return of_margins.drop(columns="probability").merge(table, on="id")
