# No postponed annotations here: KFP reads them as they are.
"""The component runs in a pipeline in both its shapes."""

import inspect
from pathlib import Path

import yaml
from kfp import compiler, dsl, local
from tiny_validation import make_pair, make_prompt, make_sft, save_tokenizer, write_rows

import components.data_validation.component as component_module
from components.data_validation.component import data_validation
from components.shared.artifacts import read_artifact, write_artifact


@dsl.pipeline
def both_tasks(sft_data: str, prompt_data: str, pairs_uri: str, base_model: str):
    pairs = dsl.importer(artifact_uri=pairs_uri, artifact_class=dsl.Dataset)
    first = data_validation(
        sft_data=sft_data,
        prompt_data=prompt_data,
        base_model=base_model,
        settings={},
        data_digest="d",
        code_digest="c",
    )
    data_validation(
        pairs=pairs.output,
        prompts_dataset=first.outputs["dataset"],
        base_model=base_model,
        settings={},
        data_digest="d",
        code_digest="c",
    )


def test_both_tasks_run_in_a_local_pipeline(tmp_path: Path):
    with write_artifact(tmp_path / "pairs", "pairs", stage="test") as draft:
        write_rows(draft.path / "pairs.jsonl", [make_pair(n) for n in range(80)])
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=True)
    both_tasks(
        sft_data=write_rows(tmp_path / "sft.jsonl", [make_sft(n) for n in range(80)]),
        prompt_data=write_rows(tmp_path / "prompts.jsonl", [make_prompt(n) for n in range(80)]),
        pairs_uri=str(tmp_path / "pairs"),
        base_model=save_tokenizer(tmp_path / "model"),
    )
    (train,) = (tmp_path / "root").rglob("preferences/train.jsonl")
    dataset = read_artifact(train.parent.parent, "dataset")
    assert set(dataset.manifest["inputs"]) == {"pairs", "prompts_dataset"}
    pages = [path for path in (tmp_path / "root").rglob("report*") if path.is_file() and path.name == "report"]
    assert len(pages) == 2
    assert all("PASSED" in page.read_text() for page in pages)


def test_the_component_compiles_with_optional_artifacts(tmp_path: Path):
    compiler.Compiler().compile(data_validation, str(tmp_path / "component.yaml"))
    definition = yaml.safe_load((tmp_path / "component.yaml").read_text())
    artifacts = definition["components"]["comp-data-validation"]["inputDefinitions"]["artifacts"]
    assert {name: port["isOptional"] for name, port in artifacts.items()} == {"pairs": True, "prompts_dataset": True}


def test_metadata_names_the_inputs_and_outputs_of_the_signature():
    metadata = yaml.safe_load(Path(component_module.__file__).with_name("metadata.yaml").read_text())
    named = [port["name"] for port in metadata["inputs"] + metadata["outputs"]]
    assert sorted(named) == sorted(inspect.signature(data_validation.python_func).parameters)
