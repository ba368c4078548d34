"""Shared memory of worker processes: the pool in which workers send batches, and the errors of that memory."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch._utils import ExceptionWrapper

from dlas_store.errors import SharedMemoryError
from dlas_store.images.decode import DECODING_OFFSET
from dlas_store.loading.batch import RawBatch, is_of_new_zeros, is_plain, new_array
from dlas_store.loading.buffers import is_free

_SLOTS = 64
"""How many tensors of a worker have memory that is reused: enough for about ten batches."""

_SMALL_BYTES = 1 << 16
"""A tensor below this size is pickled: that costs less than a file descriptor."""

_FREE, _TAKEN = 0, 1
"""Flags of slots: the memory of a free slot may be overwritten."""

_SPARE_FILES = 16
"""How many files a worker must be able to open before it takes new shared memory. Where none is left, the thread that
hands the memory's file descriptor to the reader retries for ever, and the reader waits for it."""

_SHARING_FAILURE = re.compile(
    r"shared memory|torch_shm_manager|unable to (open|allocate|resize|mmap|write)|ancdata|too many open files",
    re.IGNORECASE,
)
"""Texts of PyTorch's and multiprocessing's RuntimeErrors about shared memory and file descriptors."""

_FILE_LIMITS = (errno.EMFILE, errno.ENFILE)

_SHARING_ERRNOS = frozenset({
    *_FILE_LIMITS, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOSYS,
})  # fmt: skip
"""Error numbers with which the system refuses a semaphore or memory in /dev/shm, or a pipe."""


@contextmanager
def shared_memory_errors() -> Iterator[None]:
    """Turn an error of shared memory inside the block into a SharedMemoryError; any other error passes unchanged."""
    try:
        yield
    except SharedMemoryError:
        raise
    except OSError as error:
        # An error with a file name is about a file of the dataset or the sampler.
        if error.errno not in _SHARING_ERRNOS or error.filename is not None:
            raise
        raise _sharing_error(error.errno, str(error.strerror)) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not _SHARING_FAILURE.search(reason):
            raise
        has_no_files = "too many open files" in reason.lower() or "ancdata" in reason
        raise _sharing_error(errno.EMFILE if has_no_files else errno.ENOSPC, reason) from error


def _sharing_error(number: int, reason: str) -> SharedMemoryError:
    if number in _FILE_LIMITS:
        message = (
            f"loader: workers: a process has too many open files ({reason}); raise the limit with ulimit -n, lower "
            "n_workers, or set loader: threads, which needs no files to share memory"
        )
    else:
        message = (
            f"loader: workers: the processes cannot share memory in /dev/shm ({reason}); give /dev/shm more room (in a "
            "container with --shm-size), lower batch_size or n_workers, or set loader: threads, which needs none"
        )
    return SharedMemoryError(number, message)


def pack(message: Any) -> bytes:
    """Pickle a message to another process in the calling thread, which raises the error if that fails.

    A queue pickles in a thread of its own, which prints an error and drops the message: the receiver then waits for
    ever. It can always pickle bytes.

    Raises:
        SharedMemoryError: a tensor of the message cannot be moved to shared memory.
        Exception: any error in pickling the message.
    """
    with shared_memory_errors():
        return bytes(ForkingPickler.dumps(message))


def pack_error(where: str) -> bytes:
    """Pickle the exception that is being handled as a message; unpack() raises it again.

    Args:
        where: place of the error for its message, such as "in DataLoader worker process 0".
    """
    error = sys.exception()
    try:
        sent = error if isinstance(error, SharedMemoryError) else ExceptionWrapper(where=where)  # type: ignore[no-untyped-call]
        message = bytes(ForkingPickler.dumps(sent))
        ForkingPickler.loads(message)
    except Exception:  # noqa: BLE001 - a class that cannot be pickled, or made again, has any error
        text = f"Caught {type(error).__name__} {where}: {error}"
        exc_info = (RuntimeError, RuntimeError(text), None)
        return pack(ExceptionWrapper(exc_info, where=where))  # type: ignore[no-untyped-call]
    return message


def unpack(message: bytes) -> Any:
    """Return the message that pack() pickled.

    Raises:
        SharedMemoryError: the memory of a tensor cannot be received.
        Exception: the error that pack_error() pickled.
    """
    with shared_memory_errors():
        unpickled = ForkingPickler.loads(message)
    if isinstance(unpickled, ExceptionWrapper):
        unpickled.reraise()  # type: ignore[no-untyped-call]
    if isinstance(unpickled, SharedMemoryError):
        raise unpickled
    return unpickled


def check_spare_files(count: int = _SPARE_FILES) -> None:
    """Check that this process can open a number of files more.

    Raises:
        SharedMemoryError: it cannot.
    """
    with shared_memory_errors(), ExitStack() as files:
        read_end, write_end = os.pipe()
        for file in (read_end, write_end):
            files.callback(os.close, file)
        for _ in range(count - 2):
            files.callback(os.close, os.dup(read_end))


def new_slots(workers: int) -> torch.Tensor:
    """Return the flags of all workers' slots, int8 (workers, slots), _FREE or _TAKEN; shared if there are workers.

    Raises:
        SharedMemoryError: there is no shared memory.
    """
    slots = torch.zeros((max(1, workers), _SLOTS), dtype=torch.int8)
    with shared_memory_errors():
        return slots.share_memory_() if workers else slots  # type: ignore[no-untyped-call]


class SentArray(NamedTuple):
    """A message that stands for a small tensor, as an array, which a queue sends as bytes."""

    array: NDArray[Any]


