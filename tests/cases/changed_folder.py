"""A relative path is opened, then the program changes its folder, as Hydra's do."""

import os

from common import end, folder, picture, run

root = folder()
for number in range(3):
    picture(root / "pictures" / f"{number}.png", seed=number)
run("import", "pictures", "s.lmdb")

from dlas_store import open_source  # noqa: E402
from dlas_store.datasets import create_dataloader, create_dataset  # noqa: E402

reads = {}
for path in ("s.lmdb", "pictures"):
    source = open_source(path)
    reads[f"open_source({path!r})"] = lambda source=source: len(source.read(0)) > 0
    for loader in ("threads", "workers"):
        opt = {"mode": "pixels", "paths": path, "batch_size": 1, "phase": "train", "loader": loader, "n_workers": 1}
        made = create_dataloader(create_dataset(opt), opt)
        reads[f"{path}, loader {loader}"] = lambda made=made: sum(1 for _ in made) == 3
os.chdir("/")
right = True
for name, read in reads.items():
    try:
        outcome = read()
    except Exception as error:  # noqa: BLE001 - any error is an outcome
        outcome = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    print(f"{name}: {outcome}")
    right = right and outcome is True
end(right, "all read what they were opened on")
