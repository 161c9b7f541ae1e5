"""The benchmark's rows as a table, a figure and docs/performance.md."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import seaborn as sns

from w2s import figures
from w2s.params import HOME

CASE = ["method", "model", "context", "task"]
SAME = 1e-4  # how far losses of the last step may lie apart
WITHOUT = "without "
PROFILE = -100  # the repetition that is profiled, not timed
SHARES = {  # of a pass's time, with what they are called
    "products": "matrix products", "attention": "attention", "log_softmax": "log-softmax", "tokenizing": "tokenizing",
    "python": "Python",
}  # fmt: skip
# Times the research loop's and TRL's speed in training, and the research loop's in scoring; of TRL's memory.
GOALS = {"reward": (3, 5), "dpo": (4, 10), "simpo": (3, 6)}
SCORING_GOAL, MEMORY_GOAL = 8, 0.5
OTHERS = ["w2s, padded", "research loop", "TRL", "TRL, reference precomputed"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a case and contender: ms per pair (median, low, high), pairs/s, peak memory, shares of kernels."""
    timed, tried = rows[rows["repetition"] > 0], rows[rows["repetition"] != PROFILE]
    timed = timed.assign(ms=1000 * timed["seconds"] / timed["pairs"])
    groups = timed.groupby([*CASE, "contender"], sort=False)
    table = groups["ms"].agg(ms="median", low="min", high="max").reset_index()
    table["pairs_per_s"] = 1000 / table["ms"]
    keys = [*CASE, "contender"]
    table = table.merge(tried.groupby(keys)["memory"].max().rename("memory_mib"), on=keys)
    table = table.merge(groups["outcome"].last().rename("outcome"), on=keys)
    shares = rows[rows["repetition"] == PROFILE]
    return table.merge(shares[[*keys, *SHARES]], on=keys, how="left")


def with_earlier(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The rows, and those of other cases that an earlier call left in the folder."""
    path = folder / "tables" / "benchmark_rows.parquet"
    if not path.exists():
        return rows
    earlier, case = pd.read_parquet(path), CASE[:-1]
    new = earlier[case].apply(tuple, axis=1).isin(rows[case].apply(tuple, axis=1))
    return pd.concat([earlier[~new], rows], ignore_index=True)


def differences(table: pd.DataFrame) -> list[str]:
    """One line for each contender whose last loss or mean margin is not the kit's."""
    lines = []
    for case, part in table.groupby(CASE, sort=False):
        own = part.set_index("contender").loc["w2s", "outcome"]
        for row in part.itertuples():
            if abs(row.outcome - own) > SAME * max(1.0, abs(own)):
                lines.append(f"{' '.join(map(str, case))}: w2s has {own:.6f}, {row.contender} {row.outcome:.6f}")
    return lines


def report_differences(table: pd.DataFrame) -> int:
    """Print them; returns 1 where there are any."""
    lines = differences(table)
    print("\n".join(lines) or f"All contenders agree on the last loss and the mean margin to {SAME}.")
    return int(bool(lines))


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


def tricks(table: pd.DataFrame) -> str:
    """In Markdown: how many times as long the kit takes without each of its tricks."""
    times = table.pivot_table(index="contender", columns=CASE, values="ms", sort=False)
    parts = times[times.index.str.startswith(WITHOUT)].dropna(axis=1)
    if parts.empty:
        return "Not measured."
    ratios = parts / times.loc["w2s", parts.columns]
    lines = [[name.removeprefix(WITHOUT), *(f"{x:.2f}" for x in row)] for name, row in zip(parts.index, ratios.values)]
    return _markdown(["", *(f"{case[0]}, {case[3]}" for case in parts.columns)], lines)


def goals(table: pd.DataFrame) -> str:
    """In Markdown: how each case stands to GOALS, SCORING_GOAL and MEMORY_GOAL; what is short of one is in bold."""
    lines = []
    for case, part in table[table["method"].isin(GOALS)].groupby(CASE[:-1], sort=False):
        ms, memory = (part.pivot(index="contender", columns="task", values=key) for key in ("ms", "memory_mib"))
        faster, (research, trl) = ms / ms.loc["w2s"], GOALS[case[0]]
        less = memory.loc["w2s"] / memory.loc["TRL"]
        cells = [
            _against(faster.loc["research loop", "train"], research),
            _against(faster.loc["TRL", "train"], trl),
            _against(faster.loc["research loop", "score"], SCORING_GOAL),
            *(_against(less[task], MEMORY_GOAL, most=True) for task in ("train", "score")),
        ]
        lines.append([*map(str, case), *cells])
    head = ["training, times the research loop", "training, times TRL", "scoring, times the research loop"]
    return _markdown([*CASE[:-1], *head, "memory of TRL's, training", "memory of TRL's, scoring"], lines)


def _against(value: float, goal: float, most: bool = False) -> str:
    """A ratio and its goal, which is the least it should be, or the most."""
    value = round(value, 2 if most else 1)
    met = value <= goal if most else value >= goal
    return f"{value} ({goal})" if met else f"**{value}** ({goal})"


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
    """The rest in Markdown: pairs per second, peak memory, outcome."""
    lines = [
        [*(str(row[key]) for key in (*CASE, "contender")), f"{row['pairs_per_s']:.0f}", f"{row['memory_mib']:.0f}",
         f"{row['outcome']:.5f}"]
        for row in table.to_dict("records") if not row["contender"].startswith(WITHOUT)
    ]  # fmt: skip
    return _markdown([*CASE, "contender", "pairs/s", "peak MiB", "last loss, or mean margin"], lines)


def _time(row: dict) -> str:
    return f"{row['ms']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(table: pd.DataFrame, rows: pd.DataFrame, folder: Path, docs: bool = False) -> None:
    """Table and figure under `folder`; with `docs` also docs/performance.md and its figure."""
    grid = plot(rows)
    figures.save(grid.figure, folder, "benchmark", table, caption=CAPTION)
    figures.save_table(rows, folder, "benchmark_rows")
    if docs:
        grid.figure.savefig(HOME / "docs" / "performance.png", dpi=150, bbox_inches="tight", facecolor="white")
        (HOME / "docs" / "performance.md").write_text(page(table, rows), encoding="utf-8")


CAPTION = "Time per pair: medians with minimum and maximum. Further left is faster; the scale is logarithmic."


def plot(rows: pd.DataFrame) -> sns.FacetGrid:
    """ms per pair by method and contender; a column for each model and context, a row for each task."""
    timed = rows[(rows["repetition"] > 0) & ~rows["contender"].str.startswith(WITHOUT)]
    timed = timed.assign(
        ms=1000 * timed["seconds"] / timed["pairs"],
        case=timed["model"] + ", context " + timed["context"].astype(str),
        task=timed["task"].map({"train": "training", "score": "scoring"}),
    )
    names = list(dict.fromkeys(timed["contender"]))
    grid = sns.catplot(
        timed, kind="point", x="ms", y="method", hue="contender", hue_order=names, row="task", col="case",
        estimator="median", errorbar=("pi", 100), linestyle="none", dodge=0.5, palette=figures.PALETTE[: len(names)],
        markers=list(figures.MARKERS[: len(names)]), height=2.6, aspect=1.2, log_scale=True,
    )  # fmt: skip
    grid.set_axis_labels("ms per pair", "").set_titles("{row_name}: {col_name}")
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(names), title=None)
    return grid


