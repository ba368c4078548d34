"""Train a small super-resolution network from a config: ``python examples/train_sr.py``.

In a minute on two cores the loss falls, and the network's output surpasses a bicubic enlargement. Any config whose
pictures are in [0, 1] works; the script reads the config's first dataset of phase train. The samples are the pictures
of the first batch with the worst bicubic enlargement. A PNG file has a row for each sample: LQ, LQ enlarged
bicubically, the network's output, HQ. The samples are training data, so they do not show how well the network
generalises.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from dlas_store.config import load_config
from dlas_store.datasets import Loader, create_dataloader, create_dataset
from dlas_store.errors import ConfigError

CHANNELS = 32
BLOCKS = 4
LEARNING_RATE = 1e-3
SAMPLES = 4
REPORTS = 10


class SmallNetwork(nn.Module):
    """Super-resolution network: convolutions and a PixelShuffle add detail to LQ, enlarged pixel by pixel."""

    def __init__(self, scale: int) -> None:
        """Make a network whose output is ``scale`` times as large as LQ."""
        super().__init__()
        self._scale = scale
        self._head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self._blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            )
            for _ in range(BLOCKS)
        )
        last = nn.Conv2d(CHANNELS, 3 * scale**2, 3, padding=1, bias=False)
        # Zero weights add no detail, so that training starts from the enlarged LQ without noise.
        nn.init.zeros_(last.weight)
        self._tail = nn.Sequential(last, nn.PixelShuffle(scale))

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """Return HQ, float32 (B, 3, h, w), for LQ, float32 (B, 3, h/scale, w/scale)."""
        features: torch.Tensor = self._head(lq)
        for block in self._blocks:
            features = features + block(features)
        detail: torch.Tensor = self._tail(features)
        return enlarge(lq, self._scale) + detail


def enlarge(lq: torch.Tensor, scale: int, *, mode: str = "nearest") -> torch.Tensor:
    """Enlarge pictures (B, 3, h, w) by ``scale``, with a mode of interpolate(); the default repeats pixels."""
    return functional.interpolate(lq, scale_factor=scale, mode=mode)


def open_training_data(config: Path) -> Loader:
    """Return the loader of the first dataset of phase train.

    Raises:
        ConfigError: the config or its dataset is wrong.
        StoreError: the data cannot be opened.
    """
    datasets = load_config(config).get("datasets") or {}
    opt = next((opt for opt in datasets.values() if opt["phase"] == "train"), None)
    if opt is None:
        raise ConfigError(f"{config}: has no dataset of phase train")
    dataset, collate = create_dataset(opt, return_collate=True)
    return create_dataloader(dataset, opt, collate_fn=collate)


def endless_batches(loader: Loader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield LQ and HQ, both float32 (B, 3, h, w), epoch after epoch; frames of a clip become pictures of the batch."""
    while True:
        for batch in loader:
            yield batch["lq"].flatten(0, -4), batch["hq"].flatten(0, -4)


def train(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], network: nn.Module, seconds: float) -> None:
    """Train a network with the mean absolute error, for at least one step, and print the falling error."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    started = reported = time.monotonic()
    losses: list[float] = []
    for step, (lq, hq) in enumerate(batches, start=1):
        loss = functional.l1_loss(network(lq), hq)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        now = time.monotonic()
        done = now - started >= seconds
        if done or now - reported >= seconds / REPORTS:
            print(f"{now - started:5.1f} s  step {step:5,}  loss {sum(losses) / len(losses):.5f}", flush=True)
            reported = now
            losses.clear()
        if done:
            return
        # The learning rate falls to 0, so that the last steps refine the result.
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (now - started) / seconds)


def signal_to_noise(output: torch.Tensor, hq: torch.Tensor) -> float:
    """Return the PSNR of pictures in [0, 1], in dB."""
    return -10 * float(functional.mse_loss(output.clamp(0, 1), hq).log10())


def save_samples(path: Path, rows: torch.Tensor) -> None:
    """Write rows of pictures, float32 (rows, columns, 3, h, w), as one PNG; values outside [0, 1] are clipped."""
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    pixels = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def main() -> None:
    """Train a network, write samples of its output, and print its quality."""
    options = parse_arguments()
    torch.manual_seed(0)
    loader = open_training_data(options.config)
    # PyTorch's threads wait for the slowest of them, so leave a core to each of the loader's workers.
    torch.set_num_threads(max((os.cpu_count() or 1) - loader.num_workers, 1))
    batches = endless_batches(loader)
    lq, hq = next(batches)
    scale = hq.shape[-1] // lq.shape[-1]
    network = SmallNetwork(scale)
    train(batches, network, options.seconds)
    with torch.no_grad():
        output = network(lq)
    bicubic = enlarge(lq, scale, mode="bicubic")
    hardest = (bicubic - hq).square().mean(dim=(1, 2, 3)).argsort(descending=True)[:SAMPLES]
    columns = torch.stack([enlarge(lq, scale), bicubic, output, hq], dim=1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "samples.png"
    save_samples(path, columns[hardest])
    print(f"first batch: network {signal_to_noise(output, hq):.2f} dB, bicubic {signal_to_noise(bicubic, hq):.2f} dB")
    print(f"{path}: LQ, bicubic, network, HQ")


def parse_arguments() -> Any:
    """Parse the arguments ``config``, ``seconds`` and ``out``."""
    parser = argparse.ArgumentParser(description="Train a small super-resolution network for some seconds.")
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("examples/train.yml"),
        metavar="CONFIG",
        help="config of the data (default: examples/train.yml)",
    )
    parser.add_argument("--seconds", type=float, default=60, help="seconds of training (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("demo/sr"), help="folder for samples.png (default: demo/sr)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
