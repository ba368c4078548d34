"""Mode single_image_extensible: one patch an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlas_store.datasets.patch_dataset import PatchDataset
from dlas_store.options import ConfigOptions


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
        super().__init__(options, framed=False)
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the item's own patch."""
        return [self._items.patch_at(index)]

    def patches_of_all(self, indices: Sequence[int]) -> list[int]:
        """Return the patches of one or more items."""
        return self._items.patches_at(indices)
