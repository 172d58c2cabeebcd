"""`plumbline`: the command line.

Every command answers `--help`; those that tell something take `--json`. Heavy modules are imported by the command that
needs them, so that help comes at once. Exit status: 0 done (whatever the gate's verdict: PROMOTE, HOLD, BLOCK, KEEP or
ROLLBACK), 1 a step failed or the gate could not judge (ERROR), 2 wrong use or input.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pipelines import gate_cli
from pipelines.cli_options import (
    EXIT_FAILED,
    actor_option,
    json_option,
    print_json,
    print_table,
    tell,
    who,
    workspace_option,
)
from pipelines.cluster_cli import cancel, compile_, connected, doctor, logs, schedule, submit, upload, watch_run

__all__ = ["main"]

_EXIT_INPUT = 2

_SEED = click.IntRange(min=0, max=2**31 - 1)
_other_workspace = click.option(
    "--workspace", default=None, help="Overrides execution.workspace.", type=click.Path(file_okay=False)
)


def main() -> None:
    """Entry point: errors that are meant for a person are printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from components.shared.errors import PlumblineError

    try:
        cli(standalone_mode=True)
    except PlumblineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_EXIT_INPUT)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        click.echo(f"Error: {error.filename or 'writing'}: {error.strerror}. {_REMEDIES[error.errno]}", err=True)
        sys.exit(_EXIT_INPUT)
    except Exception as error:
        told = _told_by_database(error)
        if told is None:
            raise
        click.echo(f"Error: {told}", err=True)
        sys.exit(_EXIT_INPUT)


_SPACE = "Free some space or give another --workspace."
_PATH = "Give another path."
_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES), _SPACE) | dict.fromkeys(
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), _PATH
)


