"""Intervals of means, also when several values share a cluster (votes on a prompt, pairs of a group)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from scipy import stats

from components.shared.errors import InputError
from components.shared.statistics.checks import check_confidence, check_vector

__all__ = ["clustered_bootstrap_interval", "mean_interval"]

_CELLS_AT_ONCE = 4_000_000


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Student interval of the mean of independent values.

    Raises:
        InputError: Fewer than two values, NaN or infinite.
    """
    vector = check_vector(values, "values")
    check_confidence(confidence)
    if vector.size < 2:
        raise InputError("one value has no interval: at least two are needed.", where="statistics")
    half = stats.t.ppf(0.5 + confidence / 2, vector.size - 1) * vector.std(ddof=1) / np.sqrt(vector.size)
    return float(vector.mean() - half), float(vector.mean() + half)


def clustered_bootstrap_interval(
    values: Iterable[float],
    clusters: Iterable[Hashable],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, drawing whole clusters (Davison and Hinkley 1997, section 3.8).

    Values of one cluster are not independent; an interval that ignores it is too narrow. When all values are equal the
    interval has no width: pair it with `wilson_interval` for shares near 0 or 1.

    Args:
        values: Shape `(n,)`.
        clusters: The cluster of each value, shape `(n,)`; at least two distinct ones.
        confidence: Two-sided coverage.
        draws: Bootstrap samples.
        seed: Of the draws.

    Raises:
        InputError: Empty, NaN or infinite values, lengths that differ, fewer than two clusters, or no draws.
    """
    vector = check_vector(values, "values")
    check_confidence(confidence)
    labels = list(clusters)
    if len(labels) != vector.size:
        raise InputError(f"{vector.size} values but {len(labels)} clusters.", where="statistics")
    if draws < 1:
        raise InputError(f"draws is {draws}, at least 1 is needed.", where="statistics")
    index = {label: position for position, label in enumerate(dict.fromkeys(labels))}
    if len(index) < 2:
        raise InputError("one cluster has no interval: at least two are needed.", where="statistics")
    positions = np.fromiter((index[label] for label in labels), dtype=np.int64, count=len(labels))
    sums = np.bincount(positions, weights=vector, minlength=len(index))
    sizes = np.bincount(positions, minlength=len(index)).astype(np.float64)
    means = _resampled_means(sums, sizes, draws=draws, generator=np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, *, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Mean of each bootstrap sample of clusters, shape `(draws,)`; a few at a time to bound the memory."""
    n_clusters = sums.size
    at_once = max(1, _CELLS_AT_ONCE // n_clusters)
    means = np.empty(draws)
    for first in range(0, draws, at_once):
        last = min(draws, first + at_once)
        drawn = generator.integers(n_clusters, size=(last - first, n_clusters))
        means[first:last] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means
