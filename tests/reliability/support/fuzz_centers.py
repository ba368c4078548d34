"""Coverage-guided fuzzer of centers.pt: ``python -m tests.reliability.support.fuzz_centers SECONDS FOLDER``.

FOLDER keeps the inputs of the fuzzer. The fuzzer stops, with an exit status other than 0, at the first file that runs
code, raises another error than CentersError, or takes more than 2 GiB or a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dlas_store", "zipfile", "pickle"]):
    import dlas_store.sources.centers  # noqa: F401 - imported for its coverage

from tests.reliability.support import watched
from tests.support.sample_data import DATA

HOSTILE = DATA / "hostile"


def _read(data: bytes) -> None:
    watched.read(data)


def main() -> None:
    """Fuzz for SECONDS."""
    seconds, folder = int(sys.argv[1]), Path(sys.argv[2])
    inputs = folder / "found"
    inputs.mkdir(parents=True, exist_ok=True)
    valid = DATA.glob("chunked*/*/centers.pt")
    for number, path in enumerate([*HOSTILE.glob("*.pt"), *valid]):
        (inputs / f"start-{number}").write_bytes(path.read_bytes())
    watched.install()
    limits = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=2048",
        "-timeout=60",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/", *limits, str(inputs)], _read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