def _told_by_database(error: Exception) -> str | None:
    """What a person does about a database that refused; None for any other error."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.exc import DBAPIError

    if not isinstance(error, DBAPIError):
        return None
    from components.shared.ledger_table import DATABASE_VARIABLE

    problem = " ".join(str(error.orig).split())
    return f"{DATABASE_VARIABLE}: the database refused: {problem}. Check that the URL names it, and that it answers."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="plumbline", prog_name="plumbline")
def cli() -> None:
    """Plumbline: RLHF on Kubeflow Pipelines, with a human gate and a way back.

    Train with `run`, see with `status` and `history`, prove with `verify`, go back with `rollback`.
    """


@cli.command()
@click.option("--settings", "settings_file", required=True, help="A run's YAML file, or the name of a shipped one.")
@click.option("--seed", type=_SEED, help="Overrides the seed of the settings.")
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "docker"]),
    help="Steps as processes here, or each in a container of its image; default: the settings' `execution.runner`.",
)
@_other_workspace
@json_option
def run(settings_file: str, seed: int | None, runner: str | None, workspace: str | None, as_json: bool) -> None:
    """Run the whole pipeline on this machine.

    What did not change since an earlier run is reused; a training step that was killed goes on from its checkpoint.
    """
    from pipelines.settings import load_run_settings

    settings = load_run_settings(settings_file)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    if workspace:
        settings = settings.executed(workspace=workspace)
    if runner:
        settings = settings.executed(runner=runner)
    from pipelines.runs import run_training

    _finish(run_training(_asked_for(settings), console=_console()), as_json)


@cli.command()
@click.option("--settings", "settings_file", required=True, help="A run's YAML file, or the name of a shipped one.")
@click.option("--force", is_flag=True, help="Train whatever is found.")
@_other_workspace
@json_option
def retrain(settings_file: str, force: bool, workspace: str | None, as_json: bool) -> None:
    """Run the whole pipeline if data or base model changed since the model's last run that ended well.

    Else it ends in seconds. `plumbline schedule` does the same on a cluster.
    """
    from pipelines.runs import run_retraining
    from pipelines.settings import load_run_settings

    settings = load_run_settings(settings_file)
    if workspace:
        settings = settings.executed(workspace=workspace)
    _finish(run_retraining(_asked_for(settings), force=force, console=_console()), as_json)


@cli.command()
@click.option(
    "--run", "run_id", default=None, help="The run that released the live model; default: found by the ledger."
)
@click.option("--model", "model_name", required=True, help="Registered model.")
@click.option("--seed", type=_SEED, help="Of sampling and raters; default: another one each time.")
@workspace_option
@json_option
def soak(run_id: str | None, model_name: str, seed: int | None, workspace: str, as_json: bool) -> None:
    """Collect fresh human evidence on the live model, and roll back if it shows harm."""
    from pipelines.runs import run_soak

    _finish(run_soak(workspace, model_name, run_id=run_id, seed=seed, console=_console()), as_json)


@cli.command("release-checkpoint")
@click.option("--run", "run_id", required=True, help="The run whose gate offered the checkpoint.")
@click.option("--checkpoint", "step", required=True, type=click.IntRange(min=1), help="Its training step.")
@workspace_option
@json_option
def release_checkpoint(run_id: str, step: int, workspace: str, as_json: bool) -> None:
    """Judge a checkpoint that the gate offered, as a candidate of its own on fresh prompts."""
    from pipelines.runs import run_checkpoint_release

    found = run_checkpoint_release(workspace, run_id, step, requested_by=who(None), console=_console())
    _finish(found, as_json)


@cli.command()
@click.option("--model-name", default=None, help="Registered model whose batch of human evidence is to be judged.")
@click.option("--version", default=None, help="Its version; default: the one that asked last.")
@click.option("--due", is_flag=True, help="Start the run of every batch that has ended and has none; for a schedule.")
@click.option("--settings", "settings_file", default=None, help="With --due: the review service's YAML file.")
@click.option("--force", is_flag=True, help="Also while a run of it seems to be going on: you know that it was killed.")
@click.option("--order", "order_id", default=None, hidden=True)
@click.option("--attempt", type=int, default=None, hidden=True)
@actor_option
@workspace_option
@json_option
def release(
    model_name: str | None,
    version: str | None,
    due: bool,
    settings_file: str | None,
    force: bool,
    order_id: str | None,
    attempt: int | None,
    actor: str | None,
    workspace: str,
    as_json: bool,
) -> None:
    """Judge a version again, on the evidence that people have given since it was made.

    It finds the artifacts by the addresses and digests that the gate recorded when it held. On a batch that is still
    open it judges what is there. The review service starts this by itself when a batch ends; where none runs, let a
    schedule call `plumbline release --due`.
    """
    from pipelines.release_runs import make_start, run_release, start_due
    from pipelines.workspace import Workspace

    if due == bool(model_name):
        raise click.UsageError("Give --model-name, or --due.")
    if model_name:
        found = run_release(
            workspace,
            model_name,
            version=version,
            order_id=order_id,
            attempt=attempt,
            force=force,
            actor=who(actor),
            console=_console(),
        )
        _finish(found, as_json)
    from components.review.settings import ReviewSettings
    from components.shared.settings import load_settings

    root = Workspace(workspace)
    settings = load_settings(settings_file, ReviewSettings) if settings_file else ReviewSettings()
    with root.services():
        looked = start_due(make_start(settings.release_trigger, root))
    if as_json:
        print_json(looked)
        return
    for one in looked["started"]:
        click.echo(f"{one['model']} version {one['version']}: release run started (attempt {one['attempt']}).")
    if not looked["started"]:
        click.echo("No release run is due.")


@cli.command()
@click.option(
    "--scenario",
    type=click.Choice(["good", "overoptimized", "forced", "dpo", "people"]),
    default="good",
    show_default=True,
)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@workspace_option
@json_option
def demo(scenario: str, seed: int, workspace: str, as_json: bool) -> None:
    """Run the demonstration: a tiny model, a hidden taste, simulated raters.

    good: KL held to its target; people prefer the result; PROMOTE. overoptimized: KL control off; the reward likes it
    and people do not; BLOCK. forced: the blocked model is put live by break-glass, soak shows the harm; ROLLBACK. dpo:
    as good, with DPO in PPO's place. people: all three, judged at the review service over HTTP and approved by two.
    """
    from pipelines.demo import run_demo

    _finish(run_demo(scenario, seed=seed, workspace=workspace, console=_console()), as_json)


@cli.command()
@workspace_option
@click.option("--run", "run_id", default=None, help="Show this run on a cluster (KFP's run id) instead.")
@click.option("--watch", is_flag=True, help="With --run: follow it to its end.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds, with --watch.")
@click.option("--give-up-after", "limit", default=None, type=click.FloatRange(min=0), help="Seconds, with --watch.")
@connected
@json_option
def status(
    connect: Callable[[], Any],
    workspace: str,
    run_id: str | None,
    watch: bool,
    every: float,
    limit: float | None,
    as_json: bool,
) -> None:
    """List the runs of the workspace and how they ended, and each model's champion.

    With --run: the steps of a run on a cluster, and why it failed; exit status 1 if it did.
    """
    if run_id:
        watch_run(connect, run_id, follow=watch, every=every, limit=limit, as_json=as_json)
        return
    if watch:
        raise click.UsageError("--watch needs --run RUN_ID.")
    from pipelines.runs import workspace_status

    found = workspace_status(workspace)
    if as_json:
        print_json(found)
        return
    rows = [[r["run_id"], r["status"], r["verdict"] or "-", r["seconds"]] for r in found["runs"]]
    print_table(["run", "status", "verdict", "seconds"], rows)
    _tell_what_waits(found)
    for model in found["models"]:
        click.echo(f"{model['model']}: champion {'version ' + model['champion'] if model['champion'] else 'none'}")


@cli.command()
@click.option(
    "--wait", "wait_seconds", type=click.FloatRange(min=0), default=0, help="Seconds to wait for the database."
)
@workspace_option
@json_option
def migrate(wait_seconds: float, workspace: str, as_json: bool) -> None:
    """Bring the evidence and ledger tables up to date. Two at once wait for each other."""
    from dataclasses import asdict

    from pipelines.migration import migrate as migrate_tables
    from pipelines.workspace import Workspace

    with Workspace(workspace).services():
        done = migrate_tables(wait_seconds=wait_seconds)
    tell(asdict(done) | {"message": done.message}, as_json)


@cli.command()
@workspace_option
@click.option("--port", default=5000, show_default=True)
def ui(workspace: str, port: int) -> None:
    """Open MLflow's UI on the workspace, on this machine only."""
    from pipelines.workspace import Workspace

    root = Workspace(workspace)
    store = root.variables()["MLFLOW_TRACKING_URI"]
    arguments = ["--backend-store-uri", store, "--artifacts-destination", str(root.state / "mlartifacts")]
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), *arguments]
    )


