"""Encoded bytes to pixels: JPEG by libjpeg-turbo, other formats by Pillow."""

from dlas_store.images.decode import MAX_PIXELS, Decoder, Size
from dlas_store.images.memory import Pixels

__all__ = ["MAX_PIXELS", "Decoder", "Pixels", "Size"]
