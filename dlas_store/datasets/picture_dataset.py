"""What the datasets of pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.pictures import Pictures
from dlas_store.datasets.roots import image_path


class PictureDataset(ItemDataset):
    """A dataset with an item for every picture; whoever derives from it opens them."""

    _pictures: Pictures

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._pictures)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self._pictures.source, self._patch_at(index))

    def will_need(self, draws: Sequence[Draw]) -> None:
        """Let the system fetch the pictures, not what else an item may take; see ItemDataset."""
        self._pictures.source.will_need([self._patch_at(draw.index) for draw in draws])

    def _patch_at(self, index: int) -> int:
        """Return the index of an item's picture in the source of pictures.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        return self._pictures.patch_at(index)
