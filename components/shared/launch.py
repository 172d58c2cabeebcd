"""Several processes, on this machine or on several: a launcher starts them, and what becomes of them is told as of one.

A training stage names itself by a `Stage`; its module, run with a file of arguments,

    python -m components.sft.stage arguments.json

runs the stage in one process; under `torchrun` or `accelerate launch`, also over several machines, it is one of many.
The arguments are those of the stage's `run`, and the outcome is written beside them. On several machines Kubeflow
Trainer starts `torchrun` on each; arguments, inputs and outputs are then in a folder that all of them mount, and so are
checkpoints unless they go to object storage.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from components.shared.artifacts import MANIFEST
from components.shared.errors import InputError, PlumblineError, error_like
from components.shared.files import digest_of, read_json, sha256_file, write_json
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE
from components.shared.progress import PROGRESS_VARIABLE
from components.shared.termination import graceful_termination
from components.shared.trainjob import TrainJobSettings, step_environment, step_pod, train_job
from components.shared.trainjob_run import Cluster, TrainJobError, TrainJobRun

__all__ = ["Stage", "is_launched", "launch", "launch_on_nodes", "launched", "main"]

_logger = logging.getLogger(__name__)

_OUTCOME = ".outcome.json"
_PLACES = "trainjobs"
_LAUNCHER_GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that torch's launcher, when it is told to end, gives its processes to save."""
_LAUNCHER_SECONDS = 30
"""What the launcher keeps of a pod's grace for itself."""
_LEFT_SECONDS = 7 * 86_400
_APPEARS_SECONDS = 60.0
"""How long a file of another machine may stay unseen: the attribute cache of NFS."""
_NODE_LAUNCHER = ("python3", "-m", "torch.distributed.run", "--module")
"""Each node's; Kubeflow Trainer tells torch's launcher the rest by its `PET_` variables."""


@dataclass(frozen=True)
class Stage:
    """A stage that can train in several processes.

    Attributes:
        name: Its section of the settings, and its folder.
        inputs: Arguments of its `run` that are input folders; one that is empty is passed on as it is.
        outputs: Arguments that are folders which it writes.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def module(self) -> str:
        """What a launcher runs."""
        return f"components.{self.name}.stage"


def is_launched() -> bool:
    """Whether a launcher started this process as one of several; some pods set WORLD_SIZE=1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def launched(
    stage: Stage, arguments: Mapping[str, Any], *, processes: int, trainjob: TrainJobSettings | None
) -> dict[str, Any] | None:
    """Runs the stage in several processes or on several nodes where its settings say so.

    Args:
        stage: The stage.
        arguments: Of its `run`.
        processes: Its setting.
        trainjob: Its setting.

    Returns:
        What the stage returned; None where it is to run in this very process.

    Raises:
        PlumblineError: The stage's own error, or what became of its processes.
        SystemExit: 143 after SIGTERM.
    """
    if is_launched():
        return None
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    if trainjob is not None:
        return launch_on_nodes(stage, plain, trainjob)
    return launch(stage, plain, processes=processes) if processes > 1 else None


def launch(stage: Stage, arguments: Mapping[str, Any], *, processes: int) -> dict[str, Any]:
    """Runs the stage in `processes` processes of this machine.

    Args:
        stage: The stage.
        arguments: Of its `run`, as JSON values.
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
            where=f"{stage.name}.processes",
            hint="Lower it, or give the step more GPUs.",
        )
    with (
        tempfile.TemporaryDirectory(prefix=f"plumbline-{stage.name}-") as folder,
        graceful_termination() as termination,
    ):
        file = Path(folder) / "arguments.json"
        write_json(file, dict(arguments))
        termination.deferred = True
        process = subprocess.Popen(_command(stage, file, processes))
        told = False
        while (status := _wait_a_little(process)) is None:
            if termination.requested and not told:
                _tell_workers(stage, process)
                told = True
        outcome = file.with_suffix(_OUTCOME)
        if termination.requested and not outcome.is_file():
            termination.exit()
        if not outcome.is_file():
            raise PlumblineError(
                f"the processes ended with status {status}; the log above says why.",
                where=stage.name,
                hint="Run again: training goes on from the last checkpoint.",
            )
        return _read_outcome(outcome)


def launch_on_nodes(
    stage: Stage, arguments: Mapping[str, Any], settings: TrainJobSettings, *, cluster: Cluster | None = None
) -> dict[str, Any]:
    """Runs the stage on several nodes, as a TrainJob.

    Args:
        stage: The stage.
        arguments: Of its `run`, as JSON values.
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
    name = _job_name(stage, arguments)
    place = Path(settings.folder) / _PLACES / name
    file = place / "arguments.json"
    job = train_job(
        name, settings, _node_command(stage, file), environment=_node_environment(settings), owner=step_pod()
    )
    run = TrainJobRun(job, cluster=cluster, grace_seconds=settings.grace_seconds)
    outcome = file.with_suffix(_OUTCOME)

    def prepare() -> bool:
        if _has_result(outcome):
            _logger.warning("%s has ended in an earlier try; its result is taken.", name)
            return False
        _remove(place)
        _sweep(place.parent, older_than=settings.timeout_seconds + _LEFT_SECONDS, run=run)
        _lay_out(stage, arguments, settings, place)
        return True

    taken = False
    try:
        try:
            run.follow(prepare)
        except TrainJobError as error:
            if not outcome.is_file():
                raise
            _logger.warning("%s What the training itself said is taken.", error)
        result = _read_outcome(_appeared(outcome))  # or the stage's own error
        for output in stage.outputs:
            shutil.copytree(place / output, arguments[output], dirs_exist_ok=True)
        taken = True
        return result
    finally:
        if run.is_gone and (taken or not _has_result(outcome)):
            _remove(place)
        elif place.is_dir():
            why = "its result is not taken yet" if run.is_gone else "nodes may still write there"
            _logger.warning("%s is left: %s. A retry of the step takes it up.", place, why)


