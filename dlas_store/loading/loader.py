"""The base class of loaders: the batches of each epoch, and a state from which an interrupted epoch resumes."""

from __future__ import annotations

import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import Dataset, Sampler

from dlas_store.errors import ConfigError
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import Epoch, EpochSampler, StatefulSampler, integer_of_state

_LOG = logging.getLogger(__name__)

_EPOCH_BITS = 32
"""Bits of a repetition that hold the epoch, if a sampler of indices gives an item several times in an epoch."""

BatchKeys = list[Any]
"""The sampler's items for one batch: keys, or plain indices for a dataset that does not know keys."""


class Loader(ABC):
    """Yields the batches of a dataset, epoch after epoch.

    The same seed gives the same batches in the same order, from any loader with any number of threads or workers.
    Epochs count as 0, 1, 2, ... unless set_epoch() chooses a number; ``set_epoch(n)`` repeats epoch n at any time.
    After load_state_dict() the next epoch begins at the state's position. The end of an epoch logs how many samples
    were replaced.
    """

    def __init__(self, batches: EpochBatches, *, num_workers: int, num_threads: int) -> None:
        """Set up the loader.

        Args:
            batches: dataset and sampler.
            num_workers: processes, 0 for this one.
            num_threads: threads of each process.
        """
        self._batches = batches
        self.num_workers = num_workers
        self.num_threads = num_threads

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""

    def __len__(self) -> int:
        """Return the number of batches in a full epoch."""
        return len(self._batches)

    def __repr__(self) -> str:
        """Return the loader's class, its batches, its threads or processes, and its dataset."""
        batches = _count(len(self), "batch", "batches") if hasattr(self.sampler, "__len__") else "batches"
        workers = _count(self.num_workers, "worker process of ", "worker processes of ") if self.num_workers else ""
        threads = _count(self.num_threads, "thread", "threads")
        return f"<{type(self).__name__}: {batches} of {self.batch_size}, {workers}{threads}, {self.dataset!r}>"

    @property
    def dataset(self) -> Dataset[Any]:
        """The dataset that is read."""
        return self._batches.dataset

    @property
    def sampler(self) -> Any:
        """The sampler, which determines the order."""
        return self._batches.sampler

    @property
    def batch_sampler(self) -> None:
        """None, as of a DataLoader without one: the loader divides the sampler's items. PyTorch Lightning asks."""
        return

    @property
    def batch_size(self) -> int:
        """Number of items in a batch of this process."""
        return self._batches.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether an incomplete last batch is dropped."""
        return self._batches.drop_last

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next epoch, 0 or more, and pass the number on to a sampler that has a set_epoch."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the state after the batches that were delivered, ready for JSON: seed, epoch, position, length.

        ``seed`` is the seed of the order. If the items have another seed, the state also has an ``item_seed``. Seeds
        that no config sets are in the state as well, so that a resumed epoch has the same items.

        The position counts items of the epoch's order, in all processes together, so that other batch sizes, loaders
        and numbers of processes can resume. The length is the number of items in the dataset, which must not change.

        Raises:
            ConfigError: the sampler keeps no state.
        """
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: the next epoch begins at a state's position, with the state's seeds for order and items.

        Raises:
            ConfigError: the state is invalid, or of a dataset of another length; or the sampler keeps no state.
        """
        self._batches.load_state_dict(state)


class EpochBatches:
    """Divides each epoch of a sampler into batches.

    Epochs count as 0, 1, 2, ... unless set_epoch() chooses a number.

    Attributes:
        dataset: the dataset that is read.
        sampler: determines the order.
        batch_size: number of items in a batch of this process.
        drop_last: whether an incomplete last batch is dropped. An EpochSampler decides that itself.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: Sampler[Any] | Iterable[Any], *, batch_size: int, drop_last: bool
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        if isinstance(sampler, EpochSampler):
            if sampler.local_batch_size != batch_size:
                raise ConfigError(
                    f"batch_size is {batch_size}, but the sampler makes batches of {sampler.local_batch_size} items"
                )
            self.drop_last = sampler.drop_last
        self._let_ranks_agree_on_seed()
        self._next_number = 0  # the next epoch's number, for a sampler that does not count epochs itself
        self._epoch: Epoch | None = None  # the epoch that began last, until it ends

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        items = len(self.sampler)  # type: ignore[arg-type]
        return items // self.batch_size if self.drop_last else -(-items // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next epoch, 0 or more, and pass the number on to a sampler that has a set_epoch."""
        self._next_number = operator.index(epoch)
        self._epoch = None
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def begin(self) -> tuple[Epoch, Iterator[BatchKeys]]:
        """Begin an epoch, which the state describes from now on; return the epoch and its remaining batches."""
        if isinstance(self.sampler, StatefulSampler):
            batches = self._stateful_batches(self.sampler)
            epoch = self.sampler.epoch
        else:
            batches = self._foreign_batches(self.sampler)
            epoch = Epoch(self._next_number)
            self._next_number += 1
        if isinstance(self.dataset, ItemDataset):
            self.dataset.set_epoch(epoch.number)
        self._epoch = epoch
        return epoch, batches

    def end(self, epoch: Epoch) -> None:
        """Record that an epoch is finished, and log how many samples were replaced."""
        if epoch is self._epoch:
            self._epoch = None
        if isinstance(self.dataset, ItemDataset) and (skipped := self.dataset.take_skipped()):
            _LOG.warning("%d samples of this epoch could not be read and were replaced", skipped)

    def state_dict(self) -> dict[str, int]:
        """Return the state after the batches that were delivered; see Loader.

        Raises:
            ConfigError: the sampler keeps no state.
        """
        sampler = self._stateful_sampler()
        state = sampler.state_dict() if self._epoch is None else self._state_inside(sampler, self._epoch)
        if isinstance(self.dataset, ItemDataset) and self.dataset.seed != sampler.seed:
            state["item_seed"] = self.dataset.seed
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: the next epoch begins at a state's position.

        Raises:
            ConfigError: the state is invalid, or of data with another number of items; or the sampler keeps no state.
        """
        sampler = self._stateful_sampler()
        has_item_seed = isinstance(state, Mapping) and "item_seed" in state
        item_seed = integer_of_state(state, "item_seed") if has_item_seed else None
        sampler.load_state_dict(state)
        if isinstance(self.dataset, ItemDataset):
            self.dataset.set_seed(sampler.seed if item_seed is None else item_seed)
        self._epoch = None

    def _let_ranks_agree_on_seed(self) -> None:
        """Give items without a seed of their own the order's, which all ranks have, so that one state fits all ranks.

        If each rank drew a seed of its own, the state of one rank would give the items of the others other random
        numbers.
        """
        dataset, sampler = self.dataset, self.sampler
        if not isinstance(sampler, StatefulSampler) or sampler.ranks == 1:
            return
        if isinstance(dataset, ItemDataset) and dataset.has_drawn_seed:
            dataset.set_seed(sampler.seed)

    def _state_inside(self, sampler: StatefulSampler, epoch: Epoch) -> dict[str, int]:
        items = epoch.delivered * self.batch_size
        if items >= epoch.count:
            return sampler.state_at_position(epoch.number + 1, 0)
        return sampler.state_after(epoch, items)

    def _stateful_sampler(self) -> StatefulSampler:
        if not isinstance(self.sampler, StatefulSampler):
            raise ConfigError(
                f"the sampler {type(self.sampler).__name__} keeps no state; use EpochSampler or DistIterSampler"
            )
        return self.sampler

    def _stateful_batches(self, sampler: StatefulSampler) -> Iterator[BatchKeys]:
        batches = sampler.batches() if isinstance(sampler, EpochSampler) else self._grouped(iter(sampler))
        return batches if isinstance(self.dataset, ItemDataset) else plain_indices(batches)

    def _foreign_batches(self, sampler: Sampler[Any] | Iterable[Any]) -> Iterator[BatchKeys]:
        batches = self._grouped(iter(sampler))
        return self._key_batches(self.dataset, batches) if isinstance(self.dataset, ItemDataset) else batches

    @staticmethod
    def _key_batches(dataset: ItemDataset, batches: Iterator[BatchKeys]) -> Iterator[BatchKeys]:
        """Yield batches of sample keys; an item that comes again in the epoch has a repetition of its own."""
        times = np.zeros(len(dataset), np.uint32)
        rank, ranks = _rank_and_ranks()
        for batch in batches:
            keys = [dataset.as_key(item) for item in batch]
            for position, (item, key) in enumerate(zip(batch, keys, strict=True)):
                if not isinstance(item, SampleKey):
                    place = rank + ranks * int(times[key.index])
                    keys[position] = SampleKey(key.index, key.repetition + (place << _EPOCH_BITS))
                    times[key.index] += 1
            yield keys

    def _grouped(self, items: Iterator[Any]) -> Iterator[BatchKeys]:
        while batch := list(islice(items, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _rank_and_ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, 0 and 1 outside torch.distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def plain_indices(batches: Iterable[Sequence[SampleKey]]) -> Iterator[list[int]]:
    """Yield batches of keys as batches of indices, for a dataset that does not know keys."""
    return ([key.index for key in batch] for batch in batches)
