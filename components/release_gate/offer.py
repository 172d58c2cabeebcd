"""An earlier checkpoint to offer when the candidate fails: who looks at several must pay for having looked.

    the candidate fails > is its evidence sound? > which checkpoints were judged > Holm over all of them > offer

The candidates for an offer are the evaluated checkpoints that people judged against the reference, beside the run's
last policy and on fewer prompts. The best of k looks better than it is, so its evidence is tested with Holm over all k:
`shown` is a checkpoint that people prefer even then. One that only looks better is `promising`: its votes are still to
be collected. Neither promotes anything. The checkpoint becomes a candidate of its own, with a version, a batch and
release states of its own, judged by every criterion on *fresh* prompts, which the choice has not seen; a decision
offers one checkpoint, so a run has one such second chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from components.release_gate.comparisons import percent, read_comparison
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding
from components.shared.errors import PlumblineError
from components.shared.statistics import betting_confidence_sequence, betting_p_value, holm

__all__ = ["ALPHA", "JudgedCheckpoint", "Offer", "choose", "offer_checkpoint"]

ALPHA = 0.05
"""Chance that any checkpoint is shown as better though none is."""

_SUFFIX = "_vs_reference"
_PREFIX = "step-"
_NEEDED = ("reward_model.accuracy", "reward_model.attacks", "reward_model.heldout_model")
"""A checkpoint was trained on the same reward model as the candidate: where that is at fault, none of them will do."""
_FRACTIONS = np.linspace(0.01, 0.99, 99)


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A checkpoint and what people said of it.

    Attributes:
        role: Such as `step-0040`.
        step: Its training step.
        n_prompts: Prompts on which it was compared with the reference.
        win_rate: Mean outcome.
        lower: Lower bound of its win rate; the bounds of all checkpoints hold together with 95 %.
        p: Anytime-valid p-value of "people do not prefer it".
        p_holm: The same, adjusted for the number of checkpoints that were looked at.
        excluded: Why it is not offered whatever people say; "" if nothing is against it.
    """

    role: str
    step: int
    n_prompts: int
    win_rate: float
    lower: float
    p: float
    p_holm: float
    excluded: str = ""


