"""Answers sampled from a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.collection.sampling import Answer, Sampler
from components.collection.settings import CollectionSettings
from components.shared.files import digest_of
from components.shared.generation import generate
from components.shared.models import decode_response, encode_prompt, load_policy, load_tokenizer
from components.shared.progress import report
from components.shared.records import PromptRecord

__all__ = ["policy_sampler"]

_BATCHES_PER_CALL = 8


def policy_sampler(folder: Path, seed: int, settings: CollectionSettings) -> Sampler:
    """A sampler over the policy; the same seed and calls give the same answers."""
    policy = load_policy(folder)
    tokenizer = load_tokenizer(folder)

    def sample(prompts: Sequence[PromptRecord], round_number: int) -> list[Answer]:
        answers: list[Answer] = []
        chunk = settings.batch_size * _BATCHES_PER_CALL
        for start in range(0, len(prompts), chunk):
            generations = generate(
                policy,
                tokenizer,
                [encode_prompt(tokenizer, record.prompt) for record in prompts[start : start + chunk]],
                max_new_tokens=settings.max_response_tokens,
                temperature=settings.temperature,
                batch_size=settings.batch_size,
                seed=int(digest_of([seed, round_number, start])[:8], 16),
            )
            answers += [Answer(decode_response(tokenizer, g.response_ids), g.finished) for g in generations]
            report("sample answers", len(answers), len(prompts), round=str(round_number + 1))
        return answers

    return sample
