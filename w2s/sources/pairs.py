"""Read the pairs of a study from files or the hub, and draw splits without a common prompt from them."""

import hashlib
import json
import re
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from w2s.files import located
from w2s.params import ParameterError, StudyParams
from w2s.sources import TABLES, hub
from w2s.sources.audit import FAULTS, RESPONSES, SUFFIXES, DataError, Origin, Source, brief, fault_of, read_file
from w2s.world import dimension_of

# A prompt that two splits share stays in the first of them. Test keeps all of its pairs.
PRIORITY = ("test", "validation", "gt", "w2s")
ORDER_SEED = 0

SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # of the hub: train-00000-of-00001
ROLES = {role: tuple(patterns) for role, patterns in TABLES["roles"].items()}
# With helpful as the target the dimensions change places: helpful files are the pool, all others the conflict.
SWAPPED = {"pool": ROLES["helpful"], "helpful": sum((ROLES[role] for role in ROLES if role != "helpful"), ())}


def read(params: StudyParams) -> tuple[dict[str, Origin], dict[str, pd.DataFrame], dict] | None:
    """The origin and the table of each split, and the record of where they come from; None for the pocket world.

    First of all, for every kind of data, it checks that `offline` lacks nothing. Errors are those of `data.load`.
    """
    for item in hub.wanted(params) if params.offline else []:
        if hub.fetched(item.kind, item.name) is None:
            raise ParameterError(f"{item}: not fetched, and offline = True; {hub.GET}")
    if params.data == "pocket":
        return None
    folder = hub.pairs_folder(params)
    if folder:
        sources = _read_folder(folder, params)
    else:
        sources = {role: _read_dataset(item, params) for role, item in hub.hub_parts(params).items()}
    origins, tables, claimed = {}, {}, set()
    for role, splits in _plan(sources, folder, params).items():
        parts = sources.get(role, [])
        names, digests = (" + ".join(getattr(part, key) for part in parts) for key in ("name", "sha256"))
        origins |= {split: Origin(names, digests, dimension_of(split, params.target)) for split in splits}
        owner = origins["gt" if "gt" in splits else splits[0]]
        pairs = _usable(parts, claimed, owner, params)
        drawn = draw_by_prompt(pairs, {split: getattr(params, f"n_{split}") for split in splits})
        shared = role != "helpful" and parts == sources.get("helpful")  # which then has the rest of it
        claimed |= set(pd.concat(drawn.values()).prompt if shared else pairs.prompt)
        for split, part in drawn.items():
            tables[split] = _table(part, split, owner, params)
            origins[split].counts.update(carved=len(part), unused=len(part) - len(tables[split]))
        n_drawn = sum(map(len, drawn.values()))
        owner.counts.update(carved=-n_drawn, unused=len(pairs) - n_drawn)
    on_hub = params.data in hub.HARMLESS
    source = {"data": params.data if on_hub else "folder", "read_from": "folder" if folder else "hub"}
    source["files"] = {source.name: source.sha256 for parts in sources.values() for source in parts}
    source["filters"] = {"bad_pairs": params.bad_pairs, "single_turn": on_hub}
    return origins, tables, source | {"order_seed": ORDER_SEED, "target": params.target}


def read_other(params: StudyParams, known: set[str]) -> pd.DataFrame:
    """At most n_test pairs from the folder or the file `other_data`, none with a prompt in `known`.

    Raises a ParameterError where there are none; what cannot be used is dropped, or stops by `bad_pairs`.
    """
    path = located(params.other_data)
    names = [path.name] if path.is_file() else [name for name in _names(path) if name.lower().endswith(SUFFIXES)]
    sources = [read_file(path.parent if path.is_file() else path, name) for name in names]
    pairs = _usable(sources, known, Origin(dimension=params.target), params.model_copy(update={"data": "other"}))
    if pairs.empty:
        what = f"no pairs there with other prompts, in files {', '.join(SUFFIXES)}"
        raise ParameterError(f"other_data = {params.other_data!r}: {what}; name another folder or file")
    table = draw_by_prompt(pairs, {"other": params.n_test})["other"].head(params.n_test).reset_index(drop=True)
    table.insert(0, "id", pd.Series([f"other-{i:05d}" for i in range(len(table))], dtype="str"))
    return table.assign(dimension="other").astype("str")


def _read_folder(folder: Path, params: StudyParams) -> dict[str, list[Source]]:
    """Role -> the sources in its files, where it has some.

    Where all files say which response is better and which is safer, either dimension can be drawn from each: the
    conflict then shares the file of the pool, else that of w2s, gt and so on.
    """
    files = _by_role(folder, ROLES if params.target == "harmless" else SWAPPED)
    needed = files if params.n_helpful else {role: names for role, names in files.items() if role != "helpful"}
    read = cache(partial(read_file, folder))
    sources = {role: [read(name) for name in names] for role, names in (needed or files).items()}
    by_name = _by_role(folder, ROLES)
    last = next((role for role in ("pool", *PRIORITY[::-1]) if role in by_name), None)
    if last and all(_has_both(part) for parts in sources.values() for part in parts):
        needed = by_name | {"helpful": by_name[last] if params.n_helpful else []}
    return {role: [read(name) for name in names] for role, names in needed.items()}


def _has_both(source: Source) -> bool:
    """Whether a source says of its first pair which response is better and which is safer."""
    first = source.rows[0][1] if source.rows else b""
    return b'"response_0"' in first if isinstance(first, bytes) else first.keys() >= RESPONSES


