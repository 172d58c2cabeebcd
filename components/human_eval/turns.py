"""Which item a person gets next: pairs that lack votes, with gold items and repeats mixed in.

A pure function of what has happened so far, of the rater's name and of the batch, so that a rater who reloads the page
gets the same item, and nobody can tell from the order which items are checks. Gold items come densely until there are
enough of them for the rater's votes to count, then now and then. A repeat comes at least some items after its vote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from components.human_eval.batch import Item, is_swapped, uniform
from components.human_eval.settings import HumanEvalSettings

__all__ = ["Plan", "TaskKind", "Turn", "Turns", "make_plan", "shown_swapped"]

TaskKind = Literal["vote", "gold", "repeat", "practice"]

_DENSE, _SPARSE = 4, 12
"""One gold item in so many items: until the rater has enough of them, and after that."""

_REPEAT_AFTER, _REPEAT_WITHIN = 8, 16
"""A repeat comes so many items after its vote, and at most so many more."""


@dataclass(frozen=True)
class Turn:
    """One item for one rater."""

    item_id: str
    kind: TaskKind


@dataclass(frozen=True)
class Plan:
    """What there is to ask in a batch; the same for all raters.

    Attributes:
        batch_id: The batch.
        settings: Of the batch.
        pairs: Ids of the pairs, in an order drawn for the batch: comparisons and prompts are mixed.
        gold: Ids of the gold items.
        practice: Ids of the items that are practised on.
    """

    batch_id: str
    settings: HumanEvalSettings
    pairs: tuple[str, ...]
    gold: tuple[str, ...]
    practice: tuple[str, ...]
    _drawn: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def repeated(self, rater: str) -> frozenset[str]:
        """The pairs that this rater judges twice."""
        share = self.settings.repeat_share
        return frozenset(
            self._once("repeated", rater, lambda: (p for p in self.pairs if uniform(p, rater, "repeat") < share))
        )

    def gold_order(self, rater: str) -> tuple[str, ...]:
        """The gold items in this rater's order."""
        return self._once("gold", rater, lambda: sorted(self.gold, key=lambda item: uniform(item, rater, "gold order")))

    def _once(self, what: str, rater: str, draw: Callable[[], Iterable[str]]) -> tuple[str, ...]:
        """The same draws come with every request of a rater."""
        if (what, rater) not in self._drawn:
            self._drawn[what, rater] = tuple(draw())
        return self._drawn[what, rater]

    @property
    def gold_needed(self) -> int:
        """Gold items that a rater must have judged before votes count."""
        return min(self.settings.gold_min_count, len(self.gold))


