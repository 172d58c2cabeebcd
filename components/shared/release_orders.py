"""Release orders: which version waits for which batch of evidence, and the one run that the batch's end starts.

    the gate holds for evidence > order > the batch closes > started (attempt 1) > begun (> renewed ...) > ended
                                                             `- never begun, or begun and lost, or failed -> attempt 2

An order is started at least once and run exactly once. Whoever starts a run adds `started` first; the run adds `begun`
before it does anything, and is refused unless its attempt is the latest and nobody else has begun it. A start that
came twice, or too late, therefore runs nothing. What died on the way is started again when its time is up; what lives
longer renews its time: a run on this machine by itself, one on a cluster because the cluster, when asked, says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, runtime_checkable

from sqlalchemy import Connection, Engine, select

from components.shared.errors import InputError, PlumblineError
from components.shared.files import canonical_json, digest_of
from components.shared.ledger_table import database_url, open_engine
from components.shared.notices import Notice, write_notice
from components.shared.release_tables import RELEASE_ORDERS, RELEASE_RUNS, add_if_new, create_release_tables

__all__ = [
    "MAX_ATTEMPTS",
    "OrderTakenError",
    "ReleaseOrder",
    "ReleaseOrders",
    "RunState",
    "StartRun",
    "TellsOfRuns",
    "make_order",
    "open_orders",
]

MAX_ATTEMPTS = 5
"""Starts of one order before people are asked to look."""

_START_LEASE = timedelta(minutes=10)
"""Until then a run that was started must have begun."""
_RUN_LEASE = timedelta(hours=2)
"""Until then a run that has begun must have ended, or been seen alive: a cluster may let its steps wait for hours."""
_FIRST_PAUSE = timedelta(minutes=1)

Mode = Literal["candidate", "live"]
Status = Literal["waiting", "started", "running", "ended", "failed"]
_STATUS: dict[str, Status] = {
    "started": "started",
    "begun": "running",
    "renewed": "running",
    "ended": "ended",
    "failed": "failed",
}


class OrderTakenError(PlumblineError):
    """Another run has this order, or has had it."""


@dataclass(frozen=True)
class ReleaseOrder:
    """A version that waits for evidence, and all that judging it again takes.

    Attributes:
        order_id: Derived from batch, model, version and mode.
        batch_id: The batch that it waits for.
        model: Registered model.
        version: Its version.
        mode: `candidate` or `live`.
        run: The pipeline run that asked.
        policy: Gate policy.
        seed: Of raters' turns and bootstrap.
        settings: HumanEvalSettings, as the batch was opened with.
        artifacts: `{"uri", "digest"}` by role: dataset, evaluation, reward_model, heldout_reward_model, and of a
            candidate candidate and history.
    """

    order_id: str
    batch_id: str
    model: str
    version: str
    mode: Mode
    run: str
    policy: str
    seed: int
    settings: dict[str, Any]
    artifacts: dict[str, dict[str, str]]

    @property
    def digests(self) -> dict[str, str]:
        """Digest by role."""
        return {role: found["digest"] for role, found in self.artifacts.items()}

    @property
    def uris(self) -> dict[str, str]:
        """Address by role."""
        return {role: found["uri"] for role, found in self.artifacts.items()}


@dataclass(frozen=True)
class RunState:
    """Where the run of an order stands.

    Attributes:
        status: `waiting`: never started.
        attempt: The latest one; 0 before the first.
        holder: Who started or runs it.
        at: Since when, or when it was last seen alive (UTC, ISO 8601).
        expires_at: When it is taken for dead, or may be tried again.
        number: Of its next row.
        done: An attempt has ended well: nothing starts it again but a person.
    """

    status: Status = "waiting"
    attempt: int = 0
    holder: str = ""
    at: str = ""
    expires_at: str | None = None
    number: int = 0
    done: bool = False

    def may_start(self, now: datetime) -> bool:
        """Whether a new attempt is due."""
        if self.done or self.status == "waiting":
            return not self.done
        return self.expires_at is None or self.expires_at <= _text(now)

    @property
    def exhausted(self) -> bool:
        """It was tried often enough."""
        return self.attempt >= MAX_ATTEMPTS


class StartRun(Protocol):
    """Starts the release run of an order, wherever runs run, and returns without waiting for it."""

    def __call__(self, order: ReleaseOrder, attempt: int) -> None: ...


@runtime_checkable
class TellsOfRuns(Protocol):
    """A starter that can be asked after the runs that it started."""

    def is_running(self, holder: str) -> bool:
        """Whether a run, by the name under which it holds its order, is still going on or waiting to."""
        ...


def make_order(
    *,
    batch_id: str,
    model: str,
    version: str,
    mode: Mode,
    run: str,
    policy: str,
    seed: int,
    settings: Mapping[str, Any],
    artifacts: Mapping[str, dict[str, str]],
) -> ReleaseOrder:
    """An order with its id; see `ReleaseOrder`."""
    order_id = digest_of([batch_id, model, version, mode])[:32]
    return ReleaseOrder(order_id, batch_id, model, version, mode, run, policy, seed, dict(settings), dict(artifacts))


def open_orders() -> ReleaseOrders:
    """The orders of PLUMBLINE_DATABASE_URL."""
    return ReleaseOrders(open_engine(database_url()))


class ReleaseOrders:
    """Orders and the history of their runs.

    Args:
        engine: The database of evidence and ledger.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        create_release_tables(engine)

    def record(self, order: ReleaseOrder) -> None:
        """Keeps an order; the same one again changes nothing, and one whose artifacts moved becomes a new revision."""
        while not self._record_once(order):  # another gate was faster: is it the same order, or one more revision?
            pass

    def _record_once(self, order: ReleaseOrder) -> bool:
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            known = _orders(connection, RELEASE_ORDERS.c.order_id == order.order_id)
            if known and known[-1] == order:
                return True
            query = select(RELEASE_ORDERS.c.revision).where(RELEASE_ORDERS.c.order_id == order.order_id)
            revision = max(connection.execute(query).scalars(), default=-1) + 1
            return add_if_new(connection, RELEASE_ORDERS, _order_row(order, revision))

    def all(self) -> list[ReleaseOrder]:
        """Every order, oldest first."""
        with self._engine.connect() as connection:
            return _orders(connection)

    def unfinished(self) -> list[ReleaseOrder]:
        """Orders whose run has not ended well yet, oldest first."""
        ended = select(RELEASE_RUNS.c.order_id).where(RELEASE_RUNS.c.event == "ended")
        with self._engine.connect() as connection:
            return _orders(connection, RELEASE_ORDERS.c.order_id.not_in(ended))

    def get(self, order_id: str) -> ReleaseOrder:
        """One order.

        Raises:
            InputError: There is none of this id.
        """
        with self._engine.connect() as connection:
            found = _orders(connection, RELEASE_ORDERS.c.order_id == order_id)
        if not found:
            raise InputError("there is no such release order.", where=order_id)
        return found[-1]

    def find(self, model: str, version: str | None = None) -> ReleaseOrder:
        """The latest order of a model, or of one version of it.

        Raises:
            InputError: None waits, or ever waited, for evidence.
        """
        with self._engine.connect() as connection:
            found = _orders(connection, RELEASE_ORDERS.c.model == model)
        mine = [order for order in found if version is None or order.version == version]
        if not mine:
            known = ", ".join(dict.fromkeys(order.version for order in found)) or "none"
            what = f"model {model}" + (f" version {version}" if version else "")
            hint = f"Versions of this model that wait or waited: {known}."
            raise InputError("nothing of it waits for people's evidence.", where=what, hint=hint)
        return mine[-1]

    def state(self, order_id: str) -> RunState:
        """Where its run stands."""
        with self._engine.connect() as connection:
            return _state(connection, order_id)

    def start(self, order_id: str, by: str, *, now: datetime | None = None) -> int | None:
        """Takes it upon itself to start the run; of several that try, one gets the attempt.

        Args:
            order_id: The order.
            by: Who starts it.
            now: The time; UTC.

        Returns:
            Number of the attempt; None if it is not due, was tried often enough, or somebody else was faster.
        """
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            if not state.may_start(moment) or state.exhausted:
                return None
            row = _run_row(order_id, state.number, "started", state.attempt + 1, by, moment, _START_LEASE)
            return state.attempt + 1 if add_if_new(connection, RELEASE_RUNS, row) else None

    def begin(self, order_id: str, attempt: int, holder: str, *, now: datetime | None = None) -> None:
        """The run begins; the same holder may say so twice.

        Args:
            order_id: The order.
            attempt: What it was started as.
            holder: Names the run.
            now: The time; UTC.

        Raises:
            OrderTakenError: Another attempt is on its way, or another run has begun or ended this one.
        """
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            if (state.status, state.attempt, state.holder) == ("running", attempt, holder):
                return
            mine = state.status == "started" and state.attempt == attempt
            row = _run_row(order_id, state.number, "begun", attempt, holder, moment, _RUN_LEASE)
            if not mine or not add_if_new(connection, RELEASE_RUNS, row):
                raise OrderTakenError(
                    f"attempt {attempt} is not to run: attempt {state.attempt} is {state.status} ({state.holder}).",
                    where=f"release order {order_id}",
                    hint="Nothing is wrong: a run that was started twice runs once.",
                )

    def renew(self, order_id: str, attempt: int, *, now: datetime | None = None) -> bool:
        """The run is seen alive: its time begins anew.

        Args:
            order_id: The order.
            attempt: What the run was started as.
            now: The time; UTC.

        Returns:
            Whether that attempt is running still; False: nothing was renewed.
        """
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            if (state.status, state.attempt) != ("running", attempt):
                return False
            row = _run_row(order_id, state.number, "renewed", attempt, state.holder, moment, _RUN_LEASE)
            return add_if_new(connection, RELEASE_RUNS, row)

    def end(
        self, order_id: str, attempt: int, holder: str, *, failed: bool, problem: str = "", now: datetime | None = None
    ) -> bool:
        """The run ends; one that does not hold the order changes nothing.

        Args:
            order_id: The order.
            attempt: What it was started as.
            holder: Names the run.
            failed: A step failed: it is started again after a pause that doubles.
            problem: Why it failed.
            now: The time; UTC.

        Returns:
            Whether it held the order.
        """
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            if (state.status, state.attempt, state.holder) != ("running", attempt, holder):
                return False
            event, lease = ("failed", _FIRST_PAUSE * 2 ** (attempt - 1)) if failed else ("ended", None)
            row = _run_row(order_id, state.number, event, attempt, holder, moment, lease, {"problem": problem})
            return add_if_new(connection, RELEASE_RUNS, row)

    def fail_start(self, order_id: str, attempt: int, by: str, problem: str, *, now: datetime | None = None) -> None:
        """The run could not even be started; it is tried again after a pause that doubles."""
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            if (state.status, state.attempt) == ("started", attempt):
                pause = _FIRST_PAUSE * 2 ** (attempt - 1)
                row = _run_row(order_id, state.number, "failed", attempt, by, moment, pause, {"problem": problem})
                add_if_new(connection, RELEASE_RUNS, row)

    def give_up(self, order: ReleaseOrder, *, now: datetime | None = None) -> bool:
        """Tells people, once, that an order was tried often enough and never ended."""
        state = self.state(order.order_id)
        if not state.exhausted or not state.may_start(now or datetime.now(UTC)):
            return False
        notice = Notice(
            id=digest_of(["release_run_failed", order.order_id, state.attempt])[:32],
            kind="release_run_failed",
            text=f"The release run of {order.model} version {order.version} was started {state.attempt} times and "
            f"never ended. Look at its log, then start it by hand: plumbline release --model-name {order.model} "
            f"--version {order.version}",
            details={"model_name": order.model, "version": order.version, "batch_id": order.batch_id},
        )
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            return write_notice(connection, notice)

    def take(self, order_id: str, by: str, *, force: bool = False, now: datetime | None = None) -> int:
        """Starts an order by hand, also one that has ended or was given up.

        Args:
            order_id: The order.
            by: Who starts it.
            force: Also while a run of it seems to be going on: somebody knows that it was killed.
            now: The time; UTC.

        Returns:
            Number of the attempt.

        Raises:
            OrderTakenError: A run of it is going on.
        """
        moment = now or datetime.now(UTC)
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            state = _state(connection, order_id)
            row = _run_row(order_id, state.number, "started", state.attempt + 1, by, moment, _START_LEASE)
            busy = not force and state.status == "running" and (state.expires_at or "") > _text(moment)
            if busy or not add_if_new(connection, RELEASE_RUNS, row):
                raise OrderTakenError(
                    f"attempt {state.attempt} is running since {state.at} ({state.holder}).",
                    where=f"release order {order_id}",
                    hint=f"Wait for its end; it is taken for dead at {state.expires_at}. If it was killed: --force.",
                )
            return state.attempt + 1


