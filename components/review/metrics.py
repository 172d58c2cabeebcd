"""Figures for Prometheus: requests by route, and how far the open batches are. No login, no pseudonym, no text."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.human_eval.desk import RatingDesk
from components.review.release_metrics import ReleaseMetrics
from components.review.watch import Watch
from components.shared.errors import PlumblineError

__all__ = ["CONTENT_TYPE", "Metrics"]

_logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The figures of one service.

    Args:
        desk: Whose batches are counted when Prometheus asks.
        watch: Whose last look is told.
    """

    def __init__(self, desk: RatingDesk, watch: Watch) -> None:
        self._registry = CollectorRegistry()
        labels = ["method", "route"]
        self._requests = Counter(
            "plumbline_review_requests", "Requests answered.", [*labels, "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "plumbline_review_request_seconds", "Time to answer.", labels, buckets=_BUCKETS, registry=self._registry
        )
        self.answers = Counter(
            "plumbline_review_answers", "Answers of raters, by what they did.", ["action"], registry=self._registry
        )
        self.decisions = Counter(
            "plumbline_review_decisions", "Decisions on releases.", ["action"], registry=self._registry
        )
        for collector in (_Batches(desk), _Watched(watch), ReleaseMetrics()):
            self._registry.register(_AsFarAsItAnswers(collector))

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware that counts requests by the route's template, never by the address that was asked for."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = time.perf_counter(), 500

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                method = scope["method"] if route != "unknown" else "any"
                self._requests.labels(method, route, str(status)).inc()
                self._seconds.labels(method, route).observe(time.perf_counter() - started)

        return watched


class _AsFarAsItAnswers(Collector):
    """The figures of a collector up to where a database refuses: the others must be told, then most of all."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def describe(self) -> list[Metric]:
        """Nothing: a service whose database is away still starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the collector yields."""
        try:
            yield from self._collector.collect()
        except (PlumblineError, SQLAlchemyError, OSError) as error:
            reason = str(error).partition("\n")[0]
            _logger.warning("%s tells no (more) figures: %s", type(self._collector).__name__.strip("_"), reason)


class _Batches(Collector):
    """Open batches, counted when they are asked for."""

    def __init__(self, desk: RatingDesk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Votes given and needed of each open batch."""
        votes = GaugeMetricFamily("plumbline_review_votes", "Votes of an open batch.", labels=["batch"])
        needed = GaugeMetricFamily("plumbline_review_votes_needed", "Votes that it needs.", labels=["batch"])
        deadline = GaugeMetricFamily(
            "plumbline_review_batch_deadline_timestamp_seconds", "When it closes as it is.", labels=["batch"]
        )
        batches = self._desk.open_batches()
        for batch_id in batches:
            progress = self._desk.progress(batch_id, "")
            votes.add_metric([batch_id], progress.votes)
            needed.add_metric([batch_id], progress.votes_needed)
            deadline.add_metric([batch_id], self._desk.database.deadline(batch_id).timestamp())
        yield GaugeMetricFamily("plumbline_review_open_batches", "Batches that await people.", value=len(batches))
        yield votes
        yield needed
        yield deadline


class _Watched(Collector):
    """How the watch over batches and notices is doing, for alerts."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Time of the last look, and notices that are not delivered."""
        yield GaugeMetricFamily(
            "plumbline_review_last_watch_timestamp_seconds",
            "When the service last looked for batches that have ended; 0: never.",
            value=self._watch.last_look,
        )
        waiting = self._watch.outbox.undelivered()
        yield GaugeMetricFamily(
            "plumbline_review_notices_undelivered", "Notices that no receiver has confirmed.", value=len(waiting)
        )
        yield GaugeMetricFamily(
            "plumbline_review_notices_given_up",
            "Notices that are not tried again unless somebody asks for it.",
            value=sum(notice.given_up for notice in waiting),
        )
