"""The evidence of one verdict: parsed artifacts that vouch for where each number comes from.

A number is only ever taken through `Source.number`, which refuses what is absent (HOLD) and what is not a finite number
in its range (ERROR). A source that is missing, damaged, says something twice, or is about other models carries its
fault, and every criterion that asks it for something gets that fault.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.release_gate.findings import EvidenceFault, Finding
from components.release_gate.policy import GatePolicy
from components.shared.artifacts import read_artifact
from components.shared.errors import PlumblineError
from components.shared.files import read_json, read_jsonl

__all__ = ["Case", "Source", "read_source", "vet"]

_ABSENT = object()

_MOST = 10_000_000
"""No evidence counts more units than this."""

_KEYS: dict[str, tuple[str, ...]] = {
    "generations.jsonl": ("role", "prompt_set", "prompt_id"),
    "outcomes.jsonl": ("comparison", "prompt_id"),
    "judgements.jsonl": ("judgement_id",),
    "predictions.jsonl": ("id",),
    "items.jsonl": ("item_id",),
}
"""What names a row of each table; no two rows have the same name."""


@dataclass
class Source:
    """One artifact as evidence.

    Attributes:
        name: What it is called (`evaluation`, `human_evidence`, ...).
        digest: Its digest; "" if it could not be read.
        inputs: Digests of what it was made from, by name.
        documents: Its JSON files, by name.
        tables: Its JSON-lines files, by name.
        fault: Why nothing in it can be used; None if it can.
        finished_at: When it was written (UTC, ISO 8601); "" if that is not known. No digest vouches for it.
    """

    name: str
    digest: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    fault: EvidenceFault | None = None
    finished_at: str = ""

    def cite(self, *path: str) -> str:
        """Digest and key of a number, for the report."""
        key = "/".join(path)
        return f"{self.name}:{self.digest[:12]} {key}".strip() if self.digest else f"{self.name} {key}".strip()

    def refuse(self, problem: str, *path: str, finding: Finding = Finding.ERROR) -> EvidenceFault:
        """A fault at a place in this source."""
        return EvidenceFault(finding, problem, source=self.cite(*path))

    def value(self, *path: str) -> Any:
        """What lies at a path (file, then keys).

        Raises:
            EvidenceFault: HOLD if it is absent or null.
        """
        found = self._find(path)
        if found is _ABSENT or found is None:
            raise self.refuse(f"{self._words(path)} is missing.", *path, finding=Finding.HOLD)
        return found

    def has(self, *path: str) -> bool:
        """Whether something that is not null lies at a path."""
        found = self._find(path)
        return found is not _ABSENT and found is not None

    def number(self, *path: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within [low, high].

        Raises:
            EvidenceFault: HOLD if it is absent; ERROR if it is anything else.
        """
        found = self.value(*path)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self.refuse(f"{self._words(path)} is {found!r}, not a finite number.", *path)
        if not low <= found <= high:
            raise self.refuse(f"{self._words(path)} is {found}, outside {low} to {high}.", *path)
        return float(found)

    def count(self, *path: str) -> int:
        """A whole number of things, at least 0."""
        found = self.number(*path, low=0, high=_MOST)
        if found != int(found):
            raise self.refuse(f"{self._words(path)} is {found}, not a whole number.", *path)
        return int(found)

    def mapping(self, *path: str) -> dict[str, Any]:
        """A JSON object."""
        found = self.value(*path)
        if not isinstance(found, dict):
            raise self.refuse(f"{self._words(path)} is not an object.", *path)
        return found

    def rows(self, file: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file; at least one."""
        if self.fault:
            raise self.fault
        if not self.tables.get(file):
            raise self.refuse(f"{self.name} has no rows in {file}.", file, finding=Finding.HOLD)
        return self.tables[file]

    def row_number(self, row: dict[str, Any], file: str, key: str, *, low: float, high: float) -> float:
        """A finite number within [low, high] of a row."""
        found = row.get(key)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self.refuse(f"{file} has a row whose {key} is {found!r}, not a finite number.", file, key)
        if not low <= found <= high:
            raise self.refuse(f"{file} has a row whose {key} is {found}, outside {low} to {high}.", file, key)
        return float(found)

    def refuse_duplicates(self, file: str, keys: list[Any]) -> None:
        """Refuses a table that says something twice."""
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice:
            raise self.refuse(f"{file} counts {len(twice)} unit(s) twice, such as {twice[0]!r}.", file)

    def _find(self, path: tuple[str, ...]) -> Any:
        if self.fault:
            raise self.fault
        found: Any = self.documents
        for key in path:
            if not isinstance(found, dict) or key not in found:
                return _ABSENT
            found = found[key]
        return found

    def _words(self, path: tuple[str, ...]) -> str:
        return f"{self.name}: {' > '.join(path[1:] or path)}"


@dataclass(frozen=True, eq=False)
class Case:
    """What the criteria judge. Each case is itself only (no equality by value): what is computed on it is kept with it.

    Attributes:
        policy: The thresholds.
        mode: `candidate` (may it become champion?) or `live` (may it stay?).
        evaluation: Evidence of the evaluation stage.
        human: Evidence of the human evaluation.
        reward_model: The reward model that was optimised.
        heldout: The reward model that never was.
        history: The training history (may be absent).
        champion: Version that a candidate would replace; None if there is none or the candidate is it.
        no_champion_reason: Why `champion` is None.
        champion_digest: Digest of that version.
        seed: Of the bootstrap.
        has_predecessor: A live model replaced another one, which `reference` then is; the first champion did not.
    """

    policy: GatePolicy
    mode: str
    evaluation: Source
    human: Source
    reward_model: Source
    heldout: Source
    history: Source
    champion: str | None
    no_champion_reason: str
    champion_digest: str | None
    seed: int
    has_predecessor: bool = True

    @property
    def live(self) -> bool:
        return self.mode == "live"

    @property
    def baseline_name(self) -> str:
        """What `reference` stands for."""
        return "its predecessor" if self.live and self.has_predecessor else "the reference"

    def require_champion(self) -> None:
        """Makes sure that the evidence is about the present champion.

        Raises:
            EvidenceFault: It has no champion, or another one: HOLD, new evidence is needed.
        """
        found = self.evaluation.value("models.json", "champion", "digest")
        if found != self.champion_digest:
            raise self.evaluation.refuse(
                f"The evidence compares with champion {str(found)[:12]}, but version {self.champion} "
                f"({str(self.champion_digest)[:12]}) is live: evaluate and judge against that one.",
                "models.json",
                "champion",
                finding=Finding.HOLD,
            )


def read_source(name: str, path: str, kind: str) -> Source:
    """Reads an artifact as evidence. What is wrong with it becomes its fault, not an exception.

    Args:
        name: What the report calls it.
        path: Its folder; "" if there is none.
        kind: The kind that it must have.
    """
    if not path or not Path(path).exists():
        fault = EvidenceFault(Finding.HOLD, f"There is no {name.replace('_', ' ')}.", source=name)
        return Source(name, fault=fault)
    try:
        artifact = read_artifact(path, kind)
        files = artifact.manifest["files"]
        documents = {
            file: read_json(artifact.path / file) for file in files if file.endswith(".json") and "/" not in file
        }
        tables = {file: list(read_jsonl(artifact.path / file)) for file in files if file.endswith(".jsonl")}
    except (PlumblineError, json.JSONDecodeError, KeyError, TypeError) as error:
        return Source(name, fault=EvidenceFault(Finding.ERROR, f"The {name} cannot be read: {error}", source=name))
    manifest = artifact.manifest
    written = str(manifest.get("finished_at") or "")
    return vet(Source(name, artifact.digest, manifest.get("inputs", {}), documents, tables, finished_at=written))


def vet(source: Source) -> Source:
    """Gives a source its fault if a row of its tables has no name, or two rows have the same one."""
    for file, keys in _KEYS.items():
        names = [tuple(row.get(key) for key in keys) for row in source.tables.get(file, [])]
        nameless = [name for name in names if not all(isinstance(part, str) and part for part in name)]
        if nameless:
            problem = f"{file} has {len(nameless)} row(s) without {', '.join(keys)}, such as {nameless[0]!r}."
            return replace(source, fault=source.refuse(problem, file))
        try:
            source.refuse_duplicates(file, names)
        except EvidenceFault as fault:
            return replace(source, fault=fault)
    return source