def _state(connection: Connection, order_id: str) -> RunState:
    mine = RELEASE_RUNS.c.order_id == order_id
    last = connection.execute(select(RELEASE_RUNS).where(mine).order_by(RELEASE_RUNS.c.number.desc()).limit(1)).first()
    if last is None:
        return RunState()
    ended = connection.execute(select(RELEASE_RUNS.c.number).where(mine, RELEASE_RUNS.c.event == "ended").limit(1))
    done = ended.first() is not None
    return RunState(_STATUS[last.event], last.attempt, last.holder, last.at, last.expires_at, last.number + 1, done)


def _orders(connection: Connection, *where: Any) -> list[ReleaseOrder]:
    """The latest revision of each order, in the order in which they were last written."""
    query = select(RELEASE_ORDERS).where(*where).order_by(RELEASE_ORDERS.c.created_at, RELEASE_ORDERS.c.revision)
    latest: dict[str, ReleaseOrder] = {}
    for row in connection.execute(query):
        latest.pop(row.order_id, None)
        latest[row.order_id] = ReleaseOrder(
            row.order_id, row.batch_id, row.model, row.version, row.mode, **json.loads(row.content)
        )
    return list(latest.values())


def _order_row(order: ReleaseOrder, revision: int) -> dict[str, Any]:
    names = ("run", "policy", "seed", "settings", "artifacts")
    return {
        "order_id": order.order_id,
        "revision": revision,
        "batch_id": order.batch_id,
        "model": order.model,
        "version": order.version,
        "mode": order.mode,
        "content": canonical_json({name: getattr(order, name) for name in names}),
        "created_at": _text(datetime.now(UTC)),
    }


def _run_row(
    order_id: str,
    number: int,
    event: str,
    attempt: int,
    holder: str,
    now: datetime,
    lease: timedelta | None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "number": number,
        "event": event,
        "attempt": attempt,
        "holder": holder,
        "at": _text(now),
        "expires_at": _text(now + lease) if lease else None,
        "details": canonical_json(dict(details or {})),
    }


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
