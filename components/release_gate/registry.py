"""The model registry: MLflow versions that carry their own files, and aliases that shadow the ledger.

A version is self-contained: the policy folder is uploaded as a run's artifact and the version's source points there.
Each step can be run again after a kill: what is there already is found by its digest tag and used.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from components.shared.artifacts import Artifact
from components.shared.champion import download_policy
from components.shared.errors import InputError, PlumblineError
from components.shared.ledger_table import sqlite_file
from components.shared.model_names import require_model_name

__all__ = ["ALIASES", "CANDIDATE", "CHAMPION", "PREVIOUS", "Registry", "RegistryError", "open_registry"]

_logger = logging.getLogger(__name__)

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
ALIASES = (CHAMPION, PREVIOUS, CANDIDATE)

_EXPERIMENT = "plumbline-models"
_DIGEST = "plumbline.digest"
_UPLOADED = "plumbline.uploaded"
_HEAD = "plumbline.ledger_head"
_REQUEST = "plumbline.request"
_FOLDER = "policy"
_PAGE = 1000
_PAUSES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before a write is tried again."""
_CONTENTION = ("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
"""MLflow's codes for a database error of any kind."""


class RegistryError(PlumblineError):
    """The registry refused, or does not hold what it should."""


def open_registry() -> Registry:
    """The registry of MLFLOW_TRACKING_URI.

    Raises:
        InputError: It is not set.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise InputError(
            "the model registry is not set.",
            where="MLFLOW_TRACKING_URI",
            hint="Set it to an MLflow server, or to sqlite:////path/mlflow.db.",
        )
    return Registry(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def _told(method: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
    """What MLflow says when it fails, for a person: every step here may be repeated."""

    @wraps(method)
    def telling(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Answer:
        try:
            return method(*arguments, **options)
        except (MlflowException, RequestException) as error:
            raise RegistryError(
                f"MLflow failed: {str(error).strip().partition(chr(10))[0][:500]}",
                where="MLFLOW_TRACKING_URI",
                hint="Nothing is lost. Check the server and its login, and do the same again: it goes on where it was.",
            ) from error

    return telling


class Registry:
    """Versions and aliases of registered models.

    Args:
        tracking_uri: MLflow server, or SQLite URL.
        registry_uri: The registry's own URI; the same if None.
    """

    def __init__(self, tracking_uri: str, *, registry_uri: str | None = None) -> None:
        self._tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri or tracking_uri)

    @_told
    def register(self, model: str, artifact: Artifact, *, request: str) -> tuple[str, str]:
        """Makes a version of a policy artifact, or finds the one that this request made before it was killed.

        Args:
            model: Registered model; created if new.
            artifact: The verified policy.
            request: Names this wish for a version; the same request never makes two.

        Returns:
            (version, URI of its files).
        """
        require_model_name(model)
        self._create(model)
        found = next((v for v in self._versions(model) if (v.tags or {}).get(_REQUEST) == request), None)
        if found is not None:
            return str(found.version), str(found.source)
        run_id = self._upload(artifact)
        source = f"runs:/{run_id}/{_FOLDER}"
        tags = {_DIGEST: artifact.digest, _REQUEST: request}
        created = self._client.create_model_version(model, source=source, run_id=run_id, tags=tags)
        return str(created.version), source

    @_told
    def verify(self, uri: str, digest: str) -> None:
        """Reads a version's files back and compares their digest.

        Raises:
            ArtifactError: They are missing, damaged, or other files.
        """
        with tempfile.TemporaryDirectory(prefix="plumbline-verify-") as folder:
            download_policy(uri, digest, Path(folder) / _FOLDER)

    @_told
    def aliases(self, model: str) -> dict[str, str]:
        """Version by alias."""
        try:
            found = self._client.get_registered_model(model).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: str(version) for alias, version in found.items() if alias in ALIASES}

    @_told
    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Points an alias at a version, or removes it (None). Setting it twice is setting it once."""
        if version is None:
            _patiently(lambda: self._client.delete_registered_model_alias(model, alias))
        else:
            _patiently(lambda: self._client.set_registered_model_alias(model, alias, version))

    @_told
    def anchor(self, model: str, version: str, head: tuple[int, str]) -> None:
        """Writes the ledger's head into a version's tags, unless they name a later one."""
        anchored = _parse_head(self._version_tags(model, version).get(_HEAD))
        if anchored is None or anchored[0] < head[0]:
            _patiently(lambda: self._client.set_model_version_tag(model, version, _HEAD, f"{head[0]}:{head[1]}"))

    @_told
    def anchored_heads(self, model: str) -> list[tuple[int, str]]:
        """The ledger heads in the tags of all versions."""
        heads = [_parse_head((version.tags or {}).get(_HEAD)) for version in self._versions(model)]
        return [head for head in heads if head is not None]

    @_told
    def keep(self, model: str, version: str, folder: Path, place: str) -> None:
        """Puts a folder beside a version's files; what is there already is written over.

        Args:
            model: Registered model.
            version: Its version.
            folder: What to keep.
            place: Path below the version's run, such as `dossiers/<binding>/<criteria>`.
        """
        run_id = self._run_of(model, version)
        _patiently(lambda: self._client.log_artifacts(run_id, str(folder), place))

    @_told
    def fetch(self, model: str, version: str, place: str, into: Path) -> Path | None:
        """Downloads what `keep` put at a place; None if nothing is there."""
        run_id = self._run_of(model, version)
        if not self._client.list_artifacts(run_id, place):
            return None
        return Path(self._client.download_artifacts(run_id, place, str(into)))

    def _run_of(self, model: str, version: str) -> str:
        run_id = self._client.get_model_version(model, version).run_id
        if not run_id:
            raise RegistryError("names no run.", where=f"{model} version {version}", hint="Register it by the gate.")
        return run_id

    def _upload(self, artifact: Artifact) -> str:
        """Uploads a policy into a run of its own, once per digest; returns the run's id."""
        experiment = self._experiment()
        done = self._client.search_runs(
            [experiment], f"tags.`{_DIGEST}` = '{artifact.digest}' and tags.`{_UPLOADED}` = 'true'", max_results=1
        )
        if done:
            return done[0].info.run_id
        tags = {_DIGEST: artifact.digest, "mlflow.runName": f"policy {artifact.digest[:12]}"}
        run_id = self._client.create_run(experiment, tags=tags).info.run_id
        self._client.log_artifacts(run_id, str(artifact.path), _FOLDER)
        self.verify(f"runs:/{run_id}/{_FOLDER}", artifact.digest)
        self._client.set_tag(run_id, _UPLOADED, "true")
        self._client.set_terminated(run_id)
        return run_id

    def _create(self, model: str) -> None:
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model; none of one that is not there."""
        versions: list[ModelVersion] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name='{model}'", max_results=_PAGE, page_token=token)
            versions.extend(page)
            token = page.token
            if not token:
                return versions

    def _version_tags(self, model: str, version: str) -> dict[str, str]:
        return self._client.get_model_version(model, version).tags or {}

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        if found is not None:
            return found.experiment_id
        file = sqlite_file(self._tracking_uri) if self._tracking_uri.startswith("sqlite:") else None
        # Without a server MLflow would put files into the working directory of whichever process comes first.
        location = (file.resolve().parent / "mlflow-models").as_uri() if file else None
        try:
            return self._client.create_experiment(_EXPERIMENT, artifact_location=location)
        except MlflowException:
            found = self._client.get_experiment_by_name(_EXPERIMENT)
            if found is None:
                raise
            return found.experiment_id


def _patiently(write: Callable[[], object]) -> None:
    """Writes again when another writer was in the way (a locked store, a row that just came or went).

    Every write here may be repeated.
    """
    for pause in _PAUSES:
        try:
            write()
        except MlflowException as error:
            if error.error_code not in _CONTENTION:
                raise
            time.sleep(pause)
        else:
            return
    write()


def _parse_head(tag: str | None) -> tuple[int, str] | None:
    if not tag:
        return None
    sequence, _, digest = tag.partition(":")
    if not sequence.isdecimal():
        raise RegistryError(f"tag {_HEAD} is {tag!r}, not a ledger head.", hint="It was altered by hand.")
    return int(sequence), digest
