"""Runs a pipeline on this machine: the same KFP definition, through `kfp.local`, one subprocess a step.

`run_local` prepares the workspace, runs the pipeline while a person watches, and leaves `report.html` and
`summary.json` in the run's folder, also when a step fails. What did not change since an earlier run is taken from KFP's
cache, and a killed training step resumes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from components.shared.artifacts import MANIFEST
from components.shared.files import read_json, write_json, write_text
from components.shared.progress import ask_to_stop
from pipelines.console import Failure, Watcher
from pipelines.containers import container_steps, require_containers, terminate_steps
from pipelines.settings import RunSettings
from pipelines.workspace import RunFolder, Workspace

__all__ = ["RunResult", "run_local"]

logger = logging.getLogger(__name__)

_EXCEPTION_LINE = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Rejected)): (.+)$")
_FAILED_TASK = re.compile(r"Task (?:\x1b\[\d+m)?'([\w-]+)'(?:\x1b\[\d+m)? finished with status (?:\x1b\[\d+m)?FAILURE")


@dataclass(frozen=True)
class RunResult:
    """How a local run ended.

    Attributes:
        run: Its folder.
        summary: `summary.json`.
        failure: The step that failed and why; None when the pipeline went through.
    """

    run: RunFolder
    summary: dict[str, Any]
    failure: Failure | None


def run_local(
    settings: RunSettings,
    pipeline: Any,
    arguments: dict[str, Any],
    *,
    name: str,
    console: Console,
    given: Mapping[str, str] | None = None,
) -> RunResult:
    """Runs a pipeline to its end on this machine.

    Args:
        settings: The run's settings; `execution` says where.
        pipeline: A KFP pipeline.
        arguments: Its parameters.
        name: Names the run's folder.
        console: Where progress is drawn.
        given: Folder by role of artifacts that the pipeline takes from elsewhere, for the report.

    Returns:
        The run's folder, summary, and failure if any.

    Raises:
        PlumblineError: The workspace cannot be used, or the steps could not start: then there is no run.
        SystemExit: SIGTERM or Ctrl-C came; the step's checkpoint and the run's report are written first.
    """
    workspace = Workspace(settings.execution.workspace)
    if settings.execution.runner == "docker":
        require_containers(settings, workspace, _images_of(pipeline))
    run = workspace.new_run(name)
    with run.going_on():
        return _run_in(run, workspace, settings, pipeline, arguments, console=console, given=given)


def _run_in(
    run: RunFolder,
    workspace: Workspace,
    settings: RunSettings,
    pipeline: Any,
    arguments: dict[str, Any],
    *,
    console: Console,
    given: Mapping[str, str] | None,
) -> RunResult:
    """`run_local`, once the run has a folder."""
    write_text(run.settings, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    workspace.point_latest(run)
    started = time.time()
    watcher = Watcher(run.progress, console, _task_names(pipeline))
    threads = settings.execution.threads_per_step
    with _signals_to_the_step(run, in_containers=settings.execution.runner == "docker") as signals:
        with workspace.environment(run, threads=threads), watcher:
            failed = _execute(settings, workspace, run, pipeline, arguments)
        steps_were_interrupted = bool(signals)
        failure = (watcher.failure or _failure_from_log(run.log, watcher.names)) if failed else None
        if failure and signals:
            failure = Failure(failure.stage, f"interrupted by {signal.Signals(signals[0]).name}; run again to go on.")
        artifacts = {**(given or {}), **_artifacts_of(workspace, run, watcher.reused)}
        write_json(run.path / "artifacts.json", artifacts)
        timing = {"seconds": watcher.seconds(), "seconds_total": round(time.time() - started, 2)}
        with workspace.environment(run, threads=threads):
            _write_report(settings, run, artifacts, failure, timing)
    if signals and not steps_were_interrupted:
        console.print(f"Interrupted when every step had ended; the report is written all the same: {run.report}")
        raise SystemExit(128 + signals[0])
    if signals:
        console.print(f"Interrupted. Run the same command again to go on from the last checkpoint. Log: {run.log}")
        raise SystemExit(128 + signals[0])
    return RunResult(run, read_json(run.summary), failure)


def _task_names(pipeline: Any) -> dict[str, str]:
    """Display name of every task by the name that KFP gave it; KFP numbers the tasks of one component."""
    spec = pipeline.pipeline_spec
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    return {name: task.task_info.name for dag in dags for name, task in dag.tasks.items()}


def _execute(settings: RunSettings, workspace: Workspace, run: RunFolder, pipeline: Any, arguments: Any) -> bool:
    """Runs the pipeline with everything that kfp and the steps print in the run's log; True when it failed."""
    from kfp import local

    with (
        _runner(settings, workspace, run) as runner,
        open(run.log, "a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # kfp warns of every setting that only a cluster heeds
        local.init(
            runner=runner,
            pipeline_root=str(run.steps),
            workspace_root=str(run.path / "scratch"),
            raise_on_error=True,
            enable_caching=True,
            cache_root=str(workspace.cache),
        )
        try:
            pipeline(**arguments)
        except RuntimeError as error:  # what kfp.local raises when a task fails
            logger.debug("pipeline failed: %s", error)
            log.write(f"{error}\n")
            return True
    return False


def _images_of(pipeline: Any) -> set[str]:
    """The images of all its steps."""
    executors = pipeline.pipeline_spec.deployment_spec["executors"].values()
    return {executor["container"]["image"] for executor in executors if "container" in executor}


@contextlib.contextmanager
def _runner(settings: RunSettings, workspace: Workspace, run: RunFolder) -> Iterator[Any]:
    """kfp's runner, as `execution.runner` says."""
    if settings.execution.runner == "docker":
        with container_steps(settings, workspace, run) as runner:
            yield runner
        return
    from kfp import local

    yield local.SubprocessRunner(use_venv=False)


@contextlib.contextmanager
def _signals_to_the_step(run: RunFolder, *, in_containers: bool) -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C end the step that runs, which saves its checkpoint first; the run then ends in good order.

    kfp goes on with the steps that do not need the one that ended: these are told not to start. A second signal ends
    the runner at once.

    Args:
        run: Its steps look beside its progress file before they start.
        in_containers: Whether steps are containers, which are no children of this process.

    Yields:
        The signals that came, in order.
    """
    import psutil

    received: list[int] = []
    here = psutil.Process()
    others = here.children()  # what this process had started before is not the run's: another's server, say

    def pass_on(number: int, _frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)
        ask_to_stop(run.progress)
        if in_containers:
            terminate_steps(run.run_id)
        for child in here.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [] if child in others else [*child.children(recursive=True), child]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGTERM)

    try:
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's business
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure_from_log(log: Path, names: dict[str, str]) -> Failure:
    """The step and cause of a failure that no step told itself, such as a step that was killed."""
    text = log.read_text(encoding="utf-8", errors="replace")
    tasks = _FAILED_TASK.findall(text)
    causes = [found[2] for line in text.splitlines() if (found := _EXCEPTION_LINE.match(line))]
    stage = str(names.get(tasks[0], tasks[0])) if tasks else "pipeline"
    return Failure(stage, causes[-1] if causes else f"the step ended without an error message (killed?); see {log}")


def _artifacts_of(workspace: Workspace, run: RunFolder, reused: list[str]) -> dict[str, str]:
    """Folder of every artifact that the run made or took from the cache, by role."""
    folders = [path.parent for path in run.steps.glob(f"*/*/*/{MANIFEST}")]
    for key in reused:
        for entry in workspace.cache.glob(f"{key}*.json"):
            folders += [
                Path(output["uri"])
                for output in read_json(entry).values()
                if isinstance(output, dict) and "uri" in output
            ]
    found: dict[str, str] = {}
    for folder in folders:
        if (folder / MANIFEST).is_file():
            found[_role(read_json(folder / MANIFEST), folder)] = str(folder)
    return found


def _role(manifest: dict[str, Any], folder: Path) -> str:
    """What the report calls an artifact."""
    match manifest["kind"]:
        case "dataset":
            return "preferences" if any(name.startswith("preferences/") for name in manifest["files"]) else "dataset"
        case "policy":
            return "sft" if manifest["stage"] == "sft" else "candidate"
        case "reward_model":
            split = read_json(folder / "reward.json")["train_split"]
            return "reward_model" if split == "train" else "heldout_reward_model"
        case "training_history":
            return "history"
        case "policy_checkpoints":
            return "checkpoints"
        case "human_evidence":
            return "evidence"
        case kind:
            return kind


def _write_report(
    settings: RunSettings, run: RunFolder, artifacts: dict[str, str], failure: Failure | None, timing: dict[str, Any]
) -> None:
    """Writes the run's report and summary from whatever artifacts there are."""
    from components.report.parts import ROLES as REPORT_ROLES
    from components.report.stage import run as write_report
    from components.shared.champion import resolve_champion
    from components.shared.tracking import pipeline_usage
    from components.shared.usage import summarise

    champion = resolve_champion(settings.model_name)
    scratch = run.path / "report"
    about = {
        "run_id": run.run_id,
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "status": "FAILED" if failure else "SUCCEEDED",
        "failure": {"stage": failure.stage, "message": failure.cause} if failure else None,
        "champion": {"name": settings.model_name, "version": champion.version} if champion else None,
        "usage": summarise(pipeline_usage()),
        **timing,
    }
    shown = {role: path for role, path in artifacts.items() if role in REPORT_ROLES}
    write_report(output=str(scratch), artifacts=shown, run=about)
    for name in (run.report, run.summary):
        shutil.copyfile(scratch / name.name, name)
