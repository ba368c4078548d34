"""A sparse file of 6 GB called .jpg beside a good picture, with 3.5 GB of memory."""

import resource
from pathlib import Path

from common import end, folder, has_traceback, picture, run

root = folder()
picture(root / "f" / "a.jpg")
with (root / "f" / "b.jpg").open("wb") as file:
    file.truncate(6 << 30)
limit = 3_500_000 * 1024
done = run(
    "import",
    root / "f",
    "s.lmdb",
    "--on-error",
    "skip",
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
)
kept = Path("s.lmdb").is_dir() and '"images": 1' in run("info", "s.lmdb", "--json").stdout
right = done.returncode == 1 and kept and "b.jpg" in done.stdout + done.stderr and not has_traceback(done)
end(right, "status 1, a.jpg in the store, b.jpg named with the reason, in a second or so")
