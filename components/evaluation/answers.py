"""The answers of one policy: sampled, scored by both reward models, and their KL to the reference measured anew.

Token ids are passed on wherever the models share a vocabulary; only a model with another vocabulary reads the answer's
text again, encoded with its own tokenizer. KL needs log-probabilities of the same tokens, so a policy of another
vocabulary has none.

KL is taken from two full forward passes, not from the sampler's log-probabilities: it is the gate's own measurement,
and it must not inherit an error of the sampling that made the training's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.evaluation.roles import CHAMPION, Role
from components.evaluation.settings import EvaluationSettings
from components.shared.files import digest_of
from components.shared.generation import Generation, generate
from components.shared.models import (
    decode_response,
    encode_prompt,
    encode_response,
    load_policy,
    load_reward_model,
    load_tokenizer,
)
from components.shared.progress import report
from components.shared.records import Prompt, PromptRecord
from components.shared.scoring import response_logprobs, rewards, sequence_kl

__all__ = [
    "AnswerRow",
    "LoadedModel",
    "answer_prompts",
    "load_reference",
    "load_scorer",
    "role_seed",
    "same_vocabulary",
]

_BATCHES_PER_CALL = 4


@dataclass(frozen=True)
class AnswerRow:
    """One answer, as in `generations.jsonl`.

    Attributes:
        prompt_id: Id of the prompt.
        prompt: The prompt.
        slice: Its slice.
        prompt_set: The set that it comes from.
        role: Who answered.
        response: The answer's text.
        n_tokens: Its length in tokens, EOS included.
        finished: False when it was cut at the length limit.
        reward: Raw score of the reward model that was optimised.
        heldout_reward: Raw score of the one that never was.
        kl: log pi - log pi_ref of the sampled sequence, in nats; None where there is no common reference.
    """

    prompt_id: str
    prompt: Prompt
    slice: str
    prompt_set: str
    role: str
    response: str
    n_tokens: int
    finished: bool
    reward: float
    heldout_reward: float
    kl: float | None

    def as_json(self) -> dict[str, Any]:
        row = asdict(self)
        if not isinstance(self.prompt, str):
            row["prompt"] = [message.model_dump() for message in self.prompt]
        return row


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer; a policy also has the digest that tells it from others."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str = ""


def load_reference(folder: Path, digest: str) -> LoadedModel:
    """The policy that KL is measured against."""
    return LoadedModel(load_policy(folder), load_tokenizer(folder), digest)


def load_scorer(folder: Path) -> LoadedModel:
    """A reward model."""
    return LoadedModel(load_reward_model(folder), load_tokenizer(folder))


def role_seed(seed: int, role: str, prompt_set: str) -> int:
    """Seed of one role's answers to one set: the same whatever other roles and sets there are."""
    return int(digest_of([seed, role, prompt_set])[:8], 16)


def same_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether token ids mean the same to both: equal vocabularies and equal chat templates."""
    return first.get_vocab() == second.get_vocab() and first.chat_template == second.chat_template


def answer_prompts(
    role: Role,
    prompts: dict[str, list[PromptRecord]],
    *,
    kl_reference: LoadedModel | None,
    reward_model: LoadedModel,
    heldout_reward_model: LoadedModel,
    adapter_base: Path | None,
    seed: int,
    settings: EvaluationSettings,
) -> list[AnswerRow]:
    """Has one policy answer every prompt once and measures its answers.

    Args:
        role: The policy.
        prompts: Prompts by set.
        kl_reference: What KL is measured against; None leaves it out.
        reward_model: The reward model that PPO optimised.
        heldout_reward_model: The reward model that was never optimised.
        adapter_base: Folder of the policy that an adapter checkpoint belongs to.
        seed: Seed of the run.
        settings: Sampling and batch size.

    Returns:
        One row a prompt, in the order of the sets and of the prompts in them.
    """
    policy = LoadedModel(load_policy(role.folder, reference=adapter_base), load_tokenizer(role.folder), role.digest)
    rows: list[AnswerRow] = []
    total = sum(len(records) for records in prompts.values())
    for prompt_set, records in prompts.items():
        generations = _sample(policy, records, role_seed(seed, role.name, prompt_set), settings, role.name)
        kl = _kl(policy, kl_reference if role.name != CHAMPION else None, generations, settings)
        texts = [decode_response(policy.tokenizer, generation.response_ids) for generation in generations]
        scores = [
            _scores(scorer, policy.tokenizer, records, texts, generations, settings.batch_size)
            for scorer in (reward_model, heldout_reward_model)
        ]
        for place, (record, generation) in enumerate(zip(records, generations, strict=True)):
            rows.append(
                AnswerRow(
                    prompt_id=record.id,
                    prompt=record.prompt,
                    slice=record.slice,
                    prompt_set=prompt_set,
                    role=role.name,
                    response=texts[place],
                    n_tokens=len(generation.response_ids),
                    finished=generation.finished,
                    reward=scores[0][place],
                    heldout_reward=scores[1][place],
                    kl=kl[place],
                )
            )
        report(f"evaluate {role.name}", len(rows), total)
    return rows


def _sample(
    policy: LoadedModel, records: Sequence[PromptRecord], seed: int, settings: EvaluationSettings, role: str
) -> list[Generation]:
    """Samples in calls of a few batches, each with a seed of its own, and reports after each."""
    prompts_ids = [encode_prompt(policy.tokenizer, record.prompt) for record in records]
    chunk = settings.batch_size * _BATCHES_PER_CALL
    generations: list[Generation] = []
    for start in range(0, len(prompts_ids), chunk):
        generations += generate(
            policy.model,
            policy.tokenizer,
            prompts_ids[start : start + chunk],
            max_new_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            batch_size=settings.batch_size,
            seed=int(digest_of([seed, start])[:8], 16),
        )
        report(f"answer as {role}", len(generations), len(prompts_ids))
    return generations


def _kl(
    policy: LoadedModel,
    kl_reference: LoadedModel | None,
    generations: Sequence[Generation],
    settings: EvaluationSettings,
) -> list[float | None]:
    """k1 of each answer in nats, at the sampling temperature; exactly 0 for the reference itself."""
    if kl_reference is None or not same_vocabulary(policy.tokenizer, kl_reference.tokenizer):
        return [None] * len(generations)
    if policy.digest == kl_reference.digest:
        return [0.0] * len(generations)
    logprobs = [
        response_logprobs(
            loaded.model,
            loaded.tokenizer,
            [generation.prompt_ids for generation in generations],
            [generation.response_ids for generation in generations],
            batch_size=settings.batch_size,
            temperature=settings.temperature,
        )
        for loaded in (policy, kl_reference)
    ]
    return [float(value) for value in sequence_kl(logprobs[0], logprobs[1])]


def _scores(
    scorer: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[PromptRecord],
    texts: Sequence[str],
    generations: Sequence[Generation],
    batch_size: int,
) -> list[float]:
    """Raw rewards; of the token ids themselves if the scorer reads the policy's vocabulary, else of the texts."""
    if same_vocabulary(scorer.tokenizer, tokenizer):
        prompts_ids = [generation.prompt_ids for generation in generations]
        responses_ids = [generation.response_ids for generation in generations]
    else:
        prompts_ids = [encode_prompt(scorer.tokenizer, record.prompt) for record in records]
        responses_ids = [
            encode_response(scorer.tokenizer, text, finished=generation.finished)
            for text, generation in zip(texts, generations, strict=True)
        ]
    return rewards(scorer.model, scorer.tokenizer, prompts_ids, responses_ids, batch_size=batch_size).tolist()
