"""Configs: the YAML is read as promised, and the error about a wrong option names the option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlas_store.cli.read import describe_batches
from dlas_store.config import ConfigOptions, load_config
from dlas_store.datasets import OptionWarning
from dlas_store.errors import ConfigError


def write_config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yml"
    path.write_text(text)
    return path


def test_phase_is_the_key_up_to_the_first_underscore(tmp_path: Path) -> None:
    path = write_config(tmp_path, "name: run\ndatasets: {train: {mode: a}, val_set_14: {mode: b, phase: train}}")
    config = load_config(path)
    assert config["name"] == "run"
    assert {key: opt["phase"] for key, opt in config["datasets"].items()} == {"train": "train", "val_set_14": "val"}


def test_home_is_expanded_wherever_a_dataset_names_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    path = write_config(
        tmp_path,
        """
        datasets:
          train:
            paths: [~/a, /b]
            path: ~/c
            dataroot: ~/d
            dataroot_GT: ~/e
            dataroot_LQ: [~/f]
            name: ~/stays
            inner: {paths: ~/g}
        """,
    )
    train = load_config(path)["datasets"]["train"]
    assert train == {
        "paths": ["/home/someone/a", "/b"],
        "path": "/home/someone/c",
        "dataroot": "/home/someone/d",
        "dataroot_GT": "/home/someone/e",
        "dataroot_LQ": ["/home/someone/f"],
        "name": "~/stays",
        "inner": {"paths": "/home/someone/g"},
        "phase": "train",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets:\n  train: {a: 1\n  val: 2\n", r"train\.yml, line 3: not valid YAML"),
        ("a: \x07", r"train\.yml: not valid YAML"),
        ("datasets: !!python/object/apply:os.getcwd []", r"line 1: not valid YAML"),
        ("- a", "must be a mapping of options, got list"),
        ("datasets: [a]", "'datasets' must be a mapping .* got list"),
        ("datasets: {train: 5}", "dataset 'train' must be a mapping of options, got int 5"),
    ],
)
def test_a_config_that_is_none_says_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, text))


@pytest.mark.parametrize("text", ["name: run\nnetworks: {generator: {}}", "datasets:", "datasets: {}"])
def test_a_config_without_datasets_is_loaded_and_the_read_command_says_so(tmp_path: Path, text: str) -> None:
    path = write_config(tmp_path, text)
    assert not load_config(path).get("datasets")
    with pytest.raises(ConfigError, match=r"train\.yml: has no datasets to read"):
        list(describe_batches(path))


def test_the_ending_mc_of_a_mode_is_removed_as_in_dl_art_school(tmp_path: Path) -> None:
    path = write_config(tmp_path, "datasets: {train: {mode: imagefolder_mc}, val: {paths: a}}")
    datasets = load_config(path)["datasets"]
    assert datasets == {"train": {"mode": "imagefolder", "phase": "train"}, "val": {"paths": "a", "phase": "val"}}


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yml: cannot be read \(No such file"):
        load_config(tmp_path / "absent.yml")


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("integer", "abc", "key must be an integer of at least 0, got 'abc'"),
        ("integer", True, "key must be an integer of at least 0, got True"),
        ("integer", 2.0, "got 2.0"),
        ("integer", -1, "got -1"),
        ("number", "1e-4", "key must be a number of at least 0, got '1e-4'"),
        ("number", float("nan"), "got nan"),
        ("number", -0.5, "got -0.5"),
        ("integers", [1, -1], r"key must be integers of at least 0, got \[1, -1\]"),
        ("integers", [True], r"got \[True\]"),
        ("integers", {"a": 1}, "got {'a': 1}"),
    ],
)
def test_a_number_of_the_wrong_kind_or_range_is_refused(method: str, value: Any, message: str) -> None:
    options = ConfigOptions.of_dataset({"key": value}, mode="a_mode")
    with pytest.raises(ConfigError, match=rf"^a_mode: .*{message}$"):
        getattr(options, method)("key", minimum=0)


@pytest.mark.parametrize(
    ("method", "value"),
    [("flag", 2), ("flag", 1.0), ("flag", "true"), ("texts", 5), ("texts", ["a", None]), ("paths", []), ("paths", 5)],
)
def test_a_value_of_the_wrong_kind_is_refused(method: str, value: Any) -> None:
    options = ConfigOptions.of_dataset({"key": value, "name": "div2k"}, mode="a_mode")
    with pytest.raises(ConfigError, match=r"^a_mode 'div2k': key must be "):
        getattr(options, method)("key")


def test_a_required_option_is_missed_by_name_and_null_is_not_given() -> None:
    options = ConfigOptions.of_dataset({"key": None}, mode="a_mode")
    assert options.integer("key", 5, minimum=1) == 5
    with pytest.raises(ConfigError, match="a_mode: key is missing; it must be a positive integer"):
        options.integer("key", minimum=1)


def test_an_option_of_1_is_true_and_of_0_is_false() -> None:
    options = ConfigOptions.of_dataset({"need_ref": 1, "strict": 0}, mode="a_mode")
    assert options.flag("need_ref", False) is True
    assert options.flag("strict", True) is False


def test_one_value_is_a_list_of_one() -> None:
    options = ConfigOptions.of_dataset({"weights": 3, "names": "noise", "paths": Path("a")}, mode="a_mode")
    assert options.integers("weights", minimum=0) == [3]
    assert options.texts("names") == ["noise"]
    assert options.paths("paths") == [Path("a")]


def test_an_unknown_option_is_warned_of_with_the_nearest_known_one() -> None:
    opt = {"targt_size": 1, "name": "a", "mode": "b", "phase": "train", "n_workers": 1, "batch_size": 1, "key": 1}
    options = ConfigOptions.of_dataset(opt, mode="a_mode")
    options.has("target_size")
    options.has("key")
    with pytest.warns(OptionWarning) as caught:
        options.warn_of_unknown()
    assert [str(warning.message) for warning in caught] == [
        "a_mode 'a': option 'targt_size' is not known and has no effect; did you mean 'target_size'?"
    ]


def test_options_of_the_loader_are_known_to_every_dataset() -> None:
    ConfigOptions.of_dataset(
        {"loader": "workers", "device": "cpu", "n_threads": 2, "shuffle_window": 100}, mode="a_mode"
    ).warn_of_unknown()


def test_reading_a_config_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, dlas_store.config; print(sorted({'torch', 'cv2'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_misspelt_option_is_named_before_it_is_missing() -> None:
    options = ConfigOptions({"targetsize": 64, "dataroot_LQ": "x"}, owner="a_mode")
    with pytest.raises(ConfigError, match="option 'targetsize' is not known; did you mean 'target_size', which is mis"):
        options.integer("target_size")
    with pytest.raises(ConfigError, match="dataroot_GT is missing"):
        options.paths("dataroot_GT")


def test_a_wrong_choice_brings_the_nearest() -> None:
    options = ConfigOptions({"loader": "thread"}, owner="a_mode")
    with pytest.raises(ConfigError, match="one of threads, workers, got 'thread'; did you mean 'threads'"):
        options.choice("loader", "threads", ("threads", "workers"))


@pytest.mark.parametrize("phase", ["Train", "trian", "TRAIN", "train "])
def test_a_misspelt_phase_is_a_warning(phase: str) -> None:
    with pytest.warns(OptionWarning, match=f"phase is '{phase}', which is a phase of validation; did you mean 'train'"):
        ConfigOptions.of_dataset({"phase": phase}, mode="pixels")


@pytest.mark.parametrize("phase", ["train", "val", "test", "validation", None])
def test_a_phase_that_is_one_is_no_warning(phase: str | None) -> None:
    ConfigOptions.of_dataset({"phase": phase}, mode="pixels")


@pytest.mark.parametrize("paths", ["", [""], ["/data", ""]])
def test_an_empty_path_is_not_the_current_folder(paths: Any) -> None:
    options = ConfigOptions.of_dataset({"paths": paths}, mode="pixels")
    with pytest.raises(ConfigError, match="paths names an empty path"):
        options.paths("paths")
