"""How far raters agree, beyond what chance alone would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from components.shared.errors import InputError

__all__ = ["cohen_kappa", "fleiss_kappa", "krippendorff_alpha", "pairwise_agreement"]


def krippendorff_alpha(ratings: Iterable[Iterable[Hashable | None]]) -> float:
    """Krippendorff's alpha for nominal ratings, any number of raters a unit, missing ones allowed.

    alpha = 1 - observed disagreement / disagreement expected by chance (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"). It falls when the compared answers are equally good: report it, judge raters on gold items.

    Args:
        ratings: For each unit (item) the ratings that it got; None stands for a missing one. Units with fewer than
            two ratings do not count.

    Returns:
        1 for perfect agreement, 0 for chance, negative for less.

    Raises:
        InputError: No unit has two ratings, or all ratings are equal (alpha is then undefined).
    """
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0
    for unit in ratings:
        counts = Counter(rating for rating in unit if rating is not None)
        size = counts.total()
        if size < 2:
            continue
        totals.update(counts)
        disagreement += (size * size - sum(count * count for count in counts.values())) / (size - 1)
    n = totals.total()
    if n == 0:
        raise InputError("no unit has two ratings: agreement is unknown.", where="statistics")
    expected = (n * n - sum(count * count for count in totals.values())) / (n - 1)
    if expected == 0.0:
        raise InputError("all ratings are the same: alpha is undefined.", where="statistics")
    return 1.0 - disagreement / expected


def cohen_kappa(ratings_a: Sequence[Hashable], ratings_b: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters who rated the same units (Cohen 1960): (p_o - p_e) / (1 - p_e).

    Raises:
        InputError: Empty, lengths that differ, or both gave one and the same rating throughout (undefined).
    """
    if len(ratings_a) != len(ratings_b):
        raise InputError(f"{len(ratings_a)} ratings against {len(ratings_b)}.", where="statistics")
    n = len(ratings_a)
    if n == 0:
        raise InputError("ratings are empty: agreement is unknown.", where="statistics")
    observed = sum(a == b for a, b in zip(ratings_a, ratings_b, strict=True)) / n
    counts_a, counts_b = Counter(ratings_a), Counter(ratings_b)
    expected = sum(counts_a[label] * counts_b[label] for label in counts_a) / (n * n)
    if expected == 1.0:
        raise InputError("all ratings are the same: kappa is undefined.", where="statistics")
    return (observed - expected) / (1.0 - expected)


def fleiss_kappa(ratings: Iterable[Iterable[Hashable]]) -> float:
    """Fleiss' kappa of units that were rated by any raters, each twice or more often (Fleiss 1971).

    (P - P_e) / (1 - P_e): P is the mean over units of the share of pairs of ratings that agree, P_e that share if
    everybody drew from the pooled answers. Fleiss had the same number of ratings for each unit; with several numbers
    each unit counts once in P, and each rating once in P_e (Gwet 2014, chapter 3).

    Args:
        ratings: For each unit its ratings; units with fewer than two do not count.

    Raises:
        InputError: No unit has two ratings, or all ratings are equal (kappa is then undefined).
    """
    units = [unit for unit in map(list, ratings) if len(unit) >= 2]
    if not units:
        raise InputError("no unit has two ratings: agreement is unknown.", where="statistics")
    totals = Counter(rating for unit in units for rating in unit)
    n = totals.total()
    expected = sum(count * count for count in totals.values()) / (n * n)
    if expected == 1.0:
        raise InputError("all ratings are the same: kappa is undefined.", where="statistics")
    observed = sum(pairwise_agreement(unit) for unit in units) / len(units)
    return (observed - expected) / (1.0 - expected)


def pairwise_agreement(unit: Sequence[Hashable]) -> float:
    """Share of the pairs of ratings of one unit that agree: 1 when all do, 1/3 for two against one.

    Raises:
        InputError: Fewer than two ratings.
    """
    size = len(unit)
    if size < 2:
        raise InputError(f"{size} rating(s) have no pair.", where="statistics")
    return sum(count * (count - 1) for count in Counter(unit).values()) / (size * (size - 1))
