"""Mode single_image_extensible: one patch an item; and PatchDataset, the base of all chunked modes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import image_path, open_sources
from dlas_store.datasets.decoding import Frames
from dlas_store.datasets.device import DeviceTransform, NamedReference, RawBatchBuilder, name_reference
from dlas_store.datasets.patch_batch import PatchBatchBuilder
from dlas_store.datasets.patch_options import PatchOptions, read_patch_options
from dlas_store.datasets.references import Reference, ReferenceCache, resized_references
from dlas_store.errors import ConfigError
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchOfItems, MakeItem, new_array
from dlas_store.loading.buffers import ScratchPool
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Source


class PatchDataset(ItemDataset):
    """A dataset with an item for every patch, made of it and of patches that go with it.

    Attributes:
        source: holds all patches; its indices are not those of items.
    """

    def __init__(self, options: ConfigOptions, *, has_frame_axis: bool) -> None:
        """Open the data that ``paths`` or ``dataroot``, ``weights`` and ``ignore_first`` name, and read PatchOptions.

        Args:
            options: of the dataset.
            has_frame_axis: whether the tensors of an item have a dimension for its patches.

        Raises:
            ConfigError: an option is missing or of a wrong value.
            StoreError: a path holds no chunked images.
        """
        super().__init__(options)
        self._patch_options = read_patch_options(options)
        self._items = open_sources(options, layout="chunked")
        self.source: Source = self._items.source
        # Made by the first batch that needs it; of two that threads make at the same time one stays.
        self._references: ReferenceCache[Reference] | None = None
        self._named_references: ReferenceCache[NamedReference] | None = None
        self._decoding_memory = ScratchPool()
        self._has_frame_axis = has_frame_axis

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._items)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self.source, self._items.patch_at(index))

    @abstractmethod
    def patches_of(self, index: int) -> Sequence[int]:
        """Return the indices in the dataset's source of the patches that an item is made of, as many for every item.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """

    def patches_of_all(self, indices: Sequence[int]) -> list[int]:
        """Return the patches of one or more items, item by item; see patches_of."""
        return list(chain.from_iterable(map(self.patches_of, indices)))

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            MissingMetadataError: a centre is needed and the source has none.
            StoreError: a patch or its reference cannot be read.
        """
        work = self._begin([SampleKey(index, random.repetition)], new_array, replace=None)
        work.fill(0, 1)
        item: dict[str, Any] = BatchOfItems(work.finish(), 1)[0]
        return item

    def __getitems__(self, items: Sequence[int | SampleKey]) -> Sequence[dict[str, Any]]:
        """Return items, made as a batch; see ItemDataset."""
        work = self.batch_builder([self.as_key(item) for item in items], new_array)
        work.fill(0, len(work))
        return BatchOfItems(work.finish(), len(work))

    @property
    def patch_options(self) -> PatchOptions:
        """How a patch becomes HQ and LQ."""
        return self._patch_options

    def device_transform(self, device: torch.device) -> DeviceTransform:
        """Return the transform that makes HQ and LQ on a device.

        Raises:
            ConfigError: patches are corrupted, or bad ones are skipped.
        """
        if self._patch_options.corruptions.is_active or self.skips_bad:
            raise ConfigError("device goes neither with corruptions nor with on_error: skip; leave one of them out")
        return DeviceTransform(self._patch_options, device)

    def begin_raw_batch(self, draws: Sequence[SampleKey], allocate: Allocate) -> RawBatchBuilder:
        """Begin a batch of which a device makes HQ and LQ; see batch_builder, and DeviceTransform."""
        references = self._named_references = self._named_references or ReferenceCache(self.source, name_reference)
        frames = self._frames_of(draws)
        return RawBatchBuilder(
            frames, self._patch_options, references, has_frame_axis=self._has_frame_axis, allocate=allocate
        )

    def _frames_of(self, draws: Sequence[SampleKey]) -> Frames:
        patches = self.patches_of_all([draw.index for draw in draws])
        return Frames(self.source, patches, len(patches) // len(draws))

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Let the system fetch patches and references; see ItemDataset."""
        self.source.prefetch([patch for draw in draws for patch in self.patches_of(draw.index)])

    def _begin(self, draws: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        references = self._references = self._references or resized_references(self.source, self._patch_options)
        return PatchBatchBuilder(
            draws,
            self._frames_of(draws),
            self._patch_options,
            references,
            self._decoding_memory,
            seed=self._seed,
            has_frame_axis=self._has_frame_axis,
            allocate=allocate,
            replace=replace,
        )


class SingleImageDataset(PatchDataset):
    """Patches of chunked sources, with the reference of their image.

    An item is a dict; h and w are the sides of HQ, s is ``scale``:

    * ``hq`` float32 (3, h, w) and ``lq`` float32 (3, h/s, w/s): RGB in [0, 1] (noise leaves it);
    * ``gt_fullsize_ref`` float32 (4, h, w) and ``lq_fullsize_ref`` float32 (4, h/s, w/s): the reference and, as fourth
      channel, the mask of the patch in it; 0 without a reference;
    * ``gt_center`` and ``lq_center`` int64 (2,): row and column of the patch's centre in the reference, in pixels;
    * ``GT_path`` and ``LQ_path`` str: the patch's path, ending in IMAGE/FILE.

    The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``ignore_first``, and those of
                PatchOptions.

        Raises:
            ConfigError: an option is missing or of a wrong value.
            StoreError: a path holds no chunked images.
        """
        options = ConfigOptions.of_dataset(opt, mode="single_image_extensible")
        super().__init__(options, has_frame_axis=False)
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the item's own patch."""
        return [self._items.patch_at(index)]

    def patches_of_all(self, indices: Sequence[int]) -> list[int]:
        """Return the patches of one or more items."""
        return self._items.patches_at(indices)
