"""Peers: every patch comes once an epoch, in another order each epoch, and no process or file stays behind.

Each peer runs in a process of its own: some peers start threads when imported, and this process must not fork beside
threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_data import ROOT

PATCHES = 150
BATCH = 16

PEERS = {
    "WebDataset": ["webdataset"],
    "LitData": ["litdata"],
    "Grain + ArrayRecord": ["grain", "array_record"],
    "Grain + ArrayRecord, batch_fn": ["grain", "array_record"],
    "Lance, get_safe_loader": ["lance", "pyarrow"],
    "Lance, take in threads": ["lance", "pyarrow"],
}
"""Name of a peer -> packages that the peer imports."""

READ_EPOCHS = f"""
import json, sys
from multiprocessing import active_children
from pathlib import Path
import numpy as np, simplejpeg
from benchmarks.peers import installed

if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    pictures = [np.full((32, 48, 3), number, np.uint8) for number in range({PATCHES})]
    payloads = [simplejpeg.encode_jpeg(picture, 95, "RGB", "444") for picture in pictures]
    numbers = {{simplejpeg.decode_jpeg(data, "RGB").tobytes(): number for number, data in enumerate(payloads)}}
    assert len(numbers) == {PATCHES}
    peer = next(peer for peer in installed() if peer.name == name)
    peer.write(payloads, folder)
    epochs = []
    for _ in range(3):
        batches = list(peer.batches(folder, batch_size={BATCH}, seed=7))
        for batch in batches:
            assert (batch.dtype, batch.shape[1:]) == (np.uint8, (32, 48, 3)), (batch.dtype, batch.shape)
        epochs.append([[numbers[picture.tobytes()] for picture in batch] for batch in batches])
    peer.close()
    print(json.dumps({{"epochs": epochs, "children": len(active_children())}}))
"""


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)


def need(packages: Sequence[str]) -> None:
    if absent := [package for package in packages if find_spec(package) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that reads three epochs with a peer, by the peer's name, and caches the result."""
    results: dict[str, Mapping[str, Any]] = {}

    def read_epochs(name: str) -> Mapping[str, Any]:
        need(PEERS[name])
        if name not in results:
            folder = tmp_path_factory.mktemp("peer") / "written"
            results[name] = json.loads(run_python("-c", READ_EPOCHS, name, folder).stdout.splitlines()[-1])
            results[name] |= {"files": [path.name for path in folder.parent.iterdir()]}
        return results[name]

    return read_epochs


@pytest.mark.parametrize("name", PEERS)
def test_every_patch_comes_exactly_once_an_epoch(read: Any, name: str) -> None:
    for epoch in read(name)["epochs"]:
        assert sorted(number for batch in epoch for number in batch) == list(range(PATCHES))


@pytest.mark.parametrize("name", PEERS)
def test_batches_have_the_size_asked_for_but_the_last_of_each_worker(read: Any, name: str) -> None:
    for epoch in read(name)["epochs"]:
        assert all(len(batch) == BATCH for batch in epoch[: PATCHES // BATCH // 2])
        assert all(0 < len(batch) <= BATCH for batch in epoch)


@pytest.mark.parametrize("name", PEERS)
def test_every_epoch_is_shuffled_anew(read: Any, name: str) -> None:
    orders = [[number for batch in epoch for number in batch] for epoch in read(name)["epochs"]]
    assert list(range(PATCHES)) not in orders
    assert len(set(map(tuple, orders))) == len(orders)


@pytest.mark.parametrize("name", PEERS)
def test_closing_ends_the_processes_and_writing_leaves_only_its_folder(read: Any, name: str) -> None:
    assert read(name)["children"] == 0
    assert read(name)["files"] == ["written"]


def test_importing_the_benchmarks_imports_no_peer() -> None:
    modules = sorted({package for packages in PEERS.values() for package in packages})
    code = (
        f"import sys, benchmarks.__main__, benchmarks.peers.__main__; print([m for m in {modules} if m in sys.modules])"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


def test_what_is_missing_is_named_with_how_to_install_it() -> None:
    """Simulate a machine without webdataset and lance by a finder that hides them."""
    code = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in ("webdataset", "lance") else find(name, *rest)
from benchmarks.peers.__main__ import main
sys.argv = ["peers", "--patches", "60", "--size", "32", "--rounds", "1"]
if __name__ == "__main__":
    main()
"""
    lines = run_python("-c", code).stdout.splitlines()
    hint = "not installed: pip install -r benchmarks/requirements-peers.txt"
    assert f"webdataset: {hint}" in lines
    assert f"pylance: {hint}" in lines
    assert any(line.startswith("decoding alone") for line in lines)
    for name, packages in PEERS.items():
        hidden = {"webdataset", "lance"} & set(packages)
        expected = not hidden and all(find_spec(package) is not None for package in packages)
        assert any(line.startswith(f"{name} ") for line in lines) == expected


def test_the_requirements_pin_every_peer_and_no_torch() -> None:
    lines = (ROOT / "benchmarks/requirements-peers.txt").read_text().split()
    assert all(line.count("==") == 1 for line in lines)
    assert {line.partition("==")[0] for line in lines} == {"array_record", "grain", "litdata", "pylance", "webdataset"}
