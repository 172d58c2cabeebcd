"""Settings that every Hugging Face training stage shares: how long, how fast, in which numbers, how often saved."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from components.shared.settings import StrictModel
from components.shared.trainjob import TrainJobSettings

__all__ = ["JointTrainingSettings", "LoRASettings", "TrainingSettings"]


class LoRASettings(StrictModel):
    """Low-rank adapters (Hu et al. 2021); used when `parameterisation` is `lora`."""

    rank: int = Field(
        default=32, ge=1, description="Rank of each update; 16 to 64 is enough for fine-tuning sets of usual size."
    )
    alpha: float = Field(
        default=64.0, gt=0, description="The update is scaled by alpha / rank; twice the rank is customary."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    target_modules: str | list[str] = Field(
        default="all-linear",
        description="Names of the layers that get adapters. All linear ones: attention alone learns less "
        "(Schulman et al., LoRA Without Regret, 2025).",
    )


class TrainingSettings(StrictModel):
    """Base of the training stages' settings."""

    epochs: float = Field(gt=0, description="Passes over the training split.")
    learning_rate: float = Field(
        gt=0, description="AdamW's peak step size; adapters want about ten times that of full."
    )
    batch_size: int = Field(default=8, ge=1, description="Examples (pairs) in one forward pass.")
    gradient_accumulation: int = Field(default=4, ge=1, description="Forward passes per optimizer step.")
    max_tokens: int = Field(
        default=1024, ge=2, description="Longest prompt and answer together, in tokens, EOS included."
    )
    overlong: Literal["truncate", "error"] = Field(
        default="truncate",
        description="What happens to an answer that does not fit: its end (with EOS) is cut and counted, or the stage "
        "stops. A prompt that leaves no room for an answer always stops it.",
    )
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        default="cosine", description="Shape of its decay."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    parameterisation: Literal["full", "lora"] = Field(
        default="lora",
        description="Train all weights, or adapters that are merged at the end. Adapters let a 7B model train on one "
        "GPU; below some 100M parameters full is faster.",
    )
    lora: LoRASettings = LoRASettings()
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Numbers of the weights in training. auto: on a GPU with bfloat16, frozen weights in bfloat16 and "
        "trained ones in float32 with bfloat16 arithmetic; elsewhere float32. bfloat16 halves the memory of full "
        "fine-tuning and loses small updates.",
    )
    gradient_checkpointing: bool | None = Field(
        default=None, description="Recompute activations to save memory, for about 20 % of time. None: on a GPU only."
    )
    save_every_steps: int = Field(default=200, ge=1, description="Optimizer steps between resumable checkpoints.")
    log_every_steps: int = Field(default=10, ge=1, description="Optimizer steps between two logged losses.")


class JointTrainingSettings(TrainingSettings):
    """Of the stages that several processes may train together.

    They share each batch, so that what is learned differs by rounding only: neither setting is part of what a
    checkpoint must fit.
    """

    batch_size: int = Field(
        default=8, ge=1, description="Examples (pairs) in one forward pass, of all processes together."
    )
    processes: int = Field(
        default=1, ge=1, description="Processes on this machine, one a GPU; they share each batch, which must divide."
    )
    trainjob: TrainJobSettings | None = Field(
        default=None, description="Several machines by Kubeflow Trainer; see docs/trainjob.md. None: in the step's pod."
    )

    @property
    def shaping(self) -> dict[str, Any]:
        """What shapes the training, as JSON values: all but where and by how many processes it is done."""
        return self.model_dump(mode="json", exclude={"processes", "trainjob"})

    @model_validator(mode="after")
    def _batch_is_dealt_evenly(self) -> JointTrainingSettings:
        job = self.trainjob
        processes = self.processes if job is None else job.nodes * job.processes_per_node
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of the {processes} processes that share it; "
                f"gradient_accumulation makes up for a smaller or larger one"
            )
        return self
