"""Release runs of their own: by hand on this machine, and what starts them when a batch has closed.

run_release          `plumbline release --model-name M`: judges what waits for evidence, here and now
start_due            `plumbline release --due`: closes what has ended and starts every run that is due, once
make_start           the same for the review service: by a command, or through Kubeflow Pipelines
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from components.review.settings import KfpTrigger, ReleaseTrigger
from components.shared.errors import InputError
from components.shared.files import read_json
from components.shared.ledger_table import database_url, open_engine
from components.shared.release_orders import ReleaseOrder, ReleaseOrders, StartRun, open_orders
from pipelines.local import RunResult, run_local
from pipelines.settings import load_run_settings
from pipelines.workspace import RunFolder, Workspace

__all__ = ["CommandStart", "KfpStart", "awaited_evidence", "make_start", "run_release", "start_due"]

_logger = logging.getLogger(__name__)

_OF_ANOTHER_RUN = ("evidence", "decision", "report")
"""Artifacts of the run that asked which this run makes anew; the checkpoints stay, for it may offer one of them."""


def run_release(
    workspace: str,
    model_name: str,
    *,
    version: str | None = None,
    order_id: str | None = None,
    attempt: int | None = None,
    force: bool = False,
    actor: str,
    console: Console,
) -> RunResult:
    """Judges on this machine what waits for people's evidence.

    Args:
        workspace: Folder of local runs.
        model_name: Registered model.
        version: Its version; None takes the one that asked last.
        order_id: The release order, where a service starts the run; else it is found by model and version, and taken if
            its batch is closed. On a batch that is still open the run judges what is there, and the run that the
            batch's end starts comes all the same.
        attempt: As which attempt the service started it.
        force: Take the order also while a run of it seems to be going on.
        actor: Who starts it.
        console: Where progress is drawn.

    Raises:
        InputError: Nothing of the model waits for evidence, or the run that asked is not in this workspace.
        OrderTakenError: A run of it is going on.
    """
    from pipelines.release import build_live_release_run, build_release_run, release_run_arguments

    root = Workspace(workspace)
    with root.services():
        orders = open_orders()
        order = orders.get(order_id) if order_id else orders.find(model_name, version)
        if order_id is None:
            attempt = orders.take(order.order_id, actor, force=force) if _is_closed(order) else 0
    asked = root.run(order.run)
    settings = load_run_settings(str(asked.settings))
    settings = settings.model_copy(update={"execution": settings.execution.model_copy(update={"workspace": workspace})})
    build = build_release_run if order.mode == "candidate" else build_live_release_run
    with _kept_alive(root, order, attempt or 0):
        result = run_local(
            settings,
            build(settings),
            release_run_arguments(order, attempt=attempt or 0),
            name=f"{settings.name}-release",
            console=console,
            given=_inherited(asked, order),
        )
    if result.failure and attempt:
        with root.services():  # a run that failed before its first step has told nobody
            orders.fail_start(order.order_id, attempt, result.run.run_id, result.failure.cause)
    return result


def start_due(start: StartRun) -> dict[str, Any]:
    """Closes batches that have ended, starts the run of each that is closed and has none, sends notices.

    Returns:
        `closed` (batches), `started` (order, model, version, attempt), `delivered` (notices).
    """
    from components.human_eval.database import open_database
    from components.human_eval.desk import RatingDesk
    from components.review.watch import Watch

    look = Watch(RatingDesk(open_database()), start=start).look()
    return {"closed": look.closed, "started": look.started, "delivered": look.delivered}


def awaited_evidence() -> list[dict[str, Any]]:
    """What waits for people, or for the run that their evidence starts: a line an order that has not ended."""
    from components.human_eval.database import open_database
    from components.human_eval.desk import RatingDesk

    desk, orders = RatingDesk(open_database()), open_orders()
    return [_describe(desk, order, orders.state(order.order_id)) for order in orders.unfinished()]


def make_start(trigger: ReleaseTrigger, workspace: Workspace) -> StartRun:
    """What starts release runs, as the settings of the review service say."""
    if trigger.kfp:
        return KfpStart(trigger.kfp)
    own = [sys.executable, "-m", "pipelines.cli", "release", "--workspace", str(workspace.root), "--json"]
    return CommandStart(trigger.command or own, log=workspace.state / "release-runs.log")


class CommandStart:
    """Starts a release run as a command that outlives whoever started it.

    Args:
        command: The command; what is to be judged is appended to it.
        log: Where its output goes.
    """

    def __init__(self, command: Sequence[str], *, log: Path) -> None:
        self._command = list(command)
        self._log = log
        self._children: list[subprocess.Popen[bytes]] = []

    def __call__(self, order: ReleaseOrder, attempt: int) -> None:
        """Starts it.

        Raises:
            OSError: There is no such command.
        """
        self._children = [child for child in self._children if child.poll() is None]
        names = {"--model-name": order.model, "--version": order.version, "--order": order.order_id}
        what = [part for pair in {**names, "--attempt": str(attempt)}.items() for part in pair]
        with open(self._log, "ab") as log:
            child = subprocess.Popen(
                [*self._command, *what], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._children.append(child)


class KfpStart:
    """Submits the compiled release pipeline to Kubeflow Pipelines.

    Args:
        settings: Where, and which pipeline.
    """

    def __init__(self, settings: KfpTrigger) -> None:
        self._settings = settings

    def __call__(self, order: ReleaseOrder, attempt: int) -> None:
        """Submits the newest version of the pipeline for the order's mode.

        Raises:
            ApiError: The API refused, or does not answer.
            InputError: It has no such pipeline, or its address is not known.
        """
        import kfp_server_api

        from pipelines.cluster.connection import KFP, Connection
        from pipelines.release import release_run_arguments

        at = self._settings
        kfp = KFP(Connection.find(at.host or None, at.namespace))
        name = at.pipeline if order.mode == "candidate" else at.live_pipeline
        body = kfp_server_api.V2beta1Run(
            display_name=f"release {order.model} {order.version}, {order.order_id[:8]}, attempt {attempt}",
            experiment_id=kfp.experiment(at.experiment),
            pipeline_version_reference=_newest_version(kfp, name),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(
                parameters=release_run_arguments(order, attempt=attempt)
            ),
            service_account=at.service_account or None,
        )
        kfp.write(kfp.runs.run_service_create_run, body, what=f"start {body.display_name}")

    def is_running(self, holder: str) -> bool:
        """Whether a run of Kubeflow Pipelines has not come to an end yet.

        Raises:
            ApiError: The API refused, or does not answer.
        """
        from pipelines.cluster.connection import KFP, Connection, NotFoundError
        from pipelines.cluster.runs import run_state

        at = self._settings
        try:
            return not run_state(KFP(Connection.find(at.host or None, at.namespace)), holder).ended
        except NotFoundError:  # deleted
            return False


def _newest_version(kfp: Any, name: str) -> Any:
    """The newest version of an uploaded pipeline, as a run's request names it."""
    import kfp_server_api

    from pipelines.cluster.connection import NotFoundError

    hint = "Upload what `plumbline compile --pipeline release` (or release-live) wrote, or apply it with --manifest."
    try:
        by_name = kfp.pipelines.pipeline_service_get_pipeline_by_name
        pipeline = kfp.read(by_name, name, what=f"pipeline {name}", **kfp.scope()).pipeline_id
    except NotFoundError as error:
        raise InputError(f"there is no pipeline {name!r}.", where=kfp.connection.host, hint=hint) from error
    listing = kfp.pipelines.pipeline_service_list_pipeline_versions
    options = {"pipeline_id": pipeline, "page_size": 1, "sort_by": "created_at desc"}
    newest = kfp.read(listing, what=f"versions of {name}", **options).pipeline_versions
    if not newest:
        raise InputError(f"pipeline {name!r} has no version.", where=kfp.connection.host, hint=hint)
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=pipeline, pipeline_version_id=newest[0].pipeline_version_id
    )


