"""Output of ``dlas-store read CONFIG``: the contents of batches, the speed of loaders, and a sheet of items."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from dlas_store.cli.preview import spread
from dlas_store.cli.sheet import (
    FAINT,
    GAP,
    Picture,
    below,
    beside,
    check_target,
    fit,
    in_grid,
    make_sheet,
    pad,
    text_line,
    text_lines,
    write_png,
)
from dlas_store.config import load_config
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import ConfigError, counted
from dlas_store.loading import ThreadsLoader

ITEMS = 6
"""Number of items that the sheet shows of each dataset."""

LABEL_WIDTH = 200
TILE_SIDE = 128
MAX_CELL_WIDTH = 328
MAX_TEXT_LINES = 4
MAX_NUMBERS = 32
MAX_FRAMES = 64
FRAMES_IN_A_ROW = 4
"""Maximum number of frames in one row; more frames are arranged in a square."""

_FRAME_GAP = 2


def read_batches(config_path: str | Path, *, phase: str = "train", batches: int = 10) -> Iterator[DatasetReport]:
    """Read the first batches of every dataset of a phase, and yield a report of each dataset.

    Args:
        config_path: path of a YAML config; see load_config.
        phase: phase of the datasets: the part of a dataset's key before the first ``_``.
        batches: maximum number of batches to read from each dataset, from 1.

    Raises:
        ConfigError: the config is wrong, or has no dataset of the phase.
        StoreError: a patch cannot be read.
    """
    for key, opt in datasets_of_phase(config_path, phase).items():
        yield _read_dataset(key, opt, batches)


def describe_batches(config_path: str | Path, *, phase: str = "train", batches: int = 10) -> Iterator[str]:
    """Yield the reports of read_batches as lines of text."""
    for report in read_batches(config_path, phase=phase, batches=batches):
        yield from report.lines()


def datasets_of_phase(config_path: str | Path, phase: str) -> dict[str, dict[str, Any]]:
    """Return the options of every dataset of a phase, by dataset key.

    Raises:
        ConfigError: the config is wrong, or has no dataset of the phase.
    """
    datasets = load_config(config_path).get("datasets")
    if not datasets:
        raise ConfigError(
            f"{config_path}: has no datasets to read; 'datasets' must be a mapping of them (train, val, ...)"
        )
    options_of = {key: opt for key, opt in datasets.items() if opt["phase"] == phase}
    if not options_of:
        phases = ", ".join(sorted({opt["phase"] for opt in datasets.values()}))
        raise ConfigError(f"{config_path}: no dataset of phase '{phase}'; there are {phases}")
    return options_of


def draw_items(config_path: str | Path, file: Path, *, phase: str = "train") -> int:
    """Draw items of every dataset of a phase, evenly chosen, into a new PNG file.

    Args:
        config_path: path of a YAML config; see load_config.
        file: the PNG file to write.
        phase: phase of the datasets: the part of a dataset's key before the first ``_``.

    Returns:
        The number of items shown.

    Raises:
        ConfigError: the config is wrong, or has no dataset of the phase.
        StoreError: an item cannot be read.
        TargetExistsError: the file exists.
        WriteError: the file cannot be written.
    """
    check_target(file)
    parts, count = [], 0
    for key, opt in datasets_of_phase(config_path, phase).items():
        dataset: Any = create_dataset(opt)
        items = [dataset[index] for index in spread(len(dataset), ITEMS)]
        parts.append(_draw_dataset(f"{key}: {opt['mode']}, {counted(len(dataset), 'item')}", items))
        count += len(items)
    write_png(make_sheet(parts), file)
    return count


@dataclass(slots=True)
class _Values:
    """Summary of one key's values in all batches: the range of tensors, or an example of values of another type."""

    type: str
    shape: tuple[int, ...]
    low: float = 0
    high: float = 0
    example: str | None = None

    @classmethod
    def of(cls, value: Any) -> _Values:
        """Summarise the value of one batch: a tensor or a list."""
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            if not value.numel():
                return cls(dtype, tuple(value.shape), example="empty")
            return cls(dtype, tuple(value.shape), value.min().item(), value.max().item())
        return cls(type(value[0]).__name__, (len(value),), example=str(value[0]))

    def widen(self, other: _Values) -> None:
        """Extend the range to include the range of another batch."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        content = {"low": self.low, "high": self.high} if self.example is None else {"example": self.example}
        return {"type": self.type, "shape": list(self.shape), **content}

    @property
    def content(self) -> str:
        """The range or the example, as text."""
        return f"{self.low:.4g} .. {self.high:.4g}" if self.example is None else self.example


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetReport:
    """Result of reading the first batches of a dataset.

    Attributes:
        key: key of the dataset in the config.
        mode: mode of the dataset.
        items: number of items in an epoch.
        batches: number of batches in an epoch.
        batch_size: number of items in a batch of this process.
        loader: "threads" or "workers".
        workers: number of worker processes.
        threads: number of threads of this process, or of each worker process.
        values: summary of each key's values.
        counts: number of items of each batch that was read.
        times: time before the first batch and after each batch, in seconds.
    """

    key: str
    mode: str
    items: int
    batches: int
    batch_size: int
    loader: str
    workers: int
    threads: int
    values: Mapping[str, _Values]
    counts: Sequence[int]
    times: Sequence[float]

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        yield (
            f"{self.key}: {self.mode}, {counted(self.items, 'item')}, {self.batches:,} "
            f"{'batch' if self.batches == 1 else 'batches'} of {self.batch_size}; {self._loader_text()}"
        )
        yield from _table(self.values)
        yield self._speed_text()

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return {
            "dataset": self.key,
            "mode": self.mode,
            "items": self.items,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "loader": self.loader,
            "workers": self.workers,
            "threads": self.threads,
            "values": {key: values.as_dict() for key, values in self.values.items()},
            "batches_read": len(self.counts),
            "seconds_to_first_batch": self.times[1] - self.times[0] if self.counts else None,
            "samples_per_second": self._rate() if self.counts else None,
        }

    def _loader_text(self) -> str:
        if self.loader == "threads":
            return f"loader threads: {counted(self.threads, 'thread')}"
        if not self.workers:
            return "loader workers: no worker process, this process makes the batches"
        return f"loader workers: {counted(self.workers, 'worker process')}, {counted(self.threads, 'thread')} each"

    def _speed_text(self) -> str:
        if not self.counts:
            return "  no batch: the dataset has fewer items than batch_size"
        first = self.times[1] - self.times[0]
        read = counted(len(self.counts), "batch")
        return f"  {read} read, the first after {first:.2f} s; {self._rate():,.0f} samples/s"

    def _rate(self) -> float:
        """Return the samples per second.

        The first batch waits for workers to start, so the speed leaves it out unless it is the only batch.
        """
        first = 1 if len(self.counts) > 1 else 0
        return sum(self.counts[first:]) / max(self.times[-1] - self.times[first], 1e-9)


def _read_dataset(key: str, opt: Mapping[str, Any], batches: int) -> DatasetReport:
    dataset, collate = create_dataset(opt, return_collate=True)
    loader = create_dataloader(dataset, opt, collate_fn=collate)
    values_of: dict[str, _Values] = {}
    counts: list[int] = []
    times = [time.perf_counter()]
    for batch in islice(loader, batches):
        times.append(time.perf_counter())
        counts.append(len(next(iter(batch.values()))))
        for name, value in batch.items():
            values = _Values.of(value)
            values_of.setdefault(name, values).widen(values)
    return DatasetReport(
        key=key,
        mode=str(opt["mode"]),
        items=len(cast("Any", dataset)),
        batches=len(loader),
        batch_size=loader.batch_size,
        loader="threads" if isinstance(loader, ThreadsLoader) else "workers",
        workers=loader.num_workers,
        threads=loader.num_threads,
        values=values_of,
        counts=counts,
        times=times,
    )


def _table(values_of: Mapping[str, _Values]) -> Iterator[str]:
    rows = [("key", "type", "shape", "range")]
    for key, values in values_of.items():
        rows.append((key, values.type, " x ".join(map(str, values.shape)), values.content))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


class _Row(NamedTuple):
    """Row of a sheet: the values of one key, one cell an item. A cell is a picture or a text."""

    label: Picture
    cells: Sequence[Picture | str]

    def draw(self, width: int) -> Picture:
        """Draw the label, and a column of the given width for each item."""
        cells = [
            text_lines(cell, width, max_lines=MAX_TEXT_LINES) if isinstance(cell, str) else cell for cell in self.cells
        ]
        return beside([self.label, in_grid([pad(cell, width, cell.height) for cell in cells], len(cells))])


def _draw_dataset(title: str, items: Sequence[Mapping[str, Any]]) -> Picture:
    values_of = {key: [item[key] for item in items if key in item] for item in items for key in item}
    zero = [key for key, values in values_of.items() if all(map(_is_zero, values))]
    rows = [_make_row(key, values) for key, values in values_of.items() if key not in zero]
    cell_widths = [cell.width for row in rows for cell in row.cells if not isinstance(cell, str)]
    pictures = [row.draw(max([TILE_SIDE, *cell_widths])) for row in rows]
    caption = text_line(title, max([2 * LABEL_WIDTH, *(picture.width for picture in pictures)]), size=20)
    if zero:
        pictures.append(text_line(f"all zero, not shown: {', '.join(zero)}", caption.width, color=FAINT))
    return below([caption, *pictures], gap=GAP)


def _is_zero(value: Any) -> bool:
    """Return whether a value is a tensor of several numbers that are all zero."""
    return isinstance(value, torch.Tensor) and value.numel() > 1 and not value.any()


def _make_row(key: str, values: Sequence[Any]) -> _Row:
    first = values[0]
    if not isinstance(first, torch.Tensor):
        return _Row(_label(key, [type(first).__name__]), [str(value) for value in values])
    shape = " x ".join(map(str, first.shape)) or "scalar"
    suffix = "" if all(value.shape == first.shape for value in values) else " and others"
    facts = [f"{str(first.dtype).removeprefix('torch.')}, {shape}{suffix}"]
    numbers = np.concatenate([_to_array(value).ravel() for value in values])
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if finite.size:
        facts.append(f"{low:.4g} .. {high:.4g}")
        if finite.size < numbers.size:
            facts.append("some are not finite")
    values = [_channels_first(value) for value in values]
    first = values[0]
    if not finite.size or not all(map(_is_picture, values)):
        return _Row(_label(key, facts), [_as_text(value) for value in values])
    if first.dtype == torch.uint8:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        facts.append("shown rescaled to that range")
    if first.shape[-3] == 4:
        facts.append("the fourth channel apart")
    if first.ndim == 4 and len(first) > MAX_FRAMES:
        facts.append(f"the first {MAX_FRAMES} shown")
    return _Row(_label(key, facts), [_draw_tensor(_to_array(value), low, high) for value in values])


def _label(key: str, facts: Sequence[str]) -> Picture:
    lines = [text_lines(key, LABEL_WIDTH, size=16)]
    lines += [text_lines(fact, LABEL_WIDTH, color=FAINT) for fact in facts]
    return below(lines, gap=1)


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return a uint8 picture (h, w, 3), as mode pixels has it, as (3, h, w); any other tensor as it is."""
    is_hwc = tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[-1] == 3
    return tensor.permute(2, 0, 1) if is_hwc else tensor


