"""What the training pipelines have in common: everything but the step that optimises the policy.

    prerequisites > data_validation > sft > collection > data_validation (pairs) > reward_model + held-out reward model
        > reward_model_check > (optimiser) > evaluation > release (human_eval > release_gate > promote | keep_champion)
        > report

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
from components.data_validation.component import data_validation
from components.evaluation.component import evaluation
from components.prerequisites.component import prerequisites
from components.report.component import finish, report
from components.reward_model.component import reward_model, reward_model_check
from components.sft.component import sft
from components.shared.settings import as_parameter
from pipelines.release import build_release
from pipelines.settings import RunSettings, StepResources
from pipelines.steps import code_version, place

__all__ = ["Optimise", "Ready", "TrainingSteps", "common_arguments", "settings_argument"]


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


Optimise = Callable[[Ready], dsl.PipelineTask]
"""Makes the task that optimises the policy; its outputs are `candidate`, `checkpoints` and `history`."""


@dataclass(frozen=True)
class TrainingSteps:
    """The steps of a training pipeline, for the resources of an environment."""

    light: StepResources
    train: StepResources
    prerequisites: StepResources
    release: Callable[..., Any]

    @classmethod
    def of(cls, settings: RunSettings) -> "TrainingSteps":
        """The steps for a run's settings."""
        light, train = settings.execution.light, settings.execution.train
        looks_for_gpu = settings.prerequisites.require_gpu
        return cls(light, train, train if looks_for_gpu else light, build_release(light))

    def run(
        self,
        optimise: Optimise,
        *,
        optimiser: str,
        model_name: Any,
        base_model: Any,
        sft_data: Any,
        prompt_data: Any,
        preference_data: Any,
        seed: Any,
        gate_policy: Any,
        plug_ins: Any,
        prerequisites_settings: Any,
        data_validation_settings: Any,
        sft_settings: Any,
        collection_settings: Any,
        reward_model_settings: Any,
        evaluation_settings: Any,
        human_eval_settings: Any,
        reward_rules: Any = None,
        reward_models: Any = None,
    ) -> None:
        """Places every step, inside a pipeline function.

        Args:
            optimise: Makes the task that optimises the policy.
            optimiser: Its name.
            model_name: And what follows: the parameters of the pipeline.
            reward_rules: Rules that the optimiser is paid by; None: it takes none.
            reward_models: Further reward models that it is paid by; None: it takes none.
        """
        ended = place(finish(model_name=model_name), self.light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            ready = prerequisites(
                base_model=base_model,
                sft_data=sft_data,
                prompt_data=prompt_data,
                preference_data=preference_data,
                model_name=model_name,
                plug_ins=plug_ins,
                reward_rules=[] if reward_rules is None else reward_rules,
                reward_models=[] if reward_models is None else reward_models,
                settings=prerequisites_settings,
            )
            place(ready, self.prerequisites, name="prerequisites", cache=False)
            data = self._validated(ready, base_model, data_validation_settings, sft_data, prompt_data)
            reference = self._tuned(ready, data, base_model, seed, sft_settings)
            raw_pairs = self._collected(ready, reference, data, preference_data, seed, collection_settings)
            pairs = self._validated_pairs(ready, raw_pairs, data, base_model, data_validation_settings)

            reward = self._reward_model(reference, pairs, "train", seed, reward_model_settings)
            checked = place(reward_model_check(reward_model=reward), self.light, name="reward_model_check", cache=False)
            heldout_reward = self._reward_model(
                reference, pairs, "divergence", seed, reward_model_settings, after=checked
            )
            task = optimise(Ready(reference, reward, data, pairs, seed, ready.outputs["reward_digest"])).after(checked)
            optimised = place(task, self.train, name=optimiser, cache=True).outputs
            evaluated = self._evaluated(
                ready, reference, optimised, reward, heldout_reward, data, seed, evaluation_settings
            )
            released = self.release(
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
            place(written.after(released), self.light, name="report", cache=False)

    # The pure steps, which KFP may cache: each takes parameters and outputs of earlier steps and gives its own outputs.

    def _validated(self, ready: Any, base_model: Any, settings: Any, sft_data: Any, prompt_data: Any) -> Any:
        task = data_validation(
            sft_data=sft_data,
            prompt_data=prompt_data,
            base_model=base_model,
            settings=settings,
            data_digest=ready.outputs["data_digest"],
            code_digest=code_version("data_validation"),
        )
        return place(task, self.light, name="data_validation", cache=True).outputs["dataset"]

    def _tuned(self, ready: Any, data: Any, base_model: Any, seed: Any, settings: Any) -> Any:
        task = sft(
            data=data,
            base_model=base_model,
            base_model_digest=ready.outputs["base_model_digest"],
            seed=seed,
            settings=settings,
            code_digest=code_version("sft"),
        )
        return place(task, self.train, name="sft", cache=True).outputs["policy"]

    def _collected(self, ready: Any, policy: Any, data: Any, preference_data: Any, seed: Any, settings: Any) -> Any:
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

    def _validated_pairs(self, ready: Any, pairs: Any, data: Any, base_model: Any, settings: Any) -> Any:
        task = data_validation(
            pairs=pairs,
            prompts_dataset=data,
            base_model=base_model,
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
        "plug_ins": settings.plug_ins,
        **settings_argument(settings, "prerequisites"),
        **settings_argument(settings, "data_validation"),
        **settings_argument(settings, "sft"),
        **settings_argument(settings, "collection"),
        **settings_argument(settings, "reward_model"),
        **settings_argument(settings, "evaluation"),
        **settings_argument(settings, "human_eval"),
    }


def settings_argument(settings: RunSettings, stage: str) -> dict[str, Any]:
    """A stage's section of the settings as the parameter `<stage>_settings`."""
    return {f"{stage}_settings": as_parameter(getattr(settings, stage))}