@contextlib.contextmanager
def _kept_alive(root: Workspace, order: ReleaseOrder, attempt: int, *, every_seconds: float = 600.0) -> Iterator[None]:
    """Renews the order's time as long as this process lives, so that nobody takes a long run for dead."""
    ended = threading.Event()

    def renew() -> None:
        orders = ReleaseOrders(engine)
        while not ended.wait(every_seconds):
            try:
                orders.renew(order.order_id, attempt)
            except Exception:  # the next time may work; the run itself must not suffer
                _logger.exception("The release run's time could not be renewed.")

    with root.services():
        engine = open_engine(database_url())
    thread = threading.Thread(target=renew, daemon=True)
    if attempt:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _inherited(asked: RunFolder, order: ReleaseOrder) -> dict[str, str]:
    """Artifacts, by role, that a release run takes over from the run that asked."""
    made = asked.path / "artifacts.json"
    known = read_json(made) if made.is_file() else {}
    return {role: uri for role, uri in {**known, **order.uris}.items() if role not in _OF_ANOTHER_RUN}


def _is_closed(order: ReleaseOrder) -> bool:
    from components.human_eval.database import open_database

    return open_database().closure(order.batch_id) is not None


def _describe(desk: Any, order: ReleaseOrder, state: Any) -> dict[str, Any]:
    closure, progress = desk.database.closure(order.batch_id), desk.progress(order.batch_id, "")
    return {
        "model": order.model,
        "version": order.version,
        "mode": order.mode,
        "batch_id": order.batch_id,
        "votes": progress.votes,
        "votes_needed": progress.votes_needed,
        "deadline": desk.database.deadline(order.batch_id).isoformat(),
        "closed": closure.reason if closure else None,
        "release_run": state.status,
        "attempt": state.attempt,
    }
