"""The retraining pipeline, for a schedule: it trains when something is new, and ends in seconds when nothing is.

    new_data > (anything new?) > prerequisites > ... > release > report          exit handler: finish

"New" is by digest: demonstrations, prompts, preference pairs, base model, plug-ins, settings, policy, code or images
differ from those of the model's last training run that ended well, whichever pipeline it was. A failed run does not
count, so that the next one tries again.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values.

from typing import Any

from kfp import dsl

from components.prerequisites.component import new_data
from pipelines.parameters import Given, make_pipeline
from pipelines.preference import PREFERENCE_OPTIMIZATION
from pipelines.rlhf import PPO
from pipelines.settings import RunSettings
from pipelines.steps import pipeline_config, place
from pipelines.training import MEANING, Method, TrainingSteps

__all__ = ["PIPELINE_NAME", "build_retraining", "retraining_arguments"]

PIPELINE_NAME = "plumbline-retraining"


def build_retraining(settings: RunSettings) -> Any:
    """Makes the KFP pipeline for a run's settings and the environment that they name."""
    steps, method = TrainingSteps.of(settings), _method(settings)
    meaning = MEANING | method.meaning
    train = make_pipeline(
        lambda given: _train_if_new(steps, method, given),
        defaults=method.arguments(settings) | {"changed": True},
        meaning=meaning | {"changed": "Whether there is anything new."},
        told="Trains and releases, if there is anything new.",
        name="plumbline-train-if-new",
    )

    def body(given: Given) -> None:
        with steps.told(given):
            found = new_data(
                base_model=given["base_model"],
                sft_data=given["sft_data"],
                prompt_data=given["prompt_data"],
                preference_data=given["preference_data"],
                model_name=given["model_name"],
                force=given["force"],
                recipe=given["recipe"],
                plug_ins=given["plug_ins"],
                reward_rules=given.get("reward_rules", []),
            )
            place(found, steps.light, name="new_data", cache=False)
            passed_on = {name: value for name, value in given.items() if name != "force"}
            train(changed=found.outputs["changed"], **passed_on)

    return make_pipeline(
        body,
        defaults=retraining_arguments(settings),
        meaning=meaning | {"force": "Train whatever is found."},
        told="Trains and releases as the training pipeline does, if there is anything new.",
        name=PIPELINE_NAME,
        description="Retrains when data, base model, settings or code changed since the last run that ended well.",
        pipeline_config=pipeline_config(settings),
    )


def _train_if_new(steps: TrainingSteps, method: Method, given: Given) -> None:
    """The condition is on a parameter: on a task's output kfp.local (2.17) takes it for false, without an error."""
    with dsl.If(given["changed"] == True, name="something-is-new"):  # noqa: E712 (a KFP expression)
        steps.chain(method, given)


def retraining_arguments(settings: RunSettings, *, force: bool = False) -> dict[str, Any]:
    """The pipeline's parameters for a run's settings."""
    return _method(settings).arguments(settings) | {"force": force}


def _method(settings: RunSettings) -> Method:
    return PPO if settings.optimizer == "ppo" else PREFERENCE_OPTIMIZATION
