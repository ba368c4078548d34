"""Picture datasets: every patch of any source is an item, in path order; their base class, size checks, neighbours."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import WeightedPatches, data_key, image_path, open_weighted
from dlas_store.errors import ImageError, NameNotFoundError, PatchIndexError
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Source, relative_path
from dlas_store.sources.concat import member_at, members

_NUMBERED = re.compile(r"(?P<before>.*)(?P<number>[0-9]{8})(?P<ending>\.[^./]*)", re.ASCII | re.DOTALL)


class Pictures:
    """The pictures of an epoch: every patch of the sources is a picture, and each source is repeated by its weight.

    WeightedPatches numbers them. The pictures of a folder come in path order. So do the patches of a chunked store, by
    the paths that they had in their folder. A store of pictures keeps the order in which the pictures were imported,
    path order within one import.

    Pictures can be pickled, and used after a fork and from several threads, as their sources can.

    Attributes:
        source: the sources that give pictures, each once, joined to one source.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int], *, sorts_as_one: bool = False) -> None:
        """Number the pictures of an epoch; see WeightedPatches.

        Args:
            sources: the sources in order; a source may come several times.
            weights: number of repetitions of each source, from 0.
            sorts_as_one: sort the pictures of several sources by their paths as one list, in which each picture
                follows its repetitions, in place of source after source.
        """
        self._patches = WeightedPatches(sources, weights)
        self.source = self._patches.source
        self._order = _PathOrder.of(self.source) if len(self) else None
        is_one_list = sorts_as_one and (len(sources) > 1 or weights[0] > 1)
        self._one_list = _OneList(self.source, sources, weights) if is_one_list else None

    @property
    def sources(self) -> list[Source]:
        """The sources that give pictures, each once."""
        return list(members(self.source))

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._patches)

    def patch_at(self, index: int) -> int:
        """Return the index in ``source`` of an item's picture.

        Args:
            index: index of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is out of range.
        """
        if self._one_list is not None:
            return self._one_list.patch_at(index)
        patch = self._patches.patch_at(index)
        return patch if self._order is None else self._order.patch_at(patch)

    @property
    def unweighted_count(self) -> int:
        """The number of pictures of all sources, each source taken once."""
        return self._patches.unweighted_count

    def unweighted(self, index: int) -> int:
        """Return the number of an item's picture among the pictures of all sources, each source taken once.

        Args:
            index: index of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is out of range.
        """
        return self._patches.unweighted(index) if self._one_list is None else self._one_list.position_of(index)


class PictureDataset(ItemDataset):
    """A dataset with an item for every picture; a subclass sets ``_pictures`` to the result of open_pictures()."""

    _pictures: Pictures

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._pictures)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self._pictures.source, self._patch_at(index))

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Prefetch the items' pictures, but no other picture that an item may include; see ItemDataset."""
        self._pictures.source.prefetch([self._patch_at(key.index) for key in keys])

    def _data(self) -> str:
        return repr(self._pictures.source)

    def _patch_at(self, index: int) -> int:
        """Return the index of an item's picture in the source of pictures.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        return self._pictures.patch_at(index)


class Siblings:
    """The patches of a source grouped by folder, to draw another patch of a patch's folder.

    A source of pictures takes 16 bytes of memory a patch, a chunked source none.
    """

    def __init__(self, source: Source) -> None:
        """Read all names of a source of pictures."""
        self._source = source
        if source.layout == "pictures":
            number_of: dict[str, int] = {}
            names = map(source.image_name, range(source.image_count))
            folders = (number_of.setdefault(name.rpartition("/")[0], len(number_of)) for name in names)
            self._folders = np.fromiter(folders, np.int64, source.image_count)
            self._patches_by_folder = np.argsort(self._folders, kind="stable")
            sorted_folders = self._folders[self._patches_by_folder]
            self._starts = np.searchsorted(sorted_folders, np.arange(len(number_of) + 1))

    def draw(self, index: int, random: SampleRng) -> int | None:
        """Return the index of another patch of a patch's folder, drawn uniformly; None if the patch is alone there."""
        patches = self._folder_of(index)
        if len(patches) == 1:
            return None
        position = int(random.generator.integers(len(patches) - 1))
        return int(patches[position + (position >= bisect_left(patches, index))])

    def _folder_of(self, index: int) -> range | NDArray[np.int64]:
        """Return the patches of a patch's folder, in ascending order."""
        if self._source.layout == "chunked":
            number, _ = self._source.locate(index)
            return range(self._source.first_patch(number), self._source.first_patch(number + 1))
        folder = self._folders[index]
        return self._patches_by_folder[self._starts[folder] : self._starts[folder + 1]]


