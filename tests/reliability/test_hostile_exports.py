"""Hostile names: an export writes only below DST, reports each image that it refuses, and writes all other images."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlas_store.converters.exporting import ExportNames, Folding, export_store
from dlas_store.images.decode import Size
from dlas_store.sources.base import Center, Image, Layout
from dlas_store.sources.centers import read_centers
from dlas_store.storage.commit import Commit, PlannedShard, plan_commit, write_shard
from dlas_store.storage.shard_writer import ShardWriter
from tests.conftest import Runs
from tests.support.file_trees import read

NO_FOLDING = Folding(case=False, form=False, end=False)

PARTS = (
    *(
        "..",
        ".",
        "",
        "...",
        " ",
        "a",
        "b",
        "A",
        "a.",
        "a ",
        "é",
        "e\u0301",
        "É",
        "\u1e9e",
        "x" * 255,
        "x" * 256,
        "é" * 128,
    ),
    *("CON", "nul.txt", "com1", "AUX", "C:", "C:evil", "~", "~root", "$HOME", "-rf", "*", "?", "new\nline", "tab\t"),
    *("\0", "a\0b", "\\", "..\\..\\evil", "\x1b[2J", "\u202eevil", "🎈", "metadata.jsonl", "ref.jpg", "centers.pt"),
    *("REF.JPG", "tree", "lock", "plan.json", "building-0", "outside", "1.jpg", "1.JPG", "dst", "dst.partial"),
)
"""Parts of names: invalid parts, parts with a special meaning somewhere, and parts that some file systems equate."""


def name(rng: random.Random, layout: Layout) -> str:
    """Return a random name of an image in a hostile store."""
    count = rng.choice((1, 1, 1, 2, 3, 4) if layout == "pictures" else (1, 1, 1, 1, 2))
    parts = rng.choices(PARTS, k=count)
    start = rng.choice(("", "", "", "", "/", "../", "../../", "//", "./", "../dst/", "/tmp/"))
    return start + "/".join(parts)


def images(rng: random.Random, layout: Layout) -> list[tuple[Image, dict[str, bytes]]]:
    """Return random images, each with the bytes of its patches by file name."""
    pairs = []
    for number in range(rng.randint(1, 12)):
        count = 1 if layout == "pictures" else rng.randint(1, 4)
        files = [rng.choice(("1.jpg", "2.jpg", "x.png", name(rng, "chunked"))) for _ in range(count)]
        if layout == "chunked" and rng.random() < 0.8:
            files = sorted(set(files))
        image = Image(
            name=name(rng, layout) if rng.random() < 0.8 else f"plain {number}",
            files=tuple(files),
            centers={1: Center(2, 3, 4)} if layout == "chunked" and rng.random() < 0.3 else None,
            has_reference=layout == "chunked" and rng.random() < 0.5,
            extra={"label": number} if rng.random() < 0.3 else {},
        )
        pairs.append((image, {file: rng.randbytes(20) for file in files}))
    return pairs


def write_store(store: Path, layout: Layout, pairs: list[tuple[Image, dict[str, bytes]]]) -> Path:
    """Write a store of images and their patches, without checks of names."""

    def fill(writer: ShardWriter) -> None:
        for image, contents in pairs:
            for file in image.files:
                writer.add_patch(file, contents[file], Size(1, 1))
            writer.end_image(image, b"reference" if image.has_reference else None)

    planned = [PlannedShard(len(pairs), 0, 0, "")]
    with Commit(store, plan_commit(store, layout, planned, base=None), base=None) as commit:
        (header,) = commit.plan.headers()
        commit.add(write_shard(commit.folder, header, fill))
        commit.publish()
    return store


def expected_files(layout: Layout, image: Image, contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return the bytes of an image's exported files, by path."""
    if layout == "pictures":
        return {image.name: contents[image.files[0]]}
    files = {f"{image.name}/{file}": content for file, content in contents.items()}
    return files | ({f"{image.name}/ref.jpg": b"reference"} if image.has_reference else {})


def can_be_written(layout: Layout, image: Image) -> bool:
    """Return whether all names of an image are valid and different file names on Linux."""
    parts = image.name.split("/") if layout == "pictures" else [image.name]
    names = parts if layout == "pictures" else [*parts, *image.files]
    if layout == "chunked" and len({*image.files, "ref.jpg", "centers.pt"}) < len(image.files) + 2:
        return False
    are_names = (part not in ("", ".", "..") and not {"/", "\0"} & set(part) for part in names)
    return all(are_names) and all(len(part.encode()) <= 255 for part in names) and parts[0] != "metadata.jsonl"


