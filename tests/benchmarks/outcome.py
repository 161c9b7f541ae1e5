"""The benchmark's rows as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

CASE = ["method", "model", "context", "task"]
WHERE = ["device", "dtype"]
SAME = {"float32": 1e-4, "bfloat16": 2e-2}  # how far losses of the last step may lie apart
WITHOUT, WITH = "without ", "with "  # one of the kit's tricks; one that was tried
PROFILE = -100  # the repetition that is profiled, not timed
SHARES = {  # of a pass's time, with what they are called
    "products": "matrix products", "attention": "attention", "log_softmax": "log-softmax", "tokenizing": "tokenizing",
    "python": "Python",
}  # fmt: skip
# Times the research loop's and TRL's speed in training, and the research loop's in scoring; of TRL's memory.
GOALS = {"reward": (3, 5), "dpo": (4, 10), "simpo": (3, 6)}
SCORING_GOAL, MEMORY_GOAL = 8, 0.5
# On a GPU those of a model of 124 million parameters, and the share of the ceiling with billions of them.
GPU_MODEL, GPU_GOALS, GPU_SHARE = "12x768", (20, 2), 0.45
OTHERS = ["w2s, padded", "research loop", "TRL", "TRL, reference precomputed"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a case and contender of a device: ms per pair (median, low, high), pairs/s, peak memory, shares.

    of_ceiling: operations a second of matrix products and attention, as a share of what the device can do.
    """
    timed, tried = rows[rows["repetition"] > 0], rows[rows["repetition"] != PROFILE]
    timed = timed.assign(ms=1000 * timed["seconds"] / timed["pairs"])
    groups = timed.groupby([*CASE, "contender"], sort=False)
    table = groups["ms"].agg(ms="median", low="min", high="max").reset_index()
    table["pairs_per_s"] = 1000 / table["ms"]
    keys = [*CASE, "contender"]
    table = table.merge(tried.groupby(keys)["memory"].max().rename("memory_mib"), on=keys)
    table = table.merge(groups["outcome"].last().rename("outcome"), on=keys)
    looked = rows[rows["repetition"] == PROFILE].reindex(
        columns=[*keys, *SHARES, "flops", "ceiling", "tensors", "pairs"]
    )
    table = table.merge(looked, on=keys, how="left")
    table["of_ceiling"] = table["flops"] / table.pop("pairs") * table["pairs_per_s"] / table["ceiling"]
    return table


def earlier(folder: Path) -> pd.DataFrame:
    """The rows that an earlier call left in the folder."""
    path = folder / "tables" / "benchmark_rows.parquet"
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()


