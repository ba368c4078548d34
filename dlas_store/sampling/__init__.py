"""Order, shuffle and random numbers, as functions of seed, epoch and position."""

from dlas_store.sampling.rng import Permutation, SampleKey, SampleRng
from dlas_store.sampling.samplers import DistIterSampler, EpochSampler, StatefulSampler

__all__ = ["DistIterSampler", "EpochSampler", "Permutation", "SampleKey", "SampleRng", "StatefulSampler"]
