"""Random numbers of items: the same in any worker, others when the item comes again."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from xxhash import xxh3_64_intdigest


class Draw(NamedTuple):
    """An item asked for by a sampler.

    Attributes:
        index: of the item in its dataset.
        repetition: how often it came before: in earlier epochs and in this one.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a draw for
    repetition: int


class ItemRandom:
    """The random numbers of one item, a function of (seed, index, repetition) alone.

    Attributes:
        index: of the item in its dataset.
        repetition: how often it came before.
    """

    def __init__(self, seed: int, draw: Draw) -> None:
        """Take the config's seed, from 0, and what was asked for."""
        self.index = draw.index
        self.repetition = draw.repetition
        self._key = (seed, *draw)

    @cached_property
    def generator(self) -> np.random.Generator:
        """The generator of every choice but corruption strengths under ``random_seed``; made when first used."""
        return np.random.default_rng(self._key)

    def coin(self) -> bool:
        """Return one choice of two, the same at each call; apart from the generator, which takes longer to make."""
        return bool(xxh3_64_intdigest("{} {} {}".format(*self._key).encode()) & 1)


def draw_seed() -> int:
    """Return a seed drawn from PyTorch's own generator, 0 <= seed < 2^62."""
    return int(torch.randint(1 << 62, ()).item())
