"""Gold items for people: attention checks that every dataset can offer.

The better answer is a prompt's own demonstration, the worse one the demonstration of an unrelated prompt. Whoever reads
cannot miss it; whoever clicks at random gets half of them right.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.human_eval.batch import GoldPair
from components.shared.artifacts import Artifact
from components.shared.records import PromptRecord, SFTRecord, normalise_text, read_records, stable_order

__all__ = ["demonstration_gold_pairs", "gold_prompts"]

_DEMONSTRATIONS = ("sft/heldout.jsonl", "sft/train.jsonl")
_PROMPTS = ("prompts/train.jsonl", "prompts/heldout.jsonl")


def demonstration_gold_pairs(dataset: Artifact, n: int) -> list[GoldPair]:
    """At most `n` pairs of a prompt's demonstration and another slice's (another prompt's if there is one slice).

    Args:
        dataset: `dataset` artifact.
        n: How many are wanted.
    """
    records = [record for name in _DEMONSTRATIONS for record in _read(dataset, name, SFTRecord)]
    ordered = [record for record in stable_order(records) if isinstance(record, SFTRecord)]
    pairs: dict[str, GoldPair] = {}
    for place, record in enumerate(ordered):
        other = _unrelated(record, ordered[place + 1 :] + ordered[:place])
        if other is not None and record.id not in pairs:
            prompt = PromptRecord(id=record.id, prompt=record.prompt, slice=record.slice, group_id=record.group_id)
            pairs[record.id] = GoldPair(prompt, record.completion, other.completion)
        if len(pairs) == n:
            break
    return list(pairs.values())


def gold_prompts(dataset: Artifact) -> list[PromptRecord]:
    """Prompts that a panel may make gold items from: none of those that are judged."""
    return stable_order(record for name in _PROMPTS for record in _read(dataset, name, PromptRecord))


def _read(dataset: Artifact, name: str, model: type[PromptRecord]) -> list[PromptRecord]:
    if name not in dataset.manifest["files"]:
        return []
    return list(read_records(dataset.file(name), model))


def _unrelated(record: SFTRecord, others: Sequence[SFTRecord]) -> SFTRecord | None:
    """The first demonstration of another slice, else of another prompt, whose text differs."""
    own = normalise_text(record.completion)
    different = [other for other in others if normalise_text(other.completion) != own]
    return next((other for other in different if other.slice != record.slice), next(iter(different), None))
