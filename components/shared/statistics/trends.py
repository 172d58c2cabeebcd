"""Does something fall as time goes on?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import kendalltau

from components.shared.statistics.checks import check_vector

__all__ = ["mann_kendall_p"]


def mann_kendall_p(values: Iterable[float]) -> float:
    """One-sided p-value of "these values do not fall in time": the Mann-Kendall trend test (Mann 1945, Kendall 1975).

    Kendall's tau-b between value and place, with its normal approximation corrected for ties: no line is assumed, and
    values may be 0 and 1. Of values that are all equal, or fewer than three, it is 1.

    Args:
        values: In the order of time, shape `(n,)`.

    Raises:
        InputError: Empty, NaN or infinite.
    """
    vector = check_vector(values, "values")
    if vector.size < 3 or np.ptp(vector) == 0.0:
        return 1.0
    result = kendalltau(np.arange(vector.size), vector, alternative="less", method="asymptotic")
    return float(result.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
