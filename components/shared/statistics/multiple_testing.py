"""Several hypotheses at once pay for being several."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from components.shared.statistics.checks import check_vector

__all__ = ["holm"]


def holm(p_values: Iterable[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given.

    The i-th smallest of m is multiplied by m - i (i from 0), made monotone and cut at 1. Rejecting where the adjusted
    value is below alpha keeps the chance of any false rejection below alpha, whatever the dependence.

    Raises:
        InputError: Empty, NaN, or outside [0, 1].
    """
    p = check_vector(p_values, "p-values", low=0.0, high=1.0)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return [float(value) for value in adjusted]
