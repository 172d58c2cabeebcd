"""Artifacts between stages: a folder with a manifest, written aside and renamed, verified before it is read.

A stage writes with `write_artifact` and reads with `read_artifact`; nobody ever reads half an artifact, an altered
one, or one of another kind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.shared.code_version import code_version
from components.shared.errors import ArtifactError
from components.shared.files import digest_of, read_json, sha256_file, sync_folder, write_json

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Artifact",
    "Draft",
    "content_digest",
    "read_artifact",
    "require_as_told",
    "tell_digests",
    "write_artifact",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Artifact:
    """A verified artifact.

    Attributes:
        path: Its folder.
        manifest: The parsed manifest.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the artifact's kind and file hashes."""
        return self.manifest["digest"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    def file(self, name: str) -> Path:
        """Path of a file listed in the manifest.

        Raises:
            ArtifactError: The artifact has no such file.
        """
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.kind} artifact has no file {name!r}.", where=str(self.path))
        return self.path / name


@dataclass
class Draft:
    """An artifact being written: put files into `path`; `metadata` goes into the manifest."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)


@contextmanager
def write_artifact(
    path: str | Path,
    kind: str,
    *,
    inputs: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    stage: str,
) -> Iterator[Draft]:
    """Writes an artifact folder: all of it appears at `path`, or nothing does.

    Args:
        path: Where the artifact shall be. An empty folder there, or an artifact of the same kind (a retried step writes
            again), is replaced; anything else is left alone.
        kind: One of the kinds of docs/architecture.md.
        inputs: Digest of each input artifact, by name.
        settings: The settings that made it (JSON values).
        stage: The stage that writes it; names the code version.

    Yields:
        A draft whose folder becomes the artifact when the block ends without an error.

    Raises:
        ArtifactError: `path` already holds something else.
    """
    path = Path(path)
    _require_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        draft = Draft(aside)
        yield draft
        files = _hash_files(aside)
        finished = datetime.now(UTC)
        write_json(
            aside / MANIFEST,
            {
                "kind": kind,
                "schema_version": SCHEMA_VERSION,
                "digest": content_digest(kind, files),
                "files": files,
                "inputs": dict(inputs or {}),
                "settings": dict(settings or {}),
                "code_version": code_version(stage),
                "stage": stage,
                "started_at": started.isoformat(),
                "finished_at": finished.isoformat(),
                "seconds": round((finished - started).total_seconds(), 3),
                "metadata": draft.metadata,
            },
        )
        _sync_tree(aside)
        os.chmod(aside, 0o755)
        _put_in_place(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)


def read_artifact(path: str | Path, kind: str | tuple[str, ...]) -> Artifact:
    """Reads and verifies an artifact.

    Raises:
        ArtifactError: No manifest, another kind or schema, or a file that is missing or altered.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"no {MANIFEST}: not a finished artifact.", where=str(path), hint="Run its stage again.")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{MANIFEST} is not a manifest.", where=str(path), hint="Run its stage again.")
    kinds = (kind,) if isinstance(kind, str) else kind
    if manifest.get("kind") not in kinds:
        raise ArtifactError(f"is a {manifest.get('kind')!r} artifact, expected {' or '.join(kinds)}.", where=str(path))
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"has schema version {manifest.get('schema_version')}, this code reads {SCHEMA_VERSION}.", where=str(path)
        )
    _verify_files(path, manifest)
    return Artifact(path, manifest)


def tell_digests(*made: Any) -> None:
    """Puts the digest of each artifact into its metadata, for the steps that read it (`require_as_told`).

    Args:
        *made: KFP artifacts that this step has written.
    """
    for artifact in made:
        artifact.metadata["digest"] = read_json(Path(artifact.path) / MANIFEST)["digest"]


def require_as_told(**given: Any) -> None:
    """Makes sure that what lies in the artifact store is what the step that wrote it told the orchestrator.

    A manifest vouches for its files and nobody for the manifest: who may write to the store could put another artifact
    there, whole in itself, between two steps. The digest in an artifact's metadata goes another way.

    Args:
        **given: KFP artifacts by role; None for one that is absent. One that is fetched from elsewhere has no digest
            in its metadata, and whoever fetches it compares it.

    Raises:
        ArtifactError: Another artifact lies there.
    """
    for role, artifact in given.items():
        told = (getattr(artifact, "metadata", None) or {}).get("digest")
        manifest = Path(artifact.path) / MANIFEST if artifact else None
        if not told or manifest is None or not manifest.is_file():  # that it is missing, whoever reads it says
            continue
        found = read_json(manifest)
        digest = found.get("digest") if isinstance(found, dict) else None
        if digest != told:
            raise ArtifactError(
                f"has digest {str(digest)[:12]}, but the step that made it wrote {str(told)[:12]}: it was replaced.",
                where=f"{role}, {artifact.path}",
                hint="Find out who writes to the artifact store, and run that step again.",
            )


def content_digest(kind: str, files: Mapping[str, str]) -> str:
    """Digest of an artifact's content: its kind and the sha256 of each file, and nothing that varies by run."""
    return digest_of({"kind": kind, "files": dict(files)})


def _require_replaceable(path: Path, kind: str) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file() or read_json(path / MANIFEST).get("kind") != kind:
        raise ArtifactError("something else is already there.", where=str(path), hint="Choose another output folder.")


def _put_in_place(aside: Path, path: Path) -> None:
    """Renames; a folder that is replaced stays whole beside it until the new one is in place."""
    if not path.exists():
        os.rename(aside, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.rename(path, old)
    os.rename(aside, path)
    shutil.rmtree(old)


def _hash_files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _verify_files(path: Path, manifest: dict[str, Any]) -> None:
    files = manifest["files"]
    if content_digest(manifest["kind"], files) != manifest["digest"]:
        raise ArtifactError(f"{MANIFEST} does not match its own digest.", where=str(path))
    for name, expected in files.items():
        if not (path / name).is_file():
            raise ArtifactError(f"file {name!r} is missing.", where=str(path), hint="Run its stage again.")
        if sha256_file(path / name) != expected:
            raise ArtifactError(f"file {name!r} was altered after it was written.", where=str(path))


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
