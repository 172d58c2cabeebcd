"""`plumbline`: the command line.

Every command answers `--help`; those that tell something take `--json`. Heavy modules are imported by the command that
needs them, so that help comes at once. Exit status: 0 done (whatever the gate's verdict: PROMOTE, HOLD, BLOCK, KEEP or
ROLLBACK), 1 a step failed or the gate could not judge (ERROR), 2 wrong use or input.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pipelines.cluster_cli import cancel, compile_, connected, doctor, logs, schedule, submit, upload, watch_run

__all__ = ["main"]

_EXIT_FAILED = 1
_EXIT_INPUT = 2

_workspace = click.option(
    "--workspace", default="runs", show_default=True, help="Folder of local runs.", type=click.Path(file_okay=False)
)
_other_workspace = click.option(
    "--workspace", default=None, help="Overrides execution.workspace.", type=click.Path(file_okay=False)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_reason = click.option("--reason", required=True, help="Why; it stands in the ledger for good.")
_actor = click.option(
    "--actor",
    default=None,
    help="Who acts; default: PLUMBLINE_ACTOR, else the login name. The ledger says beside it under which account.",
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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        click.echo(
            f"Error: {error.filename or 'writing'}: {error.strerror}. Free some space or give another --workspace.",
            err=True,
        )
        sys.exit(_EXIT_INPUT)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="plumbline", prog_name="plumbline")
def cli() -> None:
    """Plumbline: RLHF on Kubeflow Pipelines, with a human gate and a way back.

    Train with `run`, see with `status` and `history`, prove with `verify`, go back with `rollback`.
    """


@cli.command()
@click.option("--settings", "settings_file", required=True, help="A run's YAML file, or the name of a shipped one.")
@click.option("--seed", type=click.IntRange(min=0), help="Overrides the seed of the settings.")
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "docker"]),
    help="Steps as processes here, or each in a container of its image; default: the settings' `execution.runner`.",
)
@_other_workspace
@_as_json
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

    _finish(run_training(settings, console=_console()), as_json)


@cli.command()
@click.option("--settings", "settings_file", required=True, help="A run's YAML file, or the name of a shipped one.")
@click.option("--force", is_flag=True, help="Train whatever is found.")
@_other_workspace
@_as_json
def retrain(settings_file: str, force: bool, workspace: str | None, as_json: bool) -> None:
    """Run the whole pipeline if data or base model changed since the model's last run that ended well.

    Else it ends in seconds. `plumbline schedule` does the same on a cluster.
    """
    from pipelines.runs import run_retraining
    from pipelines.settings import load_run_settings

    settings = load_run_settings(settings_file)
    if workspace:
        settings = settings.executed(workspace=workspace)
    _finish(run_retraining(settings, force=force, console=_console()), as_json)


@cli.command()
@click.option(
    "--run", "run_id", default=None, help="The run that released the live model; default: found by the ledger."
)
@click.option("--model", "model_name", required=True, help="Registered model.")
@click.option("--seed", type=click.IntRange(min=0), help="Of sampling and raters; default: another one each time.")
@_workspace
@_as_json
def soak(run_id: str | None, model_name: str, seed: int | None, workspace: str, as_json: bool) -> None:
    """Collect fresh human evidence on the live model, and roll back if it shows harm."""
    from pipelines.runs import run_soak

    _finish(run_soak(workspace, model_name, run_id=run_id, seed=seed, console=_console()), as_json)


@cli.command("release-checkpoint")
@click.option("--run", "run_id", required=True, help="The run whose gate offered the checkpoint.")
@click.option("--checkpoint", "step", required=True, type=click.IntRange(min=1), help="Its training step.")
@_workspace
@_as_json
def release_checkpoint(run_id: str, step: int, workspace: str, as_json: bool) -> None:
    """Judge a checkpoint that the gate offered, as a candidate of its own on fresh prompts."""
    from pipelines.runs import run_checkpoint_release

    _finish(run_checkpoint_release(workspace, run_id, step, console=_console()), as_json)


@cli.command()
@click.option("--model-name", default=None, help="Registered model whose batch of human evidence is to be judged.")
@click.option("--version", default=None, help="Its version; default: the one that asked last.")
@click.option("--due", is_flag=True, help="Start the run of every batch that has ended and has none; for a schedule.")
@click.option("--settings", "settings_file", default=None, help="With --due: the review service's YAML file.")
@click.option("--force", is_flag=True, help="Also while a run of it seems to be going on: you know that it was killed.")
@click.option("--order", "order_id", default=None, hidden=True)
@click.option("--attempt", type=int, default=None, hidden=True)
@_actor
@_workspace
@_as_json
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
            actor=_who(actor),
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
        _print_json(looked)
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
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_workspace
@_as_json
def demo(scenario: str, seed: int, workspace: str, as_json: bool) -> None:
    """Run the demonstration: a tiny model, a hidden taste, simulated raters.

    good: KL held to its target; people prefer the result; PROMOTE. overoptimized: KL control off; the reward likes it
    and people do not; BLOCK. forced: the blocked model is put live by break-glass, soak shows the harm; ROLLBACK. dpo:
    as good, with DPO in PPO's place. people: all three, judged at the review service over HTTP and approved by two.
    """
    from pipelines.demo import run_demo

    _finish(run_demo(scenario, seed=seed, workspace=workspace, console=_console()), as_json)


@cli.command()
@_workspace
@click.option("--run", "run_id", default=None, help="Show this run on a cluster (KFP's run id) instead.")
@click.option("--watch", is_flag=True, help="With --run: follow it to its end.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds, with --watch.")
@click.option("--give-up-after", "limit", default=None, type=click.FloatRange(min=0), help="Seconds, with --watch.")
@connected
@_as_json
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
        _print_json(found)
        return
    rows = [[r["run_id"], r["status"], r["verdict"] or "-", r["seconds"]] for r in found["runs"]]
    _print_table(["run", "status", "verdict", "seconds"], rows)
    _tell_what_waits(found)
    for model in found["models"]:
        click.echo(f"{model['model']}: champion {'version ' + model['champion'] if model['champion'] else 'none'}")


@cli.command()
@click.argument("model")
@_workspace
@_as_json
def history(model: str, workspace: str, as_json: bool) -> None:
    """Show everything that happened to MODEL: who, when, from, to, why."""
    entries = _with_gate(workspace, lambda gate: gate.history(model))
    if as_json:
        _print_json(entries)
        return
    columns = ["sequence", "time", "version", "event", "from_state", "to_state", "actor", "reason"]
    rows = [[*(entry[name] for name in columns), entry["details"].get("written_by")] for entry in entries]
    _print_table([*columns, "written by"], rows)


@cli.command()
@click.argument("model")
@_workspace
@_as_json
def verify(model: str, workspace: str, as_json: bool) -> None:
    """Replay MODEL's ledger: hashes, legal moves, and the head that is anchored outside the database."""
    result = _with_gate(workspace, lambda gate: gate.verify(model))
    if as_json:
        _print_json(result)
    else:
        click.echo(f"{model}: {result['entries']} entries, " + ("intact." if result["ok"] else "NOT INTACT:"))
        for problem in result["problems"]:
            click.echo(f"  {problem}")
    if not result["ok"]:
        sys.exit(_EXIT_FAILED)


