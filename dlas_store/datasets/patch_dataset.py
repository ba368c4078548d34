"""What the datasets of patches of chunked sources have in common: their sources, and frames made of patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from dlas_store.datasets.batches import Allocate, BatchOfItems, BatchWork, MakeItem, new_array
from dlas_store.datasets.decoding_memory import DecodingMemory
from dlas_store.datasets.device_patches import DevicePatches
from dlas_store.datasets.draws import Draw, ItemRandom
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.patch_batch import ItemPatches, PatchBatch
from dlas_store.datasets.patches import PatchOptions, read_patch_options
from dlas_store.datasets.raw_patches import NamedReference, RawPatchBatch, name_reference
from dlas_store.datasets.references import Reference, ReferenceCache, resized_references
from dlas_store.datasets.roots import announce, image_path, open_roots
from dlas_store.errors import ConfigError
from dlas_store.options import ConfigOptions


class PatchDataset(ItemDataset):
    """A dataset with an item for every patch, made of it and of patches that go with it."""

    def __init__(self, options: ConfigOptions, *, framed: bool) -> None:
        """Open the data that ``paths`` or ``dataroot``, ``weights`` and ``ignore_first`` name, and read PatchOptions.

        Args:
            options: of the dataset.
            framed: whether the tensors of an item have a dimension for its patches.

        Raises:
            ConfigError: an option is missing or of a wrong value.
            StoreError: a path holds no chunked images.
        """
        super().__init__(options)
        self._patch_options = read_patch_options(options)
        self._roots = open_roots(options, layout="chunked")
        # Made by the first batch that needs it; of two that threads make at the same time one stays.
        self._references: ReferenceCache[Reference] | None = None
        self._named_references: ReferenceCache[NamedReference] | None = None
        self._decoding_memory = DecodingMemory()
        self._framed = framed

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._roots)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(*self._roots.locate(index))

    @abstractmethod
    def patches_of(self, index: int) -> ItemPatches:
        """Return the patches that an item is made of, as many for every item.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """

    def patches_of_all(self, indices: Sequence[int]) -> list[ItemPatches]:
        """Return what patches_of() does for each of some items, one or more."""
        return list(map(self.patches_of, indices))

    def make_item(self, index: int, random: ItemRandom) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            MissingMetadataError: a centre is needed and the source has none.
            StoreError: a patch or its reference cannot be read.
        """
        work = self._begin([Draw(index, random.repetition)], new_array, replace=None)
        work.fill(0, 1)
        item: dict[str, Any] = BatchOfItems(work.finish(), 1)[0]
        return item

    def __getitems__(self, items: Sequence[int | Draw]) -> Sequence[dict[str, Any]]:
        """Return items, made as a batch; see ItemDataset."""
        work = self.begin_batch([self.as_draw(item) for item in items], new_array)
        work.fill(0, len(work))
        return BatchOfItems(work.finish(), len(work))

    @property
    def patch_options(self) -> PatchOptions:
        """How a patch becomes HQ and LQ."""
        return self._patch_options

    def device_transform(self, device: torch.device) -> DevicePatches:
        """Return the transform that makes HQ and LQ on a device.

        Raises:
            ConfigError: patches are corrupted, or bad ones are skipped.
        """
        if self._patch_options.corruptions.is_active or self.skips_bad:
            raise ConfigError("device goes neither with corruptions nor with on_error: skip; leave one of them out")
        return DevicePatches(self._patch_options, device)

    def begin_raw_batch(self, draws: Sequence[Draw], allocate: Allocate) -> RawPatchBatch:
        """Begin a batch of which a device makes HQ and LQ; see begin_batch, and DevicePatches."""
        items = self.patches_of_all([draw.index for draw in draws])
        references = self._named_references = self._named_references or ReferenceCache(name_reference)
        return RawPatchBatch(items, self._patch_options, references, framed=self._framed, allocate=allocate)

    def will_need(self, draws: Sequence[Draw]) -> None:
        """Let the system fetch patches and references; see ItemDataset."""
        items = (self.patches_of(draw.index) for draw in draws)
        announce((item.source, patch) for item in items for patch in item.patches)

    def _begin(self, draws: Sequence[Draw], allocate: Allocate, *, replace: MakeItem | None) -> BatchWork:
        references = self._references = self._references or resized_references(self._patch_options)
        return PatchBatch(
            draws,
            self.patches_of_all([draw.index for draw in draws]),
            self._patch_options,
            references,
            self._decoding_memory,
            seed=self._seed,
            framed=self._framed,
            allocate=allocate,
            replace=replace,
        )
