"""The RLHF pipeline: PPO against a learned reward, held near the reference by a KL target.

What runs before and after PPO is in `pipelines.training`. One definition for every place: `pipelines.local` runs it on
this machine, `pipelines.cluster` writes it for a cluster and submits it.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values.

from typing import Any

from kfp import dsl

from components.ppo.component import ppo
from pipelines.parameters import Given
from pipelines.settings import RunSettings
from pipelines.steps import code_version
from pipelines.training import Method, Ready, build_training, common_arguments, settings_argument, with_recipe

__all__ = ["PIPELINE_NAME", "PPO", "build_rlhf", "rlhf_arguments"]

PIPELINE_NAME = "plumbline-rlhf"


def build_rlhf(settings: RunSettings) -> Any:
    """Makes the KFP pipeline for a run's settings and the environment that they name."""
    return build_training(
        PPO,
        settings,
        name=PIPELINE_NAME,
        description="RLHF: PPO with a KL target, judged by people before it is released.",
        told="Trains a policy with human feedback and releases it if people prefer it.",
    )


def rlhf_arguments(settings: RunSettings) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""
    rewards = {"reward_rules": settings.reward_rules, "reward_models": settings.reward_models}
    return with_recipe(settings, common_arguments(settings) | rewards | settings_argument(settings, "ppo"))


def _optimise(ready: Ready, given: Given) -> dsl.PipelineTask:
    return ppo(
        policy=ready.reference,
        reward_model=ready.reward,
        dataset=ready.data,
        seed=ready.seed,
        settings=given["ppo_settings"],
        reward_digest=ready.reward_digest,
        code_digest=code_version("ppo"),
    )


PPO = Method(
    label="ppo",
    optimise=_optimise,
    arguments=rlhf_arguments,
    meaning={
        "reward_rules": "`module:function` names of the rules in `ppo_settings.reward.sources`; checked and pinned.",
        "reward_models": "Addresses of the reward models there; checked and pinned.",
        "ppo_settings": "PPOSettings.",
    },
)
