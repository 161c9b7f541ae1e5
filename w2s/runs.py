"""Training runs: RunSpec -> folder, with cache, lock and fan-out; nothing is trained twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from w2s import confidence, mitigations, models
from w2s.batches import PairTexts, n_steps
from w2s.data import StudyData, training_pairs
from w2s.files import write_atomic
from w2s.losses import dpo_loss, explicit_conflict_loss, reward_loss, simpo_loss
from w2s.mitigations import Clock
from w2s.params import Lora
from w2s.predict import pair_margins, predict, predict_logps, predictions, text_logps
from w2s.train import Schedule, fit

RECIPE = 1  # raise it when a change to the code changes results
NO_RESULT = ("tokens_per_batch", "gradient_checkpointing", "shards", "save_model")  # fields that change no result
ALWAYS = ("recipe", "learning_rate", "epochs", "batch_pairs", "max_length", "device", "dtype", "threads")
LOG_EVERY = 10
SPLITS = ("gt", "w2s", "helpful", "validation", "test")


@dataclass(frozen=True)
class RunSpec:
    """Everything that changes a run's result; its hash names the run's folder."""

    model: str
    model_fingerprint: str
    data: str
    split: str
    seed: int
    conflict: str = "none"
    alpha: float = 0.0
    teacher: RunSpec | None = None
    start: RunSpec | None = None
    method: str = "reward"
    beta: float | None = None
    gamma: float | None = None
    against_reference: bool = False
    keep: str = "none"
    keep_threshold: float | None = None
    keep_by: str | None = None
    relabel: str = "none"
    n_helpful: int | None = None  # None: all of the data's
    helpful_from: str | None = None  # fingerprint of a data set with more helpful pairs; None: `data`
    ensemble: tuple[RunSpec, ...] = ()  # further teachers: the label is the mean of all
    chance_by: str | None = None  # dpo, simpo: what makes the teachers' margins P, for their mean and for weights
    weighting: str = "none"
    label_loss: str = "cross_entropy"
    confidence_weight: float | None = None
    gold_checks: int = 0  # early stopping: how often gold validation pairs are looked at
    learning_rate: float = 1e-3
    epochs: int = 1
    lora: Lora | None = None
    batch_pairs: int = 32
    max_length: int = 512
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    recipe: int = RECIPE
    tokens_per_batch: int = 4096
    gradient_checkpointing: bool = False
    shards: int = 1
    save_model: bool = False

    @property
    def identity(self) -> dict:
        """The fields that change the result, those of the runs behind it included.

        A field at its default, such as a loss that this run does without, is left out (but for ALWAYS), so that a
        new field leaves the names of old runs as they are.
        """
        told = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in NO_RESULT and (f.name in ALWAYS or value != f.default):
                told[f.name] = _told(value)
        if self.lora:
            told["lora"] = self.lora.model_dump()
            if self.lora.dropout:  # the order of its random draws
                told["tokens_per_batch"] = self.tokens_per_batch
        return told

    @property
    def name(self) -> str:
        """A readable and unique folder name."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]
        parts = [Path(self.model).name, f"on-{self.split}"]
        if self.method != "reward":
            parts.insert(0, self.method)
        if self.teacher:
            parts += ["from", Path(self.teacher.model).name, self.conflict]
        if self.lora:
            parts.append(f"lora{self.lora.rank}")
        return "-".join([*parts, f"s{self.seed}", digest])

    @property
    def before(self) -> list[RunSpec]:
        """The runs that this one needs: its teachers, and the warm start of its weights."""
        return [run for run in (self.teacher, *self.ensemble, self.start) if run]

    @property
    def depth(self) -> int:
        """How many runs stand behind this one, one needing the next."""
        return max((1 + run.depth for run in self.before), default=0)


def _told(value):
    """A field as it stands in an identity: a run by its own identity."""
    if isinstance(value, tuple):
        return [_told(part) for part in value]
    return value.identity if isinstance(value, RunSpec) else value


