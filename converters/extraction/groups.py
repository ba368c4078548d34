"""What a group of photos came to, in a form that lasts until a rerun."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dlas_store.converters.extraction.plan import Skipped


@dataclass(slots=True)
class GroupReport:
    """What a worker made of a group of photos.

    Attributes:
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        skipped: photos of the group that gave no image.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def count(self, patches: int, payload_bytes: int) -> None:
        """Add an image."""
        self.images += 1
        self.patches += patches
        self.payload_bytes += payload_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return the report that as_dict was called on."""
        return cls(**fields | {"skipped": [Skipped(*skipped) for skipped in fields["skipped"]]})
