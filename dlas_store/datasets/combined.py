"""Mode combined: several datasets side by side; each item holds an item of every dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, cast

from torch.utils.data import Dataset
from xxhash import xxh3_64_intdigest

from dlas_store.config import ConfigOptions, OptionWarning
from dlas_store.loading.batch import Allocate, BatchBuilder, MakeItem, StackingBuilder
from dlas_store.loading.create import MakeDataset, create_dataset, has_mode
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng

_UNPREFIXED = "default"
_INHERITED = ("scale", "phase")
_SEED_BITS = (1 << 64) - 1


class CombinedDataset(ItemDataset):
    """Several datasets, the members, as one.

    Item i holds item ``i % len(member)`` of each member. The keys of a member are prefixed with its name and ``_``; the
    member named ``default`` has no prefix. There are as many items as the longest member has. If an item of
    a shorter member comes again in an epoch, its random choices differ.

    A store that several members read is opened once. The dataset may be used from several threads and after a fork,
    and be pickled, if its members may.
    """

    def __init__(self, opt: Mapping[str, Any], *, create_member: MakeDataset = create_dataset) -> None:
        """Make the members.

        Args:
            opt: options of the dataset. Each option that is a mapping is a member of that name: its ``mode`` and its
                options. Members inherit ``scale`` and ``phase``, as in DL-Art-School. A member without ``seed`` gets
                a seed that follows from this dataset's seed and the member's name.
            create_member: makes a member from its options. A member of a mode that is not registered here gets its
                options as they are, with what it inherits, and no name and seed.

        Raises:
            ConfigError: there is no member, or an option of a member is missing or has a wrong value.
            StoreError: the data of a member cannot be opened.
        """
        options = ConfigOptions.of_dataset(opt, mode="combined")
        super().__init__(options)
        for key in _INHERITED:
            options.has(key)  # has() marks the option as known.
        member_options = {str(name): options.mapping(name) for name, value in opt.items() if isinstance(value, Mapping)}
        if not member_options:
            raise options.error("holds no dataset; each option that is a mapping is one")
        self._reseeded = [name for name, own_options in member_options.items() if own_options.get("seed") is None]
        self._members: dict[str, Dataset[dict[str, Any]]] = {
            name: create_member(self._member_options(name, own_options, opt))
            for name, own_options in member_options.items()
        }
        self._lengths = {name: len(member) for name, member in self._members.items()}  # type: ignore[arg-type]
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch, which is the length of the longest member."""
        return max(self._lengths.values())

    def image_of(self, index: int) -> str:
        """Return the paths of the images that an item belongs to, joined by commas."""
        items = ((member, index % self._lengths[name]) for name, member in self._members.items())
        return ", ".join(member.image_of(item) for member, item in items if isinstance(member, ItemDataset))

    def _data(self) -> str:
        return ", ".join(f"{name} {member!r}" for name, member in self._members.items())

    def set_seed(self, seed: int) -> None:
        """Make the items follow from another seed. Members that have a seed of their own keep it."""
        super().set_seed(seed)
        for name in self._reseeded:
            member = self._members[name]
            if isinstance(member, ItemDataset):
                member.set_seed(self._member_seed(name))

    def reset_random(self) -> None:
        """Make the items of all members those of epoch 0, whenever they are read; see ItemDataset."""
        super().reset_random()
        for member in self._members.values():
            if hasattr(member, "reset_random"):
                member.reset_random()

    def take_skipped(self) -> int:
        """Return the number of samples replaced since the last call, in this dataset, its members, and all workers."""
        members = (member for member in self._members.values() if isinstance(member, ItemDataset))
        return super().take_skipped() + sum(member.take_skipped() for member in members)

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: index of the item, 0 <= index < len(self).
            random: the item's random numbers. Only their repetition is used; members have random numbers of their own.

        Raises:
            PatchIndexError: the index is out of that range.
            StoreError: a member cannot read its item.
        """
        keys = {name: self._member_key(name, index, random.repetition) for name in self._members}
        return _merge({name: member[keys[name]] for name, member in self._members.items()})

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Prefetch the members' items; see ItemDataset."""
        for name, member in self._members.items():
            if isinstance(member, ItemDataset):
                member.prefetch(self._member_keys(name, keys))

    def make_builder(self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        """Begin a batch; see ItemDataset."""
        if replace is not None:
            # Items are made one by one: a sample that is bad in one member is replaced in all members.
            return super().make_builder(keys, allocate, replace=replace)
        builders = {name: self._member_builder(name, keys, allocate) for name in self._members}
        return _CombinedBatchBuilder(builders, len(keys))

    def _member_builder(self, name: str, keys: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        member, member_keys = self._members[name], self._member_keys(name, keys)
        if isinstance(member, ItemDataset):
            return member.batch_builder(member_keys, allocate)
        return StackingBuilder(member.__getitem__, member_keys, allocate)

    def _member_keys(self, name: str, keys: Sequence[SampleKey]) -> list[Any]:
        return [self._member_key(name, *self.as_key(key)) for key in keys]

    def _member_key(self, name: str, index: int, repetition: int) -> Any:
        """Return the key of a member's item: a SampleKey, or an index if the member is no ItemDataset."""
        length = self._lengths[name]
        if not isinstance(self._members[name], ItemDataset):
            return index % length
        repetitions_per_epoch = -(-len(self) // length)
        return SampleKey(index % length, repetition * repetitions_per_epoch + index // length)

    def _member_options(self, name: str, own_options: Mapping[str, Any], opt: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options of a member: its own, and those that it inherits or takes by default.

        Args:
            name: name of the member.
            own_options: options of the member in the config. Options that are null count as absent.
            opt: options of this dataset.
        """
        inherited_options = {key: opt[key] for key in _INHERITED if opt.get(key) is not None}
        if not has_mode(own_options.get("mode")):
            # A copy keeps the class: in a checkout, options that are not given read as None.
            foreign_options = cast("dict[str, Any]", copy(own_options))
            foreign_options.update(inherited_options)
            return foreign_options
        for key, value in inherited_options.items():
            if own_options.get(key) not in (None, value):
                message = f"combined: {name} has {key} {own_options[key]!r}, and takes {value!r} from here all the same"
                warnings.warn(message, OptionWarning, stacklevel=3)
        set_options = {key: value for key, value in own_options.items() if value is not None}
        return {"name": name, "seed": self._member_seed(name), **set_options, **inherited_options}

    def _member_seed(self, name: str) -> int:
        return xxh3_64_intdigest(name.encode(), self._seed & _SEED_BITS) >> 1


class _CombinedBatchBuilder:
    """Builder of a batch of every member; see BatchBuilder."""

    def __init__(self, builders: Mapping[str, BatchBuilder], count: int) -> None:
        self._builders = builders
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fill(self, start: int, stop: int) -> None:
        """Make some of the items of each member's batch; see BatchBuilder."""
        for builder in self._builders.values():
            builder.fill(start, stop)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder."""
        return _merge({name: builder.finish() for name, builder in self._builders.items()})


def _merge(member_dicts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items or batches of all members as one dict, their keys prefixed."""
    merged: dict[str, Any] = {}
    for name, member_dict in member_dicts.items():
        prefix = "" if name == _UNPREFIXED else f"{name}_"
        merged |= {f"{prefix}{key}": value for key, value in member_dict.items()}
    return merged
