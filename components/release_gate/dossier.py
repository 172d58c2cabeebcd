"""The dossier of a verdict: the evidence that it rests on, kept beside the model version, for those who decide.

The gate keeps it (`keep_dossier`), the release page reads it (`open_dossier`), and replay and audit judge it again when
the run's own artifacts are long gone. Of each artifact every file is kept that a criterion or a person reads, with the
artifact's manifest, so that every byte can be checked against the digest that the ledger holds; the weights are not. A
part that is missing or was altered is named, and not shown.
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
from components.release_gate.evidence import Source, vet
from components.release_gate.findings import EvidenceFault, Finding
from components.release_gate.registry import Registry
from components.release_gate.releases import binding_of
from components.shared.artifacts import MANIFEST, content_digest
from components.shared.errors import ArtifactError, PlumblineError
from components.shared.files import digest_of, read_json, read_jsonl, sha256_file

__all__ = ["Dossier", "keep_dossier", "open_dossier"]

_logger = logging.getLogger(__name__)

_DECISION = "decision"
_ABSENT = "It was not there when the gate judged."
_KEPT: dict[str, tuple[str, ...]] = {
    _DECISION: ("decision.json",),
    "human_evidence": ("statistics.json", "items.jsonl", "judgements.jsonl", "outcomes.jsonl"),
    "evaluation": ("models.json", "metrics.json", "generations.jsonl"),
    "reward_model": ("reward.json", "evaluation.json", "predictions.jsonl"),
    "heldout_reward_model": ("reward.json", "evaluation.json", "predictions.jsonl"),
    "training_history": ("summary.json", "history.jsonl"),
}


@dataclass(frozen=True)
class Dossier:
    """What was kept of a verdict.

    Attributes:
        documents: Content of the files, by part and name; only what agrees with the ledger.
        problems: Why a part is not shown, by part.
        manifests: Of each part in `documents`.
    """

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def document(self, part: str, name: str) -> Any:
        """A JSON document; None if it is not there."""
        return self.documents.get(part, {}).get(name)

    def rows(self, part: str, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file; none if it is not there."""
        return self.documents.get(part, {}).get(name) or []

    def unkept(self, part: str) -> list[str]:
        """Files of a part that a judge needs and that an older gate did not keep."""
        listed = self.manifests[part]["files"] if part in self.manifests else {}
        return [name for name in _KEPT[part] if name in listed and name not in self.documents[part]]

    def source(self, part: str) -> Source:
        """A part as evidence, with the fault that it has; a new one each time, as judging may give it one."""
        if part not in self.documents:
            finding = Finding.HOLD if self.problems.get(part, _ABSENT) == _ABSENT else Finding.ERROR
            words = f"{part.replace('_', ' ')}: {self.problems.get(part, _ABSENT)}"
            return Source(part, fault=EvidenceFault(finding, words, source=part))
        manifest, content = self.manifests[part], self.documents[part]
        documents = {name: value for name, value in content.items() if name.endswith(".json")}
        tables = {name: value for name, value in content.items() if name.endswith(".jsonl")}
        return vet(Source(part, manifest["digest"], manifest.get("inputs", {}), documents, tables))


def keep_dossier(
    registry: Registry, model: str, version: str, binding: str, criteria: str, paths: Mapping[str, str]
) -> None:
    """Keeps the evidence of a verdict beside the version; doing it twice is doing it once.

    Args:
        registry: Where the version is.
        model: Registered model.
        version: The version that was judged.
        binding: Of the verdict.
        criteria: Digest of its criteria: a newer gate may find something else in the same evidence.
        paths: Folder of each artifact, by part; "" or absent for one that does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-dossier-") as aside:
        for part, path in paths.items():
            if path and (Path(path) / MANIFEST).is_file():
                _copy(Path(path), Path(aside) / part, _KEPT[part])
        registry.keep(model, version, Path(aside), _place(binding, criteria))


def open_dossier(registry: Registry, model: str, entry: Entry) -> Dossier:
    """Reads what was kept of a verdict, and checks it against the ledger.

    Args:
        registry: Where the version is.
        model: Registered model.
        entry: The verdict on the ledger.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-dossier-") as aside:
        binding, criteria = entry.data["binding"], entry.data.get("criteria", "")
        places = (_place(binding, criteria), f"dossiers/{binding}")  # the latter: of an older gate
        fetched = (registry.fetch(model, entry.version, place, Path(aside)) for place in places)
        folder = next((found for found in fetched if found is not None), None)
        if folder is None:
            return Dossier(problems={"dossier": "Nothing was kept of this verdict: the gate that gave it is too old."})
        return _read(folder, entry)


def _place(binding: str, criteria: str) -> str:
    return f"dossiers/{binding}/{criteria[:16]}"


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    target.mkdir(parents=True)
    for name in (MANIFEST, *names):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read(folder: Path, entry: Entry) -> Dossier:
    documents: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    manifests: dict[str, dict[str, Any]] = {}
    for part in _KEPT:
        if not (folder / part).is_dir():
            problems[part] = _ABSENT
            continue
        try:
            documents[part] = _read_part(folder / part, part, entry)
            manifests[part] = read_json(folder / part / MANIFEST)
        except (PlumblineError, KeyError, TypeError) as error:
            problems[part] = f"It does not agree with the ledger: {error}"
            _logger.warning("%s version %s: %s is not shown: %s", entry.model, entry.version, part, error)
    return Dossier(documents, problems, manifests)


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
        if name not in files:
            continue
        if not path.is_file():  # an older gate kept less; whoever judges it again looks in `unkept`
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
