# No postponed annotations here: KFP reads them as they are.
import inspect
from pathlib import Path

import yaml
from kfp import dsl, local
from tiny_artifacts import make_dataset, make_policy, make_reward_model

import components.evaluation.component as component_module
from components.evaluation.component import evaluation
from components.shared.artifacts import read_artifact
from components.shared.files import read_json

_SETTINGS = {"prompts": {"fresh": 3}, "max_response_tokens": 4}


def test_the_component_runs_in_a_pipeline_without_its_optional_inputs(tmp_path: Path):
    digest = read_artifact(make_policy(tmp_path / "live", seed=0), "policy").digest

    @dsl.pipeline
    def pipeline(reference: str, candidate_uri: str, candidate_digest: str, reward_model: str, dataset: str):
        scorer = dsl.importer(artifact_uri=reward_model, artifact_class=dsl.Model)
        evaluation(
            dataset=dsl.importer(artifact_uri=dataset, artifact_class=dsl.Dataset).output,
            reward_model=scorer.output,
            heldout_reward_model=scorer.output,
            reference=dsl.importer(artifact_uri=reference, artifact_class=dsl.Model).output,
            candidate_uri=candidate_uri,
            candidate_digest=candidate_digest,
            seed=0,
            settings=_SETTINGS,
            code_digest="0",
        )

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=True)
    pipeline(
        reference=make_policy(tmp_path / "reference", seed=1),
        candidate_uri=str(tmp_path / "live"),
        candidate_digest=digest,
        reward_model=make_reward_model(tmp_path / "rm", seed=2),
        dataset=make_dataset(tmp_path / "dataset", fresh=3),
    )
    written = next((tmp_path / "root").rglob("models.json")).parent
    assert read_artifact(written, "evaluation").kind == "evaluation"
    assert read_json(written / "models.json")["candidate"]["digest"] == digest


def test_metadata_names_the_inputs_and_outputs_of_the_signature():
    metadata = yaml.safe_load(Path(component_module.__file__).with_name("metadata.yaml").read_text())
    named = [port["name"] for port in metadata["inputs"] + metadata["outputs"]]
    assert sorted(named) == sorted(inspect.signature(evaluation.python_func).parameters)
