"""Artifacts by address: a folder, `s3://bucket/prefix`, or what MLflow fetches (`runs:/`, `models:/`, ...).

`open_artifact` brings one onto this machine for as long as it is used; `artifact_digest` tells which one it is from its
manifest alone: a cache key.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from components.shared.artifacts import MANIFEST, Artifact, content_digest, read_artifact
from components.shared.errors import ArtifactError, FetchError
from components.shared.files import parse_json, read_json
from components.shared.storage import Storage, is_object_storage, open_storage

__all__ = ["artifact_digest", "fetch", "local_folder", "open_artifact"]

_REGISTRY = ("runs:", "models:", "mlflow-artifacts:")
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes where an address names nothing."""


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
    manifest = _remote_manifest(uri)
    if manifest.get("kind") != kind:
        raise ArtifactError(f"is a {manifest.get('kind')!r} artifact, expected {kind}.", where=uri)
    if content_digest(kind, manifest["files"]) != manifest["digest"]:
        raise ArtifactError(f"{MANIFEST} does not match its own digest.", where=uri)
    return manifest["digest"]


def fetch(uri: str, aside: Path) -> Path:
    """Fetches what a remote address names into the folder `aside`; returns where it lies.

    Raises:
        FetchError: MLflow does not answer, or refuses.
        ArtifactError: It is not there.
        StorageError: Object storage cannot be used.
    """
    if is_object_storage(uri):
        return _fetch_objects(open_storage(uri), aside)
    from mlflow.exceptions import MlflowException

    try:
        return _download(uri, aside)
    except (MlflowException, OSError) as error:
        raise (ArtifactError if _is_absent(error) else FetchError)(
            f"cannot be fetched: {error}.", where=uri, hint="Check the address and MLFLOW_TRACKING_URI."
        ) from error


def _download(uri: str, aside: Path) -> Path:
    """By MLflow. A run's files first by their own address: of `runs:/` MLflow says that nothing is there also when the
    server is down or refuses."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    run, _, path = uri.removeprefix("runs:").strip("/").partition("/")
    if uri.startswith("runs:") and path:
        try:
            folder = str(MlflowClient().get_run(run).info.artifact_uri).rstrip("/")
            return Path(download_artifacts(artifact_uri=f"{folder}/{path}", dst_path=str(aside)))
        except (MlflowException, OSError) as error:
            if not _is_absent(error):
                raise  # else it may be a model that was logged on its own, which MLflow finds
    return Path(download_artifacts(artifact_uri=uri, dst_path=str(aside)))


def _is_absent(error: Exception) -> bool:
    """Whether MLflow said that there is no such thing, rather than failed or refused."""
    answer = getattr(error, "response", None)
    told = getattr(error, "error_code", "") in _ABSENT or getattr(answer, "status_code", None) == 404
    return told or isinstance(error, FileNotFoundError)


def _fetch_objects(storage: Storage, aside: Path) -> Path:
    names = storage.names()
    if outside := [name for name in names if ".." in PurePosixPath(name).parts]:
        raise ArtifactError(f"it names files outside its folder: {outside}.", where=storage.uri)
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
    for name, fault in storage.download({name: aside / name for name in names}).items():
        raise ArtifactError(f"cannot be fetched: {name} {fault}.", where=storage.uri, hint="Run its stage again.")
    return aside


def _remote_manifest(uri: str) -> dict[str, Any]:
    if is_object_storage(uri):
        found = open_storage(uri).read(MANIFEST)
        if found is None:
            raise ArtifactError(f"no {MANIFEST} there: not a finished artifact.", where=uri, hint="Check the address.")
        return parse_json(found.content, where=f"{uri}/{MANIFEST}")
    with tempfile.TemporaryDirectory(prefix="plumbline-manifest-") as aside:
        return read_json(fetch(f"{uri.rstrip('/')}/{MANIFEST}", Path(aside)))


def local_folder(uri: str) -> Path | None:
    """The folder that an address names; None for a remote one."""
    plain = uri.removeprefix("file://")
    if "://" in plain or plain.startswith(_REGISTRY):
        return None
    return Path(plain).expanduser()
