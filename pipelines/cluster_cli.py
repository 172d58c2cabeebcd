"""Commands that talk to a cluster: upload, submit, status of a run, logs, cancel, schedule, doctor.

`pipelines.cli` hangs them into `plumbline`. Exit status: 0 done, 1 the run failed or something is missing, 2 wrong use,
or the server refused or did not answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from pipelines.cli_options import EXIT_FAILED, json_option, print_json, tell, who

__all__ = ["cancel", "compile_", "connected", "doctor", "logs", "schedule", "submit", "upload", "watch_run"]

_profile = click.option(
    "--profile", default=None, help="Environment: local, dev, prod or a file; overrides execution.profile."
)
_settings = click.option(
    "--settings", "settings_file", required=True, help="A run's YAML file, or the name of a shipped one."
)
_PIPELINES = ["rlhf", "preference", "retraining", "soak"]
_default_pipeline = "Default: the training pipeline that the settings' `optimizer` asks for."
_pipeline = click.option("--pipeline", type=click.Choice(_PIPELINES), default=None, help=_default_pipeline)
_compiled = click.option(
    "--pipeline", type=click.Choice([*_PIPELINES, "release", "release-live"]), default=None, help=_default_pipeline
)


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where the cluster is; the command gets them as `connection`."""
    options = [
        click.option("--host", default=None, help="Address of Kubeflow Pipelines; default: KF_PIPELINES_ENDPOINT."),
        click.option("--namespace", default=None, help="Namespace of the runs, where KFP has several users."),
        click.option("--token-file", default=None, help="File with a bearer token.", type=click.Path(dir_okay=False)),
        click.option("--ca-cert", default=None, help="File with the server's CA.", type=click.Path(dir_okay=False)),
        click.option(
            "--timeout", default=30.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds, for one call."
        ),
    ]

    def with_connection(
        *arguments: Any,
        host: str | None,
        namespace: str | None,
        token_file: str | None,
        ca_cert: str | None,
        timeout: float,
        **others: Any,
    ) -> Any:
        def connect() -> Any:
            from pipelines.cluster.connection import KFP, Connection

            return KFP(Connection.find(host, namespace, token_file, ca_cert, timeout))

        return command(*arguments, connect=connect, **others)

    with_connection.__name__ = command.__name__
    with_connection.__doc__ = command.__doc__
    vars(with_connection)["__click_params__"] = list(getattr(command, "__click_params__", []))
    wrapped: Callable[..., Any] = with_connection
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@click.command("compile")
@_settings
@_compiled
@_profile
@click.option("--output", "-o", default=None, type=click.Path(dir_okay=False), help="Where to write KFP's IR YAML.")
@click.option("--manifest", default=None, type=click.Path(dir_okay=False), help="Where to write Pipeline resources.")
@click.option("--components", default=None, type=click.Path(file_okay=False), help="Folder for each component's YAML.")
@click.option("--namespace", default=None, help="Of the resources in --manifest; default: the profile's.")
@json_option
def compile_(
    settings_file: str,
    pipeline: str | None,
    profile: str | None,
    output: str | None,
    manifest: str | None,
    components: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Write a pipeline for a cluster: KFP's IR YAML, resources for GitOps, single components.

    The resources are a Pipeline and a PipelineVersion, whose name follows from its content.
    """
    if not (output or manifest or components):
        raise click.UsageError("Give --output, --manifest or --components.")
    from pipelines.cluster.compilation import compile_components, compile_manifest, compile_pipeline
    from pipelines.placement import load_profile

    settings = _load(settings_file, profile)
    written: dict[str, Any] = {}
    if output:
        written["pipeline"] = str(compile_pipeline(settings, pipeline, output))
    if manifest:
        namespace = namespace or load_profile(settings.execution.profile).namespace
        path, version = compile_manifest(settings, pipeline, manifest, namespace=namespace)
        written |= {"manifest": str(path), "version": version}
    if components:
        written["components"] = [str(path) for path in compile_components(components)]
    if as_json:
        print_json(written)
        return
    for path in (written.get("pipeline"), written.get("manifest"), *written.get("components", [])):
        if path:
            click.echo(f"Wrote {path}")


@click.command()
@_settings
@_compiled
@_profile
@connected
@json_option
def upload(
    connect: Callable[[], Any], settings_file: str, pipeline: str | None, profile: str | None, as_json: bool
) -> None:
    """Bring a pipeline to a cluster without starting it; the same content is uploaded once.

    The release pipelines must be there before the review service or a schedule can start release runs.
    """
    from pipelines.cluster import runs

    _, version = runs.upload(connect(), _load(settings_file, profile), pipeline)
    tell(asdict(version), as_json, text=f"{version.name}: {'there already' if version.was_there else 'uploaded'}.")


@click.command()
@_settings
@_pipeline
@_profile
@click.option("--watch", is_flag=True, help="Follow the run to its end.")
@connected
@json_option
def submit(
    connect: Callable[[], Any],
    settings_file: str,
    pipeline: str | None,
    profile: str | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Start a run on a cluster.

    The compiled pipeline is uploaded once for each content; the run gets the service account of its kind (training or
    promotion) from the profile.
    """
    from pipelines.cluster import runs

    settings = _load(settings_file, profile)
    state = runs.submit(connect(), settings, pipeline, requested_by=who(None))
    if not watch:
        tell(state.as_json(), as_json, text=f"Started {state.name}\nrun id  {state.run_id}\n{state.url}")
        return
    click.echo(f"Started {state.name}, run id {state.run_id}", err=True)
    watch_run(connect, state.run_id, follow=True, every=10.0, limit=None, as_json=as_json)


def watch_run(
    connect: Callable[[], Any], run_id: str, *, follow: bool, every: float, limit: float | None, as_json: bool
) -> None:
    """Shows a run on a cluster, or follows it; leaves with 1 if it failed."""
    from pipelines.cluster import runs

    kfp = connect()
    if follow:
        tell = _tell_steps if not as_json else (lambda *_: None)
        state = runs.watch(kfp, run_id, tell=tell, every_seconds=every, timeout_seconds=limit)
    else:
        state = runs.run_state(kfp, run_id)
    if as_json:
        print_json(state.as_json())
    else:
        if not follow:
            _tell_steps(state, state.steps)
        click.echo(f"{state.name}: {state.state}")
        if failed := state.failed_step:
            click.echo(f"Failed at {failed.name}: {failed.error or state.error or 'no cause is known to KFP'}")
            click.echo(f"Its log: plumbline logs {run_id} --step {failed.name}")
        elif state.error:
            click.echo(state.error)
    if state.ended and state.state != "SUCCEEDED":
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("run_id")
@click.option("--step", default=None, help="Only this step's log; default: every step's that failed, else of all.")
@click.option("--tail", default=200, show_default=True, type=click.IntRange(min=1), help="Lines of each pod.")
@click.option("--namespace", default=None, help="Namespace of the run's pods; default: of the kubeconfig's context.")
@click.option("--context", default=None, help="Context of the kubeconfig.")
@json_option
def logs(run_id: str, step: str | None, tail: int, namespace: str | None, context: str | None, as_json: bool) -> None:
    """Show the logs of a run's steps, from its pods in Kubernetes.

    RUN_ID is KFP's. Pods that were deleted have no log here: look into the cluster's log store, and at the step's run
    in MLflow, which holds its error.
    """
    from pipelines.cluster.kube import Kube, step_logs

    found = step_logs(Kube.connect(context, namespace), run_id, step=step, tail=tail)
    if as_json:
        print_json(found)
        return
    for one in found:
        click.secho(f"--- {one['step']} ({one['phase']}, pod {one['pod']})", bold=True)
        click.echo(one["log"])


@click.command()
@click.argument("run_id")
@connected
@json_option
def cancel(connect: Callable[[], Any], run_id: str, as_json: bool) -> None:
    """Ask a cluster to end the run RUN_ID. Training steps save their checkpoints first."""
    from pipelines.cluster import runs

    state = runs.cancel(connect(), run_id)
    tell(state.as_json(), as_json, text=f"{state.name}: {state.state}")


@click.group()
def schedule() -> None:
    """Put runs on a schedule: declared in a file, at most one at a time, missed times are not caught up."""


@schedule.command("apply")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
@connected
@json_option
def schedule_apply(connect: Callable[[], Any], files: tuple[str, ...], as_json: bool) -> None:
    """Make the server's schedules what FILES say. The same file twice changes nothing.

    A file names schedule, pipeline, settings, profile and cron. KFP's cron has six fields, in UTC:

    \b
        second minute hour day-of-month month day-of-week
        0      0      2    *            *     1            Mondays at 02:00
        0      30     4    1,15         *     *            the 1st and 15th at 04:30
    """
    from pipelines.cluster import schedules

    loaded = [schedules.load_schedule(file) for file in files]
    kfp = connect()
    applied = [asdict(schedules.apply(kfp, one)) for one in loaded]
    if as_json:
        print_json(applied)
        return
    for one in applied:
        following = f"; next {one['next_times'][0]}" if one["next_times"] else "; paused"
        click.echo(f"{one['name']}: {one['change']}. It runs {one['when']}{following}.")


@schedule.command("list")
@connected
@json_option
def schedule_list(connect: Callable[[], Any], as_json: bool) -> None:
    """List the recurring runs of the namespace, Plumbline's and others'."""
    from pipelines.cluster import schedules

    found = schedules.list_schedules(connect())
    if as_json:
        print_json(found)
        return
    for one in found:
        state = f"next {one['next_times'][0]}" if one["next_times"] else ("on" if one["enabled"] else "paused")
        owner = "" if one["plumbline"] else "  (not Plumbline's)"
        click.echo(f"{one['name']}: {one['when'] or one['cron'] or 'by interval'}; {state}{owner}")
    if not found:
        click.echo("No schedules.")


@schedule.command("pause")
@click.argument("name")
@connected
@json_option
def schedule_pause(connect: Callable[[], Any], name: str, as_json: bool) -> None:
    """Pause the schedule NAME, until `resume` or the next `apply` of a file that says `enabled: true`."""
    _switch(connect, name, as_json, enabled=False)


@schedule.command("resume")
@click.argument("name")
@connected
@json_option
def schedule_resume(connect: Callable[[], Any], name: str, as_json: bool) -> None:
    """Let the schedule NAME run again; times that it missed are not caught up."""
    _switch(connect, name, as_json, enabled=True)


@schedule.command("delete")
@click.argument("name")
@connected
@json_option
def schedule_delete(connect: Callable[[], Any], name: str, as_json: bool) -> None:
    """Delete the schedule NAME; runs that it started go on."""
    from pipelines.cluster import schedules

    deleted = schedules.delete(connect(), name)
    tell({"name": name, "deleted": deleted}, as_json, text=f"{name}: deleted.")


@click.command()
@_profile
@click.option("--settings", "settings_file", default=None, help="Also look for what this run's settings name.")
@click.option("--context", default=None, help="Context of the kubeconfig.")
@connected
@json_option
def doctor(
    connect: Callable[[], Any], profile: str | None, settings_file: str | None, context: str | None, as_json: bool
) -> None:
    """Say what a cluster has and what is missing, line by line, with what to do about it.

    It looks at Kubeflow Pipelines, the namespace and what the profile names in it (service accounts, secrets,
    ConfigMaps, claims, queue, GPU nodes, quota, storage class), object storage, MLflow and the evidence database, with
    the rights and from the place of whoever calls it. Nothing is changed, apart from a small object that is written to
    the bucket and deleted again.
    """
    from pipelines.cluster.doctor import examine
    from pipelines.placement import load_profile

    settings = _load(settings_file, profile) if settings_file else None
    chosen = load_profile(settings.execution.profile if settings else profile or "dev")
    lines = examine(chosen, connect=connect, context=context, settings=settings)
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        for line in lines:
            colour = {"pass": "green", "fail": "red", "unknown": "yellow"}[line.result]
            click.echo(f"{click.style(line.result.upper().ljust(8), fg=colour)}{line.check}: {line.found}")
            if line.fix:
                click.echo(f"        {line.fix}")
    if any(line.result == "fail" for line in lines):
        sys.exit(EXIT_FAILED)


def _switch(connect: Callable[[], Any], name: str, as_json: bool, *, enabled: bool) -> None:
    from pipelines.cluster import schedules

    changed = schedules.switch(connect(), name, enabled=enabled)
    done = {"name": name, "enabled": enabled, "recurring_run_ids": changed}
    tell(done, as_json, text=f"{name}: {'runs again' if enabled else 'paused'}.")


def _load(settings_file: str, profile: str | None) -> Any:
    from pipelines.settings import load_run_settings

    settings = load_run_settings(settings_file)
    return settings.executed(profile=profile) if profile else settings


def _tell_steps(state: Any, steps: list[Any]) -> None:
    for step in steps:
        seconds = f"  {step.seconds:.0f} s" if step.seconds is not None else ""
        click.echo(f"{step.state:<10} {step.name}{seconds}" + (f"  {step.error}" if step.error else ""))
    if not steps:
        click.echo(f"{state.state:<10} {state.name}")
