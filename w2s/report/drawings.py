"""The two drawings of notebook 00: who teaches whom, and the four areas."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from w2s.report.style import AREA_COLOURS, COLOURS, GREY, LABEL, SMALL, new_axes

BOXES = {  # name -> place, colour of the edge
    "gold labels": (0.5, 3, "black"), "weak model": (2.7, 3, GREY), "strong ceiling": (7.4, 3, GREY),
    "weak labels": (2.7, 1.9, "black"), "student,\nno conflict": (0.9, 0.4, COLOURS["none"]),
    "student,\nexplicit conflict": (4.1, 0.4, COLOURS["explicit"]),
    "student,\nimplicit conflict": (7.4, 0.4, COLOURS["implicit"]),
}  # fmt: skip
ARROWS = [  # from, to, what it says beside its middle
    ("gold labels", "weak model", ""), ("weak model", "strong ceiling", "the same gold labels"),
    ("weak model", "weak labels", ""), ("weak labels", "student,\nno conflict", ""),
    ("weak labels", "student,\nexplicit conflict", "+ a term that rewards\ngoing against gold"),
    ("weak labels", "student,\nimplicit conflict", "+ helpful pairs, gold labels"),
]  # fmt: skip
SEEN = ["both sure", "strong sure, weak unsure:\nthe supervisor is BLIND", "weak sure, strong unsure", "both unsure"]


def draw_roles() -> Axes:
    """Who teaches whom: one box a model or kind of labels, one arrow for each that learns from another."""
    ax = new_axes(8.6, 3.6)
    for name, (x, y, colour) in BOXES.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        ax.text(x, y, name, ha="center", va="center", fontsize=LABEL, bbox=box, zorder=3)
    for start, end, says in ARROWS:
        (x, y, _), (to_x, to_y, _) = BOXES[start], BOXES[end]
        shape = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 24, "shrinkB": 30 if y == to_y else 24}
        ax.annotate("", (to_x, to_y), (x, y), arrowprops=shape)
        up = 0.3 if y == to_y else 0
        ax.text(
            (x + to_x) / 2 + 0.2 * (not up), (y + to_y) / 2 + up, says, ha="center" if up else "left", fontsize=SMALL
        )
    ax.set(xlim=(-0.6, 9), ylim=(-0.2, 3.6))
    ax.set_axis_off()
    return ax


def draw_areas() -> Axes:
    """The four areas by what the strong ceiling and the weak model know; the blind one is shaded."""
    ax = new_axes(4.4, 2.8)
    for k, (says, colour) in enumerate(zip(SEEN, AREA_COLOURS, strict=True)):
        at = 1 - k % 2, 1 - k // 2  # unknown to the weak model on the left, unknown to the strong one below
        ax.add_patch(Rectangle(at, 1, 1, facecolor=colour if k == 1 else "white", edgecolor="black"))
        ax.text(at[0] + 0.5, at[1] + 0.5, says, ha="center", va="center", fontsize=SMALL)
    ax.set(xlim=(0, 2), ylim=(0, 2))
    ax.set_xticks([0.5, 1.5], ["W-unknown", "W-known"])
    ax.set_yticks([0.5, 1.5], ["S-unknown", "S-known"])
    ax.tick_params(length=0, labelsize=SMALL)
    return ax
