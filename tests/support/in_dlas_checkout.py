"""A program for a copy of DL-Art-School's ``codes``, which uses datasets and loaders as DL-Art-School's programs do.

Its arguments are a config, and as JSON the options of datasets to evaluate. It prints JSON: for each dataset of the
config its class, its options' ``name``, its number of items and the keys of its first batch, and for each evaluated
dataset whether two evaluations have the same items.

Packages that are not installed are replaced by empty ones: DL-Art-School imports many that its image datasets do not
need, such as those of audio and of copying to servers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, SequentialSampler

NOT_NEEDED = {"audio2numpy", "kornia", "munch", "orjson", "paramiko", "scipy", "scp", "torchaudio", "torchvision"}
"""Packages that DL-Art-School imports, and that a test of this library's datasets does not need."""


class EmptyModule(ModuleType):
    """A package that is not installed: each name in it is an empty class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder of modules, which makes NOT_NEEDED and the modules in them where they are not installed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in NOT_NEEDED or (package != fullname and not isinstance(sys.modules[package], EmptyModule)):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def use_datasets(config: str) -> dict[str, Any]:
    """Make every dataset of a config and its loader as train.py and test.py do; return what is found."""
    from data import create_dataloader, create_dataset
    from utils import options as option

    opt = option.dict_to_nonedict(option.parse(config, is_train=False))
    found = {}
    for key, dataset_opt in sorted(opt["datasets"].items()):
        dataset, collate = create_dataset(dataset_opt, return_collate=True)
        loader = create_dataloader(dataset, dataset_opt, opt, None, collate)
        assert loader.dataset.opt["dataroot_LQ"] is None
        batch = next(iter(loader))
        found[key] = {
            "class": f"{type(dataset).__module__}.{type(dataset).__name__}",
            "name": loader.dataset.opt["name"],
            "items": len(dataset),
            "keys": sorted(batch),
        }
    return found


def evaluate(dataset_opt: dict[str, Any]) -> bool:
    """Read a dataset twice as the evaluator sr_diffusion_fid does; return whether both passes have the same items."""
    from data import create_dataset

    dataset = create_dataset(dataset_opt)
    sampler = SequentialSampler(dataset)
    passes = []
    for _ in range(2):
        dataset.reset_random()
        passes.append(list(DataLoader(dataset, 2, sampler=sampler, num_workers=0)))
    return all(torch.equal(first["hq"], second["hq"]) for first, second in zip(*passes, strict=True))


if __name__ == "__main__":
    sys.meta_path.append(EmptyModules())
    sys.path.insert(0, ".")
    evaluated = json.loads(sys.argv[2])
    print(json.dumps({"datasets": use_datasets(sys.argv[1]), "same": [evaluate(opt) for opt in evaluated]}))
