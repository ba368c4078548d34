"""Mode multiscale: an item is a tree of patches of one size: a picture, its quadrants, their quadrants, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlas_store.config import ConfigOptions
from dlas_store.datasets.pictures import PictureDataset, open_pictures
from dlas_store.sampling.rng import SampleRng
from dlas_store.transforms.corruptions import Corruptions
from dlas_store.transforms.crops import Square, random_flip_rotate, random_square_crop
from dlas_store.transforms.resize import Chw, resize_area, to_chw_float, to_tensor


@dataclass(frozen=True, slots=True, eq=False)
class TreeNode:
    """A patch of a multi-scale item, a node of its tree.

    Attributes:
        index: index of the patch in ``hq`` and ``lq``.
        parent: the patch of which the node's patch is a quadrant; None for the whole picture.
        depth: 0 for the whole picture, whose side is 2^depth times the patch's.
        row: row of the patch among all patches of its depth, 0 <= row < 2^depth.
        col: column of the patch among all patches of its depth, 0 <= col < 2^depth.
    """

    index: int
    parent: TreeNode | None
    depth: int
    row: int
    col: int

    @property
    def top(self) -> float:
        """Top edge of the patch in its parent, as a fraction of the parent's height: 0 or 0.5."""
        return self.row % 2 / 2

    @property
    def left(self) -> float:
        """Left edge of the patch in its parent, as a fraction of the parent's width: 0 or 0.5."""
        return self.col % 2 / 2

    def chain(self) -> Iterator[TreeNode]:
        """Yield the patch, its parent, and so on up to the whole picture."""
        node: TreeNode | None = self
        while node is not None:
            yield node
            node = node.parent


def build_tree(num_scales: int) -> list[TreeNode]:
    """Return all (4^num_scales - 1) / 3 patches of an item in their order.

    The four children of a patch stand together: top left, top right, bottom left, bottom right. The descendants of the
    first child follow, then the descendants of the second, and so on.

    >>> [(node.index, node.parent.index, node.top, node.left) for node in build_tree(3)[5:7]]
    [(5, 1, 0.0, 0.0), (6, 1, 0.0, 0.5)]
    """
    nodes = [TreeNode(0, None, 0, 0, 0)]

    def grow(parent: TreeNode) -> None:
        if parent.depth + 1 == num_scales:
            return
        children = [
            TreeNode(len(nodes) + 2 * row + col, parent, parent.depth + 1, 2 * parent.row + row, 2 * parent.col + col)
            for row in (0, 1)
            for col in (0, 1)
        ]
        nodes.extend(children)
        for child in children:
            grow(child)

    grow(nodes[0])
    return nodes


def tree_leaves(num_scales: int) -> list[TreeNode]:
    """Return the 4^(num_scales - 1) smallest patches of an item; ``chain()`` leads from each to the whole picture.

    >>> [[node.index for node in leaf.chain()] for leaf in tree_leaves(3)[3:5]]
    [[8, 1, 0], [9, 2, 0]]
    """
    return [node for node in build_tree(num_scales) if node.depth + 1 == num_scales]


class MultiScaleDataset(PictureDataset):
    """Pictures as trees of patches, in the order of build_tree().

    The pictures of several roots are sorted by their paths as one list, as in DL-Art-School.

    An item is a dict; t is ``hq_tile_size``, s is ``scale``, K is (4^num_scales - 1) / 3:

    * ``hq`` float32 (K, 3, t, t) and ``lq`` float32 (K, 3, t/s, t/s): RGB in [0, 1] (noise leaves that range); both
      hold the same patches, ``lq`` cropped from a corrupted copy of the picture;
    * ``GT_path`` str: the picture's path.

    The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``hq_tile_size``, ``num_scales``,
                ``scale``, and the options of Corruptions.

        Raises:
            ConfigError: an option is missing or has a wrong value, or ``hq_tile_size`` does not divide by ``scale``.
            StoreError: a path holds no pictures.
        """
        options = ConfigOptions.of_dataset(opt, mode="multiscale")
        super().__init__(options)
        self._tile_size = options.integer("hq_tile_size", minimum=1)
        self._num_scales = options.integer("num_scales", minimum=1)
        self._scale = options.integer("scale", minimum=1)
        if self._tile_size % self._scale:
            raise options.error(f"hq_tile_size must be a multiple of scale, got {self._tile_size} and {self._scale}")
        self._corruptions = Corruptions.read(options)
        self._pictures = open_pictures(options, sorts_roots_as_one=True)
        options.warn_of_unknown()

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of range.
            StoreError: the picture cannot be read.
        """
        source, patch = self._pictures.source, self._patch_at(index)
        flip_rotate = random_flip_rotate(random.generator, flip=True, rotate=True)
        rotated = flip_rotate.apply(to_chw_float(source.read_pixels([patch])[0]))
        square = random_square_crop(random.generator, (rotated.shape[1], rotated.shape[2]))
        side = self._tile_size << self._num_scales
        picture = resize_area(np.ascontiguousarray(square.crop(rotated)), (side, side))
        (lq_picture,), _ = self._corruptions.apply([picture], random)
        hq_levels = self._levels(picture)
        lq_levels = hq_levels if lq_picture is picture else self._levels(lq_picture)
        lq_size = self._tile_size // self._scale
        lq_levels = [resize_area(level, (lq_size << depth, lq_size << depth)) for depth, level in enumerate(lq_levels)]
        return {
            "hq": to_tensor(self._patches(hq_levels, self._tile_size)),
            "lq": to_tensor(self._patches(lq_levels, lq_size)),
            "GT_path": source.patch_path(patch),
        }

    def _levels(self, picture: Chw) -> list[Chw]:
        """Return the picture at the size of each depth of the tree, where every patch of that depth is a tile.

        Each level is reduced from the next larger one, since averages of averages are averages of the whole.
        """
        levels: list[Chw] = []
        for _ in range(self._num_scales):
            half = picture.shape[1] // 2
            picture = resize_area(picture, (half, half))
            levels.insert(0, picture)
        return levels

    def _patches(self, levels: list[Chw], side: int) -> Chw:
        nodes = build_tree(self._num_scales)
        return np.stack([Square(node.row * side, node.col * side, side).crop(levels[node.depth]) for node in nodes])
