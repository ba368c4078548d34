"""DL-Art-School's datasets, on stores and folders alike. Importing this loads PyTorch and OpenCV."""

from dlas_store.datasets.collate import zero_pad
from dlas_store.datasets.combined import CombinedDataset
from dlas_store.datasets.full_image import FullImageDataset
from dlas_store.datasets.image_folder import ImageFolderDataset
from dlas_store.datasets.loader import create_dataloader
from dlas_store.datasets.modes import take_over
from dlas_store.datasets.multi_frame import MultiFrameDataset
from dlas_store.datasets.multi_scale import MultiScaleDataset
from dlas_store.datasets.multi_scale_tree import TreeNode, build_tree, tree_leaves
from dlas_store.datasets.paired_frame import PairedFrameDataset
from dlas_store.datasets.passes import Loader
from dlas_store.datasets.pixels_dataset import PixelsDataset
from dlas_store.datasets.registry import create_dataset, register_dataset
from dlas_store.datasets.samplers import DistIterSampler
from dlas_store.datasets.single_image import SingleImageDataset
from dlas_store.datasets.stylegan2 import Stylegan2Dataset
from dlas_store.datasets.torch_dataset import TorchDataset
from dlas_store.options import OptionWarning

__all__ = [
    "CombinedDataset",
    "DistIterSampler",
    "FullImageDataset",
    "ImageFolderDataset",
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
    "register_dataset",
    "take_over",
    "tree_leaves",
    "zero_pad",
]
