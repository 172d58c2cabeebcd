"""What has happened in a batch, in memory: whose turns, which votes count, who holds what. Reads no database.

The evidence tables only grow, so each row is noted once (`components.human_eval.books` brings the book up to date
before every decision). Votes of a rater who failed the checks, or whom a release manager dismissed, are *set aside*:
they stay in the evidence, but hold no place, and their pairs are handed out again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from components.human_eval.batch import Batch
from components.human_eval.rater_quality import RaterQuality, is_set_aside, rate_raters
from components.human_eval.turns import Plan, TaskKind, Turn, Turns, make_plan
from components.shared.files import digest_of

__all__ = ["BatchBook", "Given", "Held", "Noted", "task_id_of"]

_ID_LENGTH = 32


def task_id_of(turn: Turn, rater: str) -> str:
    """The id by which a rater knows an item; it tells nothing about the item."""
    return digest_of([turn.item_id, rater, turn.kind, "task"])[:_ID_LENGTH]


@dataclass(frozen=True, slots=True)
class Noted:
    """A row of the evidence tables, as far as the book needs it.

    Attributes:
        source: judgement, lease, skip, practice, closure or intervention.
        key: Its id; of a lease the task's.
        at: When it was written (UTC, ISO 8601).
        item_id: The item; None of what concerns a whole batch.
        rater: Pseudonym.
        kind: Of the judgement, the turn or the intervention.
        number: Revision of a judgement, number of a lease, votes that an intervention asks for.
        choice: Of a judgement or a practice answer.
        swapped: The second answer was shown as A.
        until: When a lease ends.
        mark: The adjudication that a judgement belongs to.
    """

    source: str
    key: str
    at: str
    item_id: str | None
    rater: str | None
    kind: str | None
    number: int
    choice: str | None
    swapped: bool
    until: str | None
    mark: str | None


@dataclass(frozen=True, slots=True)
class Given:
    """The latest answer of a rater to an item."""

    item_id: str
    rater: str
    kind: TaskKind
    choice: str
    swapped: bool
    revision: int
    adjudication: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """The leases of a task: how many there were, and when the last one ends."""

    turn: Turn
    rater: str
    count: int
    until: str


class BatchBook:
    """A batch and all that has happened in it.

    Args:
        batch: What there is to judge.
    """

    def __init__(self, batch: Batch) -> None:
        self.items = {item.item_id: item for item in batch.items}
        self.plan: Plan = make_plan(batch.batch_id, batch.settings, batch.items)
        self.closed = False
        self.last_answer_at = ""
        self.leases: dict[str, Held] = {}
        self.practised: dict[str, dict[str, str]] = defaultdict(dict)
        self.skips: dict[str, dict[Turn, int]] = defaultdict(dict)
        self.last_seen: dict[str, str] = {}
        self._given: dict[str, dict[Turn, Given]] = defaultdict(dict)
        self._order: dict[str, list[Turn]] = defaultdict(list)
        self._actions: dict[str, dict[Turn, None]] = defaultdict(dict)
        self._skipped: dict[str, set[Turn]] = defaultdict(set)
        self._held: dict[str, dict[str, None]] = defaultdict(dict)
        self._out: set[str] = set()
        self._aside: set[str] = set()
        self._dismissed: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._pairs = frozenset(self.plan.pairs)
        self._places_filled = 0
        self._adjudicated: Counter[str] = Counter()
        self._wanted: Counter[str] = Counter()
        self._asked: dict[str, str] = {}

    # --- noting ------------------------------------------------------------------------------------------------------

    def note(self, rows: Iterable[Noted]) -> None:
        """Notes rows that were not noted yet, the oldest first."""
        for row in sorted(rows, key=lambda row: (row.at, row.number)):
            getattr(self, f"_note_{row.source}")(row)
            if row.rater is not None and row.source != "intervention":
                self.last_seen[row.rater] = max(row.at, self.last_seen.get(row.rater, ""))

    def _note_judgement(self, row: Noted) -> None:
        turn, rater = _turn_of(row), str(row.rater)
        if row.number == 0:
            self._order[rater].append(turn)
            if turn.kind == "vote" and row.mark is not None:
                self._adjudicated[turn.item_id] += 1
            elif turn.kind == "vote" and rater not in self._aside:
                self._count(turn.item_id, 1)
        known = self._given[rater].get(turn)
        if known is None or row.number > known.revision:  # clocks differ: a correction may seem older than its answer
            choice = str(row.choice)
            self._given[rater][turn] = Given(turn.item_id, rater, turn.kind, choice, row.swapped, row.number, row.mark)
        self.last_answer_at = max(self.last_answer_at, row.at)
        self._skipped[rater].discard(turn)
        self._touched(turn, rater)
        decides = turn.kind in ("gold", "repeat") or row.number > 0  # a corrected vote may differ from its repeat
        if decides and is_set_aside(self.quality(rater), self.plan.settings):
            self._set_aside(rater)

    def _note_lease(self, row: Noted) -> None:
        turn, rater = _turn_of(row), str(row.rater)
        before = self.leases.get(row.key)
        count, until = row.number + 1, str(row.until)
        if before is not None:
            count, until = max(count, before.count), max(until, before.until)
        self.leases[row.key] = Held(turn, rater, count, until)
        if not self.is_answered(turn, rater):
            self._held[rater].pop(row.key, None)
            self._held[rater][row.key] = None
            if turn.kind == "vote":
                self._out.add(row.key)

    def _note_skip(self, row: Noted) -> None:
        turn, rater = _turn_of(row), str(row.rater)
        self.skips[rater][turn] = self.skips[rater].get(turn, 0) + 1
        if turn not in self._given[rater]:
            self._skipped[rater].add(turn)
        self._touched(turn, rater)

    def _note_practice(self, row: Noted) -> None:
        self.practised[str(row.rater)][str(row.item_id)] = str(row.choice)

    def _note_closure(self, row: Noted) -> None:
        self.closed = True

    def _note_intervention(self, row: Noted) -> None:
        if row.kind == "dismiss":
            self._dismissed.add(str(row.rater))
            self._let_go(str(row.rater))
            if not self.quality(str(row.rater)).counted:  # else only a repeat was owed: the votes stay
                self._set_aside(str(row.rater))
        elif row.kind == "return_skip":
            for turns in self._skipped.values():
                turns.discard(Turn(str(row.item_id), "vote"))
        else:
            self._wanted[str(row.item_id)] += row.number
            self._asked[str(row.item_id)] = row.key

    def _touched(self, turn: Turn, rater: str) -> None:
        task_id = task_id_of(turn, rater)
        self._held[rater].pop(task_id, None)
        self._out.discard(task_id)
        self._actions[rater].pop(turn, None)
        self._actions[rater][turn] = None

    def _set_aside(self, rater: str) -> None:
        if rater in self._aside:
            return
        self._aside.add(rater)
        self._let_go(rater)
        for turn, given in self._given[rater].items():
            if turn.kind == "vote" and given.adjudication is None:
                self._count(turn.item_id, -1)

    def _let_go(self, rater: str) -> None:
        """What the rater holds goes to others."""
        self._out.difference_update(self._held.pop(rater, {}))

    def _count(self, pair: str, change: int) -> None:
        """One vote more or less on a pair."""
        before = self._counts[pair]
        self._counts[pair] = before + change
        if pair in self._pairs:
            self._places_filled += min(before + change, self.needed) - min(before, self.needed)

    # --- asking ------------------------------------------------------------------------------------------------------

    @property
    def needed(self) -> int:
        """Votes that each pair needs."""
        return self.plan.settings.votes_per_prompt

    @property
    def raters(self) -> list[str]:
        """Who has judged anything."""
        return sorted(rater for rater, order in self._order.items() if order)

    @property
    def given_votes(self) -> int:
        """Votes that hold a place."""
        return self._places_filled

    @property
    def adjudications(self) -> dict[str, tuple[int, int]]:
        """Items that further raters were asked about: (votes given, votes wanted)."""
        return {item_id: (self._adjudicated[item_id], wanted) for item_id, wanted in self._wanted.items()}

    def votes_on(self, item_id: str) -> int:
        """Votes on a pair that are not set aside."""
        return self._counts[item_id]

    def is_dismissed(self, rater: str) -> bool:
        """Whether a release manager asks nothing more of the rater."""
        return rater in self._dismissed

    def is_aside(self, rater: str) -> bool:
        """Whether the rater's votes are set aside."""
        return rater in self._aside

    def is_done_with(self, rater: str) -> bool:
        """Whether nothing more is asked of, or taken from, the rater."""
        return rater in self._aside or rater in self._dismissed

    def quality(self, rater: str) -> RaterQuality:
        """The rater's record."""
        given = self._given[rater].values()
        return rate_raters(given, self.plan.settings).get(rater) or RaterQuality(0, None, 0, None, 0, False)

    def latest(self, turn: Turn, rater: str) -> Given | None:
        """The rater's latest answer to an item."""
        return self._given[rater].get(turn) if rater in self._given else None

    def is_answered(self, turn: Turn, rater: str) -> bool:
        """Whether a rater has judged, skipped or practised on an item."""
        if turn.kind == "practice":
            return turn.item_id in self.practised[rater]
        return turn in self._given[rater] or turn in self._skipped[rater]

    def has_skipped(self, turn: Turn, rater: str) -> bool:
        """Whether a rater skipped an item, and did not judge it after all."""
        return turn in self._skipped[rater]

    def skippers(self, item_id: str) -> list[str]:
        """Who skipped a pair."""
        turn = Turn(item_id, "vote")
        return sorted(rater for rater, turns in self._skipped.items() if turn in turns)

    def actions(self, rater: str) -> list[Turn]:
        """What a rater judged or skipped, each item once, the last touched last."""
        return [turn for turn in self._actions[rater] if self.is_answered(turn, rater)]

    def held(self, rater: str, *, now: str) -> Turn | None:
        """The item that the rater holds and has not answered."""
        for task_id in reversed(self._held[rater]):
            lease = self.leases[task_id]
            if lease.until > now and not self.is_answered(lease.turn, rater):
                return lease.turn
        return None

    def keeps(self, turn: Turn, rater: str) -> bool:
        """Whether the rater's lease of an unanswered item still keeps it: a skip gives it up, also if it comes back."""
        return self.is_answered(turn, rater) or task_id_of(turn, rater) in self._held[rater]

    def holders(self, item_id: str, *, now: str) -> dict[str, str]:
        """Who holds a pair, and until when."""
        live = (self.leases[task_id] for task_id in self._out)
        return {lease.rater: lease.until for lease in live if lease.turn.item_id == item_id and lease.until > now}

    def turns(self, rater: str, *, now: str) -> Turns:
        """What the rater did, and what the others leave to do."""
        taken, leased = self._taken(rater, now)
        practised = frozenset(self.practised[rater])
        return Turns(self.plan, rater, self._order[rater], frozenset(self._skipped[rater]), practised, taken, leased)

    def next_turn(self, turns: Turns, *, now: str) -> Turn | None:
        """The next item of the rater whose turns these are; of a closed batch only what is adjudicated."""
        if self.is_done_with(turns.rater):
            return None
        if not self.closed:
            return turns.next()
        return next((Turn(item_id, "vote") for item_id in self._to_adjudicate(turns.rater, now)), None)

    def awaits(self, rater: str, *, now: str) -> bool:
        """Whether the batch may still have something for this rater: it is open, or an item of it is adjudicated."""
        return not self.closed or (not self.is_done_with(rater) and bool(self._to_adjudicate(rater, now)))

    def has_place(self, turn: Turn, rater: str, *, now: str) -> bool:
        """Whether a vote of this rater is still wanted."""
        return turn.kind != "vote" or self._taken(rater, now)[0][turn.item_id] < self.needed

    def adjudication_of(self, turn: Turn) -> str | None:
        """The request that a vote on this item now belongs to; None while the pair lacks ordinary votes."""
        if turn.kind != "vote" or self._counts[turn.item_id] < self.needed:
            return None
        return self._asked.get(turn.item_id)

    def is_complete(self) -> bool:
        """Whether every pair has its votes."""
        return self._places_filled == self.needed * len(self.plan.pairs)

    def owing(self, *, now: str) -> list[str]:
        """Raters whose votes hold places and do not count yet, or who owe a check that decides whether they count."""
        active = [rater for rater in self.raters if not self.is_done_with(rater)]
        return [rater for rater in active if self._is_undecided(rater) or self.turns(rater, now=now).owes()]

    def _is_undecided(self, rater: str) -> bool:
        quality = self.quality(rater)
        return quality.n_votes > 0 and not quality.counted

    def may_close(self, *, now: datetime) -> bool:
        """Whether nothing is missing, and the time in which the last answer can be undone has passed."""
        if self.closed or not self.is_complete() or not self.last_answer_at:
            return False
        grace = timedelta(minutes=self.plan.settings.undo_minutes)
        if now < datetime.fromisoformat(self.last_answer_at) + grace:
            return False
        return not self.owing(now=now.isoformat(timespec="microseconds"))

    def _taken(self, rater: str, now: str) -> tuple[Counter[str], bool]:
        """Places taken on each pair, by votes and by others' leases, less those that adjudication adds."""
        taken, leased = Counter(self._counts), False
        for task_id in list(self._out):
            lease = self.leases[task_id]
            if lease.until <= now:
                self._out.discard(task_id)  # a renewal is a new row
            elif lease.rater != rater:
                taken[lease.turn.item_id] += 1
                leased = True
        for item_id, wanted in self._wanted.items():
            taken[item_id] += self._adjudicated[item_id] - wanted
        return taken, leased

    def _to_adjudicate(self, rater: str, now: str) -> list[str]:
        if not self._wanted:
            return []
        taken, _ = self._taken(rater, now)
        free = [item_id for item_id in self._wanted if taken[item_id] < self.needed <= self._counts[item_id]]
        return [item_id for item_id in free if not self.is_answered(Turn(item_id, "vote"), rater)]


def _turn_of(row: Noted) -> Turn:
    kind: Any = row.kind
    return Turn(str(row.item_id), kind)
