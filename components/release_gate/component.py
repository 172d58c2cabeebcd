"""KFP shells of the release gate: judge, promote, roll back, keep."""

from typing import NamedTuple, Optional

from kfp import dsl

from components.shared.images import LIGHT_IMAGE

__all__ = ["keep_champion", "live_models", "open_release", "promote", "release_gate", "roll_back"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def open_release(
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    reward_model: dsl.Input[dsl.Model],
    heldout_reward_model: dsl.Input[dsl.Model],
    digests: dict,
    order: str,
    attempt: int,
    holder: str,
    candidate: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads typing.Optional only)
    history: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
):
    """Opens a release run: makes sure that it is this run's turn, and that the artifacts are those that were ordered.

    Args:
        evaluation: Answers, models and figures.
        dataset: Validated dataset with the prompts.
        reward_model: Reward model that was optimised.
        heldout_reward_model: Reward model that never was.
        digests: Digest that each artifact must have, by role.
        order: Release order that this run was started for; empty for none.
        attempt: As which attempt.
        holder: Names this run.
        candidate: Policy under judgement; absent for a live model.
        history: Its training history.
    """
    from components.release_gate.opening import open_release as run_opening

    given = {
        "candidate": candidate,
        "evaluation": evaluation,
        "dataset": dataset,
        "reward_model": reward_model,
        "heldout_reward_model": heldout_reward_model,
        "history": history,
    }
    folders = {role: artifact.path for role, artifact in given.items() if artifact}
    run_opening(folders=folders, digests=digests, order=order, attempt=attempt, holder=holder)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def release_gate(
    evaluation: dsl.Input[dsl.Artifact],
    evidence: dsl.Input[dsl.Artifact],
    reward_model: dsl.Input[dsl.Model],
    heldout_reward_model: dsl.Input[dsl.Model],
    decision: dsl.Output[dsl.Artifact],
    model_name: str,
    policy: str,
    seed: int,
    code_digest: str,
    mode: str = "candidate",
    requested_by: str = "",
    candidate: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads typing.Optional only)
    history: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
) -> NamedTuple("Verdict", [("verdict", str), ("promote", bool), ("roll_back", bool)]):  # type: ignore[valid-type]
    """Judges a candidate, or the live model, on its evidence; puts version and verdict on the ledger.

    Args:
        evaluation: Answers, models and figures.
        evidence: What people said, and its statistics.
        reward_model: Reward model that was optimised.
        heldout_reward_model: Reward model that never was.
        decision: Verdict, criteria and digests.
        model_name: Registered model.
        policy: Name of a gate policy (production, demo), or path of one.
        seed: Seed of the bootstrap.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
        mode: candidate (may it become champion?) or live (may it stay?).
        requested_by: Who asks for the release, and may not approve it; empty where only the environment tells.
        candidate: Policy under judgement; absent in mode live, where the ledger names it.
        history: Training history of the candidate.

    Returns:
        verdict: PROMOTE, HOLD, BLOCK or ERROR of a candidate; KEEP, HOLD, ROLLBACK or ERROR of a live model.
        promote: The candidate may go live.
        roll_back: The live model is to be rolled back.
    """
    from components.release_gate.stage import run_gate
    from components.shared.artifacts import require_as_told

    rewards = {"reward_model": reward_model, "heldout_reward_model": heldout_reward_model}
    require_as_told(candidate=candidate, evaluation=evaluation, evidence=evidence, history=history, **rewards)
    result = run_gate(
        candidate=candidate.path if candidate else "",
        evaluation=evaluation.path,
        evidence=evidence.path,
        reward_model=reward_model.path,
        heldout_reward_model=heldout_reward_model.path,
        history=history.path if history else "",
        output=decision.path,
        mode=mode,  # type: ignore[arg-type]
        policy=policy,
        model_name=model_name,
        seed=seed,
        locations={
            "candidate": candidate.uri if candidate else "",
            "evaluation": evaluation.uri,
            "reward_model": reward_model.uri,
            "heldout_reward_model": heldout_reward_model.uri,
            "history": history.uri if history else "",
        },
        requested_by=requested_by,
    )
    decision.metadata.update(result)
    return result["verdict"], result["promote"], result["roll_back"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def promote(decision: dsl.Input[dsl.Artifact], code_digest: str) -> bool:
    """Makes the judged version the champion, or says how many approvals it still awaits.

    Args:
        decision: Decision with verdict PROMOTE.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.

    Returns:
        Whether the version is live.
    """
    from components.release_gate.stage import run_promote
    from components.shared.artifacts import require_as_told

    require_as_told(decision=decision)
    return run_promote(decision=decision.path)["promoted"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def roll_back(decision: dsl.Input[dsl.Artifact], code_digest: str) -> float:
    """Takes the live version back and restores its predecessor.

    Args:
        decision: Decision with verdict ROLLBACK.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.

    Returns:
        Seconds that it took.
    """
    from components.release_gate.stage import run_rollback
    from components.shared.artifacts import require_as_told

    require_as_told(decision=decision)
    return run_rollback(decision=decision.path)["seconds"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def keep_champion(decision: dsl.Input[dsl.Artifact], code_digest: str) -> str:
    """Leaves the champion where it is and says why, in plain words.

    Args:
        decision: Decision of any verdict that moves nothing.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.

    Returns:
        Verdict, version and reasons in a sentence or two; for people, never for a condition.
    """
    from components.release_gate.stage import run_keep_champion

    return run_keep_champion(decision=decision.path)["message"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def live_models(
    model_name: str,
) -> NamedTuple(
    "Live",
    [
        ("live_version", str),
        ("live_digest", str),
        ("live_uri", str),
        ("predecessor_digest", str),
        ("predecessor_uri", str),
    ],
):  # type: ignore[valid-type]
    """Resolves the live model and the one that it replaced to digests, so that soak compares the right two.

    Args:
        model_name: Registered model.

    Returns:
        live_version: Version of the live model.
        live_digest: Its digest.
        live_uri: Where it lies.
        predecessor_digest: Digest of the model that it replaced; empty for the first champion.
        predecessor_uri: Where that lies; empty for the first champion.
    """
    from collections import namedtuple

    from components.release_gate.live import resolve_live_models

    found = resolve_live_models(model_name)
    fields = ["live_version", "live_digest", "live_uri", "predecessor_digest", "predecessor_uri"]
    return namedtuple("Live", fields)(*(getattr(found, field) for field in fields))