@dataclass(frozen=True)
class Turns:
    """What one rater did in a batch, and what the others leave to do.

    Attributes:
        plan: Of the batch.
        rater: Who.
        judged: The rater's judgements as (item, kind), in the order in which they were first given.
        skipped: The rater's skips.
        practised: Items that the rater has practised on.
        taken: Votes on each pair, and live leases of other raters on it.
        leased_elsewhere: Whether others hold leases on pairs: what they hand back may still be this rater's.
    """

    plan: Plan
    rater: str
    judged: Sequence[Turn] = ()
    skipped: frozenset[Turn] = frozenset()
    practised: frozenset[str] = frozenset()
    taken: Mapping[str, int] = field(default_factory=dict)
    leased_elsewhere: bool = False

    def next(self) -> Turn | None:
        """The rater's next item; None if there is nothing for this rater now."""
        for item_id in self.plan.practice:
            if item_id not in self.practised:
                return Turn(item_id, "practice")
        pair = self._best_pair()
        check = self._due_repeat(flush=pair is None) or self._due_gold(flush=pair is None)
        return check or (Turn(pair, "vote") if pair else None)

    def owes(self) -> bool:
        """Whether a check is missing that decides whether this rater's votes count."""
        return bool(self._due_repeat(flush=True) or self._due_gold(flush=True))

    def remaining(self) -> int:
        """How many items may still come. It falls by one with each item, a check or not, so it tells nobody which."""
        open_pairs = self._open_pairs
        repeats = len(self._repeats_to_come()) + len(self._repeated.intersection(open_pairs))
        gold = len(self._gold_left())
        if not open_pairs:
            gold = min(gold, max(0, self.plan.gold_needed - self._gold_done())) if self._votes() else 0
        practice = sum(item_id not in self.practised for item_id in self.plan.practice)
        return practice + len(open_pairs) + repeats + gold

    def _best_pair(self) -> str | None:
        """The open pair that has most votes already: an outcome enters once its pair has all of them."""
        pairs = self._open_pairs
        return max(pairs, key=lambda pair: self.taken.get(pair, 0), default=None)

    @cached_property
    def _repeated(self) -> frozenset[str]:
        return self.plan.repeated(self.rater)

    @cached_property
    def _open_pairs(self) -> list[str]:
        mine = {turn.item_id for turn in (*self.judged, *self.skipped) if turn.kind == "vote"}
        needed = self.plan.settings.votes_per_prompt
        return [pair for pair in self.plan.pairs if pair not in mine and self.taken.get(pair, 0) < needed]

    def _due_repeat(self, *, flush: bool) -> Turn | None:
        now = len(self.judged) + len(self.skipped)
        for place, item_id in self._repeats_to_come():
            delay = _REPEAT_AFTER + int(uniform(item_id, self.rater, "repeat after") * _REPEAT_WITHIN)
            if flush or now > place + delay:
                return Turn(item_id, "repeat")
        return None

    def _repeats_to_come(self) -> list[tuple[int, str]]:
        """(place of the vote, item) of the votes that are to be asked again and were not."""
        asked = {turn.item_id for turn in (*self.judged, *self.skipped) if turn.kind == "repeat"}
        return [
            (place, turn.item_id)
            for place, turn in enumerate(self.judged)
            if turn.kind == "vote" and turn.item_id not in asked and turn.item_id in self._repeated
        ]

    def _due_gold(self, *, flush: bool) -> Turn | None:
        left, done = self._gold_left(), self._gold_done()
        if not left:
            return None
        if flush:
            due = self._votes() > 0 and done < self.plan.gold_needed
        else:
            due = len(self.judged) + len(self.skipped) >= self._gold_slot()
        return Turn(left[0], "gold") if due else None

    def _gold_slot(self) -> int:
        """Place in the rater's sequence from which the next gold item is due: one drawn in each stretch."""
        number = sum(turn.kind == "gold" for turn in (*self.judged, *self.skipped))
        dense = min(number, self.plan.gold_needed)
        width = _DENSE if number < self.plan.gold_needed else _SPARSE
        drawn = uniform(self.plan.batch_id, self.rater, "gold", str(number))
        return dense * _DENSE + (number - dense) * _SPARSE + int(drawn * width)

    def _gold_left(self) -> list[str]:
        """Those to come, the skipped ones last: without enough of them the rater's votes never count."""
        judged = {turn.item_id for turn in self.judged if turn.kind == "gold"}
        skipped = {turn.item_id for turn in self.skipped if turn.kind == "gold"}
        order = [item_id for item_id in self.plan.gold_order(self.rater) if item_id not in judged]
        fresh = [item_id for item_id in order if item_id not in skipped]
        wanted = max(0, self.plan.gold_needed - len(judged) - len(fresh))
        return fresh + [item_id for item_id in order if item_id in skipped][:wanted]

    def _gold_done(self) -> int:
        return sum(turn.kind == "gold" for turn in self.judged)

    def _votes(self) -> int:
        return sum(turn.kind == "vote" for turn in self.judged)


def make_plan(batch_id: str, settings: HumanEvalSettings, items: Sequence[Item]) -> Plan:
    """What there is to ask in a batch.

    Args:
        batch_id: The batch.
        settings: Of the batch.
        items: All its items.
    """
    drawn = sorted(items, key=lambda item: uniform(item.item_id, batch_id, "order"))
    gold = [item.item_id for item in drawn if item.kind == "gold"]
    spare = max(0, len(gold) - settings.gold_min_count)
    n_practice = min(settings.practice_items, spare)
    pairs = tuple(item.item_id for item in drawn if item.kind == "pair")
    return Plan(batch_id, settings, pairs, tuple(gold[n_practice:]), tuple(gold[:n_practice]))


def shown_swapped(item_id: str, rater: str, kind: TaskKind) -> bool:
    """Whether the second answer is shown as A: drawn for rater and item, the other way round in a repeat."""
    return is_swapped(item_id, rater) != (kind == "repeat")
