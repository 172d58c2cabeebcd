"""Bounds that stay valid under peeking: their error is measured, not believed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shared.errors import InputError
from components.shared.statistics import betting_confidence_sequence, betting_p_value

ALPHA = 0.05
RUNS = 1000

outcome_lists = st.lists(st.sampled_from([0.0, 1 / 3, 0.5, 2 / 3, 1.0]), min_size=1, max_size=60)


def _make_outcomes(
    rng: np.random.Generator, *, mean: float = 0.5, votes: int = 3, prompts: int = 300, concentration: float = 3.0
) -> np.ndarray:
    """One outcome a prompt: the mean of votes that share the prompt's own preference rate."""
    rates = rng.beta(mean * concentration, (1 - mean) * concentration, prompts)
    return rng.binomial(votes, rates) / votes


def _share_declared_better(*, mean: float, votes: int, prompts: int, runs: int = RUNS) -> float:
    rng = np.random.default_rng(20)
    hits = sum(
        betting_p_value(_make_outcomes(rng, mean=mean, votes=votes, prompts=prompts)) <= ALPHA for _ in range(runs)
    )
    return hits / runs


@pytest.mark.parametrize("votes", [1, 3, 5])
def test_equal_models_pass_at_most_five_percent_when_looking_after_every_prompt(votes: int) -> None:
    simulation_error = 3 * (ALPHA * (1 - ALPHA) / RUNS) ** 0.5
    assert _share_declared_better(mean=0.5, votes=votes, prompts=400) <= ALPHA + simulation_error


def test_votes_fed_one_by_one_break_the_guarantee_that_outcomes_of_prompts_keep() -> None:
    rng = np.random.default_rng(21)
    hits = 0
    for _ in range(300):
        rates = rng.beta(0.5, 0.5, 200)
        votes = (rng.random((200, 5)) < rates[:, None]).astype(float).ravel()
        hits += betting_p_value(votes) <= ALPHA
    assert hits / 300 > 2 * ALPHA


def test_a_clearly_better_model_is_found_at_the_planned_number_of_prompts() -> None:
    assert _share_declared_better(mean=0.60, votes=3, prompts=300, runs=200) >= 0.9
    assert _share_declared_better(mean=0.65, votes=1, prompts=300, runs=200) >= 0.9


@pytest.mark.parametrize(
    ("mean", "votes", "prompts", "at_least"),
    [(0.55, 3, 400, 0.65), (0.57, 3, 400, 0.88), (0.60, 1, 400, 0.85), (0.60, 3, 200, 0.88), (0.65, 3, 100, 0.88)],
)
def test_the_power_at_planned_numbers_of_prompts_is_what_the_docs_state(
    mean: float, votes: int, prompts: int, at_least: float
) -> None:
    assert _share_declared_better(mean=mean, votes=votes, prompts=prompts, runs=200) >= at_least


@pytest.mark.parametrize("mean", [0.05, 0.37, 0.62, 0.97])
def test_each_bound_covers_the_mean_over_the_whole_path(mean: float) -> None:
    rng = np.random.default_rng(22)
    runs, missed_below, missed_above = 400, 0, 0
    for _ in range(runs):
        outcomes = rng.binomial(1, mean, 150)
        missed_below += betting_p_value(outcomes, mean) <= ALPHA
        missed_above += betting_p_value(1 - outcomes, 1 - mean) <= ALPHA
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    assert missed_below / runs <= limit
    assert missed_above / runs <= limit


def test_one_win_moves_the_bound_by_what_the_bet_pays() -> None:
    # Ten stakes of mean fraction 1/4 against a claim m pay 1 + (1 / m - 1) / 4 on a win: 20 is reached at m = 1 / 77.
    bounds = betting_confidence_sequence([1.0], alpha=0.05)
    assert bounds.lower == pytest.approx(0.012)
    assert bounds.upper == 1.0


def test_p_value_of_one_win_against_a_half_is_known() -> None:
    assert betting_p_value([1.0], 0.5) == pytest.approx(1 / 1.25)
    assert betting_p_value([0.0], 0.5) == 1.0


@settings(max_examples=40, deadline=None)
@given(outcome_lists)
def test_swapping_the_roles_mirrors_the_bounds(outcomes: list[float]) -> None:
    bounds = betting_confidence_sequence(outcomes)
    mirrored = betting_confidence_sequence([1.0 - value for value in outcomes])
    assert mirrored.lower == pytest.approx(1.0 - bounds.upper, abs=0.0011)
    assert mirrored.upper == pytest.approx(1.0 - bounds.lower, abs=0.0011)


@settings(max_examples=40, deadline=None)
@given(outcome_lists)
def test_paths_only_tighten_and_end_within_the_bounds(outcomes: list[float]) -> None:
    bounds = betting_confidence_sequence(outcomes)
    assert len(bounds.lower_path) == len(bounds.upper_path) == len(outcomes)
    assert bounds.lower_path == sorted(bounds.lower_path)
    assert bounds.upper_path == sorted(bounds.upper_path, reverse=True)
    assert bounds.lower <= bounds.lower_path[-1]
    assert bounds.upper_path[-1] <= bounds.upper
    assert 0.0 <= bounds.lower <= 1.0
    assert 0.0 <= bounds.upper <= 1.0


@settings(max_examples=40, deadline=None)
@given(outcome_lists, st.randoms(use_true_random=False))
def test_bounds_hold_the_mean_and_do_not_depend_on_the_order(outcomes: list[float], random: Random) -> None:
    bounds = betting_confidence_sequence(outcomes)
    assert bounds.lower <= np.mean(outcomes) + 1e-9
    assert np.mean(outcomes) <= bounds.upper + 1e-9
    shuffled = random.sample(outcomes, len(outcomes))
    again = betting_confidence_sequence(shuffled)
    assert (again.lower, again.upper) == pytest.approx((bounds.lower, bounds.upper), abs=0.0011)


@settings(max_examples=40, deadline=None)
@given(outcome_lists)
def test_the_bound_and_the_p_value_decide_alike(outcomes: list[float]) -> None:
    bounds = betting_confidence_sequence(outcomes, alpha=ALPHA)
    assert (betting_p_value(outcomes, 0.5) <= ALPHA) == (bounds.lower_path[-1] >= 0.5 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(outcome_lists)
def test_a_stricter_level_never_gives_a_tighter_bound(outcomes: list[float]) -> None:
    loose, strict = (betting_confidence_sequence(outcomes, alpha=alpha) for alpha in (0.1, 0.01))
    assert strict.lower <= loose.lower
    assert strict.upper >= loose.upper


def test_ties_alone_decide_nothing() -> None:
    bounds = betting_confidence_sequence([0.5] * 500)
    assert bounds.lower < 0.5 < bounds.upper


def test_thousands_of_equal_outcomes_stay_numerically_safe() -> None:
    bounds = betting_confidence_sequence([1.0] * 2000)
    assert bounds.lower == pytest.approx(0.995, abs=0.004)
    assert bounds.upper == 1.0


@pytest.mark.parametrize("outcomes", [[], [0.5, float("nan")], [float("inf")], [1.2], [-0.1], ["won"], [[0.5]]])
def test_outcomes_that_cannot_carry_a_bound_are_refused(outcomes: list) -> None:
    with pytest.raises(InputError, match="outcomes"):
        betting_confidence_sequence(outcomes)
    with pytest.raises(InputError, match="outcomes"):
        betting_p_value(outcomes)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan"), -1.0])
def test_a_level_outside_zero_and_one_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        betting_confidence_sequence([0.5], alpha=alpha)
