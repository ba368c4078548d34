"""Functions that say which records of a container are images: pictures, chunked images, samples with fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from posixpath import basename, dirname
from typing import Any

from dlas_store.errors import DamagedError
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Layout
from dlas_store.sources.containers import (
    CENTERS,
    MAX_FIELD_BYTES,
    NUMBER_ENDINGS,
    PATCH,
    REFERENCE,
    TEXT_ENDINGS,
    Container,
    FoundImages,
    Record,
    RecordImage,
)
from dlas_store.sources.folder import is_picture
from dlas_store.sources.walk import SkippedPath

LABELS_FILE = "dataset.json"
"""File of labels in the archives of StyleGAN2-ADA."""


def find_images(container: Container, layout: Layout | None) -> FoundImages:
    """Find the images of an archive.

    An archive is chunked if a folder has a ref.jpg or centers.pt. It holds samples if a picture's name, up to the first
    dot, is also that of a field. Otherwise it holds pictures.
    """
    records = sorted_records(container)
    if layout is None:
        is_chunked = any(record.path.endswith((f"/{REFERENCE_FILE}", f"/{CENTERS_FILE}")) for record in records)
        layout = "chunked" if is_chunked else "pictures"
    if layout == "chunked":
        return FoundImages(layout, _chunked_images(container, records))
    keys_of_pictures = {split_key(record.path)[0] for record in records if is_picture(record.path)}
    keys_of_fields = {split_key(record.path)[0] for record in records if is_field(record.path)}
    find = _pictures if keys_of_pictures.isdisjoint(keys_of_fields) else _samples
    return FoundImages(layout, find(container, records))


def sorted_records(container: Container) -> list[Record]:
    """Return the records whose paths stay below the root, sorted by path; the others are skipped.

    Raises:
        DamagedError: two records have the same path.
    """
    records = []
    for record in container.records():
        if reason := _reason_to_skip(record.path):
            skip(container, record, reason)
        else:
            records.append(record)
    records.sort()
    for record, following in pairwise(records):
        if record.path == following.path:
            raise DamagedError(f"{container.path}: holds two files called {record.path!r}; pack it again with one")
    return records


def skip(container: Container, record: Record, reason: str) -> None:
    """Record a record as skipped."""
    container.skipped.append(SkippedPath(record.path.encode(errors="replace").decode(), reason))


def is_field(path: str) -> bool:
    """Return whether the last ending of a path is that of a field."""
    return path.rpartition(".")[2].lower() in NUMBER_ENDINGS | TEXT_ENDINGS


def _pictures(container: Container, records: list[Record]) -> Iterator[RecordImage]:
    """Yield each picture as an image, with its label if the archive has a dataset.json."""
    labels: Mapping[str, Any] = {}
    for record in records:
        if basename(record.path) == LABELS_FILE:
            labels = _read_labels(container, record)
    for record in records:
        if is_picture(record.path) and basename(record.path) != REFERENCE_FILE:
            label = labels.get(record.path)
            yield RecordImage(record.path, {PATCH: [record]}, {} if label is None else {"label": label})
        elif basename(record.path) != LABELS_FILE:
            skip(container, record, "unknown file")


def _chunked_images(container: Container, records: list[Record]) -> Iterator[RecordImage]:
    """Yield each folder with patches as an image; the folders may lie in one folder that holds them all."""
    root = _common_folder(records)
    folders: dict[str, list[Record]] = {}
    for record in records:
        name = dirname(record.path).removeprefix(root)
        if not name or "/" in name or not record.path.startswith(root):
            skip(container, record, "not in an image folder")
        else:
            folders.setdefault(name, []).append(record)
    for name in sorted(folders):
        image = _chunked_image(container, name, folders[name])
        if image is not None:
            yield image


def _samples(container: Container, records: list[Record]) -> Iterator[RecordImage]:
    """Yield each key with a picture as an image; the key's other files are its fields, named by their endings."""
    keys: dict[str, list[Record]] = {}
    for record in records:
        keys.setdefault(split_key(record.path)[0], []).append(record)
    images = (_sample(container, of_key) for of_key in keys.values())
    yield from sorted((image for image in images if image is not None), key=lambda image: image.name)


def split_key(path: str) -> tuple[str, str]:
    """Return the key of a sample and the ending of its file: a path up to the first dot of the file's name, and after.

    >>> split_key("a.b/0001.seg.png")
    ('a.b/0001', 'seg.png')
    """
    folder, slash, file = path.rpartition("/")
    key, _, ending = file.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _reason_to_skip(path: str) -> str | None:
    parts = path.split("/")
    if ".." in parts or "" in parts or "\0" in path:
        return "a path that leaves the archive, or is none"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    return None


def _common_folder(records: Iterable[Record]) -> str:
    """Return the folder, with a slash at its end, that holds the folders of all images; an empty text if none does."""
    markers = (REFERENCE_FILE, CENTERS_FILE)
    parents = {dirname(dirname(record.path)) for record in records if basename(record.path) in markers}
    parent = parents.pop() if len(parents) == 1 else ""
    return f"{parent}/" if parent else ""


def _chunked_image(container: Container, name: str, records: Iterable[Record]) -> RecordImage | None:
    roles: dict[str, list[Record]] = {PATCH: []}
    for record in records:
        file = basename(record.path)
        if file == REFERENCE_FILE:
            roles[REFERENCE] = [record]
        elif file == CENTERS_FILE:
            roles[CENTERS] = [record]
        elif is_picture(file):
            roles[PATCH].append(record)
        else:
            skip(container, record, "unknown file")
    return RecordImage(name, roles, {}) if roles[PATCH] else None


def _sample(container: Container, records: list[Record]) -> RecordImage | None:
    pictures = [record for record in records if is_picture(record.path)]
    # Beside jpg there may be seg.png: the picture with the shortest ending is the sample's.
    picture = min(pictures, key=lambda record: (record.path.count("."), record.path), default=None)
    roles: dict[str, list[Record]] = {}
    for record in records:
        ending = split_key(record.path)[1]
        if picture is None:
            skip(container, record, "a sample without a picture")
        elif record is picture:
            roles[PATCH] = [record]
        elif is_field(record.path):
            roles[ending] = [record]
        else:
            skip(container, record, "a field that is no number, text or JSON")
    return None if picture is None else RecordImage(picture.path, roles, {})


def _read_labels(container: Container, record: Record) -> Mapping[str, Any]:
    """Return path -> label of StyleGAN2-ADA's file of labels; the paths count from the file's folder."""
    path = f"{container.path}/{record.path}"
    if record.size > 64 * MAX_FIELD_BYTES:
        raise DamagedError(f"{path}: has {record.size} bytes, more than a file of labels may have")
    try:
        value = json.loads(bytes(container.read(record)))
        labels = value["labels"]
        folder = record.path.removesuffix(LABELS_FILE)
        return {} if labels is None else {folder + str(name): _checked_label(label) for name, label in labels}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f'{path}: is no {{"labels": [[PATH, LABEL], ...]}} ({error}); mend or remove it') from error


def _checked_label(label: object) -> object:
    if isinstance(label, int | float | str) or (
        isinstance(label, list) and all(isinstance(number, int | float) for number in label)
    ):
        return label
    raise ValueError(f"{label!r} is no label")
