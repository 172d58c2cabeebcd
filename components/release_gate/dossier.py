"""The dossier of a verdict: the evidence that it rests on, kept beside the model version, for those who decide.

The gate keeps it (`keep_dossier`), the release page reads it (`open_dossier`). Of each artifact only the files that a
person looks at are kept, with the artifact's manifest, so that every byte can be checked against the digest that the
ledger holds. A part that is missing or was altered is named, and not shown.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.release_gate.entries import Entry
from components.release_gate.registry import Registry
from components.release_gate.releases import binding_of
from components.shared.artifacts import MANIFEST, content_digest
from components.shared.errors import ArtifactError, PlumblineError
from components.shared.files import digest_of, read_json, read_jsonl, sha256_file

__all__ = ["Dossier", "keep_dossier", "open_dossier"]

_logger = logging.getLogger(__name__)

_DECISION = "decision"
_KEPT: dict[str, tuple[str, ...]] = {
    _DECISION: ("decision.json",),
    "human_evidence": ("statistics.json", "items.jsonl", "judgements.jsonl", "outcomes.jsonl"),
    "evaluation": ("models.json", "metrics.json", "generations.jsonl"),
    "reward_model": ("reward.json", "evaluation.json"),
    "heldout_reward_model": ("reward.json",),
    "training_history": ("summary.json", "history.jsonl"),
}


@dataclass(frozen=True)
class Dossier:
    """What was kept of a verdict.

    Attributes:
        documents: Content of the files, by part and name; only what agrees with the ledger.
        problems: Why a part is not shown, by part.
    """

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def document(self, part: str, name: str) -> Any:
        """A JSON document; None if it is not there."""
        return self.documents.get(part, {}).get(name)

    def rows(self, part: str, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file; none if it is not there."""
        return self.documents.get(part, {}).get(name) or []


def keep_dossier(registry: Registry, model: str, version: str, binding: str, paths: Mapping[str, str]) -> None:
    """Keeps the evidence of a verdict beside the version; doing it twice is doing it once.

    Args:
        registry: Where the version is.
        model: Registered model.
        version: The version that was judged.
        binding: Of the verdict.
        paths: Folder of each artifact, by part; "" or absent for one that does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-dossier-") as aside:
        for part, path in paths.items():
            if path and (Path(path) / MANIFEST).is_file():
                _copy(Path(path), Path(aside) / part, _KEPT[part])
        registry.keep(model, version, Path(aside), _place(binding))


def open_dossier(registry: Registry, model: str, entry: Entry) -> Dossier:
    """Reads what was kept of a verdict, and checks it against the ledger.

    Args:
        registry: Where the version is.
        model: Registered model.
        entry: The verdict on the ledger.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-dossier-") as aside:
        folder = registry.fetch(model, entry.version, _place(entry.data["binding"]), Path(aside))
        if folder is None:
            return Dossier(problems={"dossier": "Nothing was kept of this verdict: the gate that gave it is too old."})
        return _read(folder, entry)


def _place(binding: str) -> str:
    return f"dossiers/{binding}"


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    target.mkdir(parents=True)
    for name in (MANIFEST, *names):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read(folder: Path, entry: Entry) -> Dossier:
    documents: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    for part in _KEPT:
        if not (folder / part).is_dir():
            problems[part] = "It was not there when the gate judged."
            continue
        try:
            documents[part] = _read_part(folder / part, part, entry)
        except (PlumblineError, KeyError, TypeError) as error:
            problems[part] = f"It does not agree with the ledger: {error}"
            _logger.warning("%s version %s: %s is not shown: %s", entry.model, entry.version, part, error)
    return Dossier(documents, problems)


def _read_part(folder: Path, part: str, entry: Entry) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    files = manifest["files"]
    if content_digest(manifest["kind"], files) != manifest["digest"]:
        raise ArtifactError("its manifest was altered.", where=part)
    if part != _DECISION and manifest["digest"] != entry.evidence_digests.get(part):
        raise ArtifactError("it is another artifact than the one that was judged.", where=part)
    content: dict[str, Any] = {}
    for name in _KEPT[part]:
        path = folder / name
        if not path.is_file():
            continue
        if sha256_file(path) != files[name]:
            raise ArtifactError("was altered.", where=f"{part}, {name}")
        content[name] = list(read_jsonl(path)) if name.endswith(".jsonl") else read_json(path)
    if part == _DECISION:
        _check_decision(content["decision.json"], entry)
    return content


def _check_decision(decision: dict[str, Any], entry: Entry) -> None:
    """A decision is vouched for by the digests that it was bound to, and by the digest of its criteria."""
    if binding_of(decision["digests"]) != entry.data["binding"]:
        raise ArtifactError("it is about other models or other evidence.", where=_DECISION)
    if digest_of(decision["criteria"]) != entry.data.get("criteria"):
        raise ArtifactError("its criteria were altered.", where=_DECISION)
