"""Settings of supervised fine-tuning. Defaults suit a base model of 0.5 to 7 billion parameters on one GPU."""

from __future__ import annotations

from pydantic import Field

from components.shared.training_settings import JointTrainingSettings

__all__ = ["SFTSettings"]


class SFTSettings(JointTrainingSettings):
    """How the policy learns to imitate the demonstrations."""

    epochs: float = Field(
        default=2.0,
        gt=0,
        description="Passes over the demonstrations. One to three: held-out loss turns early, yet a little overfitting "
        "does no harm to what is optimised afterwards (Ouyang et al. 2022 trained 16).",
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        description="AdamW's peak step size. 1e-4 to 2e-4 for adapters, 1e-5 to 2e-5 for full fine-tuning.",
    )
    packing: bool = Field(
        default=False,
        description="Put several demonstrations in one row of max_tokens; they do not attend to each other. Saves "
        "padding when lengths vary much; grouping by length, always on, saves most of it.",
    )
    completion_only_loss: bool = Field(
        default=True, description="Learn the answers only. False: learn to write the prompts too."
    )
    evaluate_each_epoch: bool = Field(
        default=True, description="Held-out loss after each epoch, for the curve; it is always measured at the end."
    )
