"""Prefetch: while page faults show that data is not cached, tell the kernel which pages the next batches need."""

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
"""For how many batches a page that had to be waited for keeps prefetching going."""

_FIRST_BATCHES = 8


class Readahead:
    """Prefetches batches while pages of this process had to be waited for, lately.

    Where all is in memory a prefetch costs two system calls a patch for nothing, 1 to 2 % of decoding it.
    """

    def __init__(self, dataset: ItemDataset) -> None:
        self._dataset = dataset
        self._counted_reads = _disk_reads()
        self._remaining_batches = _FIRST_BATCHES

    def prefetch(self, draws: Sequence[Draw]) -> None:
        """Tell the kernel of a batch that will be read soon."""
        reads = _disk_reads()
        if reads > self._counted_reads:
            self._counted_reads, self._remaining_batches = reads, _BATCHES
        if self._remaining_batches:
            self._remaining_batches -= 1
            self._dataset.will_need(draws)
