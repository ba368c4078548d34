"""Mode fullimage with a dataroot_LQ whose names or sizes do not fit those of dataroot_GT."""

import logging
import warnings
from pathlib import Path

from common import end, folder, picture

from dlas_store import StoreError
from dlas_store.datasets import create_dataloader, create_dataset

root = folder()
for name in ("a.png", "b.png", "c.png"):
    picture(root / "GT" / name, 64, 64)
cases = {
    "names": dict.fromkeys(("a.png", "c.png", "d.png"), (16, 16)),
    "sizes": dict.fromkeys(("a.png", "b.png", "c.png"), (15, 16)),
}
logging.basicConfig(level=logging.WARNING)
right = True
for case, files in cases.items():
    for file, (height, width) in files.items():
        picture(root / case / file, height, width)
    opt = {"mode": "fullimage", "dataroot_GT": "GT", "dataroot_LQ": case, "scale": 4, "phase": "val", "batch_size": 1}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            for batch in create_dataloader(create_dataset(opt), opt):
                names = [Path(batch[key][0]).name for key in ("HQ_path", "LQ_path")]
                print(
                    f"{case}: {names[0]} {tuple(batch['hq'].shape[2:])} with {names[1]} {tuple(batch['lq'].shape[2:])}"
                )
        except StoreError as error:
            said.append(error)
    for one in said:
        print(f"{case}: {getattr(one, 'message', one)}")
    right = right and bool(said)
end(right, "an error or a warning for each")
