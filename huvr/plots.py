"""Plots of figures, as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

# The palette of Okabe and Ito, told apart by colour-blind eyes too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#8c6d31")
MARKERS = "osD^vPX*"
Point = tuple[float, float, str]


def curves(series: Mapping[str, Sequence[Point]], across: str, up: str, logarithmic: bool = True) -> str:
    """One curve per name, as an SVG element.

    Args:
        series: points (x, y, kind) of each curve; kind "int8" is drawn hollow.
        across, up: names of the axes.
        logarithmic: whether the axis across is.
    """
    figure = Figure(figsize=(8.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, points) in enumerate(sorted(series.items())):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        ordered = sorted(points)
        axes.plot([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=colour, linewidth=1.5, alpha=0.6)
        for kind in sorted({kind for _, _, kind in ordered}):
            chosen = [(x, y) for x, y, other in ordered if other == kind]
            look: dict[str, Any] = {"marker": marker, "edgecolors": colour, "facecolors": "white" if kind == "int8" else colour}
            label = name.replace("$", r"\$") if kind == min(kind for _, _, kind in ordered) else None  # no mathematics
            axes.scatter([x for x, _ in chosen], [y for _, y in chosen], s=42, linewidths=1.5, zorder=3, label=label, **look)
    axes.set(xlabel=across, ylabel=up)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(2))
        axes.xaxis.set_minor_locator(LogLocator(2, subs=()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(0.08)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as an SVG element; the same figure gives the same text."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "huvr", "font.family": "sans-serif", "font.size": 11}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), flags=re.DOTALL)
