"""The preference pipeline: DPO, IPO, KTO, GRPO, RLOO or online DPO in PPO's place, and everything else as in RLHF.

What runs before and after is in `pipelines.training`; evaluation, people and gate judge the candidate as they judge
PPO's.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values.

from typing import Any

from kfp import dsl

from components.preference_optimization.component import preference_optimization
from pipelines.parameters import Given
from pipelines.settings import RunSettings
from pipelines.steps import code_version
from pipelines.training import Method, Ready, build_training, common_arguments, settings_argument, with_recipe

__all__ = ["PIPELINE_NAME", "PREFERENCE_OPTIMIZATION", "build_preference", "preference_arguments"]

PIPELINE_NAME = "plumbline-preference"


def build_preference(settings: RunSettings) -> Any:
    """Makes the KFP pipeline for a run's settings and the environment that they name."""
    return build_training(
        PREFERENCE_OPTIMIZATION,
        settings,
        name=PIPELINE_NAME,
        description="DPO, IPO, KTO, GRPO, RLOO or online DPO, judged by people before it is released.",
        told="Trains a policy on preferences without PPO and releases it if people prefer it.",
    )


def preference_arguments(settings: RunSettings) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""
    arguments = common_arguments(settings) | settings_argument(settings, "preference_optimization")
    return with_recipe(settings, arguments)


def _optimise(ready: Ready, given: Given) -> dsl.PipelineTask:
    return preference_optimization(
        policy=ready.reference,
        reward_model=ready.reward,
        dataset=ready.data,
        pairs=ready.pairs,
        seed=ready.seed,
        settings=given["preference_optimization_settings"],
        code_digest=code_version("preference_optimization"),
    )


PREFERENCE_OPTIMIZATION = Method(
    label="preference_optimization",
    optimise=_optimise,
    arguments=preference_arguments,
    meaning={"preference_optimization_settings": "PreferenceOptimizationSettings."},
)