def write_json(path: Path, content) -> None:
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, lambda p: table.to_parquet(p, index=False))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's lock; two processes that want the same run wait for one another."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {folder.name}: another process is training it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def store_data(root: Path, data: StudyData) -> None:
    """Write the pair tables where every worker finds them by fingerprint, and where they come from."""
    for split in SPLITS:
        path = _data_path(root, data.fingerprint, split)
        if not path.exists():
            write_table(path, getattr(data, split))
    write_json(path.with_name("source.json"), data.source)


def _data_path(root: Path, fingerprint: str, split: str) -> Path:
    return root / "runs" / "data" / fingerprint[:16] / f"{split}.parquet"


@lru_cache(maxsize=32)
def pair_table(root: Path, fingerprint: str, split: str) -> pd.DataFrame:
    """A pair table that `store_data` wrote."""
    return pd.read_parquet(_data_path(root, fingerprint, split))


def split_table(spec: RunSpec, root: Path, split: str) -> pd.DataFrame:
    """The pair table of a split for one run: its helpful pairs may be those of a larger data set."""
    return pair_table(root, spec.helpful_from if split == "helpful" and spec.helpful_from else spec.data, split)


def is_done(spec: RunSpec, root: Path) -> bool:
    """Whether a run is in the cache, with its model where the spec asks for it."""
    folder = root / "runs" / spec.name
    return (folder / "DONE").exists() and (not spec.save_model or (folder / "model").is_dir())


def load_predictions(spec: RunSpec, root: Path) -> pd.DataFrame:
    """A finished run's predictions: id, split, margin, probability, correct."""
    return pd.read_parquet(root / "runs" / spec.name / "predictions.parquet")


def weak_labels(teacher: RunSpec, root: Path, split: str) -> pd.DataFrame:
    """The teacher's labels on a split it was not trained on: id, weak_label.

    weak_label: the probability that `chosen` is preferred; for dpo and simpo hard, 1 or 0.
    """
    table = load_predictions(teacher, root)
    table = table[table["split"] == split].reset_index(drop=True)
    hard = teacher.method != "reward"
    return pd.DataFrame(
        {"id": table["id"], "weak_label": table["correct"].astype(float) if hard else table["probability"]}
    )


def labelled_pairs(spec: RunSpec, root: Path) -> pd.DataFrame:
    """The pairs that a run trains on, with their labels: `data.training_pairs` after the filter."""
    tables = SimpleNamespace(**{split: split_table(spec, root, split) for split in SPLITS})
    labels = weak_labels(spec.teacher, root, spec.split) if spec.teacher else None
    if spec.ensemble:
        mean = mean_chance(spec, root).loc[labels["id"]].to_numpy()
        labels["weak_label"] = mean if spec.teacher.method == "reward" else (mean > 0.5).astype(float)
    if spec.relabel != "none":
        labels["weak_label"] = relabelled(labels["weak_label"].to_numpy(), spec.relabel, spec.seed)
    kept = kept_ids(spec, root) if spec.keep != "none" else None
    pairs = training_pairs(tables, spec.split, labels, spec.conflict, kept, spec.n_helpful)
    if spec.weighting != "none":  # of the weak labels; helpful pairs are gold and count as before
        own = pairs["target"].to_numpy()
        weight = np.ones(len(pairs))
        weigh = {"reliability": mitigations.reliability, "even": mitigations.even_weights}[spec.weighting]
        weight[own] = weigh(mean_chance(spec, root).loc[pairs["id"][own]])
        pairs = pairs.assign(weight=weight)
    return pairs


def mean_chance(spec: RunSpec, root: Path) -> pd.Series:
    """The mean over a run's teachers of their P that `chosen` is preferred, by id of its split.

    For reward models P is the soft label; for dpo and simpo what `chance_by` (a kind of confidence) makes of margins.
    """
    each = []
    for teacher in (spec.teacher, *spec.ensemble):
        table = load_predictions(teacher, root)
        table = confidence.with_confidence(table, spec.chance_by or "paper", teacher.method, teacher.beta)
        each.append(table[table["split"] == spec.split].set_index("id")["probability"])
    return pd.concat(each, axis=1).mean(axis=1)


