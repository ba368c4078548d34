"""Mode imagefolder: a whole picture an item, with or without a second picture and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.decoding import Frames
from dlas_store.datasets.image_folder_batch import (
    CENTER_CROP,
    ImageFolderBatchBuilder,
    Picture,
    crop_and_flip,
    read_image_folder_options,
)
from dlas_store.datasets.image_folder_labels import PatchLabels, draw_boxes
from dlas_store.datasets.pictures import (
    PictureDataset,
    Siblings,
    check_min_sides,
    find_next,
    open_pictures,
    path_below,
)
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchOfItems, MakeItem, new_array
from dlas_store.loading.buffers import ScratchPool
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.concat import member_at
from dlas_store.transforms.corruptions import jitter_color
from dlas_store.transforms.resize import Chw, resize_area, to_chw_float, to_tensor


class ImageFolderDataset(PictureDataset):
    """Pictures at any depth of folders, except ``ref.jpg``; of a chunked store every patch.

    An item is a dict; h and w are the sides of HQ, s is ``scale``:

    * ``hq`` float32 (3, h, w) and ``lq`` float32 (3, h/s, w/s): RGB in [0, 1], then mapped as ``normalize``
      and ``rgb_n1_to_1`` say;
    * ``alt_hq`` and ``alt_lq``, likewise, with ``fetch_alt_image`` or ``fetch_alt_tiled_image``: HQ and LQ of a second
      picture, or of the item's own picture if there is no second one; ``has_alt`` bool: whether there is a second one;
    * ``corruption_entropy`` float32 (n,): the strengths of the fixed corruptions in [0, 1], first of ``lq``, then of
      ``alt_lq``;
    * with a ``labeler``, ``labels`` int64 (1, h, w): the index of each pixel's label, 0 for pixels without a label;
      ``labels_mask`` float32 (1, h, w): 1 for labelled pixels, else 0; ``label_strings``: label index -> name;
    * ``HQ_path`` and ``LQ_path`` str: the picture's path;
    * a tensor for each of ``fixed_parameters``.

    With ``skip_lq`` there are no ``lq``, ``alt_lq`` and ``corruption_entropy``. The dataset may be used from several
    threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``labeler``, and the options that
                read_image_folder_options() reads.

        Raises:
            ConfigError: an option is missing or has a wrong value, two options contradict each other, labels do not fit
                the pictures, or a picture of a store is smaller than ``center_crop_hq_sz`` (checked without
                ``on_error: skip`` and ``labeler``; folders do not know the sizes of their pictures).
            StoreError: a path holds no pictures.
        """
        options = ConfigOptions.of_dataset(opt, mode="imagefolder")
        super().__init__(options)
        self._opt = read_image_folder_options(options)
        self._pictures = open_pictures(options)
        self._source = self._pictures.source
        sources = self._pictures.sources
        self._labels = PatchLabels(options.section("labeler"), sources) if options.has("labeler") else None
        self._is_plain = self._opt.is_plain and self._labels is None
        self._scratch = ScratchPool()
        self._siblings = {source: Siblings(source) for source in sources if self._opt.alternative == "tile"}
        if self._opt.center_crop is not None and self._labels is None and not self.skips_bad:
            check_min_sides(options, sources, self._opt.center_crop, reason=CENTER_CROP)
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        if self._labels is None:
            return len(self._pictures)
        weight = len(self._pictures) // len(self._labels.source)
        return len(self._labels.patches) * weight

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of range.
            ImageError: a picture cannot be decoded, or is too small for the options.
            StoreError: a picture cannot be read.
        """
        if self._is_plain:
            return self._make_plain(SampleKey(index, random.repetition))
        patch = self._patch_at(index)
        path = self._source.patch_path(patch)
        picture = self._read(patch, path, random)
        chw = to_chw_float(picture.pixels)
        if self._opt.jitters:
            chw = jitter_color(chw, self._opt.jitter, random.generator)
        hqs = [self._make_hq(chw, path)]
        item = {"hq": self._to_tensor(hqs[0]), "HQ_path": path, "LQ_path": path, "has_alt": False}
        if self._opt.alternative:
            alternative = self._find_alternative(patch, random)
            hqs.append(hqs[0].copy() if alternative is None else self._make_alternative_hq(alternative))
            item |= {"alt_hq": self._to_tensor(hqs[1]), "has_alt": alternative is not None}
        if not self._opt.skip_lq:
            lqs, strengths = self._make_lqs(hqs, random)
            item |= zip(("lq", "alt_lq"), map(self._to_tensor, lqs), strict=False)
            item["corruption_entropy"] = torch.tensor(strengths, dtype=torch.float32)
        if self._labels is not None:
            boxes = [box.resized(picture.size, self._opt.resized(picture.size)) for box in picture.boxes]
            item["labels"], item["labels_mask"] = draw_boxes(boxes, hqs[0].shape[1:])
            item["label_strings"] = dict(self._labels.names)
        return item | {key: constant.clone() for key, constant in self._opt.constants.items()}

    def make_builder(self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        """Begin a batch; see ItemDataset."""
        begin = self._begin_plain if self._is_plain else super().make_builder
        return begin(keys, allocate, replace=replace)

    def _begin_plain(
        self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None
    ) -> ImageFolderBatchBuilder:
        return ImageFolderBatchBuilder(
            keys,
            Frames(self._source, [self._patch_at(key.index) for key in keys]),
            self._opt,
            self._scratch,
            seed=self._seed,
            allocate=allocate,
            replace=replace,
        )

    def _make_plain(self, key: SampleKey) -> dict[str, Any]:
        builder = self._begin_plain([key], new_array, replace=None)
        builder.fill(0, 1)
        item: dict[str, Any] = BatchOfItems(builder.finish(), 1)[0]
        return item | {"has_alt": False}

    def _patch_at(self, index: int) -> int:
        if self._labels is None:
            return self._pictures.patch_at(index)
        return self._labels.patches[index % len(self._labels.patches)]

    def _read(self, patch: int, path: str, random: SampleRng) -> Picture:
        """Return a picture with its boxes, cropped and flipped."""
        pixels = self._source.read_pixels([patch])[0]
        size = pixels.shape[0], pixels.shape[1]
        boxes = [] if self._labels is None else self._labels.boxes_of(path_below(self._source, patch))
        picture = Picture(pixels, [box.crop(0, 0, size) for box in boxes])
        return crop_and_flip(picture, path, self._opt, random)

    def _find_alternative(self, patch: int, random: SampleRng) -> int | None:
        """Return the index in the source of the second picture to a patch; None if there is no second picture."""
        source, index = member_at(self._source, patch)
        is_tile = self._opt.alternative == "tile"
        alternative = self._siblings[source].draw(index, random) if is_tile else find_next(source, index)
        return None if alternative is None else patch - index + alternative

    def _make_alternative_hq(self, patch: int) -> Chw:
        return self._make_hq(to_chw_float(self._source.read_pixels([patch])[0]), self._source.patch_path(patch))

    def _make_hq(self, chw: Chw, path: str) -> Chw:
        size = self._opt.resized(chw.shape[1:])
        if size != chw.shape[1:]:
            chw = resize_area(chw, size, interleaved=self._opt.corruptions.is_active)
        height, width = self._opt.to_multiple(size, path)
        return chw[:, :height, :width]

    def _make_lqs(self, hqs: Sequence[Chw], random: SampleRng) -> tuple[list[Chw], list[float]]:
        """Return the LQ of each HQ, and the strengths of the fixed corruptions; see Corruptions.apply."""
        opt = self._opt
        if not opt.corrupt_before_downsize:
            return opt.corruptions.apply([self._reduced(hq, opt.scale) for hq in hqs], random)
        copies = [self._reduced(hq, opt.downsize_before) for hq in hqs]
        copies, strengths = opt.corruptions.apply(copies, random)
        return [self._reduced(copy, opt.scale // opt.downsize_before) for copy in copies], strengths

    def _reduced(self, chw: Chw, factor: int) -> Chw:
        height, width = chw.shape[1:]
        size = (height // factor, width // factor)
        return resize_area(chw, size, interleaved=self._opt.corruptions.is_active)

    def _to_tensor(self, chw: Chw) -> torch.Tensor:
        return to_tensor(self._opt.map_values(chw))
