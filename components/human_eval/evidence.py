"""From judgements to evidence: one outcome a prompt, and the statistics that the gate reads.

    effective judgements > raters that count > outcomes (mean of a prompt's counted votes; tie and both bad 1/2)
        > win rate with anytime-valid bounds, length-controlled win rate, slices, safety, agreement

An outcome enters once its prompt has all its votes, in the order in which that happened: a prompt's mean must not
change after somebody has looked at it. Bounds come from the betting confidence sequence, which stays valid when people
look and stop early; it needs the one outcome a prompt.

People's pairs are handed out until they have all their votes from raters who count; an outcome is then the mean of the
first `votes_per_prompt` of them. A panel's pairs are asked about once: there what counts of the votes is taken. Votes
that a release manager asked for later, because raters disagreed (adjudication), are reported and enter no outcome.
What somebody who counts has flagged as unsafe stays flagged, in whichever of these judgements it was said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.human_eval.batch import Batch, Item
from components.human_eval.database import Judgement
from components.human_eval.length_control import Vote, length_controlled_win_rate
from components.human_eval.rater_quality import (
    agreement,
    effective_judgements,
    position_bias,
    preferred,
    rate_raters,
)
from components.human_eval.rater_statistics import (
    adjudicated_items,
    agreement_statistics,
    find_drift,
    review_queue,
)
from components.human_eval.settings import PEOPLE
from components.shared.statistics import (
    betting_confidence_sequence,
    betting_p_value,
    binomial_lower,
    binomial_upper,
    clustered_bootstrap_interval,
)

__all__ = ["SEVERITY_1", "UNSAFE", "Evidence", "Outcome", "decided_comparisons", "weigh_evidence"]

UNSAFE = "unsafe"
SEVERITY_1 = "severity_1"

_VALUE = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True)
class Outcome:
    """What people say about one prompt of one comparison.

    Attributes:
        item: The pair.
        value: In [0, 1], for the first-named role.
        votes: Counted votes behind it; none for identical answers, a tie that nobody was asked about.
    """

    item: Item
    value: float
    votes: tuple[Vote, ...] = ()

    @property
    def n_votes(self) -> int:
        return len(self.votes)

    @property
    def n_decided(self) -> int:
        """Votes that chose one of the answers: neither tie nor both bad."""
        return sum(value != 0.5 for _, value in self.votes)

    def as_json(self) -> dict[str, Any]:
        """A row of `outcomes.jsonl`."""
        return {
            "comparison": self.item.comparison,
            "prompt_id": self.item.record.id,
            "slice": self.item.record.slice,
            "outcome": self.value,
            "n_votes": self.n_votes,
            "n_decided": self.n_decided,
            "role_a_tokens": self.item.first.n_tokens,
            "role_b_tokens": self.item.second.n_tokens,
        }


@dataclass(frozen=True)
class Evidence:
    """The outcomes and the content of `statistics.json`."""

    outcomes: list[Outcome]
    statistics: dict[str, Any]


def weigh_evidence(
    batch: Batch, judgements: Sequence[Judgement], *, seed: int, stopped_early: str | None = None
) -> Evidence:
    """Computes all statistics of a batch.

    Args:
        batch: What was asked.
        judgements: All that was answered, superseded judgements included.
        seed: Of the bootstrap.
        stopped_early: On what the stopping rule closed the batch, if it did: it is then complete without further votes.

    Returns:
        Numbers are None, never a guess, where nobody has judged yet.
    """
    settings = batch.settings
    items = {item.item_id: item for item in batch.items}
    effective = effective_judgements(judgements)
    raters = rate_raters(effective, settings)
    asked = [judgement for judgement in effective if judgement.kind == "vote"]
    votes = [vote for vote in asked if vote.adjudication is None]
    counted = [vote for vote in votes if raters[vote.rater].counted]
    places = _first_votes(counted, needed=settings.votes_per_prompt) if settings.panel == PEOPLE else votes
    deciding = places if settings.panel == PEOPLE else counted
    outcomes = _outcomes(batch.items, places, deciding, needed=settings.votes_per_prompt)
    names = dict.fromkeys(item.comparison for item in batch.items if item.kind != "gold")
    by_comparison = {name: [one for one in outcomes if one.item.comparison == name] for name in names}
    alpha, raw_agreement = agreement(counted, items)
    statistics = {
        "batch_id": batch.batch_id,
        "rater_kinds": sorted({judgement.rater_kind for judgement in judgements}),
        "error_probability": settings.alpha,
        "complete": bool(stopped_early) or _is_complete(batch.items, places, needed=settings.votes_per_prompt),
        "stopped_early": stopped_early,
        "comparisons": {
            name: _comparison(found, alpha=settings.alpha, seed=seed)
            | {"rubric": _rubric([vote for vote in counted if items[vote.item_id].comparison == name])}
            for name, found in by_comparison.items()
        },
        "safety": _safety(
            batch.items,
            counted,
            [one for one in effective if one.kind != "gold" and raters[one.rater].counted],
            confidence=1.0 - settings.alpha,
        ),
        "raters": {rater: quality.as_json() for rater, quality in raters.items()},
        "alpha": alpha,
        "raw_agreement": raw_agreement,
        "position_bias": position_bias(counted),
        "agreement": agreement_statistics(counted, items),
        "drift": find_drift(effective, items, alpha=settings.alpha),
        "review_queue": review_queue(counted, items),
        "adjudication": adjudicated_items([vote for vote in asked if vote.adjudication is not None], counted, items),
    }
    return Evidence(outcomes, statistics)


def _first_votes(counted: Sequence[Judgement], *, needed: int) -> list[Judgement]:
    """The first `needed` votes on each pair: what comes later changes no outcome that somebody has seen."""
    found = _votes_by_item(sorted(counted, key=lambda vote: (vote.created_at, vote.judgement_id)))
    return [vote for of_item in found.values() for vote in of_item[:needed]]


def decided_comparisons(
    batch: Batch, judgements: Sequence[Judgement], *, from_prompts: int, by_now: bool = False
) -> list[str]:
    """Whether every comparison of the candidate in a batch of people is decided, each in words; else nothing.

    The bounds come from the confidence sequence, so that it does no harm to ask after every vote.

    Args:
        batch: What was asked.
        judgements: All that was answered.
        from_prompts: Outcomes that a comparison must have.
        by_now: What was decided once stays so, as the running intersection of the bounds is as valid as the last ones:
            a vote that came in while the batch was being closed does not open the question again.
    """
    effective = effective_judgements(judgements)
    raters = rate_raters(effective, batch.settings)
    votes = [one for one in effective if one.kind == "vote" and one.adjudication is None]
    counted = [vote for vote in votes if raters[vote.rater].counted]
    places = _first_votes(counted, needed=batch.settings.votes_per_prompt)
    outcomes = _outcomes(batch.items, places, places, needed=batch.settings.votes_per_prompt)
    names = dict.fromkeys(item.comparison for item in batch.items if item.comparison.startswith("candidate_vs_"))
    said = []
    for name in names:
        values = [outcome.value for outcome in outcomes if outcome.item.comparison == name]
        if len(values) < from_prompts:
            return []
        bounds = betting_confidence_sequence(values, alpha=batch.settings.alpha)
        lower = bounds.lower_path[-1] if by_now else bounds.lower
        upper = bounds.upper_path[-1] if by_now else bounds.upper
        if lower <= 0.5 <= upper:
            return []
        said.append(f"{name} on {len(values)} prompts, bounds {bounds.lower:.3f} to {bounds.upper:.3f}")
    return said


def _votes_by_item(votes: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    found: dict[str, list[Judgement]] = defaultdict(list)
    for vote in votes:
        found[vote.item_id].append(vote)
    return found


def _is_complete(items: Iterable[Item], votes: Iterable[Judgement], *, needed: int) -> bool:
    given = _votes_by_item(votes)
    return all(len(given.get(item.item_id, ())) >= needed for item in items if item.kind == "pair")


def _outcomes(
    items: Iterable[Item], votes: Iterable[Judgement], counted: Iterable[Judgement], *, needed: int
) -> list[Outcome]:
    """Outcomes in the order in which their prompts had all votes; identical answers go with the first of them."""
    given, valid = _votes_by_item(votes), _votes_by_item(counted)
    finished: list[tuple[str, int, Outcome]] = []
    identical: list[tuple[int, Outcome]] = []
    for item in items:
        of_item = valid.get(item.item_id, [])
        if item.kind == "identical":
            identical.append((item.position, Outcome(item, 0.5)))
        elif item.kind == "pair" and len(given.get(item.item_id, ())) >= needed and of_item:
            said = tuple((vote.rater, _VALUE[preferred(vote)]) for vote in of_item)
            when = sorted(vote.created_at for vote in given[item.item_id])[needed - 1]
            finished.append((when, item.position, Outcome(item, sum(value for _, value in said) / len(said), said)))
    begin = min((when for when, _, _ in finished), default="")
    finished += [(begin, position, outcome) for position, outcome in identical]
    return [outcome for _, _, outcome in sorted(finished, key=lambda entry: entry[:2])]


def _comparison(outcomes: Sequence[Outcome], *, alpha: float, seed: int) -> dict[str, Any]:
    """A comparison's figures. Identical answers alone, before anybody has judged, are no evidence of anything."""
    if not any(outcome.n_votes for outcome in outcomes):
        outcomes = []
    slices = sorted({outcome.item.record.slice for outcome in outcomes})
    return {
        **_win_rate(outcomes, alpha=alpha),
        "n_votes": sum(outcome.n_votes for outcome in outcomes),
        "ci95": _interval(outcomes, seed=seed),
        "length_controlled": length_controlled_win_rate(
            [outcome.value for outcome in outcomes],
            [outcome.item.first.n_tokens for outcome in outcomes],
            [outcome.item.second.n_tokens for outcome in outcomes],
            alpha=alpha,
            slices=[outcome.item.record.slice for outcome in outcomes],
            votes=[outcome.votes for outcome in outcomes],
        ),
        "slices": {
            name: _slice([outcome for outcome in outcomes if outcome.item.record.slice == name], alpha=alpha)
            for name in slices
        },
    }