def relabelled(label: np.ndarray, how: str, seed: int) -> np.ndarray:
    """Labels (n,) dealt out anew, for controls.

    "shuffled": to other pairs; `chosen` is the truly preferred response everywhere, so that they are right as
    often as before, and wrong in other places. "random": besides, each is turned round by a fair coin.
    """
    rng = np.random.default_rng([seed, len(label)])
    shuffled = rng.permutation(label)
    return shuffled if how == "shuffled" else np.where(rng.random(len(label)) < 0.5, shuffled, 1 - shuffled)


def kept_ids(spec: RunSpec, root: Path) -> set[str]:
    """Pairs that the high-confidence filter leaves: weak confidence at or above the threshold.

    "gold_oracle" keeps of those only the ones whose weak label is right, which needs gold labels.
    """
    table = confidence.with_confidence(
        load_predictions(spec.teacher, root), spec.keep_by, spec.teacher.method, spec.teacher.beta
    )
    table = table[table["split"] == spec.split]
    sure = np.maximum(table["probability"], 1 - table["probability"]) >= spec.keep_threshold
    return set(table["id"][sure & table["correct"]] if spec.keep == "gold_oracle" else table["id"][sure])


def execute(spec: RunSpec, root: Path, after: object = None, report: Callable[[int, int], None] | None = None) -> str:
    """Train and score one run unless its DONE mark is there; returns its name.

    A run that was broken off is trained anew. `after` orders runs in a Dask graph and is not used.
    """
    folder = root / "runs" / spec.name
    with locked(folder):
        if not is_done(spec, root):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            write_json(folder / "spec.json", spec.identity)
            _train_and_score(spec, root, folder, report)
            tables = load_predictions(spec, root).groupby("split")
            write_json(folder / "metrics.json", {split: _metrics(table) for split, table in tables})
            write_atomic(folder / "DONE", lambda p: p.touch())
    return spec.name


def _metrics(table: pd.DataFrame) -> dict:
    return {"pairs": len(table), "accuracy": float(table["correct"].mean())}


def _train_and_score(spec: RunSpec, root: Path, folder: Path, report) -> None:
    """Write a run's log and predictions, and its model where the spec asks for it."""
    if spec.shards == 1:
        train_and_score(Alone(spec, root), folder, report)
    else:
        from w2s import sharded

        sharded.train(spec, root, folder, report)


class Alone:
    """The process that trains a run by itself; a `sharded.Rank` is one of several that train it together."""

    first = True  # the one that writes files

    def __init__(self, spec: RunSpec, root: Path):
        self.spec, self.root, self.device = spec, root, torch.device(spec.device)

    def load(self):
        """The model, where it is trained."""
        return load_model(self.spec, self.root).to(self.device)

    def steps(self, texts: PairTexts):
        """The optimizer steps, as `fit` takes them."""
        s = self.spec
        return texts.steps(s.batch_pairs, s.epochs, s.tokens_per_batch, s.seed)

    def objective(self, each):
        """What `fit` minimizes, from the loss of each pair of a batch."""
        return each

    def score(self, model, pairs: pd.DataFrame, tokenizer) -> pd.DataFrame:
        """The predictions table of one split."""
        return score(self.spec, model, pairs, tokenizer, self.root)

    def save(self, model, tokenizer, folder: Path) -> None:
        """Write the trained model with its tokenizer."""
        model.save(folder) if self.spec.method == "reward" else models.save(model, folder)
        tokenizer.save_pretrained(folder)


