"""Hash-stable splits by group, and the proof that nothing leaks between them.

Records with the same `group_id` or the same prompt belong together; where a prompt stands in several groups, the groups
are one. A group's place on the line from 0 to 1 is a hash of salt and key, so it does not move when rows are added. On
that line the prompts' splits lie side by side, human_eval first:

    0 | human_eval | fresh | heldout | train ............................ | 1

Demonstrations lie on the same line. Those of a held-out prompt never train; with `hold_back_sft: whole_range` neither
do those of a prompt that would be held out if a later data set brought it. Preference pairs, whose prompts may all come
from `prompts/train`, are split on a line of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from components.data_validation.settings import SplitSettings
from components.shared.records import PromptRecord, normalise_text, prompt_text

__all__ = [
    "HELD_OUT_PROMPTS",
    "Frozen",
    "Groups",
    "find_leakage",
    "forbidden_pairs",
    "place",
    "preference_split",
    "prompt_split",
    "sft_split",
]

HELD_OUT_PROMPTS = ("human_eval", "fresh", "heldout")
"""Splits of prompts on which nothing trains."""

_HASH_BITS = 52


def place(salt: str, key: str) -> float:
    """Where a group lies in [0, 1): the first 52 bits of sha256(salt, key)."""
    digest = hashlib.sha256(f"{salt}\x1f{key}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> (64 - _HASH_BITS)) / 2**_HASH_BITS


class Groups:
    """Which records belong together: a union of groups through shared prompts.

    Args:
        records: All records that are split in one go, with those of earlier splits that they must respect.
    """

    def __init__(self, records: Iterable[PromptRecord]) -> None:
        self._parent: dict[str, str] = {}
        for record in records:
            nodes = _nodes(record)
            for node in nodes:
                self._union(nodes[0], node)

    def key(self, record: PromptRecord) -> str:
        """The key of a record's group: its smallest group id, else its smallest normalised prompt."""
        return self._find(_nodes(record)[0])

    def _find(self, node: str) -> str:
        root = node
        while self._parent.setdefault(root, root) != root:
            root = self._parent[root]
        while self._parent[node] != root:
            self._parent[node], node = root, self._parent[node]
        return root

    def _union(self, one: str, other: str) -> None:
        first, second = sorted((self._find(one), self._find(other)))
        self._parent[second] = first


@dataclass(frozen=True)
class Frozen:
    """Prompts of an earlier data set that keep their place.

    Attributes:
        records: Its held-out prompts by split.
        splits: Split by group key.
    """

    records: Mapping[str, Sequence[PromptRecord]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)

    def with_keys(self, groups: Groups) -> Frozen:
        """The same prompts, looked up by the keys of `groups`; the first split of `HELD_OUT_PROMPTS` wins."""
        splits: dict[str, str] = {}
        for name in HELD_OUT_PROMPTS:
            for record in self.records.get(name, ()):
                splits.setdefault(groups.key(record), name)
        return Frozen(self.records, splits)


def prompt_split(key: str, settings: SplitSettings, frozen: Frozen) -> str:
    """Split of a prompt: human_eval, fresh, heldout or train.

    Once an earlier data set has frozen the human-evaluation prompts no prompt joins them: new ones that would have
    are fresh.
    """
    if key in frozen.splits:
        return frozen.splits[key]
    zone = _zone(place(settings.salt, key), settings)
    return "fresh" if zone == "human_eval" and frozen.records.get("human_eval") else zone


def sft_split(key: str, settings: SplitSettings, frozen: Frozen) -> tuple[str, str | None]:
    """Split of a demonstration, and the split of prompts for whose sake it is held back (None: not for theirs)."""
    position = place(settings.salt, key)
    sake = frozen.splits.get(key)
    if sake is None and settings.hold_back_sft == "whole_range":
        zone = _zone(position, settings)
        sake = zone if zone in HELD_OUT_PROMPTS else None
    if sake is not None:
        return "heldout", sake
    return ("heldout" if position < settings.sft_heldout else "train"), None


def preference_split(key: str, settings: SplitSettings, frozen: Frozen) -> tuple[str, str | None]:
    """Split of a preference pair, and the split of prompts for whose sake it is held back (None: not for theirs)."""
    if key in frozen.splits:
        return "heldout", frozen.splits[key]
    position = place(f"{settings.salt}/preferences", key)
    if position < settings.preference_heldout:
        return "heldout", None
    return ("divergence" if position < settings.preference_heldout + settings.preference_divergence else "train"), None


def find_leakage(splits: Mapping[str, Iterable[PromptRecord]], forbidden: Iterable[tuple[str, str]]) -> list[str]:
    """Compares the prompts and groups that were really assigned.

    Args:
        splits: Records by split.
        forbidden: Pairs of splits that may share neither a prompt nor a group.

    Returns:
        One sentence a leaking pair of splits; empty is good.
    """
    nodes = {name: {node for record in records for node in _nodes(record)} for name, records in splits.items()}
    leaks = []
    for one, other in forbidden:
        shared = nodes.get(one, set()) & nodes.get(other, set())
        if shared:
            leaks.append(f"{one} and {other} share {len(shared)} prompts or groups")
    return leaks


def forbidden_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that must be disjoint: all splits of one kind, and held-out prompts against all that trains."""
    known = sorted(names)
    held_out = {f"prompts/{split}" for split in HELD_OUT_PROMPTS}
    return [
        (one, other)
        for one, other in combinations(known, 2)
        if one.split("/")[0] == other.split("/")[0]
        or (one in held_out and not other.endswith("/heldout"))
        or (other in held_out and not one.endswith("/heldout"))
    ]


def _zone(position: float, settings: SplitSettings) -> str:
    edge = 0.0
    for name in HELD_OUT_PROMPTS:
        edge += getattr(settings, name)
        if position < edge:
            return name
    return "train"


def _nodes(record: PromptRecord) -> list[str]:
    """The names by which a record meets others: its group, which sorts first, and its prompt."""
    prompt = f"prompt:{normalise_text(prompt_text(record.prompt))}"
    return [f"group:{record.group_id}", prompt] if record.group_id else [prompt]
