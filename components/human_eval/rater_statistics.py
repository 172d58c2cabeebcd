"""How far raters agree, rater by rater and slice by slice; who drifts; which items deserve a second look.

Reported, and never a reason to set a vote aside: when two models are equally good honest raters disagree, and every
chance-corrected figure falls (`rater_quality` says whose votes count). Drift asks whether one rater's own gold items,
or own agreement with the others, become worse in time: fatigue, or an account that somebody else uses now. Prompts come
in a fixed order, so agreement that falls for every rater at once speaks of the prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from components.human_eval.batch import Item
from components.human_eval.database import Judgement
from components.human_eval.rater_quality import preferred
from components.shared.errors import InputError
from components.shared.statistics import (
    cohen_kappa,
    fleiss_kappa,
    holm,
    krippendorff_alpha,
    mann_kendall_p,
    pairwise_agreement,
)

__all__ = ["adjudicated_items", "agreement_statistics", "find_drift", "review_queue"]

_LOW_AGREEMENT = 0.5
"""Share of the pairs of votes on an item that agree, below which it is looked at again: two against one has 1/3."""

_LONGEST_QUEUE = 100
_LEAST_FOR_DRIFT = 8
"""With fewer observations not even the worst order is significant after Holm over a panel."""

Units = Mapping[str, Sequence[Judgement]]


def agreement_statistics(votes: Iterable[Judgement], items: Mapping[str, Item]) -> dict[str, Any]:
    """Raw agreement and chance-corrected agreement, overall, by slice and by rater.

    Args:
        votes: Counted votes.
        items: By id.

    Returns:
        `{"raw", "alpha", "fleiss_kappa", "cohen_kappa", "n_items", "n_pairs", "slices": {slice: the same}, "raters":
        {rater: {"raw", "kappa", "n_pairs"}}}`. Numbers are None where there are no two votes on an item, or no variety.
    """
    units = _by_item(votes, items)
    names = sorted({items[item_id].record.slice for item_id in units})
    slices = {
        name: _overall([unit for item_id, unit in units.items() if items[item_id].record.slice == name])
        for name in names
    }
    return {**_overall(list(units.values())), "slices": slices, "raters": _by_rater(list(units.values()))}


def find_drift(judgements: Iterable[Judgement], items: Mapping[str, Item], *, alpha: float) -> dict[str, Any]:
    """By rater: do gold items, or agreement with the others, become worse in time?

    The Mann-Kendall trend test on each rater's own sequence, in the order in which it was given; Holm over all raters
    and both measures, so that a panel without drift raises any alarm with probability `alpha` at most.

    Args:
        judgements: Effective ones of all kinds and raters, counted or not.
        items: By id.
        alpha: Error probability over the panel.

    Returns:
        `{rater: {"gold": measure, "agreement": measure, "drifts": bool}}`, a measure being `{"n", "first_half",
        "second_half", "p", "p_holm"}`; p is None with fewer than eight observations.
    """
    ordered = sorted(judgements, key=lambda judgement: judgement.created_at)
    gold: dict[str, list[float]] = defaultdict(list)
    for judgement in ordered:
        if judgement.kind == "gold":
            gold[judgement.rater].append(float(preferred(judgement) == "first"))
    agreeing = _agreement_in_time([one for one in ordered if one.kind == "vote"], items)
    found = {
        rater: {"gold": _trend(gold.get(rater, [])), "agreement": _trend(agreeing.get(rater, []))}
        for rater in sorted({judgement.rater for judgement in ordered})
    }
    measures = [measure for of_rater in found.values() for measure in of_rater.values() if measure["p"] is not None]
    for measure, adjusted in zip(measures, holm([m["p"] for m in measures]) if measures else [], strict=True):
        measure["p_holm"] = adjusted
    return {
        rater: {
            **of_rater,
            "drifts": any((m["p_holm"] or 0.0) <= alpha for m in of_rater.values() if m["p"] is not None),
        }
        for rater, of_rater in found.items()
    }


def review_queue(votes: Iterable[Judgement], items: Mapping[str, Item]) -> list[dict[str, Any]]:
    """Items on which raters disagree the most, the worst first; a hundred at most.

    Args:
        votes: Counted votes.
        items: By id.
    """
    low = []
    for item_id, unit in _by_item(votes, items).items():
        said = [preferred(vote) for vote in unit]
        if len(said) >= 2 and (agreement := pairwise_agreement(said)) < _LOW_AGREEMENT:
            low.append((agreement, -len(said), items[item_id].position, item_id, Counter(said)))
    return [
        {
            "item_id": item_id,
            "comparison": items[item_id].comparison,
            "prompt_id": items[item_id].record.id,
            "slice": items[item_id].record.slice,
            "n_votes": counts.total(),
            "agreement": agreement,
            "votes": dict(sorted(counts.items())),
        }
        for agreement, _, _, item_id, counts in sorted(low, key=lambda entry: entry[:4])[:_LONGEST_QUEUE]
    ]


def adjudicated_items(
    adjudicated: Iterable[Judgement], votes: Iterable[Judgement], items: Mapping[str, Item]
) -> list[dict[str, Any]]:
    """What further raters said about items on which the first ones disagreed. Reported; no outcome reads it.

    Args:
        adjudicated: Votes that a release manager asked for.
        votes: Counted votes.
        items: By id.

    Returns:
        By item, in the order of ids: the first raters' votes, the further ones', and what most of all say; None if no
        choice has more votes than every other.
    """
    first, further = _by_item(votes, items), _by_item(adjudicated, items)
    return [
        {
            "item_id": item_id,
            "comparison": items[item_id].comparison,
            "prompt_id": items[item_id].record.id,
            "slice": items[item_id].record.slice,
            "votes": _counts(first.get(item_id, [])),
            "adjudicated": _counts(unit),
            "majority": _majority([*first.get(item_id, []), *unit]),
        }
        for item_id, unit in sorted(further.items())
    ]


def _counts(votes: Iterable[Judgement]) -> dict[str, int]:
    return dict(sorted(Counter(preferred(vote) for vote in votes).items()))


def _majority(votes: Iterable[Judgement]) -> str | None:
    ranked = Counter(preferred(vote) for vote in votes).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _by_item(votes: Iterable[Judgement], items: Mapping[str, Item]) -> dict[str, list[Judgement]]:
    units: dict[str, list[Judgement]] = defaultdict(list)
    for vote in votes:
        if items[vote.item_id].kind == "pair":
            units[vote.item_id].append(vote)
    return units


def _overall(units: Sequence[Sequence[Judgement]]) -> dict[str, Any]:
    said = [[preferred(vote) for vote in unit] for unit in units if len(unit) >= 2]
    pairs = [pair for unit in said for pair in combinations(unit, 2)]
    return {
        "raw": sum(one == other for one, other in pairs) / len(pairs) if pairs else None,
        "alpha": _or_none(lambda: krippendorff_alpha(said)),
        "fleiss_kappa": _or_none(lambda: fleiss_kappa(said)),
        "cohen_kappa": _mean_cohen(units),
        "n_items": len(said),
        "n_pairs": len(pairs),
    }


def _mean_cohen(units: Sequence[Sequence[Judgement]]) -> float | None:
    """Mean over pairs of raters of their Cohen's kappa, weighted by the items that both rated."""
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for unit in units:
        for one, other in combinations(sorted(unit, key=lambda vote: vote.rater), 2):
            shared[one.rater, other.rater].append((preferred(one), preferred(other)))
    kappas = [(kappa, len(pairs)) for pairs in shared.values() if (kappa := _kappa(pairs)) is not None]
    weight = sum(n for _, n in kappas)
    return sum(kappa * n for kappa, n in kappas) / weight if weight else None


