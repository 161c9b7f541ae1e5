"""Load the pairs of a study, part them into splits without a common prompt, mix the conflicts.

The split `helpful` holds the pairs of the conflicting dimension; its name is that of the paper's
setting, and with `target: helpful` these pairs are harmless ones.
Nothing here depends on the seeds of a study: every repetition sees the same tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from w2s.params import ParameterError, StudyParams, nearest
from w2s.sources.audit import SUFFIXES, DataError, Found, Source, audit_table, audit_tokens, examine, read_file
from w2s.sources.hub import EXPECTED, _folder, _hub_sources, _single_turn
from w2s.world import SPLITS, World, dimension_of

__all__ = ["DataError", "StudyData", "audit_tokens", "load", "table_fingerprint", "training_pairs"]

PAIR_COLUMNS = ["id", "prompt", "chosen", "rejected", "dimension"]

# A prompt that two splits share stays in the first of them. Test keeps all of its pairs.
PRIORITY = ("test", "validation", "gt", "w2s", "helpful")

ORDER_SEED = 0

# Names without suffix. The last patterns are the folders of a downloaded copy of the hub's data.
ROLES = {
    "gt": ("gt", "harmless_train_gt"),
    "w2s": ("w2s", "harmless_train_w2s"),
    "validation": ("validation", "harmless_validation"),
    "test": ("test", "harmless_test"),
    "helpful": ("helpful*", "helpful-base/*"),
    "pool": ("harmless", "train", "harmless-base/*", "data/*_prefs-*", "data/*_sft-*"),
}
# With helpful as the target the dimensions change places: helpful files are the pool, all others the conflict.
SWAPPED = {"pool": ROLES["helpful"], "helpful": sum((ROLES[role] for role in ROLES if role != "helpful"), ())}


@dataclass(frozen=True, eq=False)
class StudyData:
    """The pair tables of a study, what the audit found, and where they come from."""

    gt: pd.DataFrame
    w2s: pd.DataFrame
    helpful: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    audit: pd.DataFrame
    source: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the ids and texts of all five tables; the same wherever the files lie."""
        parts = [table_fingerprint(getattr(self, split)) for split in SPLITS]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def table_fingerprint(table: pd.DataFrame) -> str:
    """sha256 over ids, texts and dimensions of a pair table, in the order of its rows."""
    return hashlib.sha256(json.dumps(table[PAIR_COLUMNS].to_numpy().tolist()).encode()).hexdigest()


def load(params: StudyParams) -> StudyData:
    """The tables that `params` asks for: the pocket world, HH or CAI, or a folder of pairs.

    HH and CAI come from the hub, or from `data_dir` (else the variable W2S_DATA_DIR) and then
    nothing is looked up online; single-turn pairs are kept, as in the paper (Data). A folder of
    your own keeps its dialogues of several turns.

    Raises:
        ParameterError: nothing readable at `data`, or fewer pairs than an n_* asks for.
        DataError: an unreadable file, a file missing, or a bad pair while bad_pairs is "error".
    """
    if params.data == "pocket":
        return _pocket(params)
    folder = _folder(params)
    sources = _hub_sources(params) if folder is None else _folder_sources(folder, params)
    found, tables = _split(sources, params)
    source = {
        "data": params.data if params.data in ("hh", "cai") else "folder",
        "read_from": "hub" if folder is None else "folder",
        "files": {s.name: s.sha256 for role in sources.values() for s in role},
        "filters": {"bad_pairs": params.bad_pairs, "single_turn": _single_turn(params)},
        "order_seed": ORDER_SEED,
        "target": params.target,
    }
    return _study_data(found, tables, source)


def _study_data(found: Mapping[str, Found], tables: dict[str, pd.DataFrame], source: dict) -> StudyData:
    sizes = {split: len(tables[split]) for split in SPLITS}
    return StudyData(**tables, audit=audit_table(found, tables), source=source | {"sizes": sizes})


def _pocket(params: StudyParams) -> StudyData:
    world, found, tables = World(), {}, {}
    for split in SPLITS:
        n = getattr(params, f"n_{split}")
        try:
            tables[split] = world.pairs(split, max(n, 1), params.target).head(n)
        except ValueError as error:
            raise ParameterError(f"n_{split} = {n}: {error}; lower n_{split}") from None
        prompts = tables[split].prompt.tolist()
        found[split] = Found("pocket world", table_fingerprint(tables[split]), prompts=prompts)
        found[split].counts["rows_read"] = len(prompts)
    source = {"data": "pocket", "read_from": "pocket world", "world": asdict(world), "target": params.target}
    return _study_data(found, tables, source)


