"""What the training pipelines have in common: everything but the step that optimises the policy.

    prerequisites > data_validation > preference_check > sft > collection > data_validation (pairs)
        > reward_model + held-out reward model > reward_model_check > (optimiser) > evaluation
        > release (human_eval > release_gate > promote | keep_champion) > report

`pipelines.rlhf` puts PPO in, `pipelines.preference` DPO and its kin. The exit handler tells how a run ended, whatever
happened.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from components.collection.component import collection
from components.data_validation.component import data_validation, preference_check
from components.evaluation.component import evaluation
from components.prerequisites.component import prerequisites
from components.report.component import finish, report
from components.reward_model.component import reward_model, reward_model_check
from components.sft.component import sft
from components.shared.settings import as_parameter
from pipelines.parameters import Given, make_pipeline
from pipelines.placement import Place
from pipelines.recipe import recipe_of
from pipelines.release import build_release
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places, with_nodes_placed

__all__ = [
    "MEANING",
    "Method",
    "Ready",
    "TrainingSteps",
    "build_training",
    "common_arguments",
    "settings_argument",
    "with_recipe",
]

MEANING = {
    "model_name": "Registered model that this run makes a candidate for.",
    "base_model": "Model folder or hub id that training starts from.",
    "sft_data": "Demonstrations.",
    "prompt_data": "Prompts to train and evaluate on.",
    "preference_data": "Preference pairs; empty when this run collects them.",
    "seed": "Seed of every step.",
    "gate_policy": "`production`, `demo`, or a policy file.",
    "requested_by": "Who asks for the release, and may not approve it.",
    "plug_ins": "`module:attribute` names that steps load; checked first.",
    "prerequisites_settings": "PrerequisitesSettings.",
    "data_validation_settings": "DataValidationSettings.",
    "sft_settings": "SFTSettings.",
    "collection_settings": "CollectionSettings.",
    "reward_model_settings": "RewardModelSettings.",
    "evaluation_settings": "EvaluationSettings.",
    "human_eval_settings": "HumanEvalSettings.",
    "recipe": "Digest of each setting, of code and images, by name: retraining compares them with the last run's.",
}
"""The parameters that every training pipeline has, as KFP's UI explains them."""


@dataclass(frozen=True)
class Ready:
    """What is there when the policy is to be optimised.

    Attributes:
        reference: The fine-tuned policy.
        reward: The reward model.
        data: Validated data with prompts.
        pairs: Validated preference pairs.
        seed: Seed of every step.
        reward_digest: Of further rewards (reward models and rules' source) that the optimiser is paid by.
    """

    reference: Any
    reward: Any
    data: Any
    pairs: Any
    seed: Any
    reward_digest: Any


@dataclass(frozen=True)
class Method:
    """A way to optimise the policy.

    Attributes:
        label: Names its step.
        optimise: Makes its task; the outputs are `candidate`, `checkpoints` and `history`.
        arguments: The pipeline's parameters for a run's settings.
        meaning: What the parameters mean that no other method has.
    """

    label: str
    optimise: Callable[[Ready, Given], dsl.PipelineTask]
    arguments: Callable[[RunSettings], dict[str, Any]]
    meaning: dict[str, str]


