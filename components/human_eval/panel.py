"""A panel that the user plugs in: simulated raters, or AI judges. Its votes are marked as what they are.

It sees what a person would see: the prompt and two answers, in the order drawn for the rater. A panel whose class says
`sees_rewards = True` is also told the rewards of the two answers (as shown); it exists to show what the gate does when
people like exactly what the reward likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from components.human_eval.batch import Assignment, GoldPair
from components.human_eval.database import Judgement, judgement_id, utc_now
from components.shared.errors import InputError
from components.shared.plugins import load_attribute
from components.shared.progress import track
from components.shared.records import PromptRecord

__all__ = ["RaterPanel", "judge_assignments", "load_panel", "panel_gold_pairs"]


class RaterPanel(Protocol):
    """What `human_eval.panel` names: a class, called with the seed, whose instances look like this."""

    raters: list[str]
    kind: Literal["simulated", "ai"]

    def judge(
        self, rater: str, record: PromptRecord, response_a: str, response_b: str, *, finished_a: bool, finished_b: bool
    ) -> dict[str, Any]:
        """Returns {"choice": "a" | "b" | "tie" | "both_bad", "flags_a": [str], "flags_b": [str]}."""
        ...


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    choice: Literal["a", "b", "tie", "both_bad"]
    flags_a: list[str] = []
    flags_b: list[str] = []
    rationale: str | None = None


class _Gold(BaseModel):
    model_config = ConfigDict(extra="forbid")

    record: PromptRecord
    response_a: str
    response_b: str
    expected: Literal["a", "b"]


def load_panel(reference: str, *, seed: int) -> RaterPanel:
    """Makes the plug-in panel.

    Args:
        reference: `module:attribute` of its class.
        seed: Passed to it, so that a run can be repeated.

    Raises:
        InputError: No such plug-in, no method `judge`, no raters, raters named twice, or a kind that it may not claim.
    """
    where = f"plug-in {reference}"
    panel = load_attribute(reference)(seed)
    if not callable(getattr(panel, "judge", None)):
        raise InputError("the panel has no method 'judge'.", where=where)
    raters = getattr(panel, "raters", None)
    if not raters or len(set(raters)) != len(raters):
        raise InputError(f"the panel's raters are {raters!r}, not a list of distinct names.", where=where)
    if getattr(panel, "kind", None) not in ("simulated", "ai"):
        raise InputError(
            f"the panel's kind is {getattr(panel, 'kind', None)!r}.",
            where=where,
            hint="Set it to 'simulated' or 'ai'; votes of people come through the review service only.",
        )
    return panel


def panel_gold_pairs(panel: Any, records: Sequence[PromptRecord], n: int, *, where: str) -> list[GoldPair] | None:
    """The panel's own gold items; None if it has none to offer.

    Args:
        panel: The panel.
        records: Prompts that they may be made from.
        n: How many.
        where: Name of the plug-in, for errors.

    Raises:
        InputError: It returned something else than gold items, or two for one prompt.
    """
    if not callable(getattr(panel, "gold_items", None)):
        return None
    pairs: dict[str, GoldPair] = {}
    for offered in panel.gold_items(records, n):
        try:
            gold = _Gold.model_validate(offered)
        except ValidationError as error:
            hint = 'Return [{"record", "response_a", "response_b", "expected": "a" or "b"}].'
            raise InputError(f"gold_items(): {_fault(error)}.", where=f"plug-in {where}", hint=hint) from error
        if gold.record.id in pairs:
            raise InputError(f"gold_items(): two items for prompt {gold.record.id!r}.", where=f"plug-in {where}")
        texts = (gold.response_a, gold.response_b)
        better, worse = texts if gold.expected == "a" else texts[::-1]
        pairs[gold.record.id] = GoldPair(gold.record, better, worse)
    return list(pairs.values())


def judge_assignments(panel: RaterPanel, assignments: Sequence[Assignment], *, where: str) -> list[Judgement]:
    """Has every assignment judged, each as it is shown to its rater.

    Args:
        panel: Who judges.
        assignments: What is asked.
        where: Name of the plug-in, for errors.

    Returns:
        One judgement an assignment, in order, all with the same time.

    Raises:
        InputError: The panel returned something else than a verdict.
    """
    now = utc_now()
    return [
        Judgement(
            judgement_id=judgement_id(assignment.item.item_id, assignment.rater, assignment.kind),
            item_id=assignment.item.item_id,
            rater=assignment.rater,
            rater_kind=panel.kind,
            kind=assignment.kind,
            swapped=assignment.swapped,
            created_at=now,
            **_ask(panel, assignment, where).model_dump(),
        )
        for assignment in track(assignments, "judge pairs")
    ]


def _ask(panel: RaterPanel, assignment: Assignment, where: str) -> _Verdict:
    item = assignment.item
    shown_a, shown_b = (item.second, item.first) if assignment.swapped else (item.first, item.second)
    extra: dict[str, Any] = {}
    if getattr(panel, "sees_rewards", False):
        extra = {"reward_a": shown_a.reward, "reward_b": shown_b.reward}
    answer = panel.judge(
        assignment.rater,
        item.record,
        shown_a.response,
        shown_b.response,
        finished_a=shown_a.finished,
        finished_b=shown_b.finished,
        **extra,
    )
    try:
        return _Verdict.model_validate(answer)
    except ValidationError as error:
        raise InputError(
            f"judge() returned {answer!r}: {_fault(error)}.",
            where=f"plug-in {where}, prompt {item.record.id}",
            hint='Return {"choice": "a", "b", "tie" or "both_bad", "flags_a": [...], "flags_b": [...]}.',
        ) from error


def _fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'answer'}: {fault['msg']}"
