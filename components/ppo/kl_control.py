"""KL between policy and reference: estimators, and the controllers of its coefficient.

KL is in nats *per sequence*: the sum over a response's tokens of log pi - log pi_ref at the sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.ppo.settings import KLSettings

__all__ = ["KLController", "sequence_k1", "sequence_k3"]


def sequence_k1(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Unbiased estimate of KL(pi || pi_ref) of each sequence; a single one may be negative.

    Only this one can show that sampling and scoring disagree: its mean is then off, where k3 hides it.

    Args:
        log_ratio: `(batch, time)`, log pi - log pi_ref, nats.
        mask: `(batch, time)`.

    Returns:
        `(batch,)`, nats.
    """
    return torch.where(mask, log_ratio, torch.zeros_like(log_ratio)).sum(dim=1)


def sequence_k3(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Schulman's k3 estimate, `exp(-x) - 1 + x` a token: never negative, lower variance near zero. `(batch,)`, nats.

    From "Approximating KL divergence", J. Schulman, 2020.
    """
    per_token = torch.expm1(-log_ratio) + log_ratio
    return torch.where(mask, per_token, torch.zeros_like(per_token)).sum(dim=1)


@dataclass
class KLController:
    """The coefficient of the KL penalty, and how it moves.

    Attributes:
        settings: KL settings.
        coef: The coefficient now; 0 when control is off.
        horizon: Episodes; see `KLSettings.horizon_episodes`.
    """

    settings: KLSettings
    coef: float
    horizon: float

    @classmethod
    def start(cls, settings: KLSettings, *, episodes_per_step: int) -> KLController:
        """The controller at the start of a run."""
        return cls(
            settings=settings,
            coef=0.0 if settings.control == "off" else settings.init_coef,
            horizon=settings.horizon_episodes or episodes_per_step / settings.step_gain,
        )

    def update(self, kl: float, *, episodes: int) -> None:
        """Moves the coefficient after a step (Ziegler et al. 2019, section 2.2).

        `e = clip(kl / target - 1, -0.2, 0.2)`; `coef *= 1 + e * episodes / horizon`.

        Args:
            kl: Mean of `sequence_k1` over the step's episodes, nats.
            episodes: Their number.
        """
        if self.settings.control != "adaptive":
            return
        limit = self.settings.error_clip
        error = min(max(kl / self.settings.target_nats - 1.0, -limit), limit)
        self.coef *= 1.0 + error * episodes / self.horizon

    def exceeds_ceiling(self, kl: float) -> bool:
        """Whether `kl` (nats) is above the hard ceiling."""
        return self.settings.ceiling_nats is not None and kl > self.settings.ceiling_nats
