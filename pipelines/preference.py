"""The preference pipeline: DPO, IPO, KTO, GRPO, RLOO or online DPO in PPO's place, and everything else as in RLHF.

What runs before and after is in `pipelines.training`; evaluation, people and gate judge the candidate as they judge
PPO's.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values.

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.preference_optimization.component import preference_optimization
from pipelines.settings import RunSettings
from pipelines.steps import code_version
from pipelines.training import Ready, TrainingSteps, common_arguments, settings_argument

__all__ = ["PIPELINE_NAME", "build_preference", "preference_arguments"]

PIPELINE_NAME = "plumbline-preference"


def build_preference(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline for an environment: resources are fixed, all else is a parameter with the run's default.

    Args:
        settings: The run; `execution` gives the resources, the rest the parameters' defaults.

    Returns:
        A KFP pipeline.
    """
    steps = TrainingSteps.of(settings)
    default = preference_arguments(settings)

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="DPO, IPO, KTO, GRPO, RLOO or online DPO, judged by people before it is released.",
    )
    def preference(
        model_name: str = default["model_name"],
        base_model: str = default["base_model"],
        sft_data: str = default["sft_data"],
        prompt_data: str = default["prompt_data"],
        preference_data: str = default["preference_data"],
        seed: int = default["seed"],
        gate_policy: str = default["gate_policy"],
        plug_ins: list = default["plug_ins"],
        prerequisites_settings: dict = default["prerequisites_settings"],
        data_validation_settings: dict = default["data_validation_settings"],
        sft_settings: dict = default["sft_settings"],
        collection_settings: dict = default["collection_settings"],
        reward_model_settings: dict = default["reward_model_settings"],
        preference_optimization_settings: dict = default["preference_optimization_settings"],
        evaluation_settings: dict = default["evaluation_settings"],
        human_eval_settings: dict = default["human_eval_settings"],
    ):
        """Trains a policy on preferences without PPO and releases it if people prefer it.

        Args:
            model_name: Registered model that this run makes a candidate for.
            base_model: Model folder or hub id that training starts from.
            sft_data: Demonstrations.
            prompt_data: Prompts to train and evaluate on.
            preference_data: Preference pairs; empty when this run collects them.
            seed: Seed of every step.
            gate_policy: `production`, `demo`, or a policy file.
            plug_ins: `module:attribute` names that steps load; checked first.
            prerequisites_settings: PrerequisitesSettings.
            data_validation_settings: DataValidationSettings.
            sft_settings: SFTSettings.
            collection_settings: CollectionSettings.
            reward_model_settings: RewardModelSettings.
            preference_optimization_settings: PreferenceOptimizationSettings.
            evaluation_settings: EvaluationSettings.
            human_eval_settings: HumanEvalSettings.
        """

        def optimise(ready: Ready) -> dsl.PipelineTask:
            return preference_optimization(
                policy=ready.reference,
                reward_model=ready.reward,
                dataset=ready.data,
                pairs=ready.pairs,
                seed=ready.seed,
                settings=preference_optimization_settings,
                code_digest=code_version("preference_optimization"),
            )

        steps.run(
            optimise,
            optimiser="preference_optimization",
            model_name=model_name,
            base_model=base_model,
            sft_data=sft_data,
            prompt_data=prompt_data,
            preference_data=preference_data,
            seed=seed,
            gate_policy=gate_policy,
            plug_ins=plug_ins,
            prerequisites_settings=prerequisites_settings,
            data_validation_settings=data_validation_settings,
            sft_settings=sft_settings,
            collection_settings=collection_settings,
            reward_model_settings=reward_model_settings,
            evaluation_settings=evaluation_settings,
            human_eval_settings=human_eval_settings,
        )

    return preference


def preference_arguments(settings: RunSettings) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""
    return common_arguments(settings) | settings_argument(settings, "preference_optimization")
