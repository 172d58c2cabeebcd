"""The release part of a run: people judge, the gate decides, the champion changes or stays.

Nested in the RLHF pipeline (`release`) and, on a live model, in the soak pipeline (`judge_live`): the same human_eval
and release_gate. The branches hang on the gate's booleans; exactly one of them runs.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# KFP gives tasks where the signatures say values, and fills in outputs and the exit handler's status itself.

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl

from components.human_eval.component import human_eval
from components.release_gate.component import keep_champion, promote, release_gate, roll_back
from pipelines.placement import Place
from pipelines.steps import code_version, place

__all__ = ["Released", "build_live_judgement", "build_release"]


class Released(NamedTuple):
    """Outputs of a release pipeline."""

    evidence: dsl.Artifact
    decision: dsl.Artifact


def build_release(light: Place) -> Callable[..., Any]:
    """Makes the release pipeline for a candidate.

    Args:
        light: What its steps get.

    Returns:
        A KFP pipeline; its steps are human_eval > release_gate > promote | keep_champion.
    """

    @dsl.pipeline(name="plumbline-release", description="Human evaluation, gate, and the promotion that it allows.")
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
        gate_code = code_version("release_gate")
        judged = human_eval(
            evaluation=evaluation,
            dataset=dataset,
            seed=seed,
            settings=human_eval_settings,
            code_digest=code_version("human_eval"),
        )
        place(judged, light, name="human_eval", cache=False)
        gate = release_gate(
            candidate=candidate,
            evaluation=evaluation,
            evidence=judged.outputs["evidence"],
            reward_model=reward_model,
            heldout_reward_model=heldout_reward_model,
            history=history,
            mode="candidate",
            policy=policy,
            model_name=model_name,
            seed=seed,
            code_digest=gate_code,
        )
        place(gate, light, name="release_gate", cache=False)
        with dsl.If(gate.outputs["promote"] == True, name="promote"):  # noqa: E712 (a KFP expression)
            place(promote(decision=gate.outputs["decision"], code_digest=gate_code), light, name="promote", cache=False)
        with dsl.Else(name="hold-or-block"):
            place(
                keep_champion(decision=gate.outputs["decision"], code_digest=gate_code),
                light,
                name="keep_champion",
                cache=False,
            )
        return Released(judged.outputs["evidence"], gate.outputs["decision"])

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
        gate_code = code_version("release_gate")
        judged = human_eval(
            evaluation=evaluation,
            dataset=dataset,
            seed=seed,
            settings=human_eval_settings,
            code_digest=code_version("human_eval"),
        )
        place(judged, light, name="human_eval", cache=False)
        gate = release_gate(
            evaluation=evaluation,
            evidence=judged.outputs["evidence"],
            reward_model=reward_model,
            heldout_reward_model=heldout_reward_model,
            mode="live",
            policy=policy,
            model_name=model_name,
            seed=seed,
            code_digest=gate_code,
        )
        place(gate, light, name="release_gate", cache=False)
        with dsl.If(gate.outputs["roll_back"] == True, name="roll-back"):  # noqa: E712 (a KFP expression)
            place(
                roll_back(decision=gate.outputs["decision"], code_digest=gate_code),
                light,
                name="roll_back",
                cache=False,
            )
        with dsl.Else(name="keep-or-hold"):
            place(
                keep_champion(decision=gate.outputs["decision"], code_digest=gate_code),
                light,
                name="keep_champion",
                cache=False,
            )
        return Released(judged.outputs["evidence"], gate.outputs["decision"])

    return judge_live
