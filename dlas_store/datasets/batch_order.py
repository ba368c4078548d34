"""The batches of a loader's passes, and how far the pass that runs has come."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, Sampler

from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.samplers import EpochSampler, PlainIndices
from dlas_store.datasets.shared_order import OrderSampler, integer_of_state
from dlas_store.errors import ConfigError

_LOG = logging.getLogger(__name__)

Batch = list[Any]
"""What the sampler gives for one batch: draws, or plain indices for a dataset that does not know draws."""


class Pass:
    """One way through an epoch.

    Attributes:
        batches: those of the epoch, or of the rest of it.
        delivered: how many of them whoever reads the pass has got.
        has_ended: whether the pass came to its end.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches
        self.delivered = 0
        self.has_ended = False


class BatchOrder:
    """Which items make up each batch of a pass.

    Passes count as epochs 0, 1, 2, ... unless set_epoch() says otherwise.

    Attributes:
        dataset: what is read.
        sampler: gives the order.
        batch_size: items a batch, of this process.
        drop_last: whether an incomplete last batch is left out; a sampler that makes batches has decided that itself.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: Sampler[Any] | Iterable[Any], *, batch_size: int, drop_last: bool
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._given: Any = sampler
        if isinstance(sampler, OrderSampler) and not isinstance(dataset, ItemDataset):
            self._given = PlainIndices(sampler)
        self._makes_batches = isinstance(sampler, EpochSampler)
        if isinstance(sampler, EpochSampler) and sampler.share != batch_size:
            raise ConfigError(f"batch_size is {batch_size}, but the sampler makes batches of {sampler.share} items")
        if isinstance(sampler, EpochSampler):
            self.drop_last = sampler.drop_last
        self._epoch = 0
        self._pass: Pass | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        items = len(self.sampler)  # type: ignore[arg-type]
        return items // self.batch_size if self.drop_last else -(-items // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be of an epoch, counted from 0; a sampler with a set_epoch is told as well."""
        self._epoch = epoch
        self._pass = None
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def begin(self) -> Pass:
        """Begin a pass, of which the state tells from now on."""
        batches: Iterator[Batch]
        if self._makes_batches:
            batches = self._given.batches()
            self._epoch = self._given.state_at(0)["epoch"]
        else:
            batches = self._grouped(iter(self._given))
        if isinstance(self.dataset, ItemDataset):
            self.dataset.set_epoch(self._epoch)
        self._epoch += 1
        needs_draws = isinstance(self.dataset, ItemDataset) and not isinstance(self.sampler, OrderSampler)
        self._pass = Pass(self._as_draws(batches) if needs_draws else batches)
        return self._pass

    def end(self, this: Pass) -> None:
        """Note that a pass came to its end, and report what was skipped in it."""
        this.has_ended = True
        if isinstance(self.dataset, ItemDataset) and (skipped := self.dataset.take_skipped()):
            _LOG.warning("%d samples of this epoch could not be read and were replaced", skipped)

    def state_dict(self) -> dict[str, int]:
        """Return where the pass is, after the batches that were delivered; see Loader.

        Raises:
            ConfigError: the sampler keeps no state.
        """
        sampler = self._sampler_with_state()
        state = self._position(sampler)
        if isinstance(self.dataset, ItemDataset) and self.dataset.seed != sampler.seed:
            state["item_seed"] = self.dataset.seed
        return state

    def _position(self, sampler: OrderSampler) -> dict[str, int]:
        if self._pass is None or self._pass.has_ended:
            return sampler.state_dict()
        state = sampler.state_at(self._pass.delivered * self.batch_size // sampler.share)
        if state == sampler.state_at(len(sampler)):
            return state | {"epoch": state["epoch"] + 1, "position": 0}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on where a state says.

        Raises:
            ConfigError: the state is none, or of data with another number of items; or the sampler keeps none.
        """
        sampler = self._sampler_with_state()
        has_item_seed = isinstance(state, Mapping) and "item_seed" in state
        item_seed = integer_of_state(state, "item_seed") if has_item_seed else None
        sampler.load_state_dict(state)
        if isinstance(self.dataset, ItemDataset):
            self.dataset.set_seed(sampler.seed if item_seed is None else item_seed)
        self._epoch = state["epoch"]
        self._pass = None

    def _sampler_with_state(self) -> OrderSampler:
        if not isinstance(self.sampler, OrderSampler):
            raise ConfigError(
                f"the sampler {type(self.sampler).__name__} keeps no state; use EpochSampler or DistIterSampler"
            )
        return self.sampler

    def _as_draws(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        assert isinstance(self.dataset, ItemDataset)
        for batch in batches:
            yield [self.dataset.as_draw(item) for item in batch]

    def _grouped(self, items: Iterator[Any]) -> Iterator[Batch]:
        while batch := list(islice(items, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch
