"""Preference pairs as token ids: exactly the ids that sampling and scoring use."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from components.preference_optimization.settings import PreferenceOptimizationSettings
from components.shared.artifacts import Artifact
from components.shared.errors import InputError
from components.shared.hf_training import fit_answer
from components.shared.models import encode_prompt, encode_response
from components.shared.records import PreferenceRecord, read_records

__all__ = ["Pair", "encode_pairs", "paired_rows", "pairs_file", "unpaired_rows"]

_FILE = "preferences/train.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A preference pair; an answer ends with EOS unless it was cut, when sampled or here."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def pairs_file(dataset: Artifact, method: str) -> Path:
    """The training pairs of a dataset.

    Raises:
        InputError: It has none.
    """
    if _FILE not in dataset.manifest["files"]:
        raise InputError(
            f"the dataset has no {_FILE}, and {method} learns from preference pairs.",
            where=str(dataset.path),
            hint="Give the validated pairs, or choose grpo, rloo or online_dpo, which sample their own answers.",
        )
    return dataset.file(_FILE)


def encode_pairs(
    path: Path, tokenizer: PreTrainedTokenizerBase, settings: PreferenceOptimizationSettings
) -> list[Pair]:
    """Reads and tokenises preference records.

    Pairs whose two answers are the same tokens say nothing of which is better; they are left out and counted.

    Raises:
        InputError: A record is not valid or does not fit, or no pair is left.
    """
    read = [_encode(record, tokenizer, settings, path) for record in read_records(path, PreferenceRecord)]
    pairs = [pair for pair, _ in read if pair.chosen_ids != pair.rejected_ids]
    if not pairs:
        raise InputError(f"there are no preference pairs to learn from ({len(read)} were read).", where=str(path))
    if same := len(read) - len(pairs):
        logger.warning("%s: %d of %d pairs have no difference that the tokenizer sees.", path, same, len(read))
    if cut := sum(cut for _, cut in read):
        logger.warning("%s: %d of %d pairs were cut to max_tokens = %d.", path, cut, len(read), settings.max_tokens)
    return pairs


def paired_rows(pairs: list[Pair]) -> Dataset:
    """Rows of DPO and IPO: a pair each."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({column: [getattr(pair, column) for pair in pairs] for column in columns})


def unpaired_rows(pairs: list[Pair]) -> Dataset:
    """Rows of KTO: an answer each, and whether it is one to learn from (`label`)."""
    answers = [(pair, pair.chosen_ids, True) for pair in pairs] + [(pair, pair.rejected_ids, False) for pair in pairs]
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair, _, _ in answers],
            "completion_ids": [ids for _, ids, _ in answers],
            "label": [label for _, _, label in answers],
        }
    )


def _encode(
    record: PreferenceRecord, tokenizer: PreTrainedTokenizerBase, settings: PreferenceOptimizationSettings, path: Path
) -> tuple[Pair, bool]:
    """A pair, and whether an answer was cut."""
    where = f"{path}, record {record.id!r}"
    prompt_ids = encode_prompt(tokenizer, record.prompt)
    answers = ((record.chosen, record.chosen_finished), (record.rejected, record.rejected_finished))
    (chosen, chosen_cut), (rejected, rejected_cut) = (
        fit_answer(prompt_ids, encode_response(tokenizer, text, finished=finished), settings, where=where)
        for text, finished in answers
    )
    return Pair(prompt_ids, chosen, rejected), chosen_cut or rejected_cut
