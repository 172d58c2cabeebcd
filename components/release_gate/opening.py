"""The first step of a release run: is it this run's turn, and are these the artifacts that the order names?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from components.shared.artifacts import MANIFEST, content_digest
from components.shared.errors import ArtifactError
from components.shared.files import read_json
from components.shared.release_orders import open_orders
from components.shared.tracking import stage_run

__all__ = ["open_release"]


def open_release(
    *, folders: Mapping[str, str], digests: Mapping[str, str], order: str, attempt: int, holder: str
) -> None:
    """Takes the order, then checks that every artifact has the digest that it names.

    The digest of each artifact's manifest is checked here; whoever reads its files checks them against the manifest.

    Args:
        folders: Where the artifacts are, by role.
        digests: What they must be, by role.
        order: The release order; empty for a run that a person started on a batch that is still open.
        attempt: As which attempt it was started.
        holder: Names this run.

    Raises:
        OrderTakenError: Another run has the order.
        ArtifactError: An artifact is missing, or another one than the order names.
    """
    with stage_run("open_release", settings={"order": order, "attempt": attempt}):
        if order:
            open_orders().begin(order, attempt, holder)
        for role, folder in folders.items():
            _check(role, Path(folder) / MANIFEST, digests.get(role, ""))


def _check(role: str, path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtifactError(
            f"the {role} is not there any more.", where=str(path.parent), hint="Run the pipeline again."
        )
    manifest = read_json(path)
    found = manifest.get("digest")
    if content_digest(manifest["kind"], manifest["files"]) != found:
        raise ArtifactError(f"the {role}'s {MANIFEST} does not match its own digest.", where=str(path))
    if found != expected:
        raise ArtifactError(
            f"the {role} has digest {found[:12]}, the release order names {expected[:12] or 'none'}.",
            where=str(path.parent),
            hint="It was made anew since; run the pipeline again, so that people judge what it holds now.",
        )
