"""Checks of options that several datasets share."""

from __future__ import annotations

from dlas_store.options import ConfigOptions


def check_lq_size(options: ConfigOptions, *, target_size: int, scale: int, force_multiple: int) -> None:
    """Check that the side of LQ, ``target_size // scale``, is a multiple of ``force_multiple``.

    Raises:
        ConfigError: the side is 0 or no such multiple.
    """
    lq_size = target_size // scale
    if lq_size == 0 or lq_size % force_multiple:
        raise options.error(
            f"target_size // scale must be a multiple of force_multiple, got {target_size} // {scale} = {lq_size} and "
            f"force_multiple {force_multiple}"
        )