def _by_rater(units: Sequence[Sequence[Judgement]]) -> dict[str, dict[str, Any]]:
    """Each rater against all others on the same items."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for unit in units:
        for one in unit:
            pairs[one.rater] += [(preferred(one), preferred(other)) for other in unit if other is not one]
    return {
        rater: {
            "raw": sum(a == b for a, b in of_rater) / len(of_rater),
            "kappa": _kappa(of_rater),
            "n_pairs": len(of_rater),
        }
        for rater, of_rater in sorted(pairs.items())
        if of_rater
    }


def _agreement_in_time(votes: Sequence[Judgement], items: Mapping[str, Item]) -> dict[str, list[float]]:
    """By rater and in the order of the votes: the share of the others' votes on the item that agree."""
    units = _by_item(votes, items)
    found: dict[str, list[float]] = defaultdict(list)
    for vote in votes:
        others = [preferred(other) for other in units.get(vote.item_id, ()) if other.rater != vote.rater]
        if others:
            found[vote.rater].append(sum(said == preferred(vote) for said in others) / len(others))
    return found


def _trend(values: Sequence[float]) -> dict[str, Any]:
    half = len(values) // 2
    return {
        "n": len(values),
        "first_half": sum(values[:half]) / half if half else None,
        "second_half": sum(values[-half:]) / half if half else None,
        "p": mann_kendall_p(values) if len(values) >= _LEAST_FOR_DRIFT else None,
        "p_holm": None,
    }


def _kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    return _or_none(lambda: cohen_kappa([one for one, _ in pairs], [other for _, other in pairs]))


def _or_none(compute: Callable[[], float]) -> float | None:
    """The figure; None where it is not defined (no pairs, or all votes the same)."""
    try:
        return compute()
    except InputError:
        return None
