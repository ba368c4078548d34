"""Mode combined: several datasets side by side, an item of each in every item."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset
from xxhash import xxh3_64_intdigest

from dlas_store.config import ConfigOptions, OptionWarning
from dlas_store.loading.batch import Allocate, BatchBuilder, MakeItem, StackingBuilder
from dlas_store.loading.create import create_dataset
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng

_UNPREFIXED = "default"
_INHERITED = ("scale", "phase")


class CombinedDataset(ItemDataset):
    """Several datasets, the members, as one.

    Item i holds what item i modulo its length of each member holds; the keys are prefixed with the member's name and
    ``_``, but for the member named ``default``. There are as many items as the longest member has. Where an item of a
    shorter member comes again in an epoch, its random choices are others.

    Stores that several members read are open once. The dataset may be used from several threads, after a fork, and
    pickled, where its members may be.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Make the members.

        Args:
            opt: options of the dataset. Each that is a mapping is a member of that name, and holds its ``mode`` and
                options. Members take ``scale`` and ``phase`` from here, as in DL-Art-School, and where they have no
                ``seed`` one that follows from the seed here and their name.

        Raises:
            ConfigError: there is no member, or an option of one is missing or of a wrong value.
            StoreError: the data of a member cannot be opened.
        """
        options = ConfigOptions.of_dataset(opt, mode="combined")
        super().__init__(options)
        for key in _INHERITED:
            options.has(key)
        members = {str(name): options.mapping(name) for name, value in opt.items() if isinstance(value, Mapping)}
        if not members:
            raise options.error("holds no dataset; each option that is a mapping is one")
        self._reseeded = [name for name, member in members.items() if member.get("seed") is None]
        self._members: dict[str, Dataset[dict[str, Any]]] = {
            name: create_dataset(self._member_options(name, member, opt)) for name, member in members.items()
        }
        self._lengths = {name: len(member) for name, member in self._members.items()}  # type: ignore[arg-type]
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch: that of the longest member."""
        return max(self._lengths.values())

    def image_of(self, index: int) -> str:
        """Return the paths of the images that an item belongs to."""
        items = ((member, index % self._lengths[name]) for name, member in self._members.items())
        return ", ".join(member.image_of(item) for member, item in items if isinstance(member, ItemDataset))

    def set_seed(self, seed: int) -> None:
        """Let items follow from another seed; members that have one of their own keep it."""
        super().set_seed(seed)
        for name in self._reseeded:
            member = self._members[name]
            if isinstance(member, ItemDataset):
                member.set_seed(self._member_seed(name))

    def take_skipped(self) -> int:
        """Return how many samples were replaced since this was last asked, here and in members, in all workers."""
        members = (member for member in self._members.values() if isinstance(member, ItemDataset))
        return super().take_skipped() + sum(member.take_skipped() for member in members)

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where the repetition is from; members draw from random numbers of their own.

        Raises:
            PatchIndexError: the index is outside of that.
            StoreError: a member cannot read its part.
        """
        draws = {name: self._draw(name, index, random.repetition) for name in self._members}
        return _merged({name: member[draws[name]] for name, member in self._members.items()})

    def _begin(self, draws: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        if replace is not None:  # one by one, for a sample that is bad in one member is replaced in all
            return super()._begin(draws, allocate, replace=replace)
        works = {name: self._begin_member(name, draws, allocate) for name in self._members}
        return _CombinedBatch(works, len(draws))

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Let the system fetch what members need; see ItemDataset."""
        for name, member in self._members.items():
            if isinstance(member, ItemDataset):
                member.prefetch(self._draws(name, draws))

    def _begin_member(self, name: str, draws: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        member, own_draws = self._members[name], self._draws(name, draws)
        if isinstance(member, ItemDataset):
            return member.batch_builder(own_draws, allocate)
        return StackingBuilder(member.__getitem__, own_draws, allocate)

    def _draws(self, name: str, draws: Sequence[SampleKey]) -> list[Any]:
        return [self._draw(name, *self.as_key(draw)) for draw in draws]

    def _draw(self, name: str, index: int, repetition: int) -> Any:
        """Return what to ask a member for; members registered by others know plain indices only."""
        length = self._lengths[name]
        if not isinstance(self._members[name], ItemDataset):
            return index % length
        passes = -(-len(self) // length)
        return SampleKey(index % length, repetition * passes + index // length)

    def _member_options(self, name: str, member: Mapping[str, Any], opt: Mapping[str, Any]) -> dict[str, Any]:
        inherited = {key: opt[key] for key in _INHERITED if opt.get(key) is not None}
        for key, value in inherited.items():
            if member.get(key) not in (None, value):
                message = f"combined: {name} has {key} {member[key]!r}, and takes {value!r} from here all the same"
                warnings.warn(message, OptionWarning, stacklevel=3)
        return {"name": name, "seed": self._member_seed(name), **_given(member), **inherited}

    def _member_seed(self, name: str) -> int:
        return xxh3_64_intdigest(name.encode(), self._seed & _SEED_BITS) >> 1


class _CombinedBatch:
    """A batch of each member; see BatchBuilder."""

    def __init__(self, works: Mapping[str, BatchBuilder], count: int) -> None:
        self._works = works
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fill(self, start: int, stop: int) -> None:
        """Make a part of each member's batch."""
        for work in self._works.values():
            work.fill(start, stop)

    def finish(self) -> dict[str, Any]:
        """Return the batch."""
        return _merged({name: work.finish() for name, work in self._works.items()})


def _merged(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parts of all members as one, their keys prefixed."""
    merged: dict[str, Any] = {}
    for name, part in parts.items():
        prefix = "" if name == _UNPREFIXED else f"{name}_"
        merged |= {f"{prefix}{key}": value for key, value in part.items()}
    return merged


_SEED_BITS = (1 << 64) - 1


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those that are null, which count as not given."""
    return {key: value for key, value in options.items() if value is not None}
