"""Program that reads a store through a loader; tests start, watch and interrupt the program.

read_by_loader.py STORE CASE,...   read two epochs in each case, check every item, and print the case
read_by_loader.py STORE CASE --long   read an epoch of 10,000 times the store, and print "batch" after each batch
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.loading.dataset import ItemDataset

START_METHODS = ("fork", "forkserver", "spawn")
PARENTS = ("untouched", "read", "pickled", "closed")
LOADERS = ("threads", "workers", "torch", "torch-persistent")


class Case(NamedTuple):
    """Way to read a store.

    Attributes:
        loader: "threads" or "workers" for a loader of this library; "torch" or "torch-persistent" for PyTorch's
            DataLoader without or with persistent workers.
        start_method: start method of worker processes; empty for threads.
        parent: history of the dataset. "untouched": none. "read": items were read. "pickled": an item was read, and the
            dataset was pickled and unpickled. "closed": another dataset of the same store was opened, read and dropped.
    """

    loader: str
    start_method: str
    parent: str

    def __str__(self) -> str:
        return "/".join(self)


CASES = [
    Case(loader, method, parent)
    for loader in LOADERS
    for method in (("",) if loader == "threads" else START_METHODS)
    for parent in PARENTS
]


def options_of(store: str, *, times: int = 1) -> dict[str, Any]:
    """Return the options of a dataset that reads each patch, with reference and metadata, ``times`` times an epoch."""
    patches = {"target_size": 32, "scale": 2, "need_ref": True, "strict": True}
    data = {"paths": [store], "weights": [times]}
    return {"mode": "single_image_extensible", "phase": "train", "batch_size": 4, "seed": 1, **data, **patches}


def prepared(store: str, parent: str, *, times: int = 1) -> ItemDataset:
    """Return a dataset with the history ``parent`` of a case."""
    dataset: Any = create_dataset(options_of(store, times=times))
    match parent:
        case "read":
            dataset.__getitems__(range(20))
        case "pickled":
            dataset[0]
            dataset = pickle.loads(pickle.dumps(dataset))
        case "closed":
            dataset.__getitems__(range(20))
            dataset = create_dataset(options_of(store, times=times))
    return dataset


def loader_of(case: Case, dataset: ItemDataset, store: str) -> Iterable[dict[str, Any]]:
    """Return the loader of a case for a dataset."""
    if case.loader.startswith("torch"):
        return DataLoader(
            dataset,
            batch_size=4,
            shuffle=True,
            num_workers=2,
            multiprocessing_context=case.start_method,
            persistent_workers=case.loader == "torch-persistent",
        )
    loader_options: dict[str, Any] = {"loader": case.loader, "n_threads": 2}
    if case.loader == "workers":
        loader_options |= {"n_workers": 2, "start_method": case.start_method}
    return create_dataloader(dataset, options_of(store) | loader_options)


def content(item: dict[str, Any]) -> list[bytes]:
    """Return the bytes of each tensor of an item, sorted by key."""
    return [item[key].numpy().tobytes() for key in sorted(item) if isinstance(item[key], torch.Tensor)]


def items_of(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the items of a batch."""
    for row in range(len(batch["GT_path"])):
        yield {key: values[row] for key, values in batch.items()}


def compare(case: Case, store: str) -> None:
    """Read two epochs. Each must give every item once, equal to the item of a dataset that is read without a loader."""
    dataset = prepared(store, case.parent)
    plain: Any = create_dataset(options_of(store))
    expected = {item["GT_path"]: content(item) for item in map(plain.__getitem__, range(len(plain)))}
    loader = loader_of(case, dataset, store)
    for _ in range(2):
        items = [item for batch in loader for item in items_of(batch)]
        assert len(items) == len(expected), f"{case}: {len(items)} items of {len(expected)}"
        assert {item["GT_path"]: content(item) for item in items} == expected, f"{case}: other items"


def read_long(case: Case, store: str) -> None:
    """Read until a signal ends this process."""
    for _ in loader_of(case, prepared(store, case.parent, times=10_000), store):
        print("batch", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    store, names, *flags = sys.argv[1:]
    for name in names.split(","):
        case = Case(*name.split("/"))
        if flags:
            read_long(case, store)
        compare(case, store)
        print(case, flush=True)
