"""StoreDataset and create_loader: pictures and their fields as batches, without a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlas_store.datasets.pixels import PixelsDataset
from dlas_store.errors import ConfigError
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchOfItems, CollatingBuilder, MakeItem, new_array
from dlas_store.loading.collate import batch_allocator
from dlas_store.loading.create import create_dataloader
from dlas_store.loading.loader import Loader
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Source

Data = str | os.PathLike[str] | Source

Batch = dict[str, Any]

Transform = Callable[[Batch], Any]


class StoreDataset(PixelsDataset):
    """The pictures or patches of a store, a folder or an archive, for any loop of PyTorch.

    An item is a dict: ``pixels``, uint8 (3, H, W), RGB, and each field that was asked for; or else what
    ``item_transform`` returns. With ``channels_last`` pixels are (H, W, 3), as they lie in memory in both cases.

    With PyTorch's own DataLoader, pass ``collate_fn=dlas_store.collate``: the pictures of a batch are then decoded
    together, and reach the loop without a copy.
    """

    def __init__(
        self,
        data: Data | Sequence[Data],
        *,
        fields: Sequence[str] = (),
        transform: Transform | None = None,
        item_transform: Transform | None = None,
        channels_last: bool = False,
        seed: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        """Open the data.

        Args:
            data: a path that open_source() takes, an open source, or several of them.
            fields: names of the fields that each picture has.
            transform: called with each batch.
            item_transform: called with each item; random choices in it come from the program's own generators.
            channels_last: return pixels as (H, W, 3).
            seed: of the order in create_loader; None takes a random number.
            skip_bad: replace a picture that cannot be read by the next, with a warning; otherwise it is an error.

        Raises:
            NotASourceError: the data is no source.
            ConfigError: a value is wrong.
        """
        paths = [data] if isinstance(data, str | os.PathLike | Source) else list(data)
        opt: dict[str, Any] = {"paths": paths, "on_error": "skip" if skip_bad else "raise"}
        super().__init__(opt if seed is None else opt | {"seed": seed})
        self.fields = tuple(fields)
        self.transform = transform
        self.item_transform = item_transform
        self.channels_last = channels_last
        if len(self):
            self._fields_of(0)  # a name that no picture has is an error now

    def make_item(self, index: int, random: SampleRng) -> Any:
        """Return an item; see ItemDataset."""
        key = SampleKey(index, random.repetition)
        builder = super().make_builder([key], new_array, replace=None)
        builder.fill(0, 1)
        item = BatchOfItems(self.finished(builder.finish()), 1)[0]
        item.update(self._fields_of(index))
        return item if self.item_transform is None else self.item_transform(item)

    def __getitems__(self, items: Sequence[int | SampleKey]) -> Sequence[Any]:
        """Return the items of a batch, decoded together; dlas_store.collate makes them a batch."""
        if self.item_transform is not None:
            return super().__getitems__(items)
        builder = self.batch_builder([self.as_key(item) for item in items], batch_allocator())
        builder.fill(0, len(builder))
        return BatchOfItems(builder.finish(), len(items))

    def make_builder(self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        """Begin a batch; see ItemDataset."""
        if self.item_transform is not None:
            return CollatingBuilder(self.__getitem__, keys, torch.utils.data.default_collate)
        return _FieldsBuilder(self, super().make_builder(keys, allocate, replace=replace))

    def finished(self, batch: Batch) -> Batch:
        """Return a batch's pixels in the order of dimensions that was asked for, and the batch's indices."""
        pixels = batch["pixels"] if self.channels_last else batch["pixels"].permute(0, 3, 1, 2)
        return {"pixels": pixels}

    def fields_at(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the fields of items, each collated: numbers to a tensor, all else to a list."""
        of_items = [self._fields_of(index) for index in indices]
        return {name: torch.utils.data.default_collate([item[name] for item in of_items]) for name in self.fields}

    def _fields_of(self, index: int) -> dict[str, Any]:
        if not self.fields:
            return {}
        source = self._patches.source
        number, _ = source.locate(self._patches.patch_at(index))
        extra = source.image_without_centers(number).extra
        for name in self.fields:
            if name not in extra:
                known = ", ".join(sorted(extra)) or "none"
                raise ConfigError(
                    f"{source.path}: image {source.image_name(number)!r} has no field {name!r}; it has {known}"
                )
        return {name: extra[name] for name in self.fields}


class _FieldsBuilder:
    """A builder that adds fields to the batch of another builder; see BatchBuilder."""

    def __init__(self, dataset: StoreDataset, pixels: BatchBuilder) -> None:
        self._dataset = dataset
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def fill(self, start: int, stop: int) -> None:
        """Decode some of the pictures."""
        self._pixels.fill(start, stop)

    def finish(self) -> Any:
        """Return the batch."""
        batch = self._pixels.finish()
        fields = self._dataset.fields_at(batch["index"].tolist()) if self._dataset.fields else {}
        batch = {**self._dataset.finished(batch), **fields}
        return batch if self._dataset.transform is None else self._dataset.transform(batch)


def create_loader(
    data: Data | Sequence[Data],
    *,
    batch_size: int,
    shuffle: bool = False,
    fields: Sequence[str] = (),
    transform: Transform | None = None,
    item_transform: Transform | None = None,
    channels_last: bool = False,
    drop_last: bool = False,
    seed: int | None = None,
    workers: int = 0,
    threads: int | None = None,
    skip_bad: bool = False,
    pin_memory: bool = True,
) -> Loader:
    """Return a loader of the batches of a store, a folder or an archive.

    A batch is a dict: ``pixels``, uint8 (n, 3, H, W), RGB, and each field: a tensor (n,) of numbers, or a list. The
    pixels lie in memory in the order of torch.channels_last. The loader has ``state_dict``, ``load_state_dict`` and
    ``set_epoch``; see Loader.

    Args:
        data: see StoreDataset.
        batch_size: pictures of a batch, of all processes together.
        shuffle: read the pictures in an order of their own in each epoch.
        fields: names of the fields that each picture has.
        transform: called with each batch, in the thread or process that made it.
        item_transform: called with each item, before they are collated; it makes the loader slower than ``transform``.
        channels_last: return pixels as (n, H, W, 3).
        drop_last: drop an incomplete last batch.
        seed: of the order; None takes a random number.
        workers: worker processes; 0 makes batches in threads of this process.
        threads: threads of this process, or of each worker; None takes one a core, or one a worker.
        skip_bad: replace a picture that cannot be read by the next, with a warning; otherwise it is an error.
        pin_memory: put batches into page-locked memory, if there is a GPU.

    Raises:
        NotASourceError: the data is no source.
        ConfigError: a value is wrong.
    """
    dataset = StoreDataset(
        data,
        fields=fields,
        transform=transform,
        item_transform=item_transform,
        channels_last=channels_last,
        seed=seed,
        skip_bad=skip_bad,
    )
    opt: dict[str, Any] = {
        "phase": "train",
        "batch_size": batch_size,
        "drop_last": drop_last,
        "loader": "workers" if workers else "threads",
        "n_workers": workers,
        "pin_memory": pin_memory,
    }
    optional = {"seed": seed, "n_threads": threads}
    opt.update({name: value for name, value in optional.items() if value is not None})
    return create_dataloader(dataset, opt, shuffle=shuffle)