def _names(folder: Path) -> list[str]:
    found = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _by_role(folder: Path, roles: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Role -> names of its files in `folder`, in order, where it has some."""
    files: dict[str, list[str]] = {}
    for name in _names(folder):
        stem = next((name.lower().removesuffix(end) for end in SUFFIXES if name.lower().endswith(end)), "")
        stems = {stem, SHARD.sub("", stem)}
        for role, patterns in roles.items():
            if any(s.count("/") == p.count("/") and fnmatchcase(s, p) for p in patterns for s in stems):
                files.setdefault(role, []).append(name)
    return files


def _plan(sources: dict[str, list], folder: Path | None, params: StudyParams) -> dict[str, list[str]]:
    """Role -> the splits drawn from its rows, in the order in which prompts are claimed.

    A pool comes after the files of single splits, since it may contain their pairs.
    """
    plan = {split: [split] for split in PRIORITY if split in sources}
    missing, lacking = [split for split in PRIORITY if split not in sources], ""
    if missing and "pool" in sources:
        plan["pool"] = missing
    elif missing == ["validation"]:
        plan["gt"] = ["validation", "gt"]
    else:
        lacking = ", ".join(split for split in missing if split != "validation")
    if not lacking and params.n_helpful and "helpful" not in sources:
        lacking = f"{params.conflicting} (n_helpful = {params.n_helpful}; 0 goes without)"
    if lacking:
        names = _names(folder) or ["nothing"]
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        expected = f"{TABLES['expected'][params.target]} ({', '.join(SUFFIXES)})"
        raise DataError(f"{folder}: no file for {lacking}; expected {expected}; found {shown}")
    return plan | {"helpful": ["helpful"]}


def _read_dataset(item: hub.Wanted, params: StudyParams) -> list[Source]:
    """All parts of a hub dataset: its test parts alone are too small for the paper's sizes."""
    import datasets  # here, as it takes seconds to import and most studies never need it

    folder = hub.fetched(item.kind, item.name)
    options = {"data_dir": item.subset} if item.subset else {}
    try:
        parts = datasets.load_dataset(str(folder or item.repo), **options)
    except Exception as error:  # the hub's client has dozens (network, proxy, access, cache), and one remedy fits
        problem = f"data = {params.data!r}: no {item.repo} from the hub ({brief(error)})"
        remedy = "w2s fetch gets it where there is a network; or set data_dir, or W2S_DATA_DIR, to a folder of pairs"
        raise ParameterError(f"{problem}; {remedy}") from None
    sources = []
    for part in sorted(parts):
        name, rows = f"{item.name}/{part}", list(parts[part])
        text = "\n".join(json.dumps(row, sort_keys=True, default=str) for row in rows).encode()
        places = [(f"{name} row {i}", row) for i, row in enumerate(rows, 1)]
        sources.append(Source(name, hashlib.sha256(text).hexdigest(), places))
    return sources


def _usable(sources: list[Source], claimed: set[str], origin: Origin, params: StudyParams) -> pd.DataFrame:
    """The usable pairs of the sources, each once, whose prompt is not claimed; every row is counted in `origin`."""
    usable = []
    for place, row in chain.from_iterable(source.rows for source in sources):
        pair, fault = fault_of(row, params.data in hub.HARMLESS, origin.dimension == "helpful")
        if fault in FAULTS and params.bad_pairs == "error":
            raise DataError(f"{place}: {FAULTS[fault]}; correct it, or leave out such pairs with bad_pairs: drop")
        origin.counts.update(["rows_read", fault or "usable"])
        if pair:
            origin.prompts.append(pair.prompt)
        if not fault:
            usable.append(pair[:3])
    pairs = pd.DataFrame(usable, columns=["prompt", "chosen", "rejected"], dtype="str")
    once = pairs.drop_duplicates()
    fresh = once[~once.prompt.isin(claimed)]
    origin.counts.update(identical_pairs=len(pairs) - len(once), dropped_as_shared=len(once) - len(fresh))
    return fresh


def draw_by_prompt(pairs: pd.DataFrame, sizes: dict[str, int]) -> dict[str, pd.DataFrame]:
    """Draw splits that share no prompt: prompts in a fixed random order, each with all its pairs.

    A split stops at the first prompt that brings it to its size, which it can exceed by the other pairs of that prompt;
    it is smaller where the pairs run out.
    """
    codes, prompts = pd.factorize(pairs.prompt)
    rank = np.random.default_rng(ORDER_SEED).permutation(len(prompts))[codes]
    shuffled = pairs.iloc[np.argsort(rank, kind="stable")]
    ends = np.bincount(rank).cumsum()  # pairs up to and with each prompt
    drawn, start = {}, 0
    for split, size in sizes.items():
        stop = min(ends[ends >= start + size], default=len(pairs))
        drawn[split] = shuffled.iloc[start:stop]
        start = stop
    return drawn


def _table(part: pd.DataFrame, split: str, owner: Origin, params: StudyParams) -> pd.DataFrame:
    """As many pairs of `part` as the parameter of the split asks for, with id and dimension."""
    n = getattr(params, f"n_{split}")
    if len(part) < n:
        use = params.conflicting if split == "helpful" else split
        state = f"{len(part)} usable pairs are left for {use} of {owner.counts['rows_read']} rows in {owner.source}"
        faults = {name: owner.counts[name] for name in FAULTS if owner.counts[name]}
        worst = max(faults, key=faults.get, default="")
        remedy = f"{faults[worst]} rows were dropped: {FAULTS[worst]}" if worst else f"lower n_{split}"
        raise ParameterError(f"n_{split} = {n}: only {state}; {remedy}")
    table = part.head(n).reset_index(drop=True)
    table.insert(0, "id", pd.Series([f"{split}-{i:05d}" for i in range(n)], dtype="str"))
    return table.assign(dimension=dimension_of(split, params.target)).astype("str")
