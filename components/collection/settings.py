"""Settings of the collection stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.shared.settings import StrictModel

__all__ = ["CollectionSettings"]


class CollectionSettings(StrictModel):
    """Where preference pairs come from.

    Attributes:
        source: "dataset" passes the user's preference data through; "raters" samples answers from the SFT policy and
            has the plug-in `raters` judge them.
        raters: `module:attribute` of the plug-in; needed with source "raters".
        pairs: How many pairs to collect.
        samples_per_prompt: Answers sampled at each visit of a prompt; every two of them make at most one pair.
        temperature: Sampling temperature.
        max_response_tokens: Longest answer, in tokens.
        batch_size: Answers sampled together.
        resample_rounds: How often a visit whose answers are all alike is sampled anew before it is given up.
    """

    source: Literal["dataset", "raters"] = "dataset"
    raters: str | None = None
    pairs: int = Field(default=2000, ge=1)
    samples_per_prompt: int = Field(default=2, ge=2)
    temperature: float = Field(default=1.0, gt=0.0)
    max_response_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=64, ge=1)
    resample_rounds: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _raters_are_named(self) -> CollectionSettings:
        if self.source == "raters" and not self.raters:
            raise ValueError("source 'raters' needs the setting raters: 'module:attribute'")
        return self