@dataclass(frozen=True)
class TrainingSteps:
    """The steps of a training pipeline, for the resources of an environment."""

    light: Place
    train: Place
    prerequisites: Place
    release: Callable[..., Any]

    @classmethod
    def of(cls, settings: RunSettings) -> "TrainingSteps":
        """The steps for a run's settings."""
        light, train = places(settings)
        looks_for_gpu = settings.prerequisites.require_gpu
        return cls(light, train, train if looks_for_gpu else light, build_release(light))

    def run(self, method: "Method", given: Given) -> None:
        """Places every step, inside a pipeline function.

        Args:
            method: What optimises the policy.
            given: The pipeline's parameters.
        """
        with self.told(given):
            self.chain(method, given)

    def told(self, given: Given) -> dsl.ExitHandler:
        """The block whose end is told to people and to the tracking server, however it ends."""
        ended = place(finish(model_name=given["model_name"]), self.light, name="finish", cache=False)
        return dsl.ExitHandler(ended, name="run")

    def chain(self, method: "Method", given: Given) -> None:
        """Places the steps that train and judge, without what tells of their end."""
        seed = given["seed"]
        ready = prerequisites(
            base_model=given["base_model"],
            sft_data=given["sft_data"],
            prompt_data=given["prompt_data"],
            preference_data=given["preference_data"],
            model_name=given["model_name"],
            plug_ins=given["plug_ins"],
            reward_rules=given.get("reward_rules", []),
            reward_models=given.get("reward_models", []),
            human_eval_settings=given["human_eval_settings"],
            collection_settings=given["collection_settings"],
            settings=given["prerequisites_settings"],
            recipe=given["recipe"],
        )
        place(ready, self.prerequisites, name="prerequisites", cache=False)
        base_model = ready.outputs["base_model"]  # on the hub by its commit
        validation, rewarding = given["data_validation_settings"], given["reward_model_settings"]
        data = self._validated(ready, base_model, validation, given["sft_data"], given["prompt_data"])
        collecting = given["collection_settings"]
        readable = self._checked_pairs(ready, data, base_model, given["preference_data"], validation, collecting)
        reference = self._tuned(ready, data, base_model, seed, given["sft_settings"], after=readable)
        raw_pairs = self._collected(ready, reference, data, given["preference_data"], seed, collecting)
        pairs = self._validated_pairs(ready, raw_pairs, data, base_model, validation)

        reward = self._reward_model(reference, pairs, "train", seed, rewarding)
        checked = place(reward_model_check(reward_model=reward), self.light, name="reward_model_check", cache=False)
        heldout_reward = self._reward_model(reference, pairs, "divergence", seed, rewarding, after=checked)
        inputs = Ready(reference, reward, data, pairs, seed, ready.outputs["reward_digest"])
        task = method.optimise(inputs, given).after(checked)
        optimised = place(task, self.train, name=method.label, cache=True).outputs
        evaluating = given["evaluation_settings"]
        evaluated = self._evaluated(ready, reference, optimised, reward, heldout_reward, data, seed, evaluating)
        released = self.release(
            candidate=optimised["candidate"],
            evaluation=evaluated,
            dataset=data,
            reward_model=reward,
            heldout_reward_model=heldout_reward,
            history=optimised["history"],
            model_name=given["model_name"],
            policy=given["gate_policy"],
            requested_by=given["requested_by"],
            seed=seed,
            human_eval_settings=given["human_eval_settings"],
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
            model_name=given["model_name"],
            seed=seed,
        )
        place(written.after(released), self.light, name="report", cache=False)

    # The pure steps, which KFP may cache: each takes parameters and outputs of earlier steps and gives its own outputs.

    def _validated(self, ready: Any, base_model: Any, settings: Any, sft_data: Any, prompt_data: Any) -> Any:
        task = data_validation(
            sft_data=sft_data,
            prompt_data=prompt_data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            settings=settings,
            data_digest=ready.outputs["data_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="data_validation", cache=True).outputs["dataset"]

    def _checked_pairs(
        self, ready: Any, data: Any, base_model: Any, preference_data: Any, settings: Any, collecting: Any
    ) -> Any:
        """Before a GPU is asked for: a faulty file of pairs is not found after SFT only."""
        task = preference_check(
            dataset=data,
            preference_data=preference_data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            settings=settings,
            collection_settings=collecting,
            data_digest=ready.outputs["preference_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="preference_check", cache=True)

    def _tuned(self, ready: Any, data: Any, base_model: Any, seed: Any, settings: Any, after: Any) -> Any:
        task = sft(
            data=data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("sft"),
        )
        return place(task.after(after), self.train, name="sft", cache=True).outputs["policy"]

    def _collected(self, ready: Any, policy: Any, data: Any, preference_data: Any, seed: Any, settings: Any) -> Any:
        task = collection(
            policy=policy,
            dataset=data,
            preference_data=preference_data,
            data_digest=ready.outputs["preference_digest"],
            base_model_digest=ready.outputs["base_model_digest"],
            plug_in_digest=ready.outputs["plug_in_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("collection"),
        )
        return place(task, self.train, name="collection", cache=True).outputs["pairs"]

    def _validated_pairs(self, ready: Any, pairs: Any, data: Any, base_model: Any, settings: Any) -> Any:
        task = data_validation(
            pairs=pairs,
            prompts_dataset=data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            settings=settings,
            data_digest=ready.outputs["preference_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="data_validation_pairs", cache=True).outputs["dataset"]

    def _reward_model(self, policy: Any, pairs: Any, split: str, seed: Any, settings: Any, after: Any = None) -> Any:
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

    def _evaluated(
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


def build_training(method: Method, settings: RunSettings, *, name: str, description: str, told: str) -> Any:
    """Makes a training pipeline for an environment: resources are fixed, all else is a parameter.

    Args:
        method: What optimises the policy.
        settings: The run; its profile gives the resources, the rest the parameters' defaults.
        name: The pipeline's name.
        description: In the list of pipelines.
        told: What it does, in its help.

    Returns:
        A KFP pipeline.
    """
    steps = TrainingSteps.of(settings)
    return make_pipeline(
        lambda given: steps.run(method, given),
        defaults=method.arguments(settings),
        meaning=MEANING | method.meaning,
        told=told,
        name=name,
        description=description,
        pipeline_config=pipeline_config(settings),
    )


def common_arguments(settings: RunSettings) -> dict[str, Any]:
    """The parameters that every training pipeline has, for a run's settings."""
    data = settings.data
    return {
        "model_name": settings.model_name,
        "base_model": settings.base_model,
        "sft_data": data.sft,
        "prompt_data": data.prompts,
        "preference_data": data.preferences,
        "seed": settings.seed,
        "gate_policy": settings.release_gate.policy,
        "requested_by": settings.release_gate.requested_by,
        "plug_ins": settings.plug_ins,
        **settings_argument(settings, "prerequisites"),
        **settings_argument(settings, "data_validation"),
        **settings_argument(settings, "sft"),
        **settings_argument(settings, "collection"),
        **settings_argument(settings, "reward_model"),
        **settings_argument(settings, "evaluation"),
        **settings_argument(settings, "human_eval"),
    }


def with_recipe(settings: RunSettings, arguments: dict[str, Any]) -> dict[str, Any]:
    """A training pipeline's parameters, and what they and the code come to."""
    return {**arguments, "recipe": recipe_of(settings, arguments)}


def settings_argument(settings: RunSettings, stage: str) -> dict[str, Any]:
    """A stage's section of the settings as the parameter `<stage>_settings`."""
    return {f"{stage}_settings": as_parameter(with_nodes_placed(settings, stage))}
