"""The fall detector's error, power and delay are measured, not believed."""

from __future__ import annotations

import numpy as np
import pytest
from fall_runs import CHECKPOINTS, NOISE, make_run, measure
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shared.errors import InputError
from components.shared.statistics import detect_falls, first_alarm

ALPHA = 0.05
RUNS = 300
LIMIT = ALPHA + 3 * (ALPHA * (1 - ALPHA) / RUNS) ** 0.5


@pytest.mark.parametrize("prompts", [60, 400])
@pytest.mark.parametrize("noise", NOISE)
def test_flat_runs_raise_an_alarm_at_any_checkpoint_in_at_most_five_percent(noise: str, prompts: int) -> None:
    assert measure(NOISE[noise], prompts, runs=RUNS).any_alarm <= LIMIT


@pytest.mark.parametrize("noise", NOISE)
def test_runs_that_rise_and_then_stay_raise_no_more(noise: str) -> None:
    assert measure(NOISE[noise], 60, runs=RUNS, rise=0.5).any_alarm <= LIMIT


@pytest.mark.parametrize(
    ("noise", "prompts", "fall", "at_least"),
    [
        ("normal, correlation 0.2", 60, 0.5, 0.6),
        ("normal, correlation 0.2", 200, 0.2, 0.4),
        ("normal, correlation 0.2", 400, 0.2, 0.8),
        ("failures 1 to 8 %", 60, 0.5, 0.65),
        ("failures 1 to 8 %", 200, 0.2, 0.75),
        ("failures 1 to 8 %", 400, 0.1, 0.75),
    ],
)
def test_a_fall_is_shown_at_the_candidate_with_the_power_that_the_docs_state(
    noise: str, prompts: int, fall: float, at_least: float
) -> None:
    assert measure(NOISE[noise], prompts, runs=100, fall=fall).candidate >= at_least


def test_a_large_fall_is_shown_at_the_first_checkpoint_after_the_peak() -> None:
    assert measure(NOISE["normal, correlation 0.2"], 200, runs=100, fall=0.5).delay == 1.0


def test_choosing_the_highest_of_the_checkpoints_without_paying_would_raise_many_false_alarms() -> None:
    """What the detector corrects: a plain 95 % bound of the fall from the highest mean."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(300):
        run = make_run(rng, NOISE["normal, correlation 0.2"], 200)
        falls = run[:, run.mean(axis=0).argmax()] - run[:, -1]
        alarms += falls.mean() > 1.645 * falls.std(ddof=1) / np.sqrt(200)
    assert alarms / 300 > 3 * ALPHA


def test_a_failure_that_nobody_saw_is_allowed_for() -> None:
    """Checkpoint 0 fails on 1 prompt in 60, so that it shows none in 36 % of runs; all true means are equal."""
    rng, alarms = np.random.default_rng(4), 0
    for number in range(200):
        failed = rng.random(60) < 1 / 60
        first = 2.0 / 60 - 2.0 * failed + rng.normal(0.0, 0.03, 60)
        rest = rng.normal(0.0, 0.03, (60, 2)) - 2.0 * (rng.random((60, 2)) < 0.01) + 0.02
        alarms += first_alarm(detect_falls(np.column_stack([first, rest]), draws=300, seed=number)) is not None
    assert alarms / 200 <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 200) ** 0.5


def test_the_peak_is_the_checkpoint_that_the_candidate_fell_from_the_most() -> None:
    falls = detect_falls(make_run(np.random.default_rng(0), NOISE["failures 5 %"], 200, fall=0.6, rise=1.0))
    assert [fall.place for fall in falls] == list(range(1, CHECKPOINTS))
    assert falls[-1].peak == 4
    assert falls[-1].value == pytest.approx(0.6, abs=0.1)
    assert falls[-1].lower < falls[-1].value < falls[-1].upper
    alarm = first_alarm(falls)
    assert alarm is not None
    assert alarm.place == 5
    assert first_alarm(falls, margin=0.9) is None


def test_a_fall_that_is_the_same_on_every_prompt_is_known_exactly() -> None:
    falls = detect_falls(np.column_stack([np.full(60, 1.0), np.full(60, 0.5)]))
    assert falls[0].value == 0.5
    assert falls[0].upper == 0.5
    assert falls[0].lower == pytest.approx(0.5 * 60 / 61)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-100.0, 100.0), st.floats(0.1, 10.0))
def test_bounds_follow_the_unit_and_not_the_origin(seed: int, shift: float, scale: float) -> None:
    run = make_run(np.random.default_rng(seed), NOISE["normal, correlation 0.2"], 30)
    plain, moved = (detect_falls(values, draws=100) for values in (run, shift + scale * run))
    for one, other in zip(plain, moved, strict=True):
        assert other.lower == pytest.approx(scale * one.lower, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "values", [np.zeros((1, 3)), np.zeros((60, 1)), np.zeros(60), np.full((60, 2), np.nan), np.full((60, 2), np.inf)]
)
def test_values_that_cannot_carry_a_bound_are_refused(values: np.ndarray) -> None:
    with pytest.raises(InputError, match="values"):
        detect_falls(values)


def test_no_draws_are_refused() -> None:
    with pytest.raises(InputError, match="draws"):
        detect_falls(np.random.default_rng(0).normal(size=(60, 2)), draws=0)
