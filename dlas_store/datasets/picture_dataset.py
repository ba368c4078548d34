"""What the datasets of pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.pictures import Pictures
from dlas_store.datasets.roots import announce, image_path
from dlas_store.source import Source


class PictureDataset(ItemDataset):
    """A dataset with an item for every picture; whoever derives from it opens them."""

    _pictures: Pictures

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._pictures)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(*self._locate(index))

    def will_need(self, draws: Sequence[Draw]) -> None:
        """Let the system fetch the pictures, not what else an item may take; see ItemDataset."""
        announce(self._locate(draw.index) for draw in draws)

    def _locate(self, index: int) -> tuple[Source, int]:
        """Return the source of an item's picture, and its patch index there.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        return self._pictures.locate(index)
