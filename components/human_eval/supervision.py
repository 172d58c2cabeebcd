"""What a release manager sees of a batch at work, and may do when it cannot go on by itself.

    report: what is missing, who could still give it, who holds or skipped it, which items raters disagree on
    return_skip | dismiss | adjudicate: recorded with actor and reason; none of them touches a vote that counts

A rater's votes can be dismissed only while they do not count anyway: nobody can take away votes that speak against a
model. Adjudicated votes are reported beside the outcome and never change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from components.human_eval.answers import require_text
from components.human_eval.book import BatchBook
from components.human_eval.books import Books, Decision, as_text
from components.human_eval.evidence import weigh_evidence
from components.human_eval.imports import find_imports, tell_imports
from components.human_eval.rating import ClosedError
from components.human_eval.schema import InterventionRow
from components.human_eval.settings import PEOPLE
from components.human_eval.turns import Turn
from components.shared.errors import InputError
from components.shared.files import digest_of

__all__ = ["BatchReport", "MissingVotes", "RaterReport", "Supervision"]

_ID_LENGTH = 32
_MOST_SHOWN = 100


@dataclass(frozen=True)
class MissingVotes:
    """A pair that lacks votes and has nobody left to give them.

    Attributes:
        item_id: The pair.
        votes: Votes that it has.
        needed: Votes that it needs.
        skipped_by: Raters who skipped it.
        held_by: Raters who hold it now, and until when.
        more_raters: Raters that are wanted besides those who may still get it.
    """

    item_id: str
    votes: int
    needed: int
    skipped_by: list[str]
    held_by: dict[str, str]
    more_raters: int


@dataclass(frozen=True)
class RaterReport:
    """How a rater stands in a batch.

    Attributes:
        rater: Pseudonym.
        status: `counts`; `owes_checks` (the votes do not count yet); `set_aside` (failed); `dismissed`.
        votes: Votes given.
        gold: Gold items judged.
        last_seen: Last sign of life (UTC, ISO 8601).
    """

    rater: str
    status: Literal["counts", "owes_checks", "set_aside", "dismissed"]
    votes: int
    gold: int
    last_seen: str


@dataclass(frozen=True)
class BatchReport:
    """What a batch waits for.

    Attributes:
        batch_id: The batch.
        closed: It takes no more ordinary votes.
        votes: Votes that hold a place.
        votes_needed: Votes that it needs.
        open_pairs: Pairs that lack votes.
        stuck: Those that nobody who rates in this batch can complete; a hundred at most.
        stuck_pairs: How many there are.
        more_raters: Raters that are wanted besides those who rate in it.
        owing: Raters who owe checks; with nothing else missing the batch waits for them alone.
        raters: Everybody who has rated.
        review_queue: Items on which raters disagree; see `rater_statistics.review_queue`.
        adjudicated: Item to (votes given, votes asked for) of further raters.
        waits_for: The above in a sentence each.
        imports: Labels from other tools; see `imports.tell_imports`.
    """

    batch_id: str
    closed: bool
    votes: int
    votes_needed: int
    open_pairs: int
    stuck: list[MissingVotes]
    stuck_pairs: int
    more_raters: int
    owing: list[str]
    raters: list[RaterReport]
    review_queue: list[dict[str, Any]]
    adjudicated: dict[str, tuple[int, int]]
    waits_for: list[str]
    imports: list[dict[str, Any]]


class Supervision:
    """Watches batches and keeps them going.

    Args:
        books: The desk's.
    """

    def __init__(self, books: Books) -> None:
        self._books = books

    def report(self, batch_id: str) -> BatchReport:
        """What a batch waits for, and who has done what.

        Raises:
            InputError: No such batch, or one that is not for people.
        """
        self._require_people(batch_id)
        database = self._books.database
        seen = self._books.decide(batch_id, lambda decision: _look(decision.book, self._books.stamp()))
        judgements = database.judgements(batch_id)
        statistics = weigh_evidence(database.batch(batch_id), judgements, seed=0).statistics
        stuck = [pair for pair in seen.missing if pair.more_raters > 0]
        more = max((pair.more_raters for pair in stuck), default=0)
        return BatchReport(
            batch_id=batch_id,
            closed=seen.closed,
            votes=seen.votes,
            votes_needed=seen.votes_needed,
            open_pairs=seen.open_pairs,
            stuck=stuck[:_MOST_SHOWN],
            stuck_pairs=len(stuck),
            more_raters=more,
            owing=seen.owing,
            raters=seen.raters,
            review_queue=statistics["review_queue"],
            adjudicated=seen.adjudicated,
            waits_for=[] if seen.closed else _in_words(seen.open_pairs, stuck, more, seen.owing),
            imports=tell_imports(find_imports(database, batch_id), judgements),
        )

    def return_skip(self, batch_id: str, item_id: str, *, actor: str, reason: str) -> None:
        """Lets those who skipped a pair have it again.

        Raises:
            ClosedError: The batch is closed.
            InputError: Nobody skipped this item.
        """

        def work(decision: Decision) -> None:
            _require_open(decision.book)
            if not decision.book.skippers(item_id):
                raise InputError("nobody skipped this item.", where=f"batch {batch_id}, item {item_id}")
            self._add(decision, "return_skip", actor, reason, item_id=item_id)

        self._books.decide(batch_id, work)

    def dismiss(self, batch_id: str, rater: str, *, actor: str, reason: str) -> None:
        """Asks nothing more of a rater who owes checks and is gone, so that the batch need not wait.

        Votes that do not count yet are set aside, and others get the pairs; votes that count stay.

        Raises:
            ClosedError: The batch is closed.
            InputError: There is no such rater, or the rater owes nothing, was here a moment ago, or has votes that
                count while pairs still lack votes.
        """

        def work(decision: Decision) -> None:
            book = decision.book
            _require_open(book)
            if rater not in book.raters:
                raise InputError(f"{rater} has not rated in it.", where=f"batch {batch_id}")
            if book.is_dismissed(rater):
                return
            self._require_gone(book, rater)
            self._add(decision, "dismiss", actor, reason, rater=rater)

        self._books.decide(batch_id, work)

    def adjudicate(self, batch_id: str, item_ids: list[str], *, votes: int, actor: str, reason: str) -> int:
        """Has further raters judge items on which the first ones disagreed; also when the batch is closed.

        Args:
            batch_id: The batch.
            item_ids: Items of its review queue.
            votes: Further votes on each, 1 to 9.
            actor: The release manager.
            reason: Why.

        Returns:
            How many items were sent; those that still await the votes of an earlier request are left out.

        Raises:
            InputError: An item is not in the review queue, or no sensible number of votes.
        """
        if not 1 <= votes <= 9:
            raise InputError(f"{votes} further votes; between 1 and 9 can be asked for.", where=f"batch {batch_id}")
        queue = {row["item_id"] for row in self.report(batch_id).review_queue}
        foreign = [item_id for item_id in item_ids if item_id not in queue]
        if foreign or not item_ids:
            raise InputError(
                f"not in the review queue: {', '.join(foreign) or 'no item is named'}.",
                where=f"batch {batch_id}",
                hint="Only items on which raters disagree are adjudicated.",
            )

        def work(decision: Decision) -> int:
            book, sent = decision.book, 0
            for item_id in dict.fromkeys(item_ids):
                given, wanted = book.adjudications.get(item_id, (0, 0))
                if given < wanted or book.votes_on(item_id) < book.needed:
                    continue
                self._add(decision, "adjudicate", actor, reason, item_id=item_id, votes=votes)
                sent += 1
            return sent

        return self._books.decide(batch_id, work)

    def _require_gone(self, book: BatchBook, rater: str) -> None:
        """Nobody is kept from judging on: only who has not come back for a whole lease, and is waited for, may go."""
        now, lease = self._books.now(), timedelta(minutes=book.plan.settings.lease_minutes)
        problem = None
        if rater not in book.owing(now=as_text(now)):
            problem = f"the votes of {rater} count; they cannot be taken away."
        elif book.quality(rater).counted and not book.is_complete():
            problem = f"the votes of {rater} count, and pairs lack votes: nobody waits for {rater} yet."
        elif now - datetime.fromisoformat(book.last_seen[rater]) < lease:
            problem = f"{rater} was here less than {book.plan.settings.lease_minutes:g} minutes ago."
        if problem:
            hint = "Only raters who owe checks, and are gone, can be dismissed."
            raise InputError(problem, where=f"batch {book.plan.batch_id}", hint=hint)

    def _require_people(self, batch_id: str) -> None:
        if self._books.book(batch_id).plan.settings.panel != PEOPLE:
            raise InputError("is judged by a panel, not by people.", where=f"batch {batch_id}")

    def _add(self, decision: Decision, kind: str, actor: str, reason: str, **about: Any) -> None:
        book, actor, reason = decision.book, actor.strip(), reason.strip()
        if not (actor and reason):
            raise InputError(
                "somebody does this, for a reason.", where=f"batch {book.plan.batch_id}", hint="Give both."
            )
        require_text(reason, where=f"batch {book.plan.batch_id}, reason")
        at = self._books.stamp()
        row = {"item_id": None, "rater": None, "votes": 0, **about, "kind": kind, "actor": actor, "reason": reason}
        row |= {"batch_id": book.plan.batch_id, "created_at": at}
        key = digest_of([row["batch_id"], kind, row["item_id"], row["rater"], at])[:_ID_LENGTH]
        decision.add(InterventionRow, {"intervention_id": key, **row})


@dataclass(frozen=True)
class _Seen:
    """What the book says at one moment; the rest of a report is worked out from it when the batch is free again."""

    closed: bool
    votes: int
    votes_needed: int
    open_pairs: int
    missing: list[MissingVotes]
    owing: list[str]
    raters: list[RaterReport]
    adjudicated: dict[str, tuple[int, int]]


def _look(book: BatchBook, now: str) -> _Seen:
    return _Seen(
        closed=book.closed,
        votes=book.given_votes,
        votes_needed=book.needed * len(book.plan.pairs),
        open_pairs=sum(book.votes_on(pair) < book.needed for pair in book.plan.pairs),
        missing=[] if book.closed else _missing(book, now),
        owing=[] if book.closed else book.owing(now=now),
        raters=[_rater_report(book, rater) for rater in book.raters],
        adjudicated=book.adjudications,
    )


def _require_open(book: BatchBook) -> None:
    if book.closed:
        raise ClosedError("this batch is closed: it takes no more answers.", where=f"batch {book.plan.batch_id}")


def _missing(book: BatchBook, now: str) -> list[MissingVotes]:
    """Pairs that lack votes, with how many raters are wanted besides those who may still get them."""
    able = [rater for rater in book.raters if not book.is_done_with(rater)]
    found = []
    for pair in book.plan.pairs:
        lacking = book.needed - book.votes_on(pair)
        if lacking > 0:
            turn = Turn(pair, "vote")
            eligible = sum(not book.is_answered(turn, rater) for rater in able)
            holders = book.holders(pair, now=now)
            newcomers = sum(rater not in able for rater in holders)
            short = max(0, lacking - eligible - newcomers)
            found.append(MissingVotes(pair, book.votes_on(pair), book.needed, book.skippers(pair), holders, short))
    return found


def _rater_report(book: BatchBook, rater: str) -> RaterReport:
    quality, status = book.quality(rater), "counts"
    if book.is_dismissed(rater):
        status = "dismissed"
    elif book.is_aside(rater):
        status = "set_aside"
    elif not quality.counted:
        status = "owes_checks"
    return RaterReport(rater, status, quality.n_votes, quality.gold_n, book.last_seen.get(rater, ""))


def _in_words(open_pairs: int, stuck: list[MissingVotes], more: int, owing: list[str]) -> list[str]:
    words = []
    if open_pairs:
        words.append(f"{open_pairs} pairs lack votes.")
    if stuck:
        skipped = sum(bool(pair.skipped_by) for pair in stuck)
        words.append(
            f"{len(stuck)} of them can be completed by nobody who rates here: {more} more "
            f"{'rater is' if more == 1 else 'raters are'} wanted"
            + (f", or {skipped} skipped pairs are given back to those who skipped them." if skipped else ".")
        )
    if owing and not open_pairs:
        words.append(f"Every pair has its votes; {len(owing)} raters owe checks: {', '.join(owing)}.")
    return words or ["Nothing; it closes when the time to undo the last answer has passed."]
