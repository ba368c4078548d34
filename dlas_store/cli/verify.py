"""The command ``dlas-store verify``: arguments, the choice of a sample, and printed findings."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from dlas_store.cli.text import HIDDEN_HELP, natural, print_json, share
from dlas_store.errors import ConfigError, counted


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    command.add_argument("store", type=Path, metavar="STORE", help="the store to check")
    scope = command.add_mutually_exclusive_group()
    scope.add_argument("--against", type=Path, metavar="SRC", help="compare with this folder or store, file by file")
    scope.add_argument("--quick", action="store_true", help="check structure and sizes only, and read no value")
    scope.add_argument("--sample", type=share, metavar="P%", help="check a random share of the values, such as 5%%")
    command.add_argument(
        "--seed", type=natural, metavar="N", help="with --sample: repeat the sample that has this seed"
    )
    command.add_argument("--include-hidden", action="store_true", help=f"with --against: {HIDDEN_HELP}")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from dlas_store.maintenance.verify import Sample, verify

    if options.seed is not None and options.sample is None:
        raise ConfigError("--seed chooses a sample; use it with --sample")
    sample = None
    if options.sample is not None:
        sample = Sample(options.sample, secrets.randbits(32) if options.seed is None else options.seed)
    report = verify(
        options.store,
        options.against,
        workers=options.workers,
        quick=options.quick,
        sample=sample,
        include_hidden=options.include_hidden,
    )
    if options.json:
        sample_facts = {"sample": sample._asdict()} if sample else {}
        print_json(report.as_dict() | sample_facts)
    else:
        for finding in report.findings:
            place = " ".join(part for part in (finding.shard, finding.image, finding.patch) if part)
            print(f"{finding.kind}: {place}: {finding.message}")
        agreement = f", all as in {options.against}" if options.against is not None else ""
        scope = "placed, none read" if options.quick else "checked"
        scope += f" ({100 * sample.share:g}% of patches and references, --seed {sample.seed})" if sample else ""
        print(
            f"{options.store}: {counted(report.checked, 'value')} {scope}, "
            + (f"no finding{agreement}" if report.ok else counted(len(report.findings), "finding"))
        )
        if any(finding.kind in ("damaged", "foreign") for finding in report.findings):
            print("dlas-store salvage copies all undamaged images to a new store")
    return 0 if report.ok else 1
