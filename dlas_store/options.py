"""Reading options from a mapping, each checked and named in its error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from dlas_store.errors import ConfigError


class OptionReader:
    """Options of something, whose null values count as not given, as in DL-Art-School.

    Each method that reads one raises a ConfigError that says whose option, which, what it may be and what it is. An
    option without a default is required.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        *,
        where: str,
        known: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Take the options as the config has them.

        Args:
            opt: the options.
            where: whose they are, for messages.
            known: options that something else reads.
            labels: what messages call an option that goes by another name as well.

        Raises:
            ConfigError: opt is no mapping.
        """
        self._where = where
        self._opt = opt
        self._known = set(known)
        self._labels = {} if labels is None else labels
        if not isinstance(opt, Mapping):
            raise self.error(f"options must be a mapping, got {opt!r}")

    def error(self, message: str) -> ConfigError:
        """Return an error whose message starts with whose options they are."""
        return ConfigError(f"{self._where}: {message}")

    def has(self, key: str) -> bool:
        """Return whether an option is given."""
        self._known.add(key)
        return self._opt.get(key) is not None

    def integer(
        self, key: str, default: int | None = None, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        """Return an integer; True and False are none."""
        allowed = "a positive integer" if minimum == 1 else _at_least("an integer", minimum)
        if maximum is not None:
            allowed = f"an integer from {minimum or 0} to {maximum}"
        return int(
            self._get(key, default, allowed, lambda value: _is_integer(value) and _reaches(value, minimum, maximum))
        )

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

    def numbers(self, key: str, default: list[float] | None = None) -> list[float]:
        """Return a list of numbers above 0; a single one is a list of one."""
        value = self._get(
            key,
            default,
            "numbers above 0",
            lambda value: all(_is_number(item) and 0 < item < math.inf for item in _as_list(value)),
        )
        return [float(item) for item in _as_list(value)]

    def unknown(self) -> Iterator[tuple[str, str]]:
        """Yield each option that was never asked for, with a question for the nearest that was, "" without one."""
        for key in sorted(str(key) for key in self._opt if key not in self._known):
            near = difflib.get_close_matches(key, self._known, 1)
            yield key, f"; did you mean '{near[0]}'?" if near else ""

    def _get(self, key: str, default: Any, allowed: str, accepts: Callable[[Any], bool]) -> Any:
        if not self.has(key):
            if default is None:
                raise self.error(f"{self._label(key)} is missing; it must be {allowed}")
            return default
        value = self._opt[key]
        if not accepts(value):
            raise self.error(f"{self._label(key)} must be {allowed}, got {value!r}")
        return value

    def _label(self, key: str) -> str:
        return self._labels.get(key, key)


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