@cli.command()
@workspace_option
@click.option("--settings", "settings_file", default=None, help="YAML file of the service's settings (ReviewSettings).")
@click.option("--host", default=None, help="Address to listen on; default: this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port to listen on; default: 8090.")
@click.option("--rater", "raters", multiple=True, help="Somebody who rates; repeat it for more. Local sign-in.")
@click.option("--manager", "managers", multiple=True, help="Who decides on releases; default: you. Local sign-in.")
@click.option("--simulated", multiple=True, help="A program that rates; its votes are marked. Local sign-in.")
@click.option("--replace-key", default="", help="Why the database's known secret is replaced by this one; told to all.")
@actor_option
def review(
    workspace: str,
    settings_file: str | None,
    host: str | None,
    port: int | None,
    raters: tuple[str, ...],
    managers: tuple[str, ...],
    simulated: tuple[str, ...],
    replace_key: str,
    actor: str | None,
) -> None:
    """Serve the pages on which raters judge and release managers decide.

    On this machine everybody who is named gets a one-time link; you may rate and decide. On a cluster the settings name
    the proxy that signs people in.
    """
    from components.review.server import review_settings, secret_of, serve
    from pipelines.release_runs import make_start
    from pipelines.workspace import Workspace

    deciding = list(managers) or [who(actor)]
    settings = review_settings(
        settings_file, host=host, port=port, managers=deciding, raters=list(raters), simulated=list(simulated)
    )
    root = Workspace(workspace)
    with root.services():
        secret = secret_of(settings, root.state)
        start = make_start(settings.release_trigger, root)
        logins = [*deciding, *raters, *simulated]
        serve(settings, secret=secret, logins=logins, tell=click.echo, start=start, replace_key=replace_key)


def _tell_what_waits(found: dict[str, Any]) -> None:
    """Evidence that people owe, and notices that nobody has confirmed."""
    for one in found["evidence"]:
        state = one["closed"] or f"{one['votes']} of {one['votes_needed']} votes, until {one['deadline'][:16]} UTC."
        click.echo(f"{one['model']} version {one['version']} awaits evidence (batch {one['batch_id'][:8]}): {state}")
    if found["notices"] and not os.environ.get("PLUMBLINE_WEBHOOK_URL"):
        n = len(found["notices"])
        click.echo(f"Notices that no webhook was told (PLUMBLINE_WEBHOOK_URL is not set): {n}.")
        return
    for one in found["notices"]:
        state = "GIVEN UP" if one["given_up"] else "NOT DELIVERED"
        click.echo(f"{state} after {one['attempts']} tries ({one['problem'] or 'not tried yet'}): {one['text']}")
    if any(one["given_up"] for one in found["notices"]):
        click.echo("What was given up is sent again by `plumbline send-notices`.")


for _command in (cancel, compile_, doctor, logs, schedule, submit, upload, *gate_cli.COMMANDS):
    cli.add_command(_command)


def _console() -> Any:
    """Progress goes to stderr, so that `--json` on stdout stays clean."""
    from rich.console import Console

    return Console(stderr=True)


def _asked_for(settings: Any) -> Any:
    """The run with who asks for it: as its settings say, else who starts it."""
    return settings if settings.release_gate.requested_by else settings.asked_by(who(None))


def _finish(result: Any, as_json: bool) -> None:
    """Prints how a run ended and leaves with the matching exit status."""
    if as_json:
        print_json(result.summary)
    else:
        from pipelines.verdict import describe

        describe(result, _console())
    sys.exit(EXIT_FAILED if result.failure or result.summary["verdict"] == "ERROR" else 0)


if __name__ == "__main__":
    main()
