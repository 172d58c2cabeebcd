"""Which item a person gets next: pairs that lack votes, with gold items and repeats mixed in.

A pure function of what has happened so far, of the rater's name and of the batch, so that a rater who reloads the page
gets the same item, and nobody can tell from the order which items are checks. Gold items come densely until there are
enough of them for the rater's votes to count, then now and then. A repeat comes at least some items after its vote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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

    @property
    def gold_needed(self) -> int:
        """Gold items that a rater must have judged before votes count."""
        return min(self.settings.gold_min_count, len(self.gold))


@dataclass(frozen=True)
class Turns:
    """What one rater did in a batch, and what the others leave to do.

    Attributes:
        rater: Who.
        judged: The rater's judgements as (item, kind), in the order in which they were first given.
        skipped: The rater's skips.
        practised: Items that the rater has practised on.
        taken: Votes on each pair, and live leases of other raters on it.
        leased_elsewhere: Whether others hold leases on pairs: what they hand back may still be this rater's.
    """

    rater: str
    judged: Sequence[Turn] = ()
    skipped: frozenset[Turn] = frozenset()
    practised: frozenset[str] = frozenset()
    taken: Mapping[str, int] = field(default_factory=dict)
    leased_elsewhere: bool = False

    def next(self, plan: Plan) -> Turn | None:
        """The rater's next item; None if there is nothing for this rater now."""
        for item_id in plan.practice:
            if item_id not in self.practised:
                return Turn(item_id, "practice")
        pair = self._best_pair(plan)
        check = self._due_repeat(plan, flush=pair is None) or self._due_gold(plan, flush=pair is None)
        return check or (Turn(pair, "vote") if pair else None)

    def owes(self, plan: Plan) -> bool:
        """Whether a check is missing that decides whether this rater's votes count."""
        return bool(self._due_repeat(plan, flush=True) or self._due_gold(plan, flush=True))

    def remaining(self, plan: Plan) -> int:
        """How many items may still come. It falls by one with each item, a check or not, so it tells nobody which."""
        open_pairs = self._open_pairs(plan)
        repeats = len(self._repeats_to_come(plan)) + sum(self._is_repeated(pair, plan) for pair in open_pairs)
        gold = len(self._gold_left(plan))
        if not open_pairs:
            gold = min(gold, max(0, plan.gold_needed - self._gold_done())) if self._votes() else 0
        practice = sum(item_id not in self.practised for item_id in plan.practice)
        return practice + len(open_pairs) + repeats + gold

    def _best_pair(self, plan: Plan) -> str | None:
        """The open pair that has most votes already: an outcome enters once its pair has all of them."""
        pairs = self._open_pairs(plan)
        return max(pairs, key=lambda pair: self.taken.get(pair, 0), default=None)

    def _open_pairs(self, plan: Plan) -> list[str]:
        mine = {turn.item_id for turn in (*self.judged, *self.skipped) if turn.kind == "vote"}
        needed = plan.settings.votes_per_prompt
        return [pair for pair in plan.pairs if pair not in mine and self.taken.get(pair, 0) < needed]

    def _due_repeat(self, plan: Plan, *, flush: bool) -> Turn | None:
        now = len(self.judged) + len(self.skipped)
        for place, item_id in self._repeats_to_come(plan):
            delay = _REPEAT_AFTER + int(uniform(item_id, self.rater, "repeat after") * _REPEAT_WITHIN)
            if flush or now > place + delay:
                return Turn(item_id, "repeat")
        return None

    def _repeats_to_come(self, plan: Plan) -> list[tuple[int, str]]:
        """(place of the vote, item) of the votes that are to be asked again and were not."""
        asked = {turn.item_id for turn in (*self.judged, *self.skipped) if turn.kind == "repeat"}
        return [
            (place, turn.item_id)
            for place, turn in enumerate(self.judged)
            if turn.kind == "vote" and turn.item_id not in asked and self._is_repeated(turn.item_id, plan)
        ]

    def _is_repeated(self, item_id: str, plan: Plan) -> bool:
        return _drawn(item_id, self.rater, "repeat") < plan.settings.repeat_share

    def _due_gold(self, plan: Plan, *, flush: bool) -> Turn | None:
        left, done = self._gold_left(plan), self._gold_done()
        if not left:
            return None
        if flush:
            due = self._votes() > 0 and done < plan.gold_needed
        else:
            due = len(self.judged) + len(self.skipped) >= self._gold_slot(plan)
        return Turn(left[0], "gold") if due else None

    def _gold_slot(self, plan: Plan) -> int:
        """Place in the rater's sequence from which the next gold item is due: one drawn in each stretch."""
        number = sum(turn.kind == "gold" for turn in (*self.judged, *self.skipped))
        dense = min(number, plan.gold_needed)
        width = _DENSE if number < plan.gold_needed else _SPARSE
        drawn = uniform(plan.batch_id, self.rater, "gold", str(number))
        return dense * _DENSE + (number - dense) * _SPARSE + int(drawn * width)

    def _gold_left(self, plan: Plan) -> list[str]:
        seen = {turn.item_id for turn in (*self.judged, *self.skipped) if turn.kind == "gold"}
        left = [item_id for item_id in plan.gold if item_id not in seen]
        return sorted(left, key=lambda item_id: _drawn(item_id, self.rater, "gold order"))

    def _gold_done(self) -> int:
        return sum(turn.kind == "gold" for turn in self.judged)

    def _votes(self) -> int:
        return sum(turn.kind == "vote" for turn in self.judged)


_drawn = lru_cache(maxsize=2**17)(uniform)
"""The same draws come with every request of a rater: about a hundred raters times a thousand pairs are kept."""


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