def train_and_score(team: Alone, folder: Path, report=None) -> None:
    """Write a run's log, model and predictions; `team` says what of it this process does."""
    spec, root = team.spec, team.root
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    tokenizer, model = models.load_tokenizer(spec.model), team.load()
    pairs = labelled_pairs(spec, root)
    clock, total = Clock(), n_steps(len(pairs), spec.batch_pairs, spec.epochs)
    texts, each = training_texts(spec, pairs, tokenizer), training_objective(spec, pairs, root, team.device, clock)
    best = _best_weights(team, model, tokenizer, total)
    with open(folder / "log.jsonl" if team.first else os.devnull, "w", encoding="utf-8") as log:
        write, dtype = _logger(log, total, report), getattr(torch, spec.dtype)

        def after(step: int, loss: float) -> None:
            clock.done = step / total
            write(step, loss)
            if best:
                best.look(step)

        fit(model, team.steps(texts), team.objective(each), schedule(spec), total, dtype, after)
    if best:
        best.restore()
        if team.first:
            write_json(folder / "best.json", {"step": best.step, "steps": total, "validation_accuracy": best.best})
    if spec.save_model:
        team.save(model, tokenizer, folder / "model")
    tables = []
    for split in scored_splits(spec):
        table = team.score(model, split_table(spec, root, split), tokenizer)
        table.insert(1, "split", split)
        tables.append(table)
    if team.first:
        write_table(folder / "predictions.parquet", pd.concat(tables, ignore_index=True))


def _best_weights(team: Alone, model, tokenizer, total: int) -> mitigations.BestWeights | None:
    """Early stopping by accuracy on gold validation pairs, where the run has it."""
    spec = team.spec
    if not spec.gold_checks:
        return None
    validation = pair_table(team.root, spec.data, "validation")

    def accuracy() -> float:
        return float(team.score(model, validation, tokenizer)["correct"].mean())

    return mitigations.BestWeights(model, accuracy, mitigations.check_steps(total, spec.gold_checks))


def scored_splits(spec: RunSpec) -> list[str]:
    """A warm start is the reference of its run on every split; a teacher labels the split it has not seen."""
    if spec.method == "sft":
        return list(SPLITS)
    return [*(["w2s" if spec.split == "gt" else "gt"] if spec.conflict == "none" else []), "validation", "test"]


def schedule(spec: RunSpec) -> Schedule:
    """Reward models: cosine to zero. Preference optimization: 10% warm-up, then constant (the paper's recipes)."""
    return Schedule(spec.learning_rate) if spec.method == "reward" else Schedule(spec.learning_rate, 0.1, decay=False)


def load_model(spec: RunSpec, root: Path):
    """The weights that a run starts from: the pretrained ones, or those of its warm start."""
    name = str(root / "runs" / spec.start.name / "model") if spec.start else spec.model
    load = models.RewardModel.load if spec.method == "reward" else models.load_language_model
    model = load(name, lora=spec.lora, seed=spec.seed, dtype=getattr(torch, spec.dtype))
    if spec.gradient_checkpointing:
        body = model.body if spec.method == "reward" else model
        body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def training_texts(spec: RunSpec, pairs: pd.DataFrame, tokenizer) -> PairTexts:
    """Both texts of each pair; for a warm start the response alone that the label prefers."""
    if spec.method == "sft":
        preferred = pairs["chosen"].where(pairs["label"] > 0.5, pairs["rejected"])
        return PairTexts(pairs.assign(chosen=preferred), tokenizer, spec.max_length, end=True, sides=("chosen",))
    return PairTexts(pairs, tokenizer, spec.max_length, end=spec.method != "reward")


def training_objective(spec: RunSpec, pairs: pd.DataFrame, root: Path, device: torch.device, clock=None):
    """The loss of each pair of a batch, by the run's method, conflict and remedy; the caller advances `clock`."""
    if spec.method == "reward":
        weak_loss = mitigations.label_loss(spec.label_loss, spec.confidence_weight, clock or Clock())
        return reward_objective(pairs, spec.conflict, spec.alpha, device, weak_loss)
    if spec.method == "sft":
        return lambda model, batch: -text_logps(model, batch, average=True)
    return preference_objective(spec, pairs, reference_margins(spec, root, pairs["id"]), device)


def _column(pairs: pd.DataFrame, name: str, device: torch.device) -> torch.Tensor:
    """A column as float32 (pairs,); ones where the table has none, such as weights."""
    values = pairs[name].to_numpy(dtype=np.float32) if name in pairs else np.ones(len(pairs), dtype=np.float32)
    return torch.tensor(values, device=device)