def replaced(rows: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows with new ones, in the place of those of the same cases and devices."""
    if rows.empty:
        return new
    case = [*WHERE, *CASE[:-1]]
    old = rows[case].apply(tuple, axis=1).isin(new[case].apply(tuple, axis=1))
    return pd.concat([rows[~old], new], ignore_index=True)


def parts(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Device, dtype and rows of each device, the CPU first."""
    for device, dtype in sorted(set(rows[WHERE].itertuples(index=False, name=None)), key=lambda part: part[0] != "cpu"):
        yield device, dtype, rows[(rows["device"] == device) & (rows["dtype"] == dtype)]


def differences(table: pd.DataFrame, dtype: str = "float32") -> list[str]:
    """One line for each contender whose last loss or mean margin is not the kit's."""
    lines = []
    for case, part in table.groupby(CASE, sort=False):
        own = part.set_index("contender").loc["w2s", "outcome"]
        for row in part.itertuples():
            if abs(row.outcome - own) > SAME[dtype] * max(1.0, abs(own)):
                lines.append(f"{' '.join(map(str, case))}: w2s has {own:.6f}, {row.contender} {row.outcome:.6f}")
    return lines


def report(rows: pd.DataFrame) -> int:
    """Print the tables, and contenders that differ; returns 1 where there are any."""
    differ = False
    for device, dtype, part in parts(rows):
        table = summary(part)
        lines = differences(table, dtype)
        differ |= bool(lines)
        print(f"{device}, {dtype}", as_text(table), peaks(table), details(table), sep="\n\n")
        print("\n".join(lines) or f"All contenders agree on the last loss and the mean margin to {SAME[dtype]}.")
    return int(differ)


def as_text(table: pd.DataFrame) -> str:
    """Times in Markdown: a row for each case, a column for each contender, and how many times the kit is as fast."""
    lines = []
    for case, part in table.groupby(CASE, sort=False):
        rows = part.set_index("contender").to_dict("index")
        own = rows.pop("w2s")
        cells = [*map(str, case), _time(own)]
        for name in OTHERS:
            cells.append(f"{_time(rows[name])}: {rows[name]['ms'] / own['ms']:.1f}" if name in rows else "")
        lines.append(cells)
    return _markdown(["method", "model", "context", "task", "w2s", *OTHERS], lines)


def tricks(table: pd.DataFrame, prefix: str) -> str:
    """In Markdown: how many times as long the kit takes, and in brackets how much memory, WITHOUT or WITH each."""
    keys = [CASE[0], CASE[-1]]
    changed = table[table["contender"].str.startswith(prefix)]
    if changed.empty:
        return "Not measured."
    own = table[table["contender"] == "w2s"].merge(changed[CASE].drop_duplicates()).set_index(keys)
    lines = []
    for name, part in changed.groupby("contender", sort=False):
        found = part.set_index(keys).reindex(own.index)[["ms", "memory_mib"]] / own[["ms", "memory_mib"]]
        cells = ["" if math.isnan(x.ms) else f"{x.ms:.2f} ({x.memory_mib:.2f})" for x in found.itertuples()]
        lines.append([name.removeprefix(prefix), *cells])
    return _markdown(["", *map(", ".join, own.index)], lines)


def goals(table: pd.DataFrame) -> str:
    """In Markdown: how each case stands to GOALS, SCORING_GOAL and MEMORY_GOAL; what is short of one is in bold."""
    lines, tasks = [], ("train", "score")
    for case, part in table[table["method"].isin(GOALS)].groupby(CASE[:-1], sort=False):
        ms, memory, tensors = (
            part.pivot(index="contender", columns="task", values=key) for key in ("ms", "memory_mib", "tensors")
        )
        faster, (research, trl) = ms / ms.loc["w2s"], GOALS[case[0]]
        cells = [
            _against(faster.loc["research loop", "train"], research),
            _against(faster.loc["TRL", "train"], trl),
            _against(faster.loc["research loop", "score"], SCORING_GOAL),
            *(_against(memory.loc["w2s", task] / memory.loc["TRL", task], MEMORY_GOAL, most=True) for task in tasks),
            *(_filled(tensors.loc["w2s", task] / tensors.loc["TRL", task], ".2f") for task in tasks),
        ]
        lines.append([*map(str, case), *cells])
    head = ["training, times the research loop", "training, times TRL", "scoring, times the research loop"]
    head += [f"{what} of TRL's, {task}" for what in ("memory", "tensors") for task in ("training", "scoring")]
    return _markdown([*CASE[:-1], *head], lines)


def gpu_goals(table: pd.DataFrame) -> str:
    """In Markdown: how training on a GPU stands to GPU_GOALS and GPU_SHARE; what is short of one is in bold."""
    lines, training = [], table[(table["task"] == "train") & table["method"].isin(GOALS)]
    for case, part in training.groupby(CASE[:-1], sort=False):
        rows = part.set_index("contender")
        own, cells = rows.loc["w2s"], ["", "", ""]
        if case[1] == GPU_MODEL:
            for i, name in enumerate(("research loop", "TRL")):
                cells[i] = _against(rows.loc[name, "ms"] / own["ms"], GPU_GOALS[i])
        elif len(rows) == 1:  # with billions of parameters the kit is alone
            cells[2] = _against(own["of_ceiling"], GPU_SHARE)
        if any(cells):
            lines.append([*map(str, case), *cells])
    return _markdown([*CASE[:-1], "times the research loop", "times TRL", "share of the ceiling"], lines)


def peaks(table: pd.DataFrame) -> str:
    """In Markdown: how near the kit's passes are to what the device can do, by operations and not by time."""
    lines = [
        [*(str(row[key]) for key in CASE), f"{row['flops'] / 1e12:.3g}", f"{row['ceiling'] / 1e12:.3g}",
         f"{row['of_ceiling']:.0%}"]
        for row in table[table["contender"] == "w2s"].dropna(subset="of_ceiling").to_dict("records")
    ]  # fmt: skip
    if not lines:
        return "Not measured."
    return _markdown([*CASE, "TFLOP of a pass", "ceiling, TFLOP/s", "share of it"], lines)


def _against(value: float, goal: float, most: bool = False) -> str:
    """A ratio and its goal, which is the least it should be, or the most."""
    value = round(value, 2 if goal < 1 else 1)
    met = value <= goal if most else value >= goal
    return f"{value} ({goal})" if met else f"**{value}** ({goal})"


def _filled(value: float, how: str) -> str:
    """A number in the format `how`; nothing where it was not measured."""
    return "" if math.isnan(value) else format(value, how)


def profiles(table: pd.DataFrame) -> str:
    """In Markdown: where the time of the kit's passes goes, and how fast they would be with the kernels alone."""
    lines, research = [], table[table["contender"] == "research loop"].set_index(CASE)["ms"]
    for row in table[table["contender"] == "w2s"].dropna(subset=list(SHARES)).to_dict("records"):
        shares, case = [row[kind] for kind in SHARES], tuple(row[key] for key in CASE)
        faster = research[case] / row["ms"]
        least = faster / (row["products"] + row["attention"])
        shown = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
        lines.append([*map(str, case), *shown, f"{faster:.1f}", f"{least:.1f}"])
    ratios = ["times the research loop", "with products and attention alone"]
    return _markdown([*CASE, *SHARES.values(), "other operators", *ratios], lines)


def details(table: pd.DataFrame) -> str:
    """The rest in Markdown: pairs per second, peak memory, that of the pass's tensors, outcome."""
    lines = [
        [*(str(row[key]) for key in (*CASE, "contender")), f"{row['pairs_per_s']:.0f}", f"{row['memory_mib']:.0f}",
         _filled(row["tensors"], ".0f"), f"{row['outcome']:.5f}"]
        for row in table.to_dict("records") if not row["contender"].startswith((WITHOUT, WITH))
    ]  # fmt: skip
    return _markdown([*CASE, "contender", "pairs/s", "peak MiB", "of tensors, MiB", "last loss, or mean margin"], lines)


def _time(row: dict) -> str:
    return f"{row['ms']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
