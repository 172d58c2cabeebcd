"""Shares the records of one call out to splits, respecting an earlier data set, and checks the outcome for leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from components.data_validation.settings import SplitSettings
from components.data_validation.splits import (
    HELD_OUT_PROMPTS,
    Frozen,
    Groups,
    find_leakage,
    forbidden_pairs,
    preference_split,
    prompt_split,
    sft_split,
)
from components.data_validation.validation import Part
from components.shared.artifacts import read_artifact
from components.shared.files import digest_of
from components.shared.records import PromptRecord, read_records

__all__ = ["SPLITS", "Assignment", "assign", "human_eval_digest", "load_frozen"]

SPLITS = {
    "sft": ("train", "heldout"),
    "prompts": ("train", "human_eval", "fresh", "heldout"),
    "preferences": ("train", "heldout", "divergence"),
}
"""Splits of each kind of data."""


@dataclass
class Assignment:
    """Where every record went.

    Attributes:
        splits: Records by `<kind>/<split>`; every split of the call's kinds is there, perhaps empty.
        held_back: Records by kind that would have trained but for the held-out prompts (human_eval, fresh, heldout),
            counted by the split of prompts they would have touched.
        left_out: Prompts in no split: they share a group with a frozen human-evaluation prompt.
        leaks: What two splits share though they must not, a sentence each; empty is good.
    """

    splits: dict[str, list[PromptRecord]] = field(default_factory=dict)
    held_back: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    left_out: int = 0
    leaks: list[str] = field(default_factory=list)


def load_frozen(dataset: str | Path) -> tuple[dict[str, list[PromptRecord]], str]:
    """Held-out prompts by split, and the digest, of an earlier `dataset` artifact.

    Raises:
        ArtifactError: It is not an intact dataset.
    """
    artifact = read_artifact(dataset, "dataset")
    names = {split: f"prompts/{split}.jsonl" for split in HELD_OUT_PROMPTS}
    records = {
        split: list(read_records(artifact.file(name), PromptRecord))
        for split, name in names.items()
        if name in artifact.manifest["files"]
    }
    return records, artifact.digest


def assign(
    parts: Sequence[Part], settings: SplitSettings, earlier: Mapping[str, Sequence[PromptRecord]] | None = None
) -> Assignment:
    """Splits the records of all parts.

    Args:
        parts: The kinds of data of this call.
        settings: Salt and shares.
        earlier: Held-out prompts by split of an earlier data set: they keep their place.
    """
    by_kind = {part.kind: part.records for part in parts}
    earlier = earlier or {}
    everything = [record for records in (*by_kind.values(), *earlier.values()) for record in records]
    groups = Groups(everything)
    frozen = Frozen(earlier).with_keys(groups)
    assignment = Assignment({f"{kind}/{split}": [] for kind in by_kind for split in SPLITS[kind]})
    if "prompts" in by_kind:
        _assign_prompts(by_kind["prompts"], assignment, settings, groups, frozen)
        frozen = Frozen(_held_out(assignment, earlier)).with_keys(groups)
    for kind, choose in (("sft", sft_split), ("preferences", preference_split)):
        for record in by_kind.get(kind, ()):
            split, sake = choose(groups.key(record), settings, frozen)
            assignment.splits[f"{kind}/{split}"].append(record)
            if sake:
                assignment.held_back[kind][sake] += 1
    _check_leakage(assignment, earlier)
    return assignment


def human_eval_digest(records: Sequence[PromptRecord]) -> str:
    """Digest of a set of prompts, whatever their order: the frozen set is the same while this is."""
    return digest_of(sorted(digest_of(record.model_dump(mode="json")) for record in records))


def _assign_prompts(
    records: Sequence[PromptRecord], assignment: Assignment, settings: SplitSettings, groups: Groups, frozen: Frozen
) -> None:
    """Prompts by their place; a frozen human-evaluation set is carried over as it is and nothing joins it."""
    carried = list(frozen.records.get("human_eval", ()))
    assignment.splits["prompts/human_eval"].extend(carried)
    known = {record.prompt if isinstance(record.prompt, str) else repr(record.prompt) for record in carried}
    for record in records:
        split = prompt_split(groups.key(record), settings, frozen)
        if split != "human_eval" or not carried:
            assignment.splits[f"prompts/{split}"].append(record)
        elif (record.prompt if isinstance(record.prompt, str) else repr(record.prompt)) not in known:
            assignment.left_out += 1


def _held_out(assignment: Assignment, earlier: Mapping[str, Sequence[PromptRecord]]) -> dict[str, list[PromptRecord]]:
    """Prompts on which nothing may train: this call's and the earlier data set's."""
    return {split: [*assignment.splits[f"prompts/{split}"], *earlier.get(split, ())] for split in HELD_OUT_PROMPTS}


def _check_leakage(assignment: Assignment, earlier: Mapping[str, Sequence[PromptRecord]]) -> None:
    splits = {name: list(records) for name, records in assignment.splits.items()}
    for split, records in earlier.items():
        splits.setdefault(f"prompts/{split}", []).extend(records)
    assignment.leaks = find_leakage(splits, forbidden_pairs(splits))
