"""Gold items for people: items with a known answer, which find raters who do not read.

Best are items that somebody wrote for the purpose (`given_gold_pairs`). Without them every dataset offers some
(`demonstration_gold_pairs`): the better answer is a prompt's own demonstration, the worse one the demonstration of an
unrelated prompt. Where demonstrations are good, whoever reads cannot miss it, and whoever clicks at random gets half of
them right; where their quality is mixed, careful raters fail such items too.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.human_eval.batch import GoldPair
from components.shared.artifacts import Artifact
from components.shared.errors import InputError
from components.shared.locations import HubDataset, open_location
from components.shared.records import PromptRecord, SFTRecord, normalise_text, read_records, stable_order

__all__ = ["GoldRecord", "demonstration_gold_pairs", "given_gold_pairs", "gold_prompts"]

_DEMONSTRATIONS = ("sft/heldout.jsonl", "sft/train.jsonl")
_PROMPTS = ("prompts/train.jsonl", "prompts/heldout.jsonl")


class GoldRecord(PromptRecord):
    """A prompt with two answers of which everybody who reads prefers the first.

    Attributes:
        better: The better answer.
        worse: The worse one.
    """

    better: str
    worse: str


def given_gold_pairs(uri: str, n: int) -> list[GoldPair]:
    """At most `n` of the items that somebody wrote for the purpose.

    Args:
        uri: JSON lines of `GoldRecord`: a file, a folder or `s3://...`.
        n: How many are wanted.

    Raises:
        InputError: They cannot be read, or an item's answers are the same.
    """
    with open_location(uri) as found:
        if isinstance(found, HubDataset) or any(file.path.suffix == ".parquet" for file in found):
            raise InputError("gold items are JSON lines.", where=uri, hint="Fields: id, prompt, slice, better, worse.")
        records = [record for file in found for record in read_records(file.path, GoldRecord)]
    for record in records:
        if normalise_text(record.better) == normalise_text(record.worse):
            raise InputError("the better and the worse answer are the same.", where=f"{uri}, gold item {record.id!r}")
    return [
        GoldPair(
            PromptRecord(id=record.id, prompt=record.prompt, slice=record.slice, group_id=record.group_id),
            record.better,
            record.worse,
        )
        for record in stable_order(records)[:n]
    ]


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
