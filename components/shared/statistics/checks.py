"""Refuses input that cannot carry a statistic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import InputError

__all__ = ["check_confidence", "check_counts", "check_vector"]


def check_vector(values: Iterable[Any], name: str, *, low: float | None = None, high: float | None = None) -> NDArray:
    """Turns `values` into a float64 vector that is not empty, finite, and within `[low, high]`.

    Args:
        values: Numbers; a generator is consumed.
        name: What they are, for the error.
        low: Smallest value allowed.
        high: Largest value allowed.

    Returns:
        Shape `(n,)`, n >= 1.

    Raises:
        InputError: Not numbers, not one-dimensional, empty, NaN, infinite, or out of range.
    """
    raw = values if isinstance(values, np.ndarray) else list(values)
    try:
        vector = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not numbers: {error}.", where="statistics") from error
    if vector.ndim != 1:
        raise InputError(f"{name} have {vector.ndim} dimensions, not one.", where="statistics")
    if vector.size == 0:
        raise InputError(f"{name} are empty: nothing can be estimated.", where="statistics")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise InputError(f"{name}[{bad[0]}] is {vector[bad[0]]}; {bad.size} such value(s).", where="statistics")
    outside = np.zeros(vector.shape, dtype=bool)
    if low is not None:
        outside |= vector < low
    if high is not None:
        outside |= vector > high
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise InputError(f"{name}[{first}] is {vector[first]}, outside [{low}, {high}].", where="statistics")
    return vector


def check_counts(successes: float, n: float, *, name: str = "successes") -> tuple[int, int]:
    """Checks whole numbers with 0 <= successes <= n and n >= 1.

    Raises:
        InputError: They are not.
    """
    for value, label in ((successes, name), (n, "n")):
        if not np.isfinite(value) or value != int(value):
            raise InputError(f"{label} is {value}, not a whole number.", where="statistics")
    if n < 1:
        raise InputError(f"n is {n}: a proportion needs at least one observation.", where="statistics")
    if not 0 <= successes <= n:
        raise InputError(f"{name} is {successes}, outside [0, {n}].", where="statistics")
    return int(successes), int(n)


def check_confidence(value: float, *, name: str = "confidence") -> float:
    """Checks a probability strictly between 0 and 1.

    Raises:
        InputError: It is not.
    """
    if not 0.0 < value < 1.0:
        raise InputError(f"{name} is {value}, not strictly between 0 and 1.", where="statistics")
    return float(value)
