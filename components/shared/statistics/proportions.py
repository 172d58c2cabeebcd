"""Intervals of counts, and of the difference of two counts."""

from __future__ import annotations

from scipy import stats

from components.shared.statistics.checks import check_confidence, check_counts

__all__ = ["binomial_lower", "binomial_upper", "difference_interval_newcombe", "wilson_interval"]


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a proportion of independent trials (Wilson 1927).

    Args:
        successes: Trials that succeeded.
        n: Trials, at least 1.
        confidence: Two-sided coverage.

    Raises:
        InputError: Not whole numbers with 0 <= successes <= n and n >= 1.
    """
    successes, n = check_counts(successes, n)
    result = stats.binomtest(successes, n).proportion_ci(check_confidence(confidence), method="wilson")
    return float(result.low), float(result.high)


def binomial_upper(bad: float, n: float, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a proportion (Clopper and Pearson 1934): 0 bad in 300 gives 0.00994 at 95 %.

    Raises:
        InputError: Not whole numbers with 0 <= bad <= n and n >= 1.
    """
    bad, n = check_counts(bad, n, name="bad")
    check_confidence(confidence)
    return 1.0 if bad == n else float(stats.beta.ppf(confidence, bad + 1, n - bad))


def binomial_lower(bad: float, n: float, confidence: float = 0.95) -> float:
    """One-sided exact lower bound of a proportion (Clopper and Pearson 1934).

    Raises:
        InputError: Not whole numbers with 0 <= bad <= n and n >= 1.
    """
    bad, n = check_counts(bad, n, name="bad")
    check_confidence(confidence)
    return 0.0 if bad == 0 else float(stats.beta.ppf(1.0 - confidence, bad, n - bad + 1))


def difference_interval_newcombe(
    bad_a: float, n_a: float, bad_b: float, n_b: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided interval of `bad_a / n_a - bad_b / n_b` for independent samples (Newcombe 1998, method 10).

    Combines the two Wilson intervals (l, u): lower = d - sqrt((p_a - l_a)^2 + (u_b - p_b)^2), upper mirrored.

    Raises:
        InputError: Counts as in `wilson_interval`.
    """
    lower_a, upper_a = wilson_interval(bad_a, n_a, confidence)
    lower_b, upper_b = wilson_interval(bad_b, n_b, confidence)
    share_a, share_b = bad_a / n_a, bad_b / n_b
    difference = share_a - share_b
    below = ((share_a - lower_a) ** 2 + (upper_b - share_b) ** 2) ** 0.5
    above = ((upper_a - share_a) ** 2 + (share_b - lower_b) ** 2) ** 0.5
    return difference - below, difference + above
