"""Gao's curve of this run, for the report: what was gained against how far the policy moved, and where that peaks.

Nothing is decided on it: a handful of checkpoints rarely pins a peak down. Two readings, each over d = sqrt(KL):

- `human`: log odds of people's win rate against the reference (0 where both are equally good);
- `heldout`: gain of the held-out reward model, which nothing was trained against, in its standard deviations.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from components.release_gate.divergence import rewards_by_prompt
from components.release_gate.evidence import Case
from components.shared.errors import PlumblineError
from components.shared.statistics import fit_gao_curve

__all__ = ["measure_overoptimization"]

_logger = logging.getLogger(__name__)

_METRICS = "metrics.json"
_STATISTICS = "statistics.json"
_Z95 = 1.959964

Gain = Callable[[Case, str], tuple[float, float] | None]
"""Gain of a role over the reference and its standard error; None where it was not measured."""


def measure_overoptimization(case: Case) -> dict[str, Any]:
    """Points and fitted curve by reading, as in decision.json: `{"human": {...}, "heldout": {...}}`.

    Never raises for what is wrong with the evidence: `reason` then says it.
    """
    return {"human": _curve(case, _human_gain), "heldout": _curve(case, _heldout_gain)}


def _curve(case: Case, gain_of: Gain) -> dict[str, Any]:
    try:
        points = _points(case, gain_of)
        fit = fit_gao_curve(*([point[key] for point in points] for key in ("d", "gain", "se")))
        return {"points": points, **fit.as_dict()}
    except PlumblineError as error:
        _logger.debug("No curve to report: %s", error)  # what is wrong with the evidence is said by the criteria
        return {"points": [], "reason": f"The curve cannot be computed: {error}"}


def _points(case: Case, gain_of: Gain) -> list[dict[str, Any]]:
    """Checkpoints and candidate, by distance; those that have not moved, or whose gain is unknown, are left out."""
    models = case.evaluation.mapping("models.json")
    digests = {role: case.evaluation.value("models.json", role, "digest") for role in models}
    roles = [role for role in models if role.startswith("step-") and digests[role] != digests.get("candidate")]
    points = []
    for role in [*roles, "candidate"]:
        if not case.evaluation.has(_METRICS, role, "kl", "mean"):
            continue
        kl = case.evaluation.number(_METRICS, role, "kl", "mean")
        gain = gain_of(case, role) if kl > 0.0 else None
        if gain is not None:
            points.append({"role": role, "d": math.sqrt(kl), "gain": gain[0], "se": gain[1]})
    return sorted(points, key=lambda point: point["d"])


def _human_gain(case: Case, role: str) -> tuple[float, float] | None:
    """Log odds of the win rate; half a win and half a loss are added, so that 60 wins of 60 stay finite."""
    path = (_STATISTICS, "comparisons", f"{role}_vs_reference")
    if not case.human.has(*path, "win_rate") or not case.human.has(*path, "ci95"):
        return None
    n = case.human.count(*path, "n_prompts")
    rate = (case.human.number(*path, "win_rate", low=0.0, high=1.0) * n + 0.5) / (n + 1.0)
    low, high = _ends(case, *path, "ci95")
    error = max((high - low) / (2.0 * _Z95), 0.5 / (n + 1.0))
    return math.log(rate / (1.0 - rate)), error / (rate * (1.0 - rate))


def _heldout_gain(case: Case, role: str) -> tuple[float, float] | None:
    scale = case.heldout.number("reward.json", "std", low=1e-9)
    mine, base = (rewards_by_prompt(case, name, "heldout_reward") for name in (role, "reference"))
    gains = np.array([(mine[prompt] - base[prompt]) / scale for prompt in mine if prompt in base])
    if gains.size < 2 or np.ptp(gains) == 0.0:
        return None
    return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(gains.size))


def _ends(case: Case, *path: str) -> tuple[float, float]:
    """An interval of the human evidence."""
    found = case.human.value(*path)
    numbers = isinstance(found, list) and len(found) == 2 and all(isinstance(end, float | int) for end in found)
    if not numbers or not all(math.isfinite(end) for end in found):
        raise case.human.refuse(f"{path[-1]} is {found!r}, not an interval.", *path)
    return float(found[0]), float(found[1])
