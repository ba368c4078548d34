"""DL-Art-School's datasets, on stores and folders alike. Importing this loads PyTorch and OpenCV."""

from dlas_store.datasets.loader import Loader, create_dataloader
from dlas_store.datasets.modes import create_dataset, register_dataset, take_over
from dlas_store.datasets.options import OptionWarning
from dlas_store.datasets.single_image import SingleImageDataset

__all__ = [
    "Loader",
    "OptionWarning",
    "SingleImageDataset",
    "create_dataloader",
    "create_dataset",
    "register_dataset",
    "take_over",
]
