"""Wrote the store beside this file, once, by dlas_store 0.1.0; kept so that it can be seen what went in.

``python tests/data/format_1/write.py FOLDER`` writes such a store anew: other ids, the same contents. The one that is
kept is never to be replaced.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from dlas_store.converters.importing import import_store
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers


def picture(shade: int, side: int = 1) -> bytes:
    """Return a PPM of one colour, which needs no library that may change."""
    return b"P6 %d %d 255\n" % (side, side) + bytes([shade, 255 - shade, shade // 2]) * side**2


FILES = {
    "chunked": {
        **{f"plain/{number:08d}.jpg": picture(number) for number in (0, 1, 2, 5)},
        "plain/ref.jpg": picture(100, side=4),
        "plain/centers.pt": write_centers({0: Center(1, 2, 256), 5: Center(-1, 70_000, 1 << 40), 9: Center(0, 0, 1)}),
        "largé/1.png": picture(7, side=50),
        "largé/00000001.png": picture(8, side=40),
        "largé/left.webp": picture(9),
        "no centres 📷/18446744073709551616.bmp": picture(10),
        "metadata.jsonl": json.dumps({"image": "plain", "label": 3, "tags": ["ü"], "none": None}).encode() + b"\n",
    },
    "appended": {"later/7.jpg": picture(20), "later/centers.pt": write_centers({})},
    "pictures": {"deep/er/a.png": picture(30, side=30), "b.ppm": picture(31)},
}


def write(folder: Path) -> None:
    """Write chunked.lmdb, with an append, and pictures.lmdb, and what they hold."""
    held: dict[str, dict[str, str]] = {}
    for name, files in FILES.items():
        for path, content in files.items():
            file = folder / "sources" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            store = "pictures" if name == "pictures" else "chunked"
            held.setdefault(store, {})[path] = hashlib.sha256(content).hexdigest()
    sources = folder / "sources"
    import_store([sources / "chunked"], folder / "chunked.lmdb", layout="chunked", shard_size=8000, workers=1)
    import_store([sources / "appended"], folder / "chunked.lmdb", layout="chunked", append=True, workers=1)
    import_store([sources / "pictures"], folder / "pictures.lmdb", layout="pictures", workers=1)
    (folder / "contents.json").write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
