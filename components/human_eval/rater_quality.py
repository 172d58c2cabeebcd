"""Whose votes count, and how far raters agree.

A rater is judged by items with a known answer and by repeats of own votes, never by agreement with others: when two
models are equally good, honest raters disagree. Votes that do not count are kept and shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Protocol

from components.human_eval.batch import Item
from components.human_eval.database import Judgement
from components.human_eval.settings import HumanEvalSettings
from components.shared.errors import InputError
from components.shared.statistics import binomial_upper, krippendorff_alpha

__all__ = [
    "RaterQuality",
    "Said",
    "agreement",
    "effective_judgements",
    "is_set_aside",
    "position_bias",
    "preferred",
    "rate_raters",
]


class Said(Protocol):
    """An answer, as far as a rater's quality shows in it: a `Judgement`, or what the rating desk keeps of one."""

    @property
    def item_id(self) -> str: ...
    @property
    def rater(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def choice(self) -> str: ...
    @property
    def swapped(self) -> bool: ...


@dataclass(frozen=True)
class RaterQuality:
    """A rater's record.

    Attributes:
        gold_n: Gold items judged.
        gold_accuracy: Share of them judged right; None if there were none.
        repeat_n: Pairs judged twice, the second time swapped.
        repeat_agreement: Share of them with the same preference both times; None if there were none.
        n_votes: Votes given.
        counted: Whether they count.
    """

    gold_n: int
    gold_accuracy: float | None
    repeat_n: int
    repeat_agreement: float | None
    n_votes: int
    counted: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def effective_judgements(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Judgements that no later one supersedes, in the order given."""
    judgements = list(judgements)
    superseded = {judgement.supersedes for judgement in judgements}
    return [judgement for judgement in judgements if judgement.judgement_id not in superseded]


def preferred(judgement: Said) -> str:
    """The choice in terms of the comparison instead of the screen: `first`, `second`, `tie` or `both_bad`."""
    if judgement.choice in ("tie", "both_bad"):
        return judgement.choice
    return "second" if (judgement.choice == "a") == judgement.swapped else "first"


def rate_raters(judgements: Iterable[Said], settings: HumanEvalSettings) -> dict[str, RaterQuality]:
    """Every rater's record, by name.

    Votes count when the rater has judged `gold_min_count` gold items with `min_gold_accuracy` (or gold items are
    switched off), and the repeats do not show agreement below `min_repeat_agreement`.

    Args:
        judgements: Effective ones.
        settings: Of the stage.
    """
    by_rater: dict[str, dict[str, dict[str, Said]]] = defaultdict(lambda: defaultdict(dict))
    for judgement in judgements:
        by_rater[judgement.rater][judgement.kind][judgement.item_id] = judgement
    return {rater: _rate(kinds, settings) for rater, kinds in sorted(by_rater.items())}


def _rate(kinds: Mapping[str, Mapping[str, Said]], settings: HumanEvalSettings) -> RaterQuality:
    votes = kinds.get("vote", {})
    gold = [preferred(judgement) == "first" for judgement in kinds.get("gold", {}).values()]
    repeats = [
        preferred(judgement) == preferred(votes[item_id])
        for item_id, judgement in kinds.get("repeat", {}).items()
        if item_id in votes
    ]
    gold_accuracy = sum(gold) / len(gold) if gold else None
    passes_gold = not settings.gold_items or (
        gold_accuracy is not None
        and len(gold) >= settings.gold_min_count
        and gold_accuracy >= settings.min_gold_accuracy
    )
    fails_repeats = _fails_repeats(sum(repeats), len(repeats), settings)
    return RaterQuality(
        gold_n=len(gold),
        gold_accuracy=gold_accuracy,
        repeat_n=len(repeats),
        repeat_agreement=sum(repeats) / len(repeats) if repeats else None,
        n_votes=len(votes),
        counted=passes_gold and not fails_repeats,
    )


def is_set_aside(quality: RaterQuality, settings: HumanEvalSettings) -> bool:
    """Whether a rater has failed: the votes do not count, and not only because gold items are still to come.

    Args:
        quality: The rater's record.
        settings: Of the stage.
    """
    if quality.counted:
        return False
    agreed = round((quality.repeat_agreement or 0.0) * quality.repeat_n)
    judged_enough = not settings.gold_items or quality.gold_n >= settings.gold_min_count
    return judged_enough or _fails_repeats(agreed, quality.repeat_n, settings)


def _fails_repeats(agreed: int, n: int, settings: HumanEvalSettings) -> bool:
    return n > 0 and binomial_upper(agreed, n, 1.0 - settings.alpha) < settings.min_repeat_agreement


def agreement(votes: Iterable[Judgement], items: Mapping[str, Item]) -> tuple[float | None, float | None]:
    """Krippendorff's alpha (nominal, over first / second / tie / both bad) and the share of pairs of votes that agree.

    Args:
        votes: Counted votes.
        items: By id.

    Returns:
        (alpha, raw agreement); None where there are no two votes on an item, or no variety.
    """
    units: dict[str, list[str]] = defaultdict(list)
    for vote in votes:
        if items[vote.item_id].kind == "pair":
            units[vote.item_id].append(preferred(vote))
    pairs = [one == other for unit in units.values() for one, other in combinations(unit, 2)]
    if not pairs:
        return None, None
    try:
        alpha = krippendorff_alpha(units.values())
    except InputError:  # all votes are the same: agreement is full, alpha undefined
        alpha = None
    return alpha, sum(pairs) / len(pairs)


def position_bias(votes: Iterable[Judgement]) -> float | None:
    """Share of decisive votes for the answer shown as A, minus 1/2: 0 is none, +0.5 is always A. None without any."""
    sides = [vote.choice == "a" for vote in votes if vote.choice in ("a", "b")]
    return sum(sides) / len(sides) - 0.5 if sides else None
