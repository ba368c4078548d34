"""Findings of a verify report, and the payloads in a store that a test damages."""

from __future__ import annotations

from pathlib import Path

from dlas_store import open_source
from dlas_store.maintenance.verify import VerifyReport
from tests.support.small_stores import content_of


def payload(store: Path, name: str) -> bytes:
    """Return the bytes of a file in a store.

    Args:
        store: the store.
        name: IMAGE/FILE.
    """
    with open_source(store) as opened:
        data = content_of(opened)[name]
    assert isinstance(data, bytes)
    return data


def findings(report: VerifyReport) -> list[tuple[str, str, str, str]]:
    """Return shard, image, patch and kind of each finding of a report."""
    assert report.ok == (not report.findings)
    return [finding[:4] for finding in report.findings]
