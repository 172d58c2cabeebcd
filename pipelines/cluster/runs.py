"""Runs on a cluster: submit one, ask for its state, watch it to its end, read a step's log, cancel it."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.shared.errors import PlumblineError
from pipelines.cluster.compilation import PIPELINES, Compiled, compiled
from pipelines.cluster.connection import KFP, AnswerLostError, ApiError, NotFoundError, named
from pipelines.placement import load_profile
from pipelines.settings import RunSettings

__all__ = ["RunState", "StepState", "Version", "cancel", "ensure_version", "run_state", "submit", "upload", "watch"]

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_PATIENCE_SECONDS = 600.0
"""How long `watch` bears a server that does not answer."""


@dataclass(frozen=True)
class StepState:
    """A step of a run."""

    name: str
    state: str
    seconds: float | None
    pod: str | None
    error: str | None


@dataclass(frozen=True)
class RunState:
    """A run, as the server tells it."""

    run_id: str
    name: str
    state: str
    created_at: datetime | None
    finished_at: datetime | None
    service_account: str | None
    error: str | None
    steps: list[StepState]
    url: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def failed_step(self) -> StepState | None:
        """The first step that failed of itself; steps around it fail with it."""
        return next((step for step in self.steps if step.state == "FAILED" and step.pod), None) or next(
            (step for step in self.steps if step.state == "FAILED"), None
        )

    def as_json(self) -> dict[str, Any]:
        def told(moment: datetime | None) -> str | None:
            return moment.isoformat() if moment else None

        return {
            "run_id": self.run_id,
            "name": self.name,
            "state": self.state,
            "created_at": told(self.created_at),
            "finished_at": told(self.finished_at),
            "service_account": self.service_account,
            "error": self.error,
            "url": self.url,
            "steps": [vars(step) for step in self.steps],
        }


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server."""

    pipeline_id: str
    version_id: str
    name: str
    was_there: bool


def submit(kfp: KFP, settings: RunSettings, pipeline: str | None, *, requested_by: str = "") -> RunState:
    """Uploads the pipeline if this content is not there yet, and starts a run of it.

    Args:
        kfp: The server.
        settings: The run.
        pipeline: A key of `PIPELINES`; None takes the training pipeline that the settings ask for.
        requested_by: Who asks for the release that a training pipeline ends in, where the settings do not say.

    Returns:
        The run.

    Raises:
        ApiError: The server refused or did not work.
        InputError: The pipeline cannot be compiled for this profile.
    """
    import kfp_server_api

    profile = load_profile(settings.execution.profile)
    kind, version = upload(kfp, settings, pipeline)
    account = getattr(profile.service_accounts, PIPELINES[kind].account)
    name = f"{settings.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    untold = PIPELINES[kind].account == "training" and not settings.release_gate.requested_by
    asked = {"requested_by": requested_by} if untold and requested_by else {}
    body = kfp_server_api.V2beta1Run(
        display_name=name,
        experiment_id=kfp.experiment(profile.experiment),
        pipeline_version_reference=reference_to(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=asked),
        service_account=account,
    )
    try:
        started = kfp.write(kfp.runs.run_service_create_run, body, what=f"start run {name}")
    except AnswerLostError:
        started = _started_all_the_same(kfp, name)
        if started is None:
            raise
    return _state(kfp, started)


