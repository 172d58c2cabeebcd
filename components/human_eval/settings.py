"""Settings of the human evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.shared.settings import StrictModel

__all__ = ["PEOPLE", "HumanEvalSettings"]

PEOPLE = "people"

_ANALYSIS_FIELDS = frozenset({"gold_min_count", "min_gold_accuracy", "min_repeat_agreement", "alpha"})
_DESK_FIELDS = frozenset(
    {"practice_items", "lease_minutes", "undo_minutes", "deadline_hours", "stop_early_from_prompts"}
)


class HumanEvalSettings(StrictModel):
    """Who judges what, and which votes count.

    Attributes:
        panel: `people` (the batch waits for votes of the review service), or `module:attribute` of a class that stands
            in for a panel of raters: called with the seed, it has `raters` (names), `kind` ("simulated" or "ai") and
            `judge(rater, record, response_a, response_b, *, finished_a, finished_b)`, and may have
            `gold_items(records, n)`. Its votes are marked with its kind.
        prompt_set: The prompts of the comparison; `fresh` for a model that is live.
        n_prompts: Prompts of candidate against reference and against champion; all if there are fewer.
        checkpoint_prompts: Prompts of each checkpoint against reference; 0 compares no checkpoints.
        votes_per_prompt: Votes on each pair, each by another rater.
        gold_items: Items with a known answer that each rater gets; 0 switches the check off.
        gold_data: Where these items are, for people: JSON lines with `id`, `prompt`, `better`, `worse` (and `slice`); a
            file, a folder or `s3://...`. Empty takes a panel's own or makes them from demonstrations, which is good
            where every demonstration is. Other items are another batch.
        gold_min_count: Gold items that a rater must have judged before the rater's votes count.
        min_gold_accuracy: Share of gold items that a rater must have right.
        repeat_share: Share of a rater's votes that are asked again with the answers swapped.
        min_repeat_agreement: A rater's votes do not count when the repeats show (one-sided, at `alpha`) that the rater
            agrees with himself less often than this; 0.5 finds those who always click the same side.
        alpha: Error probability of each one-sided bound of `statistics.json`; the gate goes by its policy's instead.
        practice_items: Gold items that a person gets first, with feedback and without counting; they are then no gold
            items for anybody. Fewer if `gold_min_count` would not be left.
        lease_minutes: How long an item that was handed to a person is kept for that person, from the last sign of life.
        undo_minutes: How long after its last answer a complete batch stays open, so that this answer too can be undone.
        deadline_hours: How long people have, from the opening of the batch; then it closes with the votes that it has,
            and the release run judges them.
        stop_early_from_prompts: From this many outcomes on, a batch of people closes as soon as the confidence sequence
            of every comparison of the candidate has decided for or against it; None waits for all votes. What the gate
            reads from fixed-size intervals (safety, length) then rests on fewer prompts: no fewer than the policy's
            `safety.min_answers`, or the gate holds on a closed batch.
    """

    panel: str = PEOPLE
    prompt_set: Literal["human_eval", "fresh"] = "human_eval"
    n_prompts: int = Field(default=400, ge=1)
    checkpoint_prompts: int = Field(default=60, ge=0)
    votes_per_prompt: int = Field(default=3, ge=1)
    gold_items: int = Field(default=20, ge=0)
    gold_data: str = ""
    gold_min_count: int = Field(default=5, ge=1)
    min_gold_accuracy: float = Field(default=0.8, ge=0.0, le=1.0)
    repeat_share: float = Field(default=0.1, ge=0.0, le=1.0)
    min_repeat_agreement: float = Field(default=0.5, ge=0.0, le=1.0)
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    practice_items: int = Field(default=3, ge=0)
    lease_minutes: float = Field(default=20.0, gt=0.0)
    undo_minutes: float = Field(default=2.0, ge=0.0)
    deadline_hours: float = Field(default=336.0, gt=0.0)
    stop_early_from_prompts: int | None = Field(default=None, ge=1)

    @field_validator("panel")
    @classmethod
    def _panel_can_be_loaded(cls, panel: str) -> str:
        module, separator, attribute = panel.partition(":")
        if panel != PEOPLE and not (module and separator and attribute):
            raise ValueError(f"must be {PEOPLE!r} or 'module:attribute'")
        return panel

    @model_validator(mode="after")
    def _gold_items_suffice(self) -> HumanEvalSettings:
        if 0 < self.gold_items < self.gold_min_count:
            raise ValueError(
                f"gold_items is {self.gold_items} but gold_min_count is {self.gold_min_count}: no vote could ever count"
            )
        return self

    def batch_fields(self) -> dict[str, Any]:
        """The settings that decide what is asked and of whom; the others only decide how votes are read or gathered."""
        return self.model_dump(mode="json", exclude=set(_ANALYSIS_FIELDS | _DESK_FIELDS | {"gold_data"}))