def _folder_sources(folder: Path, params: StudyParams) -> dict[str, list[Source]]:
    """Role -> files of that role in `folder`, in order of their names."""
    names = sorted(p.relative_to(folder).as_posix() for g in ("*", "*/*") for p in folder.glob(g) if p.is_file())
    wanted = ROLES if params.target == "harmless" else SWAPPED
    roles = {role: [name for name in names if _has_role(name, patterns)] for role, patterns in wanted.items()}
    if not params.n_helpful:
        roles["helpful"] = []
    try:
        _plan({role for role in roles if roles[role]}, params)
    except DataError as error:
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "nothing"
        expected = f"{EXPECTED[params.target]} ({', '.join(SUFFIXES)})"
        raise DataError(f"{folder}: {error}; expected {expected}; found {shown}") from None
    return {role: [read_file(folder, name) for name in roles[role]] for role in roles if roles[role]}


def _has_role(name: str, patterns: tuple[str, ...]) -> bool:
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    stem = name.lower().removesuffix(suffix) if suffix else ""
    return any(stem.count("/") == p.count("/") and fnmatchcase(stem, p) for p in patterns)


def _plan(roles: set[str], params: StudyParams) -> dict[str, list[str]]:
    """Role -> the splits drawn from its rows, in the order in which prompts are claimed.

    A pool comes after the files of single splits, since it may contain their pairs.

    Raises:
        DataError: a split that no role supplies.
    """
    plan = {split: [split] for split in PRIORITY[:-1] if split in roles}
    missing = [split for split in PRIORITY[:-1] if split not in roles]
    if missing and "pool" in roles:
        plan["pool"] = missing
    elif missing == ["validation"]:
        plan["gt"] = ["validation", "gt"]
    elif missing:
        raise DataError(f"no file for {', '.join(m for m in missing if m != 'validation')}")
    if "helpful" in roles:
        plan["helpful"] = ["helpful"]
    elif params.n_helpful:
        raise DataError(f"no file for {params.conflicting} (n_helpful = {params.n_helpful}; 0 goes without)")
    return plan


def _split(sources: Mapping[str, list[Source]], params: StudyParams) -> tuple[dict, dict]:
    """Split -> Found, and split -> table: clean each role's rows, and draw its splits from them."""
    found = {split: Found("", "") for split in SPLITS}
    tables = {split: _table(pd.DataFrame(columns=PAIR_COLUMNS[1:4]), split, params) for split in SPLITS}
    claimed: set[str] = set()
    for role, splits in _plan(set(sources), params).items():
        for split in splits:
            found[split].source = " + ".join(s.name for s in sources[role])
            found[split].sha256 = " + ".join(s.sha256 for s in sources[role])
        owner = "gt" if "gt" in splits else splits[0]
        pairs = _clean(sources[role], claimed, found[owner], params)
        claimed |= set(pairs.prompt)
        parts = draw_by_prompt(pairs, {split: getattr(params, f"n_{split}") for split in splits})
        for split, part in parts.items():
            tables[split] = _table(_first(part, split, found[owner], params), split, params)
            found[split].counts.update(carved=len(part), unused=len(part) - len(tables[split]))
        drawn = sum(map(len, parts.values()))
        found[owner].counts.update(carved=-drawn, unused=len(pairs) - drawn)
    return found, tables


def _clean(sources: list[Source], claimed: set[str], owner: Found, params: StudyParams) -> pd.DataFrame:
    """The usable pairs of the sources, each once, without those whose prompt is claimed."""
    rows = (row for source in sources for row in source.rows)
    pairs = examine(rows, owner, params.bad_pairs, _single_turn(params))
    once = pairs.drop_duplicates()
    fresh = once[~once.prompt.isin(claimed)]
    owner.counts.update(identical_pairs=len(pairs) - len(once), dropped_as_shared=len(once) - len(fresh))
    return fresh


