"""Pixels to pixels: resizing, crops, corruptions."""
