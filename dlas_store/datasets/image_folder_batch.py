"""A batch of pictures as HQ and LQ, written straight into the tensors that the trainer gets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.batches import Allocate, MakeItem, check_one_size
from dlas_store.datasets.decoding import Frames, decode_groups
from dlas_store.datasets.decoding_memory import DecodingMemory
from dlas_store.datasets.draws import Draw, ItemRandom
from dlas_store.datasets.image_folder_options import ImageFolderOptions
from dlas_store.datasets.picture_cut import Picture, cut_picture
from dlas_store.datasets.planes import Planes, loops_for, write_pair
from dlas_store.errors import StoreError


class ImageFolderBatch:
    """Pictures of mode imagefolder whose options are plain; see BatchWork, and ImageFolderDataset for the tensors."""

    def __init__(
        self,
        draws: Sequence[Draw],
        frames: Frames,
        options: ImageFolderOptions,
        memory: DecodingMemory,
        *,
        seed: int,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            draws: the items asked for.
            frames: their pictures, one an item.
            options: how a picture becomes HQ and LQ.
            memory: what pictures are decoded into.
            seed: of the random numbers.
            allocate: gives the memory of the tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.
        """
        self._draws = draws
        self._frames = frames
        self._options = options
        self._memory = memory
        self._seed = seed
        self._replace = replace
        self._order = frames.argsort_on_disk()
        self._paths = [""] * len(draws)
        self._size, self._hq_size = self._likely_sizes()
        self._cut_size = options.cut_size(self._size)
        # HQ, and where it is wanted LQ: (items, 3, h, w).
        self._planes = [allocate((len(draws), *shape), np.float32) for shape in self._shapes(self._hq_size)]
        self._elsewhere: dict[int, list[Planes]] = {}
        is_whole = options.resized(self._cut_size) == self._hq_size
        self._loops = loops_for(self._cut_size, *(planes[0] for planes in self._planes)) if is_whole else None

    def __len__(self) -> int:
        return len(self._draws)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchWork."""
        for items, pictures in decode_groups(
            self._frames, self._order[start:stop], self._size, self._memory, self._replace_item
        ):
            self._write(items, pictures)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchWork.

        Raises:
            StoreError: HQ is not of the same size in all items.
        """
        if self._elsewhere:
            self._gather()
        count = len(self._draws)
        hq, *lq = map(torch.from_numpy, self._planes)
        batch = {
            "hq": hq,
            "HQ_path": self._paths,
            "LQ_path": list(self._paths),
            "has_alt": torch.zeros(count, dtype=torch.bool),
        }
        if lq:
            batch |= {"lq": lq[0], "corruption_entropy": torch.zeros(count, 0)}
        constants = self._options.constants.items()
        return batch | {key: torch.stack([constant] * count) for key, constant in constants}

    def _likely_sizes(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return height and width of the first picture that says them and is large enough, and those of its HQ."""
        opt = self._options
        for patch in self._frames.patches:
            with suppress(StoreError):  # to be raised, or replaced, when it is read
                size = self._frames.source.claimed_size(patch)
                return size, opt.to_multiple(opt.resized(opt.cut_size(size)), "")
        least = opt.force_multiple * opt.scale
        return (least, least), (least, least)

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Take over another item that was made on its own, or raise the error where none is to be."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._draws[item])
        self._paths[item] = replacement["HQ_path"]
        for key, out in zip(("hq", "lq"), self._outs(item, replacement["hq"].shape[1:]), strict=False):
            out[...] = replacement[key].numpy()

    def _write(self, items: Sequence[int], pictures: Sequence[Pixels]) -> None:
        """Write decoded items, those whose part has the likely size with one call of C."""
        opt, (source, patches, _) = self._options, self._frames
        written: list[Planes] = []
        together: list[tuple[Pixels, *tuple[Planes, ...]]] = []
        for item, pixels in zip(items, pictures, strict=True):
            try:
                path = self._paths[item] = source.patch_path(patches[item])
                cut = cut_picture(Picture(pixels), path, opt, ItemRandom(self._seed, self._draws[item])).pixels
                cut = np.ascontiguousarray(cut)
                if self._loops is not None and cut.shape[:2] == self._cut_size:
                    outs = self._outs(item, self._hq_size)
                    together.append((cut, *outs))
                else:
                    size = opt.resized(cut.shape[:2])
                    outs = self._outs(item, opt.to_multiple(size, path))
                    write_pair(cut, size, *outs)
            except StoreError as error:
                self._replace_item(item, error)
            else:
                written += outs
        if together and self._loops is not None:
            self._loops.write_patches(tuple(together), ())
        for planes in written:
            opt.map_values(planes, out=planes)

    def _outs(self, item: int, hq_size: tuple[int, ...]) -> list[Planes]:
        """Return where HQ of a height and width goes, and where it is wanted LQ: into the batch if they fit there."""
        if hq_size == self._hq_size:
            self._elsewhere.pop(item, None)
            return [planes[item] for planes in self._planes]
        outs = self._elsewhere[item] = [np.empty(shape, np.float32) for shape in self._shapes(hq_size)]
        return outs

    def _shapes(self, hq_size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of what an item has: HQ, and where it is wanted LQ."""
        scales = [1] if self._options.skip_lq else [1, self._options.scale]
        return [(3, *(side // scale for side in hq_size)) for scale in scales]

    def _gather(self) -> None:
        """Make the batch of what lies elsewhere, where all of it has the size that the first picture did not claim."""
        rows = [self._elsewhere.get(item, [planes[item] for planes in self._planes]) for item in range(len(self))]
        sizes = [planes[0].shape[1:] for planes in rows]
        advice = "set target_size, needs_collate to pad them, or batch_size to 1"
        check_one_size(self._paths.__getitem__, sizes, advice=advice)
        self._planes = [np.stack(planes) for planes in zip(*rows, strict=True)]
