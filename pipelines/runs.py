"""Runs on this machine, as the command line asks for them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from components.shared.errors import InputError
from components.shared.files import read_json, write_json
from pipelines.local import RunResult, run_local
from pipelines.settings import RunSettings, load_run_settings
from pipelines.workspace import RunFolder, Workspace

__all__ = ["run_checkpoint_release", "run_retraining", "run_soak", "run_training", "workspace_status"]


def run_training(settings: RunSettings, *, console: Console) -> RunResult:
    """Runs the training pipeline that `settings.optimizer` asks for, from data to release.

    Raises:
        InputError: Data that the settings name cannot be read.
    """
    settings = settings.executed(profile="local")
    if settings.optimizer == "ppo":
        from pipelines.rlhf import build_rlhf as build
        from pipelines.rlhf import rlhf_arguments as arguments
    else:
        from pipelines.preference import build_preference as build
        from pipelines.preference import preference_arguments as arguments

    return run_local(settings, build(settings), arguments(settings), name=settings.name, console=console)


def run_retraining(settings: RunSettings, *, force: bool, console: Console) -> RunResult:
    """Runs the training pipeline if there is anything new since the model's last run that ended well.

    Raises:
        InputError: Data that the settings name cannot be read.
    """
    from pipelines.retraining import build_retraining, retraining_arguments

    settings = settings.executed(profile="local")
    arguments = retraining_arguments(settings, force=force)
    return run_local(settings, build_retraining(settings), arguments, name=settings.name, console=console)


def run_soak(
    workspace: str, model_name: str, *, run_id: str | None = None, seed: int | None = None, console: Console
) -> RunResult:
    """Runs the soak pipeline on the live model.

    Args:
        workspace: Folder of local runs.
        model_name: Registered model.
        run_id: The run that made the live model; None finds it by the ledger.
        seed: Of sampling and raters. None draws another one each time: the same seed would ask the same questions about
            the same answers, and find the votes that are there already.
        console: Where progress is drawn.

    Raises:
        InputError: There is no live model, or its run is not in the workspace.
    """
    from components.shared.champion import resolve_champion
    from pipelines.soak import build_soak, soak_arguments

    root = Workspace(workspace)
    if run_id is None:
        with root.services():
            live = resolve_champion(model_name)
        if live is None:
            raise InputError(f"{model_name} has no live version.", where=workspace, hint="Promote one first.")
        run_id = live.run
    released_by = root.run(run_id)
    settings = load_run_settings(str(released_by.settings))
    settings = settings.executed(workspace=workspace, profile="local")
    arguments = soak_arguments(settings, artifacts=read_json(released_by.path / "artifacts.json"))
    arguments["seed"] = secrets.randbelow(2**31) if seed is None else seed
    return run_local(settings, build_soak(settings), arguments, name=f"{settings.name}-soak", console=console)


def run_checkpoint_release(workspace: str, run_id: str, step: int, *, requested_by: str, console: Console) -> RunResult:
    """Takes the offer of a checkpoint: judges it as a candidate of its own, on fresh prompts.

    Args:
        workspace: Folder of local runs.
        run_id: The run whose gate made the offer.
        step: The checkpoint that it offered.
        requested_by: Who takes the offer, and does not approve what comes of it.
        console: Where progress is drawn.

    Raises:
        InputError: The run has no decision, or its gate offered no such checkpoint.
    """
    from components.shared.artifacts import read_artifact
    from components.shared.champion import resolve_champion
    from pipelines.checkpoint import build_checkpoint_release, checkpoint_arguments

    root = Workspace(workspace)
    made_by = root.run(run_id)
    file = made_by.path / "artifacts.json"
    artifacts = read_json(file) if file.is_file() else {}
    if "decision" not in artifacts:
        raise InputError("it made no decision.", where=f"run {run_id}")
    decision = read_json(read_artifact(artifacts["decision"], "decision").file("decision.json"))
    _require_offered(decision, step, run_id)
    settings = load_run_settings(str(made_by.settings)).executed(workspace=workspace, profile="local")
    settings = settings.asked_by(requested_by)
    with root.services():
        live = resolve_champion(settings.model_name)
    champion = (live.uri, live.digest) if live else ("", "")
    arguments = checkpoint_arguments(settings, step=step, artifacts=artifacts, champion=champion)
    name = f"{settings.name}-step-{step}"
    result = run_local(settings, build_checkpoint_release(settings), arguments, name=name, console=console)
    own = result.run.path / "artifacts.json"  # a soak of what it released needs that run's data and models too
    write_json(own, {**{role: path for role, path in artifacts.items() if role != "decision"}, **read_json(own)})
    return result


def _require_offered(decision: dict[str, Any], step: int, run_id: str) -> None:
    """Only what the gate offered: whoever tries one checkpoint after the other finds one that passes by chance."""
    offer = decision.get("checkpoint_offer") or {}
    if offer.get("step") == step:
        return
    if offer.get("step") is not None:
        raise InputError(
            f"the gate offered checkpoint {offer['step']}, not {step}.",
            where=f"run {run_id}",
            hint="One checkpoint a run may be tried: several would find one that passes by chance.",
        )
    why = offer.get("reason") or f"Its verdict is {decision['verdict']}: the gate looks for one when a candidate fails."
    raise InputError("the gate offered no checkpoint.", where=f"run {run_id}", hint=why)


def workspace_status(workspace: str) -> dict[str, Any]:
    """Runs of a workspace, oldest first, the champion of every model, and what waits: for people, or to be told."""
    from components.shared.champion import resolve_champion

    root = Workspace(workspace)
    if not root.root.is_dir():
        raise InputError("no such workspace.", where=workspace, hint="`plumbline run` makes it, or give --workspace.")
    runs = root.runs()
    names = sorted({name for run in runs if (name := _model_name(run))})
    with root.services():
        champions = {name: resolve_champion(name) for name in names}
        evidence, notices = _waiting()
    return {
        "runs": [_describe(run) for run in runs],
        "evidence": evidence,
        "notices": notices,
        "models": [{"model": name, "champion": found.version if found else None} for name, found in champions.items()],
    }


def _waiting() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Evidence that people still owe, and notices that no webhook has confirmed."""
    from components.shared.ledger_table import database_url, sqlite_file
    from components.shared.notices import open_outbox
    from pipelines.release_runs import awaited_evidence

    file = sqlite_file(database_url())
    if file is not None and not file.exists():
        return [], []
    undelivered = [
        {
            "id": notice.id,
            "kind": notice.kind,
            "text": notice.body["text"],
            "created_at": notice.created_at,
            "attempts": notice.attempts,
            "problem": notice.problem,
            "given_up": notice.given_up,
        }
        for notice in open_outbox().undelivered()
    ]
    return awaited_evidence(), undelivered


def _model_name(run: RunFolder) -> str | None:
    """The model of a run, also of one whose settings an older version wrote."""
    try:
        return yaml.safe_load(run.settings.read_text(encoding="utf-8")).get("model_name")
    except (OSError, yaml.YAMLError, AttributeError):
        return None


def _describe(run: RunFolder) -> dict[str, Any]:
    if not run.summary.is_file():
        return {"run_id": run.run_id, "status": run.state, "verdict": None, "seconds": None, "report": None}
    summary = read_json(run.summary)
    return {
        "run_id": run.run_id,
        "status": summary["status"],
        "verdict": summary["verdict"],
        "seconds": summary["seconds"]["total"],
        "report": str(Path(run.report)),
    }
