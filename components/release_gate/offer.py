"""An earlier checkpoint to offer when the candidate fails: one that people prefer even after paying for the choice."""

from __future__ import annotations

from components.release_gate.comparisons import percent, read_comparison
from components.release_gate.evidence import Case
from components.shared.errors import PlumblineError
from components.shared.statistics import betting_confidence_sequence

__all__ = ["offer_checkpoint"]

_SUFFIX = "_vs_reference"


def offer_checkpoint(case: Case) -> str | None:
    """A sentence that offers the best earlier checkpoint, or None.

    The best of k checkpoints looks better than it is, so its lower bound is taken at 5 % / k. The offer promotes
    nothing: the checkpoint is then judged as a candidate of its own, on fresh prompts.
    """
    found = {}
    try:
        names = [name for name in case.human.mapping("statistics.json", "comparisons") if name.startswith("step-")]
        for name in names:
            found[name] = read_comparison(case, name, min_prompts=case.policy.human_preference.min_prompts)
    except PlumblineError:
        return None  # what is wrong with the evidence is said by the criteria
    if not found:
        return None
    best = max(found, key=lambda name: found[name].win_rate)
    outcomes = list(found[best].outcomes.values())
    lower = betting_confidence_sequence(outcomes, alpha=0.05 / len(found)).lower
    if lower <= 0.5:
        return None
    return (
        f"Earlier checkpoint {best.removesuffix(_SUFFIX)} may do: people prefer it to the reference in "
        f"{percent(found[best].win_rate)} of {len(outcomes)} prompts (lower bound {percent(lower)}, paid for a choice "
        f"among {len(found)}). Judge it as a candidate of its own on fresh prompts."
    )
