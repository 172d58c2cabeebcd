"""Several processes, on this machine or on several: a launcher starts them, and what becomes of them is told as of one.

    python -m components.ppo.launch arguments.json

runs the stage in one process; under `torchrun` or `accelerate launch`, also over several machines, it is one of many.
The arguments are those of `stage.run`, and the outcome is written beside them. On several machines Kubeflow Trainer
starts `torchrun` on each; arguments, inputs, checkpoints and outputs are then in a folder that all of them mount.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from components.ppo.errors import CheckpointMismatchError, NotFiniteError, RewardRuleError
from components.shared.errors import ArtifactError, InputError, PlumblineError
from components.shared.files import digest_of, read_json, write_json
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE
from components.shared.progress import PROGRESS_VARIABLE
from components.shared.storage import is_object_storage
from components.shared.termination import graceful_termination
from components.shared.trainjob import (
    Cluster,
    TrainJobError,
    TrainJobSettings,
    run_train_job,
    step_environment,
    step_pod,
    train_job,
)

__all__ = ["is_launched", "launch", "launch_on_nodes"]

_OUTCOME = ".outcome.json"
_INPUTS = ("policy", "reward_model", "dataset")
_OUTPUTS = ("output_policy", "output_checkpoints", "output_history")
_NODE_COMMAND = ("python3", "-m", "torch.distributed.run", "--module", "components.ppo.launch")
"""Each node's; Kubeflow Trainer tells torch's launcher the rest by its `PET_` variables."""
_KINDS = {
    kind.__name__: kind
    for kind in (PlumblineError, InputError, ArtifactError, CheckpointMismatchError, NotFiniteError, RewardRuleError)
}


def is_launched() -> bool:
    """Whether a launcher started this process as one of several; some pods set WORLD_SIZE=1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def launch(arguments: Mapping[str, Any], *, processes: int) -> dict[str, Any]:
    """Runs the stage in `processes` processes of this machine.

    Args:
        arguments: Of `stage.run`.
        processes: Their number; on a machine with GPUs each takes one.

    Returns:
        What the stage returned.

    Raises:
        PlumblineError: The stage's own error, or that a process died.
        SystemExit: 143 after SIGTERM, once the step is finished and saved.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise InputError(
            f"{processes} processes need as many GPUs, {torch.cuda.device_count()} are visible.",
            where="ppo.processes",
            hint="Lower it, or give the step more GPUs.",
        )
    with tempfile.TemporaryDirectory(prefix="plumbline-ppo-") as folder, graceful_termination() as termination:
        file = Path(folder) / "arguments.json"
        write_json(file, dict(arguments))
        termination.deferred = True
        process = subprocess.Popen(_command(file, processes))
        told = False
        while (status := _wait_a_little(process)) is None:
            if termination.requested and not told:
                _tell_workers(process)
                told = True
        outcome = file.with_suffix(_OUTCOME)
        if termination.requested and not outcome.is_file():
            termination.exit()
        if not outcome.is_file():
            raise PlumblineError(
                f"the processes ended with status {status}; the log above says why.",
                where="ppo",
                hint="Run again: training goes on from the last checkpoint.",
            )
        return _read_outcome(outcome)


def launch_on_nodes(
    arguments: Mapping[str, Any], settings: TrainJobSettings, *, cluster: Cluster | None = None
) -> dict[str, Any]:
    """Runs the stage on several nodes, as a TrainJob.

    Args:
        arguments: Of `stage.run`.
        settings: Of the job.
        cluster: The cluster's API; that of this pod if None.

    Returns:
        What the stage returned.

    Raises:
        PlumblineError: The stage's own error, or what became of the job.
        SystemExit: 143 after SIGTERM; the job is deleted, and its nodes save as they end.
    """
    if not Path(settings.folder).is_dir():
        raise InputError("is no folder here.", where=settings.folder, hint=f"Mount the claim {settings.claim} there.")
    name = f"plumbline-ppo-{digest_of(arguments)[:8]}-{uuid.uuid4().hex[:6]}"
    place = Path(settings.folder) / "trainjobs" / name
    try:
        file = _lay_out(arguments, settings, place)
        environment = step_environment()
        environment.pop(PROGRESS_VARIABLE, None)  # a file of this machine
        kept = environment.get(CHECKPOINTS_VARIABLE, "")
        if not kept or is_object_storage(kept):  # all nodes must see one folder
            environment[CHECKPOINTS_VARIABLE] = f"{settings.folder}/checkpoints"
        job = train_job(name, settings, [*_NODE_COMMAND, str(file)], environment=environment, owner=step_pod())
        outcome = file.with_suffix(_OUTCOME)
        try:
            run_train_job(job, cluster=cluster)
        except TrainJobError:
            if outcome.is_file():
                _read_outcome(outcome)  # the stage's own error says more
            raise
        result = _read_outcome(outcome)
        for output in _OUTPUTS:
            shutil.copytree(place / output, arguments[output], dirs_exist_ok=True)
        return result
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _lay_out(arguments: Mapping[str, Any], settings: TrainJobSettings, place: Path) -> Path:
    """Copies the inputs to where every node sees them; returns the file of arguments for the nodes."""
    for name in _INPUTS:
        shutil.copytree(arguments[name], place / name)
    world = settings.nodes * settings.processes_per_node
    there = {name: str(place / name) for name in (*_INPUTS, *_OUTPUTS)}
    mine = {**arguments["settings"], "trainjob": None, "processes": world}
    write_json(place / "arguments.json", {**arguments, **there, "settings": mine})
    return place / "arguments.json"


def main(arguments_file: str) -> None:
    """One of the processes; the first writes the outcome."""
    from components.ppo.stage import run

    file = Path(arguments_file)
    outcome = file.with_suffix(_OUTCOME)
    is_main = int(os.environ.get("RANK", "0")) == 0
    try:
        result = run(**read_json(file))
    except PlumblineError as error:
        if not outcome.exists():  # one error is told, whichever process met it first
            told = {"problem": error.problem, "where": error.where, "hint": error.hint}
            write_json(outcome, {"error": type(error).__name__, **told})
        raise
    if is_main:
        write_json(outcome, {"result": result})


def _command(file: Path, processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "--module", "components.ppo.launch", str(file)]


def _wait_a_little(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def _tell_workers(launcher: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the workers themselves: the launcher, told, would kill them before they have saved."""
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "components.ppo.launch" in child.cmdline():
            child.send_signal(signal.SIGTERM)


def _read_outcome(file: Path) -> dict[str, Any]:
    outcome = json.loads(file.read_text(encoding="utf-8"))
    if "result" in outcome:
        return outcome["result"]
    kind = _KINDS.get(outcome["error"], PlumblineError)
    raise kind(outcome["problem"], where=outcome["where"], hint=outcome["hint"])


if __name__ == "__main__":
    main(sys.argv[1])
