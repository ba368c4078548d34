"""The base class of loaders: beside batches they have a length, an order, epochs, and a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from dlas_store.datasets.batch_order import EpochBatches


class Loader(ABC):
    """Gives the batches of a dataset, epoch after epoch.

    The same seed gives the same batches in the same order, from any loader with any number of threads or workers.
    Epochs count as 0, 1, 2, ... unless set_epoch() says otherwise; ``set_epoch(n)`` gives epoch n's again at any time.
    A state loaded by load_state_dict() is where the next epoch goes on. Samples that were skipped are reported at the
    end of an epoch.
    """

    def __init__(self, batches: EpochBatches, *, num_workers: int, num_threads: int) -> None:
        """Take the batches of each epoch, and what they are made by.

        Args:
            batches: dataset and sampler.
            num_workers: processes, 0 for this one.
            num_threads: threads of each.
        """
        self._batches = batches
        self.num_workers = num_workers
        self.num_threads = num_threads

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Give the batches of an epoch."""

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return len(self._batches)

    @property
    def dataset(self) -> Dataset[Any]:
        """The dataset that is read."""
        return self._batches.dataset

    @property
    def sampler(self) -> Any:
        """The sampler, which gives the order."""
        return self._batches.sampler

    @property
    def batch_size(self) -> int:
        """Items a batch, of this process."""
        return self._batches.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether an incomplete last batch is left out."""
        return self._batches.drop_last

    def set_epoch(self, epoch: int) -> None:
        """Let the next epoch be that of a number, from 0; a sampler with a set_epoch is told as well."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands after the batches that it gave, as JSON: seed, epoch, position, length.

        The seed is that of the order, and of the items unless there is an ``item_seed`` beside it. Whether a config
        gave it or it was drawn, an epoch that is resumed has the same items.

        The position counts items of the epoch's order, of all processes together, so that it can be resumed with other
        batch sizes, loaders, and numbers of processes; the length is the dataset's, which must be the same then.

        Raises:
            ConfigError: the sampler keeps no state.
        """
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch go on where a state says, with its seeds in place of those of loader and dataset.

        Raises:
            ConfigError: the state is none, or of a dataset of another length; or the sampler keeps none.
        """
        self._batches.load_state_dict(state)
