"""From the reward model's raw number to the score that PPO is paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.ppo.settings import RewardSettings

__all__ = ["RewardShaper", "RunningMoments"]


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen so far (Chan et al. 1979, parallel update), float64."""

    count: int = 0
    mean: float = 0.0
    sum_of_squares: float = 0.0

    def update(self, values: Tensor) -> None:
        """Takes in a batch of numbers, any shape."""
        batch = values.detach().double().cpu().flatten()
        count, mean = batch.numel(), float(batch.mean())
        total = self.count + count
        shift = mean - self.mean
        self.sum_of_squares += float(((batch - mean) ** 2).sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 1 while all numbers seen were equal."""
        variance = self.sum_of_squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 0 else 1.0


class RewardShaper:
    """Normalises, clips, and subtracts penalties.

    Attributes:
        moments: Moments of the raw rewards seen; used with `normalise: running`.
    """

    def __init__(self, settings: RewardSettings, *, mean: float, std: float) -> None:
        """Takes the mean and standard deviation of raw rewards from the reward model's evaluation."""
        self._settings = settings
        self._mean = mean
        self._std = std
        self.moments = RunningMoments()

    def scale(self) -> tuple[float, float]:
        """Mean to subtract and deviation to divide by, as of now."""
        if self._settings.normalise == "reward_model":
            return self._mean, self._std
        if self._settings.normalise == "running" and self.moments.count:
            return self.moments.mean, self.moments.std
        return 0.0, 1.0

    def shape(self, rewards: Tensor, *, finished: list[bool], lengths: list[int]) -> Tensor:
        """The score of each response.

        Args:
            rewards: `(batch,)`, raw, float32.
            finished: False where the length limit cut the response.
            lengths: Response tokens.

        Returns:
            `(batch,)`, float32.
        """
        self.moments.update(rewards)
        mean, std = self.scale()
        scores = (rewards - mean) / std
        if self._settings.clip is not None:
            scores = scores.clamp(-self._settings.clip, self._settings.clip)
        cut = torch.tensor([not done for done in finished], dtype=scores.dtype, device=scores.device)
        tokens = torch.tensor(lengths, dtype=scores.dtype, device=scores.device)
        return scores - self._settings.missing_eos_penalty * cut - self._settings.length_penalty_per_token * tokens

    def state_dict(self) -> dict[str, Any]:
        """The running moments, as JSON values."""
        return vars(self.moments).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.moments = RunningMoments(**state)
