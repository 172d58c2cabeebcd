"""The length-controlled win rate recovers what was put in, and its bounds hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from components.human_eval.length_control import length_controlled_win_rate


def _make_votes(
    rng: np.random.Generator, *, win_rate: float, effect: float, prompts: int, votes: int, ratio: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Outcomes of answers `ratio` times as long, for raters whose log odds rise by `effect` a log length."""
    second = rng.integers(20, 80, prompts)
    first = np.maximum(1, (second * ratio * rng.lognormal(0.0, 0.4, prompts)).astype(int))
    log_odds = np.log(win_rate / (1.0 - win_rate)) + effect * np.log((first + 1) / (second + 1))
    return rng.binomial(votes, 1.0 / (1.0 + np.exp(-log_odds))) / votes, first, second


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize(
    ("win_rate", "effect", "ratio"), [(0.5, 1.5, 1.6), (0.6, 1.0, 1.4), (0.45, 0.8, 2.0), (0.6, 0.0, 1.5)]
)
def test_a_known_length_effect_is_recovered_and_taken_out(
    win_rate: float, effect: float, ratio: float, votes: int
) -> None:
    """Mean over 60 evaluations: neither the win rate at equal length nor the effect is biased."""
    rng, found, raw = np.random.default_rng(0), [], []
    for _ in range(60):
        y, first, second = _make_votes(rng, win_rate=win_rate, effect=effect, prompts=400, votes=votes, ratio=ratio)
        found.append(length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05))
        raw.append(y.mean())
    assert np.mean([one["win_rate"] for one in found]) == pytest.approx(win_rate, abs=0.015)
    assert np.mean([one["length_effect"] for one in found]) == pytest.approx(effect, abs=0.08)
    if effect:
        assert np.mean(raw) > win_rate + 0.03, "the plain win rate takes length for merit"


@pytest.mark.parametrize("votes", [1, 3])
def test_each_bound_fails_in_at_most_five_percent(votes: int) -> None:
    rng, runs, below, above = np.random.default_rng(1), 300, 0, 0
    for _ in range(runs):
        y, first, second = _make_votes(rng, win_rate=0.55, effect=1.0, prompts=200, votes=votes, ratio=1.4)
        found = length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05)
        below += found["lower"] > 0.55
        above += found["upper"] < 0.55
    limit = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert below / runs <= limit
    assert above / runs <= limit


def test_a_win_that_only_length_explains_does_not_pass() -> None:
    """Equal models, one of them 1.6 times as long: the plain win rate is above 0.6."""
    rng, runs, passed = np.random.default_rng(2), 200, 0
    for _ in range(runs):
        y, first, second = _make_votes(rng, win_rate=0.5, effect=1.2, prompts=400, votes=3, ratio=1.6)
        passed += length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05)["lower"] > 0.5
    assert passed / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
