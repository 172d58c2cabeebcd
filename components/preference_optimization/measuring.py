"""What the policy has become: answers to a fixed set of training prompts, measured now and then while it learns.

The prompts are drawn once from the run's seed, and each keeps its random numbers, so that two measurements differ by
the policy and little else. The gate does not judge by these figures but by those of the evaluation stage, on prompts
that never trained.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from components.preference_optimization.sampling import bare_model
from components.preference_optimization.settings import PreferenceOptimizationSettings
from components.shared.errors import PlumblineError
from components.shared.files import read_json, write_json
from components.shared.generation import Generation, generate
from components.shared.policy_optimization import EncodedPrompt, repetition_share
from components.shared.scoring import response_logprobs, sequence_kl

__all__ = ["Measurements", "Probe"]

_FILE = "step-{:06d}.json"
_PROMPT_STREAM, _ANSWER_STREAM = 0, 1

Reward = Callable[[Sequence[list[int]], Sequence[list[int]]], Tensor]


class Probe:
    """Measures the policy of a trainer."""

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        reward: Reward,
        *,
        settings: PreferenceOptimizationSettings,
        seed: int,
    ) -> None:
        """Draws the prompts.

        Args:
            trainer: Holds policy and reference.
            tokenizer: The policy's.
            prompts: All training prompts.
            reward: Raw reward of prompts and answers as token ids, `(n,)`.
            settings: Settings of the run.
            seed: Of the run.
        """
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._reward = reward
        self._settings = settings
        self._seed = _stream(seed, _ANSWER_STREAM)
        count = min(settings.evaluation_prompts, len(prompts))
        drawn = np.random.default_rng(_stream(seed, _PROMPT_STREAM)).choice(len(prompts), size=count, replace=False)
        self._prompts = [prompts[index] for index in sorted(drawn.tolist())]

    def measure(self) -> dict[str, Any]:
        """The columns of a history row that tell of the policy as it is now; docs/architecture.md lists them.

        Raises:
            PlumblineError: A figure is not finite.
        """
        policy = bare_model(self._trainer.model)
        was_training = policy.training
        policy.eval()
        with self._autocast():
            answers = self._answers(policy)
            responses = [answer.response_ids for answer in answers]
            logprobs = self._logprobs(policy, responses)
            with self._reference() as reference:
                reference_logprobs = self._logprobs(reference, responses)
        policy.train(was_training)
        rewards = self._reward([prompt.ids for prompt in self._prompts], responses)
        row = _columns(answers, rewards, sequence_kl(logprobs, reference_logprobs))
        _require_finite(row)
        return row | {"slices": self._slices(rewards, sequence_kl(logprobs, reference_logprobs), responses)}

    def _answers(self, policy: PreTrainedModel) -> list[Generation]:
        return generate(
            policy,
            self._tokenizer,
            [prompt.ids for prompt in self._prompts],
            max_new_tokens=self._settings.max_response_tokens,
            temperature=self._settings.temperature,
            seed=self._seed,
        )

    def _logprobs(self, model: PreTrainedModel, responses: list[list[int]]) -> list[Tensor]:
        prompts = [prompt.ids for prompt in self._prompts]
        size, temperature = self._settings.batch_size, self._settings.temperature
        return response_logprobs(model, self._tokenizer, prompts, responses, batch_size=size, temperature=temperature)

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """The policy that training started from: the trainer's frozen copy, or the adapters switched off."""
        reference = getattr(self._trainer, "ref_model", None)
        if reference is not None:
            yield reference
            return
        model: Any = self._trainer.model
        with model.disable_adapter():
            yield bare_model(model)

    def _autocast(self) -> AbstractContextManager[Any]:
        return self._trainer.accelerator.autocast()

    def _slices(self, rewards: Tensor, kl: Tensor, responses: list[list[int]]) -> dict[str, dict[str, float]]:
        members: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(self._prompts):
            members[prompt.slice].append(index)
        lengths = torch.tensor([float(len(response)) for response in responses])
        columns = {"reward": rewards, "kl": kl, "response_tokens": lengths}
        return {
            name: {"n": len(rows)} | {column: float(values[rows].mean()) for column, values in columns.items()}
            for name, rows in sorted(members.items())
        }


class Measurements(TrainerCallback):
    """Measures before the first step, every `evaluate_every_steps` and after the last; each in a file of its own.

    Files outlive an interruption, and a step that is done again writes the same one again.
    """

    def __init__(
        self,
        probe: Probe,
        folder: Path,
        *,
        every: int,
        measured: Callable[[int, dict[str, Any]], None],
        keep: Callable[[int], None],
    ) -> None:
        """Measures nothing yet.

        Args:
            probe: What measures.
            folder: Where the rows are kept.
            every: Steps between two measurements.
            measured: Called with each step and row.
            keep: Called with a step whose policy is to be kept, once it is measured.
        """
        self._probe = probe
        self._folder = folder
        self._every = every
        self._measured = measured
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._measure(0)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        if last or step % self._every == 0:
            self._measure(step)
        if not last and step % self._every == 0:
            self._keep(step)

    def rows(self, steps: int) -> list[dict[str, Any]]:
        """The rows of a training of `steps` steps, from step 0 on."""
        due = sorted({*range(0, steps, self._every), steps})
        return [read_json(self._folder / _FILE.format(step)) for step in due]

    def _measure(self, step: int) -> None:
        row = {"step": step, **self._probe.measure()}
        write_json(self._folder / _FILE.format(step), row)
        self._measured(step, row)


def _columns(answers: Sequence[Generation], rewards: Tensor, kl: Tensor) -> dict[str, Any]:
    tokens = sum(len(answer.response_ids) for answer in answers)
    return {
        "episodes": len(answers),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(unbiased=False)),
        "kl": float(kl.mean()),
        "kl_per_token": float(kl.sum()) / tokens,
        "entropy": math.fsum(entropy for answer in answers for entropy in answer.entropies) / tokens,
        "response_tokens": tokens / len(answers),
        "finished_share": sum(answer.finished for answer in answers) / len(answers),
        "repetition_share": sum(repetition_share(answer.response_ids) for answer in answers) / len(answers),
    }


def _require_finite(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise PlumblineError(
                f"{name} of the policy's answers is {value}.",
                where="preference_optimization",
                hint="Lower learning_rate or raise warmup_fraction.",
            )


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
