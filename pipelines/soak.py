"""Soak: fresh human evidence on the live champion against its predecessor, and the rollback when it turns.

    live_models > evaluation (fresh prompts) > human_eval > release_gate > roll_back | keep_champion > report

The reward models and prompts are those of the run that released the champion, given as addresses.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.evaluation.component import evaluation
from components.release_gate.component import live_models
from components.report.component import finish, report
from components.shared.settings import as_parameter
from pipelines.release import build_live_judgement
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places

__all__ = ["PIPELINE_NAME", "build_soak", "soak_arguments"]

PIPELINE_NAME = "plumbline-soak"


def build_soak(settings: RunSettings) -> Callable[..., Any]:
    """Makes the soak pipeline for an environment.

    Args:
        settings: The settings of the run that released the champion.

    Returns:
        A KFP pipeline.
    """
    light, train = places(settings)
    judge_live = build_live_judgement(light)
    default = soak_arguments(settings, artifacts={})

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="Fresh human evidence on the live champion; rolls back when it turns.",
        pipeline_config=pipeline_config(settings),
    )
    def soak(
        dataset_uri: str,
        reward_model_uri: str,
        heldout_reward_model_uri: str,
        reference_uri: str,
        model_name: str = default["model_name"],
        seed: int = default["seed"],
        gate_policy: str = default["gate_policy"],
        evaluation_settings: dict = default["evaluation_settings"],
        human_eval_settings: dict = default["human_eval_settings"],
    ):
        """Judges the live champion on fresh prompts.

        Args:
            dataset_uri: Validated dataset of the run that released the champion; its fresh prompts are used.
            reward_model_uri: Reward model that the champion was trained on.
            heldout_reward_model_uri: Reward model that was never optimised.
            reference_uri: SFT policy that KL is measured against.
            model_name: Registered model.
            seed: Seed of sampling and raters.
            gate_policy: `production`, `demo`, or a policy file.
            evaluation_settings: EvaluationSettings.
            human_eval_settings: HumanEvalSettings.
        """
        ended = place(finish(model_name=model_name), light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            live = place(live_models(model_name=model_name), light, name="live_models", cache=False)

            def fetched(uri: Any, kind: type[dsl.Artifact]) -> Any:
                return dsl.importer(artifact_uri=uri, artifact_class=kind, reimport=False).output

            dataset = fetched(dataset_uri, dsl.Dataset)
            learned_reward = fetched(reward_model_uri, dsl.Model)
            heldout_reward = fetched(heldout_reward_model_uri, dsl.Model)
            evaluated = evaluation(
                dataset=dataset,
                reward_model=learned_reward,
                heldout_reward_model=heldout_reward,
                kl_reference=fetched(reference_uri, dsl.Model),
                candidate_uri=live.outputs["live_uri"],
                candidate_digest=live.outputs["live_digest"],
                reference_uri=live.outputs["predecessor_uri"],
                reference_digest=live.outputs["predecessor_digest"],
                seed=seed,
                settings=evaluation_settings,
                code_digest=code_version("evaluation"),
            )
            place(evaluated, train, name="evaluation", cache=False)
            judged = judge_live(
                evaluation=evaluated.outputs["evaluation"],
                dataset=dataset,
                reward_model=learned_reward,
                heldout_reward_model=heldout_reward,
                model_name=model_name,
                policy=gate_policy,
                seed=seed,
                human_eval_settings=human_eval_settings,
            )
            written = report(
                reward_model=learned_reward,
                heldout_reward_model=heldout_reward,
                evaluation=evaluated.outputs["evaluation"],
                evidence=judged.outputs["evidence"],
                decision=judged.outputs["decision"],
                model_name=model_name,
                seed=seed,
            )
            place(written.after(judged), light, name="report", cache=False)

    return soak


def soak_arguments(settings: RunSettings, *, artifacts: dict[str, str]) -> dict[str, Any]:
    """The pipeline's parameters.

    Args:
        settings: The settings of the run that released the champion.
        artifacts: Addresses of that run's artifacts by role; without them the parameters stay open.
    """
    roles = {
        "dataset_uri": "dataset",
        "reward_model_uri": "reward_model",
        "heldout_reward_model_uri": "heldout_reward_model",
        "reference_uri": "sft",
    }
    return {
        **{name: artifacts[role] for name, role in roles.items() if role in artifacts},
        "model_name": settings.model_name,
        "seed": settings.seed,
        "gate_policy": settings.release_gate.policy,
        "evaluation_settings": as_parameter(settings.soak.evaluation),
        "human_eval_settings": as_parameter(settings.soak.human_eval),
    }
