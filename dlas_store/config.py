"""Read a DL-Art-School YAML config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dlas_store.errors import ConfigError

DATA_KEYS = ("paths", "path", "dataroot", "dataroot_GT", "dataroot_LQ")
"""Options of a dataset whose value is a path to its data, or a list of paths."""


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a config as plain dicts and lists.

    Args:
        path: a YAML file with one mapping a dataset under ``datasets``.

    Returns:
        All options in the file. Each dataset gets a ``phase``, its key up to the first ``_`` (``val`` for
        ``val_set14``). ``~`` is expanded in the values of DATA_KEYS, also in a dataset within a dataset.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or has no datasets.
    """
    config = load_mapping(path)
    datasets = config.get("datasets")
    if not isinstance(datasets, dict) or not datasets:
        raise ConfigError(f"{path}: 'datasets' must be a mapping of datasets (train, val, ...), got {_kind(datasets)}")
    for key, dataset in datasets.items():
        if not isinstance(dataset, dict):
            raise ConfigError(f"{path}: dataset '{key}' must be a mapping of options, got {_kind(dataset)}")
        datasets[key] = {**_with_home_expanded(dataset), "phase": str(key).split("_")[0]}
    return config


def load_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options as plain dicts and lists.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is no mapping.
    """
    config = _parse(Path(path))
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must be a mapping of options, got {_kind(config)}")
    return config


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _with_home_expanded(dataset: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(dataset)
    for key, value in dataset.items():
        if isinstance(value, dict):
            options[key] = _with_home_expanded(value)
        elif key in DATA_KEYS:
            options[key] = [_expand(item) for item in value] if isinstance(value, list) else _expand(value)
    return options


def _expand(value: Any) -> Any:
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"
