"""A training checkpoint as a candidate of its own: whole weights, and the checkpoints that came before it.

The gate may offer an earlier checkpoint where a run's last policy failed. What comes out here is what a training stage
would have given had it stopped there: a `policy` that serves by itself, trained from the same reference, and the
`policy_checkpoints` up to it. Their first is the reference, as step 0, so that the first checkpoint too has something
that its held-out reward could have fallen from.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from components.shared.artifacts import MANIFEST, Artifact, read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.models import load_policy, load_tokenizer, read_policy_record, save_policy

__all__ = ["run"]

_CHECKPOINT = re.compile(r"step-(\d+)")


def run(*, checkpoints: str, reference: str, step: int, output_policy: str, output_checkpoints: str) -> dict[str, Any]:
    """Writes a checkpoint as `policy`, and those before it as `policy_checkpoints`.

    Args:
        checkpoints: `policy_checkpoints` artifact of the run.
        reference: `policy` artifact that the run trained from.
        step: The training step wanted.
        output_policy: Where the policy shall be.
        output_checkpoints: Where the earlier checkpoints shall be.

    Returns:
        `digest` and `step` of the policy.

    Raises:
        InputError: There is no checkpoint at this step.
        ArtifactError: An input is damaged, or the checkpoints were trained from another policy.
    """
    kept, base = read_artifact(checkpoints, "policy_checkpoints"), read_artifact(reference, "policy")
    trained_from = kept.manifest["inputs"].get("policy")
    if trained_from != base.digest:
        raise ArtifactError(
            f"were trained from policy {str(trained_from)[:12]}, the reference is {base.digest[:12]}.",
            where=checkpoints,
            hint="Give the reference of the same run.",
        )
    folders = _folders(kept)
    if step not in folders:
        known = ", ".join(map(str, sorted(folders))) or "none"
        raise InputError(f"there is no checkpoint at step {step}.", where=checkpoints, hint=f"Steps there: {known}.")
    inputs = {"policy": base.digest, "checkpoints": kept.digest}
    shared: dict[str, Any] = {"inputs": inputs, "settings": {"step": step}, "stage": "evaluation"}
    with write_artifact(output_policy, "policy", **shared) as draft:
        _write_whole(folders[step], base.path, draft.path, step)
        draft.metadata["step"] = step
    with write_artifact(output_checkpoints, "policy_checkpoints", **shared) as draft:
        _copy(base.path, draft.path / "step-0000")
        for earlier in sorted(known for known in folders if 0 < known < step):
            _copy(folders[earlier], draft.path / folders[earlier].name)
    return {"digest": read_artifact(output_policy, "policy").digest, "step": step}


def _folders(checkpoints: Artifact) -> dict[int, Path]:
    names = {name.partition("/")[0] for name in checkpoints.manifest["files"]}
    found = {name: _CHECKPOINT.fullmatch(name) for name in sorted(names)}
    return {int(match[1]): checkpoints.path / name for name, match in found.items() if match}


def _write_whole(source: Path, reference: Path, target: Path, step: int) -> None:
    """Copies whole weights; merges an adapter into the reference that it belongs to."""
    record = read_policy_record(source)
    if record["format"] == "full":
        _copy(source, target)
        return
    model = load_policy(source, reference=reference)
    origin = {"base_model": record["base_model"], "base_digest": record["base_digest"]}
    save_policy(model, load_tokenizer(source), target, **origin, step=step)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
