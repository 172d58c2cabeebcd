"""The watch over evidence: closes batches that have ended, starts their release runs, sends notices.

    look:  close what has ended > start what is closed and waits > send what is due

Everything it does is recorded before it is done, in rows that only one of several watches can add. So it may be killed
anywhere, run in several services and in `plumbline release --due` at once, and still each batch's end starts one run.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from components.human_eval.desk import RatingDesk
from components.human_eval.stopping import close_what_has_ended
from components.shared.notices import WEBHOOK_VARIABLE, Outbox
from components.shared.release_orders import ReleaseOrder, ReleaseOrders, StartRun, TellsOfRuns

__all__ = ["Look", "Watch"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What one look came to.

    Attributes:
        closed: Batches that it closed.
        started: Release runs that it started: order, model, version and attempt.
        delivered: Notices that were delivered.
    """

    closed: list[str] = field(default_factory=list)
    started: list[dict[str, Any]] = field(default_factory=list)
    delivered: int = 0


class Watch:
    """Watches one database.

    Args:
        desk: The rating desk.
        start: Starts release runs; None starts none.
    """

    def __init__(self, desk: RatingDesk, *, start: StartRun | None) -> None:
        self._desk = desk
        self._start = start
        self._orders = ReleaseOrders(desk.database.engine)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.outbox = Outbox(desk.database.engine)
        self.last_look = 0.0

    def look(self, *, now: datetime | None = None) -> Look:
        """Looks once.

        Args:
            now: The time; UTC.

        Raises:
            PlumblineError: The database does not answer.
        """
        moment = now or datetime.now(UTC)
        closed = close_what_has_ended(self._desk, now=moment)
        started = self._start_what_waits(moment) if self._start else []
        url = os.environ.get(WEBHOOK_VARIABLE, "")
        delivered = self.outbox.send(url, now=now) if url else 0
        self.last_look = time.time()
        return Look(closed, started, delivered)

    def lifespan(self, every_seconds: float) -> Callable[[Any], AbstractAsyncContextManager[None]]:
        """For FastAPI: a thread looks every so often while the service serves; 0 looks never."""

        @asynccontextmanager
        async def watched(_app: Any) -> AsyncIterator[None]:
            ended = threading.Event()
            thread = threading.Thread(target=self._keep_looking, args=(every_seconds, ended), daemon=True)
            if every_seconds:
                thread.start()
            try:
                yield
            finally:
                ended.set()

        return watched

    def _keep_looking(self, every_seconds: float, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.look()
            except Exception:  # whatever it was, the next look may see it gone, and raters must not suffer
                _logger.exception("Looking after the batches failed; it is tried again in %g s.", every_seconds)
            ended.wait(every_seconds)

    def _start_what_waits(self, now: datetime) -> list[dict[str, Any]]:
        started = []
        for order in self._orders.unfinished():
            if self._desk.database.closure(order.batch_id) is None or self._still_runs(order, now):
                continue
            attempt = self._orders.start(order.order_id, self._name, now=now)
            if attempt is None:
                self._orders.give_up(order, now=now)
            elif self._started(order, attempt, now):
                about = {"order": order.order_id, "model": order.model, "version": order.version, "attempt": attempt}
                started.append(about)
        return started

    def _still_runs(self, order: ReleaseOrder, now: datetime) -> bool:
        """Whether a run whose time is up is alive all the same; its time is then renewed."""
        state = self._orders.state(order.order_id)
        if state.status != "running" or not state.may_start(now) or not isinstance(self._start, TellsOfRuns):
            return False
        try:
            alive = self._start.is_running(state.holder)
        except Exception:  # who cannot be asked cannot start another one either; the next look asks again
            _logger.exception("It cannot be told whether the release run %s is going on.", state.holder)
            return True
        return alive and self._orders.renew(order.order_id, state.attempt, now=now)

    def _started(self, order: ReleaseOrder, attempt: int, now: datetime) -> bool:
        assert self._start is not None
        try:
            self._start(order, attempt)
        except Exception as error:  # whatever a starter raises, the other orders and the notices must not suffer
            _logger.exception("The release run of %s version %s did not start.", order.model, order.version)
            self._orders.fail_start(order.order_id, attempt, self._name, str(error), now=now)
            return False
        _logger.info("The release run of %s version %s was started (%d).", order.model, order.version, attempt)
        return True
