"""Two differing answers to a prompt, sampled from a policy.

The prompts are visited in a seeded order, again and again when there are fewer prompts than pairs wanted. A visit
samples k answers and pairs them so that the two texts of a pair differ and no answer is used twice: two answers that
read the same hold no preference, a blank one would not pass validation, and a pair of texts that an earlier visit of
the prompt had already would be a duplicate. A visit that yields too little is sampled anew a bounded number of times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from components.shared.records import PromptRecord, normalise_text, prompt_text

__all__ = ["Answer", "AnswerPair", "Sampler", "SamplingCounts", "draw_pairs", "pair_differing", "visits"]


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: What it says.
        finished: False when it was cut at the length limit.
        index: Its place among all answers sampled for the visit, resampled ones included.
    """

    text: str
    finished: bool
    index: int = 0


@dataclass(frozen=True)
class AnswerPair:
    """Two differing answers to one prompt, in random order."""

    record: PromptRecord
    visit: int
    first: Answer
    second: Answer


@dataclass
class SamplingCounts:
    """What the sampling cost, for the provenance."""

    visits: int = 0
    answers: int = 0
    unfinished_answers: int = 0
    blank_answers: int = 0
    resampled_visits: int = 0
    pairs_given_up: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


Sampler = Callable[[Sequence[PromptRecord], int], list[Answer]]
"""Called with prompts and the number of the round; returns one answer a prompt, in order."""


_PairKey = tuple[str, frozenset[str]]


@dataclass
class _Visit:
    number: int
    record: PromptRecord
    wanted: int
    sampled: int = 0
    unused: list[Answer] = field(default_factory=list)
    pairs: list[tuple[Answer, Answer]] = field(default_factory=list)


def visits(prompts: Sequence[PromptRecord], n: int, rng: random.Random) -> Iterator[PromptRecord]:
    """Yields `n` prompts: each once in random order, then each a second time in another order, and so on."""
    order: list[PromptRecord] = []
    for _ in range(n):
        if not order:
            order = list(prompts)
            rng.shuffle(order)
        yield order.pop()


def draw_pairs(
    prompts: Sequence[PromptRecord],
    *,
    pairs: int,
    samples_per_prompt: int,
    resample_rounds: int,
    sample: Sampler,
    rng: random.Random,
) -> tuple[list[AnswerPair], SamplingCounts]:
    """Samples answers until there are `pairs` pairs or the rounds are used up.

    Args:
        prompts: What to answer; not empty.
        pairs: Pairs wanted.
        samples_per_prompt: Answers k a visit; a visit yields at most k // 2 pairs.
        resample_rounds: Further rounds for visits that yielded too little.
        sample: The policy.
        rng: Orders prompts and answers.

    Returns:
        The pairs in the order of their visits (fewer than wanted where answers stayed alike), and the counts.
    """
    per_visit = samples_per_prompt // 2
    n_visits = -(-pairs // per_visit)
    all_visits = [
        _Visit(number, record, min(per_visit, pairs - number * per_visit))
        for number, record in enumerate(visits(prompts, n_visits, rng))
    ]
    counts = SamplingCounts(visits=n_visits)
    known: set[_PairKey] = set()
    open_visits = all_visits
    for round_number in range(resample_rounds + 1):
        _sample_round(open_visits, samples_per_prompt, round_number, sample, counts)
        for visit in open_visits:
            _pair_up(visit, known, rng)
        open_visits = [visit for visit in open_visits if len(visit.pairs) < visit.wanted]
        if not open_visits:
            break
        if round_number < resample_rounds:
            counts.resampled_visits += len(open_visits)
    found = [
        AnswerPair(visit.record, visit.number, *rng.sample(pair, 2)) for visit in all_visits for pair in visit.pairs
    ]
    counts.pairs_given_up = pairs - len(found)
    return found, counts


def pair_differing(answers: Sequence[Answer], rng: random.Random) -> list[tuple[Answer, Answer]]:
    """As many disjoint pairs of differing texts as there can be.

    With the answers sorted so that equal texts lie together, the most frequent first, answer i is matched with answer i
    + h (h = half the count): these differ unless one text holds more than half of the answers, and then every answer of
    another text is still used.
    """
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(normalise_text(answer.text), []).append(answer)
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=lambda text: -len(groups[text]))
    ranked = [answer for text in order for answer in groups[text]]
    half = len(ranked) // 2
    ranked = ranked[len(ranked) % 2 :]
    return [
        (first, second)
        for first, second in zip(ranked[:half], ranked[half:], strict=True)
        if normalise_text(first.text) != normalise_text(second.text)
    ]


def _sample_round(
    open_visits: Sequence[_Visit], samples_per_prompt: int, round_number: int, sample: Sampler, counts: SamplingCounts
) -> None:
    """Samples k more answers for each open visit."""
    asked = [visit.record for visit in open_visits for _ in range(samples_per_prompt)]
    answers = sample(asked, round_number)
    for place, visit in enumerate(open_visits):
        for answer in answers[place * samples_per_prompt : (place + 1) * samples_per_prompt]:
            if normalise_text(answer.text):
                visit.unused.append(replace(answer, index=visit.sampled))
            else:
                counts.blank_answers += 1
            visit.sampled += 1
    counts.answers += len(answers)
    counts.unfinished_answers += sum(not answer.finished for answer in answers)


def _pair_up(visit: _Visit, known: set[_PairKey], rng: random.Random) -> None:
    """Moves differing answers from `unused` to `pairs`, up to what is wanted and is not `known` yet."""
    prompt = normalise_text(prompt_text(visit.record.prompt))
    for pair in pair_differing(visit.unused, rng):
        key = (prompt, frozenset(normalise_text(answer.text) for answer in pair))
        if key not in known and len(visit.pairs) < visit.wanted:
            known.add(key)
            visit.pairs.append(pair)
            visit.unused = [answer for answer in visit.unused if answer not in pair]