class SentZeros(NamedTuple):
    """A message that stands for a tensor of zeros, which the receiver makes."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class SentTensor(NamedTuple):
    """A message that stands for a tensor of a worker's batch.

    Attributes:
        worker: number of the worker.
        slot: number of the slot whose memory holds the tensor; -1 for memory that is not reused.
        memory: the slot's tensor, or None if the receiver has already mapped it.
        shape: of the tensor.
        stride: of the tensor in the slot's memory, where it begins at the start.
    """

    worker: int
    slot: int
    memory: torch.Tensor | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class SharedBufferPool:
    """A worker's pool of shared memory: lends the arrays of a batch, and sends the batch without a copy.

    A slot is one tensor of the pool, which both processes map once and use for many batches.
    """

    def __init__(self, slots: torch.Tensor, worker: int) -> None:
        """Set up an empty pool.

        Args:
            slots: the flags of new_slots.
            worker: number of this worker.
        """
        self._flags = slots[worker].numpy()
        self._worker = worker
        self._tensors: list[torch.Tensor] = []
        self._sent_slots: set[int] = set()
        self._slot_at: dict[int, int] = {}  # address of a lent array -> its slot

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a contiguous array, its content undefined.

        Raises:
            SharedMemoryError: there is no room for it in shared memory.
        """
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        if int(np.prod(shape)) * torch_dtype.itemsize < _SMALL_BYTES:
            return new_array(shape, dtype)
        slot = self._find_slot(shape, torch_dtype)
        if slot is None:
            return new_array(shape, dtype)  # the reader keeps batches in all slots
        self._flags[slot] = _TAKEN
        tensor = self._tensors[slot]
        self._slot_at[tensor.data_ptr()] = slot
        array: NDArray[Any] = tensor.numpy()
        return array

    def send(self, batch: Any) -> Any:
        """Return a batch as a message to BufferReceiver. Allocated arrays that are not in the batch become free.

        Raises:
            SharedMemoryError: the process cannot open enough files to send the batch.
        """
        message = batch
        if isinstance(batch, dict):
            message = {key: self._send(value) for key, value in batch.items()}
        elif isinstance(batch, RawBatch):
            check_spare_files(_SPARE_FILES + len(batch.references))
            message = batch._replace(**{key: self._send(value) for key, value in batch._asdict().items()})
        for slot in self._slot_at.values():
            self._flags[slot] = _FREE
        self._slot_at.clear()
        return message

    def _find_slot(self, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
        """Return a free slot whose tensor has a shape and a type, a new slot if need be; None if no slot is left."""
        for slot, tensor in enumerate(self._tensors):
            if self._flags[slot] == _FREE and tensor.shape == shape and tensor.dtype == dtype:
                return slot
        if len(self._tensors) == _SLOTS:
            return None
        self._tensors.append(_new_shared(shape, dtype))
        return len(self._tensors) - 1

    def _send(self, value: Any) -> Any:
        """Return what a message holds for a batch's value: one of the Sent types, or else the value itself."""
        if not is_plain(value):
            return value
        slot = self._slot_at.pop(value.data_ptr(), None)
        if slot is None and value.nbytes < _SMALL_BYTES:
            return SentArray(value.numpy())
        if slot is None and is_of_new_zeros(value):
            return SentZeros(tuple(value.shape), value.dtype)
        if slot is None:
            check_spare_files()
            return SentTensor(self._worker, -1, value, tuple(value.shape), value.stride())
        memory = None if slot in self._sent_slots else self._tensors[slot]
        self._sent_slots.add(slot)
        return SentTensor(self._worker, slot, memory, tuple(value.shape), value.stride())


class BufferReceiver:
    """The reader's side of the pools: receives batches, and frees their slots once nothing refers to them."""

    def __init__(self, slots: torch.Tensor, *, pin_memory: bool) -> None:
        """Set up the receiver.

        Args:
            slots: the flags of new_slots.
            pin_memory: whether to copy batches into page-locked memory.
        """
        self._flags = slots.numpy()
        self._pin_memory = pin_memory
        self._arrays: dict[tuple[int, int], list[NDArray[Any]]] = {}  # each array in a list of its own, for is_free()
        self._lent_slots: set[tuple[int, int]] = set()

    def receive(self, message: Any) -> Any:
        """Return the batch of a worker's message."""
        self._free_slots()
        if isinstance(message, dict):
            return {key: self._receive(value) for key, value in message.items()}
        if isinstance(message, RawBatch):
            return message._replace(**{key: self._receive(value) for key, value in message._asdict().items()})
        return message

    def _receive(self, value: Any) -> Any:
        """Return the batch's value that a value of a message stands for."""
        if isinstance(value, SentArray):
            return torch.from_numpy(value.array)
        if isinstance(value, SentZeros):
            return self._pinned(torch.zeros(value.shape, dtype=value.dtype))
        if not isinstance(value, SentTensor):
            return value
        slot = (value.worker, value.slot)
        if value.slot < 0:
            assert value.memory is not None
            return self._pinned(value.memory)
        if value.memory is not None:
            self._arrays[slot] = [value.memory.numpy()]
        self._lent_slots.add(slot)
        return self._pinned(torch.from_numpy(self._arrays[slot][0]).as_strided(value.shape, value.stride))

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self._pin_memory else tensor

    def _free_slots(self) -> None:
        for slot in [slot for slot in self._lent_slots if is_free(self._arrays[slot], 0)]:
            self._lent_slots.remove(slot)
            self._flags[slot] = _FREE


def _new_shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    # Shared memory begins with a page. The offset counts elements: bytes get the offset that suits the decoder, and
    # float32 elements begin with a cache line.
    check_spare_files()
    memory = torch.empty(DECODING_OFFSET + math.prod(shape), dtype=dtype)
    with shared_memory_errors():
        memory.share_memory_()  # type: ignore[no-untyped-call]
    return memory[DECODING_OFFSET:].view(shape)
