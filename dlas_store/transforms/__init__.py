"""Transforms from pixels to pixels: resizing, crops, corruptions."""

from dlas_store.transforms.corruptions import Corruptions
from dlas_store.transforms.crops import random_resized_crop
from dlas_store.transforms.resize import matlab_reduce, resize_area, to_chw_float

__all__ = ["Corruptions", "matlab_reduce", "random_resized_crop", "resize_area", "to_chw_float"]
