"""The RLHF pipeline: PPO against a learned reward, held near the reference by a KL target.

What runs before and after PPO is in `pipelines.training`. One definition for every place: `pipelines.local` runs it on
this machine, `plumbline compile` writes it for a cluster.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values.

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.ppo.component import ppo
from pipelines.settings import RunSettings
from pipelines.steps import code_version
from pipelines.training import Ready, TrainingSteps, common_arguments, settings_argument

__all__ = ["PIPELINE_NAME", "build_rlhf", "rlhf_arguments"]

PIPELINE_NAME = "plumbline-rlhf"


def build_rlhf(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline for an environment: resources are fixed, all else is a parameter with the run's default.

    Args:
        settings: The run; `execution` gives the resources, the rest the parameters' defaults.

    Returns:
        A KFP pipeline.
    """
    steps = TrainingSteps.of(settings)
    default = rlhf_arguments(settings)

    @dsl.pipeline(name=PIPELINE_NAME, description="RLHF: PPO with a KL target, judged by people before it is released.")
    def rlhf(
        model_name: str = default["model_name"],
        base_model: str = default["base_model"],
        sft_data: str = default["sft_data"],
        prompt_data: str = default["prompt_data"],
        preference_data: str = default["preference_data"],
        seed: int = default["seed"],
        gate_policy: str = default["gate_policy"],
        plug_ins: list = default["plug_ins"],
        reward_rules: list = default["reward_rules"],
        reward_models: list = default["reward_models"],
        prerequisites_settings: dict = default["prerequisites_settings"],
        data_validation_settings: dict = default["data_validation_settings"],
        sft_settings: dict = default["sft_settings"],
        collection_settings: dict = default["collection_settings"],
        reward_model_settings: dict = default["reward_model_settings"],
        ppo_settings: dict = default["ppo_settings"],
        evaluation_settings: dict = default["evaluation_settings"],
        human_eval_settings: dict = default["human_eval_settings"],
    ):
        """Trains a policy with human feedback and releases it if people prefer it.

        Args:
            model_name: Registered model that this run makes a candidate for.
            base_model: Model folder or hub id that training starts from.
            sft_data: Demonstrations.
            prompt_data: Prompts to train and evaluate on.
            preference_data: Preference pairs; empty when this run collects them.
            seed: Seed of every step.
            gate_policy: `production`, `demo`, or a policy file.
            plug_ins: `module:attribute` names that steps load; checked first.
            reward_rules: `module:function` names of the rules in `ppo_settings.reward.sources`; checked and pinned.
            reward_models: Addresses of the reward models there; checked and pinned.
            prerequisites_settings: PrerequisitesSettings.
            data_validation_settings: DataValidationSettings.
            sft_settings: SFTSettings.
            collection_settings: CollectionSettings.
            reward_model_settings: RewardModelSettings.
            ppo_settings: PPOSettings.
            evaluation_settings: EvaluationSettings.
            human_eval_settings: HumanEvalSettings.
        """

        def optimise(ready: Ready) -> dsl.PipelineTask:
            return ppo(
                policy=ready.reference,
                reward_model=ready.reward,
                dataset=ready.data,
                seed=ready.seed,
                settings=ppo_settings,
                reward_digest=ready.reward_digest,
                code_digest=code_version("ppo"),
            )

        steps.run(
            optimise,
            optimiser="ppo",
            model_name=model_name,
            base_model=base_model,
            sft_data=sft_data,
            prompt_data=prompt_data,
            preference_data=preference_data,
            seed=seed,
            gate_policy=gate_policy,
            plug_ins=plug_ins,
            reward_rules=reward_rules,
            reward_models=reward_models,
            prerequisites_settings=prerequisites_settings,
            data_validation_settings=data_validation_settings,
            sft_settings=sft_settings,
            collection_settings=collection_settings,
            reward_model_settings=reward_model_settings,
            evaluation_settings=evaluation_settings,
            human_eval_settings=human_eval_settings,
        )

    return rlhf


def rlhf_arguments(settings: RunSettings) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""
    rewards = {"reward_rules": settings.reward_rules, "reward_models": settings.reward_models}
    return common_arguments(settings) | rewards | settings_argument(settings, "ppo")
