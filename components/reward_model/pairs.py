"""Preference pairs as token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from components.reward_model.settings import RewardModelSettings
from components.shared.hf_training import fit_answer
from components.shared.models import encode_prompt, encode_response
from components.shared.records import PreferenceRecord, read_records

__all__ = ["Pair", "encode_answer", "read_pairs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A preference pair and its token ids; an answer ends with EOS unless it was cut, when sampled or here."""

    record: PreferenceRecord
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: bool


def read_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, settings: RewardModelSettings) -> list[Pair]:
    """Reads and tokenises a file of preference records; no pair is dropped.

    Raises:
        InputError: A record is not valid or does not fit; the error names it.
    """
    pairs = [
        _encode(record, tokenizer, settings, f"{path}, record {record.id!r}")
        for record in read_records(path, PreferenceRecord)
    ]
    _warn(path, "cut to fit max_tokens", sum(pair.cut for pair in pairs), pairs)
    same = sum(pair.chosen_ids == pair.rejected_ids for pair in pairs)
    _warn(path, "left without a difference that the tokenizer sees, so they teach nothing", same, pairs)
    return pairs


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    text: str,
    settings: RewardModelSettings,
    *,
    finished: bool,
    where: str,
) -> tuple[list[int], bool]:
    """Token ids of an answer within `max_tokens`, EOS only if it is finished and fits; and whether it was cut."""
    return fit_answer(prompt_ids, encode_response(tokenizer, text, finished=finished), settings, where=where)


def _encode(
    record: PreferenceRecord, tokenizer: PreTrainedTokenizerBase, settings: RewardModelSettings, where: str
) -> Pair:
    prompt_ids = encode_prompt(tokenizer, record.prompt)
    chosen, chosen_cut = encode_answer(
        tokenizer, prompt_ids, record.chosen, settings, finished=record.chosen_finished, where=where
    )
    rejected, rejected_cut = encode_answer(
        tokenizer, prompt_ids, record.rejected, settings, finished=record.rejected_finished, where=where
    )
    return Pair(record, prompt_ids, chosen, rejected, chosen_cut or rejected_cut)


def _warn(path: Path, what: str, count: int, pairs: Sequence[Pair]) -> None:
    if count:
        logger.warning("%s: %d of %d pairs were %s.", path, count, len(pairs), what)
