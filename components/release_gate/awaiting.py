"""A verdict that waits for people: what it says, and the order under which it is judged again.

The human_eval step writes into the evidence's manifest who judges, until when, and where its own inputs lie. While
people are still at it, the gate holds, says so, and records an order that names every artifact by address and digest:
a later release run needs no more than the model's name and version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.shared.artifacts import MANIFEST
from components.shared.errors import ArtifactError
from components.shared.files import read_json
from components.shared.release_orders import Mode, ReleaseOrder, make_order, open_orders
from components.shared.tracking import pipeline_run

__all__ = ["Awaited", "read_awaited", "record_order"]

_PEOPLE = "people"


@dataclass(frozen=True)
class Awaited:
    """Evidence that is still to come.

    Attributes:
        batch_id: The batch that people judge.
        deadline: Until when (UTC, ISO 8601).
        closed: It ended before all votes were there: no more will come.
        manifest: Of the evidence as it is now.
    """

    batch_id: str
    deadline: str
    closed: bool
    manifest: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """In words, for the verdict."""
        if self.closed:
            return f"The batch {self.batch_id[:8]} was closed before every pair had its votes; no more will come."
        return (
            f"Awaiting evidence: people judge batch {self.batch_id[:8]} until {self.deadline[:16]} UTC. The release "
            "run starts by itself when they are done or the time is up."
        )


def read_awaited(evidence: str) -> Awaited | None:
    """What the evidence waits for; None if it is complete, or not for people."""
    path = Path(evidence) / MANIFEST
    if not evidence or not path.is_file():
        return None
    manifest = read_json(path)
    about = manifest.get("metadata", {})
    if about.get("panel") != _PEOPLE or about.get("complete") is not False:
        return None
    return Awaited(about["batch_id"], about["deadline"], bool(about["closed"]), manifest)


def record_order(
    awaited: Awaited,
    *,
    model: str,
    version: str,
    mode: Mode,
    policy: str,
    folders: Mapping[str, str],
    locations: Mapping[str, str],
) -> ReleaseOrder:
    """Records what judging the version again takes; doing it twice is doing it once.

    Args:
        awaited: The evidence that is still to come.
        model: Registered model.
        version: Version under judgement.
        mode: `candidate` or `live`.
        policy: Gate policy.
        folders: Folder of each artifact that the gate read, by role; "" for one that does not exist.
        locations: Address of each, where it is another.

    Raises:
        ArtifactError: An artifact of the order has no manifest.
    """
    about, inputs = awaited.manifest["metadata"], awaited.manifest["inputs"]
    dataset = {"uri": _lasting(about["locations"]["dataset"]), "digest": inputs["dataset"]}
    read = {
        role: {"uri": _lasting(locations.get(role) or folder), "digest": _digest(folder)}
        for role, folder in folders.items()
        if folder
    }
    order = make_order(
        batch_id=awaited.batch_id,
        model=model,
        version=version,
        mode=mode,
        run=pipeline_run(),
        policy=_lasting(policy) if Path(policy).suffix else policy,
        seed=about["seed"],
        settings=awaited.manifest["settings"],
        artifacts={"dataset": dataset, **read},
    )
    open_orders().record(order)
    return order


def _digest(folder: str) -> str:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no {MANIFEST}: not a finished artifact.", where=folder)
    return read_json(path)["digest"]


def _lasting(uri: str) -> str:
    """An address that means the same in another working directory."""
    return uri if "://" in uri else str(Path(uri).resolve())
