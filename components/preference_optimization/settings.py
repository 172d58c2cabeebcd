"""Settings of preference optimisation: the one place for each default, with its reason."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.shared.settings import StrictModel
from components.shared.training_settings import TrainingSettings

__all__ = ["METHOD_NAMES", "Method", "PreferenceOptimizationSettings", "RewardSettings"]

Method = Literal["dpo", "ipo", "kto", "grpo", "rloo", "online_dpo"]

METHOD_NAMES: dict[str, str] = {
    "dpo": "DPO",
    "ipo": "IPO",
    "kto": "KTO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "online_dpo": "online DPO",
}
"""How a person writes each method."""

_OFFLINE = frozenset({"dpo", "ipo", "kto"})

_DEFAULT_BETA: dict[str, float] = {
    "dpo": 0.1,
    "ipo": 1.0,
    "kto": 0.1,
    "grpo": 0.04,
    "rloo": 0.05,
    "online_dpo": 0.1,
}
"""Their reasons are in the description of `PreferenceOptimizationSettings.beta`."""


class RewardSettings(StrictModel):
    """How the reward model's number becomes what an answer is paid, in standard deviations of the reward model.

    The mean and the deviation that the reward model's evaluation measured are always taken out, so that a nat of KL
    costs the same whichever reward model pays.
    """

    clip: float | None = Field(
        default=5.0,
        gt=0,
        description="Largest pay in magnitude, before penalties; None: no clip. 5 deviations only cuts what is broken.",
    )
    missing_eos_penalty: float = Field(
        default=1.0,
        ge=0,
        description="Taken from an answer that hit the length limit: the reward model never learned what half a "
        "sentence is worth.",
    )


class PreferenceOptimizationSettings(TrainingSettings):
    """How a policy learns from preferences without PPO, through TRL's trainers.

    DPO, IPO and KTO learn from the preference pairs; GRPO, RLOO and online DPO sample answers to the training prompts
    and are paid by the reward model. `batch_size` counts pairs (DPO, IPO), answers (KTO, GRPO, RLOO) or prompts (online
    DPO, two answers each).
    """

    method: Method = Field(
        default="dpo",
        description="dpo: Rafailov et al. 2023. ipo: Azar et al. 2023, does not trust the pairs without limit. kto: "
        "Ethayarajh et al. 2024, needs no pairing, each answer is good or bad. grpo: Shao et al. 2024, advantages "
        "within a group of answers. rloo: Ahmadian et al. 2024, a leave-one-out baseline. online_dpo: Guo et al. 2024, "
        "pairs sampled from the policy and ranked by the reward model.",
    )
    beta: float | None = Field(
        default=None,
        gt=0,
        description="How much the reference counts; None takes the method's default. dpo, kto and online_dpo: their "
        "papers'. ipo: TRL divides by length, so that the margin it regresses to is 1 / (2 beta) nats a token; half a "
        "nat is reachable, the 5 nats of TRL's default are not. grpo: Shao et al.'s; TRL's own default is no KL. "
        "rloo: TRL's, in deviations of reward per nat of the sequence's KL.",
    )
    epochs: float = Field(
        default=1.0,
        gt=0,
        description="Passes over the pairs, or over the training prompts. One: a second pass over the same pairs "
        "mostly raises KL.",
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps, in place of `epochs`; runs on into further passes."
    )
    learning_rate: float = Field(
        default=1e-5,
        gt=0,
        description="AdamW's peak step size. 1e-5 suits adapters; full fine-tuning wants a tenth of it (TRL's 1e-6), "
        "tiny models more.",
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises, as in DPO's paper."
    )
    group_size: int = Field(
        default=8,
        ge=2,
        description="Answers to each prompt that are compared with each other (GRPO, RLOO). 8 is TRL's: more make a "
        "better baseline, fewer leave room for more prompts.",
    )
    max_response_tokens: int = Field(
        default=128, ge=1, description="Longest sampled answer, EOS included; in training and in the measurements."
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="Of sampling, in training and in the measurements; never cut to likely tokens (top_k, top_p), so "
        "that what is sampled is the policy whose KL is measured.",
    )
    reward: RewardSettings = RewardSettings()
    save_every_steps: int = Field(default=20, ge=1, description="Optimizer steps between resumable checkpoints.")
    log_every_steps: int = Field(
        default=1, ge=1, description="Optimizer steps between two logged losses; a NaN is noticed at the next."
    )
    evaluate_every_steps: int = Field(
        default=20, ge=1, description="Optimizer steps between two measurements, and the policies kept for evaluation."
    )
    evaluation_prompts: int = Field(
        default=64,
        ge=1,
        description="Training prompts that every measurement answers, the same each time. 64, like PPO's batch, gives "
        "a KL mean that can be followed.",
    )

    @property
    def is_offline(self) -> bool:
        """Whether the method learns from pairs that are there, rather than from answers that it samples."""
        return self.method in _OFFLINE

    @property
    def kl_weight(self) -> float:
        """`beta`, or the method's default."""
        return _DEFAULT_BETA[self.method] if self.beta is None else self.beta

    @property
    def answers_per_step(self) -> int:
        """`batch_size` over all forward passes of an optimizer step."""
        return self.batch_size * self.gradient_accumulation

    @model_validator(mode="after")
    def _groups_are_whole(self) -> PreferenceOptimizationSettings:
        if self.method in ("grpo", "rloo") and self.answers_per_step % self.group_size:
            raise ValueError(
                f"batch_size x gradient_accumulation ({self.answers_per_step}) must be a multiple of group_size "
                f"({self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _kto_compares_within_a_batch(self) -> PreferenceOptimizationSettings:
        if self.method == "kto" and self.batch_size < 2:
            raise ValueError("kto needs a batch_size of 2 or more: it estimates its KL from the batch's other answers")
        return self

    @model_validator(mode="after")
    def _answers_leave_room_for_prompts(self) -> PreferenceOptimizationSettings:
        if self.max_response_tokens >= self.max_tokens:
            raise ValueError(
                f"max_response_tokens ({self.max_response_tokens}) must be below max_tokens ({self.max_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> PreferenceOptimizationSettings:
        if self.lora.dropout:
            raise ValueError(
                "lora.dropout must be 0: it would make policy and reference differ before anything was learned"
            )
        return self
