"""Labelled boxes of pictures, from the JSON files of DL-Art-School's labelling tool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.pictures import find_path
from dlas_store.errors import NameNotFoundError
from dlas_store.sources.base import Source

_SIDES = ("patch_top", "patch_left", "patch_height", "patch_width")


class Box(NamedTuple):
    """A labelled rectangle of a picture, in pixels.

    Attributes:
        top: first row, from 0.
        left: first column, from 0.
        height: number of rows, from 0.
        width: number of columns, from 0.
        label: index of the label.
    """

    top: int
    left: int
    height: int
    width: int
    label: int

    def crop(self, top: int, left: int, size: tuple[int, int]) -> Box:
        """Return the part of the box in a crop of the picture, in the crop's pixels; the part may be empty.

        Args:
            top: first row of the crop.
            left: first column of the crop.
            size: height and width of the crop.
        """
        first_row, end_row = (min(max(row - top, 0), size[0]) for row in (self.top, self.top + self.height))
        first_col, end_col = (min(max(col - left, 0), size[1]) for col in (self.left, self.left + self.width))
        return Box(first_row, first_col, end_row - first_row, end_col - first_col, self.label)

    def flipped(self, width: int) -> Box:
        """Return the box after the picture, which has that width, was flipped left to right."""
        return self._replace(left=width - self.left - self.width)

    def resized(self, old_size: tuple[int, ...], size: tuple[int, ...]) -> Box:
        """Return the box after the picture was resized, each number rounded down.

        Args:
            old_size: height and width of the picture before.
            size: height and width of the picture after.
        """
        (old_height, old_width), (height, width) = old_size, size
        return Box(
            self.top * height // old_height,
            self.left * width // old_width,
            self.height * height // old_height,
            self.width * width // old_width,
            self.label,
        )


class PatchLabels:
    """The pictures of a source that label files name, and their boxes.

    Attributes:
        source: the source that holds the pictures.
        names: label index -> name.
        patches: indices in the source of the labelled patches, in path order.
    """

    def __init__(self, options: ConfigOptions, sources: Sequence[Source]) -> None:
        """Read the options ``type`` and ``label_file``, a path or a list of paths, and the files.

        Args:
            options: options of the labeler.
            sources: sources of the dataset; labels need exactly one source.

        Raises:
            ConfigError: an option is missing or has a wrong value; a file cannot be read, is ill-formed, or contradicts
                itself or another file; no picture is labelled, or the source lacks a labelled picture.
        """
        options.choice("type", None, ("patch_labels",))
        files = options.paths("label_file")
        if len(sources) != 1:
            raise options.error(f"labels need one path, the dataset has {len(sources)}")
        self.source = sources[0]
        self.names: dict[int, str] = {}
        self._boxes: dict[str, list[Box]] = {}
        for file in files:
            try:
                _add_file(_parse(file), self.names, self._boxes)
            except (OSError, TypeError, ValueError, RecursionError) as error:
                raise options.error(f"label_file '{file}' cannot be read ({_reason(error)})") from error
        self.patches = _find_pictures(sorted(self._boxes), self.source, options)
        options.warn_of_unknown()

    def boxes_of(self, path: str) -> Sequence[Box]:
        """Return the boxes of a labelled picture, given by its path below the root of its source."""
        return self._boxes[path]


def draw_boxes(boxes: Iterable[Box], size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes into an array of labels and a mask.

    Args:
        boxes: boxes of the picture; later boxes are drawn over earlier ones.
        size: height and width of the picture.

    Returns:
        The labels, int64 (1, H, W), 0 outside of the boxes; and the mask, float32 (1, H, W), 1 in the boxes and 0
        outside.
    """
    labels = torch.zeros(1, *size, dtype=torch.int64)
    mask = torch.zeros(1, *size)
    for box in boxes:
        region = (0, slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
        labels[region] = box.label
        mask[region] = 1
    return labels, mask


def _find_pictures(paths: Sequence[str], source: Source, options: ConfigOptions) -> list[int]:
    patches: list[int] = []
    missing_paths: list[str] = []
    for path in paths:
        try:
            patches.append(find_path(source, path))
        except NameNotFoundError:
            missing_paths.append(path)
    if missing_paths:
        more = f" and {len(missing_paths) - 3} more" if len(missing_paths) > 3 else ""
        paths_text = ", ".join(missing_paths[:3])
        raise options.error(f"label_file labels pictures that {source.path} lacks: {paths_text}{more}")
    if not patches:
        raise options.error("label_file labels no picture")
    return patches


def _parse(file: Path) -> Mapping[str, Any]:
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise TypeError(f"a mapping of key bindings is expected, got {type(content).__name__}")
    return content


def _add_file(content: Mapping[str, Any], names: dict[int, str], boxes: dict[str, list[Box]]) -> None:
    """Add the label names and the boxes of a file: a mapping of key bindings, each to a label and its boxes.

    Raises:
        TypeError: a value has a wrong type or is negative.
        ValueError: a value is missing, or a label contradicts another.
    """
    for binding, category in content.items():
        label = _field(category, "label", str, f"binding {binding!r}")
        index = _field(category, "index", int, f"binding {binding!r}")
        if names.setdefault(index, label) != label:
            raise ValueError(f"index {index} stands for both {names[index]!r} and {label!r}")
    indices = {name: index for index, name in names.items()}
    if len(indices) < len(names):
        name = next(name for name in indices if list(names.values()).count(name) > 1)
        raise ValueError(f"label {name!r} has more than one index")
    for binding, category in content.items():
        images = _field(category, "labeledImages", list, f"binding {binding!r}")
        for number, image in enumerate(images):
            place = f"labeledImages[{number}] of binding {binding!r}"
            label = _field(image, "label", str, place)
            if label not in indices:
                raise ValueError(f"{place} has label {label!r}, which no binding has")
            top, left, height, width = (_field(image, key, int, place) for key in _SIDES)
            # The labelling tool runs on Windows.
            path = _field(image, "path", str, place).replace("\\", "/").lstrip("/")
            boxes.setdefault(path, []).append(Box(top, left, height, width, indices[label]))


def _field(mapping: Any, key: str, kind: type[Any], place: str) -> Any:
    """Return the value of a key, which must be of a kind; an integer must be 0 or more."""
    if not isinstance(mapping, dict) or key not in mapping:
        raise ValueError(f"{place} has no {key}")
    value = mapping[key]
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
        allowed = {str: "a text", int: "an integer of at least 0", list: "a list"}[kind]
        raise TypeError(f"{key} of {place} must be {allowed}, got {value!r}")
    return value


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
