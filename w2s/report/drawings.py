"""The two drawings of notebook 00: who teaches whom, and the four areas."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from w2s.report.style import AREA_COLOURS, COLOURS, GREY, SMALL, heat, new_axes

BOXES = {  # name -> place, colour of the edge, what it says below its name
    "gold labels": (0.5, 1.0, "black", ""),
    "weak model": (2.6, 1.7, GREY, ""),
    "strong ceiling": (2.6, 0.3, GREY, ""),
    "weak labels": (4.7, 1.7, "black", ""),
    "student without conflict": (8.2, 2.9, COLOURS["none"], ""),
    "student, explicit conflict": (8.2, 1.7, COLOURS["explicit"], "\n+ a reward for going against gold"),
    "student, implicit conflict": (8.2, 0.4, COLOURS["implicit"], "\n+ helpful pairs with gold labels"),
}
STEPS = ["gold labels", "weak model", "weak labels"]
ARROWS = [*pairwise(STEPS), ("gold labels", "strong ceiling"), *product(STEPS[-1:], list(BOXES)[-3:])]
SEEN = [
    ["strong sure, weak unsure:\nthe supervisor is BLIND", "both sure"],
    ["both unsure", "weak sure, strong unsure"],
]


def draw_roles() -> Axes:
    """Who teaches whom: one box a model or kind of labels, one arrow for each that learns from another."""
    ax, drawn = new_axes(9.0, 2.8), {}
    ax.set(xlim=(-0.2, 9.9), ylim=(0, 3.2))
    for name, (x, y, colour, more) in BOXES.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        drawn[name] = ax.text(x, y, name + more, ha="center", va="center", fontsize=SMALL, bbox=box)
    for start, end in ARROWS:
        ends = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", BOXES[end][:2], BOXES[start][:2], arrowprops={"arrowstyle": "-|>", "color": "0.3", **ends})
    ax.set_axis_off()
    return ax


def draw_areas() -> Axes:
    """The four areas by what the strong ceiling and the weak model know; the blind one is shaded."""
    ax = new_axes(5.4, 2.8)
    blind = pd.DataFrame([[1, 0], [0, 0]], ["S-known", "S-unknown"], ["W-unknown", "W-known"])
    colours = {"cmap": ListedColormap(["white", AREA_COLOURS[1]]), "linecolor": "black", "linewidths": 0.5}
    heat(ax, blind, annot=np.array(SEEN), clip_on=False, **colours)
    ax.tick_params(length=0, labelsize=SMALL)
    return ax