def _job_name(stage: Stage, arguments: Mapping[str, Any]) -> str:
    """Of this very piece of work of this run: a retry of the step comes to the same. Without a run each is new.

    Outputs are no part of it: a step that is made anew gets other places for them. Inputs are told by what they hold.
    """
    known = {name: value for name, value in arguments.items() if name not in stage.outputs}
    for name in stage.inputs:
        manifest = Path(arguments[name] or "") / MANIFEST
        if arguments[name] and manifest.is_file():
            known[name] = sha256_file(manifest)
    run = os.environ.get("PLUMBLINE_RUN_ID") or uuid.uuid4().hex
    return f"plumbline-{stage.name.replace('_', '-')}-{digest_of([run, known])[:12]}"


def _node_command(stage: Stage, file: Path) -> list[str]:
    return [*_NODE_LAUNCHER, stage.module, str(file)]


def _node_environment(settings: TrainJobSettings) -> dict[str, str]:
    environment = step_environment(settings.variables)
    environment.pop(PROGRESS_VARIABLE, None)  # a file of this machine
    if not environment.get(CHECKPOINTS_VARIABLE):
        environment[CHECKPOINTS_VARIABLE] = f"{settings.folder}/checkpoints"
    environment[_LAUNCHER_GRACE] = str(settings.grace_seconds - _LAUNCHER_SECONDS)
    return environment


def _lay_out(stage: Stage, arguments: Mapping[str, Any], settings: TrainJobSettings, place: Path) -> None:
    """Copies the inputs to where every node sees them, and writes the arguments for the nodes."""
    inputs = [name for name in stage.inputs if arguments[name]]
    for name in inputs:
        shutil.copytree(arguments[name], place / name)
    world = settings.nodes * settings.processes_per_node
    there = {name: str(place / name) for name in (*inputs, *stage.outputs)}
    mine = {**arguments["settings"], "trainjob": None, "processes": world}
    write_json(place / "arguments.json", {**arguments, **there, "settings": mine})


def _has_result(outcome: Path) -> bool:
    """Whether the stage ended well; an error that it told belongs to the try that met it."""
    return outcome.is_file() and "result" in read_json(outcome)


def _appeared(outcome: Path) -> Path:
    """The outcome, once it is to be seen: a network's file system may tell of another machine's file a while later.

    Raises:
        PlumblineError: There is none.
    """
    until = time.monotonic() + _APPEARS_SECONDS
    while not outcome.is_file():
        if time.monotonic() > until:
            raise PlumblineError(
                "the nodes ended well and told nothing.",
                where=str(outcome),
                hint="Do step and nodes mount the same folder? `trainjob.claim`, `folder` and `sub_path` say which.",
            )
        time.sleep(1.0)
        os.listdir(outcome.parent)  # looks anew
    return outcome


def _sweep(places: Path, *, older_than: float, run: TrainJobRun) -> None:
    """Removes folders that steps left behind (see `launch_on_nodes`) and that nobody came back for.

    However old, the folder of a job that is there stays: it may wait in its queue for weeks.
    """
    for begun in places.glob("plumbline-*/arguments.json"):
        with suppress(FileNotFoundError):  # others sweep too
            touched = max(file.stat().st_mtime for file in (begun, *begun.parent.glob(f"*{_OUTCOME}")))
            if time.time() - touched > older_than and not run.may_be_there(begun.parent.name):
                _remove(begun.parent)


def _remove(place: Path) -> None:
    """Removes a job's folder, the outcome first: what is left of a removal that was cut short is no result."""
    (place / "arguments").with_suffix(_OUTCOME).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def main(stage: Stage, arguments_file: str) -> None:
    """One of the processes; the first writes the outcome.

    Args:
        stage: Its module is imported anew: the one that a launcher runs is called `__main__`, and so would its log.
        arguments_file: Arguments of its `run`, as JSON.
    """
    run = import_module(stage.module).run
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


def _command(stage: Stage, file: Path, processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "--module", stage.module, str(file)]


def _wait_a_little(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def _tell_workers(stage: Stage, launcher: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the workers themselves: the launcher, told, would kill them before they have saved."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if stage.module in child.cmdline():
                    child.send_signal(signal.SIGTERM)


def _read_outcome(file: Path) -> dict[str, Any]:
    """What the stage returned, or its error, raised as it was."""
    outcome = json.loads(file.read_text(encoding="utf-8"))
    if "result" in outcome:
        return outcome["result"]
    raise error_like(outcome["error"], outcome["problem"], outcome["where"], outcome["hint"])
