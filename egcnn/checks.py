"""Values that several modules take: their defaults and checks."""

from __future__ import annotations

from collections.abc import Sequence

from egcnn.errors import InputError
from egcnn.machine import free_memory

#: Supported precisions, by Lightning's names.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
#: Overlap of neighbouring windows, as a fraction of their size.
DEFAULT_OVERLAP = 0.5


def check_range(name: str, value: int | tuple[int, ...], least: int, most: int) -> None:
    """Raise InputError, which begins with ``name``, if a count, or any of several, is outside."""
    values = value if isinstance(value, tuple) else (value,)
    if not values or min(values) < least:
        raise InputError(f"{name}: {value}; expected at least {least}")
    if max(values) > most:
        raise InputError(f"{name}: {value}; expected at most {most}")


def check_precision(precision: str) -> None:
    """Raise InputError if ``precision`` is not one of :data:`PRECISIONS`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r}; expected one of {', '.join(PRECISIONS)}")


def check_overlap(overlap: float) -> None:
    """Raise InputError if the overlap of windows is not in [0, 1)."""
    if not 0 <= overlap < 1:
        raise InputError(f"overlap: {overlap}; expected a number from 0 to below 1")


def check_spacing(spacing: Sequence[float]) -> None:
    """Raise InputError if a voxel size is not three positive numbers of at most a kilometre."""
    if len(spacing) != 3 or not all(0 < size <= 1e6 for size in spacing):
        raise InputError(
            f"spacing: {tuple(spacing)}; expected three positive voxel sizes in mm, at most 1e6"
        )


def check_temperature(name: str, tau: float) -> None:
    """Raise InputError, which begins with ``name``, if a temperature is not above 0."""
    if not tau > 0:
        raise InputError(f"{name}: {tau}; expected a temperature above 0")


def check_memory(what: str, needed: float) -> None:
    """Raise InputError, which begins with ``what``, if so many bytes are not free."""
    if not needed <= (room := free_memory()):
        raise InputError(
            f"{what} takes {needed / 1e9:.3g} GB in memory; expected no more than the "
            f"{room / 1e9:.3g} GB that are free"
        )
