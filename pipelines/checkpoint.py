"""An offered checkpoint, released as a candidate of its own on fresh prompts.

    checkpoint_candidate > evaluation (fresh prompts) > release (human_eval > release_gate > promote | keep) > report

The gate of a run whose last policy failed may offer one of its earlier checkpoints. The offer was chosen by looking at
several, so nothing of what it was chosen by is used again: the checkpoint is a new version with a batch of its own on
prompts that the choice has not seen, and every criterion judges it. Everything else is that run's, given as addresses.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfp import dsl

from components.evaluation.component import checkpoint_candidate, evaluation
from components.report.component import finish
from components.shared.settings import as_parameter
from pipelines.parameters import Given, make_pipeline
from pipelines.placement import Place
from pipelines.release import build_release, fetched, tell_in_report
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places

__all__ = ["PIPELINE_NAME", "build_checkpoint_release", "checkpoint_arguments"]

PIPELINE_NAME = "plumbline-release-checkpoint"

_ROLES = {
    "dataset_uri": "dataset",
    "reward_model_uri": "reward_model",
    "heldout_reward_model_uri": "heldout_reward_model",
    "reference_uri": "sft",
    "checkpoints_uri": "checkpoints",
    "history_uri": "history",
}


_MEANING = {
    "dataset_uri": "Validated dataset of the run; its fresh prompts are used.",
    "reward_model_uri": "Reward model that the run optimised.",
    "heldout_reward_model_uri": "Reward model that was never optimised.",
    "reference_uri": "SFT policy that the run trained from.",
    "checkpoints_uri": "Checkpoints of the run.",
    "history_uri": "Training history of the run.",
    "step": "Training step of the checkpoint.",
    "model_name": "Registered model.",
    "gate_policy": "`production`, `demo`, or a policy file.",
    "requested_by": "Who asks for the release, and may not approve it.",
    "seed": "Seed of sampling and raters.",
    "evaluation_settings": "EvaluationSettings.",
    "human_eval_settings": "HumanEvalSettings.",
    "champion_uri": "The live policy in the registry; empty if there is none.",
    "champion_digest": "Its digest.",
}
_MUST_BE_GIVEN = {
    **dict.fromkeys(_ROLES, str),
    "step": int,
    "model_name": str,
    "gate_policy": str,
    "requested_by": str,
    "seed": int,
    "evaluation_settings": dict,
    "human_eval_settings": dict,
}


def build_checkpoint_release(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline for an environment.

    Args:
        settings: The settings of the run whose checkpoint it is.

    Returns:
        A KFP pipeline.
    """
    light, train = places(settings)
    steps = _Steps(light, train, build_release(light))
    return make_pipeline(
        steps.run,
        defaults={**_MUST_BE_GIVEN, "champion_uri": "", "champion_digest": ""},
        meaning=_MEANING,
        told="Releases a checkpoint.",
        name=PIPELINE_NAME,
        description="Judges an offered checkpoint as a candidate, on fresh prompts.",
        pipeline_config=pipeline_config(settings),
    )


class _Steps(NamedTuple):
    """The steps, each placed inside a pipeline function."""

    light: Place
    train: Place
    release: Callable[..., Any]

    def run(self, given: Given) -> None:
        """Places them all."""
        ended = place(finish(model_name=given["model_name"]), self.light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            dataset, history = (fetched(role, given[f"{role}_uri"]) for role in ("dataset", "history"))
            rewards = {role: fetched(role, given[f"{role}_uri"]) for role in ("reward_model", "heldout_reward_model")}
            reference = fetched("reference", given["reference_uri"])
            made = self._candidate(reference, given)
            answers = self._answers(reference, made, {**rewards, "dataset": dataset}, given)
            judged = {**rewards, "candidate": made["candidate"], "evaluation": answers}
            about = {"model_name": given["model_name"], "seed": given["seed"]}
            asked = {"policy": given["gate_policy"], "human_eval_settings": given["human_eval_settings"]}
            asked["requested_by"] = given["requested_by"]
            released = self.release(**judged, dataset=dataset, history=history, **about, **asked)
            tell_in_report(self.light, released, judged, **about)

    def _candidate(self, reference: Any, given: Given) -> Any:
        """The checkpoint with whole weights, and the ones before it."""
        made: Any = checkpoint_candidate(
            checkpoints=fetched("checkpoints", given["checkpoints_uri"]),
            reference=reference,
            step=given["step"],
            code_digest=code_version("evaluation"),
        )
        return place(made, self.train, name="checkpoint_candidate", cache=False).outputs

    def _answers(self, reference: Any, made: Any, others: Mapping[str, Any], given: Given) -> Any:
        """The evaluation on fresh prompts."""
        evaluated: Any = evaluation(
            reference=reference,
            candidate=made["candidate"],
            checkpoints=made["earlier"],
            **others,
            champion_uri=given["champion_uri"],
            champion_digest=given["champion_digest"],
            seed=given["seed"],
            settings=given["evaluation_settings"],
            code_digest=code_version("evaluation"),
        )
        return place(evaluated, self.train, name="evaluation", cache=False).outputs["evaluation"]


def checkpoint_arguments(
    settings: RunSettings, *, step: int, artifacts: dict[str, str], champion: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """The pipeline's parameters.

    Args:
        settings: The settings of the run.
        step: The checkpoint.
        artifacts: Addresses of the run's artifacts by role.
        champion: URI and digest of the live policy; empty if there is none.
    """
    evaluated, asked = settings.evaluation, settings.human_eval
    prompts = {**evaluated.prompts, "fresh": asked.n_prompts}
    prompts.pop("human_eval", None)  # those are the prompts that the checkpoint was chosen by
    return {
        **{name: artifacts[role] for name, role in _ROLES.items()},
        "step": step,
        "model_name": settings.model_name,
        "gate_policy": settings.release_gate.policy,
        "requested_by": settings.release_gate.requested_by,
        "seed": settings.seed,
        "evaluation_settings": as_parameter(
            evaluated.model_copy(update={"prompts": prompts, "checkpoint_set": "fresh"})
        ),
        "human_eval_settings": as_parameter(asked.model_copy(update={"prompt_set": "fresh", "checkpoint_prompts": 0})),
        "champion_uri": champion[0],
        "champion_digest": champion[1],
    }
