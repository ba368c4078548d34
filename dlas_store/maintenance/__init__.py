"""Maintenance of whole stores: verification, rebuilding of the index, and a summary."""

from dlas_store.maintenance.info import info
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import Finding, VerifyReport, verify

__all__ = ["Finding", "VerifyReport", "info", "reindex", "verify"]