def _rubric(counted: Sequence[Judgement]) -> dict[str, dict[str, Any]]:
    """By dimension that was judged: mean preference for the first-named role (a tie is 1/2), and on how many votes."""
    values: dict[str, list[float]] = defaultdict(list)
    for vote in counted:
        for dimension, choice in (vote.rubric or {}).items():
            first = "b" if vote.swapped else "a"
            values[dimension].append(0.5 if choice == "tie" else float(choice == first))
    return {
        name: {"win_rate": sum(found) / len(found), "n_votes": len(found)} for name, found in sorted(values.items())
    }


def _win_rate(outcomes: Sequence[Outcome], *, alpha: float) -> dict[str, Any]:
    values = [outcome.value for outcome in outcomes]
    if not values:
        return {"win_rate": None, "n_prompts": 0, "lower": None, "upper": None}
    bounds = betting_confidence_sequence(values, alpha=alpha)
    return {
        "win_rate": sum(values) / len(values),
        "n_prompts": len(values),
        "lower": bounds.lower,
        "upper": bounds.upper,
    }


def _slice(outcomes: Sequence[Outcome], *, alpha: float) -> dict[str, Any]:
    """A slice's win rate, and the anytime-valid p-value of "the first-named role is not worse here" (for Holm)."""
    p_worse = betting_p_value([1.0 - outcome.value for outcome in outcomes])
    return {**_win_rate(outcomes, alpha=alpha), "p_worse": p_worse}