def reward_objective(
    pairs: pd.DataFrame, conflict: str, alpha: float, device: torch.device, weak_loss: Callable = reward_loss
):
    """The reward loss of each pair of a batch, and the explicit conflict's term.

    `weak_loss` replaces it on the pairs of the target dimension, whose labels a teacher may have given; helpful
    pairs (target False) keep it. The column weight (1 where there is none) multiplies the label's loss alone.
    """
    label, weight, target = (_column(pairs, name, device) for name in ("label", "weight", "target"))

    def objective(model, batch):
        margin, given = pair_margins(model, batch), label[batch.index]
        loss = reward_loss(margin, given)
        if weak_loss is not reward_loss:
            loss = torch.where(target[batch.index] > 0, weak_loss(margin, given), loss)
        loss = weight[batch.index] * loss
        if conflict == "explicit":  # chosen is the truly preferred one in every pair table
            loss = loss + explicit_conflict_loss(margin, torch.ones_like(margin), alpha)
        return loss

    return objective


def preference_objective(spec: RunSpec, pairs: pd.DataFrame, reference: np.ndarray, device: torch.device):
    """The DPO or SimPO loss of each pair of a batch, turned round where the label says so.

    The explicit conflict adds alpha times the loss of the REVERSED gold pair, where the policy's
    log-probabilities contradict gold at present. `reference`: margins (pairs,) in nats, for dpo.
    The column weight (1 where there is none) multiplies the label's loss alone.
    """
    weight = _column(pairs, "weight", device)
    sign = torch.tensor(np.where(pairs["label"] > 0.5, 1.0, -1.0), dtype=torch.float32, device=device)
    reference = torch.tensor(reference, dtype=torch.float32, device=device)

    def loss_of(margin, held):
        return dpo_loss(margin, held, spec.beta) if spec.method == "dpo" else simpo_loss(margin, spec.beta, spec.gamma)

    def objective(model, batch):
        chosen, rejected = text_logps(model, batch, average=spec.method == "simpo").chunk(2)
        margin, held, turned = chosen - rejected, reference[batch.index], sign[batch.index]
        loss = weight[batch.index] * loss_of(turned * margin, turned * held)
        if spec.conflict == "explicit":
            loss = loss + spec.alpha * (margin <= 0) * loss_of(-margin, -held)
        return loss

    return objective


def reference_margins(spec: RunSpec, root: Path, ids: pd.Series) -> np.ndarray:
    """log p(chosen) - log p(rejected) of the warm start, (n,) nats, from its table; zeros for simpo."""
    if spec.method != "dpo":
        return np.zeros(len(ids), dtype=np.float32)
    table = load_predictions(spec.start, root).set_index("id")
    return (table["chosen_logp"] - table["rejected_logp"]).loc[ids].to_numpy()


def score(spec: RunSpec, model, pairs: pd.DataFrame, tokenizer, root: Path) -> pd.DataFrame:
    """The predictions table of one split; with log-probabilities and tokens where the model has no reward unit."""
    how = (tokenizer, spec.max_length, 2 * spec.tokens_per_batch, getattr(torch, spec.dtype))
    if spec.method == "reward":
        return predict(model, pairs, *how)
    table = predict_logps(model, pairs, *how)
    if spec.method == "dpo":
        table["reference_margin"] = reference_margins(spec, root, table["id"])
    method = "simpo" if spec.method == "simpo" else "dpo"  # a warm start is scored as its policy would be
    margin = confidence.margins(table, method, spec.against_reference)
    return predictions(table["id"], margin).merge(table, on="id")


def steps_logged(folder: Path) -> tuple[int, int]:
    """The last step in a run's log, and the number of its steps; zeros before the first."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    last = json.loads(lines[-1]) if lines else {"step": 0, "steps": 0}
    return last["step"], last["steps"]


def _logger(log, total: int, report):
    started = time.monotonic()

    def write(step: int, loss: float) -> None:
        if step == 1 or step % LOG_EVERY == 0 or step == total:
            seconds = round(time.monotonic() - started, 2)
            log.write(json.dumps({"step": step, "steps": total, "loss": round(loss, 5), "seconds": seconds}) + "\n")
            log.flush()
            if report:
                report(step, total)

    return write
