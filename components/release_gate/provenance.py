"""Is the evidence about the models that are judged? A source that is not gets a fault, and nothing in it passes."""

from __future__ import annotations

from components.release_gate.evidence import Source
from components.release_gate.findings import EvidenceFault, Finding

__all__ = ["check_provenance"]


def check_provenance(
    *,
    candidate_digest: str,
    baseline_digest: str | None,
    evaluation: Source,
    human: Source,
    reward_model: Source,
    heldout: Source,
) -> None:
    """Sets the fault of each source that is about something else.

    Args:
        candidate_digest: Digest of the policy under judgement.
        baseline_digest: Digest that the evidence's `reference` must have: of the policy that a candidate was trained
            from, or of the version that a live model replaced. None where it is not known.
        evaluation: Must have evaluated that policy.
        human: Must rest on that evaluation.
        reward_model: Must be the one that scored the evaluation.
        heldout: The same, and another model than `reward_model`, trained on other pairs.
    """
    _attempt(evaluation, _judged_another_policy, candidate_digest)
    if baseline_digest is not None:
        _attempt(evaluation, _compared_with_another_baseline, baseline_digest)
    _attempt(human, _rests_on_another_evaluation, evaluation)
    for source in (reward_model, heldout):
        _attempt(source, _did_not_score, evaluation)
    _attempt(heldout, _is_no_second_model, reward_model)


def _attempt(source: Source, check, *args: object) -> None:
    """Runs a check that returns what is wrong; a fault on the way is this source's fault too."""
    if source.fault:
        return
    try:
        problem = check(source, *args)
    except EvidenceFault as fault:
        source.fault = fault
        return
    if problem:
        source.fault = EvidenceFault(Finding.ERROR, problem, source=source.cite())


def _judged_another_policy(evaluation: Source, digest: str) -> str | None:
    found = evaluation.value("models.json", "candidate", "digest")
    if found == digest:
        return None
    return (
        f"The evaluation's candidate has digest {str(found)[:12]}, but {digest[:12]} is judged: it is about another "
        "model."
    )


def _compared_with_another_baseline(evaluation: Source, digest: str) -> str | None:
    found = evaluation.value("models.json", "reference", "digest")
    if found == digest:
        return None
    return (
        f"The evaluation's reference has digest {str(found)[:12]}, but {digest[:12]} is the baseline of the judged "
        "model: it is compared with another one."
    )


def _rests_on_another_evaluation(human: Source, evaluation: Source) -> str | None:
    if evaluation.fault:
        raise evaluation.fault
    if evaluation.digest in human.inputs.values():
        return None
    return "The human evidence does not name this evaluation among its inputs: people judged other answers."


def _did_not_score(reward_model: Source, evaluation: Source) -> str | None:
    if evaluation.fault or reward_model.digest in evaluation.inputs.values():
        return None
    return f"The evaluation was not scored by this {reward_model.name.replace('_', ' ')} ({reward_model.digest[:12]})."


def _is_no_second_model(heldout: Source, reward_model: Source) -> str | None:
    if heldout.digest == reward_model.digest:
        return "The held-out reward model is the one that was optimised: it cannot show over-optimisation."
    split = heldout.value("reward.json", "train_split")
    return (
        None
        if split == "divergence"
        else f"The held-out reward model was trained on split {split!r}, not 'divergence'."
    )
