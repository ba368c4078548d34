"""The base class of datasets: repeatable random numbers, epochs, and the fate of bad samples."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from dlas_store.config import ConfigOptions
from dlas_store.errors import PatchIndexError, StoreError
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchTransform, MakeItem, StackingBuilder
from dlas_store.sampling.rng import SampleKey, SampleRng, new_seed

_LOG = logging.getLogger(__name__)

_NO_EPOCH = -1

_COUNTERS = 64
"""Counts of bad samples are kept apart for this many workers, for no two processes may add to the same number."""


class ItemDataset(Dataset[dict[str, Any]], ABC):
    """A dataset of dicts, each made by ``make_item`` from its index and its own random numbers.

    An index may be an int or a Draw. With an int, the repetition is the epoch that set_epoch() told last, also to
    workers that already run; before any set_epoch() it is drawn from PyTorch's own generator, that of the worker in a
    worker, so that it differs from epoch to epoch under any DataLoader and follows torch.manual_seed().

    ``on_error: raise`` lets a sample that cannot be read raise its error; ``skip`` logs it, once an image, counts it,
    and gives the next sample that can be read in its place.
    """

    def __init__(self, options: ConfigOptions) -> None:
        """Read ``seed`` (drawn from PyTorch's own generator where it is not given) and ``on_error`` (raise)."""
        self._seed = options.integer("seed", minimum=0) if options.has("seed") else new_seed()
        self.skips_bad = options.choice("on_error", "raise", ("raise", "skip")) == "skip"
        self._bad_images: set[str] = set()
        # In shared memory, so that workers see the epoch and the parent the counts.
        self._epoch = _share([_NO_EPOCH])
        self._skipped = _share([0] * (1 + _COUNTERS))
        self._reported = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items in an epoch."""

    @abstractmethod
    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return the item at 0 <= index < len(self), all its random choices taken from ``random``."""

    @abstractmethod
    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""

    def __getitem__(self, item: int | SampleKey) -> dict[str, Any]:
        """Return an item.

        Args:
            item: 0 <= index < len(self), with or without its repetition.

        Raises:
            PatchIndexError: the index is outside of that.
            StoreError: it cannot be read, and ``on_error`` is raise, or nothing else can be read either.
        """
        draw = self.as_key(item)
        if not self.skips_bad:
            return self._make(draw)
        for step in range(len(self)):
            try:
                return self._make(draw._replace(index=(draw.index + step) % len(self)) if step else draw)
            except StoreError as error:
                self._note_bad((draw.index + step) % len(self), error)
        raise StoreError(f"{type(self).__name__}: none of the {len(self)} items can be read; run dlas-store verify")

    def __getitems__(self, items: Sequence[int | SampleKey]) -> Sequence[dict[str, Any]]:
        """Return items, which PyTorch's DataLoader asks for a batch at a time; see __getitem__."""
        return [self[item] for item in items]

    def batch_builder(self, draws: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        """Begin a batch of items, equal to what __getitem__ gives for each.

        Args:
            draws: the items.
            allocate: gives the memory of its tensors.

        Raises:
            PatchIndexError: an index is not in 0 .. len(self) - 1.
        """
        try:
            return self._begin(draws, allocate, replace=self.__getitem__ if self.skips_bad else None)
        except StoreError:
            if not self.skips_bad:
                raise
        # Not even the items' patches can be located; made one by one, bad items are replaced.
        return StackingBuilder(self.__getitem__, draws, allocate)

    def device_transform(self, device: torch.device) -> BatchTransform | None:  # noqa: ARG002 - for those that have one
        """Return the transform that makes batches on a device of begin_raw_batch()'s; None without one, as by default.

        Raises:
            ConfigError: an option of the dataset excludes it.
        """
        return None

    def begin_raw_batch(self, draws: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        """Begin a batch for device_transform(); see batch_builder. Datasets that have a transform override this."""
        raise NotImplementedError(f"{type(self).__name__} makes no batches for a device")

    def _begin(
        self,
        draws: Sequence[SampleKey],
        allocate: Allocate,
        *,
        replace: MakeItem | None,  # noqa: ARG002 - for datasets that make a batch as a whole
    ) -> BatchBuilder:
        """Begin a batch; a dataset that can make it as a whole overrides this.

        Args:
            draws: the items.
            allocate: gives the memory of its tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.

        Raises:
            PatchIndexError: an index is not in 0 .. len(self) - 1.
            StoreError: the items' patches cannot be located.
        """
        return StackingBuilder(self.__getitem__, draws, allocate)

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Let the system read the items' data from the disk, without waiting for it; a hint."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 0, to this process and to all workers that share the dataset with it."""
        self._epoch[0] = epoch

    @property
    def seed(self) -> int:
        """The seed of the items' random numbers: that of the options, or drawn."""
        return self._seed

    def set_seed(self, seed: int) -> None:
        """Let items follow from another seed, from 0, as the items of an epoch do that goes on in another process."""
        self._seed = seed

    def take_skipped(self) -> int:
        """Return how many samples were replaced since this was last asked, in all workers."""
        reported_before, self._reported = self._reported, int(self._skipped.sum())
        return self._reported - reported_before

    def as_key(self, item: int | SampleKey) -> SampleKey:
        """Return an item as a draw, its repetition that of an int.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        draw = item if isinstance(item, SampleKey) else SampleKey(int(item), self._repetition())
        if not 0 <= draw.index < len(self):
            raise PatchIndexError(f"no item {draw.index}: the dataset has {len(self)}")
        return draw

    def _make(self, draw: SampleKey) -> dict[str, Any]:
        return self.make_item(draw.index, SampleRng(self._seed, draw))

    def _repetition(self) -> int:
        epoch = int(self._epoch[0])
        return new_seed() if epoch == _NO_EPOCH else epoch

    def _note_bad(self, index: int, error: StoreError) -> None:
        worker = get_worker_info()
        self._skipped[0 if worker is None else 1 + worker.id % _COUNTERS] += 1
        try:
            image = self.image_of(index)
        except StoreError:  # what is damaged may be the name
            image = f"item {index}"
        if image not in self._bad_images:
            self._bad_images.add(image)
            _LOG.warning("skipped a bad sample of %s: %s", image, error)


def _share(numbers: list[int]) -> torch.Tensor:
    """Return int64 numbers in memory that worker processes share, however they are started."""
    return torch.tensor(numbers, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call, no-any-return]