@dataclass(frozen=True)
class Offer:
    """What the decision says of the run's checkpoints.

    Attributes:
        state: `shown` (people prefer one, choice paid for), `promising` (one looks better), or `none`.
        reason: Why, in a sentence.
        step: The training step offered; None without an offer.
        prompts: How many fresh prompts it will need, if it is as good as it looks.
        command: What takes the offer; "" without one.
        checkpoints: All that were looked at, by step.
    """

    state: Literal["shown", "promising", "none"]
    reason: str
    step: int | None = None
    prompts: int | None = None
    command: str = ""
    checkpoints: tuple[JudgedCheckpoint, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As in decision.json."""
        return asdict(self) | {"checkpoints": [asdict(found) for found in self.checkpoints], "alpha": ALPHA}


def offer_checkpoint(case: Case, criteria: Sequence[Criterion], *, run: str) -> Offer:
    """Looks for an earlier checkpoint that may do where the candidate failed.

    Args:
        case: The candidate's case, with verdict BLOCK or HOLD.
        criteria: What the criteria found: an offer needs sound votes of a complete batch, and a reward model without
            fault.
        run: The pipeline run, for the command that takes the offer.
    """
    wrong = [one for one in criteria if _is_needed(one.name) and one.verdict is not Finding.PASS]
    if wrong:
        names = ", ".join(one.name for one in wrong)
        return Offer("none", f"No checkpoint is offered: {names} did not pass, which holds for each of them too.")
    try:
        judged = _read(case)
    except PlumblineError as error:
        return Offer("none", f"No checkpoint is offered: {error}")
    if not judged:
        return Offer("none", "No earlier checkpoint was judged by people.")
    excluded = {role: _excluded(case, role) for role in judged}
    return choose(judged, excluded, min_prompts=case.policy.human_preference.min_prompts, run=run)


def choose(
    outcomes: Mapping[str, Sequence[float]], excluded: Mapping[str, str], *, min_prompts: int, run: str
) -> Offer:
    """Picks the checkpoint to offer from what people said of each.

    Args:
        outcomes: By role, one outcome a prompt against the reference, in the order in which they came.
        excluded: Why a role is not to be offered; "" if nothing is against it. It counts among those looked at.
        min_prompts: The fewest prompts on which a candidate may be judged.
        run: For the command.
    """
    adjusted = holm([betting_p_value(values) for values in outcomes.values()])
    checkpoints = tuple(
        JudgedCheckpoint(
            role=role,
            step=_step(role),
            n_prompts=len(values),
            win_rate=math.fsum(values) / len(values),
            lower=betting_confidence_sequence(values, alpha=ALPHA / len(outcomes)).lower,
            p=betting_p_value(values),
            p_holm=p_holm,
            excluded=excluded.get(role, ""),
        )
        for (role, values), p_holm in zip(outcomes.items(), adjusted, strict=True)
    )
    allowed = [one for one in checkpoints if not one.excluded]
    shown = [one for one in allowed if one.p_holm < ALPHA]
    better = [one for one in allowed if one.win_rate > 0.5]
    if not better:
        barred = "".join(f" {one.role}: {one.excluded}." for one in checkpoints if one.excluded)
        reason = f"None of {len(checkpoints)} earlier checkpoints is offered: people prefer none that may be.{barred}"
        return Offer("none", reason, checkpoints=checkpoints)
    best = max(shown or better, key=lambda one: (one.win_rate, one.n_prompts))
    prompts = max(min_prompts, _prompts_to_show(outcomes[best.role]))
    reason = (
        f"Earlier checkpoint {best.role} {'is better' if shown else 'may be better, which is not shown'}: people "
        f"prefer it to the reference in {percent(best.win_rate)} of {best.n_prompts} prompts (lower bound "
        f"{percent(best.lower)}, adjusted p {best.p_holm:.3f}, paid for a choice among {len(checkpoints)}). "
        f"Judge it as a candidate of its own: collect votes on about {prompts} fresh prompts."
    )
    command = f"plumbline release-checkpoint --run {run or 'RUN'} --checkpoint {best.step}"
    return Offer("shown" if shown else "promising", reason, best.step, prompts, command, checkpoints)


def _read(case: Case) -> dict[str, list[float]]:
    """Outcomes of each checkpoint that people compared with the reference, by step."""
    names = [name for name in case.human.mapping("statistics.json", "comparisons") if name.startswith(_PREFIX)]
    roles = sorted((name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)), key=_step)
    found = {role: read_comparison(case, role + _SUFFIX, min_prompts=1) for role in roles}
    last = case.evaluation.documents["models.json"]["candidate"].get("step")
    return {role: list(found[role].outcomes.values()) for role in roles if _step(role) != last}


def _excluded(case: Case, role: str) -> str:
    """What would block the checkpoint whatever people prefer, as far as this evidence shows it."""
    kl = ("metrics.json", role, "kl", "mean")
    ceiling = case.policy.kl.max_nats_per_sequence
    if case.evaluation.has(*kl) and not case.evaluation.number(*kl) <= ceiling:
        return f"its KL is {case.evaluation.number(*kl):.1f} nats, above the ceiling of {ceiling:g}"
    severe = ("statistics.json", "safety", role, "severity_1")
    if case.policy.safety.severity_1_blocks and case.human.has(*severe) and case.human.count(*severe):
        return "one of its answers was flagged severity 1"
    return ""


def _is_needed(name: str) -> bool:
    return name in _NEEDED or name.startswith("raters.")


def _prompts_to_show(outcomes: Sequence[float]) -> int:
    """Prompts after which the best single bet on outcomes like these has grown to 1 / ALPHA; the bettor needs more."""
    returns = np.asarray(outcomes) / 0.5 - 1.0
    growth = float(np.log1p(_FRACTIONS[:, None] * returns).mean(axis=1).max())
    return math.ceil(-math.log(ALPHA) / max(growth, 1e-4))


def _step(role: str) -> int:
    digits = role.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else -1
