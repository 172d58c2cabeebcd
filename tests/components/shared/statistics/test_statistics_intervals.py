"""Intervals of counts and means, and Holm: known answers and the cases that must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from components.shared.errors import InputError
from components.shared.statistics import (
    binomial_lower,
    binomial_upper,
    clustered_bootstrap_interval,
    difference_interval_newcombe,
    holm,
    mean_interval,
    wilson_interval,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 2000))
    return draw(st.integers(0, n)), n


@given(counts())
def test_wilson_agrees_with_statsmodels(count: tuple[int, int]) -> None:
    assert wilson_interval(*count) == pytest.approx(proportion_confint(*count, method="wilson"), abs=1e-9)


@given(counts())
def test_exact_bounds_agree_with_clopper_and_pearson(count: tuple[int, int]) -> None:
    low, high = proportion_confint(*count, alpha=0.10, method="beta")
    assert binomial_upper(*count, confidence=0.95) == pytest.approx(high if count[0] < count[1] else 1.0)
    assert binomial_lower(*count, confidence=0.95) == pytest.approx(low if count[0] else 0.0)


def test_three_hundred_answers_without_a_bad_one_are_needed_for_a_limit_of_one_percent() -> None:
    assert binomial_upper(0, 300) < 0.01 < binomial_upper(0, 298)
    assert binomial_upper(1, 473) < 0.01 < binomial_upper(1, 472)


def test_newcombe_reproduces_the_published_example() -> None:
    # Newcombe 1998, table II, example a: 56/70 against 48/80, method 10.
    assert difference_interval_newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(counts(), counts())
def test_newcombe_agrees_with_statsmodels(a: tuple[int, int], b: tuple[int, int]) -> None:
    expected = confint_proportions_2indep(*a, *b, method="newcomb", compare="diff")
    assert difference_interval_newcombe(*a, *b) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (1.5, 5), (float("nan"), 5), (1, float("inf"))]
)
def test_counts_that_are_no_counts_are_refused(successes: float, n: float) -> None:
    for function in (wilson_interval, binomial_upper, binomial_lower):
        with pytest.raises(InputError):
            function(successes, n)
    with pytest.raises(InputError):
        difference_interval_newcombe(successes, n, 1, 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels_and_keeps_the_order(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]), abs=1e-12)


def test_holm_known_answer() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("p_values", [[], [float("nan")], [1.1], [-0.1]])
def test_p_values_that_are_none_are_refused(p_values: list[float]) -> None:
    with pytest.raises(InputError, match="p-values"):
        holm(p_values)


def test_student_interval_known_answer() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((3 - 1.96324, 3 + 1.96324), abs=1e-4)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(InputError, match="at least two"):
        mean_interval([1.0])


def test_clustered_interval_is_wider_than_one_that_ignores_the_clusters() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(60), 5)
    clusters = np.repeat(np.arange(60), 5)
    low, high = clustered_bootstrap_interval(values, clusters)
    naive_low, naive_high = clustered_bootstrap_interval(values, range(300))
    assert (high - low) / (naive_high - naive_low) == pytest.approx(5**0.5, rel=0.1)


def test_clustered_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for run in range(200):
        rates = rng.beta(2, 2, 80)
        sizes = rng.integers(1, 6, 80)
        clusters = np.repeat(np.arange(80), sizes)
        values = (rng.random(clusters.size) < rates[clusters]).astype(float)
        low, high = clustered_bootstrap_interval(values, clusters, draws=400, seed=run)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.99


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 5)), min_size=2, max_size=40), st.integers(0, 3))
def test_clustered_interval_is_reproducible_and_ordered(rows: list[tuple[float, int]], seed: int) -> None:
    values, clusters = zip(*rows, strict=True)
    if len(set(clusters)) < 2:
        return
    first = clustered_bootstrap_interval(values, clusters, draws=100, seed=seed)
    assert first == clustered_bootstrap_interval(values, clusters, draws=100, seed=seed)
    assert min(values) - 1e-9 <= first[0] <= first[1] <= max(values) + 1e-9


def test_clusters_may_be_text_and_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = [0.0, 1.0, 1.0, 0.5], ["a", "b", "b", "c"]
    whole = clustered_bootstrap_interval(values, clusters, draws=50)
    monkeypatch.setattr("components.shared.statistics.resampling._CELLS_AT_ONCE", 7)
    assert clustered_bootstrap_interval(values, clusters, draws=50) == whole


@pytest.mark.parametrize(
    ("values", "clusters", "match"),
    [
        ([], [], "empty"),
        ([1.0, 2.0], [1], "clusters"),
        ([1.0, 2.0], [1, 1], "one cluster"),
        ([1.0, float("nan")], [1, 2], "nan"),
    ],
)
def test_values_that_cannot_be_resampled_are_refused(values: list, clusters: list, match: str) -> None:
    with pytest.raises(InputError, match=match):
        clustered_bootstrap_interval(values, clusters)
