"""Settings of the data_validation stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.shared.settings import StrictModel

__all__ = ["DataValidationSettings", "NearDuplicateSettings", "SplitSettings"]


class SplitSettings(StrictModel):
    """How groups of records are shared out. A share is a fraction of the groups, not of the rows.

    A group's place depends on `salt` and its key alone: it stays where it is when rows are added.

    Attributes:
        salt: Another salt is another split. Keep it between runs, or what was held out will train.
        human_eval: Share of prompts for human evaluation; frozen, never trains.
        fresh: Share of prompts kept unseen for the soak of a live model; never trains.
        heldout: Share of prompts for held-out metrics; never trains.
        sft_heldout: Share of demonstrations held out, beside those whose prompt is held out.
        hold_back_sft: Which demonstrations train nothing for the sake of evaluation. "known_prompts": those of a
            held-out prompt of this or the earlier data set. "whole_range": also those of any prompt that would be held
            out if a later data set brought it; costs human_eval + fresh + heldout of the demonstrations, and keeps
            the models of today fair to compare on the prompts of tomorrow.
        preference_heldout: Share of preference pairs that no reward model trains on.
        preference_divergence: Share of preference pairs for the second reward model, which PPO never optimises.
    """

    salt: str = Field(default="plumbline", min_length=1)
    human_eval: float = Field(default=0.10, ge=0.0, lt=1.0)
    fresh: float = Field(default=0.10, ge=0.0, lt=1.0)
    heldout: float = Field(default=0.10, ge=0.0, lt=1.0)
    sft_heldout: float = Field(default=0.05, ge=0.0, lt=1.0)
    hold_back_sft: Literal["known_prompts", "whole_range"] = "known_prompts"
    preference_heldout: float = Field(default=0.15, ge=0.0, lt=1.0)
    preference_divergence: float = Field(default=0.25, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> SplitSettings:
        for what, total in (
            ("human_eval + fresh + heldout", self.human_eval + self.fresh + self.heldout),
            ("preference_heldout + preference_divergence", self.preference_heldout + self.preference_divergence),
        ):
            if total >= 1.0:
                raise ValueError(f"{what} is {total:g}: nothing is left to train on")
        return self


class NearDuplicateSettings(StrictModel):
    """Search for rows that are almost the same (MinHash LSH over word shingles, then the true Jaccard similarity).

    Attributes:
        action: "off"; "report" counts and lists them; "quarantine" also sets aside all but the first. Data made from
            templates is near-duplicate by nature: do not quarantine there.
        threshold: Jaccard similarity of the sets of shingles from which two rows are near duplicates.
        shingle_words: Words in a shingle.
        permutations: Hash functions of a MinHash; more find more of the pairs near the threshold, and take longer.
    """

    action: Literal["off", "report", "quarantine"] = "report"
    threshold: float = Field(default=0.9, gt=0.0, le=1.0)
    shingle_words: int = Field(default=2, ge=1)
    permutations: int = Field(default=64, ge=16)


class DataValidationSettings(StrictModel):
    """What a row must be, how many may fail, and how the rest is split.

    Attributes:
        max_prompt_tokens: Longest prompt, in tokens of the base model, chat template included.
        max_response_tokens: Longest answer, in tokens of the base model, EOS included.
        max_quarantined_share: Error budget: largest share of rows with a fault (duplicates apart) with which the run
            goes on.
        max_duplicate_share: The same for exact and near duplicates: redundancy rather than corruption, hence apart.
        min_rows: Fewest rows of each kind of data, before and after quarantine.
        required_slices: Slices that prompts and preference pairs must each cover.
        min_rows_per_slice: Fewest rows in a required slice; a smaller other slice is a warning.
        max_length_only_accuracy: Largest accuracy that "the longer answer is preferred" (or "the shorter") may reach on
            the pairs, by the lower end of its 95 % interval: past it a reward model need learn nothing but length.
        near_duplicates: Search for rows that are almost the same.
        redact: Replaces secrets and e-mail addresses before anything is stored. Off: they are only counted.
        splits: How records are shared out.
    """

    max_prompt_tokens: int = Field(default=512, ge=1)
    max_response_tokens: int = Field(default=512, ge=1)
    max_quarantined_share: float = Field(default=0.05, ge=0.0, le=1.0)
    max_duplicate_share: float = Field(default=0.30, ge=0.0, le=1.0)
    min_rows: int = Field(default=10, ge=1)
    required_slices: tuple[str, ...] = ()
    min_rows_per_slice: int = Field(default=10, ge=1)
    max_length_only_accuracy: float = Field(default=0.80, ge=0.5, le=1.0)
    near_duplicates: NearDuplicateSettings = NearDuplicateSettings()
    redact: bool = True
    splits: SplitSettings = SplitSettings()
