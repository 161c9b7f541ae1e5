"""The contenders: this kit, TRL's trainers, and the plain research loop; each trains and scores the same case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import research_loop
import torch
from outcome import WITH, WITHOUT
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from tricks import TRICKS, TRIED, without_use

from w2s import models, train
from w2s.batches import encode, n_steps
from w2s.fast import cpu
from w2s.params import BETA, GAMMA, Lora
from w2s.predict import predict_logps
from w2s.runs import execute
from w2s.spec import RunSpec
from w2s.train import Schedule, fit

RATE, SEED, TRL_PAIRS = 1e-4, 0, 8  # TRL_PAIRS: on a device at once, its own default


@dataclass(frozen=True)
class Setting:
    """Where it is measured: a device, the dtype of forward passes, and how much a contender takes at once.

    tokens: the kit's padded tokens. trl_tokens: TRL takes as many pairs as fit in them at the whole context; None: 8,
    its own default.
    """

    device: str = "cpu"
    dtype: str = "float32"
    tokens: int = 4096
    trl_tokens: int | None = None


CPU = Setting()
GPU = Setting("cuda", "bfloat16", 8192, 8192)


@dataclass(frozen=True)
class Case:
    """What is measured: a method on a model at a context, and the pairs that are trained on and scored.

    `lora`: adapters that are trained in the model's place. `alone`: with no contender but the kit.
    """

    method: str
    model: str
    context: int
    folder: Path
    train: pd.DataFrame
    test: pd.DataFrame
    batch_pairs: int
    source: str
    setting: Setting = CPU
    lora: Lora | None = None
    alone: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.setting.dtype)

    @property
    def name(self) -> str:
        return f"{self.method} {self.model} {self.context}"

    @property
    def in_order(self) -> pd.DataFrame:
        """The training pairs in the order in which the kit draws them."""
        return self.train.iloc[np.random.default_rng([SEED, 0]).permutation(len(self.train))].reset_index(drop=True)


class Contender:
    """A loaded model, which every repetition trains from the same weights."""

    def __init__(self, case: Case):
        self.case = case
        self.tokenizer = models.load_tokenizer(str(case.folder))
        self.model = self.load().to(case.setting.device)
        self.weights = [(p, p.detach().clone()) for p in self.model.parameters() if p.requires_grad]

    def load(self):
        case, load = self.case, models.load_language_model
        if case.method == "reward":
            load = models.RewardModel.load
        return load(str(case.folder), lora=case.lora, seed=SEED, dtype=case.dtype)

    @torch.no_grad()
    def reset(self) -> None:
        """Weights as loaded, no gradients."""
        for parameter, value in self.weights:
            parameter.copy_(value)
        self.model.zero_grad()

    def prepare(self, task: str) -> None:
        """What is not timed."""

    def train(self) -> float:
        """One pass over the training pairs; returns the loss of its last step."""
        raise NotImplementedError

    def score(self) -> float:
        """The mean margin of the test pairs."""
        raise NotImplementedError


class Kit(Contender):
    """As a run of a study does it. DPO's time includes its pass of the reference model over the training pairs."""

    def __init__(self, case: Case):
        cpu.keep_memory()  # as every worker of a study does
        super().__init__(case)

    def train(self) -> float:
        case, losses = self.case, []
        spec, device = self._spec, torch.device(case.setting.device)
        pairs = case.train.assign(label=1.0)
        held = self._summed_margins(pairs).to_numpy() if case.method == "dpo" else np.zeros(len(pairs))
        objective = train.training_objective(spec, pairs, device, reference=held)
        steps = execute.Alone(spec, Path()).steps(train.training_texts(spec, pairs, self.tokenizer))
        total = n_steps(len(pairs), spec.batch_pairs, 1)
        schedule = Schedule(RATE, decay=False)
        fit(self.model, steps, objective, schedule, total, case.dtype, lambda _, loss: losses.append(loss))
        return losses[-1]

    def score(self) -> float:
        if self.case.method == "dpo":  # the reference's part of a DPO run comes from its warm start
            return float(self._summed_margins(self.case.test).mean())
        return float(execute.score(self._spec, self.model, self.case.test, self.tokenizer, Path())["margin"].mean())

    @property
    def _spec(self) -> RunSpec:
        case, where = self.case, self.case.setting
        return RunSpec(
            str(case.folder), "", "", "gt", SEED, method=case.method, beta=BETA.get(case.method), gamma=GAMMA,
            batch_pairs=case.batch_pairs, max_length=case.context, lora=case.lora, device=where.device,
            dtype=where.dtype, tokens_per_batch=where.tokens,
        )  # fmt: skip

    def _summed_margins(self, pairs: pd.DataFrame) -> pd.Series:
        """log p(chosen) - log p(rejected) of each pair, in nats."""
        case = self.case
        how = (self.tokenizer, case.context, 2 * case.setting.tokens, case.dtype)
        table = predict_logps(self.model, pairs, *how)
        return table["chosen_logp"] - table["rejected_logp"]


class Padded(Kit):
    """The kit with padded texts, as it computes architectures that do not take packed rows."""

    def load(self):
        model = super().load()
        (model.body if self.case.method == "reward" else model).set_attn_implementation("sdpa")
        return model


