"""Recurring runs, declared in a file: applying it twice changes nothing, and applying a changed one never leaves none.

KFP has no call that updates a recurring run. A changed schedule is therefore made anew first, and the old one deleted
when the new one stands; if the process dies between the two, the next `apply` deletes what is left over. The digest of
what was declared is kept in the recurring run's description. Each schedule runs at most once at a time, and does not
catch up on times that it missed while it was paused or the cluster was down.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of
from components.shared.settings import StrictModel, load_settings
from pipelines.cluster.compilation import PIPELINES, compiled
from pipelines.cluster.connection import KFP, AnswerLostError, NotFoundError
from pipelines.cluster.cron import Cron
from pipelines.cluster.runs import ensure_version, reference_to
from pipelines.placement import load_profile
from pipelines.recipe import overridden
from pipelines.settings import load_run_settings

__all__ = ["Applied", "Schedule", "apply", "delete", "list_schedules", "load_schedule", "switch"]

_MARK = re.compile(r"plumbline-schedule sha256:([0-9a-f]{64})")
_MAX_CONCURRENCY = 1


class Schedule(StrictModel):
    """A schedule's file."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$", description="Names the schedule.")
    pipeline: str = Field(default="retraining", description="What runs, e.g. `retraining` or `soak`.")
    settings: str = Field(min_length=1, description="The run's settings: a shipped name, or a file beside this one.")
    profile: str | None = Field(
        default=None,
        description="Environment: a shipped name, or a file beside this one; None: the settings' `execution.profile`.",
    )
    cron: str = Field(description="Six fields, UTC: second minute hour day-of-month month day-of-week.")
    enabled: bool = Field(default=True, description="False: it stands there and does not run.")
    parameters: dict[str, Any] = Field(default={}, description="Pipeline parameters that differ from the settings.")

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, text: str) -> str:
        try:
            return Cron.parse(text).text
        except PlumblineError as error:
            raise ValueError(str(error)) from error

    @field_validator("pipeline")
    @classmethod
    def _pipeline_exists(cls, name: str) -> str:
        if name not in PIPELINES:
            raise ValueError(f"no such pipeline; one of {', '.join(PIPELINES)}")
        return name


@dataclass(frozen=True)
class Applied:
    """What `apply` did.

    Attributes:
        name: The schedule.
        change: `created`, `replaced`, `resumed`, `paused`, `tidied` or `unchanged`.
        recurring_run_id: What stands now.
        version: The pipeline version that runs.
        when: The cron in words.
        next_times: When it fires next; empty while it is paused.
    """

    name: str
    change: str
    recurring_run_id: str
    version: str
    when: str
    next_times: list[str]


def load_schedule(path: str | Path) -> Schedule:
    """Reads a schedule's file.

    Raises:
        InputError: It cannot be read or does not fit.
    """
    schedule = load_settings(path, Schedule)
    named = {"settings": schedule.settings, "profile": schedule.profile}
    beside = {key: Path(path).parent / name for key, name in named.items() if name}
    return schedule.model_copy(update={key: str(file) for key, file in beside.items() if file.is_file()})


def apply(kfp: KFP, schedule: Schedule) -> Applied:
    """Makes the server's recurring run what the file says.

    Raises:
        ApiError: The server refused or did not work. What was there is still there.
        InputError: The run's settings or profile cannot be used.
    """
    settings = load_run_settings(schedule.settings)
    if schedule.profile:
        settings = settings.executed(profile=schedule.profile)
    profile = load_profile(settings.execution.profile)
    with tempfile.TemporaryDirectory(prefix="plumbline-") as aside:
        content = compiled(settings, schedule.pipeline, Path(aside) / "pipeline.yaml")
        kfp.settle_namespace(profile.namespace)
        made, version = ensure_version(kfp, content)
    _check_parameters(schedule, made.documents[0])
    account = getattr(profile.service_accounts, PIPELINES[schedule.pipeline].account)
    experiment = kfp.experiment(profile.experiment)
    parameters = _with_recipe(schedule.parameters, made.documents[0])
    wanted = [schedule.cron, version.name, schedule.parameters, account, experiment, _MAX_CONCURRENCY]
    digest = digest_of(wanted)

    standing = _named(kfp, schedule.name)
    same = [one for one in standing if _is_as_declared(one, digest, schedule.cron, account)]
    if same:
        kept, change = same[0], "unchanged"
        if (kept.mode == "ENABLE") != schedule.enabled:
            _switch(kfp, kept.recurring_run_id, enabled=schedule.enabled)
            change = "resumed" if schedule.enabled else "paused"
    else:
        body = _body(schedule, digest, parameters, version=version, experiment=experiment, account=account)
        kept = _create(kfp, body, schedule.name, digest, known={one.recurring_run_id for one in standing})
        change = "replaced" if standing else "created"
    left_over = [one for one in standing if one.recurring_run_id != kept.recurring_run_id]
    for one in left_over:
        _delete(kfp, one.recurring_run_id)
    if left_over and change == "unchanged":
        change = "tidied"
    cron = Cron.parse(schedule.cron)
    return Applied(
        name=schedule.name,
        change=change,
        recurring_run_id=kept.recurring_run_id,
        version=version.name,
        when=cron.in_words(),
        next_times=_next(cron) if schedule.enabled else [],
    )


def list_schedules(kfp: KFP) -> list[dict[str, Any]]:
    """Every recurring run of the namespace, Plumbline's and others'."""
    return [_described(one) for one in _all(kfp)]


