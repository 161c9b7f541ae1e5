"""Figures of data and training, as those of `plots`: plot_x(table) -> Axes, with 95% intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from w2s.analysis.scoring import calibration_bins
from w2s.report.style import COLOURS, DOTTED, GREY, OTHERS, conflict_name, finish, look, new_axes, points

MIN_BIN = 20  # pairs, below which the accuracy of a bin is luck


def plot_mentions(substances: pd.DataFrame) -> Axes:
    """Mentions of each substance against its rank by frequency, both axes log. Column: mentions."""
    ax = new_axes(6.0, 3.6)
    mentions = np.sort(substances["mentions"].to_numpy())[::-1]
    ax.loglog(np.arange(1, len(mentions) + 1), mentions, drawstyle="steps-mid", color=OTHERS[0])
    median = np.median(mentions)
    ax.axhline(median, color=GREY, linestyle="--", linewidth=1, label=f"median: {median:g} mentions")
    return finish(ax, f"rank by frequency (n = {len(mentions)} substances)", "mentions in the corpus (dialogues)", 1)


def plot_lengths(lengths: pd.DataFrame) -> Axes:
    """Response lengths. Columns: dimension, response (chosen or rejected), characters; one row a response."""
    pairs = lengths.groupby("dimension", sort=False).size() // 2
    ax = new_axes(6.4, 1.2 + 0.8 * len(pairs))
    box = {"whis": (5, 95), "showfliers": False, "width": 0.6, "linewidth": 1, "linecolor": "black"}
    colours = {"hue": "response", "palette": dict(zip(("chosen", "rejected"), OTHERS))}
    sns.boxplot(lengths, x="characters", y="dimension", ax=ax, **colours, **box)
    ax.set_yticks(range(len(pairs)), [f"{name}\nn = {n} pairs" for name, n in pairs.items()])
    return finish(ax, "length of the response (characters; box: quartiles, whiskers: 5% to 95%)", "", 2)


def plot_loss(log: pd.DataFrame, level: float, meaning: str) -> Axes:
    """Training loss by step, one line a run, and a known loss (`level`, nats). Columns: run, step, loss (nats)."""
    ax = new_axes(6.4, 3.8)
    for k, (run, rows) in enumerate(log.groupby("run", sort=False)):
        ax.plot(rows["step"], rows["loss"], label=run, **look(k, markersize=3, linewidth=1))
    ax.axhline(level, label=meaning, **DOTTED)
    ax.set(xlim=(0, None), ylim=(0, None))
    return finish(ax, "optimizer step", "loss of the step (nats a pair)", 3)


def plot_labels(predictions: pd.DataFrame, threshold: float = 0.75) -> Axes:
    """Shares of P of the preferred response: soft labels; hard ones, 1 right of the dots. Columns: run, probability."""
    ax = new_axes(6.4, 3.8)
    for k, (run, rows) in enumerate(predictions.groupby("run", sort=False)):
        shares, edges = np.histogram(rows["probability"], bins=20, range=(0, 1))
        colour = OTHERS[k % len(OTHERS)]
        ax.stairs(shares / len(rows), edges, color=colour, linewidth=1.5, label=f"{run} (n = {len(rows)})")
    for line, style in ((1 - threshold, "--"), (threshold, "--"), (0.5, ":")):
        ax.axvline(line, color="black", linestyle=style, linewidth=1)
    ax.set_xlim(0, 1)
    x, y = "P that the weak model gives to the truly preferred response", "share of pairs (bins of 0.05)"
    return finish(ax, x, y, 2)


def plot_margin_curves(table: pd.DataFrame, unit: str = "logit") -> np.ndarray:
    """Loss and derivative over the margin, two Axes. Columns: conflict, margin (in `unit`s), loss, derivative."""
    axes = new_axes(8.4, 3.4, 2, gap=0.3)
    for ax, column, per in zip(axes, ("loss", "derivative"), ("", f" a {unit}"), strict=True):
        for conflict, rows in table.groupby("conflict", sort=False):
            style = "-" if conflict == "none" else "--"  # both lines lie on one another at positive margins
            named = {"color": COLOURS[conflict], "label": conflict_name(conflict)}
            ax.plot(rows["margin"], rows[column], style, linewidth=2, **named)
        ax.axvline(0, color=GREY, linewidth=1)
        finish(ax, f"margin of the preferred response ({unit}s)", f"{column} (nats{per})", 2 * (ax is axes[0]))
    axes[1].axhline(0, color=GREY, linewidth=1)
    return axes


def plot_reliability(predictions: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence in bins of MIN_BIN pairs or more, one line a run, with Wilson intervals."""
    ax = ax or new_axes(5.6, 4.6)
    ax.plot([0.5, 1], [0.5, 1], label="calibrated", **DOTTED)
    for k, (run, rows) in enumerate(predictions.groupby("run", sort=False)):
        bins = calibration_bins(rows["probability"]).query("pairs >= @MIN_BIN")
        points(ax, bins["confidence"], bins, "accuracy", label=f"{run} (n = {len(rows)})", **look(k))
    ax.set_ylim(-0.03, 1.03)
    return finish(ax, "confidence max(P, 1-P), mean of the bin", "accuracy (share of the bin; 95% interval)", 2)


def plot_frequency(table: pd.DataFrame) -> Axes:
    """Accuracy by mentions of the substance. Columns: model, mentions_bin (its middle), accuracy, low, high, pairs."""
    ax = new_axes(6.4, 4.0)
    for k, (model, rows) in enumerate(table.sort_values("mentions_bin").groupby("model", sort=False)):
        points(ax, rows["mentions_bin"], rows, "accuracy", label=f"{model} (n = {rows['pairs'].sum()})", **look(k))
    ax.axhline(0.5, label="chance", **DOTTED)
    ax.set_xscale("log")
    ticks = np.unique(table["mentions_bin"])
    ticks = ticks[np.diff(np.log(ticks), prepend=-1) > 0.3]  # of those that would overlap, the first
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    return finish(ax, "mentions of the substance in the corpus", "accuracy (share of pairs; 95% interval)", 3)
