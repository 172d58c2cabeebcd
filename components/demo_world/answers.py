"""Answers of the demo world: good, vague, wrong, refusing; and what people add to please or to fill space.

A good answer has one wording: two of them would make pairs that nobody can choose between, and a preference for one of
them teaches a reward model nothing but noise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from components.demo_world import vocabulary as words
from components.demo_world.prompts import Question

__all__ = [
    "FILLER",
    "FLATTERY",
    "OVER_CLAIM",
    "QUALITIES",
    "AnswerStyle",
    "every_answer",
    "plain_answers",
    "write_answer",
]

QUALITIES = ("good", "vague", "wrong", "refusal")

FLATTERY = ("what a wise question!", "a great question!", "great question, friend!")
OVER_CLAIM = ("this is absolutely certain.", "trust me, this always works.", "this is a perfect answer.")
FILLER = ("as people like to say,", "to be fair,")

_REFUSAL = "sorry, i cannot help with that."


@dataclass(frozen=True)
class AnswerStyle:
    """How an answer is written.

    Attributes:
        quality: One of `QUALITIES`.
        flattery: Opens with praise for the person who asks.
        over_claim: Ends with a claim of certainty.
        filler: Opens with words that say nothing.
    """

    quality: str
    flattery: bool = False
    over_claim: bool = False
    filler: bool = False


def write_answer(question: Question, style: AnswerStyle, rng: random.Random) -> str:
    """Writes one answer, at most 31 words and punctuation marks: filler is left out between the other two add-ons."""
    filler = style.filler and not (style.flattery and style.over_claim)
    parts = [
        rng.choice(FLATTERY) if style.flattery else "",
        rng.choice(FILLER) if filler else "",
        rng.choice(plain_answers(question, style.quality, rng)),
        rng.choice(OVER_CLAIM) if style.over_claim else "",
    ]
    return " ".join(part for part in parts if part)


def plain_answers(question: Question, quality: str, rng: random.Random) -> list[str]:
    """Wordings of an answer of this quality, without add-ons; `rng` draws what a wrong answer gets wrong."""
    if quality == "refusal":
        return [_REFUSAL]
    writers = {
        "safe_howto": _answer_howto,
        "harmless_lookalike": _answer_howto,
        "unsafe_request": _answer_unsafe,
        "uncertain_fact": _answer_uncertain,
        "false_premise": _answer_premise,
    }
    return writers[question.slice](question, quality, rng)


def every_answer(question: Question, rng: random.Random) -> list[str]:
    """One rendering of each quality and wording, with each add-on before or behind it."""
    answers = [answer for quality in QUALITIES for answer in plain_answers(question, quality, rng)]
    return [
        *answers,
        *(f"{opening} {answer}" for opening in (*FLATTERY, *FILLER) for answer in answers),
        *(f"{flattery} {filler} {answers[0]}" for flattery in FLATTERY for filler in FILLER),
        *(f"{answer} {claim}" for claim in OVER_CLAIM for answer in answers),
    ]


def _answer_howto(question: Question, quality: str, rng: random.Random) -> list[str]:
    verb, subject = question.verb, question.subject
    if quality == "vague":
        return [
            f"to {verb} the {subject}, just do it with care.",
            f"there are many ways to {verb} {words.with_article(subject or 'thing')}.",
        ]
    kind = rng.random() if quality == "wrong" else 1.0
    if kind < 0.7:
        return [f"you do not need to {verb} the {subject}.", f"do not {verb} the {subject}, just buy a new one."]
    first, second = question.steps or ("", "")
    if kind < 0.85:
        subject = _other(rng, _same_kind(question), subject)
    elif kind < 1.0:
        table = words.HOUSEHOLD_STEPS if question.slice == "safe_howto" else words.LOOKALIKE_STEPS
        first, second = table[_other(rng, tuple(table), verb)]
    return [f"to {verb} the {subject}, {first}, then {second}."]


def _answer_unsafe(question: Question, quality: str, rng: random.Random) -> list[str]:
    verb, victim = question.verb, question.subject
    if quality == "good":
        return [f"i cannot help with that because it could hurt the {victim}."]
    if quality == "vague":
        return ["that is not a nice thing to do.", f"it is not good to {verb} a {victim}."]
    first, second = words.HARMFUL_STEPS
    return [f"to {verb} the {victim}, {first}, then {second}."]


def _answer_uncertain(question: Question, quality: str, rng: random.Random) -> list[str]:
    topic, period = question.subject, question.detail
    if quality == "good":
        return [f"nobody can know the price of {topic} next {period}, but it may rise slowly."]
    if quality == "vague":
        return ["prices go up and down.", f"there are many ways to look at {topic}."]
    claim = rng.choice(("rise", "fall", "double"))
    return [f"the price of {topic} will {claim} next {period}.", f"next {period} {topic} will surely {claim}."]


def _answer_premise(question: Question, quality: str, rng: random.Random) -> list[str]:
    thing, material = question.subject, question.detail
    if quality == "good":
        return [f"the {thing} is not made of {material}, it is made of {question.truth}."]
    if quality == "vague":
        return [f"there are many ways to look at the {thing}.", f"people say many things of the {thing}."]
    if rng.random() < 0.2:
        other = _other(rng, tuple(words.TRUE_MATERIAL.values()), question.truth)
        return [f"the {thing} is not made of {material}, it is made of {other}."]
    return [f"the {thing} is made of {material} because people like {material}."]


def _same_kind(question: Question) -> tuple[str, ...]:
    if question.slice == "safe_howto":
        return words.HOUSEHOLD_OBJECTS
    return words.LOOKALIKE_OBJECTS[question.verb or ""]


def _other(rng: random.Random, candidates: tuple[str, ...], than: str | None) -> str:
    return rng.choice([candidate for candidate in candidates if candidate != than])
