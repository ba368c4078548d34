"""The workers loader where /dev/shm has 64 MB, as in a container by default. Needs root, to mount one."""

import os
import shlex
import shutil
import signal
import subprocess
import sys

from common import PYTHON, chunked, end, folder, run, skip

if len(sys.argv) == 2:  # in the small /dev/shm
    from dlas_store.datasets import create_dataloader, create_dataset

    opt = {
        "mode": "single_image_extensible",
        "paths": sys.argv[1],
        "target_size": 256,
        "scale": 1,
        "batch_size": 8,
        "phase": "train",
        "loader": "workers",
        "n_workers": 2,
    }
    print(sum(1 for _ in create_dataloader(create_dataset(opt), opt)), "batches")
    sys.exit()
if os.geteuid() or not shutil.which("unshare"):
    skip("needs root and unshare")
root = folder()
run("import", chunked(root / "f", 4, 24, 256), "s.lmdb")
again = shlex.join([PYTHON, __file__, str(root / "s.lmdb")])
line = f"mount -t tmpfs -o size=64M tmpfs /dev/shm && exec {again}"
process = subprocess.Popen(["unshare", "-m", "sh", "-c", line], cwd=root, start_new_session=True)
try:
    print("status", process.wait(60))
    right = True
except subprocess.TimeoutExpired:
    print("still waiting after 60 s")
    right = False
finally:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
end(right, "12 batches, or an error within seconds")