def _is_picture(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a picture (C, h, w) or frames (F, C, h, w) with 1, 3 or 4 channels."""
    return tensor.ndim in (3, 4) and tensor.shape[-3] in (1, 3, 4)


def _draw_tensor(array: NDArray[np.float64], low: float, high: float) -> Picture:
    """Draw an array (C, h, w) or (F, C, h, w): ``low`` is black and ``high`` is white.

    A few frames are drawn side by side, many frames in a square. The fourth channel of a single picture is drawn to the
    picture's right; the fourth channels of several frames are drawn below those frames.
    """
    frames = array[None] if array.ndim == 3 else array[:MAX_FRAMES]
    frames = (np.nan_to_num(frames) - low) / max(high - low, 1e-9)
    has_frames = len(frames) > 1
    frame_columns = len(frames) if len(frames) <= FRAMES_IN_A_ROW else math.ceil(math.sqrt(len(frames)))
    groups = [frames[:, :3], frames[:, 3:]] if frames.shape[1] == 4 else [frames]
    columns = frame_columns if has_frames else len(groups)
    side = min(TILE_SIDE, (MAX_CELL_WIDTH + _FRAME_GAP) // columns - _FRAME_GAP)
    grids = [in_grid([_to_picture(frame, side) for frame in group], frame_columns, gap=_FRAME_GAP) for group in groups]
    return below(grids, gap=_FRAME_GAP) if has_frames else beside(grids, gap=_FRAME_GAP)


def _to_picture(chw: NDArray[np.float64], side: int) -> Picture:
    """Convert a (1 or 3, h, w) array in [0, 1] to an RGB picture, scaled to fit into a square."""
    pixels = np.rint(chw.clip(0, 1) * 255).astype(np.uint8)
    rgb = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
    return fit(PillowImage.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0))), side, side)


def _to_array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to(torch.float64).numpy()


def _as_text(tensor: torch.Tensor) -> str:
    """Return a tensor's numbers as text with four digits: a small tensor nested, a large one by its first numbers."""
    if tensor.numel() <= MAX_NUMBERS:
        return _nested(tensor.tolist())
    return f"{_nested(tensor.flatten()[:MAX_NUMBERS].tolist())[:-1]}, ..."


def _nested(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