@cli.command()
@click.argument("model")
@_workspace
@_as_json
def audit(model: str, workspace: str, as_json: bool) -> None:
    """Prove MODEL's past: the ledger is intact, and each verdict follows from the evidence that was kept beside it."""
    from pipelines.rehearsals import audit_model

    found = audit_model(model, workspace=workspace)
    if as_json:
        _print_json(found)
    else:
        columns = ["sequence", "time", "version", "recorded", "again", "problem"]
        _print_table(columns, [[one[column] for column in columns] for one in found["verdicts"]])
        intact = "intact" if found["ledger"]["ok"] else f"NOT INTACT: {' '.join(found['ledger']['problems'])}"
        click.echo(
            f"{model}: the ledger is {intact}; {sum(v['ok'] for v in found['verdicts'])} of "
            f"{len(found['verdicts'])} verdicts follow from their evidence."
        )
    if not found["ok"]:
        sys.exit(_EXIT_FAILED)


@cli.command()
@click.argument("model")
@_reason
@_actor
@_workspace
@_as_json
def rollback(model: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Put MODEL's previous champion back."""
    result = _with_gate(workspace, lambda gate: gate.rollback(model, actor=_who(actor), reason=reason))
    if as_json:
        _print_json(result)
    else:
        click.echo(f"{model}: version {result['version']} is champion again, after {result['seconds']:.1f} s.")


@cli.command()
@click.argument("model")
@_actor
@_workspace
@_as_json
def drill(model: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Rehearse a rollback on a scratch model beside MODEL, and say how long it took. MODEL itself is left alone."""
    result = _with_gate(workspace, lambda gate: gate.drill(model, actor=_who(actor)))
    _tell(result, as_json)
    if not result["ok"]:
        sys.exit(_EXIT_FAILED)


@cli.command()
@click.argument("model")
@click.argument("version")
@_reason
@_actor
@_workspace
@_as_json
def approve(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Approve VERSION of MODEL; with the last approval that the policy asks for, it is promoted.

    For policies that say release.command_line_may_approve: here a name is typed and nobody is signed in, so that the
    ledger also says under which account, and an account is one person. Production wants the release's page.
    """
    key = _review_key(workspace)
    result = _with_gate(workspace, lambda gate: gate.approve(model, version, actor=_who(actor), reason=reason, key=key))
    _tell(result, as_json)


@cli.command()
@click.argument("model")
@click.argument("version")
@_reason
@_actor
@_workspace
@_as_json
def reject(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Reject VERSION of MODEL, for good."""
    result = _with_gate(workspace, lambda gate: gate.reject(model, version, actor=_who(actor), reason=reason))
    _tell(result, as_json)


@cli.command()
@click.argument("model")
@click.argument("version")
@_reason
@_actor
@_workspace
@_as_json
def abandon(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Give up a promotion of VERSION that was begun and cannot be ended; the champion stays."""
    result = _with_gate(workspace, lambda gate: gate.abandon(model, version, actor=_who(actor), reason=reason))
    _tell(result, as_json)


@cli.command()
@click.argument("model")
@_workspace
@_as_json
def repair(model: str, workspace: str, as_json: bool) -> None:
    """Make MLflow's aliases of MODEL what the ledger says."""
    result = _with_gate(workspace, lambda gate: gate.repair(model))
    result["message"] = "\n".join(result["changed"]) or f"{model}: the aliases agree with the ledger."
    _tell(result, as_json)


@cli.command("break-glass")
@click.argument("model")
@click.argument("version")
@_reason
@_actor
@_workspace
@_as_json
def break_glass(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Put VERSION of MODEL live against the gate. Loud, and in the ledger for good."""
    click.secho(f"BREAK-GLASS: {model} version {version} goes live against the gate.", fg="red", bold=True, err=True)
    result = _with_gate(workspace, lambda gate: gate.break_glass(model, version, actor=_who(actor), reason=reason))
    _tell(result, as_json)


@cli.group()
def policy() -> None:
    """Look at gate policies."""


@policy.command("check")
@click.argument("file")
@click.option(
    "--decision", type=click.Path(exists=True, file_okay=False), help="Also judge this past decision's evidence."
)
@click.option("--run", "run_id", default=None, help="Also judge the evidence of this run's decision.")
@_workspace
@_as_json
def policy_check(file: str, decision: str | None, run_id: str | None, workspace: str, as_json: bool) -> None:
    """Validate a gate policy: FILE, or the name of a shipped one; says what is looser than production's.

    With --decision or --run the evidence of a past decision is judged by it, criterion by criterion. Nothing is
    recorded.
    """
    from pipelines.rehearsals import try_policy

    if decision and run_id:
        raise click.UsageError("Give --decision or --run, not both.")
    found = try_policy(file, decision=decision, run_id=run_id, workspace=workspace)
    if as_json:
        _print_json(found)
        return
    click.echo(f"{found['name']} {found['version']} is valid (sha256 {found['digest'][:12]}).")
    for line in found["looser_than_production"]:
        click.echo(f"  looser than production: {line}")
    if found["rehearsal"]:
        _tell_rehearsal(found["rehearsal"], every_criterion=True)


@cli.command()
@click.option("--policy", "file", required=True, help="A policy file, or the name of a shipped policy.")
@click.option("--model", "model_name", required=True, help="Registered model.")
@_workspace
@_as_json
def replay(file: str, model_name: str, workspace: str, as_json: bool) -> None:
    """Judge the evidence of all past releases by another policy: which verdicts would change, and why."""
    from pipelines.rehearsals import replay_policy

    found = replay_policy(file, model_name, workspace=workspace)
    if as_json:
        _print_json(found)
        return
    for one in found["decisions"]:
        _tell_rehearsal(one, every_criterion=False)
    for one in found["unreadable"]:
        click.echo(f"{one['run']}: NOT JUDGED. {one['problem']}")
    click.echo(f"{found['judged']} decisions judged by {found['policy']['name']}: {found['changed']} would change.")


@cli.command()
@click.option(
    "--wait", "wait_seconds", type=click.FloatRange(min=0), default=0, help="Seconds to wait for the database."
)
@_workspace
@_as_json
def migrate(wait_seconds: float, workspace: str, as_json: bool) -> None:
    """Bring the evidence and ledger tables up to date. Two at once wait for each other."""
    from dataclasses import asdict

    from pipelines.migration import migrate as migrate_tables
    from pipelines.workspace import Workspace

    with Workspace(workspace).services():
        done = migrate_tables(wait_seconds=wait_seconds)
    _tell(asdict(done) | {"message": done.message}, as_json)


@cli.command("send-notices")
@click.option("--id", "notice_id", default=None, help="One notice only, of those that were given up.")
@_workspace
@_as_json
def send_notices(notice_id: str | None, workspace: str, as_json: bool) -> None:
    """Send again the notices that were given up, and all that are due."""
    from components.shared.notices import WEBHOOK_VARIABLE, open_outbox
    from pipelines.workspace import Workspace

    url = os.environ.get(WEBHOOK_VARIABLE, "")
    if not url:
        raise click.UsageError(f"{WEBHOOK_VARIABLE} is not set: there is nowhere to send them.")
    with Workspace(workspace).services():
        outbox = open_outbox()
        again = outbox.send_again(notice_id)
        delivered, left = outbox.send(url), outbox.undelivered()
    found = {"again": again, "delivered": delivered, "undelivered": len(left)}
    _tell(found | {"message": f"{delivered} delivered, {len(left)} not delivered."}, as_json)
    if left:
        sys.exit(_EXIT_FAILED)


@cli.command()
@_workspace
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
@_workspace
@click.option("--settings", "settings_file", default=None, help="YAML file of the service's settings (ReviewSettings).")
@click.option("--host", default=None, help="Address to listen on; default: this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port to listen on; default: 8090.")
@click.option("--rater", "raters", multiple=True, help="Somebody who rates; repeat it for more. Local sign-in.")
@click.option("--manager", "managers", multiple=True, help="Who decides on releases; default: you. Local sign-in.")
@click.option("--simulated", multiple=True, help="A program that rates; its votes are marked. Local sign-in.")
@click.option("--replace-key", default="", help="Why the database's known secret is replaced by this one; told to all.")
@_actor
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

    deciding = list(managers) or [_who(actor)]
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
        click.echo(f"{len(found['notices'])} notices wait for a webhook: PLUMBLINE_WEBHOOK_URL is not set.")
        return
    for one in found["notices"]:
        state = "GIVEN UP" if one["given_up"] else "NOT DELIVERED"
        click.echo(f"{state} after {one['attempts']} tries ({one['problem'] or 'not tried yet'}): {one['text']}")
    if any(one["given_up"] for one in found["notices"]):
        click.echo("What was given up is sent again by `plumbline send-notices`.")


for _command in (cancel, compile_, doctor, logs, schedule, submit, upload):
    cli.add_command(_command)


def _with_gate(workspace: str, action: Callable[[Any], Any]) -> Any:
    """Runs an action of the release gate on the workspace's services."""
    from pipelines.workspace import Workspace

    with Workspace(workspace).services():
        from components.release_gate import operations

        done = action(operations)
        _send_notices()
        return done


def _send_notices() -> None:
    """Sends what a command has put into the outbox; what cannot be sent now waits there for the next one."""
    if url := os.environ.get("PLUMBLINE_WEBHOOK_URL"):
        from components.shared.notices import open_outbox

        open_outbox().send(url)


def _review_key(workspace: str) -> Any:
    """The review service's key, which tells the name under which somebody would have rated; None if not at hand."""
    from components.shared.pseudonyms import PSEUDONYM_KEY
    from components.shared.review_key import ReviewKey
    from pipelines.workspace import Workspace

    file = Workspace(workspace).state / "review-secret"
    secret = os.environ.get(PSEUDONYM_KEY) or (file.read_text().strip() if file.is_file() else "")
    return ReviewKey(secret) if secret else None


def _who(actor: str | None) -> str:
    import getpass

    return actor or os.environ.get("PLUMBLINE_ACTOR") or getpass.getuser()


def _console() -> Any:
    """Progress goes to stderr, so that `--json` on stdout stays clean."""
    from rich.console import Console

    return Console(stderr=True)


def _finish(result: Any, as_json: bool) -> None:
    """Prints how a run ended and leaves with the matching exit status."""
    if as_json:
        _print_json(result.summary)
    else:
        from pipelines.verdict import describe

        describe(result, _console())
    sys.exit(_EXIT_FAILED if result.failure or result.summary["verdict"] == "ERROR" else 0)


def _tell_rehearsal(found: dict[str, Any], *, every_criterion: bool) -> None:
    """A past verdict and the one by another policy; the criteria that differ, or all of them."""
    where = f"{found['run']}, {found['model_name']} version {found['version']}"
    if found["problem"]:
        click.echo(f"{where}: NOT JUDGED. {found['problem']}")
        return
    then = (
        found["recorded"]
        if found["again"] in (None, found["recorded"])
        else f"{found['recorded']} (now {found['again']})"
    )
    mark = "CHANGES" if found["changed"] else "as before"
    click.echo(f"{where}: {then} by {found['recorded_policy']}, {found['verdict']} by this policy: {mark}.")
    rows = [
        [one["name"], one["before"] or "-", one["after"], one["threshold"], one["reason"]]
        for one in found["criteria"]
        if every_criterion or one["before"] != one["after"]
    ]
    if rows:
        _print_table(["criterion", "before", "by this policy", "needed", "why"], rows)


def _tell(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(result)
    else:
        click.echo(result["message"])


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_table(columns: list[str], rows: list[list[Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE)
    for row in rows:  # as text: what a person wrote is not markup
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
