"""What the report is told about the run itself, beside the artifacts."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator

from components.shared.settings import StrictModel

__all__ = ["ChampionName", "Failure", "RunInfo"]


class Failure(StrictModel):
    """Where and why a run ended early.

    Attributes:
        stage: The failing step, as the pipeline names it; None when not known.
        message: The cause in words.
    """

    stage: str | None = None
    message: str


class ChampionName(StrictModel):
    """The model that serves now. What else the caller knows of it is not shown."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    name: str
    version: str | None = None


class RunInfo(StrictModel):
    """The run that a report is about.

    Attributes:
        run_id: Its name; also that of its folder.
        status: `SUCCEEDED`, `FAILED`, `CANCELLED` or `RUNNING`, as the pipeline says.
        settings: The run's settings, as given.
        seed: Seed of all that is random.
        failure: Where and why it failed; a plain text stands for a failure of unknown stage.
        seconds: Wall-clock seconds of each stage, in the order in which they ran.
        champion: The live model after the run; None when there is none.
        seconds_total: Wall-clock seconds of the run.
        usage: What the steps used, as `components.shared.usage.summarise` gives it.
    """

    run_id: str
    status: str = "SUCCEEDED"
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    failure: Failure | None = None
    seconds: dict[str, float] | None = None
    champion: ChampionName | None = None
    seconds_total: float | None = None
    usage: dict[str, Any] | None = None

    @field_validator("failure", mode="before")
    @classmethod
    def _text_is_a_message(cls, value: Any) -> Any:
        return {"message": value} if isinstance(value, str) else value
