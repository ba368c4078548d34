"""Report of a benchmark: interleaved rounds, their comparison, and its output as tables, JSON and a bar chart."""

from __future__ import annotations

import argparse
import json
import os
import platform
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

from tqdm import tqdm

from dlas_store import StoreError
from dlas_store.images.libjpeg import find_libjpeg
from dlas_store.processes import available_cores

T = TypeVar("T")

_PACKAGES = ("dlas-store", "lmdb", "numpy", "opencv-python-headless", "Pillow", "simplejpeg", "torch")
"""Distributions whose versions are written to the JSON report."""

_CHART_WIDTH = 9.0
_CHART_DPI = 200
"""Resolution of the chart: 1,800 pixels wide, so that the chart is sharp if shown 900 pixels wide."""

_HIGHLIGHT_COLOUR, _BAR_COLOUR, _LINE_COLOUR = "#1f6feb", "#b6bec9", "#333333"


class Summary(NamedTuple):
    """Summary of one contender's rounds.

    Attributes:
        median: median of the rounds.
        low: lowest round.
        high: highest round.
        relative: median of the ratios to the reference in the same round, or of the differences from the reference.
    """

    median: float
    low: float
    high: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contenders that were measured in the same rounds.

    Attributes:
        title: name of the measured quantity.
        unit: unit of the values.
        reference: the contender that all contenders are compared with.
        rounds: contender -> one value a round.
        relation: ratios to the reference, or differences from the reference.
    """

    title: str
    unit: str
    reference: str
    rounds: Mapping[str, Sequence[float]]
    relation: Literal["ratio", "difference"] = "ratio"

    def summary(self, name: str) -> Summary:
        """Return the summary of a contender's rounds."""
        values = self.rounds[name]
        if self.relation == "ratio":
            relative = median(self.ratios(name))
        else:
            pairs = zip(values, self.rounds[self.reference], strict=True)
            relative = median(value - reference for value, reference in pairs)
        return Summary(median(values), min(values), max(values), relative)

    def ratios(self, name: str) -> list[float]:
        """Return the ratio of a contender to the reference in each round."""
        pairs = zip(self.rounds[name], self.rounds[self.reference], strict=True)
        return [value / reference for value, reference in pairs]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of a benchmark.

    Attributes:
        subject: description of the measured data, one line.
        comparisons: comparisons, each shown as a table.
        figures: further numbers by name, which is a JSON key.
        notes: remarks, one line each.
    """

    subject: str
    comparisons: Sequence[Comparison]
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def run_rounds(contenders: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round, so that other load on the machine affects all contenders alike.

    Each round starts with the next contender.

    Returns:
        Contender -> its return values, one a round.
    """
    names = list(contenders)
    results: dict[str, list[T]] = {name: [] for name in names}
    tqdm.monitor_interval = 0  # no monitor thread may run while loaders fork their workers
    with tqdm(total=rounds * len(names), unit=" runs", leave=False, disable=None) as bar:
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                bar.set_description(name)
                results[name].append(contenders[name]())
                bar.update()
    return results


def print_report(report: Report) -> None:
    """Print a report as tables."""
    print(report.subject)
    for comparison in report.comparisons:
        print()
        print("\n".join(_table(comparison)))
    if report.figures:
        print()
    for name, value in report.figures.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    if report.notes:
        print()
    for note in report.notes:
        print(note)


def write_json(path: str | Path, report: Report, options: argparse.Namespace) -> None:
    """Write a report as JSON, with the machine, the versions and the options: all that is needed to repeat it."""
    json_options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {
        "benchmark": json_options.pop("benchmark"),
        "subject": report.subject,
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "calls_libjpeg": find_libjpeg() is not None,
        "options": json_options,
        "comparisons": [_as_dict(comparison) for comparison in report.comparisons],
        "figures": dict(report.figures),
        "notes": list(report.notes),
    }
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        StoreError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise StoreError("a chart needs matplotlib, which is not installed; run: pip install 'dlas-store[plot]'")


def write_chart(path: Path, comparison: Comparison, *, subject: str, highlighted: Collection[str]) -> None:
    """Draw a bar chart: medians and ranges of the contenders' ratios to the reference, which is a line at 1.

    Args:
        path: the PNG file to write.
        comparison: the contenders' rounds.
        subject: text about the measurement, written below the chart.
        highlighted: names of contenders whose bars are highlighted.

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
    figure = Figure(figsize=(_CHART_WIDTH, 1.9 + 0.42 * len(names)), dpi=_CHART_DPI, layout="constrained")
    axes = figure.subplots()
    colours = [_HIGHLIGHT_COLOUR if name in highlighted else _BAR_COLOUR for name in names]
    axes.barh(names, medians, color=colours, height=0.68)
    axes.errorbar(medians, range(len(names)), xerr=spread, fmt="none", ecolor=_LINE_COLOUR, elinewidth=1.2, capsize=3)
    for row, name in enumerate(names):
        colour = "white" if name in highlighted else _LINE_COLOUR
        axes.text(0.012, row, f"{medians[row]:.2f}", va="center", fontsize=13, fontweight="bold", color=colour)
    axes.axvline(1, color=_LINE_COLOUR, linewidth=1.5, linestyle="--")
    axes.text(0.99, len(names) - 0.45, comparison.reference, ha="right", va="bottom", fontsize=12, color=_LINE_COLOUR)
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


def _table(comparison: Comparison) -> Iterator[str]:
    relative = "ratio" if comparison.relation == "ratio" else "difference"
    rows = [(f"{comparison.title}, {comparison.unit}", "median", "lowest", "highest", f"{relative}*")]
    for name in comparison.rounds:
        summary = comparison.summary(name)
        values = [_number(value) for value in summary[:3]]
        sign = "+" if comparison.relation == "difference" else ""
        rows.append((name, values[0], values[1], values[2], format(summary.relative, f"{sign},.2f")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, (name, *cells) in enumerate(rows):
        yield "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        if number == 0:
            yield "-" * (sum(widths) + 2 * len(cells))
    rounds = len(comparison.rounds[comparison.reference])
    counted = f"median of {rounds} rounds" if rounds > 1 else "one run"
    yield f"* to {comparison.reference}, {counted}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": comparison.title,
        "unit": comparison.unit,
        "reference": comparison.reference,
        "relation": comparison.relation,
        "results": {
            name: comparison.summary(name)._asdict() | {"rounds": list(values)}
            for name, values in comparison.rounds.items()
        },
    }


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
