"""Slope, Brier score and calibration error: known answers, properties, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shared.errors import InputError
from components.shared.statistics import brier_score, expected_calibration_error, logistic_slope


def _make_judged_differences(n: int = 4000, slope: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.4, 0.8, n)
    return differences, (rng.random(n) < 1 / (1 + np.exp(-slope * differences))).astype(float)


def test_slope_is_recovered_and_agrees_with_maximum_likelihood() -> None:
    differences, labels = _make_judged_differences()
    slope = logistic_slope(differences, labels)
    assert slope == pytest.approx(1.3, abs=0.15)
    assert slope == pytest.approx(float(sm.Logit(labels, differences).fit(disp=0).params[0]), rel=2e-3)


def test_slope_of_equal_differences_is_the_log_odds_with_half_an_observation_on_each_side() -> None:
    assert logistic_slope([1.0] * 4, [1, 1, 1, 0]) == pytest.approx(math.log(3.5 / 1.5))
    assert logistic_slope([2.0] * 4, [1, 1, 1, 0]) == pytest.approx(math.log(3.5 / 1.5) / 2)


def test_chosen_minus_rejected_needs_no_labels() -> None:
    differences, labels = _make_judged_differences(500)
    turned = np.where(labels == 1, differences, -differences)
    assert logistic_slope(turned) == pytest.approx(logistic_slope(differences, labels))


def test_slope_stays_finite_when_every_pair_is_ranked_right() -> None:
    assert 0 < logistic_slope([0.5, 1.0, 2.0]) < 100


def test_slope_of_a_reward_that_ranks_against_people_is_negative() -> None:
    assert logistic_slope([-1.0, -2.0, -1.5, 0.2]) < 0


def test_calibrated_perfect_reward_shows_no_gap_where_a_raw_comparison_does() -> None:
    differences, labels = _make_judged_differences(20000, slope=1.0)
    implied = np.mean(1 / (1 + np.exp(-logistic_slope(differences, labels) * differences)))
    assert np.mean(differences > 0) - labels.mean() > 0.08
    assert implied == pytest.approx(labels.mean(), abs=0.01)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 5), min_size=3, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.floats(0.1, 10),
)
def test_slope_scales_inversely_with_the_reward_and_is_odd(sizes: list[float], signs: list[bool], unit: float) -> None:
    differences = np.array([size if sign else -size for size, sign in zip(sizes, signs, strict=False)])
    slope = logistic_slope(differences)
    assert math.isfinite(slope)
    assert logistic_slope(differences * unit) == pytest.approx(slope / unit, rel=1e-4, abs=1e-6)
    assert logistic_slope(-differences) == pytest.approx(-slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("differences", "labels"),
    [([], None), ([0.0, 0.0], None), ([1.0, float("nan")], None), ([1.0], [1.0, 0.0]), ([1.0], [2.0])],
)
def test_differences_without_a_slope_are_refused(differences: list, labels: list | None) -> None:
    with pytest.raises(InputError):
        logistic_slope(differences, labels)


def test_brier_score_known_answers() -> None:
    assert brier_score([0.5, 0.5], [0, 1]) == 0.25
    assert brier_score([1.0, 0.0], [1, 0]) == 0.0
    assert brier_score([0.8], [0]) == pytest.approx(0.64)


def test_calibration_error_known_answer() -> None:
    error, bins = expected_calibration_error([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1])
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert bins == [
        {"p_mean": pytest.approx(0.1), "rate": 0.5, "n": 2},
        {"p_mean": pytest.approx(0.9), "rate": 1.0, "n": 2},
    ]


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    error, bins = expected_calibration_error([1.0, 0.0], [1, 0], bins=4)
    assert error == 0.0
    assert sum(one["n"] for one in bins) == 2


@pytest.mark.parametrize(("probabilities", "labels"), [([], []), ([1.2], [1]), ([0.5], [0, 1]), ([float("nan")], [1])])
def test_probabilities_that_are_none_are_refused(probabilities: list, labels: list) -> None:
    for function in (brier_score, expected_calibration_error):
        with pytest.raises(InputError):
            function(probabilities, labels)
