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
from components.report.component import finish
from components.shared.settings import as_parameter
from pipelines.parameters import Given, make_pipeline
from pipelines.release import build_live_judgement, fetched, tell_in_report
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places

__all__ = ["PIPELINE_NAME", "build_soak", "soak_arguments"]

PIPELINE_NAME = "plumbline-soak"

_MODELS = ("dataset", "reward_model", "heldout_reward_model")
_MEANING = {
    "dataset_uri": "Validated dataset of the run that released the champion; its fresh prompts are used.",
    "reward_model_uri": "Reward model that the champion was trained on.",
    "heldout_reward_model_uri": "Reward model that was never optimised.",
    "reference_uri": "SFT policy that KL is measured against.",
    "model_name": "Registered model.",
    "seed": "Seed of sampling and raters.",
    "gate_policy": "`production`, `demo`, or a policy file.",
    "evaluation_settings": "EvaluationSettings.",
    "human_eval_settings": "HumanEvalSettings.",
}


def build_soak(settings: RunSettings) -> Callable[..., Any]:
    """Makes the soak pipeline for an environment.

    Args:
        settings: The settings of the run that released the champion.

    Returns:
        A KFP pipeline.
    """
    light, train = places(settings)
    judge_live = build_live_judgement(light)

    def body(given: Given) -> None:
        ended = place(finish(model_name=given["model_name"]), light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            live = place(live_models(model_name=given["model_name"]), light, name="live_models", cache=False)
            models = {role: fetched(role, given[f"{role}_uri"]) for role in _MODELS}
            task: Any = evaluation(
                **models,
                kl_reference=fetched("reference", given["reference_uri"]),
                candidate_uri=live.outputs["live_uri"],
                candidate_digest=live.outputs["live_digest"],
                reference_uri=live.outputs["predecessor_uri"],
                reference_digest=live.outputs["predecessor_digest"],
                seed=given["seed"],
                settings=given["evaluation_settings"],
                code_digest=code_version("evaluation"),
            )
            answers = place(task, train, name="evaluation", cache=False).outputs["evaluation"]
            about = {"model_name": given["model_name"], "seed": given["seed"]}
            asked = {"policy": given["gate_policy"], "human_eval_settings": given["human_eval_settings"]}
            judged = judge_live(**models, evaluation=answers, **about, **asked)
            rewards = {role: model for role, model in models.items() if role != "dataset"}
            tell_in_report(light, judged, {**rewards, "evaluation": answers}, **about)

    return make_pipeline(
        body,
        defaults={**{f"{role}_uri": str for role in (*_MODELS, "reference")}, **soak_arguments(settings, artifacts={})},
        meaning=_MEANING,
        told="Judges the live champion on fresh prompts.",
        name=PIPELINE_NAME,
        description="Fresh human evidence on the live champion; rolls back when it turns.",
        pipeline_config=pipeline_config(settings),
    )


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
