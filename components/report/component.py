"""Kubeflow components of the report: the run's page, and the exit handler that closes the run and tells people."""

from typing import Optional

from kfp import dsl

from components.shared.images import LIGHT_IMAGE

__all__ = ["finish", "report"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def report(
    page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Artifact],
    model_name: str,
    seed: int,
    settings: dict = {},  # noqa: B006 (kfp reads it as the parameter's default; nothing changes it)
    dataset: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045 (kfp 2.17 knows Optional, not `|`)
    preferences: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045
    sft: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    reward_model: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    heldout_reward_model: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    history: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    candidate: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    evaluation: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    evidence: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    decision: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
):
    """Writes the run's report: one self-contained page, and a summary for scripts.

    Args:
        page: `report.html`: verdict and reasons, reward, KL and human preference over checkpoints, and all behind it.
        summary: `summary.json`: the run in a few numbers.
        model_name: Registered model whose champion the report names.
        seed: Seed of the run.
        settings: The run's settings, to be shown.
        dataset: Validated data.
        preferences: Validated preference pairs.
        sft: The policy that training started from.
        reward_model: The reward model that was optimised.
        heldout_reward_model: The reward model that never was.
        history: The policy's training history.
        candidate: The trained policy.
        evaluation: Answers and their figures.
        evidence: What people said.
        decision: The gate's decision.
    """
    from components.report.stage import publish

    page.metadata.update(
        publish(
            page=page.path,
            summary=summary.path,
            artifacts={
                "dataset": dataset,
                "preferences": preferences,
                "sft": sft,
                "reward_model": reward_model,
                "heldout_reward_model": heldout_reward_model,
                "history": history,
                "candidate": candidate,
                "evaluation": evaluation,
                "evidence": evidence,
                "decision": decision,
            },
            model_name=model_name,
            seed=seed,
            settings=settings,
        )
    )


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def finish(
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
    model_name: str,
    order: str = "",
    attempt: int = 0,
    holder: str = "",
):
    """Ends the run in the tracking server and sends a notice, whether the run succeeded or failed.

    Args:
        status: How the pipeline ended; filled in by Kubeflow Pipelines.
        page: Where and why the run failed; of a run that succeeded the report step writes the page.
        model_name: Registered model, named in the notice.
        order: Release order that this run was started for; empty for none.
        attempt: As which attempt.
        holder: Name under which this run took the order.
    """
    from components.report.notice import finish_run
    from components.report.stage import publish_end

    notice = finish_run(
        state=status.state,
        error_message=status.error_message,
        resource_name=status.pipeline_job_resource_name,
        model_name=model_name,
        order=order,
        attempt=attempt,
        holder=holder,
    )
    publish_end(page=page.path, notice=notice)