def open_pictures(
    options: ConfigOptions,
    *,
    key: str = "paths",
    weights_key: str | None = "weights",
    sorts_roots_as_one: bool = False,
) -> Pictures:
    """Open the sources that an option (or ``dataroot``) names, with their weights.

    Args:
        options: options of the dataset.
        key: the option that names one path or more.
        weights_key: the option that holds the weights; None for a dataset without weights.
        sorts_roots_as_one: sort the pictures of a list of sources as one list; see Pictures.

    Raises:
        ConfigError: both or neither of ``key`` and ``dataroot`` are given, a path does not exist, the weights do not
            fit the paths, or no picture remains.
        StoreError: a path holds no data, or damaged data.
    """
    sources, weights = open_weighted(options, layout="pictures", key=key, weights_key=weights_key)
    names_roots = isinstance(options.opt.get(data_key(options, key)), list | tuple)
    pictures = Pictures(sources, weights, sorts_as_one=sorts_roots_as_one and names_roots)
    if not len(pictures):
        paths = ", ".join(str(source.path) for source in sources)
        raise options.error(f"no pictures in {data_key(options, key)}: {paths}")
    return pictures


def path_below(source: Source, index: int) -> str:
    """Return the path of a patch below the root of the source that holds it, "/" between its parts."""
    source, index = member_at(source, index)
    number, position = source.locate(index)
    image = source.image(number)
    return relative_path(source.layout, image.name, image.files[position])


def find_path(source: Source, path: str) -> int:
    """Return the index of the patch at a path below the root of a source.

    Raises:
        NameNotFoundError: the source has no patch at that path.
    """
    if source.layout == "pictures":
        return source.first_patch(source.find_image(path))
    image, _, file = path.rpartition("/")
    return source.find(image, file)


def find_next(source: Source, index: int) -> int | None:
    """Return the patch whose path has the next number in the same folder, such as a video's next frame; else None.

    Args:
        source: the source that holds the patch.
        index: index of the patch in the source.
    """
    name = next_name(path_below(source, index))
    if name is None:
        return None
    try:
        return find_path(source, name)
    except NameNotFoundError:
        return None


def next_name(path: str) -> str | None:
    """Return a path with the 8-digit number at its end raised by 1; None without such a number, or after 99999999.

    >>> next_name("a/video.webm_00000478.jpg")
    'a/video.webm_00000479.jpg'
    >>> next_name("a/478.jpg"), next_name("99999999.jpg")
    (None, None)
    """
    match = _NUMBERED.fullmatch(path)
    number = int(match["number"]) + 1 if match else 10**8
    return f"{match['before']}{number:08d}{match['ending']}" if match and number < 10**8 else None


def check_min_sides(options: ConfigOptions, sources: Iterable[Source], side: int, *, reason: str) -> None:
    """Check the sizes of all pictures before training; stores know the sizes of their pictures, folders do not.

    The check reads the metadata of every image: 8 us an image of a store of pictures, measured.

    Args:
        options: options of the dataset, for the error message.
        sources: the sources of the dataset.
        side: minimum height and width of a picture, in pixels.
        reason: the option that demands the minimum, for the error message.

    Raises:
        ConfigError: a picture is smaller; the message names it.
    """
    if side <= 1:
        return
    for source in sources:
        for number in range(source.image_count):
            image = source.image(number)
            if image.heights is None or image.widths is None:
                break
            small = np.flatnonzero(np.minimum(image.heights, image.widths) < side)
            if len(small):
                position = int(small[0])
                path = source.patch_path(source.first_patch(number) + position)
                size = int(image.heights[position]), int(image.widths[position])
                raise options.error(f"{_too_small(path, size, side, reason)}, or set on_error to skip")


def check_min_side(path: str, size: tuple[int, ...], side: int, *, reason: str) -> None:
    """Check the height and width of one picture.

    Args:
        path: path of the picture, for the error message.
        size: height and width of the picture.
        side: minimum of both.
        reason: the option that demands the minimum, for the error message.

    Raises:
        ImageError: the height or width is below ``side``.
    """
    if min(size) < side:
        raise ImageError(_too_small(path, size, side, reason))


