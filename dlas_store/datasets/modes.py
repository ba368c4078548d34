"""Registration of the modes, and factories that let a DL-Art-School checkout take its datasets from this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import Dataset

from dlas_store.datasets.combined import CombinedDataset
from dlas_store.datasets.frames import MultiFrameDataset, PairedFrameDataset
from dlas_store.datasets.full_image import FullImageDataset
from dlas_store.datasets.image_folder import ImageFolderDataset
from dlas_store.datasets.multi_scale import MultiScaleDataset
from dlas_store.datasets.pixels import PixelsDataset
from dlas_store.datasets.single_image import SingleImageDataset
from dlas_store.datasets.stylegan2 import Stylegan2Dataset
from dlas_store.datasets.torch_dataset import TorchDataset
from dlas_store.loading.batch import Collate
from dlas_store.loading.create import (
    MakeDataset,
    class_of,
    collate_of,
    create_dataloader,
    create_dataset,
    has_mode,
    register_dataset,
)

MODES: Mapping[str, MakeDataset] = {
    "single_image_extensible": SingleImageDataset,
    "multi_frame_extensible": MultiFrameDataset,
    "paired_frame": PairedFrameDataset,
    "imagefolder": ImageFolderDataset,
    "stylegan2": Stylegan2Dataset,
    "multiscale": MultiScaleDataset,
    "fullimage": FullImageDataset,
    "torch_dataset": TorchDataset,
    "combined": CombinedDataset,
    "pixels": PixelsDataset,
}
"""Mode of a config -> its dataset. Importing this module registers them."""

for _mode, _dataset in MODES.items():
    register_dataset(_mode, _dataset)


def dlas_factories(
    dlas_create_dataset: Callable[..., Any], dlas_create_dataloader: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return DL-Art-School's create_dataset and create_dataloader, extended by the modes of this package.

    This package serves every mode that is registered here; the arguments serve all other modes, also those of the
    members of ``combined``.

    Args:
        dlas_create_dataset: DL-Art-School's function, called as (dataset_opt, return_collate).
        dlas_create_dataloader: DL-Art-School's function, called as
            (dataset, dataset_opt, opt, sampler, collate_fn, shuffle).
    """

    def dataset_by_mode(dataset_opt: Mapping[str, Any], return_collate: bool = False) -> Any:
        if not has_mode(dataset_opt.get("mode")):
            return dlas_create_dataset(dataset_opt, return_collate)
        if class_of(dataset_opt) is not CombinedDataset:
            return create_dataset(dataset_opt, return_collate)
        dataset = CombinedDataset(dataset_opt, create_member=dataset_by_mode)
        return (dataset, collate_of(dataset, dataset_opt)) if return_collate else dataset

    def dataloader_by_mode(  # noqa: PLR0917 - DL-Art-School's signature
        dataset: Dataset[Any],
        dataset_opt: Mapping[str, Any],
        opt: Mapping[str, Any] | None = None,
        sampler: Any = None,
        collate_fn: Collate | None = None,
        shuffle: bool = True,
    ) -> Any:
        if not has_mode(dataset_opt.get("mode")):
            return dlas_create_dataloader(dataset, dataset_opt, opt, sampler, collate_fn, shuffle)
        if dataset_opt.get("phase") != "train":
            opt = None if opt is None else {**opt, "dist": False}  # there, each process validates on all items
        return create_dataloader(dataset, dataset_opt, opt, sampler, collate_fn, shuffle)

    return dataset_by_mode, dataloader_by_mode


take_over = dlas_factories
"""Another name of dlas_factories, for DL-Art-School checkouts that import it."""
