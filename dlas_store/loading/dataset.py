"""The base class of datasets: repeatable random numbers, epochs, and the replacement of bad samples."""

from __future__ import annotations

import logging
import mmap
import operator
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
"""Number of workers with separate counters of bad samples, because two processes must not add to the same number."""


class ItemDataset(Dataset[dict[str, Any]], ABC):
    """A dataset of dicts: ``make_item`` makes each from its index and its own random numbers.

    An int or a SampleKey selects an item. The repetition of an int is the epoch that set_epoch() set last,
    also in workers that already run. Before any set_epoch() the repetition is a random number of PyTorch's global
    generator (in a worker, the worker's), so that items differ from epoch to epoch under any DataLoader and follow
    torch.manual_seed().

    ``on_error: raise`` lets a sample that cannot be read raise its error. ``on_error: skip`` logs the error, once an
    image, counts the sample, and replaces it by the next sample that can be read.

    Attributes:
        opt: the options that the dataset was made with, as programs of DL-Art-School read them.
    """

    def __init__(self, options: ConfigOptions) -> None:
        """Read ``seed`` (default: a random number of PyTorch's global generator) and ``on_error`` (default: raise)."""
        self.opt = GivenOptions(options.opt)
        self._has_drawn_seed = not options.has("seed")
        self._seed = new_seed() if self._has_drawn_seed else options.integer("seed", minimum=0)
        self.skips_bad = options.choice("on_error", "raise", ("raise", "skip")) == "skip"
        self._bad_images: set[str] = set()
        # Shared memory lets workers see the epoch, and the parent the counters.
        self._epoch = _shared_tensor([_NO_EPOCH])
        self._skipped = _shared_tensor([0] * (1 + _COUNTERS))
        self._reported = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items in an epoch."""

    @abstractmethod
    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return the item at 0 <= index < len(self), with all its random choices taken from ``random``."""

    @abstractmethod
    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""

    def __getitem__(self, item: int | SampleKey) -> dict[str, Any]:
        """Return an item.

        Args:
            item: an index, 0 <= index < len(self), or a sample key with such an index.

        Raises:
            PatchIndexError: the index is out of range.
            StoreError: the item cannot be read, and ``on_error`` is raise or no other item can be read either.
        """
        key = self.as_key(item)
        if not self.skips_bad:
            return self._make(key)
        for step in range(len(self)):
            try:
                return self._make(key._replace(index=(key.index + step) % len(self)) if step else key)
            except StoreError as error:
                self._count_bad((key.index + step) % len(self), error)
        raise StoreError(f"{type(self).__name__}: none of the {len(self)} items can be read; run dlas-store verify")

    def __getitems__(self, items: Sequence[int | SampleKey]) -> Sequence[dict[str, Any]]:
        """Return the items of a batch, for PyTorch's DataLoader; see __getitem__."""
        return [self[item] for item in items]

    def batch_builder(self, keys: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        """Begin a batch, equal to PyTorch's collation of the items that __getitem__ returns.

        Args:
            keys: the items.
            allocate: returns the memory of the batch's tensors.

        Raises:
            PatchIndexError: an index is not in 0 .. len(self) - 1.
            StoreError: the items' patches cannot be located, and ``on_error`` is raise.
        """
        try:
            return self.make_builder(keys, allocate, replace=self.__getitem__ if self.skips_bad else None)
        except StoreError:
            if not self.skips_bad:
                raise
        # Some patches cannot even be located. A builder that makes items one by one replaces the bad items.
        return StackingBuilder(self.__getitem__, keys, allocate)

    def device_transform(self, device: torch.device) -> BatchTransform | None:  # noqa: ARG002 - for overrides
        """Return the transform that makes batches on a device from raw batches; None, the default, means no transform.

        Raises:
            ConfigError: an option of the dataset excludes the transform.
        """
        return None

    def begin_raw_batch(self, keys: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        """Begin a RawBatch for device_transform(); see batch_builder. A dataset with a transform overrides this."""
        raise NotImplementedError(f"{type(self).__name__} makes no batches for a device")

    def make_builder(
        self,
        keys: Sequence[SampleKey],
        allocate: Allocate,
        *,
        replace: MakeItem | None,  # noqa: ARG002 - for datasets that make all items together
    ) -> BatchBuilder:
        """Begin a batch; a dataset that can make all items of a batch together overrides this method.

        Args:
            keys: the items.
            allocate: returns the memory of the batch's tensors.
            replace: makes the replacement of an item that cannot be read; None raises the error.

        Raises:
            PatchIndexError: an index is not in 0 .. len(self) - 1.
            StoreError: the items' patches cannot be located.
        """
        return StackingBuilder(self.__getitem__, keys, allocate)

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Ask the system to read the items' data from the disk, without waiting: a hint, ignored by default."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0 or more, in this process and in all workers that share the dataset with it."""
        self._epoch[0] = epoch

    def reset_random(self) -> None:
        """Make the items from now on those of epoch 0, whenever they are read; set_epoch() ends that.

        DL-Art-School's evaluators call this method, so that each evaluation has the same items.
        """
        self.set_epoch(0)

    @property
    def seed(self) -> int:
        """The seed of the items' random numbers: the option, or else a random one."""
        return self._seed

    @property
    def has_drawn_seed(self) -> bool:
        """Whether the seed is a random one, which differs from process to process."""
        return self._has_drawn_seed

    def set_seed(self, seed: int) -> None:
        """Set the seed of the items' random numbers, 0 or more, to make the items of another process."""
        self._seed, self._has_drawn_seed = seed, False

    def __repr__(self) -> str:
        """Return the dataset's class, its number of items, its seed and where its data is."""
        data = self._data()
        return f"<{type(self).__name__}: {len(self)} items, seed {self.seed}{', ' * bool(data)}{data}>"

    def _data(self) -> str:
        """Return what the dataset reads, for its repr; empty if there is nothing to say."""
        return ""

    def take_skipped(self) -> int:
        """Return how many samples were replaced, in all workers, since the last call of this method."""
        reported_before, self._reported = self._reported, int(self._skipped.sum())
        return self._reported - reported_before

    def as_key(self, item: int | SampleKey) -> SampleKey:
        """Return the sample key of an item; an int gets the current repetition.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        key = item if isinstance(item, SampleKey) else SampleKey(operator.index(item), self._repetition())
        if not type(key.index) is type(key.repetition) is int:  # a narrow integer of NumPy overflows in arithmetic
            key = SampleKey(*map(operator.index, key))
        if not 0 <= key.index < len(self):
            raise PatchIndexError(f"no item {key.index}: the dataset has {len(self)}")
        return key

    def _make(self, key: SampleKey) -> dict[str, Any]:
        return self.make_item(key.index, SampleRng(self._seed, key))

    def _repetition(self) -> int:
        epoch = int(self._epoch[0])
        return new_seed() if epoch == _NO_EPOCH else epoch

    def _count_bad(self, index: int, error: StoreError) -> None:
        worker = get_worker_info()
        self._skipped[0 if worker is None else 1 + worker.id % _COUNTERS] += 1
        try:
            image = self.image_of(index)
        except StoreError:  # the image's name may be the damaged part
            image = f"item {index}"
        if image not in self._bad_images:
            self._bad_images.add(image)
            _LOG.warning("skipped a bad sample of %s: %s", image, error)


class GivenOptions(dict[str, Any]):
    """The options of a dataset as given; an option that is not given reads as None, as in DL-Art-School."""

    def __missing__(self, key: str) -> None:
        return None


def _shared_tensor(numbers: list[int]) -> torch.Tensor:
    """Return int64 numbers in memory that worker processes share, whatever their start method.

    Forked processes share the anonymous map. For other processes PyTorch moves the numbers to /dev/shm as it pickles
    them, so that a program without worker processes needs no room there.
    """
    tensor = torch.frombuffer(mmap.mmap(-1, 8 * len(numbers)), dtype=torch.int64)
    tensor[:] = torch.tensor(numbers)
    return tensor
