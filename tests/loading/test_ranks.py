"""Loaders in processes of torch.distributed: they share an epoch, and all resume from the state of one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_stores import make_store, small_folder

RANKS = """
import hashlib, json, sys
from itertools import islice
from torch import distributed
from dlas_store.datasets import DistIterSampler, create_dataloader, create_dataset

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)

def make(options, training=None, sampler_ratio=None):
    dataset = create_dataset(options)
    sampler = None
    if sampler_ratio:
        sampler = DistIterSampler(len(dataset), replicas=2, rank=rank, ratio=sampler_ratio)
    return create_dataloader(dataset, options, training, sampler, shuffle=sampler is None)

def items(batch):
    digests = [hashlib.md5(lq.numpy().tobytes()).hexdigest() for lq in batch["lq"]]
    return list(zip(["/".join(path.split("/")[-2:]) for path in batch["GT_path"]], digests))

def batches_of(batches):
    return [items(batch) for batch in batches]

outputs = BODY
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 22 patches: an odd number of items for each of two ranks."""
    root = tmp_path_factory.mktemp("ranks")
    return make_store(small_folder(root / "chunked", "a", "b", patches=11), root / "store.lmdb")


def options_of(store: Path, **options: Any) -> dict[str, Any]:
    noise = {"random_corruptions": ["noise"], "num_corrupts_per_image": 1}
    defaults = {"mode": "single_image_extensible", "paths": str(store), "target_size": 8, "scale": 2, "batch_size": 4}
    return {**defaults, "phase": "train", **noise, **options}


def outputs_of(body: str, tmp_path: Path) -> list[Any]:
    """Run a function body's last expression in two ranks of gloo; return its value in each."""
    program = tmp_path / "ranks.py"
    lines, expression = body.rsplit("\n", 1) if "\n" in body else ("", body)
    program.write_text(RANKS.replace("outputs = BODY", f"{lines}\noutputs = {expression}"))
    command = [sys.executable, str(program)]
    meeting = str(tmp_path / "meeting")
    ranks = [subprocess.Popen([*command, rank, meeting], stdout=subprocess.PIPE, text=True) for rank in "01"]
    texts = [rank.communicate(timeout=200)[0] for rank in ranks]
    return [json.loads(text) for text in texts]


def names(batches: list[Any]) -> list[str]:
    return [name for batch in batches for name, _ in batch]


@pytest.mark.timeout(240)
def test_ranks_share_the_epoch_unless_dist_is_false(store: Path, tmp_path: Path) -> None:
    train = options_of(store)
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "default": (train, None),
        "training says nothing": (train, {"name": "x"}),
        "training": (train, {"dist": True}),
        "dataset": ({**train, "dist": True}, None),
        "training refuses": (train, {"dist": False}),
        "dataset refuses": ({**train, "dist": False}, {"dist": True}),
        "val": ({**train, "phase": "val"}, None),
        "val of the dataset": ({**train, "phase": "val", "dist": True}, None),
        "val of the training": ({**train, "phase": "val", "batch_size": None}, {"dist": True}),
        "val of workers": ({**train, "phase": "val", "dist": True, "loader": "workers"}, None),
        "val without the last": ({**train, "phase": "val", "dist": True, "drop_last": True}, None),
    }
    text = json.dumps(json.dumps(cases))
    body = f"cases = json.loads({text})\n{{name: batches_of(make(*case)) for name, case in cases.items()}}"
    first, second = outputs_of(body, tmp_path)
    for name in ("default", "training says nothing", "training", "dataset"):
        assert [len(batch) for batch in first[name]] == [2] * 5
        assert len(set(names(first[name]) + names(second[name]))) == 20
    for name in ("training refuses", "dataset refuses"):
        assert [len(batch) for batch in first[name]] == [len(batch) for batch in second[name]] == [4] * 5
    assert names(first["val"]) == names(second["val"])
    everything = sorted(names(first["val"]))
    assert len(set(everything)) == 22
    for name, sizes in {
        "val of the dataset": [4, 4, 3],
        "val of the training": [1] * 11,
        "val of workers": [4, 4, 3],
    }.items():
        assert [len(batch) for batch in first[name]] == [len(batch) for batch in second[name]] == sizes
        assert sorted(names(first[name]) + names(second[name])) == everything
    last = names(first["val without the last"]) + names(second["val without the last"])
    assert len(last) == len(set(last)) == 16


@pytest.mark.timeout(240)
def test_a_batch_that_the_ranks_cannot_divide_says_how_not_to_share(store: Path, tmp_path: Path) -> None:
    body = f"""options = json.loads({json.dumps(json.dumps(options_of(store, batch_size=3)))})
def message():
    try:
        make(options)
    except ValueError as error:
        return str(error)
message()"""
    for message in outputs_of(body, tmp_path):
        assert "batch_size must be a multiple of the 2 processes, got 3; dist: false lets every process" in message


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["threads", "workers"])
def test_all_ranks_go_on_from_the_state_of_rank_0_without_a_seed(kind: str, store: Path, tmp_path: Path) -> None:
    own = {"loader": "workers", "n_workers": 2, "start_method": "fork"} if kind == "workers" else {"loader": "threads"}
    options = options_of(store, **own)
    body = f"""options = json.loads({json.dumps(json.dumps(options))})
def resumed(**more):
    loader = make(**more)
    batches = iter(loader)
    list(islice(batches, 2))
    states = [loader.state_dict()]
    rest = batches_of(batches) + batches_of(loader)
    distributed.broadcast_object_list(states, 0)
    loader = make(**more)
    loader.load_state_dict(states[0])
    return [rest, batches_of(loader) + batches_of(loader)]
cases = [
    {{"options": options}},
    {{"options": options, "sampler_ratio": 3}},
    {{"options": options, "training": {{"dist": True}}, "sampler_ratio": 1}},
    {{"options": {{**options, "seed": 7}}}},
]
[resumed(**case) for case in cases]"""
    for output in outputs_of(body, tmp_path):
        for rest, again in output:
            assert len(rest) > 6
            assert again == rest


@pytest.mark.timeout(240)
def test_a_foreign_sampler_that_repeats_items_gives_each_time_and_rank_other_random_numbers(
    store: Path, tmp_path: Path
) -> None:
    body = f"""options = json.loads({json.dumps(json.dumps(options_of(store, seed=4, batch_size=6)))})
def repeated():
    dataset = create_dataset(options)
    loader = create_dataloader(dataset, options, sampler=[3, 5, 3, 3, 5, 3])
    return [batches_of(loader), batches_of(loader)]
repeated()"""
    first, second = outputs_of(body, tmp_path)
    digests = [digest for rank in (first, second) for epoch in rank for batch in epoch for _, digest in batch]
    assert len(set(digests)) == len(digests) == 24
