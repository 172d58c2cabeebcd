"""Pairs of answers judged by a rater that the user plugs in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.collection.sampling import AnswerPair
from components.shared.errors import InputError
from components.shared.plugins import load_attribute
from components.shared.progress import track
from components.shared.records import PreferenceRecord, PromptRecord

__all__ = ["PreferenceRater", "judge_pairs", "load_rater"]

logger = logging.getLogger(__name__)


class PreferenceRater(Protocol):
    """What `raters: module:attribute` names: a class, called with the seed, whose instances look like this."""

    kind: Literal["simulated", "ai"]

    def prefer(
        self, record: PromptRecord, response_a: str, response_b: str, *, finished_a: bool, finished_b: bool
    ) -> dict[str, Any]:
        """Returns {"choice": "a" | "b", "rater": pseudonym, "strength": in [0, 1]}."""
        ...


class _Preference(BaseModel):
    model_config = ConfigDict(extra="forbid")

    choice: Literal["a", "b"]
    rater: str
    strength: float = Field(ge=0.0, le=1.0)


def load_rater(reference: str, *, seed: int) -> PreferenceRater:
    """Makes the plug-in rater.

    Args:
        reference: `module:attribute` of its class.
        seed: Passed to it, so that a run can be repeated.

    Raises:
        InputError: No such plug-in, no method `prefer`, or a kind that it may not claim.
    """
    where = f"plug-in {reference}"
    rater = load_attribute(reference)(seed)
    if not callable(getattr(rater, "prefer", None)):
        raise InputError("the rater has no method 'prefer'.", where=where)
    if getattr(rater, "kind", None) not in ("simulated", "ai"):
        raise InputError(
            f"the rater's kind is {getattr(rater, 'kind', None)!r}.",
            where=where,
            hint="Set it to 'simulated' or 'ai'; preferences of people come as data (collection.source: dataset).",
        )
    return rater


def judge_pairs(
    pairs: Sequence[AnswerPair], rater: PreferenceRater, *, where: str, provenance: dict[str, Any]
) -> list[PreferenceRecord]:
    """Has every pair judged.

    Args:
        pairs: Pairs of differing answers.
        rater: Who judges.
        where: Name of the plug-in, for errors.
        provenance: What all pairs share (policy digest, temperature); goes into each record's metadata.

    Returns:
        One preference a pair, in order.

    Raises:
        InputError: The rater returned something else than a preference.
    """
    return [
        _preference_record(number, pair, _ask(rater, pair, where), rater.kind, provenance)
        for number, pair in enumerate(track(pairs, "judge pairs"))
    ]


def _ask(rater: PreferenceRater, pair: AnswerPair, where: str) -> _Preference:
    answer = rater.prefer(
        pair.record,
        pair.first.text,
        pair.second.text,
        finished_a=pair.first.finished,
        finished_b=pair.second.finished,
    )
    try:
        return _Preference.model_validate(answer)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "answer"
        raise InputError(
            f"prefer() returned {answer!r}: {field}: {fault['msg']}.",
            where=f"plug-in {where}, prompt {pair.record.id}",
            hint='Return {"choice": "a" or "b", "rater": name, "strength": number in [0, 1]}.',
        ) from error


def _preference_record(
    number: int,
    pair: AnswerPair,
    preference: _Preference,
    kind: Literal["simulated", "ai"],
    provenance: dict[str, Any],
) -> PreferenceRecord:
    chosen, rejected = (pair.first, pair.second) if preference.choice == "a" else (pair.second, pair.first)
    return PreferenceRecord(
        id=f"pair-{number:06d}",
        prompt=pair.record.prompt,
        slice=pair.record.slice,
        group_id=pair.record.group_id,
        chosen=chosen.text,
        rejected=rejected.text,
        rater=preference.rater,
        strength=preference.strength,
        source=kind,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
        metadata={
            **pair.record.metadata,
            "prompt_id": pair.record.id,
            **provenance,
            "visit": pair.visit,
            "chosen_sample": chosen.index,
            "rejected_sample": rejected.index,
            "shown_first": "chosen" if preference.choice == "a" else "rejected",
        },
    )
