"""Mode multiscale: a picture and its quadrants over several scales, all as patches of one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlas_store.datasets.corruptions import Corruptions
from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.multi_scale_tree import build_tree
from dlas_store.datasets.picture_dataset import PictureDataset
from dlas_store.datasets.pictures import open_pictures
from dlas_store.datasets.planes import Planes, area_resize, pack, to_planes
from dlas_store.datasets.square_crop import Square, draw_square, draw_turn
from dlas_store.options import ConfigOptions


class MultiScaleDataset(PictureDataset):
    """Pictures as trees of patches; multi_scale_tree says in which order the patches come.

    An item is a dict; t is ``hq_tile_size``, s ``scale``, K = (4^num_scales - 1) / 3:

    * ``hq`` float32 (K, 3, t, t) and ``lq`` float32 (K, 3, t/s, t/s): RGB in [0, 1] (noise leaves it); the same
      patches, LQ cut from a corrupted copy of the picture;
    * ``GT_path`` str: the picture's path.

    The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``hq_tile_size``, ``num_scales``,
                ``scale``, and those of Corruptions.

        Raises:
            ConfigError: an option is missing or of a wrong value, or ``hq_tile_size`` does not divide by ``scale``.
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
        self._pictures = open_pictures(options)
        options.warn_of_unknown()

    def make_item(self, index: int, random: ItemRandom) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            StoreError: the picture cannot be read.
        """
        source, patch = self._pictures.source, self._patch_at(index)
        turn = draw_turn(random.generator, flip=True, rotate=True)
        turned = turn.apply(to_planes(source.read_pixels([patch])[0]))
        square = draw_square(random.generator, (turned.shape[1], turned.shape[2]))
        side = self._tile_size << self._num_scales
        whole = area_resize(np.ascontiguousarray(square.cut(turned)), (side, side))
        (corrupted,), _ = self._corruptions.apply([whole], random)
        hq = self._levels(whole)
        lq = hq if corrupted is whole else self._levels(corrupted)
        lq_size = self._tile_size // self._scale
        lq = [area_resize(level, (lq_size << depth, lq_size << depth)) for depth, level in enumerate(lq)]
        return {
            "hq": pack(self._patches(hq, self._tile_size)),
            "lq": pack(self._patches(lq, lq_size)),
            "GT_path": source.patch_path(patch),
        }

    def _levels(self, whole: Planes) -> list[Planes]:
        """Return the whole at every depth, in which a patch of that depth is a tile: area averages can be chained."""
        levels: list[Planes] = []
        for _ in range(self._num_scales):
            half = whole.shape[1] // 2
            whole = area_resize(whole, (half, half))
            levels.insert(0, whole)
        return levels

    def _patches(self, levels: list[Planes], side: int) -> Planes:
        nodes = build_tree(self._num_scales)
        return np.stack([Square(node.row * side, node.col * side, side).cut(levels[node.depth]) for node in nodes])
