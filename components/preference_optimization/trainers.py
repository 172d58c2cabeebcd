"""TRL's trainers, fed with token ids, in batches that depend on seed and epoch alone.

One function a method makes its trainer; what they share is in `Start`. The reference is always the policy that training
started from: the adapters switched off, or a frozen copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from components.preference_optimization.pairs import Pair, paired_rows, unpaired_rows
from components.preference_optimization.payment import Payment
from components.preference_optimization.sampling import GroupSampler, SamplingFromPolicy, positions_from_mask
from components.preference_optimization.settings import PreferenceOptimizationSettings
from components.shared.errors import InputError
from components.shared.hf_training import EpochSampler, lora_config
from components.shared.policy_optimization import EncodedPrompt

__all__ = ["Start", "make_trainer"]

_WHERE = "preference_optimization.batch_size"


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        model: The policy; it is trained.
        reference: A frozen copy of it, for the trainers that do not make one themselves; None with adapters.
        tokenizer: Their tokenizer.
        prompts: Training prompts.
        pairs: Training pairs; empty for the methods that sample.
        payment: What an answer is paid.
        settings: Settings of the run.
        arguments: Keyword arguments that all of TRL's configs take.
    """

    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[EncodedPrompt]
    pairs: list[Pair]
    payment: Payment
    settings: PreferenceOptimizationSettings
    arguments: dict[str, Any]

    @property
    def common(self) -> dict[str, Any]:
        """Keyword arguments that all trainers take."""
        adapters = lora_config(self.settings, task_type="CAUSAL_LM")
        return {"model": self.model, "processing_class": self.tokenizer, "peft_config": adapters}

    @property
    def config(self) -> dict[str, Any]:
        """Keyword arguments that all configs take."""
        steps = {} if self.settings.max_steps is None else {"max_steps": self.settings.max_steps}
        return {**self.arguments, **steps, "beta": self.settings.kl_weight, "disable_dropout": True}

    @property
    def prompt_rows(self) -> Dataset:
        """Rows of the methods that sample; what TRL takes for a prompt's text is its token ids."""
        return Dataset.from_dict({"prompt": [prompt.ids for prompt in self.prompts]})


def make_trainer(start: Start) -> Trainer:
    """A trainer of the settings' method, before its first step.

    Raises:
        InputError: There are fewer examples than one step takes.
    """
    datasets.disable_progress_bars()
    trainer = _MAKERS[start.settings.method](start)
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            model.register_forward_pre_hook(positions_from_mask, with_kwargs=True)
    return trainer


# --- from pairs ------------------------------------------------------------------------------------------------------


class _TokenizedRows:
    """Mix-in: rows are token ids already, in batches of like length."""

    args: Any
    train_dataset: Any

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return EpochSampler(_lengths(self.train_dataset), self.args.per_device_train_batch_size, self.args.seed)


class _DPO(_TokenizedRows, DPOTrainer):
    """`DPOTrainer` on token ids; with the IPO loss, IPO."""


class _KTO(_TokenizedRows, KTOTrainer):
    """`KTOTrainer` on token ids."""


