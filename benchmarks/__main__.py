"""``python -m benchmarks SUBJECT``: measure, print tables, and write every round as JSON."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import extracting, first, importing, memory, read, steps, train
from benchmarks import open as opening
from benchmarks.report import print_report, write_json
from dlas_store import StoreError
from dlas_store.cli.text import positive

SUBJECTS = {
    "read": read,
    "steps": steps,
    "train": train,
    "first": first,
    "memory": memory,
    "open": opening,
    "import": importing,
    "extract": extracting,
}


def main() -> int:
    """Run one benchmark and return the exit status: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure stores against folders.")
    subjects = parser.add_subparsers(dest="benchmark", required=True, metavar="SUBJECT")
    for name, module in SUBJECTS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        subject = subjects.add_parser(name, help=summary, description=summary)
        module.add_options(subject)
        subject.add_argument("--rounds", type=positive, default=5, metavar="N", help="number of rounds (default: 5)")
        subject.add_argument("--json", metavar="FILE", help="write every round to FILE as JSON")
    options = parser.parse_args()
    try:
        report = SUBJECTS[options.benchmark].run(options)
        print_report(report)
        if options.json is not None:
            write_json(options.json, report, options)
    except KeyboardInterrupt:
        return 130
    except (StoreError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
