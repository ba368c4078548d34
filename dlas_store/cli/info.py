"""The command ``dlas-store info``: the facts about a store, printed as a table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dlas_store.cli.text import megabytes, print_json
from dlas_store.errors import counted

if TYPE_CHECKING:
    from dlas_store.maintenance.info import StoreInfo

_MAX_SIZES = 20
"""Number of pixel sizes that are printed."""


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from dlas_store.images.libjpeg import PatchReader
    from dlas_store.maintenance.info import BLOCK_BYTES, info

    if options.decoder:
        from dlas_store.cli.decoder import describe_decoder

        decoder = describe_decoder()
        if options.json:
            print_json(decoder)
        else:
            print("\n".join(f"{name:13}{value}" for name, value in decoder.items()))
        return 0
    facts = info(options.store)
    if options.json:
        print_json(facts.as_dict())
        return 0
    rows = {
        "layout": facts.layout,
        "images": f"{facts.images:,} ({facts.references:,} with a reference)",
        "patches": f"{facts.patches:,}",
        "bytes": f"{megabytes(facts.bytes)} of files",
        "on disk": f"{megabytes(facts.disk_bytes)} in {counted(facts.shards, 'shard')} and the index "
        f"({_overhead(facts.disk_bytes, facts)})",
        "": f"in a folder: {megabytes(facts.block_bytes)} ({_overhead(facts.block_bytes, facts)}), because store and "
        f"file systems keep most values in whole blocks of {BLOCK_BYTES:,} bytes",
        "format": f"version {facts.format_version}, index generation {facts.generation}",
        "store id": facts.store_id,
    }
    for name, value in rows.items():
        print(f"{name:10}{value}")
    sizes = list(facts.sizes.items())
    for row, (size, count) in enumerate(sizes[:_MAX_SIZES]):
        percent = 100 * count / max(facts.patches, 1)
        print(f"{'' if row else 'pixels':10}{size:>11}  {count:>12,}  {percent:5.1f} %  {'#' * round(percent / 2)}")
    if len(sizes) > _MAX_SIZES:
        print(f"{'':10}and {counted(len(sizes) - _MAX_SIZES, 'more size')}")
    if PatchReader is None:
        print(f"{'slow':10}C extensions are missing, so reading is slower: see dlas-store info --decoder")
    return 0


def _overhead(disk_bytes: int, facts: StoreInfo) -> str:
    return f"{100 * (disk_bytes / max(facts.bytes, 1) - 1):+.1f} %"
