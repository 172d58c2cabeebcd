"""The demonstration: the whole chain on a world that we make, and what happens when its safeguards are taken away.

`good` holds KL to its target and is promoted. `overoptimized` trains longer without KL control: the reward model likes
the result, people do not, and the gate blocks it. `forced` puts that model live by break-glass; fresh evidence rolls it
back. `dpo` learns from the same pairs without PPO, and is judged by the same people and gate. `people` is the first
three again, judged at the review service (`pipelines.demo_people`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from components.shared.code_version import code_version
from components.shared.errors import InputError
from components.shared.files import read_json, write_json
from pipelines.demo_people import run_people
from pipelines.local import RunResult
from pipelines.runs import run_soak, run_training
from pipelines.settings import DataSettings, RunSettings, load_run_settings
from pipelines.workspace import Workspace

__all__ = ["demo_settings", "run_demo"]

logger = logging.getLogger(__name__)

_SETTINGS = {"good": "demo", "overoptimized": "demo-overoptimized", "dpo": "demo-dpo"}


def run_demo(scenario: str, *, seed: int, workspace: str, console: Console) -> RunResult:
    """Runs a scenario of the demonstration on the state that earlier ones left.

    Args:
        scenario: `good`, `overoptimized`, `forced`, `dpo` or `people`.
        seed: Seed of the world and of the run; each seed has a registered model of its own.
        workspace: Folder of local runs.
        console: Where progress is drawn.

    Raises:
        InputError: `forced` before the over-optimised model exists.
    """
    if scenario == "forced":
        return _force(seed, workspace, console)
    if scenario == "people":
        good, over = (demo_settings(name, seed=seed, workspace=workspace) for name in ("good", "overoptimized"))
        _make_world(good, console)
        return run_people(good, over, console=console)
    settings = demo_settings(scenario, seed=seed, workspace=workspace)
    _make_world(settings, console)
    console.print(f"Plumbline demo, scenario [bold]{scenario}[/], seed {seed}: {settings.name}", highlight=False)
    return run_training(settings, console=console)


def demo_settings(scenario: str, *, seed: int, workspace: str) -> RunSettings:
    """The shipped settings of a scenario, for a seed and a workspace."""
    shipped = load_run_settings(_SETTINGS[scenario])
    world = Path(workspace) / f"world-{seed}-{code_version('demo_world')[:8]}"
    return shipped.model_copy(
        update={
            "seed": seed,
            "model_name": f"{shipped.model_name}-{seed}" if seed else shipped.model_name,
            "base_model": str(world / "model"),
            "data": DataSettings(sft=str(world / "sft.jsonl"), prompts=str(world / "prompts.jsonl")),
            "execution": shipped.execution.model_copy(update={"workspace": workspace}),
        }
    )


def _make_world(settings: RunSettings, console: Console) -> None:
    """Data and an untrained model for the seed, unless they are there."""
    world = Path(settings.base_model).parent
    if world.is_dir():
        return
    from components.demo_world.make import make_world

    with console.status("making the demo world: prompts, demonstrations, an untrained model"):
        make_world(world, seed=settings.seed)


def _force(seed: int, workspace: str, console: Console) -> RunResult:
    """Break-glass on the blocked model, then soak."""
    from components.release_gate import office, operations

    settings = demo_settings("overoptimized", seed=seed, workspace=workspace)
    with Workspace(workspace).services():
        version = _blocked_version(office.history(settings.model_name), settings.model_name)
        reason = "demo: put the over-optimised model live against the gate"
        console.print(f"[bold red]BREAK-GLASS[/] {settings.model_name} version {version} goes live against the gate")
        operations.break_glass(settings.model_name, version, actor="demo-operator", reason=reason)
    result = run_soak(workspace, settings.model_name, console=console)
    _tell_rollback(result, workspace, settings.model_name, console)
    return result


def _blocked_version(history: list[dict[str, Any]], model_name: str) -> str:
    states: dict[str, str] = {}
    for entry in history:
        states[str(entry["version"])] = entry["to_state"]
    blocked = [version for version, state in states.items() if state in ("BLOCKED", "ROLLED_BACK")]
    if not blocked:
        raise InputError(
            "there is no blocked version to force.",
            where=f"model {model_name}",
            hint="Run `make demo` and `make demo SCENARIO=overoptimized` first.",
        )
    return blocked[-1]


def _tell_rollback(result: RunResult, workspace: str, model_name: str, console: Console) -> None:
    """Adds to the summary how long the rollback took, from the ledger, and prints it."""
    from components.release_gate import operations

    with Workspace(workspace).services():
        taken = operations.last_rollback(model_name)
    if taken is None:
        return
    summary = read_json(result.run.summary)
    summary["rollback"] = taken
    write_json(result.run.summary, summary)
    result.summary.update(summary)
    console.print(f"rolled back to version {taken['version']} in {taken['seconds']:.2f} s", highlight=False)