class _PathOrder:
    """A permutation of a source's patches that puts the patches of each of its members in path order."""

    def __init__(self, source: Source, images: NDArray[np.int64]) -> None:
        """Compute the order of patches from the order of images: int64 (image_count,), their numbers."""
        firsts = np.fromiter(map(source.first_patch, range(source.image_count + 1)), np.int64, source.image_count + 1)
        self._firsts = firsts[images]
        self._ends = np.cumsum(np.diff(firsts)[images])

    @classmethod
    def of(cls, source: Source) -> _PathOrder | None:
        """Return the path order of a source; None if the source has that order already."""
        if all(member.layout == "pictures" for member in members(source)):
            return None
        images: list[int] = []
        for member in members(source):
            first = len(images)
            images += (first + number for number in _images_by_path(member))
        return None if images == list(range(len(images))) else cls(source, np.array(images))

    def patches(self) -> NDArray[np.int64]:
        """Return the indices in the source of all patches in this order, int64 (len(source),)."""
        counts = np.diff(self._ends, prepend=0)
        return np.repeat(self._firsts - self._ends + counts, counts) + np.arange(self._ends[-1])

    def patch_at(self, position: int) -> int:
        """Return the index in the source of the patch at a position, 0 <= position < len(source)."""
        rank = int(np.searchsorted(self._ends, position, side="right"))
        start = int(self._ends[rank - 1]) if rank else 0
        return int(self._firsts[rank]) + position - start


class _OneList:
    """The pictures of several sources sorted by their paths as one list, in which each picture follows its repetitions.

    A path begins with the path of its source, without the ending ``.lmdb``, so that stores and the folders that they
    were made of have one order. A picture takes 16 bytes.
    """

    def __init__(self, joined: Source, sources: Sequence[Source], weights: Sequence[int]) -> None:
        """Sort the pictures.

        Args:
            joined: the sources that have a weight, each once, joined to one.
            sources: all sources; a source may come several times.
            weights: number of repetitions of each source, from 0.
        """
        distinct_sources = members(joined)
        starts = dict(zip(distinct_sources, accumulate(map(len, distinct_sources), initial=0), strict=False))
        roots = [_root_of(source) for source in sources]
        by_root = sorted(range(len(roots)), key=roots.__getitem__)
        # A source without weight is in no batch, and its start in the joined source does not matter.
        patches = [starts.get(sources[entry], 0) + _patches_by_path(sources[entry]) for entry in by_root]
        counts = [np.full(len(sources[entry]), weights[entry], np.int64) for entry in by_root]
        self._patches, repetitions = np.concatenate(patches), np.concatenate(counts)
        if any(next_root.startswith(root) for root, next_root in pairwise(roots[entry] for entry in by_root)):
            # A root lies in another one, so that their pictures mix.
            paths = [
                roots[entry] + path_below(sources[entry], int(patch))
                for entry in by_root
                for patch in _patches_by_path(sources[entry])
            ]
            order = sorted(range(len(paths)), key=paths.__getitem__)
            self._patches, repetitions = self._patches[order], repetitions[order]
        self._ends = np.cumsum(repetitions)  # end of each picture's items

    def position_of(self, index: int) -> int:
        """Return the position of an item's picture in the list without repetitions.

        Raises:
            PatchIndexError: the index is out of range.
        """
        if not 0 <= index < self._ends[-1]:
            raise PatchIndexError(f"no item {index}: the dataset has {self._ends[-1]}")
        return int(np.searchsorted(self._ends, index, side="right"))

    def patch_at(self, index: int) -> int:
        """Return the index of an item's picture in the joined source."""
        return int(self._patches[self.position_of(index)])


def _root_of(source: Source) -> str:
    return str(source.path).removesuffix(".lmdb").rstrip("/") + "/"


def _patches_by_path(source: Source) -> NDArray[np.int64]:
    """Return the indices of all patches of a source that joins no other sources, in path order."""
    order = _PathOrder.of(source)
    return np.arange(len(source)) if order is None else order.patches()


def _images_by_path(source: Source) -> Sequence[int]:
    """Return the images of a source that joins no other sources, in the path order of their patches."""
    if source.layout == "pictures":
        return range(source.image_count)
    # "a/1.jpg" comes after "a-b/1.jpg", though "a" comes before "a-b".
    folders = [source.image_name(number) + "/" for number in range(source.image_count)]
    return sorted(range(len(folders)), key=folders.__getitem__)


def _too_small(path: str, size: tuple[int, ...], side: int, reason: str) -> str:
    height, width = size
    need = f"{width} x {height} pixels are too few for {reason}, which needs {side} x {side}"
    return f"{path}: {need}; remove the picture"
