"""Errors of PPO training."""

from __future__ import annotations

from components.shared.errors import PlumblineError

__all__ = ["CheckpointMismatchError", "NotFiniteError", "RewardRuleError"]


class NotFiniteError(PlumblineError):
    """A number of the training became NaN or infinite: whatever would follow is not the training asked for."""


class CheckpointMismatchError(PlumblineError):
    """A resume checkpoint was made with other settings or inputs."""


class RewardRuleError(PlumblineError):
    """A rule reward failed, or gave something else than one finite number a response."""
