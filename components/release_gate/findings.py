"""What a criterion finds: its verdict with the number, interval, threshold, source and reason behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from components.shared.errors import PlumblineError

__all__ = ["Criterion", "EvidenceFault", "Finding", "criterion"]

Parameters = ParamSpec("Parameters")


class Finding(StrEnum):
    """A criterion's verdict."""

    PASS = "PASS"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    HOLD = "HOLD"
    BLOCK = "BLOCK"
    ROLLBACK = "ROLLBACK"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Criterion:
    """One criterion, judged.

    Attributes:
        name: `<criterion>` or `<criterion>.<part>`.
        verdict: What it says.
        reason: Why, in a sentence with numbers.
        value: The number judged; None if there is none.
        interval: Its interval (low, high).
        threshold: What the number was held against, in words.
        n: How many units it rests on.
        source: Artifact digest and key that the number comes from.
    """

    name: str
    verdict: Finding
    reason: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    threshold: str = ""
    n: int | None = None
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form; a number that is not finite becomes null."""
        values = asdict(self) | {"verdict": str(self.verdict)}
        values["value"] = _finite(self.value)
        values["interval"] = [_finite(bound) for bound in self.interval] if self.interval else None
        return values


class EvidenceFault(PlumblineError):
    """Evidence that cannot be judged: HOLD when it is missing or too little, ERROR when it is wrong.

    Args:
        finding: HOLD or ERROR.
        problem: What is wrong with it, in a sentence.
        source: Where it was looked for.
    """

    def __init__(self, finding: Finding, problem: str, *, source: str) -> None:
        super().__init__(problem)
        self.finding = finding
        self.source = source


def criterion(
    name: str, *, threshold: str = ""
) -> Callable[[Callable[Concatenate[Any, Parameters], Criterion]], Callable[Concatenate[Any, Parameters], Criterion]]:
    """Makes a function a criterion: evidence that it cannot use becomes HOLD or ERROR and never a pass.

    Args:
        name: The criterion's name.
        threshold: What it needs, in words, for the case that the evidence is missing.
    """

    def decorate(
        function: Callable[Concatenate[Any, Parameters], Criterion],
    ) -> Callable[Concatenate[Any, Parameters], Criterion]:
        @wraps(function)
        def judged(case: Any, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Criterion:
            try:
                return function(case, *args, **kwargs)
            except EvidenceFault as fault:
                return Criterion(name, fault.finding, fault.problem, threshold=threshold, source=fault.source)
            except PlumblineError as error:
                return Criterion(name, Finding.ERROR, f"The evidence cannot be computed with: {error}")

        judged.criterion_name = name  # type: ignore[attr-defined]  # so that tests find every criterion that there is
        return judged

    return decorate


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
