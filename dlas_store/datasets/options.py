"""The options that every dataset has, and those of one dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from dlas_store.options import OptionReader

LOADER_KEYS = frozenset(
    {
        "batch_size",
        "device",
        "drop_last",
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


class Options(OptionReader):
    """The options of one dataset; messages name its mode and name."""

    def __init__(self, opt: Mapping[str, Any], *, mode: str) -> None:
        """Take the options as the config has them.

        Args:
            opt: the options of one dataset.
            mode: the dataset's mode, for messages.

        Raises:
            ConfigError: opt is no mapping, or asks for what this version does not have.
        """
        named = isinstance(opt, Mapping) and opt.get("name")
        super().__init__(opt, where=f"{mode} '{opt['name']}'" if named else mode, known=LOADER_KEYS | PASSIVE_KEYS)

    def section(self, key: str) -> Options:
        """Return the options under a key, to be read and warned of on their own."""
        return Options(self.mapping(key), mode=f"{self._where}: {key}")

    def warn_of_unknown(self) -> None:
        """Warn of each option that was never asked for, naming the nearest that was."""
        for key, hint in self.unknown():
            message = f"{self._where}: option '{key}' is not known and has no effect{hint}"
            warnings.warn(message, OptionWarning, stacklevel=3)


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
