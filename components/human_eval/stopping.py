"""When a batch of people ends: all votes are in (the rating desk sees to it), it is decided, or the time is up.

Closing is the one event of a batch's end: what it starts (a notice, the release run) hangs on the closure, which is
there once or not at all.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from components.human_eval.database import EvidenceDatabase
from components.human_eval.desk import RatingDesk
from components.human_eval.evidence import decided_comparisons
from components.shared.errors import PlumblineError

__all__ = ["DEADLINE", "STOPPING_RULE", "close_what_has_ended", "why_stopped_early"]

_logger = logging.getLogger(__name__)

DEADLINE = "deadline"
STOPPING_RULE = "stopping rule"
"""Who closes a batch, where it is no person."""


def close_what_has_ended(desk: RatingDesk, *, now: datetime | None = None) -> list[str]:
    """Closes every open batch for people that has ended; returns their ids.

    Safe at any time and from several processes: a batch is closed once.

    Args:
        desk: The rating desk.
        now: The time; UTC.
    """
    moment, database = now or datetime.now(UTC), desk.database
    unclosed = database.unclosed()
    for batch_id in desk.open_batches():  # the desk itself closes what is complete
        try:
            _close_if_ended(desk, batch_id, moment)
        except PlumblineError:  # one batch that cannot be read must not keep the others open
            _logger.exception("Batch %s cannot be looked at; the others are.", batch_id)
    return [batch_id for batch_id in unclosed if database.closure(batch_id) is not None]


def why_stopped_early(database: EvidenceDatabase, batch_id: str) -> str | None:
    """On what the stopping rule closed a batch, in words, computed again from its votes; None if it did not close it.

    A closure under the rule's name on votes that do not decide is none of the rule's.
    """
    closure = database.closure(batch_id)
    if closure is None or closure.actor != STOPPING_RULE:
        return None
    needed = database.batch(batch_id).settings.stop_early_from_prompts
    return _decided(database, batch_id, needed, by_now=True) or None


def _close_if_ended(desk: RatingDesk, batch_id: str, now: datetime) -> None:
    reason = _why_decided(desk, batch_id)
    if reason:
        desk.database.close(batch_id, actor=STOPPING_RULE, reason=reason)
    elif desk.database.deadline(batch_id) <= now:
        progress = desk.progress(batch_id, "")
        reason = f"The deadline came: {progress.votes} of {progress.votes_needed} votes."
        desk.database.close(batch_id, actor=DEADLINE, reason=reason, overdue=progress.votes < progress.votes_needed)
    if reason:
        _logger.info("Batch %s is closed. %s", batch_id, reason)


def _why_decided(desk: RatingDesk, batch_id: str) -> str:
    """What the confidence sequences say, if they decide; "" if not, or if the batch waits for all votes anyway."""
    return _decided(desk.database, batch_id, desk.plan(batch_id).settings.stop_early_from_prompts)


def _decided(database: EvidenceDatabase, batch_id: str, from_prompts: int | None, *, by_now: bool = False) -> str:
    if from_prompts is None:
        return ""
    judgements = database.judgements(batch_id)
    found = decided_comparisons(database.batch(batch_id), judgements, from_prompts=from_prompts, by_now=by_now)
    return f"Decided: {'; '.join(found)}." if found else ""
