"""Reading the options of one dataset, each checked and named in its error."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from dlas_store.errors import ConfigError

LOADER_KEYS = frozenset(
    {
        "batch_size",
        "device",
        "loader",
        "n_threads",
        "n_workers",
        "pin_memory",
        "seed",
        "shuffle_window",
        "start_method",
        "uneven_ranks",
    }
)
"""Options that create_dataloader reads."""

PASSIVE_KEYS = frozenset({"name", "mode", "phase", "scale", "data_type", "use_shuffle", "needs_collate"})
"""What else DL-Art-School keeps beside a dataset's own options."""


class OptionWarning(UserWarning):
    """An option that nothing reads.

    A warning and no error, for DL-Art-School ignores such options and its configs must keep working. No log record
    either: a script that never set logging up still shows it, once, and a filter turns it into an error.
    """


class Options:
    """The options of one dataset, whose null values count as not given, as in DL-Art-School.

    Each method that reads one raises a ConfigError that names dataset, option, what it may be and what it is. An
    option without a default is required.
    """

    def __init__(self, opt: Mapping[str, Any], *, mode: str) -> None:
        """Take the options as the config has them.

        Args:
            opt: the options of one dataset.
            mode: the dataset's mode, for messages.

        Raises:
            ConfigError: opt is no mapping, or asks for what this version does not have.
        """
        self._where = mode
        if not isinstance(opt, Mapping):
            raise self.error(f"options must be a mapping, got {opt!r}")
        if opt.get("name"):
            self._where = f"{mode} '{opt['name']}'"
        self._opt = opt
        self._known = set(LOADER_KEYS | PASSIVE_KEYS)

    def error(self, message: str) -> ConfigError:
        """Return an error whose message starts with the dataset's mode and name."""
        return ConfigError(f"{self._where}: {message}")

    def has(self, key: str) -> bool:
        """Return whether an option is given."""
        self._known.add(key)
        return self._opt.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int | None = None) -> int:
        """Return an integer; True and False are none."""
        allowed = "a positive integer" if minimum == 1 else _at_least("an integer", minimum)
        return int(self._get(key, default, allowed, lambda value: _is_integer(value) and _reaches(value, minimum)))

    def number(
        self, key: str, default: float | None = None, *, minimum: float | None = None, maximum: float | None = None
    ) -> float:
        """Return a number; True and False are none."""
        allowed = (
            _at_least("a number", minimum) if maximum is None else f"a number from {minimum or 0:g} to {maximum:g}"
        )
        return float(
            self._get(key, default, allowed, lambda value: _is_number(value) and _reaches(value, minimum, maximum))
        )

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return True or False; numbers and texts are none."""
        return bool(self._get(key, default, "true or false", lambda value: isinstance(value, bool)))

    def choice(self, key: str, default: str | None, choices: Sequence[str]) -> str:
        """Return one of several texts."""
        return str(self._get(key, default, f"one of {', '.join(choices)}", lambda value: value in choices))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        return str(self._get(key, default, "a text", lambda value: isinstance(value, str)))

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """Return a list of texts; a single text is a list of one."""
        return _as_list(self._get(key, default, "a text or a list of texts", lambda value: _is_each(str, value)))

    def paths(self, key: str) -> list[Path]:
        """Return a list of one path or more, ``~`` expanded; a single path is a list of one."""
        value = self._get(
            key, None, "a path or a list of paths", lambda value: value != [] and _is_each((str, PathLike), value)
        )
        return [Path(path).expanduser() for path in _as_list(value)]

    def integers(self, key: str, default: list[int] | None = None, *, minimum: int) -> list[int]:
        """Return a list of integers; a single one is a list of one."""
        value = self._get(
            key,
            default,
            f"integers of at least {minimum}",
            lambda value: all(_is_integer(item) and item >= minimum for item in _as_list(value)),
        )
        return [int(item) for item in _as_list(value)]

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return a mapping, such as constants by name."""
        value: Mapping[str, Any] = self._get(key, default, "a mapping", lambda value: isinstance(value, Mapping))
        return value

    def section(self, key: str) -> Options:
        """Return the options under a key, to be read and warned of on their own."""
        return Options(self.mapping(key), mode=f"{self._where}: {key}")

    def warn_of_unknown(self) -> None:
        """Warn of each option that was never asked for, naming the nearest that was."""
        for key in sorted(str(key) for key in self._opt if key not in self._known):
            near = difflib.get_close_matches(key, self._known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            message = f"{self._where}: option '{key}' is not known and has no effect{hint}"
            warnings.warn(message, OptionWarning, stacklevel=3)

    def _get(self, key: str, default: Any, allowed: str, accepts: Callable[[Any], bool]) -> Any:
        if not self.has(key):
            if default is None:
                raise self.error(f"{key} is missing; it must be {allowed}")
            return default
        value = self._opt[key]
        if not accepts(value):
            raise self.error(f"{key} must be {allowed}, got {value!r}")
        return value


def check_lq_size(options: Options, *, target_size: int, scale: int, force_multiple: int) -> None:
    """Check that the side of LQ divides by ``force_multiple``.

    Raises:
        ConfigError: it does not, or is 0.
    """
    lq_size = target_size // scale
    if lq_size == 0 or lq_size % force_multiple:
        raise options.error(
            f"target_size // scale must be a multiple of force_multiple, got {target_size} // {scale} = {lq_size} and "
            f"force_multiple {force_multiple}"
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_each(kind: Any, value: object) -> bool:
    return all(isinstance(item, kind) for item in _as_list(value))


def _reaches(value: Any, minimum: float | None, maximum: float | None = None) -> bool:
    return (minimum is None or bool(value >= minimum)) and (maximum is None or bool(value <= maximum))


def _at_least(kind: str, minimum: float | None) -> str:
    return kind if minimum is None else f"{kind} of at least {minimum:g}"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