@pytest.mark.parametrize("layout", ["chunked", "pictures"])
def test_an_export_writes_below_its_folder_only_and_all_that_it_can(tmp_path: Path, layout: Layout, runs: Runs) -> None:
    for number in runs(small=30, full=1000):
        rng = random.Random(number)
        pairs = images(rng, layout)
        sandbox = tmp_path / str(number)
        (sandbox / "deep").mkdir(parents=True)
        store = write_store(sandbox / "deep" / "s.lmdb", layout, pairs)
        (sandbox / "deep" / "outside").write_bytes(b"as it was")
        before = read(sandbox)
        summary = export_store(store, sandbox / "deep" / "dst", workers=1)
        after = read(sandbox)
        written = {path.removeprefix("deep/dst/"): data for path, data in after.items() if path not in before}
        assert {path: after[path] for path in before} == before
        assert all(path.startswith("deep/dst/") for path in after if path not in before)
        assert sorted(path.name for path in (sandbox / "deep").iterdir() if path.name != "dst") == ["outside", "s.lmdb"]
        lines = written.pop("metadata.jsonl", b"").decode().splitlines()
        refused = [image for image, _ in summary.refused]
        assert summary.images + len(refused) == len(pairs)
        expected: dict[str, bytes] = {}
        labels = set()
        for own_name in {image.name for image, _ in pairs}:
            namesakes = [pair for pair in pairs if pair[0].name == own_name]
            assert 0 <= len(namesakes) - refused.count(own_name) <= 1
            if refused.count(own_name) < len(namesakes):  # the first writable image of the name is in the export
                (image, files), *_ = [pair for pair in namesakes if can_be_written(layout, pair[0])]
                expected |= expected_files(layout, image, files)
                labels.update([image.extra["label"]] if image.extra else [])
        centers = [path for path in written if path.endswith("/centers.pt") and path not in expected]
        assert all(read_centers(written.pop(path)) == {1: (2, 3, 4)} for path in centers)
        assert written == expected
        assert {json.loads(line)["label"] for line in lines} == labels
        for image, _ in pairs:  # an image that conflicts with no other image is not refused
            if image.name.startswith("plain ") and can_be_written(layout, image):
                assert image.name not in refused
        shutil.rmtree(sandbox)


def image(name: str, *files: str) -> Image:
    return Image(name=name, files=files or ("1.jpg",), centers=None, has_reference=False)


def are_refused(names: ExportNames, *images: Image) -> list[bool]:
    return [names.refusal(image) is not None for image in images]


@pytest.mark.parametrize(
    ("folding", "first", "second"),
    [
        (Folding(case=True, form=False, end=False), "Cat", "cAT"),
        (Folding(case=True, form=False, end=False), "STRASSE", "straße"),
        (Folding(case=False, form=True, end=False), "é", "e\u0301"),
        (Folding(case=False, form=False, end=True), "cat", "cat. ."),
        (Folding(case=True, form=True, end=True), "É", "e\u0301."),
    ],
)
def test_of_names_that_a_file_system_takes_for_one_the_first_is_written(
    folding: Folding, first: str, second: str
) -> None:
    assert are_refused(ExportNames("chunked", folding), image(first), image(second)) == [False, True]
    assert are_refused(ExportNames("chunked", NO_FOLDING), image(first), image(second)) == [False, False]
    assert are_refused(ExportNames("pictures", folding), image(f"{first}/1.jpg"), image(f"{second}/2.jpg")) == [
        False,
        True,
    ]
    assert are_refused(ExportNames("chunked", folding), image("x", first, second)) == [True]
    assert are_refused(ExportNames("chunked", NO_FOLDING), image("x", first, second)) == [False]


def test_a_name_that_is_there_twice_or_is_a_folder_of_another_does_not_overwrite_it() -> None:
    names = ExportNames("pictures", NO_FOLDING)
    images = [image("a"), image("a"), image("a/b"), image("c/d"), image("c"), image("c/d/e"), image("c/f")]
    assert are_refused(names, *images) == [False, True, True, False, True, True, False]


def test_a_patch_with_the_name_of_a_file_of_the_layout_is_refused_in_any_case_that_is_the_same() -> None:
    folding = Folding(case=True, form=False, end=False)
    assert are_refused(ExportNames("chunked", folding), image("a", "REF.jpg"), image("b", "Centers.PT")) == [True, True]
    assert are_refused(ExportNames("chunked", NO_FOLDING), image("a", "REF.jpg"), image("b", "ref.jpg")) == [
        False,
        True,
    ]
    assert are_refused(ExportNames("pictures", folding), image("Metadata.JSONL"), image("b")) == [True, False]


def test_the_second_image_of_a_name_replaced_the_first_on_disk(tmp_path: Path) -> None:
    pairs = [(image("a"), {"1.jpg": b"first"}), (image("a"), {"1.jpg": b"second"})]
    summary = export_store(write_store(tmp_path / "s.lmdb", "chunked", pairs), tmp_path / "back", workers=1)
    assert [name for name, _ in summary.refused] == ["a"]
    assert read(tmp_path / "back") == {"a/1.jpg": b"first"}


def test_fields_of_an_image_that_was_refused_were_written_all_the_same(tmp_path: Path) -> None:
    images = [replace(image("../a"), extra={"label": 1}), replace(image("b"), extra={"label": 2})]
    pairs = [(each, {"1.jpg": b"bytes"}) for each in images]
    export_store(write_store(tmp_path / "s.lmdb", "chunked", pairs), tmp_path / "back", workers=1)
    lines = (tmp_path / "back" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"image": "b", "label": 2}]


@pytest.mark.parametrize("bad", ["CON", "nul.txt", "com1.jpg", "a:b", "C:", "a.", "a ", "x\ty", "a*b", "LPT9 .png"])
def test_on_windows_its_own_devices_drives_and_signs_are_no_names(bad: str) -> None:
    assert are_refused(ExportNames("chunked", NO_FOLDING, windows=True), image(bad), image("x", bad)) == [True, True]
    assert are_refused(ExportNames("chunked", NO_FOLDING, windows=False), image(bad), image("x", bad)) == [False, False]


def test_the_file_system_is_asked_what_it_takes_for_the_same(tmp_path: Path) -> None:
    folding = Folding.probe(tmp_path)
    (tmp_path / "a").touch()
    assert folding.case == (tmp_path / "A").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@settings(max_examples=200)
@given(st.text(), st.builds(Folding, st.booleans(), st.booleans(), st.booleans()))
def test_every_name_is_the_same_as_itself(text: str, folding: Folding) -> None:
    assert folding.key(text) == folding.key(text)
    assert NO_FOLDING.key(text) == text