class Research(Contender):
    """One pair at a time, with the model as transformers loads it."""

    def load(self):
        folder = self.case.folder
        if self.case.method != "reward":
            return AutoModelForCausalLM.from_pretrained(folder)
        return models.RewardModel(AutoModel.from_pretrained(folder), seed=SEED)

    def train(self) -> float:
        case = self.case
        return research_loop.train(
            self.model, case.in_order, self.tokenizer, case.method, case.context, case.batch_pairs, RATE, case.dtype
        )

    def score(self) -> float:
        case = self.case
        margins = research_loop.score(self.model, case.test, self.tokenizer, case.method, case.context, case.dtype)
        return float(margins.mean())


class Trl(Contender):
    """TRL's trainer of the method, in batches of the setting's size; making the trainer is not timed."""

    precomputed = False

    def load(self):
        loader = AutoModelForSequenceClassification if self.case.method == "reward" else AutoModelForCausalLM
        labels = {"num_labels": 1} if self.case.method == "reward" else {}
        model = loader.from_pretrained(self.case.folder, dtype=torch.float32, **labels)
        if self.case.method == "reward":
            model.score.weight.data.copy_(super().load().unit.weight.data)
        return model

    def prepare(self, task: str) -> None:
        self.trainer, self.losses = self._trainer(), []
        computed = self.trainer.training_step

        def noted(*args, **kwargs):
            self.losses.append(computed(*args, **kwargs))
            return self.losses[-1]

        self.trainer.training_step = noted

    def train(self) -> float:
        self.trainer.train()
        last = self.case.batch_pairs // self._per_device
        return float(sum(self.losses[-last:]))

    def score(self) -> float:
        found = self.trainer.evaluate()
        if self.case.method == "reward":
            return found["eval_margin"]
        return found["eval_logps/chosen"] - found["eval_logps/rejected"]

    @property
    def _per_device(self) -> int:
        case = self.case
        room = case.setting.trl_tokens
        return min(room // (2 * case.context) if room else TRL_PAIRS, case.batch_pairs)

    def _trainer(self):
        from datasets import Dataset, disable_progress_bars
        from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        disable_progress_bars()
        case, texts = self.case, ["prompt", "chosen", "rejected"]
        settings = {
            "use_cpu": case.setting.device == "cpu", "bf16": case.dtype == torch.bfloat16, "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False,
            "per_device_train_batch_size": self._per_device, "per_device_eval_batch_size": self._per_device,
            "gradient_accumulation_steps": case.batch_pairs // self._per_device, "max_length": case.context,
            "num_train_epochs": 1, "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
            "save_strategy": "no", "logging_strategy": "no", "train_sampling_strategy": "sequential",
            "output_dir": str(case.folder / "trl"),
        }  # fmt: skip
        if case.method == "reward":
            made, config = RewardTrainer, RewardConfig(**settings)
            train, test = (Dataset.from_dict(self._encoded(table)) for table in (case.in_order, case.test))
        else:
            train, test = (Dataset.from_pandas(table[texts]) for table in (case.in_order, case.test))
        if case.method == "dpo":
            config = DPOConfig(**settings, beta=BETA["dpo"], precompute_ref_log_probs=self.precomputed)
            made, held = DPOTrainer, self.load().to(case.setting.device)
            return made(
                self.model, held, config, train_dataset=train, eval_dataset=test, processing_class=self.tokenizer
            )
        if case.method == "simpo":
            loss = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": BETA["simpo"], "simpo_gamma": GAMMA}
            made, config = CPOTrainer, CPOConfig(**settings, **loss, remove_unused_columns=False)
        return made(self.model, config, train_dataset=train, eval_dataset=test, processing_class=self.tokenizer)

    def _encoded(self, pairs: pd.DataFrame) -> dict[str, list[list[int]]]:
        """TRL's columns of a reward model, without the end token that it would put."""
        sides = {"chosen_ids": pairs["chosen"], "rejected_ids": pairs["rejected"]}
        return {key: encode(self.tokenizer, pairs["prompt"], texts, 10**6)[0] for key, texts in sides.items()}


class TrlPrecomputed(Trl):
    """DPO with the reference's log-probabilities computed before; that computing is not timed."""

    precomputed = True


class Without(Kit):
    """The kit without one of its TRICKS; in a process of its own."""

    trick: str

    def load(self):
        setattr(*TRICKS[self.trick])
        return super().load()


class With(Kit):
    """The kit with a trick that it does not have, of those TRIED; in a process of its own."""

    trick: str

    def load(self):
        model = super().load()
        TRIED[self.trick](model)
        return model


CONTENDERS = {
    "w2s": Kit,
    "w2s, padded": Padded,
    "research loop": Research,
    "TRL": Trl,
    "TRL, reference precomputed": TrlPrecomputed,
    **{WITHOUT + trick: type("Without", (Without,), {"trick": trick}) for trick in TRICKS},
    **{WITH + trick: type("With", (With,), {"trick": trick}) for trick in TRIED},
}


def contenders_of(method: str, task: str, tricks: bool = False, alone: bool = False) -> list[str]:
    """Those that do a task of a method. TRL's SFT averages over tokens, not over texts, so that it has another loss."""
    if alone:
        return ["w2s"]
    left_out = {("sft", "TRL"), *((m, "TRL, reference precomputed") for m in ("reward", "sft", "simpo"))}
    left_out |= {(method, WITH + trick) for trick in without_use(method, task)}
    return [
        name
        for name, made in CONTENDERS.items()
        if (method, name) not in left_out and (tricks or not issubclass(made, Without | With))
    ]
