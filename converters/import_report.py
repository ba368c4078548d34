"""Reports of an import: bad files, the report of a shard, and the summary of all shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from dlas_store.sources.walk import SkippedPath
from dlas_store.storage.shard import ShardHeader

_MAX_WARNINGS = 100
_FINDINGS_IN_MESSAGE = 100


class BadFile(NamedTuple):
    """A file that cannot be imported."""

    path: str
    message: str


def list_bad_files(findings: Sequence[BadFile]) -> str:
    """Return the paths and problems of the first 100 bad files, and the number of all others, for an error message."""
    shown = "; ".join(f"{finding.path}: {finding.message}" for finding in findings[:_FINDINGS_IN_MESSAGE])
    more = f" and {len(findings) - _FINDINGS_IN_MESSAGE} more" if len(findings) > _FINDINGS_IN_MESSAGE else ""
    return shown + more


@dataclass
class ShardReport:
    """Result of importing a shard.

    Attributes:
        findings: the bad files.
        warnings: oddities that were imported unchanged: one line per image, the first 100.
        warning_count: number of all warnings.
    """

    findings: list[BadFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0

    def warn(self, message: str) -> None:
        """Count a warning, and keep its text if it is one of the first 100."""
        self.warning_count += 1
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(message)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types, with the keys of the file beside the shard."""
        return {"findings": self.findings, "notes": self.warnings, "note_count": self.warning_count}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return the report that as_dict was called on."""
        findings = [BadFile(*finding) for finding in fields["findings"]]
        return cls(findings, fields["notes"], fields["note_count"])


@dataclass(kw_only=True)
class ImportSummary:
    """Result of an import.

    Attributes:
        images: number of images that were imported.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        shards: number of shards that were written.
        seconds: duration.
        skipped: paths in the sources that are no images, with reasons; of several sources, with the source's path.
        findings: bad files that were skipped.
        warnings: oddities that were imported unchanged, the first 100 of each shard.
        warning_count: number of all warnings.
        changed: images that differ between store and source; they were not touched.
        missing_from_source: images of the store that no source has.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    shards: int = 0
    seconds: float = 0.0
    skipped: list[SkippedPath] = field(default_factory=list)
    findings: list[BadFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0
    changed: list[str] = field(default_factory=list)
    missing_from_source: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether the import found nothing that a user should look at."""
        return not (self.findings or self.changed or self.missing_from_source)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "shards": self.shards,
            "seconds": self.seconds,
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "findings": [finding._asdict() for finding in self.findings],
            "warnings": self.warnings,
            "warning_count": self.warning_count,
            "changed": self.changed,
            "missing_from_source": self.missing_from_source,
        }

    def add(self, header: ShardHeader, report: ShardReport) -> None:
        """Count a shard."""
        self.images += header.images
        self.patches += header.patches
        self.payload_bytes += header.payload_bytes
        self.shards += 1
        self.findings += report.findings
        self.warnings += report.warnings
        self.warning_count += report.warning_count
