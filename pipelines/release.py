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

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl

from components.human_eval.component import human_eval
from components.human_eval.settings import HumanEvalSettings
from components.release_gate.component import keep_champion, open_release, promote, release_gate, roll_back
from components.report.component import finish, report
from components.shared.release_orders import ReleaseOrder
from components.shared.settings import as_parameter, parse_settings
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
    "release_run_arguments",
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
    return _candidate_run(_RunSteps(light, build_release(light)), settings)


def build_live_release_run(settings: RunSettings) -> Callable[..., Any]:
    """Makes the same for the live model of an order that soak made."""
    light, _ = places(settings)
    return _live_run(_RunSteps(light, build_live_judgement(light)), settings)


class _RunSteps(NamedTuple):
    """The steps of a release run, around the judgement of its mode."""

    light: Place
    judge: Callable[..., Any]

    def place(self, uris: dict[str, Any], *, digests: Any, order: Any, attempt: Any, **given: Any) -> None:
        """Places them, inside a pipeline function.

        Args:
            uris: Address of each artifact, by role.
            digests: What each must have.
            order: Release order.
            attempt: As which attempt.
            **given: Parameters of the judgement.
        """
        turn = {"order": order, "attempt": attempt, "holder": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        model_name, seed = given["model_name"], given["seed"]
        ended = place(finish(model_name=model_name, **turn), self.light, name="finish", cache=False)
        with dsl.ExitHandler(ended, name="run"):
            artifacts = {role: _fetched(role, uri) for role, uri in uris.items()}
            opening: Any = open_release(**artifacts, digests=digests, **turn)
            opened = place(opening, self.light, name="open_release", cache=False)
            judged = self.judge(**artifacts, **given).after(opened)
            shown = {name: judged.outputs[name] for name in Released._fields}
            written: Any = report(**artifacts, **shown, model_name=model_name, seed=seed)
            place(written.after(judged), self.light, name="report", cache=False)


def _candidate_run(steps: _RunSteps, settings: RunSettings) -> Callable[..., Any]:
    defaults = _Defaults.of(settings, settings.human_eval)

    @dsl.pipeline(
        name=PIPELINE_NAMES["candidate"],
        description="Judges a candidate again, on the evidence of people.",
        pipeline_config=pipeline_config(settings),
    )
    def release_run(
        candidate_uri: str,
        evaluation_uri: str,
        dataset_uri: str,
        reward_model_uri: str,
        heldout_reward_model_uri: str,
        history_uri: str,
        digests: dict,
        model_name: str = defaults.model_name,
        policy: str = defaults.policy,
        seed: int = defaults.seed,
        human_eval_settings: dict = defaults.human_eval,
        order: str = "",
        attempt: int = 0,
    ):
        """Judges a candidate whose batch of human evidence has closed, and promotes it if its policy allows.

        Args:
            candidate_uri: Where the candidate is.
            evaluation_uri: Where its answers are.
            dataset_uri: Where the dataset with the prompts is.
            reward_model_uri: Where the reward model is that was optimised.
            heldout_reward_model_uri: Where the one is that never was.
            history_uri: Where its training history is.
            digests: Digest that each of them must have, by role.
            model_name: Registered model.
            policy: `production`, `demo`, or a policy file.
            seed: Seed that the batch was opened with.
            human_eval_settings: HumanEvalSettings that the batch was opened with.
            order: Release order; empty for none.
            attempt: As which attempt.
        """
        steps.place(
            {
                "candidate": candidate_uri,
                "evaluation": evaluation_uri,
                "dataset": dataset_uri,
                "reward_model": reward_model_uri,
                "heldout_reward_model": heldout_reward_model_uri,
                "history": history_uri,
            },
            digests=digests,
            model_name=model_name,
            policy=policy,
            seed=seed,
            human_eval_settings=human_eval_settings,
            order=order,
            attempt=attempt,
        )

    return release_run


def _live_run(steps: _RunSteps, settings: RunSettings) -> Callable[..., Any]:
    defaults = _Defaults.of(settings, settings.soak.human_eval)

    @dsl.pipeline(
        name=PIPELINE_NAMES["live"],
        description="Judges a live model again, on the evidence of people.",
        pipeline_config=pipeline_config(settings),
    )
    def release_live_run(
        evaluation_uri: str,
        dataset_uri: str,
        reward_model_uri: str,
        heldout_reward_model_uri: str,
        digests: dict,
        model_name: str = defaults.model_name,
        policy: str = defaults.policy,
        seed: int = defaults.seed,
        human_eval_settings: dict = defaults.human_eval,
        order: str = "",
        attempt: int = 0,
    ):
        """Judges a live model whose batch of human evidence has closed, and rolls it back if its policy says so.

        Args:
            evaluation_uri: Where its answers are.
            dataset_uri: Where the dataset with the prompts is.
            reward_model_uri: Where the reward model is that was optimised.
            heldout_reward_model_uri: Where the one is that never was.
            digests: Digest that each of them must have, by role.
            model_name: Registered model.
            policy: `production`, `demo`, or a policy file.
            seed: Seed that the batch was opened with.
            human_eval_settings: HumanEvalSettings that the batch was opened with.
            order: Release order; empty for none.
            attempt: As which attempt.
        """
        steps.place(
            {
                "evaluation": evaluation_uri,
                "dataset": dataset_uri,
                "reward_model": reward_model_uri,
                "heldout_reward_model": heldout_reward_model_uri,
            },
            digests=digests,
            model_name=model_name,
            policy=policy,
            seed=seed,
            human_eval_settings=human_eval_settings,
            order=order,
            attempt=attempt,
        )

    return release_live_run


class _Defaults(NamedTuple):
    """Defaults of a release run's parameters."""

    model_name: str
    policy: str
    seed: int
    human_eval: dict[str, Any]

    @classmethod
    def of(cls, settings: RunSettings, human_eval: HumanEvalSettings) -> "_Defaults":
        return cls(settings.model_name, settings.release_gate.policy, settings.seed, as_parameter(human_eval))


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


def _fetched(role: str, uri: Any) -> Any:
    kinds = {"dataset": dsl.Dataset, "evaluation": dsl.Artifact, "history": dsl.Artifact}
    return dsl.importer(artifact_uri=uri, artifact_class=kinds.get(role, dsl.Model), reimport=False).output
