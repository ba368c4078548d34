"""Report of a benchmark: a table on the terminal, and JSON with the machine, the versions and every round."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measuring import Comparison
from dlas_store.libjpeg import find_libjpeg
from dlas_store.processes import available_cores

_PACKAGES = ("dlas-store", "lmdb", "numpy", "opencv-python-headless", "Pillow", "simplejpeg", "torch")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of a benchmark.

    Attributes:
        subject: description of the measured data, one line.
        comparisons: comparisons, each shown as a table.
        figures: further numbers by name; the name is a JSON key.
        notes: remarks, a line each.
    """

    subject: str
    comparisons: Sequence[Comparison]
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


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
    """Write a report as JSON, with the machine, the versions and the options that are needed to judge or repeat it."""
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {
        "benchmark": chosen.pop("benchmark"),
        "subject": report.subject,
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "calls_libjpeg": find_libjpeg() is not None,
        "options": chosen,
        "comparisons": [_as_dict(comparison) for comparison in report.comparisons],
        "figures": dict(report.figures),
        "notes": list(report.notes),
    }
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
