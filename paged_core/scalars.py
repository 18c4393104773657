"""Checks of the plain numbers a caller passed. No tensor here: the allocator uses it too, and knows none."""

from __future__ import annotations

from math import isfinite
from operator import index
from typing import SupportsFloat, SupportsIndex


def integer(name: str, value: SupportsIndex, at_least: int | None = None) -> int:
    """`value` as an int; NumPy's and MLX's integers will do. TypeError when it is none, ValueError when too small.

    A bool is refused although Python counts it as an integer: whoever passes one has mistaken a number for a switch.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: expected {_kind(at_least)}, got {value!r}")
    if at_least is not None and number < at_least:
        raise ValueError(f"{name}: expected {_kind(at_least)}, got {number}")
    return number


def positive(name: str, value: SupportsIndex) -> int:
    """`value` as an int of 1 or more."""
    return integer(name, value, at_least=1)


def finite(name: str, value: SupportsFloat) -> float:
    """`value` as a float. TypeError when it is no number, ValueError when it is infinite or NaN."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a finite number, got {value!r}")
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def _kind(at_least: int | None) -> str:
    return {None: "an integer", 1: "a positive integer"}.get(at_least, f"an integer of {at_least} or more")