def _interval(outcomes: Sequence[Outcome], *, seed: int) -> list[float] | None:
    """Prompt-clustered 95 % interval, for a fixed number of prompts; None for fewer than two."""
    prompts = [outcome.item.record.id for outcome in outcomes]
    if len(set(prompts)) < 2:
        return None
    return list(clustered_bootstrap_interval([outcome.value for outcome in outcomes], prompts, seed=seed))


def _safety(
    items: Sequence[Item], counted: Iterable[Judgement], said: Iterable[Judgement], *, confidence: float
) -> dict[str, dict[str, Any]]:
    """By role: distinct answers that were judged for safety, and how many of them anyone flagged.

    Args:
        items: All of the batch.
        counted: The votes that count: what they looked at is judged, and nothing else is judged safe.
        said: All that raters who count said of these pairs, repeats and adjudication too: what they flagged is bad.
        confidence: Of each bound.
    """
    pairs = {item.item_id: item for item in items if item.kind == "pair"}
    seen: dict[str, dict[str, set[str]]] = {
        role: defaultdict(set) for item in items if item.kind != "gold" for role in (item.first.role, item.second.role)
    }
    for vote in counted:
        item = pairs[vote.item_id]
        for answer in (item.first, item.second):
            seen[answer.role].setdefault(item.record.id, set())
    for judgement in said:
        item = pairs[judgement.item_id]
        swapped = judgement.swapped
        flags = (judgement.flags_b, judgement.flags_a) if swapped else (judgement.flags_a, judgement.flags_b)
        for answer, of_answer in zip((item.first, item.second), flags, strict=True):
            if not {UNSAFE, SEVERITY_1}.isdisjoint(of_answer):
                seen[answer.role][item.record.id].update(of_answer)
    return {role: _safety_of(list(answers.values()), confidence) for role, answers in sorted(seen.items())}


def _safety_of(answers: Sequence[set[str]], confidence: float) -> dict[str, Any]:
    n = len(answers)
    severe = sum(SEVERITY_1 in flags for flags in answers)
    bad = sum(bool(flags & {UNSAFE, SEVERITY_1}) for flags in answers)
    return {
        "n": n,
        "bad": bad,
        "severity_1": severe,
        "upper": binomial_upper(bad, n, confidence) if n else None,
        "lower": binomial_lower(bad, n, confidence) if n else None,
    }
