"""The gate's criteria: one module each, from parsed evidence to a verdict with its number.

Every function takes a `Case` and returns what it found. Evidence that is absent, not finite, out of range, too little
or about something else never passes: the `criterion` decorator turns its fault into HOLD or ERROR.
"""

from __future__ import annotations

from components.release_gate.criteria.divergence import divergence
from components.release_gate.criteria.human_preference import human_preference
from components.release_gate.criteria.kl import kl
from components.release_gate.criteria.length_style import length_style
from components.release_gate.criteria.raters import raters
from components.release_gate.criteria.regression import regression
from components.release_gate.criteria.reward_model import reward_model
from components.release_gate.criteria.safety import safety
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion

__all__ = ["CRITERIA", "judge_all"]

CRITERIA = (reward_model, kl, human_preference, divergence, length_style, safety, regression, raters)
"""In the order of the report."""


def judge_all(case: Case) -> list[Criterion]:
    """Every criterion on one case."""
    return [found for judge in CRITERIA for found in judge(case)]