def switch(kfp: KFP, name: str, *, enabled: bool) -> list[str]:
    """Pauses or resumes a schedule.

    Returns:
        Ids of its recurring runs.

    Raises:
        InputError: There is none of that name.
    """
    found = _required(kfp, name)
    for one in found:
        _switch(kfp, one.recurring_run_id, enabled=enabled)
    return [one.recurring_run_id for one in found]


def delete(kfp: KFP, name: str) -> list[str]:
    """Deletes a schedule; runs that it started go on.

    Returns:
        Ids of its recurring runs.

    Raises:
        InputError: There is none of that name.
    """
    found = _required(kfp, name)
    for one in found:
        _delete(kfp, one.recurring_run_id)
    return [one.recurring_run_id for one in found]


def _check_parameters(schedule: Schedule, spec: dict[str, Any]) -> None:
    known = set(spec["root"].get("inputDefinitions", {}).get("parameters", {}))
    unknown = sorted(set(schedule.parameters) - known)
    if unknown:
        hint = f"It has: {', '.join(sorted(known))}."
        raise InputError(
            f"the pipeline has no parameter {', '.join(unknown)}.", where=f"schedule {schedule.name}", hint=hint
        )


def _with_recipe(parameters: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The parameters, and the recipe that follows from them where the pipeline has one."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    if not parameters or "recipe" not in known or "recipe" in parameters:
        return parameters
    return {**parameters, "recipe": overridden(known["recipe"]["defaultValue"], parameters)}


def _body(
    schedule: Schedule,
    digest: str,
    parameters: dict[str, Any],
    *,
    version: Any,
    experiment: str,
    account: str | None,
) -> Any:
    import kfp_server_api as api

    return api.V2beta1RecurringRun(
        display_name=schedule.name,
        description=f"{Cron.parse(schedule.cron).in_words()}. plumbline-schedule sha256:{digest}",
        experiment_id=experiment,
        pipeline_version_reference=reference_to(version),
        runtime_config=api.V2beta1RuntimeConfig(parameters=parameters),
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=schedule.cron)),
        mode=api.RecurringRunMode.ENABLE if schedule.enabled else api.RecurringRunMode.DISABLE,
        max_concurrency=str(_MAX_CONCURRENCY),
        no_catchup=True,
        service_account=account,
    )


def _create(kfp: KFP, body: Any, name: str, digest: str, *, known: set[str]) -> Any:
    """Makes the recurring run; if the answer is lost, the one that now stands there and did not before."""
    try:
        return kfp.write(kfp.recurring.recurring_run_service_create_recurring_run, body, what=f"make schedule {name}")
    except AnswerLostError:
        for one in _named(kfp, name):
            if one.recurring_run_id not in known and _digest(one) == digest:
                return one
        raise


def _is_as_declared(one: Any, digest: str, cron: str, account: str | None) -> bool:
    """Whether it is what the file declares; version and parameters by the digest: KFP has no call that changes them."""
    trigger = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else None
    return (
        _digest(one) == digest
        and trigger == cron
        and account in (None, one.service_account)  # KFP puts its default where none was asked for
        and str(one.max_concurrency) == str(_MAX_CONCURRENCY)
        and bool(one.no_catchup)
    )


def _digest(one: Any) -> str | None:
    found = _MARK.search(one.description or "")
    return found[1] if found else None


def _all(kfp: KFP) -> list[Any]:
    listing = kfp.recurring.recurring_run_service_list_recurring_runs
    return list(kfp.pages(listing, "recurring_runs", what="list schedules", **kfp.scope()))


def _named(kfp: KFP, name: str) -> list[Any]:
    """Plumbline's recurring runs of a name, oldest first. Somebody else's of the same name are not touched."""
    found = [one for one in _all(kfp) if one.display_name == name and _digest(one)]
    return sorted(found, key=lambda one: (one.created_at is None, one.created_at or 0))


def _required(kfp: KFP, name: str) -> list[Any]:
    found = _named(kfp, name)
    if not found:
        hint = "`plumbline schedule list` tells what there is."
        raise InputError("no such schedule of Plumbline's.", where=f"schedule {name}", hint=hint)
    return found


def _switch(kfp: KFP, recurring_run_id: str, *, enabled: bool) -> None:
    calls = kfp.recurring
    call = (
        calls.recurring_run_service_enable_recurring_run
        if enabled
        else calls.recurring_run_service_disable_recurring_run
    )
    # Repeating it does no harm, so it may be tried again.
    kfp.read(call, recurring_run_id, what=f"{'resume' if enabled else 'pause'} schedule {recurring_run_id}")


def _delete(kfp: KFP, recurring_run_id: str) -> None:
    try:
        call = kfp.recurring.recurring_run_service_delete_recurring_run
        kfp.read(call, recurring_run_id, what=f"delete schedule {recurring_run_id}")
    except NotFoundError:  # gone already
        return


def _described(one: Any) -> dict[str, Any]:
    text = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else None
    enabled = one.mode == "ENABLE"
    try:
        cron = Cron.parse(text) if text else None
    except InputError:  # somebody else's, in a form that we do not know
        cron = None
    return {
        "name": one.display_name,
        "recurring_run_id": one.recurring_run_id,
        "enabled": enabled,
        "cron": text,
        "when": cron.in_words() if cron else None,
        "next_times": _next(cron) if cron and enabled else [],
        "service_account": one.service_account,
        "max_concurrency": one.max_concurrency,
        "catches_up": not one.no_catchup,
        "plumbline": _digest(one) is not None,
        "error": one.error.message if one.error else None,
    }


def _next(cron: Cron) -> list[str]:
    return [moment.isoformat() for moment in islice(cron.times(datetime.now(UTC)), 3)]
