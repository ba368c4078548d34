"""What the datasets of patches of chunked sources have in common: their sources, and frames made of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.options import Options
from dlas_store.datasets.patches import make_hq, make_lq, pack_frame, read_patch_options, read_sample
from dlas_store.datasets.roots import image_path, open_roots
from dlas_store.source import Source


class PatchDataset(ItemDataset):
    """A dataset with an item for every patch, made of it and of patches that go with it."""

    def __init__(self, options: Options) -> None:
        """Open the data that ``paths`` or ``dataroot``, ``weights`` and ``ignore_first`` name, and read PatchOptions.

        Raises:
            ConfigError: an option is missing or of a wrong value.
            StoreError: a path holds no chunked images.
        """
        super().__init__(options)
        self._patch_options = read_patch_options(options)
        self._roots = open_roots(options, layout="chunked")

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._roots)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(*self._roots.locate(index))

    def _make_frames(self, source: Source, patches: Sequence[int], random: ItemRandom) -> list[dict[str, Any]]:
        """Return patches of a source, packed, all corrupted alike.

        Raises:
            MissingMetadataError: a centre is needed and the source has none.
            StoreError: a patch or its reference cannot be read.
        """
        hq = [make_hq(read_sample(source, patch, self._patch_options), self._patch_options) for patch in patches]
        return list(map(pack_frame, hq, make_lq(hq, self._patch_options, random)))
