"""Two gloo ranks, no seed: after half an epoch both go on from the state of rank 0, as from a usual checkpoint."""

import hashlib
import subprocess
import sys

from common import PYTHON, chunked, end, folder, run

if len(sys.argv) == 4:  # one of the ranks
    from torch import distributed

    from dlas_store.datasets import create_dataloader, create_dataset

    rank, meeting, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    opt = {
        "mode": "single_image_extensible",
        "paths": store,
        "target_size": 32,
        "scale": 4,
        "batch_size": 8,
        "phase": "train",
        "random_corruptions": ["noise", "jpeg"],
        "num_corrupts_per_image": 1,
    }

    def make():
        return create_dataloader(create_dataset(opt), opt, {"dist": True})

    def items(batch):
        return {
            path: hashlib.md5(lq.numpy().tobytes()).hexdigest()
            for path, lq in zip(batch["GT_path"], batch["lq"], strict=True)
        }

    loader, rest, state = make(), {}, None
    for number, batch in enumerate(loader):
        if number == 4:
            state = loader.state_dict()
        if number > 4:
            rest |= items(batch)
    states = [state]
    distributed.broadcast_object_list(states, 0)
    loader, again = make(), {}
    loader.load_state_dict(states[0])
    for batch in loader:
        again |= items(batch)
    same = sum(again.get(path) == value for path, value in rest.items())
    print(f"rank {rank}: {same} of {len(rest)} items as in the run that was not interrupted", flush=True)
    distributed.barrier()
    sys.exit(set(rest) != set(again) or same != len(rest))
root = folder()
run("import", chunked(root / "f", 2, 40, 64), "s.lmdb")
command = [PYTHON, __file__]
ranks = [
    subprocess.Popen([*command, str(rank), str(root / "meeting"), str(root / "s.lmdb")], cwd=root) for rank in (0, 1)
]
end([rank.wait(90) for rank in ranks] == [0, 0], "all items of both ranks, as with a seed")
