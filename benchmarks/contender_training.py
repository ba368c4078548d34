"""Contenders of ``train``: a training loop of a small super-resolution network, on each loader.

``make`` makes each contender in a process of its own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Sampler

from benchmarks.process import OpenWorkload
from benchmarks.train import Training
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.sampling.samplers import EpochSampler

_BATCHES_IN_MEMORY = 16
_WARM_UP_STEPS = 3

Batches = Callable[[], Iterable[Mapping[str, Any]]]


def make(spec: Mapping[str, Any]) -> OpenWorkload:
    """Return a function that makes dataset, loader and network; ``spec`` has the attributes of Training."""
    training = Training(**spec)
    return lambda: TrainingWorkload(training)


class SmallNetwork(nn.Module):
    """Super-resolution network: residual blocks at LQ's size and a PixelShuffle add detail to the enlarged LQ.

    Args:
        width: number of channels.
        blocks: number of residual blocks, of two convolutions each.
        scale: ratio of HQ's side to LQ's side.
    """

    def __init__(self, *, width: int, blocks: int, scale: int) -> None:
        super().__init__()
        self._scale = scale
        self._head = nn.Conv2d(3, width, 3, padding=1)
        self._blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self._tail = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """Return HQ, float32 (B, 3, h, w), for LQ, float32 (B, 3, h/scale, w/scale)."""
        features: torch.Tensor = self._head(lq)
        for block in self._blocks:
            features = features + block(features)
        detail: torch.Tensor = self._tail(features)
        return functional.interpolate(lq, scale_factor=self._scale) + detail


class TrainingWorkload:
    """Trains for some steps a run, in one epoch if there is enough data, else in several.

    Threads and workers therefore start in each run, and every batch is used. The start's share of the time shrinks with
    the number of steps.
    """

    def __init__(self, training: Training) -> None:
        if training.torch_threads is not None:
            torch.set_num_threads(training.torch_threads)
        torch.manual_seed(0)
        self._training = training
        self._device = torch.device(training.device)
        self._batches = _batches(training)
        network = SmallNetwork(width=training.width, blocks=training.blocks, scale=training.options["scale"])
        self._network = network.to(self._device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=1e-4)

    def run(self) -> int:
        """Train for the steps of a run, and return their number."""
        return self._train(self._training.steps)

    def check(self) -> int:
        """Train for a few steps, which warms up PyTorch's caches."""
        return self._train(min(_WARM_UP_STEPS, self._training.steps))

    def _train(self, steps: int) -> int:
        losses: list[float] = []
        log: list[dict[str, float]] = []
        for step, batch in enumerate(self._repeat_batches(steps), start=1):
            loss = self._step(batch)
            # Training loops do such Python work at every step, and decoding threads compete with it for the GIL.
            losses.append(loss)
            log.append({"step": step, "loss": sum(losses[-50:]) / len(losses[-50:]), "time": time.monotonic()})
            for group in self._optimizer.param_groups:
                group["lr"] = 1e-4 * (1 - step / (2 * steps))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        assert len(log) == steps, f"{len(log)} steps of {steps}"
        return len(log)

    def _step(self, batch: Mapping[str, Any]) -> float:
        lq, hq = (batch[key].to(self._device, non_blocking=True) for key in ("lq", "hq"))
        loss = functional.l1_loss(self._network(lq), hq)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.item()

    def _repeat_batches(self, steps: int) -> Iterator[Mapping[str, Any]]:
        remaining_steps = steps
        while remaining_steps:
            for batch in islice(self._batches(), remaining_steps):
                remaining_steps -= 1
                yield batch


def _batches(training: Training) -> Batches:
    opt = training.options
    # The benchmark has more workers than cores on purpose; PyTorch would warn about them in every epoch.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    dataset, collate = create_dataset(opt, return_collate=True)
    batch = opt["batch_size"]
    items = min(len(dataset), training.steps * batch)  # type: ignore[arg-type]
    order: Sampler[Any] = EpochSampler(items, seed=0, shuffle=True, batch_size=batch, drop_last=True)
    loader = create_dataloader(dataset, opt, sampler=order, collate_fn=collate)
    if not training.in_memory:
        return lambda: loader
    batches_in_memory = list(islice(loader, _BATCHES_IN_MEMORY))
    return lambda: batches_in_memory
