"""Commands about releases: the ledger and what it proves, approval, promotion undone, and gate policies.

`pipelines.cli` hangs them into `plumbline`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pipelines.cli_options import (
    EXIT_FAILED,
    actor_option,
    json_option,
    print_json,
    print_table,
    reason_option,
    tell,
    who,
    workspace_option,
)

__all__ = ["COMMANDS"]


def _of_one_release(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of what somebody decides about one version of a model."""
    for part in (json_option, workspace_option, actor_option, reason_option):
        command = part(command)
    return click.argument("model")(click.argument("version")(command))


@click.command()
@click.argument("model")
@workspace_option
@json_option
def history(model: str, workspace: str, as_json: bool) -> None:
    """Show everything that happened to MODEL: who, when, from, to, why."""
    entries = _with_gate(workspace, lambda gate: gate.history(model))
    if as_json:
        print_json(entries)
        return
    columns = ["sequence", "time", "version", "event", "from_state", "to_state", "actor", "reason"]
    rows = [[*(entry[name] for name in columns), entry["details"].get("written_by")] for entry in entries]
    print_table([*columns, "written by"], rows)


@click.command()
@click.argument("model")
@workspace_option
@json_option
def verify(model: str, workspace: str, as_json: bool) -> None:
    """Replay MODEL's ledger: hashes, legal moves, approvals, and the head that is anchored outside the database."""
    result = _with_gate(workspace, lambda gate: gate.verify(model))
    if as_json:
        print_json(result)
    else:
        click.echo(f"{model}: {result['entries']} entries, " + ("intact." if result["ok"] else "NOT INTACT:"))
        for problem in result["problems"]:
            click.echo(f"  {problem}")
    if not result["ok"]:
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("model")
@workspace_option
@json_option
def audit(model: str, workspace: str, as_json: bool) -> None:
    """Prove MODEL's past: the ledger is intact, and each verdict follows from the evidence that was kept beside it."""
    from pipelines.rehearsals import audit_model

    found = audit_model(model, workspace=workspace)
    if as_json:
        print_json(found)
    else:
        columns = ["sequence", "time", "version", "recorded", "again", "problem"]
        rows = [[*(one[column] for column in columns), ", ".join(one["imported_by"])] for one in found["verdicts"]]
        print_table([*columns, "votes imported by"], rows)
        intact = "intact" if found["ledger"]["ok"] else f"NOT INTACT: {' '.join(found['ledger']['problems'])}"
        click.echo(
            f"{model}: the ledger is {intact}; {sum(v['ok'] for v in found['verdicts'])} of "
            f"{len(found['verdicts'])} verdicts follow from their evidence."
        )
    if not found["ok"]:
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("model")
@reason_option
@actor_option
@workspace_option
@json_option
def rollback(model: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Put MODEL's previous champion back."""
    result = _with_gate(workspace, lambda gate: gate.rollback(model, actor=who(actor), reason=reason))
    if as_json:
        print_json(result)
    else:
        click.echo(f"{model}: version {result['version']} is champion again, after {result['seconds']:.1f} s.")


@click.command()
@click.argument("model")
@actor_option
@workspace_option
@json_option
def drill(model: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Rehearse a rollback on a scratch model beside MODEL, and say how long it took. MODEL itself is left alone."""
    result = _with_gate(workspace, lambda gate: gate.drill(model, actor=who(actor)))
    tell(result, as_json)
    if not result["ok"]:
        sys.exit(EXIT_FAILED)


@click.command()
@_of_one_release
def approve(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Approve VERSION of MODEL; with the last approval that the policy asks for, it is promoted.

    For policies that say release.command_line_may_approve: here a name is typed and nobody is signed in, so that the
    ledger also says under which account, and an account is one person. Production wants the release's page.
    """
    key = _review_key(workspace)
    result = _with_gate(workspace, lambda gate: gate.approve(model, version, actor=who(actor), reason=reason, key=key))
    tell(result, as_json)


@click.command()
@_of_one_release
def reject(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Reject VERSION of MODEL, for good."""
    result = _with_gate(workspace, lambda gate: gate.reject(model, version, actor=who(actor), reason=reason))
    tell(result, as_json)


@click.command()
@_of_one_release
def abandon(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Give up a promotion of VERSION that was begun and cannot be ended; the champion stays."""
    result = _with_gate(workspace, lambda gate: gate.abandon(model, version, actor=who(actor), reason=reason))
    tell(result, as_json)


@click.command()
@click.argument("model")
@workspace_option
@json_option
def repair(model: str, workspace: str, as_json: bool) -> None:
    """Make MLflow's aliases of MODEL what the ledger says."""
    result = _with_gate(workspace, lambda gate: gate.repair(model))
    result["message"] = "\n".join(result["changed"]) or f"{model}: the aliases agree with the ledger."
    tell(result, as_json)


@click.command("break-glass")
@_of_one_release
def break_glass(model: str, version: str, reason: str, actor: str | None, workspace: str, as_json: bool) -> None:
    """Put VERSION of MODEL live against the gate. Loud, and in the ledger for good."""
    click.secho(f"BREAK-GLASS: {model} version {version} goes live against the gate.", fg="red", bold=True, err=True)
    result = _with_gate(workspace, lambda gate: gate.break_glass(model, version, actor=who(actor), reason=reason))
    tell(result, as_json)


@click.group()
def policy() -> None:
    """Look at gate policies."""


@policy.command("check")
@click.argument("file")
@click.option(
    "--decision", type=click.Path(exists=True, file_okay=False), help="Also judge this past decision's evidence."
)
@click.option("--run", "run_id", default=None, help="Also judge the evidence of this run's decision.")
@workspace_option
@json_option
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
        print_json(found)
        return
    click.echo(f"{found['name']} {found['version']} is valid (sha256 {found['digest'][:12]}).")
    for line in found["looser_than_production"]:
        click.echo(f"  looser than production: {line}")
    if found["rehearsal"]:
        _tell_rehearsal(found["rehearsal"], every_criterion=True)


@click.command()
@click.option("--policy", "file", required=True, help="A policy file, or the name of a shipped policy.")
@click.option("--model", "model_name", required=True, help="Registered model.")
@workspace_option
@json_option
def replay(file: str, model_name: str, workspace: str, as_json: bool) -> None:
    """Judge the evidence of all past releases by another policy: which verdicts would change, and why."""
    from pipelines.rehearsals import replay_policy

    found = replay_policy(file, model_name, workspace=workspace)
    if as_json:
        print_json(found)
        return
    for one in found["decisions"]:
        _tell_rehearsal(one, every_criterion=False)
    for one in found["unreadable"]:
        click.echo(f"{one['run']}: NOT JUDGED. {one['problem']}")
    click.echo(f"{found['judged']} decisions judged by {found['policy']['name']}: {found['changed']} would change.")


@click.command("send-notices")
@click.option("--id", "notice_id", default=None, help="One notice only, of those that were given up.")
@workspace_option
@json_option
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
    tell(found | {"message": f"{delivered} delivered, {len(left)} not delivered."}, as_json)
    if left:
        sys.exit(EXIT_FAILED)


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
    from components.shared.notices import WEBHOOK_VARIABLE, open_outbox

    if url := os.environ.get(WEBHOOK_VARIABLE):
        open_outbox().send(url)


def _review_key(workspace: str) -> Any:
    """The review service's key, which tells the name under which somebody would have rated; None if not at hand."""
    from components.shared.pseudonyms import PSEUDONYM_KEY
    from components.shared.review_key import ReviewKey
    from pipelines.workspace import Workspace

    file = Workspace(workspace).state / "review-secret"
    secret = os.environ.get(PSEUDONYM_KEY) or (file.read_text().strip() if file.is_file() else "")
    return ReviewKey(secret) if secret else None


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
        print_table(["criterion", "before", "by this policy", "needed", "why"], rows)


COMMANDS = (
    history,
    verify,
    audit,
    rollback,
    drill,
    approve,
    reject,
    abandon,
    repair,
    break_glass,
    policy,
    replay,
    send_notices,
)
"""Every command of this module."""
