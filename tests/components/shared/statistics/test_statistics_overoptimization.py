from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shared.errors import InputError
from components.shared.statistics import fit_gao_curve

DISTANCES = np.linspace(0.5, 6.0, 8)


def _curve(alpha: float, beta: float, d: np.ndarray = DISTANCES) -> np.ndarray:
    return d * (alpha - beta * np.log(d))


def _errors(size: float, n: int = DISTANCES.size) -> np.ndarray:
    return np.full(n, size)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 2.0), st.floats(0.2, 1.0))
def test_a_curve_without_noise_is_found_again_with_its_peak(alpha: float, beta: float) -> None:
    fit = fit_gao_curve(DISTANCES, _curve(alpha, beta), _errors(0.1))
    assert (fit.alpha, fit.beta) == (pytest.approx(alpha), pytest.approx(beta))
    assert fit.peak_d == pytest.approx(math.exp(alpha / beta - 1.0))
    assert fit.peak_value == pytest.approx(beta * fit.peak_d)
    around = _curve(alpha, beta, np.array([fit.peak_d * 0.99, fit.peak_d * 1.01]))
    assert fit.peak_value >= around.max()


def test_best_of_n_has_another_form_and_another_peak() -> None:
    fit = fit_gao_curve(DISTANCES, DISTANCES * (1.2 - 0.15 * DISTANCES), _errors(0.1), form="best_of_n")
    assert fit.peak_d == pytest.approx(1.2 / (2 * 0.15))
    assert fit.peak_value == pytest.approx(1.2**2 / (4 * 0.15))


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_the_interval_covers_the_peak(noise: float) -> None:
    """Peak at d = e. Where beta may be 0 the interval has no upper end, and rightly so."""
    rng, runs, covered = np.random.default_rng(0), 500, 0
    for _ in range(runs):
        fit = fit_gao_curve(DISTANCES, _curve(1.2, 0.6) + rng.normal(0.0, noise, 8), _errors(noise))
        low, high = fit.peak_interval or (None, None)
        covered += (low is None or low <= math.e) and (high is None or high >= math.e)
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)


def test_points_that_scatter_more_than_their_errors_widen_the_interval() -> None:
    scatter = np.array([0.3, -0.3] * 4)
    trusted, doubted = (
        fit_gao_curve(DISTANCES, _curve(1.2, 0.6) + shift, _errors(0.1)) for shift in (0.1 * scatter, scatter)
    )
    assert trusted.misfit is not None
    assert trusted.misfit < 1.0 < (doubted.misfit or 0.0)
    assert trusted.peak_interval is not None
    assert doubted.peak_interval is not None
    widths = [(ends[1] or math.inf) - (ends[0] or 0.0) for ends in (trusted.peak_interval, doubted.peak_interval)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("distances", "gains", "words"),
    [
        ([], [], "0 checkpoints, at least 4"),
        ([1.0, 2.0, 3.0], [0.5, 0.7, 0.8], "3 checkpoints, at least 4"),
        ([1.0, 1.05, 1.1, 1.15], [0.5, 0.5, 0.6, 0.6], "too close together"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.2, 3.6, 5.2], "does not bend down"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.9, 2.7, 3.5], "outside the distances"),
    ],
)
def test_a_degenerate_fit_says_so(distances: list[float], gains: list[float], words: str) -> None:
    fit = fit_gao_curve(distances, gains, [0.001] * len(distances))
    assert words in (fit.reason or "")
    assert fit.as_dict()["peak_kl"] is None or fit.within is False


def test_a_bend_that_is_not_shown_leaves_the_peak_without_an_upper_end() -> None:
    fit = fit_gao_curve(DISTANCES, _curve(1.2, 0.2), _errors(2.0))
    assert fit.peak_interval is not None
    assert fit.peak_interval[1] is None
    assert "not shown" in (fit.reason or "")
    assert fit.as_dict()["peak_kl_ci95"][1] is None


@pytest.mark.parametrize(
    ("distances", "errors"),
    [([0.0, 1.0], [0.1, 0.1]), ([1.0, 2.0], [0.1, 0.0]), ([1.0, 2.0], [0.1]), ([1, np.nan], [1, 1])],
)
def test_input_that_cannot_be_fitted_is_refused(distances: list[float], errors: list[float]) -> None:
    with pytest.raises(InputError):
        fit_gao_curve(distances, [0.5, 0.6], errors)
