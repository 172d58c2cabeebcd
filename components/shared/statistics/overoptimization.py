"""Gao's curve: what people (or a gold reward) gain as a policy moves away from its start.

Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization", with d = sqrt(KL):

    reinforcement learning   R(d) = d (alpha - beta ln d),   peak at d = exp(alpha / beta - 1), its height beta d
    best of n                R(d) = d (alpha - beta d),      peak at d = alpha / (2 beta)

Both are linear in alpha and beta, so the fit is weighted least squares without intercept: R(0) = 0 by definition. The
peak depends on alpha / beta alone; its interval is Fieller's (1954), and has no end where beta is not shown to be above
0, that is where the curve is not shown to bend down at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import InputError
from components.shared.statistics.checks import check_vector

__all__ = ["MIN_POINTS", "Form", "GaoFit", "fit_gao_curve"]

Form = Literal["rl", "best_of_n"]

MIN_POINTS = 4
"""Two parameters, and two points more to see whether they describe anything."""

_LEAST_SPREAD = 1.25
_Z95 = 1.959964
_LARGEST_EXPONENT = 50.0


@dataclass(frozen=True)
class GaoFit:
    """A fitted curve; alpha, beta and all else are None where `reason` says why there is none.

    Attributes:
        form: `rl` or `best_of_n`.
        n: Points.
        alpha: Gain per unit of d at the start.
        beta: How fast it is used up.
        peak_d: Where the curve is highest, in sqrt(nats); None where it does not bend down.
        peak_value: Its height there.
        peak_interval: Fieller's 95 % interval of `peak_d`; an end is None where it is not bounded.
        misfit: Chi-square per degree of freedom; the errors are widened by its root where it is above 1.
        within: The peak lies within the distances that were measured; beyond them it is a guess.
        reason: What must be known of the fit, or why there is none; None if all is well.
    """

    form: Form
    n: int
    alpha: float | None = None
    beta: float | None = None
    peak_d: float | None = None
    peak_value: float | None = None
    peak_interval: tuple[float | None, float | None] | None = None
    misfit: float | None = None
    within: bool | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form; the peak as KL (nats) too."""
        return {
            "form": self.form,
            "n": self.n,
            "alpha": self.alpha,
            "beta": self.beta,
            "peak_d": self.peak_d,
            "peak_value": self.peak_value,
            "peak_kl": _square(self.peak_d),
            "peak_kl_ci95": [_square(end) for end in self.peak_interval] if self.peak_interval else None,
            "misfit": self.misfit,
            "within": self.within,
            "reason": self.reason,
        }


def fit_gao_curve(
    distances: Sequence[float], gains: Sequence[float], errors: Sequence[float], *, form: Form = "rl"
) -> GaoFit:
    """Fits the curve.

    Args:
        distances: sqrt(KL) of each checkpoint, above 0.
        gains: Gain over the start (log odds of the human win rate, or a gold reward), shape as `distances`.
        errors: Standard error of each gain, above 0.
        form: `rl` for policies that were trained, `best_of_n` for sampled ones.

    Raises:
        InputError: Not finite, lengths that differ, or distances or errors that are not above 0.
    """
    d, y, se = _checked(distances, gains, errors)
    if d.size < MIN_POINTS:
        return GaoFit(form, d.size, reason=f"{d.size} checkpoints, at least {MIN_POINTS} are needed to fit the curve.")
    if d.max() < _LEAST_SPREAD * d.min():
        return GaoFit(form, d.size, reason="The checkpoints lie too close together in KL to fit a curve.")
    basis = np.column_stack([d, -d * (np.log(d) if form == "rl" else d)])
    weighted = basis / se[:, None]
    parameters, _, rank, _ = np.linalg.lstsq(weighted, y / se, rcond=None)
    if rank < 2:
        return GaoFit(form, d.size, reason="The checkpoints do not determine the curve.")
    misfit = float(np.sum(((y - basis @ parameters) / se) ** 2) / (d.size - 2))
    covariance = np.linalg.inv(weighted.T @ weighted) * max(1.0, misfit)
    return _with_peak(form, d, parameters, covariance, misfit)


def _with_peak(form: Form, d: NDArray, parameters: NDArray, covariance: NDArray, misfit: float) -> GaoFit:
    alpha, beta = (float(value) for value in parameters)
    plain = GaoFit(form, d.size, alpha, beta, misfit=misfit)
    if beta <= 0.0:
        return replace(plain, reason="The curve does not bend down: it has no peak.")
    peak = _place(form, alpha / beta)
    if peak is None:
        return replace(plain, reason="The curve hardly bends down: its peak is too far away to mean anything.")
    if peak <= 0.0:
        return replace(plain, reason="The gain falls from the start: the curve has no peak above 0.")
    low, high = _fieller(alpha, beta, covariance)
    interval = (None if low is None else _place(form, low), None if high is None else _place(form, high))
    value = peak * (alpha - beta * (math.log(peak) if form == "rl" else peak))
    within = bool(d.min() <= peak <= d.max())
    reason = None
    if interval[1] is None:
        reason = "That the curve bends down is not shown (beta may be 0): the peak has no upper end."
    elif not within:
        reason = "The peak lies outside the distances that were measured: it is extrapolated."
    return replace(plain, peak_d=peak, peak_value=value, peak_interval=interval, within=within, reason=reason)


def _square(d: float | None) -> float | None:
    return None if d is None else d * d


def _place(form: Form, ratio: float) -> float | None:
    """Where the curve peaks, given alpha / beta; None where the number is too large to mean anything."""
    if form == "best_of_n":
        return ratio / 2.0
    return math.exp(ratio - 1.0) if ratio - 1.0 < _LARGEST_EXPONENT else None


def _fieller(alpha: float, beta: float, covariance: NDArray) -> tuple[float | None, float | None]:
    """95 % interval of alpha / beta; where beta may be 0 it has no upper end (and, possibly, no lower one)."""
    z2 = _Z95**2
    a = beta**2 - z2 * float(covariance[1, 1])
    b = alpha * beta - z2 * float(covariance[0, 1])
    c = alpha**2 - z2 * float(covariance[0, 0])
    discriminant = b * b - a * c
    if discriminant < 0.0:
        return None, None
    roots = sorted([(b - math.sqrt(discriminant)) / a, (b + math.sqrt(discriminant)) / a]) if a != 0.0 else []
    if a > 0.0:
        return roots[0], roots[1]
    above = [root for root in roots if root <= alpha / beta]
    return (above[-1] if above else None), None


def _checked(
    distances: Sequence[float], gains: Sequence[float], errors: Sequence[float]
) -> tuple[NDArray, NDArray, NDArray]:
    if not len(distances):
        return np.empty(0), np.empty(0), np.empty(0)
    d, y, se = check_vector(distances, "distances"), check_vector(gains, "gains"), check_vector(errors, "errors")
    if not d.size == y.size == se.size:
        raise InputError(f"{d.size} distances, {y.size} gains and {se.size} errors.", where="statistics")
    if (d <= 0.0).any() or (se <= 0.0).any():
        raise InputError("distances and errors must be above 0.", where="statistics")
    return d, y, se
