"""Extraction: photos to patches, in a store or in a chunked folder."""

from dlas_store.converters.extraction.extracting import estimate, extract
from dlas_store.converters.extraction.options import ExtractOptions

__all__ = ["ExtractOptions", "estimate", "extract"]
