"""Reports: the chart, and the order of rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.report import Comparison, run_rounds, write_chart
from dlas_store import StoreError


def test_a_chart_shows_ratios(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rounds = {"limit": [10, 12], "store": [9, 9], "folder": [3, 4]}
    comparison = Comparison(title="Reading", unit="items/s", reference="limit", rounds=rounds)
    write_chart(tmp_path / "chart.png", comparison, subject="words " * 50, highlighted=["store"])
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width == 1800
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 24) if count > 10_000}
    assert {(31, 111, 235), (182, 190, 201)} <= colours


def test_a_chart_without_matplotlib_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    with pytest.raises(StoreError, match=r"pip install 'dlas-store\[plot\]'"):
        report.require_matplotlib()


def test_every_contender_runs_once_a_round_and_each_round_starts_with_another() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    results = run_rounds(contenders, rounds=4)
    assert "".join(order) == "abcbcacababc"
    assert results["a"] == [1, 6, 8, 10]
