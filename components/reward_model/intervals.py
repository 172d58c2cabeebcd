"""Intervals of shares that pairs of one prompt do not make too narrow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from components.shared.statistics import clustered_bootstrap_interval, wilson_interval

__all__ = ["clustered_interval", "share_interval", "share_lower_bound"]


def share_interval(flags: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95) -> list[float] | None:
    """Two-sided interval of a share: the wider, on each side, of Wilson's and the cluster bootstrap's.

    Wilson's assumes independent pairs, the bootstrap has no width when all pairs agree: together they err on the
    careful side.

    Returns:
        `[lower, upper]`, or None without data.
    """
    if not flags:
        return None
    lower, upper = wilson_interval(sum(flags), len(flags), confidence)
    clustered = clustered_interval(flags, clusters, confidence)
    if clustered is None:
        return [lower, upper]
    return [min(lower, clustered[0]), max(upper, clustered[1])]


def share_lower_bound(flags: Sequence[bool], clusters: Sequence[Hashable]) -> float | None:
    """One-sided 95 % lower bound of a share (the lower end of the two-sided 90 % interval)."""
    interval = share_interval(flags, clusters, confidence=0.90)
    return None if interval is None else interval[0]


def clustered_interval(
    flags: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> list[float] | None:
    """Bootstrap interval of a share that draws whole clusters; None with fewer than two of them."""
    if len(set(clusters)) < 2:
        return None
    return list(clustered_bootstrap_interval([float(flag) for flag in flags], clusters, confidence=confidence))
