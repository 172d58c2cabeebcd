"""Which past decisions of a workspace a policy is tried on: `plumbline policy check` and `plumbline replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.release_gate import rehearsal
from components.release_gate.policy import load_policy_file
from components.release_gate.rehearsal import PastDecision
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json
from pipelines.workspace import RunFolder, Workspace

__all__ = ["replay_policy", "try_policy"]


def try_policy(
    policy: str, *, decision: str | None = None, run_id: str | None = None, workspace: str = "runs"
) -> dict[str, Any]:
    """Validates a policy and, where a past decision is named, judges its evidence by it.

    Args:
        policy: Name of a shipped policy, or a YAML file.
        decision: Folder of a `decision` artifact, with its run's folder around it.
        run_id: A run of the workspace.
        workspace: Folder of local runs.

    Raises:
        InputError: The policy is not valid, or the run has no decision.
    """
    found = rehearsal.check_policy(policy)
    if decision is None and run_id is None:
        return found | {"rehearsal": None}
    if decision is not None:
        folder = Path(decision).resolve()
        root = next((parent for parent in folder.parents if (parent / "artifacts.json").is_file()), None)
        runs = Workspace(root.parent).runs() if root else []
        run = RunFolder(root) if root else None
        past = _past_decision(folder, _artifacts(runs), run)
    else:
        root = Workspace(workspace)
        run = root.run(str(run_id))
        folder = _roles(run).get("decision")
        if folder is None:
            raise InputError("it made no decision.", where=f"run {run_id}")
        past = _past_decision(Path(folder), _artifacts(root.runs()), run)
    return found | {"rehearsal": rehearsal.rehearse(past, load_policy_file(policy))}


def replay_policy(policy: str, model: str, *, workspace: str = "runs") -> dict[str, Any]:
    """Judges the evidence of every decision on a model in the workspace by a policy.

    Returns:
        As `rehearsal.replay`, and `unreadable`: runs whose decision is missing or was altered, with the reason.

    Raises:
        InputError: The policy is not valid, or nothing was decided on the model here.
    """
    rules = load_policy_file(policy)
    runs = Workspace(workspace).runs()
    artifacts = _artifacts(runs)
    past, unreadable = [], []
    for run in runs:
        folder = _roles(run).get("decision")
        if folder is None:
            continue
        try:
            past.append(_past_decision(Path(folder), artifacts, run))
        except ArtifactError as error:
            unreadable.append({"run": run.run_id, "problem": str(error)})
    mine = [one for one in past if one.content["model_name"] == model]
    if not mine:
        known = ", ".join(sorted({one.content["model_name"] for one in past})) or "none"
        raise InputError(f"nothing was decided on model {model!r}.", where=workspace, hint=f"Models here: {known}.")
    return rehearsal.replay(mine, rules) | {"unreadable": unreadable}


def _past_decision(folder: Path, artifacts: dict[str, str], run: RunFolder | None) -> PastDecision:
    return rehearsal.open_past_decision(
        folder, artifacts, run=run.run_id if run else str(folder), seed=_seed(run) if run else 0
    )


def _roles(run: RunFolder) -> dict[str, str]:
    """Artifacts of a run by role; none of a run that was killed."""
    file = run.path / "artifacts.json"
    return read_json(file) if file.is_file() else {}


def _artifacts(runs: list[RunFolder]) -> dict[str, str]:
    """Every artifact of the runs, by digest: evidence that a run reused lies in an earlier one."""
    return rehearsal.index_artifacts(folder for run in runs for folder in _roles(run).values())


def _seed(run: RunFolder) -> int:
    try:
        return int(yaml.safe_load(run.settings.read_text(encoding="utf-8")).get("seed", 0))
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return 0
