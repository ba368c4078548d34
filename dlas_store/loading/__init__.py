"""Items to batches, for any dataset: the part of torch.utils.data that a training loop reads from."""

from dlas_store.loading.batch import zero_pad
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import Loader
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.loading.workers import WorkersLoader

__all__ = ["ItemDataset", "Loader", "ThreadsLoader", "WorkersLoader", "zero_pad"]
