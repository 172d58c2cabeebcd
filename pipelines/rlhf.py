"""The RLHF pipeline: what runs after what.

    prerequisites > data_validation > sft > collection > data_validation (pairs) > reward_model + held-out reward model
        > reward_model_check > ppo > evaluation > release (human_eval > release_gate > promote | keep_champion) > report

One definition for every place: `pipelines.local` runs it on this machine, `plumbline compile` writes it for a cluster.
The exit handler tells how it ended, whatever happened.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from components.collection.component import collection
from components.data_validation.component import data_validation
from components.evaluation.component import evaluation
from components.ppo.component import ppo
from components.prerequisites.component import prerequisites
from components.report.component import finish, report
from components.reward_model.component import reward_model, reward_model_check
from components.sft.component import sft
from components.shared.settings import as_parameter
from pipelines.release import build_release
from pipelines.settings import RunSettings, StepResources
from pipelines.steps import code_version, place

__all__ = ["PIPELINE_NAME", "build_rlhf", "rlhf_arguments"]

PIPELINE_NAME = "plumbline-rlhf"


def build_rlhf(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline for an environment: resources are fixed, all else is a parameter with the run's default.

    Args:
        settings: The run; `execution` gives the resources, the rest the parameters' defaults.

    Returns:
        A KFP pipeline.
    """
    light, train = settings.execution.light, settings.execution.train
    steps = _PureSteps(light, train)
    release = build_release(light)
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
        ended = place(finish(model_name=model_name), light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            ready = prerequisites(
                base_model=base_model,
                sft_data=sft_data,
                prompt_data=prompt_data,
                preference_data=preference_data,
                model_name=model_name,
                plug_ins=plug_ins,
                reward_rules=reward_rules,
                reward_models=reward_models,
                settings=prerequisites_settings,
            )
            place(ready, train if settings.prerequisites.require_gpu else light, name="prerequisites", cache=False)
            data = steps.validated(ready, base_model, data_validation_settings, sft_data, prompt_data)
            reference = steps.tuned(ready, data, base_model, seed, sft_settings)
            raw_pairs = steps.collected(ready, reference, data, preference_data, seed, collection_settings)
            pairs = steps.validated_pairs(ready, raw_pairs, data, base_model, data_validation_settings)

            reward = steps.reward_model(reference, pairs, "train", seed, reward_model_settings)
            checked = place(reward_model_check(reward_model=reward), light, name="reward_model_check", cache=False)
            heldout_reward = steps.reward_model(
                reference, pairs, "divergence", seed, reward_model_settings, after=checked
            )
            optimised = steps.optimised(ready, reference, reward, data, seed, ppo_settings, after=checked)
            evaluated = steps.evaluated(
                ready, reference, optimised, reward, heldout_reward, data, seed, evaluation_settings
            )
            released = release(
                candidate=optimised["candidate"],
                evaluation=evaluated,
                dataset=data,
                reward_model=reward,
                heldout_reward_model=heldout_reward,
                history=optimised["history"],
                model_name=model_name,
                policy=gate_policy,
                seed=seed,
                human_eval_settings=human_eval_settings,
            )
            written = report(
                dataset=data,
                preferences=pairs,
                sft=reference,
                reward_model=reward,
                heldout_reward_model=heldout_reward,
                history=optimised["history"],
                candidate=optimised["candidate"],
                evaluation=evaluated,
                evidence=released.outputs["evidence"],
                decision=released.outputs["decision"],
                model_name=model_name,
                seed=seed,
            )
            place(written.after(released), light, name="report", cache=False)

    return rlhf


@dataclass(frozen=True)
class _PureSteps:
    """The steps that KFP may cache: each takes parameters and outputs of earlier steps, and gives its own outputs."""

    light: StepResources
    train: StepResources

    def validated(self, ready: Any, base_model: Any, settings: Any, sft_data: Any, prompt_data: Any) -> Any:
        task = data_validation(
            sft_data=sft_data,
            prompt_data=prompt_data,
            base_model=base_model,
            settings=settings,
            data_digest=ready.outputs["data_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="data_validation", cache=True).outputs["dataset"]

    def tuned(self, ready: Any, data: Any, base_model: Any, seed: Any, settings: Any) -> Any:
        task = sft(
            data=data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("sft"),
        )
        return place(task, self.train, name="sft", cache=True).outputs["policy"]

    def collected(self, ready: Any, policy: Any, data: Any, preference_data: Any, seed: Any, settings: Any) -> Any:
        task = collection(
            policy=policy,
            dataset=data,
            preference_data=preference_data,
            data_digest=ready.outputs["preference_digest"],
            plug_in_digest=ready.outputs["plug_in_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("collection"),
        )
        return place(task, self.train, name="collection", cache=True).outputs["pairs"]

    def validated_pairs(self, ready: Any, pairs: Any, data: Any, base_model: Any, settings: Any) -> Any:
        task = data_validation(
            pairs=pairs,
            prompts_dataset=data,
            base_model=base_model,
            settings=settings,
            data_digest=ready.outputs["preference_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="data_validation_pairs", cache=True).outputs["dataset"]

    def reward_model(self, policy: Any, pairs: Any, split: str, seed: Any, settings: Any, after: Any = None) -> Any:
        task = reward_model(
            policy=policy,
            data=pairs,
            train_split=split,
            seed=seed,
            settings=settings,
            code_digest=code_version("reward_model"),
        )
        name = "reward_model" if split == "train" else f"reward_model_{split}"
        return place(task.after(after) if after else task, self.train, name=name, cache=True).outputs["reward_model"]

    def optimised(
        self, ready: Any, policy: Any, reward: Any, data: Any, seed: Any, settings: Any, *, after: Any
    ) -> Any:
        task = ppo(
            policy=policy,
            reward_model=reward,
            dataset=data,
            seed=seed,
            settings=settings,
            reward_digest=ready.outputs["reward_digest"],
            code_digest=code_version("ppo"),
        )
        return place(task.after(after), self.train, name="ppo", cache=True).outputs

    def evaluated(
        self,
        ready: Any,
        reference: Any,
        optimised: Any,
        reward: Any,
        heldout_reward: Any,
        data: Any,
        seed: Any,
        settings: Any,
    ) -> Any:
        task = evaluation(
            reference=reference,
            candidate=optimised["candidate"],
            checkpoints=optimised["checkpoints"],
            reward_model=reward,
            heldout_reward_model=heldout_reward,
            dataset=data,
            champion_uri=ready.outputs["champion_uri"],
            champion_digest=ready.outputs["champion_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("evaluation"),
        )
        return place(task, self.train, name="evaluation", cache=True).outputs["evaluation"]


def rlhf_arguments(settings: RunSettings) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""

    def section(name: str) -> dict[str, Any]:
        return as_parameter(getattr(settings, name))

    data = settings.data
    return {
        "model_name": settings.model_name,
        "base_model": settings.base_model,
        "sft_data": data.sft,
        "prompt_data": data.prompts,
        "preference_data": data.preferences,
        "seed": settings.seed,
        "gate_policy": settings.release_gate.policy,
        "plug_ins": settings.plug_ins,
        "reward_rules": settings.reward_rules,
        "reward_models": settings.reward_models,
        "prerequisites_settings": section("prerequisites"),
        "data_validation_settings": section("data_validation"),
        "sft_settings": section("sft"),
        "collection_settings": section("collection"),
        "reward_model_settings": section("reward_model"),
        "ppo_settings": section("ppo"),
        "evaluation_settings": section("evaluation"),
        "human_eval_settings": section("human_eval"),
    }
