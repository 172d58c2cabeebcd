"""Demonstrations as token ids: exactly the ids that sampling and scoring will use later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from components.sft.settings import SFTSettings
from components.shared.hf_training import fit_answer
from components.shared.models import encode_prompt, encode_response
from components.shared.records import SFTRecord, read_records

__all__ = ["Demonstration", "encode_demonstrations", "training_rows"]

_IGNORED = -100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demonstration:
    """A tokenised demonstration; `response_ids` ends with EOS unless it was cut."""

    prompt_ids: list[int]
    response_ids: list[int]
    slice: str
    cut: bool


def encode_demonstrations(path: Path, tokenizer: PreTrainedTokenizerBase, settings: SFTSettings) -> list[Demonstration]:
    """Reads and tokenises a file of SFT records.

    Raises:
        InputError: A record is not valid or does not fit; the error names it.
    """
    demonstrations = []
    for record in read_records(path, SFTRecord):
        prompt_ids = encode_prompt(tokenizer, record.prompt)
        response_ids = encode_response(tokenizer, record.completion)
        fitted, cut = fit_answer(prompt_ids, response_ids, settings, where=f"{path}, record {record.id!r}")
        demonstrations.append(Demonstration(prompt_ids, fitted, record.slice, cut))
    cut_count = sum(demonstration.cut for demonstration in demonstrations)
    if cut_count:
        logger.warning(
            "%s: %d of %d answers were cut to fit max_tokens = %d.",
            path,
            cut_count,
            len(demonstrations),
            settings.max_tokens,
        )
    return demonstrations


def training_rows(demonstrations: Sequence[Demonstration], *, completion_only_loss: bool) -> Dataset:
    """Rows for `SFTTrainer`: `input_ids` and `labels`, with -100 where no loss is wanted."""
    return Dataset.from_dict(
        {
            "input_ids": [each.prompt_ids + each.response_ids for each in demonstrations],
            "labels": [
                ([_IGNORED] * len(each.prompt_ids) if completion_only_loss else each.prompt_ids) + each.response_ids
                for each in demonstrations
            ],
        }
    )
