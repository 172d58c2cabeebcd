"""From raw rewards to the score that PPO is paid: normalise, combine, clip, subtract penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from components.ppo.settings import RewardSettings

__all__ = ["MAIN", "Normaliser", "RewardShaper", "RunningMoments", "ShapedRewards", "combine_ensemble"]

MAIN = "main"
"""Names the stage's reward model among the sources."""

Scale = tuple[float, float]


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


class Normaliser:
    """Puts one source's raw rewards on the scale of standard deviations.

    Attributes:
        moments: Moments of the raw rewards seen; used with `running`.
    """

    def __init__(self, how: str, *, scale: Scale = (0.0, 1.0)) -> None:
        """Takes `normalise` of the settings, and the mean and deviation that the reward model's evaluation measured."""
        self._how = how
        self._scale = scale
        self.moments = RunningMoments()

    def scale(self) -> Scale:
        """Mean to subtract and deviation to divide by, as of now."""
        if self._how == "reward_model":
            return self._scale
        if self._how == "running" and self.moments.count:
            return self.moments.mean, self.moments.std
        return 0.0, 1.0

    def normalise(self, rewards: Tensor) -> Tensor:
        """Takes in raw rewards `(batch,)` and gives them normalised."""
        self.moments.update(rewards)
        mean, std = self.scale()
        return (rewards - mean) / std


@dataclass(frozen=True)
class ShapedRewards:
    """The score of each response, and what it was made of.

    Attributes:
        scores: `(batch,)`, float32, in deviations.
        parts: `(batch,)` each, by the column of the history that reports their mean: `reward/<name>`, raw, of every
            further source; `ensemble_variance`, squared deviations, where there is an ensemble; and
            `safety_override_share`, 1 where the safety reward replaced the others, where there is one.
    """

    scores: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class RewardShaper:
    """Normalises each source by itself, combines them, clips, and subtracts penalties."""

    def __init__(
        self, settings: RewardSettings, *, mean: float, std: float, scales: Mapping[str, Scale] | None = None
    ) -> None:
        """Takes means and standard deviations of raw rewards from the reward models' evaluations.

        Args:
            settings: Reward settings.
            mean: Of the main reward model.
            std: Of the main reward model.
            scales: Mean and standard deviation of further reward models by name; a rule has none.
        """
        self._settings = settings
        self._normalisers = {MAIN: Normaliser(settings.normalise, scale=(mean, std))}
        for source in settings.sources:
            scale = (scales or {}).get(source.name, (0.0, 1.0))
            self._normalisers[source.name] = Normaliser(source.normalise, scale=scale)

    def shape(
        self,
        rewards: Tensor,
        *,
        finished: Sequence[bool],
        lengths: Sequence[int],
        further: Mapping[str, Tensor] | None = None,
        slices: Sequence[str] = (),
    ) -> ShapedRewards:
        """The score of each response.

        Args:
            rewards: `(batch,)`, the main reward model's, raw, float32.
            finished: False where the length limit cut the response.
            lengths: Response tokens.
            further: `(batch,)` each, raw, by name of every further source.
            slices: Slice of each prompt; needed where `safety.slices` names some.
        """
        raw = {MAIN: rewards, **(further or {})}
        normalised = {name: normaliser.normalise(raw[name]) for name, normaliser in self._normalisers.items()}
        parts = {f"reward/{source.name}": raw[source.name] for source in self._settings.sources}
        scores = self._helpfulness(normalised, parts)
        scores = self._unless_unsafe(scores, raw, normalised, slices, parts)
        if self._settings.clip is not None:
            scores = scores.clamp(-self._settings.clip, self._settings.clip)
        cut = torch.tensor([not done for done in finished], dtype=scores.dtype, device=scores.device)
        tokens = torch.tensor(lengths, dtype=scores.dtype, device=scores.device)
        scores = scores - self._settings.missing_eos_penalty * cut - self._settings.length_penalty_per_token * tokens
        return ShapedRewards(scores=scores, parts=parts)

    def state_dict(self) -> dict[str, Any]:
        """The running moments of every source, as JSON values."""
        return {name: vars(normaliser.moments).copy() for name, normaliser in self._normalisers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        for name, normaliser in self._normalisers.items():
            normaliser.moments = RunningMoments(**state[name])

    def _helpfulness(self, normalised: Mapping[str, Tensor], parts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the ensemble and the terms, `(batch,)`."""
        settings = self._settings
        others = [normalised[source.name] for source in settings.sources if source.role == "ensemble"]
        members = torch.stack([normalised[MAIN], *others])
        if others:
            parts["ensemble_variance"] = members.var(dim=0, unbiased=False)
        total = settings.weight * combine_ensemble(members, settings.ensemble, penalty=settings.ensemble_lambda)
        for source in settings.sources:
            if source.role == "term":
                total = total + source.weight * normalised[source.name]
        return total

    def _unless_unsafe(
        self,
        helpfulness: Tensor,
        raw: Mapping[str, Tensor],
        normalised: Mapping[str, Tensor],
        slices: Sequence[str],
        parts: dict[str, Tensor],
    ) -> Tensor:
        """The safety reward where it is below its threshold or the prompt is of a safety slice, else helpfulness.

        Touvron et al. 2023, "Llama 2: open foundation and fine-tuned chat models", section 3.2.3.
        """
        rule = self._settings.safety
        source = next((source for source in self._settings.sources if source.role == "safety"), None)
        if source is None:
            return helpfulness
        level = normalised[source.name] if rule.unit == "normalised" else raw[source.name]
        level = torch.sigmoid(level) if rule.unit == "sigmoid" else level
        unsafe = level < rule.threshold
        if rule.slices:
            unsafe = unsafe | torch.tensor([name in rule.slices for name in slices], device=unsafe.device)
        parts["safety_override_share"] = unsafe.to(helpfulness.dtype)
        return torch.where(unsafe, source.weight * normalised[source.name], helpfulness)


def combine_ensemble(members: Tensor, mode: str, *, penalty: float = 0.0) -> Tensor:
    """What an ensemble of rewards says as one.

    Coste et al. 2023, "Reward model ensembles help mitigate overoptimization", section 3: mean, worst-case and
    uncertainty-weighted optimisation.

    Args:
        members: `(members, batch)`, on one scale.
        mode: `mean`, `min` or `mean_minus_variance`.
        penalty: Their lambda: what a unit of variance among members (population variance) costs.

    Returns:
        `(batch,)`.
    """
    if mode == "min":
        return members.amin(dim=0)
    mean = members.mean(dim=0)
    return mean - penalty * members.var(dim=0, unbiased=False) if mode == "mean_minus_variance" else mean