class _MismatchedAnswers(DataCollatorForUnpairedPreference):
    """Gives each prompt the answer of the batch's next one too, by which KTO estimates KL.

    TRL joins them once, in the order of the file; here after the batch is drawn, so that the order may change.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        others = [examples[-1], *examples[:-1]]
        joined = [
            example | {"KL_completion_ids": other["completion_ids"]}
            for example, other in zip(examples, others, strict=True)
        ]
        return super().torch_call(joined)


def _make_dpo(start: Start) -> Trainer:
    loss = "ipo" if start.settings.method == "ipo" else "sigmoid"
    config = DPOConfig(**start.config, loss_type=[loss], max_length=None)
    return _DPO(ref_model=start.reference, args=config, train_dataset=paired_rows(start.pairs), **start.common)


def _make_kto(start: Start) -> Trainer:
    rows = unpaired_rows(start.pairs)
    _require_enough(len(rows), start.settings.batch_size, "answers")
    config = KTOConfig(**start.config, max_length=None, dataloader_drop_last=True)  # a batch of one has no other answer
    return _KTO(
        ref_model=start.reference,
        args=config,
        train_dataset=rows,
        data_collator=_MismatchedAnswers(pad_token_id=int(start.tokenizer.pad_token_id)),  # pyright: ignore
        **start.common,
    )


# --- from the policy's own answers -----------------------------------------------------------------------------------


class _TokenPrompts(SamplingFromPolicy):
    """Mix-in of GRPO and RLOO: prompts are token ids, and stay so."""

    train_dataset: Any
    num_generations: int

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return GroupSampler(
            _lengths(self.train_dataset),
            prompts_per_step=self.args.generation_batch_size // self.num_generations,
            group_size=self.num_generations,
            passes=self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def _sampled(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        size, limit = self.num_generations, self.args.max_completion_length
        return self.grouped_answers(prompt_ids, group_size=size, max_tokens=limit)


class _GRPO(_TokenPrompts, GRPOTrainer):
    """`GRPOTrainer` on token ids."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        return self._sampled(prompt_ids), None


class _RLOO(_TokenPrompts, RLOOTrainer):
    """`RLOOTrainer` on token ids."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        return self._sampled(prompt_ids)


def _make_grouped(start: Start, trainer: type[Trainer], config: type[Any]) -> Trainer:
    settings = start.settings
    _require_enough(len(start.prompts), settings.answers_per_step // settings.group_size, "prompts")
    arguments = config(
        **start.config,
        **_sampling_arguments(settings),
        num_generations=settings.group_size,
        max_completion_length=settings.max_response_tokens,
    )
    return trainer(reward_funcs=start.payment, args=arguments, train_dataset=start.prompt_rows, **start.common)  # pyright: ignore


def _make_grpo(start: Start) -> Trainer:
    return _make_grouped(start, _GRPO, GRPOConfig)


def _make_rloo(start: Start) -> Trainer:
    return _make_grouped(start, _RLOO, RLOOConfig)


def _make_online_dpo(start: Start) -> Trainer:
    from components.preference_optimization.online_dpo import OnlineDPO, OnlineDPOConfig  # experimental in TRL

    settings = start.settings
    config = OnlineDPOConfig(
        **start.config,
        **_sampling_arguments(settings),
        max_new_tokens=settings.max_response_tokens,
        max_length=settings.max_tokens,
    )
    lengths = [len(prompt.ids) for prompt in start.prompts]
    return OnlineDPO(
        lengths,
        ref_model=start.reference,
        reward_funcs=start.payment,
        args=config,
        train_dataset=start.prompt_rows,
        **start.common,
    )


def _sampling_arguments(settings: PreferenceOptimizationSettings) -> dict[str, Any]:
    """What is sampled is the policy that is scored: nothing is cut from its distribution."""
    return {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0}


_MAKERS: dict[str, Callable[[Start], Trainer]] = {
    "dpo": _make_dpo,
    "ipo": _make_dpo,
    "kto": _make_kto,
    "grpo": _make_grpo,
    "rloo": _make_rloo,
    "online_dpo": _make_online_dpo,
}


def _lengths(rows: Dataset) -> list[int]:
    """Tokens of each row's longest sequence."""
    prompts = rows["prompt_ids" if "prompt_ids" in rows.column_names else "prompt"]
    names = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in rows.column_names]
    answers = [max(map(len, row)) for row in zip(*(rows[name] for name in names), strict=True)] or [0] * len(rows)
    return [len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def _require_enough(there: int, needed: int, what: str) -> None:
    if there < needed:
        raise InputError(
            f"a step takes {needed} {what}, there are {there}.", where=_WHERE, hint="Lower it, or give more data."
        )
