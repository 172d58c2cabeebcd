# No postponed annotations here: KFP reads them as they are.
import inspect
from pathlib import Path

import yaml
from kfp import dsl, local

import components.collection.component as component_module
from components.collection.component import collection
from components.shared.artifacts import read_artifact, write_artifact


def _make_artifact(path: Path, kind: str) -> str:
    with write_artifact(path, kind, stage="test"):
        pass
    return str(path)


def test_the_component_passes_the_users_pairs_through_a_pipeline(tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text("{}\n")

    @dsl.pipeline
    def pipeline(policy: str, dataset: str, preference_data: str):
        model = dsl.importer(artifact_uri=policy, artifact_class=dsl.Model)
        data = dsl.importer(artifact_uri=dataset, artifact_class=dsl.Dataset)
        collection(
            policy=model.output,
            dataset=data.output,
            preference_data=preference_data,
            data_digest="0",
            plug_in_digest="0",
            seed=0,
            settings={"source": "dataset"},
            code_digest="0",
        )

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=True)
    pipeline(
        policy=_make_artifact(tmp_path / "policy", "policy"),
        dataset=_make_artifact(tmp_path / "dataset", "dataset"),
        preference_data=str(tmp_path / "mine.jsonl"),
    )
    written = next((tmp_path / "root").rglob("user/mine.jsonl"))
    assert read_artifact(written.parent.parent, "pairs").kind == "pairs"


def test_metadata_names_the_inputs_and_outputs_of_the_signature():
    metadata = yaml.safe_load(Path(component_module.__file__).with_name("metadata.yaml").read_text())
    named = [port["name"] for port in metadata["inputs"] + metadata["outputs"]]
    assert sorted(named) == sorted(inspect.signature(collection.python_func).parameters)