def page(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The text of docs/performance.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    data = " and ".join(sorted(rows["data"].dropna().unique()))
    n = {task: int(part["pairs"].max()) for task, part in rows.dropna(subset="pairs").groupby("task")}
    repetitions, days = int(rows["repetition"].max()), " and ".join(sorted(rows["date"].dropna().unique()))
    return PAGE.format(
        date=days, machine=machine(), python=platform.python_version(), versions=versions,
        data=data, details=details(table), goals=goals(table), profiles=profiles(table),
        train=n["train"], score=n["score"], repetitions=repetitions, table=as_text(table), tricks=tricks(table),
        differences="\n".join(differences(table)) or f"None: all agree to {SAME}.", caption=CAPTION,
    )  # fmt: skip


def machine() -> str:
    """The processor's name where the system tells it."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


PAGE = """# Speed and memory

`w2s bench --write-docs` wrote this page on {date}: {machine}, one core, float32, Python {python}, {versions}.

![Time per pair](performance.png)

*{caption}*

## What is measured

Models of GPT-2's shape with random weights (layers x width), a vocabulary of 8,192 learned from the texts
(12x768: 50,257), without dropout. Pairs: {data}, {train} for training and {score} for scoring, the first ones whose
texts fit in the context, so that nobody cuts a text. Training is one pass in steps of 32 pairs with Adam, the same
pairs in the same order for all. Each contender has its own process on the same core; they take turns, twice to warm
up and then {repetitions} times. Time is CPU time of the process, which has one thread. Peak memory is the process's
highest resident memory above what it holds after loading the model: gradients, Adam's moments, activations, and the
reference model where one is kept.

- **w2s**: what a run of a study does. DPO's training time includes the reference's log-probabilities.
- **w2s, padded**: the same without packed rows (`w2s/packed.py`), as for architectures that do not take them.
- **research loop**: one pair at a time, two forwards, log-softmax over the vocabulary at every position, the
  reference model in every step; evaluation in padded batches of 32 pairs (`tests/benchmarks/research_loop.py`).
- **TRL**: RewardTrainer, DPOTrainer and CPOTrainer with SimPO's loss, 8 pairs per device and accumulation, without
  gradient checkpointing. Making the trainer, which tokenizes (and computes the reference where it is precomputed),
  is not timed. Its DPO evaluation runs the reference model too. Its SFT has another loss, a mean over tokens.

## Time

ms of CPU time per pair: median (least to most); after a colon, how many times that of w2s.

{table}

Contenders whose last training loss or mean margin differs from the kit's: {differences}

## What was aimed at

How many times as fast the kit is, and how much of TRL's memory it takes; in brackets what was aimed at, in bold what
falls short of it.

{goals}

Where the kit's time goes, by PyTorch's profiler, whose own cost is in it and weighs more the smaller the operators
are. Other operators are GELU, norms, copies, gradients of embeddings, and Adam. The last column is what no
arrangement of the rest could pass: products and attention are kernels of oneDNN and PyTorch (attention made of
products and a softmax is slower), and DPO has those of its reference besides.

{profiles}

At context 128 the others lose less: their batches have less padding. The kit's memory follows from
`tokens_per_batch`, 4,096 here in training and twice that in scoring, TRL's from its 8 pairs.

## What each trick brings

How many times as long the kit takes without it, all others in place (4x128, context 512); no padding and the prompt
once are the column "w2s, padded" above. `tests/benchmarks/contenders.py` names them, `w2s/cpu.py` and
`w2s/packed.py` are where they are.

{tricks}

A reward asks for one token a text of the last block, its end; SFT, DPO and SimPO ask for most of them, and gain
little or nothing.

## Memory, and the rest

{details}

Nothing here has been measured on a GPU.
"""
