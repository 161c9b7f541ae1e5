"""The benchmark's figure, and its page in docs/."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path

import outcome
import pandas as pd
import seaborn as sns

from w2s.params import HOME
from w2s.report import style


def write(rows: pd.DataFrame, folder: Path, docs: bool = False) -> None:
    """Each device's table and figure under `folder`; with `docs` also its page and figure in docs/."""
    for device, dtype, part in outcome.parts(rows):
        name, table = figure_name(device), outcome.summary(part).assign(device=device, dtype=dtype)
        grid = plot(part)
        style.save(grid.figure, folder, name.replace("performance", "benchmark"), table, caption=CAPTION)
        if docs:
            grid.figure.savefig(HOME / "docs" / f"{name}.png", dpi=150, bbox_inches="tight", facecolor="white")
            (HOME / "docs" / f"{name}.md").write_text(text(device, dtype, part), encoding="utf-8")
    style.save_table(rows, folder, "benchmark_rows")


CAPTION = "Time per pair: medians with minimum and maximum. Further left is faster; the scale is logarithmic."


def figure_name(device: str) -> str:
    """That of the CPU has no device in it."""
    return "performance" if device == "cpu" else "performance_" + "_".join(re.findall(r"[a-z0-9]+", device.lower()))


def plot(rows: pd.DataFrame) -> sns.FacetGrid:
    """ms per pair by method and contender; a column for each model and context, a row for each task."""
    timed = rows[(rows["repetition"] > 0) & ~rows["contender"].str.startswith((outcome.WITHOUT, outcome.WITH))]
    timed = timed.assign(
        ms=1000 * timed["seconds"] / timed["pairs"],
        case=timed["model"] + ", context " + timed["context"].astype(str),
        task=timed["task"].map({"train": "training", "score": "scoring"}),
    )
    names = list(dict.fromkeys(timed["contender"]))
    grid = sns.catplot(
        timed, kind="point", x="ms", y="method", hue="contender", hue_order=names, row="task", col="case",
        estimator="median", errorbar=("pi", 100), linestyle="none", dodge=0.5, palette=style.PALETTE[: len(names)],
        markers=list(style.MARKERS[: len(names)]), height=2.6, aspect=1.2, log_scale=True,
    )  # fmt: skip
    grid.set_axis_labels("ms per pair", "").set_titles("{row_name}: {col_name}")
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(names), title=None)
    return grid


def text(device: str, dtype: str, rows: pd.DataFrame) -> str:
    """The page of a device's rows."""
    table = outcome.summary(rows)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    data = " and ".join(sorted(rows["data"].dropna().unique()))
    n = {task: int(part["pairs"].max()) for task, part in rows.dropna(subset="pairs").groupby("task")}
    repetitions, days = int(rows["repetition"].max()), " and ".join(sorted(rows["date"].dropna().unique()))
    on_cpu, different = device == "cpu", outcome.differences(table, dtype)
    tables = {
        "table": outcome.as_text(table), "peaks": outcome.peaks(table), "details": outcome.details(table),
        "goals": outcome.goals(table) if on_cpu else outcome.gpu_goals(table),
    }  # fmt: skip
    if on_cpu:
        tables |= {"profiles": outcome.profiles(table), "tricks": outcome.tricks(table, outcome.WITHOUT)}
        tables["tried"] = outcome.tricks(table, outcome.WITH)
    return (PAGE if on_cpu else GPU_PAGE).format(
        date=days, machine=machine(), device=device, python=platform.python_version(), versions=versions, data=data,
        train=n["train"], score=n["score"], repetitions=repetitions, figure=figure_name(device), caption=CAPTION,
        differences="\n".join(different) or f"None: all agree to {outcome.SAME[dtype]}.", **tables,
    )  # fmt: skip


def machine() -> str:
    """The processor's name where the system tells it."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


PAGE = """# Speed and memory

`w2s bench --write-docs` wrote this page on {date}: {machine}, one core, float32, Python {python}, {versions}.

![Time per pair]({figure}.png)

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
- **w2s, padded**: the same without packed rows (`w2s/fast/packed.py`), as for architectures that do not take them.
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

At context 128 the others lose less: their batches have less padding. Memory is that of the process, as above;
tensors are the most that a pass makes and holds at once, without what the process keeps of freed memory in pieces too
small for the next tensor (without "memory kept", below, that is mostly less, and the pass slower). The kit's tensors
follow from `tokens_per_batch`, 4,096 here in training and twice that in scoring, TRL's from its 8 pairs, at context
128 at most 2,048 tokens.

Operations of matrix products and attention (a causal one counted whole), and their rate as a share of the rate of one
product of two large matrices, which the kit's own kernel takes in the same process:

{peaks}

## What each trick brings

How many times as long the kit takes without it, and in brackets how much memory, all others in place (4x128, context
512); no padding and the prompt once are the column "w2s, padded" above. `tests/benchmarks/tricks.py` names them,
`w2s/fast/cpu.py` and `w2s/fast/packed.py` are where they are.

{tricks}

A reward asks for one token a text of the last block, its end; SFT, DPO and SimPO ask for most of them, and gain
little or nothing.

The same with what was tried and is not in the kit: less than 1 would have been faster.

{tried}

What torch.compile makes of an MLP multiplies in PyTorch's own way, not by oneDNN. Flex attention has no gradient on a
CPU. Pinned memory, and batches made by a thread while the model computes, can pay on a GPU alone: here each run has one
core, and has it busy.

## Memory, and the rest

{details}

Nothing on this page has been measured on a GPU; `w2s bench --device cuda --write-docs` writes a page
of its own for one.
"""

GPU_PAGE = """# Speed and memory on a GPU

`w2s bench --device cuda --write-docs` wrote this page on {date}: {device}, bfloat16 by autocast, {versions}.

![Time per pair]({figure}.png)

*{caption}*

Pairs, models, contenders and their turns are those of [the CPU's page](performance.md): {data}, {train} pairs for
training and {score} for scoring, {repetitions} repetitions. Time is that of a clock here, and memory what PyTorch has
given to tensors. Contenders compute in bfloat16, with weights and Adam's moments in float32. The kit takes 8,192 padded
tokens at once and TRL as many pairs as fit in them at the whole context. The models of billions of parameters have
GPT-2 XL's and Mistral's shapes and no contender but the kit; the second trains adapters of rank 8 on bfloat16 weights.

{table}

Contenders whose last training loss or mean margin differs from the kit's: {differences}

Training; in brackets what was aimed at, in bold what falls short of it:

{goals}

Operations of matrix products and attention (a causal one counted whole), and their rate as a share of the rate of one
product of two large matrices, measured in the same process:

{peaks}

{details}
"""
