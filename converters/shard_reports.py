"""What a worker has to say of a shard, kept beside it, so that a rerun that finds the shard sealed can say it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlas_store.publish import remove_file, write_file
from dlas_store.shard import ShardHeader


def save_report(folder: Path, header: ShardHeader, report: dict[str, Any]) -> None:
    """Write the report of a shard; comes before the shard is sealed.

    Args:
        folder: where the shard is built.
        header: the shard's.
        report: JSON types only.

    Raises:
        WriteError: the disk refused it.
    """
    write_file(_report_file(folder, header), json.dumps(report).encode())


def remove_report(folder: Path, header: ShardHeader) -> None:
    """Remove the report of a shard that is about to be built anew, if there is one.

    Raises:
        WriteError: the disk refused it.
    """
    remove_file(_report_file(folder, header))


def load_report(folder: Path, header: ShardHeader) -> dict[str, Any] | None:
    """Return the report of a shard, None where there is none yet."""
    path = _report_file(folder, header)
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def _report_file(folder: Path, header: ShardHeader) -> Path:
    return folder / f"{header.file_name}.json"