def draw_by_prompt(pairs: pd.DataFrame, sizes: Mapping[str, int]) -> dict[str, pd.DataFrame]:
    """Draw splits that share no prompt: prompts in a fixed random order, each with all its pairs.

    A split stops at the first prompt that brings it to its size, so that it can exceed the size
    by the other pairs of that prompt; it is smaller where the pairs run out.
    """
    codes, prompts = pd.factorize(pairs.prompt)
    rank = np.random.default_rng(ORDER_SEED).permutation(len(prompts))[codes]
    order = np.argsort(rank, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(rank[order])) + 1, len(pairs))
    parts, start = {}, 0
    for split, size in sizes.items():
        stop = ends[min(np.searchsorted(ends, start + size), len(ends) - 1)]
        parts[split] = pairs.iloc[order[start:stop]]
        start = stop
    return parts


def _first(part: pd.DataFrame, split: str, owner: Found, params: StudyParams) -> pd.DataFrame:
    """As many pairs of `part` as the parameter of the split asks for."""
    n = getattr(params, f"n_{split}")
    if len(part) < n:
        use = params.conflicting if split == "helpful" else split
        state = f"{len(part)} usable pairs are left for {use} of {owner.counts['rows_read']} rows in {owner.source}"
        raise ParameterError(f"n_{split} = {n}: only {state}; lower n_{split}")
    return part.iloc[:n]


def _table(pairs: pd.DataFrame, split: str, params: StudyParams) -> pd.DataFrame:
    table = pairs.reset_index(drop=True)
    table.insert(0, "id", pd.Series([f"{split}-{i:05d}" for i in range(len(table))], dtype="str"))
    return table.assign(dimension=dimension_of(split, params.target)).astype("str")


def training_pairs(
    data: StudyData,
    split: str,
    labels: pd.DataFrame | None = None,
    conflict: str = "none",
    kept: set[str] | None = None,
    n_helpful: int | None = None,
) -> pd.DataFrame:
    """The pairs that one run trains on: the columns of the split, and label and target.

    label: probability that `chosen` is preferred; 1.0 is gold. `labels` (id, weak_label) are
    joined by id, and may hold other ids besides. target (bool): True for the pairs of the target
    dimension. The implicit conflict adds all helpful pairs, or the first `n_helpful`, with gold
    labels; the explicit one is a term of the loss and adds none. `kept` are the ids that a filter
    leaves; helpful pairs are then cut to the same number. Not shuffled. Source: the paper, Reward
    modelling.

    Raises:
        ValueError: an unknown split or conflict, no helpful pairs, or labels that do not fit.
    """
    if split not in ("gt", "w2s", "validation"):
        raise ValueError(f"split {split!r}: choose one of gt, w2s, validation")
    if conflict not in ("none", "explicit", "implicit"):
        raise ValueError(f"conflict {conflict!r}: {nearest(conflict, ['none', 'explicit', 'implicit'])}")
    pairs = getattr(data, split)
    pairs = pairs.assign(label=1.0 if labels is None else _labels_for(pairs.id, labels, split), target=True)
    if kept is not None:
        pairs = pairs[pairs["id"].isin(kept)].reset_index(drop=True)
        if pairs.empty:
            raise ValueError(f"weak_filter: no pair of {split} is labelled with enough confidence; lower threshold")
    if conflict != "implicit":
        return pairs
    if data.helpful.empty:
        raise ValueError("conflict 'implicit': there are no helpful pairs; set n_helpful to 1 or more")
    helpful = data.helpful if n_helpful is None else data.helpful.head(n_helpful)
    helpful = helpful if kept is None else helpful.head(len(pairs))
    return pd.concat([pairs, helpful.assign(label=1.0, target=False)], ignore_index=True)


def _labels_for(ids: pd.Series, labels: pd.DataFrame, split: str) -> np.ndarray:
    by_id = labels.set_index("id")["weak_label"]
    if by_id.index.has_duplicates:
        raise ValueError(f"labels: id {by_id.index[by_id.index.duplicated()][0]} occurs twice; keep one label a pair")
    values = ids.map(by_id)
    if values.isna().any():
        first = ids[values.isna()].iloc[0]
        raise ValueError(
            f"labels: no weak_label for {values.isna().sum()} of {len(ids)} pairs of {split}, such as {first}"
        )
    if not values.between(0, 1).all():
        raise ValueError(f"labels: weak_label {values[~values.between(0, 1)].iloc[0]} is no probability (0 to 1)")
    return values.to_numpy(dtype=float)
