"""Summaries of stores by info."""

from __future__ import annotations

from pathlib import Path

from dlas_store.maintenance.info import info
from dlas_store.storage.index import INDEX_FILE
from tests.support.sample_data import noise, png
from tests.support.small_stores import (
    append,
    make_store,
    shards_of,
)


class TestInfo:
    def test_counts_and_sizes_are_those_of_the_files(self, folder: Path, pristine: Path) -> None:
        summary = info(pristine)
        files = [*folder.glob("*/*.png"), *folder.glob("*/ref.jpg")]
        assert (summary.images, summary.patches, summary.references, summary.shards) == (3, 12, 3, 3)
        assert summary.bytes == sum(path.stat().st_size for path in files)
        assert summary.disk_bytes == sum(path.stat().st_size for path in pristine.iterdir())
        assert summary.sizes == {"8x8": 6, "40x40": 6}
        assert (summary.layout, summary.format_version, summary.generation) == ("chunked", 1, 0)
        assert len(bytes.fromhex(summary.store_id)) == 16

    def test_widths_come_before_heights_and_the_frequent_first(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        for name, height, width in [("a", 3, 9), ("b", 5, 7), ("c", 5, 7)]:
            (tmp_path / "source" / f"{name}.png").write_bytes(png(noise(height, width)))
        summary = info(make_store(tmp_path / "source", tmp_path / "store.lmdb", shard_size=1 << 20))
        assert list(summary.sizes.items()) == [("7x5", 2), ("9x3", 1)]
        assert (summary.layout, summary.references) == ("pictures", 0)

    def test_the_index_file_and_a_single_shard_can_be_given(self, pristine: Path) -> None:
        assert info(pristine / INDEX_FILE) == info(pristine)
        shard = shards_of(pristine)[0]
        single = info(shard)
        assert (single.images, single.patches, single.shards) == (1, 4, 1)
        assert single.disk_bytes == shard.stat().st_size
        assert single.store_id == info(pristine).store_id

    def test_an_append_is_counted(self, folder: Path, tmp_path: Path) -> None:
        store = make_store(folder, tmp_path / "store.lmdb", images="a")
        append(folder, store)
        summary = info(store)
        assert (summary.images, summary.generation, summary.shards) == (3, 1, 3)
