"""Reports as JSON: the bytes of --json and --report, and the dictionaries of as_dict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage
from dlas_store.maintenance.info import info
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import compare, verify
from tests.support.command_line import done, run
from tests.support.file_trees import write
from tests.support.photo_files import encoded, scene
from tests.support.small_stores import flip_in, make_store, small_folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(small_folder(tmp_path / "source", "a", "ä"), tmp_path / "store.lmdb")


@pytest.fixture
def damaged(store: Path, tmp_path: Path) -> Path:
    flip_in(store / "shard-00001.lmdb", (tmp_path / "source" / "ä" / "00000001.png").read_bytes())
    return store


def seconds_of(report: str) -> object:
    """Return a report's seconds, the only value that differs from run to run."""
    return json.loads(report)["seconds"]


def test_info(store: Path, tmp_path: Path) -> None:
    facts = json.loads(done("info", store, "--json"))
    files = [path for path in (tmp_path / "source").rglob("*") if path.name.endswith((".png", ".jpg"))]
    assert done("info", store, "--json") == (
        "{\n"
        '  "images": 2,\n'
        '  "patches": 8,\n'
        '  "references": 2,\n'
        f'  "bytes": {sum(path.stat().st_size for path in files)},\n'
        f'  "disk_bytes": {sum(path.stat().st_size for path in store.iterdir())},\n'
        f'  "block_bytes": {sum(-(-path.stat().st_size // 4096) * 4096 for path in files)},\n'
        '  "shards": 2,\n'
        '  "layout": "chunked",\n'
        '  "format_version": 1,\n'
        f'  "store_id": "{facts["store_id"]}",\n'
        '  "generation": 0,\n'
        '  "sizes": {\n'
        '    "8x8": 4,\n'
        '    "40x40": 4\n'
        "  }\n"
        "}\n"
    )


def test_verify_of_a_sound_store(store: Path, tmp_path: Path) -> None:
    assert done("verify", store, "--json") == '{\n  "ok": true,\n  "checked": 12,\n  "findings": []\n}\n'
    against = done("verify", store, "--against", tmp_path / "source", "--json")
    assert against == '{\n  "ok": true,\n  "checked": 24,\n  "findings": []\n}\n'


def test_verify_of_a_damaged_store(damaged: Path) -> None:
    result = run("verify", damaged, "--sample", "100%", "--seed", "7", "--json")
    message = json.loads(result.out)["findings"][0]["message"]
    assert result.out == (
        "{\n"
        '  "ok": false,\n'
        '  "checked": 12,\n'
        '  "findings": [\n'
        "    {\n"
        '      "shard": "shard-00001.lmdb",\n'
        '      "image": "\\u00e4",\n'
        '      "patch": "00000001.png",\n'
        '      "kind": "damaged",\n'
        f'      "message": {json.dumps(message)}\n'
        "    }\n"
        "  ],\n"
        '  "sample": {\n'
        '    "share": 1.0,\n'
        '    "seed": 7\n'
        "  }\n"
        "}\n"
    )


def test_salvage(damaged: Path, tmp_path: Path) -> None:
    run("salvage", damaged, tmp_path / "new.lmdb", "--report", tmp_path / "report.json")
    report = (tmp_path / "report.json").read_text(encoding="utf-8")
    files = [path for path in (tmp_path / "source" / "a").iterdir() if path.name.endswith((".png", ".jpg"))]
    assert report == (
        "{\n"
        '  "images": 1,\n'
        '  "patches": 4,\n'
        f'  "bytes": {sum(path.stat().st_size for path in files)},\n'
        f'  "seconds": {seconds_of(report)},\n'
        '  "lost": [\n'
        "    {\n"
        '      "shard": "shard-00001.lmdb",\n'
        '      "image": "ä",\n'
        '      "reason": "image 1: 00000001.png is damaged"\n'
        "    }\n"
        "  ],\n"
        '  "notes": []\n'
        "}\n"
    )


@pytest.mark.parametrize("to", ["tiles", "tiles.lmdb"])
def test_extract(tmp_path: Path, to: str) -> None:
    photos = write(tmp_path / "photos", {"é.png": encoded(scene(32, 32), "png"), "ü.png": b""})
    options = ("--crop-size", "32", "--step", "32", "--threshold", "8", "--report", tmp_path / "report.json")
    run("extract", *options, photos, tmp_path / to)
    report = (tmp_path / "report.json").read_text(encoding="utf-8")
    facts = json.loads(report)
    assert report == (
        "{\n"
        '  "images": 1,\n'
        '  "patches": 1,\n'
        f'  "bytes": {facts["bytes"]},\n'
        f'  "seconds": {seconds_of(report)},\n'
        '  "skipped": [\n'
        "    {\n"
        '      "photo": "ü.png",\n'
        f'      "reason": {json.dumps(facts["skipped"][0]["reason"])},\n'
        '      "bad": true\n'
        "    }\n"
        "  ],\n"
        '  "present": 0,\n'
        '  "changed": []\n'
        "}\n"
    )


def test_every_summary_is_a_dictionary_of_json_types(damaged: Path, tmp_path: Path) -> None:
    summaries: dict[str, Any] = {
        "info": info(damaged),
        "verify": verify(damaged),
        "compare": compare(damaged, tmp_path / "source"),
        "salvage": salvage(damaged, tmp_path / "new.lmdb"),
        "export": export_store(damaged, tmp_path / "back", images="a"),
        "reindex": reindex(damaged),
    }
    facts = {name: json.loads(json.dumps(summary.as_dict())) for name, summary in summaries.items()}
    assert facts == {name: summary.as_dict() for name, summary in summaries.items()}
    assert facts["verify"]["checked"] == 12
    assert facts["export"] == {
        "images": 1,
        "patches": 4,
        "bytes": facts["salvage"]["bytes"],
        "seconds": facts["export"]["seconds"],
        "refused": [],
    }
    assert facts["reindex"] == {"shards": 2, "images": 2, "patches": 8, "skipped": []}


def test_shards_left_out_of_an_index_are_named(damaged: Path) -> None:
    (damaged / "shard-00001.lmdb").write_bytes(b"")
    (shard,) = reindex(damaged).as_dict()["skipped"]
    assert shard["shard"] == "shard-00001.lmdb"
    assert shard["reason"]


def test_import_as_a_dictionary(tmp_path: Path) -> None:
    folder = write(small_folder(tmp_path / "source", "a"), {"a/notes.txt": b"text", "b/1.jpg": b"no picture"})
    report = import_store([folder], tmp_path / "store.lmdb", skip_bad=True).as_dict()
    assert json.loads(json.dumps(report)) == report
    assert (report["images"], report["patches"], report["shards"]) == (1, 4, 1)
    assert report["skipped"] == [{"path": "a/notes.txt", "reason": "unknown file"}]
    assert [finding["path"] for finding in report["findings"]] == [f"{folder}/b/1.jpg"]
    assert (report["changed"], report["missing_from_source"]) == ([], [])
