"""Base class of the chunked modes, PatchDataset, and mode single_image_extensible, whose items are one patch each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import image_path, open_sources
from dlas_store.datasets.decoding import Frames
from dlas_store.datasets.device import DeviceTransform, RawBatchBuilder, RawReference, raw_references
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
    """Base class of the chunked modes: a dataset with an item for every patch.

    Subclasses say in patches_of() which patches make up an item. SingleImageDataset describes the item.

    Attributes:
        source: holds all patches. Its indices differ from the items'.
    """

    def __init__(self, options: ConfigOptions, *, has_frame_axis: bool) -> None:
        """Open the data of ``paths`` or ``dataroot``, with ``weights`` and ``ignore_first``, and read PatchOptions.

        Args:
            options: options of the dataset.
            has_frame_axis: whether the tensors of an item have a dimension for its patches.

        Raises:
            ConfigError: an option is missing or has a wrong value.
            StoreError: a path holds no chunked images.
        """
        super().__init__(options)
        self._patch_options = read_patch_options(options)
        self._patches = open_sources(options, layout="chunked")
        self.source: Source = self._patches.source
        # Each cache is made by the first batch that needs it. If two threads make a cache at once, one cache stays.
        self._references: ReferenceCache[Reference] | None = None
        self._raw_references: ReferenceCache[RawReference] | None = None
        self._scratch = ScratchPool()
        self._has_frame_axis = has_frame_axis

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._patches)

    def __getitems__(self, items: Sequence[int | SampleKey]) -> Sequence[dict[str, Any]]:
        """Return items, made as a batch; see ItemDataset."""
        builder = self.batch_builder([self.as_key(item) for item in items], new_array)
        builder.fill(0, len(builder))
        return BatchOfItems(builder.finish(), len(builder))

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self.source, self._patches.patch_at(index))

    def _data(self) -> str:
        return repr(self.source)

    @property
    def patch_options(self) -> PatchOptions:
        """The options by which a patch becomes HQ and LQ."""
        return self._patch_options

    @abstractmethod
    def patches_of(self, index: int) -> Sequence[int]:
        """Return the indices in ``source`` of an item's patches, the same number for every item.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """

    def patches_of_all(self, indices: Sequence[int]) -> list[int]:
        """Return the patches of one or more items, item by item; see patches_of."""
        return list(chain.from_iterable(map(self.patches_of, indices)))

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: index of the item, 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of that range.
            MissingMetadataError: a centre is needed, and the source has none.
            StoreError: a patch or its reference cannot be read.
        """
        builder = self.make_builder([SampleKey(index, random.repetition)], new_array, replace=None)
        builder.fill(0, 1)
        item: dict[str, Any] = BatchOfItems(builder.finish(), 1)[0]
        return item

    def device_transform(self, device: torch.device) -> DeviceTransform:
        """Return the transform that makes HQ and LQ on a device.

        Raises:
            ConfigError: the options corrupt patches, or skip bad samples.
        """
        if self._patch_options.corruptions.is_active or self.skips_bad:
            raise ConfigError("device goes neither with corruptions nor with on_error: skip; leave one of them out")
        return DeviceTransform(self._patch_options, device)

    def begin_raw_batch(self, keys: Sequence[SampleKey], allocate: Allocate) -> RawBatchBuilder:
        """Begin a batch whose HQ and LQ a device makes; see batch_builder and DeviceTransform."""
        references = self._raw_references = self._raw_references or raw_references(self.source)
        return RawBatchBuilder(
            self._frames_of(keys),
            self._patch_options,
            references,
            has_frame_axis=self._has_frame_axis,
            allocate=allocate,
        )

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Prefetch the items' patches and references; see ItemDataset."""
        self.source.prefetch([patch for key in keys for patch in self.patches_of(key.index)])

    def make_builder(self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        """Begin a batch; see ItemDataset."""
        references = self._references = self._references or resized_references(self.source, self._patch_options)
        return PatchBatchBuilder(
            keys,
            self._frames_of(keys),
            self._patch_options,
            references,
            self._scratch,
            seed=self._seed,
            has_frame_axis=self._has_frame_axis,
            allocate=allocate,
            replace=replace,
        )

    def _frames_of(self, keys: Sequence[SampleKey]) -> Frames:
        patches = self.patches_of_all([key.index for key in keys])
        return Frames(self.source, patches, len(patches) // len(keys))


class SingleImageDataset(PatchDataset):
    """Patches of chunked sources, with the reference of their image.

    An item is a dict. In the shapes, h and w are the sides of HQ, and s is ``scale``:

    * ``hq`` float32 (3, h, w) and ``lq`` float32 (3, h/s, w/s): RGB in [0, 1], which noise may leave;
    * ``gt_fullsize_ref`` float32 (4, h, w) and ``lq_fullsize_ref`` float32 (4, h/s, w/s): the reference and, as fourth
      channel, the mask of the patch in it; 0 without a reference;
    * ``gt_center`` and ``lq_center`` int64 (2,): row and column of the patch's centre in the reference, in pixels;
    * ``GT_path`` and ``LQ_path`` str: the patch's path, which ends in IMAGE/FILE.

    The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``ignore_first``, and the options of
                PatchOptions.

        Raises:
            ConfigError: an option is missing or has a wrong value.
            StoreError: a path holds no chunked images.
        """
        options = ConfigOptions.of_dataset(opt, mode="single_image_extensible")
        super().__init__(options, has_frame_axis=False)
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the item's only patch."""
        return [self._patches.patch_at(index)]

    def patches_of_all(self, indices: Sequence[int]) -> list[int]:
        """Return the patches of one or more items."""
        return self._patches.patches_at(indices)
