"""Converters between stores and folders of other layouts; installed as ``dlas_store.converters``."""

from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage

__all__ = ["export_store", "import_store", "salvage"]
