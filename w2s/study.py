"""A study as a plan: which runs it needs, and who teaches whom. It trains nothing and writes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from w2s import models
from w2s.data import StudyData, load
from w2s.params import BETA, GAMMA, GOLD, SECOND, ParameterError, StudyParams
from w2s.spec import SPLITS, RunSpec

RESEED = 1000  # added to the seed of a student that differs from another by its seed alone
NOISE, DOSES = (0.1, 0.2, 0.3), (0.0, 0.25, 0.5, 0.75, 1.0)  # of the labels; of the blind pairs
LABELS = ("weak", "gold", "own", "shuffled", "random")
SAME_NAME = ("learning_rate", "epochs", "lora", "batch_pairs", "max_length", "dtype", "threads", "tokens_per_batch")
SAME_NAME += ("trained_blocks", "gradient_checkpointing", "shards")  # parameters that are fields of a run
OTHER = {"gt": "w2s", "w2s": "gt"}  # the split that the teacher of one on the other has not seen


@dataclass(frozen=True)
class Study:
    """The pairs, the runs and the folders of one parameter file."""

    params: StudyParams

    @cached_property
    def data(self) -> StudyData:
        """The pair tables, read when they are first asked for."""
        return load(self.params)

    @classmethod
    def open(cls, params: StudyParams) -> Study:
        """Load the pairs and check that the models are there; trains nothing.

        Raises a ParameterError for something that is not there (or not fetched, with `offline`), a tokenizer that does
        not belong to its model, a response longer than max_length while bad_pairs is "error".
        """
        study = cls(params)
        if params.root.exists() and not params.root.is_dir():
            raise ParameterError(f"output_dir = {params.output_dir!r}: {params.root} is no folder; name another")
        tables = pd.concat([getattr(study.data, split) for split in SPLITS])
        texts = tables.melt("id", ["chosen", "rejected"], "side", "text")
        long = texts["text"].str.encode("utf-8").str.len() > params.max_length  # no token is shorter than a byte
        for name in study.models:
            tokenizer = models.matching_tokenizer(name)
            if params.bad_pairs == "error" and long.any():
                _check_lengths(texts[long], name, tokenizer, params.max_length)
        return study

    @property
    def models(self) -> list[str]:
        """Every model of the study, once."""
        p = self.params
        return list(dict.fromkeys([*p.weak_models, *p.strong_models, *p.intermediate_models]))

    def short(self, name: str) -> str:
        """A model's name as tables have it."""
        return short_names(self.models)[name]

    @property
    def root(self) -> Path:
        """The outputs folder, whose cache of runs all studies share."""
        return self.params.root

    @property
    def folder(self) -> Path:
        """This study's own folder: executed notebooks, figures, tables, report."""
        return self.root / self.params.study

    @property
    def beta(self) -> float | None:
        """The scale of the implicit reward in the loss; None for reward models."""
        return self.params.beta or BETA.get(self.params.method)

    def gold(self, model: str, seed: int) -> RunSpec:
        """Trained on `gt` with gold labels: a weak model and a strong ceiling alike."""
        return self._spec(model, "gt", seed)

    def student(self, weak: str, strong: str, conflict: str, seed: int, **changes) -> RunSpec:
        """A strong model trained on `w2s` with the weak model's labels; `changes` replace fields, for a remedy."""
        return self._spec(strong, "w2s", seed, conflict, self.gold(weak, seed), **changes)

    def bootstrapped(
        self, weak: str, middle: str | Sequence[str], strong: str, conflict: str, seed: int, **changes
    ) -> RunSpec:
        """A strong model taught by an intermediate one, or by the last of several, each taught by the one before.

        Splits alternate from `gt` of the weak model on, so that each teacher labels pairs that it has not seen.
        """
        link = self.gold(weak, seed)
        for name in [middle] if isinstance(middle, str) else middle:
            link = self._spec(name, OTHER[link.split], seed, "none", link)
        return self._spec(strong, OTHER[link.split], seed, conflict, link, **changes)

    def control(self, weak: str, strong: str, labels: str, conflict: str, seed: int, **changes) -> RunSpec:
        """A student on `w2s` with labels of one of LABELS: weak, gold, its own ceiling's, or weak ones dealt out anew.

        `changes` replace fields of the run, such as alpha, or those of `runs.cluster.helpful_pairs`.
        """
        teacher = None if labels == "gold" else self.gold(strong if labels == "own" else weak, seed)
        relabel = {"relabel": labels} if labels in ("shuffled", "random") else {}
        return self._spec(strong, "w2s", seed, conflict, teacher, **relabel | changes)

    def noisy(self, weak: str, strong: str, share: float, seed: int, labels: str = "weak") -> RunSpec:
        """The student without conflict, with this share of its weak (or gold) labels turned round."""
        return self.control(weak, strong, labels, "none", seed, relabel="noise", relabel_share=share)

    def planted(self, weak: str, strong: str, dose: float, seed: int, own: int) -> RunSpec:
        """A planted deceiver: gold labels, turned round on a share `dose` of the teacher's blind pairs alone.

        `seed` is that of teacher and ceiling, `own` the student's.
        """
        by = {"keep_threshold": self.params.threshold, "keep_by": self.params.confidence}
        changes = {"relabel": "planted", "relabel_share": dose, "ceiling": self.gold(strong, seed), **by}
        return self._spec(strong, "w2s", own, "none", self.gold(weak, seed), **changes)

    def reseeded(self, weak: str, strong: str, seed: int, times: int = 1) -> RunSpec:
        """The student without conflict of the same teacher, from another training seed (`times`: which other)."""
        return self._spec(strong, "w2s", seed + times * RESEED, "none", self.gold(weak, seed))

    def untrained(self, strong: str, seed: int) -> RunSpec:
        """A reward model before its first step: the pretrained body with a fresh unit."""
        return self._spec(strong, "w2s", seed, epochs=0)

    def baseline(self, model: str) -> RunSpec:
        """What a language model prefers before any training: the response of the larger mean log-probability."""
        fixed = {"learning_rate": 0.0, "batch_pairs": 1, "trained_blocks": None, "lora": None, "save_model": False}
        fixed |= {"method": "baseline", "epochs": 0, "start": None, "beta": None, "gamma": None}
        return replace(self._spec(model, "gt", 0), against_reference=False, **fixed)

    def _spec(self, model: str, split: str, seed: int, conflict="none", teacher=None, **changes) -> RunSpec:
        p = self.params
        fields = {name: getattr(p, name) for name in SAME_NAME} | {"save_model": p.save_models}
        fields["alpha"] = p.alpha if conflict == "explicit" else 0.0
        fields["device"] = "cpu" if p.frozen else str(models.choose_device(p.device))  # shipped runs were trained there
        if teacher and p.weak_filter != "none":
            fields |= {"keep": p.weak_filter, "keep_threshold": p.threshold, "keep_by": p.confidence}
        fields["other"] = self.data.other_fingerprint
        named = (model, models.fingerprint(model), self.data.fingerprint, split, seed, conflict)
        spec = RunSpec(*named, teacher=teacher, **fields | changes)
        return spec if p.method == "reward" else self._preference(spec)

    def _preference(self, spec: RunSpec) -> RunSpec:
        """The same run by DPO or SimPO, after a warm start on the responses that its labels prefer.

        The explicit conflict changes no pair, so that it shares the warm start of the run without.
        """
        p, changes = self.params, {"method": "sft", "alpha": 0.0, "weighting": "none", "gold_checks": 0}
        changes |= {"learning_rate": p.sft_learning_rate or p.learning_rate, "epochs": p.sft_epochs or 1}
        changes |= {"conflict": spec.conflict if spec.conflict == "implicit" else "none", "save_model": True}
        start = replace(spec, **changes, chance_by=spec.chance_by if spec.ensemble else None)
        gamma = (GAMMA if p.gamma is None else p.gamma) if p.method == "simpo" else None
        against = p.method == "dpo" and p.confidence != "paper"
        return replace(spec, start=start, method=p.method, beta=self.beta, gamma=gamma, against_reference=against)

    @property
    def model_pairs(self) -> list[tuple[str, str]]:
        """Every (weak, strong) with weak smaller than strong, by parameters; a ParameterError where there is none.

        With `model_pairs: all`, those of equal or falling size too.
        """
        size = models.n_parameters
        every = list(itertools.product(self.params.weak_models, self.params.strong_models))
        if self.params.model_pairs == "all":
            return every
        rising = [(weak, strong) for weak, strong in every if size(weak) < size(strong)]
        if not rising:
            words = f"none is larger than a weak model of {self.params.weak_models}; name a larger one"
            raise ParameterError(f"strong_models = {self.params.strong_models}: {words}")
        return rising

    @property
    def twins(self) -> list[tuple[str, str]]:
        """Couples of weak models of one size (to 5% of the parameters), each model in one couple at most."""
        rising, couples = sorted(self.params.weak_models, key=models.n_parameters), []
        for one, other in itertools.pairwise(rising):
            if models.n_parameters(other) <= 1.05 * models.n_parameters(one) and one not in sum(couples, ()):
                couples.append((one, other))
        return couples

    @property
    def instrument(self) -> tuple[tuple[str, ...], str] | None:
        """The twins and the strong model that yardsticks are tested on: the largest of each; else `_largest_pair`."""
        size = models.n_parameters
        for couple in reversed(self.twins):
            larger = [strong for weak, strong in self.model_pairs if weak == couple[0]]
            if larger := [strong for strong in larger if size(strong) > size(couple[1])]:
                return couple, max(larger, key=size)
        return self._largest_pair()

    def _largest_pair(self) -> tuple[tuple[str], str] | None:
        """For a study without twins: the largest strong model's largest weak one; None with `frozen`: none ships."""
        if self.params.frozen:
            return None
        size = models.n_parameters
        weak, strong = max(self.model_pairs, key=lambda pair: (size(pair[0]) < size(pair[1]), *map(size, pair[::-1])))
        return (weak,), strong

    def known_answers(self, noise=NOISE[1:2], doses=DOSES[-1:], conflicts: Sequence[str] = ()) -> dict[RunSpec, dict]:
        """Students of the `instrument` whose answer is known, for a yardstick to pass.

        The tag `conflict` is the control's name. "other seed" differs from the student without conflict by nothing
        else. All others have gold labels, and are compared with a student of gold labels (GOLD): a share of them is
        turned round ("noise 20%"), a conflict is added ("gold, explicit"), a deceiver is planted ("planted 100%").
        Gold labels know of no teacher, so that the second twin's are another seed's. In a study of one seed, a second
        student without conflict for every twin and strong model chooses the pairs that the twin contrast counts.
        """
        if not self.instrument:
            return {}
        couple, strong = self.instrument
        runs = {}
        for weak, larger in self.model_pairs if len(self.params.seeds) == 1 else ():
            if weak in sum(self.twins, ()):
                seed = self.params.seeds[0]
                runs[self.reseeded(weak, larger, seed, 2)] = self._tags("control", seed, SECOND, larger, weak)
        for seed, (k, weak) in itertools.product(self.params.seeds, enumerate(couple)):
            own = seed + k * RESEED
            each = {"other seed": self.reseeded(weak, strong, seed)}
            each |= {GOLD: self.control(weak, strong, "gold", "none", own)}
            each |= {f"noise {share:.0%}": self.noisy(weak, strong, share, own, "gold") for share in noise}
            each |= {f"gold, {c}": self.control(weak, strong, "gold", c, own) for c in conflicts}
            each |= {f"planted {dose:.0%}": self.planted(weak, strong, dose, seed, own + 2 * RESEED) for dose in doses}
            runs |= {spec: self._tags("control", seed, name, strong, weak) for name, spec in each.items()}
        return runs

    @property
    def chains(self) -> list[tuple[str, str, str]]:
        """Every (weak, intermediate, strong) of rising size."""
        size = models.n_parameters
        every = itertools.product(self.model_pairs, self.params.intermediate_models)
        return [(weak, m, strong) for (weak, strong), m in every if size(weak) < size(m) < size(strong)]

    def _tags(self, role: str, seed: int, conflict: str, model: str, teacher: str = "", via: str = "") -> dict:
        """The columns that name a run in the predictions table."""
        short = {"model": model, "teacher": teacher, "via": via}
        short = {column: self.short(name) if name else "" for column, name in short.items()}
        return {"role": role, **short, "conflict": conflict, "seed": seed}

    def gold_runs(self, names: list[str]) -> dict[RunSpec, dict]:
        """Gold-trained runs with the columns that name them."""
        each = itertools.product(self.params.seeds, dict.fromkeys(names))
        return {self.gold(model, seed): self._tags("gold", seed, "none", model) for seed, model in each}

    def baseline_runs(self) -> dict[RunSpec, dict]:
        """What each strong model prefers before any training, if the study asks for it."""
        strong = self.params.strong_models if self.params.baseline else ()
        return {self.baseline(model): self._tags("baseline", 0, "none", model) for model in strong}

    def student_runs(self) -> dict[RunSpec, dict]:
        """One student for every pair of models, conflict and seed; a ParameterError where helpful pairs are missing."""
        p = self.params
        if "implicit" in p.conflicts and not len(self.data.helpful):
            remedy = "raise it, or leave implicit out of conflicts"
            raise ParameterError(f"n_helpful = {p.n_helpful}: the implicit conflict needs helpful pairs; {remedy}")
        each = itertools.product(p.seeds, self.model_pairs, p.conflicts)
        return {self.student(w, s, c, seed): self._tags("student", seed, c, s, w) for seed, (w, s), c in each}

    def bootstrapped_runs(self) -> dict[RunSpec, dict]:
        """One bootstrapped student for every chain, conflict and seed."""
        each = itertools.product(self.params.seeds, self.chains, self.params.conflicts)
        named = {(*chain, c, seed): self._tags("bootstrapped", seed, c, *chain[::-1]) for seed, chain, c in each}
        return {self.bootstrapped(*run): tags for run, tags in named.items()}

    def direct_runs(self) -> dict[RunSpec, dict]:
        """Every run of notebooks 02 and 03: weak models, ceilings, students of weak models, baselines if wanted."""
        gold = self.gold_runs([*self.params.weak_models, *self.params.strong_models])
        return gold | self.baseline_runs() | self.student_runs()

    def all_runs(self) -> dict[RunSpec, dict]:
        """Every run of the five notebooks."""
        return self.direct_runs() | self.known_answers() | self.bootstrapped_runs()


def _check_lengths(texts: pd.DataFrame, name: str, tokenizer, most: int) -> None:
    """Stop at a response (columns id, side, text) that is longer than `most` tokens by itself."""
    ids = tokenizer(texts["text"].tolist(), add_special_tokens=False)["input_ids"]
    long = texts.assign(tokens=[len(row) for row in ids]).query("tokens > @most")
    if len(long):
        row = long.iloc[0]
        what = f"the {row.side} response of {row.id} has {row.tokens} tokens with the tokenizer of {name!r}"
        remedy = "raise max_length, or set bad_pairs: drop to cut its beginning"
        raise ParameterError(f"max_length = {most}: {what}; {remedy}")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Models as tables name them: the last part of each path, or as many as tell them apart."""
    parts, short = {name: Path(name).parts for name in names}, {}
    for name, own in parts.items():
        others = [other for which, other in parts.items() if which != name]
        unique = (k for k in range(1, len(own)) if all(other[-k:] != own[-k:] for other in others))
        short[name] = "/".join(own[-next(unique, len(own)) :])
    return short
