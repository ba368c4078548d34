"""Asking the disk for batches ahead of time, as long as it is the disk that they come from."""

from __future__ import annotations

from collections.abc import Sequence

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.item_dataset import ItemDataset

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # not on Windows, which reads ahead as it likes

    def _disk_reads() -> int:
        return 0
else:

    def _disk_reads() -> int:
        return getrusage(RUSAGE_SELF).ru_majflt


_BATCHES = 64
"""For how many batches a page that had to be waited for keeps announcements going."""

_FIRST_BATCHES = 8


class Readahead:
    """Announces batches to the system while pages of this process had to be waited for, lately.

    Where all is in memory an announcement costs two system calls a patch for nothing, 1 to 2 % of decoding it.
    """

    def __init__(self, dataset: ItemDataset) -> None:
        self._dataset = dataset
        self._seen = _disk_reads()
        self._left = _FIRST_BATCHES

    def prefetch(self, draws: Sequence[Draw]) -> None:
        """Announce a batch that will be read soon."""
        reads = _disk_reads()
        if reads > self._seen:
            self._seen, self._left = reads, _BATCHES
        if self._left:
            self._left -= 1
            self._dataset.will_need(draws)
