"""How a reward difference speaks about people's choices: slope, Brier score, calibration error."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, softmax

from components.shared.errors import InputError
from components.shared.statistics.checks import check_vector

__all__ = ["brier_score", "expected_calibration_error", "logistic_slope"]


def logistic_slope(differences: Iterable[float], labels: Iterable[float] | None = None) -> float:
    """Slope a of P(label = 1) = sigmoid(a * difference), without intercept.

    An intercept would let the order of the two answers matter. The fit is the maximum of the likelihood times Jeffreys'
    prior (Firth 1993; Heinze and Schemper 2002): its bias vanishes with n, and it stays finite where plain maximum
    likelihood runs to infinity because every difference has the sign of its label.

    Args:
        differences: Reward differences, shape `(n,)`; chosen minus rejected when `labels` is absent.
        labels: 1 where the first answer was preferred, 0 where the second was, 0.5 for a tie; absent: all 1.

    Returns:
        The slope, per unit of reward. Negative: the reward ranks against the people.

    Raises:
        InputError: Empty, NaN, infinite, labels outside [0, 1], lengths that differ, or all differences 0.
    """
    x = check_vector(differences, "differences")
    y = np.ones_like(x) if labels is None else check_vector(labels, "labels", low=0.0, high=1.0)
    if x.size != y.size:
        raise InputError(f"{x.size} differences but {y.size} labels.", where="statistics")
    x, y = x[x != 0.0], y[x != 0.0]
    if x.size == 0:
        raise InputError("all reward differences are 0: they have no slope.", where="statistics")
    scale = float(np.abs(x).max())
    x = x / scale
    bound = 1.0
    while _penalised_score(bound, x, y) > 0.0 or _penalised_score(-bound, x, y) < 0.0:
        bound *= 2.0
    return float(brentq(_penalised_score, -bound, bound, args=(x, y), xtol=1e-10)) / scale  # pyright: ignore


def _penalised_score(slope: float, x: NDArray, y: NDArray) -> float:
    """Derivative of the log posterior: sum of x (y - p + h (1/2 - p)), h = w x^2 / sum(w x^2), w = p (1 - p)."""
    z = slope * x
    p = expit(z)
    log_weight = -np.abs(z) - 2.0 * np.log1p(np.exp(-np.abs(z)))
    leverage = softmax(log_weight + 2.0 * np.log(np.abs(x)))
    return float(np.sum(x * (y - p + leverage * (0.5 - p))))


def brier_score(probabilities: Iterable[float], labels: Iterable[float]) -> float:
    """Mean squared difference of probability and label (Brier 1950); 0.25 for a constant 0.5.

    Raises:
        InputError: Empty, NaN, outside [0, 1], or lengths that differ.
    """
    p, y = _paired(probabilities, labels)
    return float(np.mean((p - y) ** 2))


def expected_calibration_error(
    probabilities: Iterable[float], labels: Iterable[float], bins: int = 10
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over equal-width bins (Naeini et al. 2015).

    Args:
        probabilities: Of label 1, in [0, 1].
        labels: In [0, 1].
        bins: Number of bins.

    Returns:
        The mean over observations of |mean probability - rate| of their bin, and the bins that hold anything, each
        `{"p_mean", "rate", "n"}`.

    Raises:
        InputError: Empty, NaN, outside [0, 1], lengths that differ, or no bins.
    """
    p, y = _paired(probabilities, labels)
    if bins < 1:
        raise InputError(f"bins is {bins}, at least 1 is needed.", where="statistics")
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    found = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        found.append({"p_mean": float(p[inside].mean()), "rate": float(y[inside].mean()), "n": int(inside.sum())})
    error = sum(one["n"] * abs(one["p_mean"] - one["rate"]) for one in found) / p.size
    return float(error), found


def _paired(probabilities: Iterable[float], labels: Iterable[float]) -> tuple[NDArray, NDArray]:
    p = check_vector(probabilities, "probabilities", low=0.0, high=1.0)
    y = check_vector(labels, "labels", low=0.0, high=1.0)
    if p.size != y.size:
        raise InputError(f"{p.size} probabilities but {y.size} labels.", where="statistics")
    return p, y
