"""Which other picture goes with one: the next frame of its video, or another tile of its image."""

from __future__ import annotations

import re
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.pictures import find_path, path_below
from dlas_store.errors import NameNotFoundError
from dlas_store.source import Source

_NUMBERED = re.compile(r"(?P<before>.*)(?P<number>[0-9]{8})(?P<ending>\.[^./]*)", re.ASCII | re.DOTALL)


def next_name(path: str) -> str | None:
    """Return the path whose 8-digit number at the end is the next one, None where there is no such number.

    >>> next_name("a/video.webm_00000478.jpg")
    'a/video.webm_00000479.jpg'
    >>> next_name("a/478.jpg"), next_name("99999999.jpg")
    (None, None)
    """
    found = _NUMBERED.fullmatch(path)
    number = int(found["number"]) + 1 if found else 10**8
    return f"{found['before']}{number:08d}{found['ending']}" if found and number < 10**8 else None


def find_next(source: Source, index: int) -> int | None:
    """Return the patch of the next number in the same folder, None where there is none.

    Args:
        source: of the patch.
        index: of the patch in it.
    """
    name = next_name(path_below(source, index))
    if name is None:
        return None
    try:
        return find_path(source, name)
    except NameNotFoundError:
        return None


class Siblings:
    """Which patches of a source lie in the same folder, at 16 bytes a patch; in a chunked source at none."""

    def __init__(self, source: Source) -> None:
        """Read all names of a source of pictures."""
        self._source = source
        if source.layout == "pictures":
            numbers: dict[str, int] = {}
            names = map(source.image_name, range(source.image_count))
            folders = (numbers.setdefault(name.rpartition("/")[0], len(numbers)) for name in names)
            self._folders = np.fromiter(folders, np.int64, source.image_count)
            self._members = np.argsort(self._folders, kind="stable")
            self._starts = np.searchsorted(self._folders[self._members], np.arange(len(numbers) + 1))

    def draw(self, index: int, random: ItemRandom) -> int | None:
        """Return the index of another patch of a patch's folder, each as likely, None where it is alone."""
        members = self._members_with(index)
        if len(members) == 1:
            return None
        drawn = int(random.generator.integers(len(members) - 1))
        return int(members[drawn + (drawn >= bisect_left(members, index))])

    def _members_with(self, index: int) -> range | NDArray[np.int64]:
        """Return the patches of a patch's folder, in ascending order."""
        if self._source.layout == "chunked":
            number, _ = self._source.locate(index)
            return range(self._source.first_patch(number), self._source.first_patch(number + 1))
        folder = self._folders[index]
        return self._members[self._starts[folder] : self._starts[folder + 1]]
