"""The release part of a run: people judge, the gate decides, the champion changes or stays.

    human_eval > release_gate > promote | keep_champion           nested in the training pipelines (`release`)
    human_eval > release_gate > roll_back | keep_champion         nested in the soak pipeline, on a live model
    open_release > one of the two > report                        a pipeline of its own (`release_run`)

With people as raters the nested one opens the batch and ends with HOLD: no step waits. When the batch closes, the
pipeline of its own judges the same artifacts again, which it finds by the addresses and digests of the release order.
The branches hang on the gate's booleans; exactly one of them runs.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl

from components.human_eval.component import human_eval
from components.human_eval.settings import HumanEvalSettings
from components.release_gate.component import keep_champion, open_release, promote, release_gate, roll_back
from components.report.component import finish, report
from components.shared.release_orders import ReleaseOrder
from components.shared.settings import as_parameter, parse_settings
from pipelines.parameters import Given, make_pipeline
from pipelines.placement import Place
from pipelines.settings import RunSettings
from pipelines.steps import code_version, pipeline_config, place, places

__all__ = [
    "PIPELINE_NAMES",
    "Released",
    "build_live_judgement",
    "build_live_release_run",
    "build_release",
    "build_release_run",
    "fetched",
    "release_run_arguments",
    "tell_in_report",
]

PIPELINE_NAMES = {"candidate": "plumbline-release", "live": "plumbline-release-live"}
"""Of the pipelines of their own, by mode."""


class Released(NamedTuple):
    """Outputs of a release pipeline."""

    evidence: dsl.Artifact
    decision: dsl.Artifact


class _Move(NamedTuple):
    """What a verdict may set off: the gate's output that says so, the step, and the names of the two branches."""

    output: str
    step: Any
    taken: str
    otherwise: str


_MOVES = {
    "candidate": _Move("promote", promote, "promote", "hold-or-block"),
    "live": _Move("roll_back", roll_back, "roll-back", "keep-or-hold"),
}


def build_release(light: Place) -> Callable[..., Any]:
    """Makes the nested pipeline for a candidate.

    Args:
        light: What its steps get.

    Returns:
        A KFP pipeline; its steps are human_eval > release_gate > promote | keep_champion.
    """

    @dsl.pipeline(name="plumbline-judge", description="Human evaluation, gate, and the promotion that it allows.")
    def release(
        candidate: dsl.Input[dsl.Model],
        evaluation: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
        reward_model: dsl.Input[dsl.Model],
        heldout_reward_model: dsl.Input[dsl.Model],
        history: dsl.Input[dsl.Artifact],
        model_name: str,
        policy: str,
        requested_by: str,
        seed: int,
        human_eval_settings: dict,
    ) -> Released:
        judged = _human_eval(light, evaluation, dataset, seed, human_eval_settings)
        gate = release_gate(
            candidate=candidate,
            evaluation=evaluation,
            evidence=judged,
            reward_model=reward_model,
            heldout_reward_model=heldout_reward_model,
            history=history,
            mode="candidate",
            policy=policy,
            requested_by=requested_by,
            model_name=model_name,
            seed=seed,
            code_digest=code_version("release_gate"),
        )
        return Released(judged, _decided(light, gate, "candidate"))

    return release


def build_live_judgement(light: Place) -> Callable[..., Any]:
    """Makes the same for a live model; its steps are human_eval > release_gate > roll_back | keep_champion."""

    @dsl.pipeline(
        name="plumbline-judge-live", description="Fresh human evidence on the champion, and the rollback it asks for."
    )
    def judge_live(
        evaluation: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
        reward_model: dsl.Input[dsl.Model],
        heldout_reward_model: dsl.Input[dsl.Model],
        model_name: str,
        policy: str,
        seed: int,
        human_eval_settings: dict,
    ) -> Released:
        judged = _human_eval(light, evaluation, dataset, seed, human_eval_settings)
        gate = release_gate(
            evaluation=evaluation,
            evidence=judged,
            reward_model=reward_model,
            heldout_reward_model=heldout_reward_model,
            mode="live",
            policy=policy,
            model_name=model_name,
            seed=seed,
            code_digest=code_version("release_gate"),
        )
        return Released(judged, _decided(light, gate, "live"))

    return judge_live


def build_release_run(settings: RunSettings) -> Callable[..., Any]:
    """Makes the pipeline of its own that judges the candidate of a release order.

    Args:
        settings: The profile is fixed; the rest gives the parameters' defaults.

    Returns:
        A KFP pipeline; `release_run_arguments` gives its parameters.
    """
    light, _ = places(settings)
    asked = {"requested_by": ""}  # the ledger knows since the run that made the candidate
    return _make_run(_RunSteps(light, build_release(light), asked), settings, "candidate", settings.human_eval)


def build_live_release_run(settings: RunSettings) -> Callable[..., Any]:
    """Makes the same for the live model of an order that soak made."""
    light, _ = places(settings)
    return _make_run(_RunSteps(light, build_live_judgement(light), {}), settings, "live", settings.soak.human_eval)


