"""DL-Art-School configs: the YAML file, and options that are read one by one, checked, and named in errors."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Self

import yaml

from dlas_store.errors import ConfigError

__all__ = ["ConfigOptions", "OptionWarning", "load_config", "load_mapping"]

DATA_KEYS = ("paths", "path", "dataroot", "dataroot_GT", "dataroot_LQ")
"""Options of a dataset that hold a path to its data, or a list of paths."""

LOADER_KEYS = frozenset({
    "batch_size", "device", "dist", "drop_last", "loader", "n_threads", "n_workers", "pin_memory", "seed",
    "shuffle_window", "start_method", "uneven_ranks",
})  # fmt: skip
"""Options that create_dataloader reads."""

PASSIVE_KEYS = frozenset({"name", "mode", "phase", "scale", "data_type", "use_shuffle", "needs_collate"})
"""Options that DL-Art-School keeps beside a dataset's own options; a dataset may ignore them."""


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a config as plain dicts and lists.

    Args:
        path: a YAML file with one mapping a dataset under ``datasets``. A config without ``datasets``, such as a
            config of DL-Art-School that only runs a network, is loaded as well.

    Returns:
        All options in the file. Each dataset gets an option ``phase``, its key up to the first ``_`` (``val`` for
        ``val_set14``). The ending ``_mc`` of a mode is removed, as in DL-Art-School. ``~`` is expanded in the options
        DATA_KEYS, including those of nested datasets.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or its ``datasets`` are no mapping of datasets.
    """
    config = load_mapping(path)
    datasets = config.get("datasets")
    if datasets is None:
        return config
    if not isinstance(datasets, dict):
        raise ConfigError(f"{path}: 'datasets' must be a mapping of datasets (train, val, ...), got {_kind(datasets)}")
    for key, dataset in datasets.items():
        if not isinstance(dataset, dict):
            raise ConfigError(f"{path}: dataset '{key}' must be a mapping of options, got {_kind(dataset)}")
        datasets[key] = {**_with_home_expanded(dataset), "phase": str(key).split("_")[0]}
        if isinstance(dataset.get("mode"), str):
            datasets[key]["mode"] = dataset["mode"].removesuffix("_mc")
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


class OptionWarning(UserWarning):
    """A warning about an option that nothing reads, data that look as if they were not meant, or no full batch.

    An error would break configs of DL-Art-School, which accepts such options. A log record would be invisible in a
    script that does not set up logging. Python shows a warning once in any script, and a warnings filter can turn it
    into an error.
    """


class ConfigOptions:
    """A mapping of options that are read one by one; a null value counts as absent, as in DL-Art-School.

    A method that reads an option raises a ConfigError for a wrong value. The error names the option's owner, the
    option, the allowed values and the value. An option without a default is required.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        *,
        owner: str,
        known: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create a reader of the options in a config.

        Args:
            opt: the options.
            owner: name of the owner of the options, which begins each message.
            known: keys that other code reads.
            labels: key -> name of the option in messages, for options that have a second name.

        Raises:
            ConfigError: opt is no mapping.
        """
        self._owner = owner
        self._opt = opt
        self._known = set(known)
        self._labels = {} if labels is None else labels
        if not isinstance(opt, Mapping):
            raise self.error(f"options must be a mapping, got {opt!r}")

    @classmethod
    def of_dataset(cls, opt: Mapping[str, Any], *, mode: str) -> Self:
        """Return the options of one dataset; messages start with its mode and its option ``name``.

        LOADER_KEYS and PASSIVE_KEYS count as known.

        Args:
            opt: the options as the config has them.
            mode: the dataset's mode.

        Raises:
            ConfigError: opt is no mapping.
        """
        has_name = isinstance(opt, Mapping) and opt.get("name")
        options = cls(opt, owner=f"{mode} '{opt['name']}'" if has_name else mode, known=LOADER_KEYS | PASSIVE_KEYS)
        options._warn_of_misspelt_phase()
        return options

    @property
    def opt(self) -> Mapping[str, Any]:
        """The options as given."""
        return self._opt

    def section(self, key: str) -> Self:
        """Return the options of the dataset under a key; that dataset warns of its unknown options itself."""
        return self.of_dataset(self.mapping(key), mode=f"{self._owner}: {key}")

    def error(self, message: str) -> ConfigError:
        """Return an error whose message starts with the owner of the options."""
        return ConfigError(f"{self._owner}: {message}")

    def has(self, key: str) -> bool:
        """Return whether an option has a value, and count the option as known."""
        self._known.add(key)
        return self._opt.get(key) is not None

    def integer(
        self, key: str, default: int | None = None, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        """Return an integer; True and False are refused."""
        allowed_values = "a positive integer" if minimum == 1 else _at_least("an integer", minimum)
        if maximum is not None:
            allowed_values = f"an integer from {minimum or 0} to {maximum}"
        return int(
            self._get(
                key, default, allowed_values, lambda value: _is_integer(value) and _is_in_range(value, minimum, maximum)
            )
        )

    def number(
        self, key: str, default: float | None = None, *, minimum: float | None = None, maximum: float | None = None
    ) -> float:
        """Return a number; True and False are refused."""
        allowed_values = (
            _at_least("a number", minimum) if maximum is None else f"a number from {minimum or 0:g} to {maximum:g}"
        )
        return float(
            self._get(
                key, default, allowed_values, lambda value: _is_number(value) and _is_in_range(value, minimum, maximum)
            )
        )

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a bool; 1 counts as true and 0 as false, as in DL-Art-School. Other numbers and texts are refused."""
        return bool(self._get(key, default, "true or false", _is_flag))

    def choice(self, key: str, default: str | None, choices: Sequence[str]) -> str:
        """Return a text that is one of ``choices``."""
        value = self._opt.get(key)
        near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) and value not in choices else []
        allowed_values = f"one of {', '.join(choices)}"
        if near:
            raise self.error(f"{self._label(key)} must be {allowed_values}, got {value!r}; did you mean {near[0]!r}?")
        return str(self._get(key, default, allowed_values, lambda value: value in choices))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        return str(self._get(key, default, "a text", lambda value: isinstance(value, str)))

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """Return a list of texts; a single text becomes a list of one."""
        return _as_list(self._get(key, default, "a text or a list of texts", lambda value: _is_each(str, value)))

    def paths(self, key: str) -> list[Path]:
        """Return a list of at least one path, ``~`` expanded; a single path becomes a list of one."""
        return [path for path in self._paths_or_objects((), key) if isinstance(path, Path)]

    def paths_or_objects(self, kind: type[Any], key: str) -> list[Any]:
        """Return a list of at least one path, ``~`` expanded, or object; a single path or object becomes a list of one.

        Args:
            kind: class of the objects that a program may give in place of paths.
            key: name of the option.
        """
        return self._paths_or_objects((kind,), key)

    def integers(self, key: str, default: list[int] | None = None, *, minimum: int) -> list[int]:
        """Return a list of integers; a single integer becomes a list of one."""
        value = self._get(
            key,
            default,
            f"integers of at least {minimum}",
            lambda value: all(_is_integer(item) and item >= minimum for item in _as_list(value)),
        )
        return [int(item) for item in _as_list(value)]

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return a mapping."""
        value: Mapping[str, Any] = self._get(key, default, "a mapping", lambda value: isinstance(value, Mapping))
        return value

    def numbers(self, key: str, default: list[float] | None = None) -> list[float]:
        """Return a list of numbers above 0; a single number becomes a list of one."""
        value = self._get(
            key,
            default,
            "numbers above 0",
            lambda value: all(_is_number(item) and 0 < item < math.inf for item in _as_list(value)),
        )
        return [float(item) for item in _as_list(value)]

    def unknown(self) -> Iterator[tuple[str, str]]:
        """Yield each key that nothing read, with a hint that names the nearest known key ("" if no key is near)."""
        for key in sorted(str(key) for key in self._opt if key not in self._known):
            nearest_keys = difflib.get_close_matches(key, self._known, 1)
            yield key, f"; did you mean '{nearest_keys[0]}'?" if nearest_keys else ""

    def warn(self, message: str, *, stacklevel: int = 2) -> None:
        """Warn, in a message that starts with the owner of the options; ``stacklevel`` is that of warnings.warn."""
        warnings.warn(f"{self._owner}: {message}", OptionWarning, stacklevel=stacklevel + 1)

    def warn_of_unknown(self) -> None:
        """Warn of each key that nothing read, and suggest the nearest known key."""
        for key, hint in self.unknown():
            self.warn(f"option '{key}' is not known and has no effect{hint}", stacklevel=3)

    def _warn_of_misspelt_phase(self) -> None:
        phase = str(self._opt.get("phase"))
        if phase != "train" and difflib.get_close_matches(phase.lower(), ["train"], cutoff=0.8):
            self.warn(f"phase is {phase!r}, which is a phase of validation; did you mean 'train'?", stacklevel=3)

    def _paths_or_objects(self, kinds: tuple[type[Any], ...], key: str) -> list[Any]:
        value = self._get(
            key,
            None,
            "a path or a list of paths",
            lambda value: value != [] and _is_each((str, PathLike, *kinds), value),
        )
        if "" in _as_list(value):
            raise self.error(f"{self._label(key)} names an empty path; Python would take the current folder")
        return [item if isinstance(item, kinds) else Path(item).expanduser() for item in _as_list(value)]

    def _get(self, key: str, default: Any, allowed_values: str, accepts: Callable[[Any], bool]) -> Any:
        if not self.has(key):
            if default is None:
                raise self.error(self._misspelt(key) or f"{self._label(key)} is missing; it must be {allowed_values}")
            return default
        value = self._opt[key]
        if not accepts(value):
            raise self.error(f"{self._label(key)} must be {allowed_values}, got {value!r}")
        return value

    def _misspelt(self, key: str) -> str:
        """Return the message for a missing option that has a name near to it in the mapping, "" without such a name."""
        names = [str(name) for name in self._opt if name not in self._known]
        near = difflib.get_close_matches(key, names, 1, cutoff=0.85)
        return f"option '{near[0]}' is not known; did you mean '{key}', which is missing?" if near else ""

    def _label(self, key: str) -> str:
        return self._labels.get(key, key)


def check_lq_size(options: ConfigOptions, *, target_size: int, scale: int, force_multiple: int) -> None:
    """Check that the side of LQ pictures, ``target_size // scale``, is a multiple of ``force_multiple``.

    Raises:
        ConfigError: the side is 0 or no multiple of ``force_multiple``.
    """
    lq_size = target_size // scale
    if lq_size == 0 or lq_size % force_multiple:
        raise options.error(
            f"target_size // scale must be a multiple of force_multiple, got {target_size} // {scale} = {lq_size} and "
            f"force_multiple {force_multiple}"
        )


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


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool) or (_is_integer(value) and value in {0, 1})


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_each(kind: Any, value: object) -> bool:
    return all(isinstance(item, kind) for item in _as_list(value))


def _is_in_range(value: Any, minimum: float | None, maximum: float | None = None) -> bool:
    return (minimum is None or bool(value >= minimum)) and (maximum is None or bool(value <= maximum))


def _at_least(kind: str, minimum: float | None) -> str:
    return kind if minimum is None else f"{kind} of at least {minimum:g}"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
