"""Reward shaping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.ppo.reward_shaping import RewardShaper, RunningMoments
from components.ppo.settings import RewardSettings


def _make_shaper(**settings: object) -> RewardShaper:
    return RewardShaper(RewardSettings.model_validate(settings), mean=10.0, std=2.0)


def _shape(shaper: RewardShaper, rewards: list[float], *, finished: bool = True, tokens: int = 4) -> list[float]:
    count = len(rewards)
    return shaper.shape(torch.tensor(rewards), finished=[finished] * count, lengths=[tokens] * count).scores.tolist()


@given(batches=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=8))
def test_running_moments_are_those_of_all_numbers(batches: list[list[float]]) -> None:
    moments = RunningMoments()

    for batch in batches:
        moments.update(torch.tensor(batch, dtype=torch.float64))

    everything = np.concatenate([np.asarray(batch) for batch in batches])
    assert moments.mean == pytest.approx(everything.mean(), abs=1e-6)
    assert moments.sum_of_squares == pytest.approx(everything.var() * everything.size, rel=1e-6, abs=1e-6)


def test_normalise_by_the_reward_models_scale() -> None:
    assert _shape(_make_shaper(), [10.0, 14.0, 8.0]) == [0.0, 2.0, -1.0]


def test_normalise_by_running_moments() -> None:
    assert _shape(_make_shaper(normalise="running"), [1.0, 3.0]) == [-1.0, 1.0]


def test_raw_rewards_stay_raw() -> None:
    assert _shape(_make_shaper(normalise="none", clip=None), [100.0]) == [100.0]


def test_score_is_clipped_before_penalties() -> None:
    shaper = _make_shaper(clip=3.0, missing_eos_penalty=1.0, length_penalty_per_token=0.25)

    assert _shape(shaper, [1000.0], finished=False, tokens=4) == [3.0 - 1.0 - 1.0]
    assert _shape(shaper, [1000.0], finished=True, tokens=4) == [3.0 - 1.0]


def test_shaper_goes_on_from_its_state() -> None:
    shaper, other = _make_shaper(normalise="running"), _make_shaper(normalise="running")
    _shape(shaper, [1.0, 5.0, 2.0])
    other.load_state_dict(shaper.state_dict())

    assert _shape(shaper, [4.0]) == _shape(other, [4.0])