def upload(kfp: KFP, settings: RunSettings, pipeline: str | None) -> tuple[str, Version]:
    """Uploads a pipeline if this content is not there yet.

    Args:
        kfp: The server.
        settings: The run.
        pipeline: A key of `PIPELINES`; None takes the training pipeline that the settings ask for.

    Returns:
        The pipeline's key in `PIPELINES`, and the version.

    Raises:
        ApiError: The server refused or did not work.
        InputError: The pipeline cannot be compiled for this profile.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-") as aside:
        made = compiled(settings, pipeline, Path(aside) / "pipeline.yaml")
        kfp.settle_namespace(load_profile(settings.execution.profile).namespace)
        return made.kind, ensure_version(kfp, made)[1]


def run_state(kfp: KFP, run_id: str) -> RunState:
    """The state of a run.

    Raises:
        NotFoundError: There is no such run.
    """
    return _state(kfp, kfp.read(kfp.runs.run_service_get_run, run_id, what=f"run {run_id}"))


def watch(
    kfp: KFP,
    run_id: str,
    *,
    tell: Callable[[RunState, list[StepState]], None],
    every_seconds: float = 10.0,
    timeout_seconds: float | None = None,
) -> RunState:
    """Follows a run to its end, through spells in which the server does not answer.

    Args:
        kfp: The server.
        run_id: The run.
        tell: Called at the start and whenever a step's state changed, with the steps that did.
        every_seconds: Pause between questions.
        timeout_seconds: Give up after this; None: never.

    Returns:
        The run, ended.

    Raises:
        PlumblineError: The time is up; the run goes on.
        ApiError: There is no such run, or the server has been silent for ten minutes.
    """
    started = last_heard = time.monotonic()
    seen: dict[tuple[str, int], str] = {}
    while True:
        try:
            state = run_state(kfp, run_id)
            last_heard = time.monotonic()
        except ApiError as error:
            lasting = error.status is not None and error.status < 500 and error.status != 429
            if lasting or time.monotonic() - last_heard > _PATIENCE_SECONDS:
                raise
        else:
            now = _by_occurrence(state.steps)
            changed = [step for key, step in now.items() if seen.get(key) != step.state]
            if changed or not seen:
                tell(state, changed)
            seen |= {key: step.state for key, step in now.items()} | {("", 0): state.state}
            if state.ended:
                return state
        if timeout_seconds is not None and time.monotonic() - started + every_seconds > timeout_seconds:
            hint = f"It goes on; `plumbline status --run {run_id} --watch` follows it again."
            raise PlumblineError(f"not ended after {timeout_seconds:g} seconds.", where=f"run {run_id}", hint=hint)
        time.sleep(every_seconds)


def cancel(kfp: KFP, run_id: str) -> RunState:
    """Asks the server to end a run; steps get SIGTERM and save their checkpoints."""
    kfp.write(kfp.runs.run_service_terminate_run, run_id, what=f"cancel run {run_id}")
    return run_state(kfp, run_id)


def ensure_version(kfp: KFP, made: Compiled) -> tuple[Compiled, Version]:
    """The compiled pipeline on the server: found by its name, which follows from its content, or uploaded."""
    what = f"pipeline {made.name}"
    try:
        found = kfp.read(kfp.pipelines.pipeline_service_get_pipeline_by_name, made.name, what=what, **kfp.scope())
    except NotFoundError:
        found = _make_pipeline(kfp, made.name)
    version = _find_version(kfp, found.pipeline_id, made.version)
    if version is not None:
        return made, version
    try:
        uploaded = kfp.write(
            kfp.uploads.upload_pipeline_version,
            str(made.path),
            name=made.version,
            pipelineid=found.pipeline_id,
            what=f"upload {made.version}",
        )
    except ApiError as error:
        if error.status != 409 and not isinstance(error, AnswerLostError):
            raise
        version = _find_version(kfp, found.pipeline_id, made.version)
        if version is None:
            raise
        return made, version
    return made, Version(found.pipeline_id, uploaded.pipeline_version_id, made.version, was_there=False)


def reference_to(version: Version) -> Any:
    """The version as a run's request names it."""
    import kfp_server_api

    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
    )


def _make_pipeline(kfp: KFP, name: str) -> Any:
    import kfp_server_api

    body = kfp_server_api.V2beta1Pipeline(display_name=name, name=name, namespace=kfp.connection.namespace or None)
    try:
        return kfp.write(kfp.pipelines.pipeline_service_create_pipeline, body, what=f"make pipeline {name}")
    except ApiError as error:
        if error.status != 409 and not isinstance(error, AnswerLostError):
            raise
        by_name = kfp.pipelines.pipeline_service_get_pipeline_by_name
        return kfp.read(by_name, name, what=f"pipeline {name}", **kfp.scope())


def _find_version(kfp: KFP, pipeline_id: str, name: str) -> Version | None:
    listing = kfp.pipelines.pipeline_service_list_pipeline_versions
    options = {"pipeline_id": pipeline_id, "filter": named(name), "what": f"version {name}"}
    for one in kfp.pages(listing, "pipeline_versions", **options):
        if one.display_name == name:
            return Version(pipeline_id, one.pipeline_version_id, name, was_there=True)
    return None


def _started_all_the_same(kfp: KFP, name: str) -> Any | None:
    """The run whose creation was not answered; its name is unique."""
    listing = kfp.runs.run_service_list_runs
    found = kfp.pages(listing, "runs", what=f"find run {name}", filter=named(name), **kfp.scope())
    return next((one for one in found if one.display_name == name), None)


def _state(kfp: KFP, run: Any) -> RunState:
    details = (run.run_details.task_details if run.run_details else None) or []
    return RunState(
        run_id=run.run_id,
        name=run.display_name,
        state=run.state or "PENDING",
        created_at=run.created_at,
        finished_at=run.finished_at if run.state in ENDED else None,
        service_account=run.service_account,
        error=run.error.message if run.error else None,
        steps=list(_steps(details)),
        url=f"{kfp.connection.host}/#/runs/details/{run.run_id}",
    )


def _by_occurrence(steps: list[StepState]) -> dict[tuple[str, int], StepState]:
    """Steps by name and how often it came before: a step that is tried again is listed once a try."""
    found: dict[tuple[str, int], StepState] = {}
    counts: Counter[str] = Counter()
    for step in steps:
        found[step.name, counts[step.name]] = step
        counts[step.name] += 1
    return found


def _steps(details: list[Any]) -> Iterator[StepState]:
    """The steps that people know, in order of their start; KFP's own drivers and DAGs are left out."""
    own = [one for one in details if one.display_name and not one.display_name.endswith("-driver")]
    own = [one for one in own if one.display_name != "root" and not one.display_name.startswith("executor")]
    latest = datetime.max.replace(tzinfo=UTC)
    for one in sorted(own, key=lambda task: (task.start_time is None, task.start_time or task.create_time or latest)):
        over = one.end_time if one.state in ENDED else None
        pods = [child.pod_name for child in one.child_tasks or [] if child.pod_name]
        yield StepState(
            name=one.display_name,
            state=one.state or "PENDING",
            seconds=(over - one.start_time).total_seconds() if over and one.start_time else None,
            pod=one.pod_name or (pods[-1] if pods else None),
            error=one.error.message if one.error else None,
        )
