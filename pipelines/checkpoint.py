"""An offered checkpoint, released as a candidate of its own on fresh prompts.

    checkpoint_candidate > evaluation (fresh prompts) > release (human_eval > release_gate > promote | keep) > report

The gate of a run whose last policy failed may offer one of its earlier checkpoints. The offer was chosen by looking at
several, so nothing of what it was chosen by is used again: the checkpoint is a new version with a batch of its own on
prompts that the choice has not seen, and every criterion judges it. Everything else is that run's, given as addresses.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.evaluation.component import checkpoint_candidate, evaluation
from components.report.component import finish, report
from components.shared.settings import as_parameter
from pipelines.release import build_release
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places

__all__ = ["PIPELINE_NAME", "build_checkpoint_release", "checkpoint_arguments"]

PIPELINE_NAME = "plumbline-release-checkpoint"

_ROLES = {
    "dataset_uri": "dataset",
    "reward_model_uri": "reward_model",
    "heldout_reward_model_uri": "heldout_reward_model",
    "reference_uri": "sft",
    "checkpoints_uri": "checkpoints",
    "history_uri": "history",
}


def build_checkpoint_release(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline for an environment.

    Args:
        settings: The settings of the run whose checkpoint it is.

    Returns:
        A KFP pipeline.
    """
    light, train = places(settings)
    release = build_release(light)

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="Judges an offered checkpoint as a candidate, on fresh prompts.",
        pipeline_config=pipeline_config(settings),
    )
    def release_checkpoint(
        dataset_uri: str,
        reward_model_uri: str,
        heldout_reward_model_uri: str,
        reference_uri: str,
        checkpoints_uri: str,
        history_uri: str,
        step: int,
        model_name: str,
        gate_policy: str,
        seed: int,
        evaluation_settings: dict,
        human_eval_settings: dict,
        champion_uri: str = "",
        champion_digest: str = "",
    ):
        """Releases a checkpoint.

        Args:
            dataset_uri: Validated dataset of the run; its fresh prompts are used.
            reward_model_uri: Reward model that the run optimised.
            heldout_reward_model_uri: Reward model that was never optimised.
            reference_uri: SFT policy that the run trained from.
            checkpoints_uri: Checkpoints of the run.
            history_uri: Training history of the run.
            step: Training step of the checkpoint.
            model_name: Registered model.
            gate_policy: `production`, `demo`, or a policy file.
            seed: Seed of sampling and raters.
            evaluation_settings: EvaluationSettings.
            human_eval_settings: HumanEvalSettings.
            champion_uri: The live policy in the registry; empty if there is none.
            champion_digest: Its digest.
        """
        ended = place(finish(model_name=model_name), light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):

            def fetched(uri: Any, kind: type[dsl.Artifact]) -> Any:
                return dsl.importer(artifact_uri=uri, artifact_class=kind, reimport=False).output

            dataset, history = fetched(dataset_uri, dsl.Dataset), fetched(history_uri, dsl.Artifact)
            reward = fetched(reward_model_uri, dsl.Model)
            heldout_reward = fetched(heldout_reward_model_uri, dsl.Model)
            reference = fetched(reference_uri, dsl.Model)
            made = checkpoint_candidate(
                checkpoints=fetched(checkpoints_uri, dsl.Artifact),
                reference=reference,
                step=step,
                code_digest=code_version("evaluation"),
            )
            place(made, train, name="checkpoint_candidate", cache=False)
            evaluated = evaluation(
                reference=reference,
                candidate=made.outputs["candidate"],
                checkpoints=made.outputs["earlier"],
                reward_model=reward,
                heldout_reward_model=heldout_reward,
                dataset=dataset,
                champion_uri=champion_uri,
                champion_digest=champion_digest,
                seed=seed,
                settings=evaluation_settings,
                code_digest=code_version("evaluation"),
            )
            place(evaluated, train, name="evaluation", cache=False)
            released = release(
                candidate=made.outputs["candidate"],
                evaluation=evaluated.outputs["evaluation"],
                dataset=dataset,
                reward_model=reward,
                heldout_reward_model=heldout_reward,
                history=history,
                model_name=model_name,
                policy=gate_policy,
                seed=seed,
                human_eval_settings=human_eval_settings,
            )
            written = report(
                reward_model=reward,
                heldout_reward_model=heldout_reward,
                candidate=made.outputs["candidate"],
                evaluation=evaluated.outputs["evaluation"],
                evidence=released.outputs["evidence"],
                decision=released.outputs["decision"],
                model_name=model_name,
                seed=seed,
            )
            place(written.after(released), light, name="report", cache=False)

    return release_checkpoint


def checkpoint_arguments(
    settings: RunSettings, *, step: int, artifacts: dict[str, str], champion: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """The pipeline's parameters.

    Args:
        settings: The settings of the run.
        step: The checkpoint.
        artifacts: Addresses of the run's artifacts by role.
        champion: URI and digest of the live policy; empty if there is none.
    """
    evaluated, asked = settings.evaluation, settings.human_eval
    prompts = {**evaluated.prompts, "fresh": asked.n_prompts}
    prompts.pop("human_eval", None)  # those are the prompts that the checkpoint was chosen by
    return {
        **{name: artifacts[role] for name, role in _ROLES.items()},
        "step": step,
        "model_name": settings.model_name,
        "gate_policy": settings.release_gate.policy,
        "seed": settings.seed,
        "evaluation_settings": as_parameter(
            evaluated.model_copy(update={"prompts": prompts, "checkpoint_set": "fresh"})
        ),
        "human_eval_settings": as_parameter(asked.model_copy(update={"prompt_set": "fresh", "checkpoint_prompts": 0})),
        "champion_uri": champion[0],
        "champion_digest": champion[1],
    }
