"""Artifacts by address: a folder, or what MLflow can fetch (`runs:/`, `models:/`, `mlflow-artifacts:/`, `s3://`).

`open_artifact` brings one onto this machine for as long as it is used; `artifact_digest` tells which one it is from its
manifest alone: a cache key.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.shared.artifacts import MANIFEST, Artifact, content_digest, read_artifact
from components.shared.errors import ArtifactError
from components.shared.files import read_json

__all__ = ["artifact_digest", "fetch", "local_folder", "open_artifact"]

_REGISTRY = ("runs:", "models:", "mlflow-artifacts:")


@contextmanager
def open_artifact(uri: str, kind: str) -> Iterator[Artifact]:
    """The verified artifact at an address; what was fetched is removed when the block ends.

    Raises:
        ArtifactError: It cannot be fetched, is damaged, or is of another kind.
    """
    if (folder := local_folder(uri)) is not None:
        yield read_artifact(folder, kind)
        return
    with tempfile.TemporaryDirectory(prefix="plumbline-artifact-") as aside:
        yield read_artifact(fetch(uri, Path(aside)), kind)


def artifact_digest(uri: str, kind: str) -> str:
    """Digest of the artifact at an address: of a folder verified, of a remote one as its manifest says.

    Raises:
        ArtifactError: There is none, it is damaged, or of another kind.
    """
    if (folder := local_folder(uri)) is not None:
        return read_artifact(folder, kind).digest
    with tempfile.TemporaryDirectory(prefix="plumbline-manifest-") as aside:
        manifest = read_json(fetch(f"{uri.rstrip('/')}/{MANIFEST}", Path(aside)))
    if manifest.get("kind") != kind:
        raise ArtifactError(f"is a {manifest.get('kind')!r} artifact, expected {kind}.", where=uri)
    if content_digest(kind, manifest["files"]) != manifest["digest"]:
        raise ArtifactError(f"{MANIFEST} does not match its own digest.", where=uri)
    return manifest["digest"]


def fetch(uri: str, aside: Path) -> Path:
    """Fetches what a remote address names into the folder `aside`; returns where it lies.

    Raises:
        ArtifactError: It cannot be fetched.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(aside)))
    except (MlflowException, OSError) as error:
        raise ArtifactError(
            f"cannot be fetched: {error}.", where=uri, hint="Check the address and MLFLOW_TRACKING_URI."
        ) from error


def local_folder(uri: str) -> Path | None:
    """The folder that an address names; None for a remote one."""
    plain = uri.removeprefix("file://")
    if "://" in plain or plain.startswith(_REGISTRY):
        return None
    return Path(plain).expanduser()
