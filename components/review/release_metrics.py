"""Figures of releases for Prometheus, read from the ledger when they are asked for: what alerts stand on.

Whether the registry serves what the ledger says takes a call to another server. It is asked in the background, at most
once in half a minute, so that a registry that hangs never delays the figures of everything else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from components.release_gate.entries import LedgerView
from components.release_gate.office import Office, open_office
from components.release_gate.registry import CHAMPION
from components.release_gate.states import Event, State, is_live
from components.shared.errors import PlumblineError

__all__ = ["ReleaseMetrics"]

_logger = logging.getLogger(__name__)

_VERDICTS = (Event.AWAIT_APPROVAL, Event.HOLD, Event.BLOCK, Event.FAIL, Event.KEEP, Event.ALARM)
_ENDED = frozenset({State.RETIRED, State.REJECTED, State.EXPIRED, State.SUPERSEDED, State.ROLLED_BACK, State.BLOCKED})
_REGISTRY_SECONDS = 30.0


class ReleaseMetrics(Collector):
    """Gauges of every model on the ledger.

    Args:
        office: Opens ledger and registry.
        registry_seconds: The registry is not asked more often.
    """

    def __init__(
        self, office: Callable[[], Office] = open_office, *, registry_seconds: float = _REGISTRY_SECONDS
    ) -> None:
        self._office = office
        self._seconds = registry_seconds
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self._aliases: dict[str, str | None] | None = None
        self._up: bool | None = None
        self._asking: threading.Thread | None = None

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: a service whose database is away still starts and tells the other figures."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample a model, version or state; none if the ledger does not answer."""
        try:
            office = self._office()
            views = [office.ledger.view(model) for model in office.ledger.models()]
        except (PlumblineError, SQLAlchemyError) as error:
            _logger.warning("No figures of releases: %s", str(error).partition("\n")[0])
            return
        self._ask_registry(office, [view.model for view in views])
        yield _releases(views)
        yield from _verdicts(views)
        yield from self._served(views)

    def _served(self, views: list[LedgerView]) -> Iterator[GaugeMetricFamily]:
        """Whether the champion alias is the live version; nothing of models that never had one."""
        with self._lock:
            aliases, up = self._aliases, self._up
        if up is not None:
            yield GaugeMetricFamily("plumbline_release_registry_up", "Whether the model registry answers.", value=up)
        if not up or aliases is None:
            return
        served = GaugeMetricFamily(
            "plumbline_release_champion_served",
            "Whether the registry's champion alias is the live version of the ledger.",
            labels=["model"],
        )
        for view in views:
            if view.champion is not None and view.model in aliases and view.promoting is None:
                served.add_metric([view.model], aliases[view.model] == view.champion)
        yield served

    def _ask_registry(self, office: Office, models: list[str]) -> None:
        with self._lock:
            if time.monotonic() - self._asked < self._seconds:
                return
            if self._asking is not None and self._asking.is_alive():  # it hangs: one thread waits for it, not many
                self._up = False
                return
            self._asked = time.monotonic()
            self._asking = threading.Thread(target=self._read_aliases, args=(office, models), daemon=True)
            self._asking.start()

    def _read_aliases(self, office: Office, models: list[str]) -> None:
        try:
            found: dict[str, str | None] = {model: office.registry.aliases(model).get(CHAMPION) for model in models}
        except Exception as error:  # noqa: BLE001 (a registry fails in many ways; each is "down")
            _logger.warning("The registry does not answer: %s", error)
            with self._lock:
                self._up = False
            return
        with self._lock:
            self._aliases, self._up = found, True


def _releases(views: list[LedgerView]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("plumbline_releases", "Versions in each state.", labels=["model", "state"])
    for view in views:
        states = list(view.versions.values())
        for state in State:
            if state is not State.NEW:
                family.add_metric([view.model, str(state)], states.count(state))
    return family


def _verdicts(views: list[LedgerView]) -> Iterator[GaugeMetricFamily]:
    """The latest verdict on each version that has not ended, as far as alerts need it."""
    labels = ["model", "version"]
    error = GaugeMetricFamily("plumbline_release_gate_error", "Whether the gate's latest word is ERROR.", labels=labels)
    alarm = GaugeMetricFamily(
        "plumbline_release_live_alarm", "Whether harm was shown, or seen, on a live version.", labels=labels
    )
    wins = GaugeMetricFamily(
        "plumbline_release_live_win_rate",
        "People's latest win rate of a live version over its predecessor.",
        labels=labels,
    )
    judged = GaugeMetricFamily(
        "plumbline_release_live_judged_timestamp_seconds", "When a live version was last judged.", labels=labels
    )
    for view in views:
        newest = next(reversed(view.versions), None)
        for version, state in view.versions.items():
            last = view.last(version, *_VERDICTS)
            if last is None or state in _ENDED:
                continue
            if version == newest or is_live(state):  # of older ones nobody waits for a verdict
                error.add_metric([view.model, version], last.event == Event.FAIL)
            if not is_live(state):
                continue
            alarm.add_metric([view.model, version], last.event == Event.ALARM or bool(last.data.get("alarm")))
            promoted = view.last(version, Event.PROMOTED)
            if promoted is None or last.sequence < promoted.sequence:
                continue
            judged.add_metric([view.model, version], datetime.fromisoformat(last.time).timestamp())
            rate = last.data.get("win_rate")
            if isinstance(rate, int | float):
                wins.add_metric([view.model, version], rate)
    yield from (error, alarm, wins, judged)
