"""Bar chart of a comparison: medians and ranges of the ratios, and the reference as a line at 1."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measuring import Comparison
from dlas_store import StoreError

_WIDTH = 9.0
_DPI = 200
"""Makes the chart 1,800 pixels wide, so that it is sharp where it is shown 900 pixels wide."""

_OURS, _OTHERS, _LINE = "#1f6feb", "#b6bec9", "#333333"


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        StoreError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise StoreError("a chart needs matplotlib, which is not installed; run: pip install 'dlas-store[plot]'")


def write_chart(path: Path, comparison: Comparison, *, subject: str, highlighted: Collection[str]) -> None:
    """Draw the ratios of contenders to the reference of the same round.

    Args:
        path: the PNG file to write.
        comparison: the contenders' rounds; the reference becomes the line.
        subject: text about the measurement, written below the chart.
        highlighted: names of contenders whose bars get another colour.

    Raises:
        StoreError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to load

    ratios = {name: comparison.ratios(name) for name in comparison.rounds if name != comparison.reference}
    names = sorted(ratios, key=lambda name: comparison.summary(name).relative)
    medians = [comparison.summary(name).relative for name in names]
    spread = [
        [median - min(ratios[name]) for name, median in zip(names, medians, strict=True)],
        [max(ratios[name]) - median for name, median in zip(names, medians, strict=True)],
    ]
    figure = Figure(figsize=(_WIDTH, 1.9 + 0.42 * len(names)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    colours = [_OURS if name in highlighted else _OTHERS for name in names]
    axes.barh(names, medians, color=colours, height=0.68)
    axes.errorbar(medians, range(len(names)), xerr=spread, fmt="none", ecolor=_LINE, elinewidth=1.2, capsize=3)
    for place, name in enumerate(names):
        colour = "white" if name in highlighted else _LINE
        axes.text(0.012, place, f"{medians[place]:.2f}", va="center", fontsize=13, fontweight="bold", color=colour)
    axes.axvline(1, color=_LINE, linewidth=1.5, linestyle="--")
    axes.text(0.99, len(names) - 0.45, comparison.reference, ha="right", va="bottom", fontsize=12, color=_LINE)
    axes.set_xlim(0, 1.04 * max(1, *map(max, ratios.values())))
    axes.set_ylim(-0.6, len(names) + 0.1)
    axes.tick_params(axis="both", labelsize=12)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    rounds = len(comparison.rounds[comparison.reference])
    axes.set_xlabel(f"ratio to the line, median and range of {rounds} rounds", fontsize=12)
    caption = textwrap.wrap(f"{comparison.title}. {subject}", 120)
    figure.supxlabel("\n".join(caption), fontsize=9, color="#666666")
    figure.savefig(path)
