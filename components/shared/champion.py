"""Which model is live, and how to fetch it: read from the release ledger, verified by digest.

The ledger is the truth and MLflow's aliases are its shadow, so a stage that needs the champion asks here. Everything
later in a run uses the digest found here, not the alias.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError

from components.shared.artifact_sources import fetch, local_folder
from components.shared.artifacts import Artifact, read_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.ledger_table import LEDGER, LIVE_STATES, database_url, open_engine, sqlite_file

__all__ = ["Champion", "download_policy", "resolve_champion"]


@dataclass(frozen=True)
class Champion:
    """The live version of a model.

    Attributes:
        name: Registered model.
        version: Its version in the registry.
        digest: sha256 of the policy artifact.
        uri: Where the artifact lies (a registry URI or a folder).
        run: The pipeline run that made it; empty if it was registered outside one.
    """

    name: str
    version: str
    digest: str
    uri: str
    run: str = ""


def resolve_champion(model_name: str, *, url: str | None = None) -> Champion | None:
    """The live version of `model_name` by the ledger; None before the first promotion.

    Args:
        model_name: Registered model.
        url: Ledger database; PLUMBLINE_DATABASE_URL if None.

    Raises:
        InputError: The database is not set or cannot be read.
    """
    url = url or database_url()
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return None
    states: dict[str, str] = {}
    registered: dict[str, dict[str, str]] = {}
    for row in _rows(url, model_name):
        states[row.version] = row.to_state
        if row.event == "register":
            registered[row.version] = json.loads(row.details)
    live = [version for version, state in states.items() if state in LIVE_STATES]
    if not live:
        return None
    if len(live) > 1:
        raise InputError(
            f"the ledger shows {len(live)} live versions: {', '.join(live)}.",
            where=f"model {model_name}",
            hint="The ledger was altered; run `plumbline verify`.",
        )
    release = registered[live[0]]
    return Champion(
        name=model_name,
        version=live[0],
        digest=release["digest"],
        uri=release["uri"],
        run=release.get("run", ""),
    )


def download_policy(uri: str, digest: str, folder: str | Path) -> Artifact:
    """Fetches a policy artifact into `folder` and verifies it.

    Args:
        uri: `Champion.uri`: an MLflow artifact URI (`runs:/...`, `mlflow-artifacts:/...`) or a local folder.
        digest: The digest that the artifact must have.
        folder: Where it shall be; must not exist yet, or be empty.

    Returns:
        The verified artifact at `folder`.

    Raises:
        ArtifactError: It cannot be fetched, is damaged, or is another model than `digest` names.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ArtifactError("something is already there.", where=str(folder), hint="Choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as aside:
        fetched = _fetch(uri, Path(aside))
        artifact = read_artifact(fetched, "policy")
        if artifact.digest != digest:
            raise ArtifactError(
                f"holds a policy with digest {artifact.digest[:12]}, expected {digest[:12]}.",
                where=uri,
                hint="The registry's files are not those that were registered; do not serve them.",
            )
        if folder.exists():
            folder.rmdir()
        fetched.rename(folder)
    return Artifact(folder, artifact.manifest)


def _rows(url: str, model_name: str) -> list[Row]:
    query = select(LEDGER).where(LEDGER.c.model == model_name).order_by(LEDGER.c.sequence)
    try:
        with open_engine(url).connect() as connection:
            if not connection.dialect.has_table(connection, LEDGER.name):
                return []
            return list(connection.execute(query))
    except SQLAlchemyError as error:
        raise InputError(f"cannot read the ledger: {error}.", where="PLUMBLINE_DATABASE_URL") from error


def _fetch(uri: str, aside: Path) -> Path:
    local = local_folder(uri)
    if local is None:
        return fetch(uri, aside)
    if not local.is_dir():
        raise ArtifactError("no such policy folder.", where=uri)
    return Path(shutil.copytree(local, aside / "policy"))
