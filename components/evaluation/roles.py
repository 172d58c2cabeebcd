"""Which policies are evaluated, and in which role.

`reference` (the SFT policy, or in soak the live model's predecessor), `candidate` (PPO's policy, or in soak the live
model), evenly spaced `step-0010`... checkpoints, and the `champion`. A policy comes as an artifact folder, or as
registry URI and digest. A champion that *is* the candidate is no role of its own: the candidate's entry says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.shared.artifacts import Artifact, content_digest, read_artifact
from components.shared.champion import download_policy
from components.shared.errors import InputError
from components.shared.models import read_policy_record

__all__ = ["CANDIDATE", "CHAMPION", "REFERENCE", "PolicySource", "Role", "evenly_spaced", "find_roles"]

REFERENCE = "reference"
CANDIDATE = "candidate"
CHAMPION = "champion"
_CHECKPOINT = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from: an artifact folder (`path`), or `uri` and `digest` of a registered one."""

    path: str = ""
    uri: str = ""
    digest: str = ""

    @property
    def given(self) -> bool:
        return bool(self.path or self.uri)

    def open(self, role: str, downloads: Path) -> Artifact:
        """Reads the artifact and verifies it, downloading it first where it is registered.

        Raises:
            InputError: Neither or both are given, or a URI without its digest.
            ArtifactError: It is not there, is damaged, or is another one than `digest` names.
        """
        if bool(self.path) == bool(self.uri):
            raise InputError(f"give the {role} as an artifact or as URI and digest.", where=f"evaluation {role}")
        if self.path:
            return read_artifact(self.path, "policy")
        if not self.digest:
            raise InputError(f"the {role}'s URI comes without a digest.", where=f"evaluation {role}")
        return download_policy(self.uri, self.digest, downloads / role)


@dataclass(frozen=True)
class Role:
    """A policy and the part that it plays.

    Attributes:
        name: `reference`, `candidate`, `champion` or `step-0010`...
        folder: Where its weights and tokenizer are.
        digest: Digest of its policy artifact (of a checkpoint: the digest that its files would have as an artifact).
        step: Training step, if known.
        source: Registry URI, or the base model that it was trained from; for people.
        is_champion: The candidate is the champion already.
    """

    name: str
    folder: Path
    digest: str
    step: int | None
    source: str
    is_champion: bool = False

    @property
    def is_checkpoint(self) -> bool:
        return _CHECKPOINT.fullmatch(self.name) is not None

    def as_json(self) -> dict[str, Any]:
        """Its entry in `models.json`."""
        entry: dict[str, Any] = {"digest": self.digest, "step": self.step, "name": self.source}
        if self.is_champion:
            entry["is_champion"] = True
        return entry


def find_roles(
    *,
    reference: PolicySource,
    candidate: PolicySource,
    champion: PolicySource,
    checkpoints: str,
    max_checkpoints: int,
    downloads: Path,
) -> list[Role]:
    """Opens and verifies every policy that will answer.

    Args:
        reference: The policy that the others are compared with.
        candidate: The policy under test.
        champion: The live policy; not given before the first promotion and in soak.
        checkpoints: A `policy_checkpoints` artifact, or empty.
        max_checkpoints: How many of its checkpoints take part.
        downloads: Folder for policies from the registry.

    Returns:
        Reference, candidate, checkpoints by step, and the champion unless it is the candidate.
    """
    opened = candidate.open(CANDIDATE, downloads)
    is_champion = champion.digest == opened.digest
    roles = [
        _role(REFERENCE, reference, reference.open(REFERENCE, downloads)),
        _role(CANDIDATE, candidate, opened, is_champion=is_champion),
    ]
    if checkpoints:
        roles += _checkpoint_roles(read_artifact(checkpoints, "policy_checkpoints"), max_checkpoints)
    if champion.given and not is_champion:
        roles.append(_role(CHAMPION, champion, champion.open(CHAMPION, downloads)))
    return roles


def evenly_spaced(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of the items, evenly spaced, the last one always among them."""
    if len(items) <= n:
        return list(items)
    return [items[(place + 1) * len(items) // n - 1] for place in range(n)]


def _role(name: str, source: PolicySource, artifact: Artifact, *, is_champion: bool = False) -> Role:
    record = read_policy_record(artifact.path)
    return Role(
        name=name,
        folder=artifact.path,
        digest=artifact.digest,
        step=record.get("step"),
        source=source.uri or str(record["base_model"]),
        is_champion=is_champion,
    )


def _checkpoint_roles(artifact: Artifact, max_checkpoints: int) -> list[Role]:
    """Roles of the checkpoints, evenly spaced; none when training was too short to leave any."""
    files = artifact.manifest["files"]
    names = sorted({name.partition("/")[0] for name in files if _CHECKPOINT.match(name)}, key=_step)
    return [
        Role(
            name=name,
            folder=artifact.path / name,
            digest=content_digest("policy", _files_below(files, name)),
            step=_step(name),
            source=str(read_policy_record(artifact.path / name)["base_model"]),
        )
        for name in evenly_spaced(names, max_checkpoints)
    ]


def _files_below(files: Mapping[str, str], folder: str) -> dict[str, str]:
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): digest for name, digest in files.items() if name.startswith(prefix)}


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))
