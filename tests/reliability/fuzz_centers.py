"""Fuzzing centers.pt with coverage: ``python fuzz_centers.py SECONDS FOLDER``, of which FOLDER keeps what was found.

Ends with another status than 0 at the first file that runs something, raises something else than CentersError, takes
more than 2 GiB or more than a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dlas_store", "zipfile", "pickle"]):
    import dlas_store.centers  # noqa: F401 - what is fuzzed

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import watched

HOSTILE = Path(__file__).parents[1] / "hostile"


def _read(data: bytes) -> None:
    watched.read(data)


def main() -> None:
    """Fuzz for some seconds."""
    seconds, folder = int(sys.argv[1]), Path(sys.argv[2])
    found = folder / "found"
    found.mkdir(parents=True, exist_ok=True)
    good = (Path(__file__).parents[1] / "data").glob("chunked*/*/centers.pt")
    for number, path in enumerate([*HOSTILE.glob("*.pt"), *good]):
        (found / f"start-{number}").write_bytes(path.read_bytes())
    watched.install()
    limits = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=2048",
        "-timeout=60",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/", *limits, str(found)], _read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
