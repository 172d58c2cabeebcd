"""Has a measured quantity fallen from its own peak? A sequential detector over checkpoints, paired by prompt.

The highest of K noisy means looks like a peak though nothing fell (winner's curse), and who looks at every checkpoint
looks often. So every checkpoint is compared with every earlier one on the same prompts, and the bounds of all K (K - 1)
/ 2 falls hold together: on a run that never falls, the chance that *any* of them is above 0, at any checkpoint, is at
most alpha.

    fall_ij    = mean over prompts of (x_i - x_j),  i before j
    lower_ij   = (n fall_ij - worst) / (n + 1) - c se_ij
    c          = quantile 1 - alpha of max over (i, j) of (fall*_ij - fall_ij) / se*_ij     whole prompts resampled

`c` is the max-T critical value of Westfall and Young (1993) and Romano and Wolf (2005), here with a studentised
bootstrap (Efron and Tibshirani 1993, section 12.5): it knows how checkpoints are correlated and that rewards are
skewed. A sign-flip null does not: on rewards as measured in the demo (a ceiling, and now and then a failed answer far
below it) it raised a false alarm in half of the runs with 60 prompts. The bounds hold for any run, rising or flat,
because they are of each fall itself; a run that rises first is only further from an alarm.

`worst` is how far the worst answer of the run lies below its checkpoint's mean. A checkpoint that fails on one prompt
in a hundred shows no failure on 60 prompts, and then seems better than a later one, with hardly any spread: the bound
is that of the sample with one more prompt, on which the earlier checkpoint does as badly as any did.

Measured error, power and delay: docs/release_gate.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import InputError
from components.shared.statistics.checks import check_confidence

__all__ = ["FallBound", "detect_falls", "first_alarm"]

_CELLS_AT_ONCE = 4_000_000
_LEAST_VARIANCE = 0.01
"""A bootstrap sample that lost nearly all spread (it missed the one failed answer) counts with this share of it."""


@dataclass(frozen=True)
class FallBound:
    """How far one checkpoint lies below an earlier one, with bounds that hold for all of a run's falls together.

    Attributes:
        peak: Place of the earlier checkpoint (column of the values): the one with the highest lower bound.
        place: Place of the later one.
        value: Mean fall over the prompts; negative where the later one is higher.
        lower: One-sided lower bound.
        upper: One-sided upper bound.
    """

    peak: int
    place: int
    value: float
    lower: float
    upper: float


def detect_falls(values: NDArray, *, alpha: float = 0.05, draws: int = 2000, seed: int = 0) -> list[FallBound]:
    """Each checkpoint's fall from the earlier one that it may have fallen from the most.

    Args:
        values: A row a prompt, a column a checkpoint, in the order of training, shape `(n, K)`.
        alpha: Chance that a run which never falls has any lower bound above 0, over the whole run.
        draws: Bootstrap samples of prompts.
        seed: Of the samples.

    Returns:
        One a checkpoint but the first, in the order of training.

    Raises:
        InputError: Fewer than two checkpoints or prompts, or values that are not finite.
    """
    x = _checked(values)
    check_confidence(alpha, name="alpha")
    pairs = np.array(list(combinations(range(x.shape[1]), 2)))
    differences = x[:, pairs[:, 0]] - x[:, pairs[:, 1]]
    n = x.shape[0]
    means = differences.mean(axis=0)
    errors = differences.std(axis=0, ddof=1) / np.sqrt(n)
    below, above = _critical_values(differences - means, alpha=alpha, draws=draws, seed=seed)
    worst = float((x.mean(axis=0) - x).max())
    lower = (n * means - worst) / (n + 1) - below * errors
    upper = means + above * errors
    found = []
    for place in range(1, x.shape[1]):
        mine = np.flatnonzero(pairs[:, 1] == place)
        best = mine[int(np.argmax(lower[mine]))]
        found.append(FallBound(int(pairs[best, 0]), place, float(means[best]), float(lower[best]), float(upper[best])))
    return found


def first_alarm(falls: list[FallBound], *, margin: float = 0.0) -> FallBound | None:
    """The first checkpoint whose fall is shown to be above `margin`; None if there is none."""
    return next((fall for fall in falls if fall.lower > margin), None)


def _checked(values: NDArray) -> NDArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 2:
        raise InputError(
            f"values have shape {x.shape}: at least two prompts (rows) and two checkpoints (columns) are needed.",
            where="statistics",
        )
    if not np.isfinite(x).all():
        raise InputError("values hold NaN or infinite numbers.", where="statistics")
    return x


def _critical_values(centred: NDArray, *, alpha: float, draws: int, seed: int) -> tuple[float, float]:
    """Quantiles 1 - alpha of the largest and of minus the smallest studentised fall when nothing falls.

    Args:
        centred: Differences minus their mean, shape `(n, pairs)`.
        alpha: Error of each.
        draws: Bootstrap samples.
        seed: Of the samples.
    """
    if draws < 1:
        raise InputError(f"draws is {draws}, at least 1 is needed.", where="statistics")
    n = centred.shape[0]
    centred = centred[:, centred.any(axis=0)]  # a difference that is the same on every prompt has no error
    if centred.shape[1] == 0:
        return 0.0, 0.0
    squares, variance = centred**2, (centred**2).mean(axis=0)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // max(centred.shape))
    largest, smallest = [], []
    for first in range(0, draws, at_once):
        size = min(at_once, draws - first)
        weights = rng.multinomial(n, np.full(n, 1.0 / n), size=size) / n
        means = weights @ centred
        spread = np.maximum(weights @ squares - means**2, _LEAST_VARIANCE * variance)
        studentised = means / np.sqrt(spread / (n - 1))
        largest.append(studentised.max(axis=1))
        smallest.append(studentised.min(axis=1))
    return (
        float(np.quantile(np.concatenate(largest), 1.0 - alpha)),
        float(-np.quantile(np.concatenate(smallest), alpha)),
    )