class _RunSteps(NamedTuple):
    """The steps of a release run, around the judgement of its mode."""

    light: Place
    judge: Callable[..., Any]
    asked: dict[str, str]

    def place(self, roles: Sequence[str], given: Given) -> None:
        """Places them, inside a pipeline function.

        Args:
            roles: Of the artifacts whose addresses are given.
            given: The pipeline's parameters.
        """
        turn = {"order": given["order"], "attempt": given["attempt"], "holder": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        names = ("model_name", "policy", "seed", "human_eval_settings")
        of_judgement = {name: given[name] for name in names} | self.asked
        ended = place(finish(model_name=given["model_name"], **turn), self.light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            artifacts = {role: fetched(role, given[f"{role}_uri"]) for role in roles}
            opening: Any = open_release(**artifacts, digests=given["digests"], **turn)
            opened = place(opening, self.light, name="open_release", cache=False)
            judged = self.judge(**artifacts, **of_judgement).after(opened)
            tell_in_report(self.light, judged, artifacts, model_name=given["model_name"], seed=given["seed"])


_RUN_ROLES = {
    "candidate": ("candidate", "evaluation", "dataset", "reward_model", "heldout_reward_model", "history"),
    "live": ("evaluation", "dataset", "reward_model", "heldout_reward_model"),
}
_RUN_MEANING = {
    "candidate_uri": "Where the candidate is.",
    "evaluation_uri": "Where its answers are.",
    "dataset_uri": "Where the dataset with the prompts is.",
    "reward_model_uri": "Where the reward model is that was optimised.",
    "heldout_reward_model_uri": "Where the one is that never was.",
    "history_uri": "Where its training history is.",
    "digests": "Digest that each of them must have, by role.",
    "model_name": "Registered model.",
    "policy": "`production`, `demo`, or a policy file.",
    "seed": "Seed that the batch was opened with.",
    "human_eval_settings": "HumanEvalSettings that the batch was opened with.",
    "order": "Release order; empty for none.",
    "attempt": "As which attempt.",
}
_RUN_TOLD = {
    "candidate": (
        "Judges a candidate again, on the evidence of people.",
        "Judges a candidate whose batch of human evidence has closed, and promotes it if its policy allows.",
    ),
    "live": (
        "Judges a live model again, on the evidence of people.",
        "Judges a live model whose batch of human evidence has closed, and rolls it back if its policy says so.",
    ),
}


def _make_run(steps: _RunSteps, settings: RunSettings, mode: str, human_eval: HumanEvalSettings) -> Callable[..., Any]:
    description, told = _RUN_TOLD[mode]
    return make_pipeline(
        lambda given: steps.place(_RUN_ROLES[mode], given),
        defaults={
            **{f"{role}_uri": str for role in _RUN_ROLES[mode]},
            "digests": dict,
            "model_name": settings.model_name,
            "policy": settings.release_gate.policy,
            "seed": settings.seed,
            "human_eval_settings": as_parameter(human_eval),
            "order": "",
            "attempt": 0,
        },
        meaning=_RUN_MEANING,
        told=told,
        name=PIPELINE_NAMES[mode],
        description=description,
        pipeline_config=pipeline_config(settings),
    )


def release_run_arguments(order: ReleaseOrder, *, attempt: int = 0) -> dict[str, Any]:
    """The parameters of a release order's run.

    Args:
        order: What is to be judged.
        attempt: As which attempt it was started; 0 runs it without taking the order, while its batch is still open.
    """
    settings = parse_settings(order.settings, HumanEvalSettings, where=f"release order {order.order_id}")
    return {
        **{f"{role}_uri": uri for role, uri in order.uris.items()},
        "digests": order.digests,
        "model_name": order.model,
        "policy": order.policy,
        "seed": order.seed,
        "human_eval_settings": as_parameter(settings),
        "order": order.order_id if attempt else "",
        "attempt": attempt,
    }


def fetched(role: str, uri: Any) -> Any:
    """An artifact of another run, by its address; inside a pipeline function.

    Args:
        role: What it is: `dataset`, `evaluation`, `history`, `checkpoints`, or a model.
        uri: Where it is.
    """
    kinds = {"dataset": dsl.Dataset, **dict.fromkeys(("evaluation", "history", "checkpoints"), dsl.Artifact)}
    return dsl.importer(artifact_uri=uri, artifact_class=kinds.get(role, dsl.Model), reimport=False).output


def tell_in_report(light: Place, judged: Any, artifacts: Mapping[str, Any], **about: Any) -> None:
    """Places the step that tells in a report what the judgement came to; inside a pipeline function.

    Args:
        light: What the step gets.
        judged: The task of `build_release` or `build_live_judgement`.
        artifacts: What else the report shows, by role.
        **about: `model_name` and `seed`.
    """
    shown = {name: judged.outputs[name] for name in Released._fields}
    written: Any = report(**artifacts, **shown, **about)
    place(written.after(judged), light, name="report", cache=False)


def _human_eval(light: Place, evaluation: Any, dataset: Any, seed: Any, settings: Any) -> Any:
    """The evidence that people have given so far."""
    judged = human_eval(
        evaluation=evaluation,
        dataset=dataset,
        seed=seed,
        settings=settings,
        code_digest=code_version("human_eval"),
    )
    return place(judged, light, name="human_eval", cache=False).outputs["evidence"]


def _decided(light: Place, gate: Any, mode: str) -> Any:
    """What follows from the verdict; returns the decision."""
    place(gate, light, name="release_gate", cache=False)
    move, decision, code = _MOVES[mode], gate.outputs["decision"], code_version("release_gate")
    with dsl.If(gate.outputs[move.output] == True, name=move.taken):  # noqa: E712 (a KFP expression)
        place(move.step(decision=decision, code_digest=code), light, name=move.output, cache=False)
    with dsl.Else(name=move.otherwise):
        place(keep_champion(decision=decision, code_digest=code), light, name="keep_champion", cache=False)
    return decision
