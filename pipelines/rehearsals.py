"""Which past decisions a policy is tried on: `plumbline policy check`, `plumbline replay` and `plumbline audit`.

Those of the workspace's runs, and those that the ledger knows: of each verdict the gate kept a dossier beside the model
version, so that it can be judged again when its run is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.release_gate import rehearsal
from components.release_gate.policy import load_policy_file
from components.release_gate.rehearsal import PastDecision
from components.shared.errors import ArtifactError, InputError, PlumblineError
from components.shared.files import read_json
from pipelines.workspace import RunFolder, Workspace

__all__ = ["audit_model", "replay_policy", "try_policy"]


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
    """Judges the evidence of every decision on a model by a policy: from the workspace's runs, else from its dossier.

    Returns:
        As `rehearsal.replay`, and `unreadable`: runs whose decision is missing or was altered, with the reason.

    Raises:
        InputError: The policy is not valid, or nothing was decided on the model.
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
    whole = [one for one in past if one.content["model_name"] == model and not one.missing]
    kept, gone = _kept_decisions(workspace, model, besides={_key(one) for one in whole})
    found = {_key(one) for one in [*whole, *kept]}
    partial = [one for one in past if one.content["model_name"] == model and one.missing and _key(one) not in found]
    mine, unreadable = [*whole, *kept, *partial], [*unreadable, *gone]
    if not mine and not unreadable:
        known = ", ".join(sorted({one.content["model_name"] for one in past})) or "none"
        raise InputError(f"nothing was decided on model {model!r}.", where=workspace, hint=f"Models here: {known}.")
    return rehearsal.replay(mine, rules) | {"unreadable": unreadable}


def audit_model(model: str, *, workspace: str = "runs") -> dict[str, Any]:
    """Proves a model's past from its ledger and dossiers alone: is the ledger intact, and do the verdicts follow?

    Each verdict's evidence is checked against the digests on the ledger and judged again by the thresholds of its day;
    so is what the ledger says of its approvals: how many, how, and who may not give one.

    Returns:
        `ledger` (as `plumbline verify`), `verdicts` (`sequence`, `time`, `version`, `run`, `recorded`, `again`,
        `imported_by`, `ok`, `problem`; one that cannot be judged again has a problem and is not ok), and `ok`: the
        ledger is intact and every verdict follows from its evidence.

    Raises:
        InputError: The ledger does not know the model.
    """
    from components.release_gate import operations
    from components.release_gate.office import open_office

    with Workspace(workspace).services():
        office = open_office()
        entries = [entry for entry in office.ledger.view(model).entries if rehearsal.is_verdict(entry)]
        if not entries:
            known = ", ".join(office.ledger.models()) or "none"
            raise InputError(f"nothing was decided on model {model!r}.", where="ledger", hint=f"Models there: {known}.")
        ledger = operations.verify(model)
        verdicts = [_audited(office.registry, entry) for entry in entries]
    return {
        "model": model,
        "ledger": ledger,
        "verdicts": verdicts,
        "ok": ledger["ok"] and all(v["ok"] for v in verdicts),
    }


def _audited(registry: Any, entry: Any) -> dict[str, Any]:
    told = {"sequence": entry.sequence, "time": entry.time, "version": entry.version, "recorded": entry.data["verdict"]}
    told["imported_by"] = entry.data.get("importers", [])
    try:
        past = rehearsal.open_kept_decision(registry, entry)
    except PlumblineError as error:
        return told | {"run": entry.data.get("run", ""), "again": None, "ok": False, "problem": str(error)}
    told["run"] = past.run
    if past.own_policy is None:
        problem = "The thresholds of its day are not in the dossier, or this version cannot read them."
        return told | {"again": None, "ok": False, "problem": problem}
    found = rehearsal.rehearse(past, past.own_policy)
    problem = found["problem"]
    if problem is None and found["verdict"] != told["recorded"]:
        problem = f"Its evidence says {found['verdict']} today: {' '.join(found['reasons'][:1])}"
    problem = problem or " ".join(rehearsal.broken_terms(past, entry)) or None
    return told | {"again": found["verdict"], "ok": problem is None, "problem": problem}


def _kept_decisions(
    workspace: str, model: str, *, besides: set[tuple[str, str]]
) -> tuple[list[PastDecision], list[dict[str, str]]]:
    """Decisions that the ledger knows, read from their dossiers; and those that cannot be read, with the reason."""
    from components.release_gate.office import open_office

    kept: list[PastDecision] = []
    unreadable: list[dict[str, str]] = []
    with Workspace(workspace).services():
        office = open_office()
        for entry in office.ledger.view(model).entries:
            key = (entry.data.get("binding", ""), entry.data.get("verdict", ""))
            if not rehearsal.is_verdict(entry) or key in besides:
                continue
            try:
                kept.append(rehearsal.open_kept_decision(office.registry, entry))
            except PlumblineError as error:
                name = entry.data.get("run") or f"ledger entry {entry.sequence}"
                unreadable.append({"run": name, "problem": str(error)})
    return kept, unreadable


def _key(past: PastDecision) -> tuple[str, str]:
    """A decision on the ledger: what it is bound to, and what it says."""
    return str(past.content.get("binding", "")), past.content["verdict"]


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
