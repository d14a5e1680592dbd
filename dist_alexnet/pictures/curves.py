"""Curves of a run: what was logged, step by step, and where it was started again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import (
    COLOURS,
    INK,
    PALE,
    new_figure,
    page_ink,
    png_of,
    quiet,
    svg_of,
    title,
)
from shards import local

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 600  # of a curve; more are brought together, as means


@dataclass(frozen=True)
class Panel:
    """One drawing: curves by the words that name them, each the key of a metric."""

    title: str
    curves: Mapping[str, str]
    logarithmic: bool = False  # where the values span a factor of ten


PANELS = (
    Panel("loss", {"training": "train/loss", "validation": "val/loss"}),
    Panel("top-1 accuracy", {"training": "train/top1", "validation": "val/top1"}),
    Panel("top-5 accuracy", {"training": "train/top5", "validation": "val/top5"}),
    Panel("learning rate", {"of weights": "optim/lr"}, logarithmic=True),
    Panel("images a second", {"all ranks": "speed/images_per_s"}),
    Panel("seconds a step that waited for data", {"rank 0": "data/wait_s"}),
)


def curve_of(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(step, value) of a metric, in order of step, from the lines that count; of many points means of equal runs.

    Values that are not finite are left out.
    """
    found = {int(line["step"]): float(line[key]) for line in lines if key in line}
    pairs = [(step, value) for step, value in sorted(found.items()) if np.isfinite(value)]
    steps, values = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
    if len(pairs) <= POINTS:
        return steps, values
    cuts = np.linspace(0, len(pairs), POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, len(pairs)])
    return np.add.reduceat(steps, cuts) / sizes, np.add.reduceat(values, cuts) / sizes


def panels_of(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels of which something was logged."""
    return [panel for panel in PANELS if any(len(curve_of(lines, key)[0]) for key in panel.curves.values())]


def draw_curves(lines: Sequence[Mapping[str, Any]], restarts: Sequence[int], to: Path) -> None:
    """Write a PNG of all panels. lines: of metrics.jsonl, those that count; restarts: steps, each a dashed line.

    The file appears whole. Raises OSError.
    """
    panels = panels_of(lines)
    if not panels:
        return
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(4 * across, 2.7 * down)
    for number, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        if number < len(panels):
            _draw(axes, panels[number], lines, restarts, INK)
        else:
            axes.set_axis_off()
    local.write(to, png_of(figure))


def curve_svg(panel: Panel, lines: Sequence[Mapping[str, Any]], restarts: Sequence[int]) -> str:
    """One panel as an <svg> element for a page."""
    figure = new_figure(4, 2.7)
    _draw(figure.subplots(), panel, lines, restarts, page_ink())
    return svg_of(figure)


def _draw(axes: "Axes", panel: Panel, lines: Sequence[Mapping[str, Any]], restarts: Sequence[int], ink: str) -> None:
    values = []
    for colour, (name, key) in zip(COLOURS, panel.curves.items(), strict=False):
        x, y = curve_of(lines, key)
        if len(x):
            # Few points are seen one by one; what is measured at each evaluation always is.
            mark = "o" if len(x) <= 30 else ""
            axes.plot(x, y, color=colour, linewidth=1.5, marker=mark, markersize=3, label=name)
            values.append(y)
    for step in restarts:
        axes.axvline(step, color=PALE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    together = np.concatenate(values)
    if panel.logarithmic and together.min() > 0 and together.max() > 9.99 * together.min():
        axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True, nbins=6)
    quiet(axes, ink)
    axes.set_xlabel("step", color=ink, fontsize=9)
    axes.grid(axis="y", color=PALE, linewidth=0.4, alpha=0.5)
    title(axes, panel.title, color=ink, fontsize=10)
    if len(values) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=ink)
