"""Encoded bytes to pixels: JPEG by libjpeg-turbo, other formats by Pillow."""
