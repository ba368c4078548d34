"""Helpers of the programs in this folder: the command, the interpreter, pictures, a temporary folder."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = sys.executable
"""The interpreter that runs the program; it has the library."""

COMMAND = [PYTHON, "-c", "import sys; from dlas_store.cli.main import main; sys.exit(main())"]
"""The command, of the same installation as the library."""


def folder() -> Path:
    """Return a temporary folder that is removed at the end, and make it the current one."""
    place = Path(tempfile.mkdtemp())
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(place, ignore_errors=True))
    os.chdir(place)
    os.environ["TMPDIR"] = str(place)  # of processes that are started here, also of those that have to be killed
    return place


def picture(path: Path | str, height: int = 64, width: int = 64, seed: int = 0) -> Path:
    """Draw waves and save them; the path's ending says as what."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 110 * np.sin(x / (5 + seed)), 128 + 110 * np.cos(y / (4 + seed)), (3 * x + 5 * y + 31 * seed) % 256]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(planes, -1).clip(0, 255).astype("uint8")).save(path)
    return path


def chunked(path: Path | str, images: int, patches: int, side: int) -> Path:
    """Make a chunked folder."""
    import torch

    for image in range(images):
        place = Path(path) / f"img{image}"
        picture(place / "ref.jpg", side, side, image)
        for patch in range(1, patches + 1):
            picture(place / f"{patch:08d}.jpg", side, side, image * patches + patch)
        torch.save(
            {patch: ((patch % side, side // 2), side // 4) for patch in range(1, patches + 1)}, place / "centers.pt"
        )
    return Path(path)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command, show what it prints, and return it."""
    words = [os.path.relpath(item) if isinstance(item, Path) else str(item) for item in arguments]
    print("$ dlas-store", *words)
    env = {**os.environ, **options.pop("env", {})}
    done = subprocess.run(
        [*COMMAND, *words], check=False, capture_output=True, text=True, errors="replace", env=env, **options
    )
    print((done.stdout + done.stderr).strip()[-1500:], f"\nstatus {done.returncode}")
    return done


def has_traceback(done: subprocess.CompletedProcess[str]) -> bool:
    """Tell whether a traceback was printed."""
    return "Traceback (most recent call last)" in done.stdout + done.stderr


def end(right: bool, wanted: str) -> None:
    """Say whether it is as it should be, and end with status 0 or 1."""
    print(f"\n{'right' if right else 'WRONG'}; wanted: {wanted}")
    sys.exit(not right)


def skip(lacking: str) -> None:
    """Say what this machine lacks for the case, and end with status 77."""
    print(lacking, file=sys.stderr)
    sys.exit(77)
