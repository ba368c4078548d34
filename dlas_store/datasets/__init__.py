"""Datasets of each mode of a config, which read stores and folders alike. The import loads PyTorch and OpenCV."""

from dlas_store.config import OptionWarning
from dlas_store.datasets.combined import CombinedDataset
from dlas_store.datasets.frames import MultiFrameDataset, PairedFrameDataset
from dlas_store.datasets.full_image import FullImageDataset
from dlas_store.datasets.image_folder import ImageFolderDataset
from dlas_store.datasets.modes import dlas_factories, take_over
from dlas_store.datasets.multi_scale import MultiScaleDataset, TreeNode, build_tree, tree_leaves
from dlas_store.datasets.pixels import PixelsDataset
from dlas_store.datasets.single_image import SingleImageDataset
from dlas_store.datasets.stylegan2 import Stylegan2Dataset
from dlas_store.datasets.torch_dataset import TorchDataset
from dlas_store.loading.batch import zero_pad
from dlas_store.loading.create import create_dataloader, create_dataset, register_dataset
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import Loader
from dlas_store.sampling.samplers import DistIterSampler

__all__ = [
    "CombinedDataset",
    "DistIterSampler",
    "FullImageDataset",
    "ImageFolderDataset",
    "ItemDataset",
    "Loader",
    "MultiFrameDataset",
    "MultiScaleDataset",
    "OptionWarning",
    "PairedFrameDataset",
    "PixelsDataset",
    "SingleImageDataset",
    "Stylegan2Dataset",
    "TorchDataset",
    "TreeNode",
    "build_tree",
    "create_dataloader",
    "create_dataset",
    "dlas_factories",
    "register_dataset",
    "take_over",
    "tree_leaves",
    "zero_pad",
]
