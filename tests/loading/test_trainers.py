"""The trainers of other packages take our loaders: accelerate and PyTorch Lightning, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dlas_store.datasets import Loader, create_dataloader, create_dataset
from tests.support.small_stores import make_store, small_folder

# Both packages warn of much that has nothing to do with a loader.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]

KINDS: dict[str, dict[str, Any]] = {
    "threads": {"loader": "threads"},
    "workers": {"loader": "workers", "n_workers": 1, "start_method": "fork"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 patches."""
    root = tmp_path_factory.mktemp("trainers")
    return make_store(small_folder(root / "chunked", "a", "b", patches=12), root / "store.lmdb")


def loader_of(store: Path, **options: Any) -> Loader:
    defaults = {"mode": "single_image_extensible", "paths": store, "target_size": 8, "scale": 2, "batch_size": 4}
    opt = {**defaults, "phase": "train", **options}
    return create_dataloader(create_dataset(opt), opt)


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_prepares_a_loader(kind: str, store: Path, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Conv2d(3, 3, 1)
    loader = loader_of(store, **KINDS[kind])
    model, optimizer, prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1e-3), loader)
    assert len(prepared) == 6
    paths: list[str] = []
    for batch in prepared:
        accelerator.backward(model(batch["lq"]).mean())
        optimizer.step()
        paths += batch["GT_path"]
    assert len(set(paths)) == 24
    accelerator.register_for_checkpointing(loader)
    accelerator.save_state(tmp_path)
    loader.set_epoch(0)
    accelerator.load_state(tmp_path)
    assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_lightning_trains_validates_and_resumes_inside_an_epoch(kind: str, store: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, stop: int | None = None) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)
            self.stop = stop
            self.trained: list[Any] = []
            self.validated = 0

        def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
            if number == self.stop:
                raise KeyError
            self.trained.append(batch["GT_path"])
            loss: torch.Tensor = self.layer(batch["lq"]).mean()
            return loss

        def validation_step(self, batch: dict[str, Any], number: int) -> None:
            self.validated += len(batch["GT_path"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    def trainer(**options: Any) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)

    whole = Module()
    loader = loader_of(store, seed=3, **KINDS[kind])
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(whole, loader, loader_of(store, phase="val", **KINDS[kind]))
    assert len(whole.trained) == 6
    assert whole.validated == 24

    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="step", every_n_train_steps=3)
    stopped = Module(stop=4)
    with pytest.raises(KeyError):
        trainer(max_epochs=1, callbacks=[checkpoint]).fit(stopped, loader_of(store, seed=3, **KINDS[kind]))
    resumed = Module()
    trainer(max_epochs=1, enable_checkpointing=False).fit(
        resumed, loader_of(store, seed=99, **KINDS[kind]), ckpt_path=str(tmp_path / "step.ckpt")
    )
    assert stopped.trained[:3] + resumed.trained == whole.trained
