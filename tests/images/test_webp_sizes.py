"""WebP: the size is read from the header of each kind of file before the decoder allocates the pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlas_store.errors import ImageError
from dlas_store.images.decode import decode, image_size
from tests.support.sample_data import noise

KINDS: dict[str, dict[str, Any]] = {
    "lossy": {},
    "lossless": {"lossless": True},
    "extended": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_that_of_the_header(kind: str) -> None:
    pixels = noise(30, 50)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", **KINDS[kind])
    data = buffer.getvalue()
    assert data[12:16] == {"lossy": b"VP8 ", "lossless": b"VP8L", "extended": b"VP8X"}[kind]
    assert image_size(data, max_pixels=1500) == (30, 50)
    with pytest.raises(ImageError, match="50 x 30 pixels are more than the limit of 1499"):
        image_size(data, max_pixels=1499)
    if kind == "lossless":
        np.testing.assert_array_equal(decode(data), pixels)
