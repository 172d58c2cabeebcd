"""KFP shell of the human evaluation."""

from typing import NamedTuple

from kfp import dsl

from components.shared.images import LIGHT_IMAGE

__all__ = ["human_eval"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def human_eval(
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    evidence: dsl.Output[dsl.Artifact],
    seed: int,
    settings: dict,
    code_digest: str,
) -> NamedTuple("Outputs", [("complete", bool)]):  # pyright: ignore[reportInvalidTypeForm]
    """Puts the evaluation's answers before raters as blind pairs and weighs their judgements.

    Args:
        evaluation: Answers of the candidate, the reference, the champion and the checkpoints.
        dataset: Validated dataset with the prompts that they answer.
        evidence: Every judgement as given, one outcome a prompt, and the statistics.
        seed: Seed of the raters' turns and of the bootstrap.
        settings: Settings of the stage (HumanEvalSettings).
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.

    Returns:
        Whether every pair has all its votes.
    """
    from components.human_eval.stage import run
    from components.shared.artifacts import require_as_told

    require_as_told(evaluation=evaluation, dataset=dataset)
    result = run(
        evaluation=evaluation.path,
        dataset=dataset.path,
        output=evidence.path,
        seed=seed,
        settings=settings,
        locations={"evaluation": evaluation.uri, "dataset": dataset.uri},
    )
    evidence.metadata.update({name: value for name, value in result.items() if value is not None})
    outputs = NamedTuple("Outputs", [("complete", bool)])  # noqa: UP014 (KFP reads the functional form)
    return outputs(result["complete"])
