import sys
from pathlib import Path

import pytest
import yaml
from fake_run import make_run
from kfp import compiler, dsl, local

from components.report import component as component_module
from components.report.component import finish, report
from components.shared.files import read_json
from components.shared.images import LIGHT_IMAGE

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from webhook_receiver import receive


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def stop():
    """Fails."""
    raise ValueError("it's over")


@dsl.pipeline
def pipeline(decision_uri: str, evaluation_uri: str):
    ended = finish(model_name="demo")
    with dsl.ExitHandler(ended):
        decision = dsl.importer(artifact_uri=decision_uri, artifact_class=dsl.Artifact, reimport=False)
        evaluation = dsl.importer(artifact_uri=evaluation_uri, artifact_class=dsl.Artifact, reimport=False)
        written = report(decision=decision.output, evaluation=evaluation.output, model_name="demo", seed=5)
        stop().after(written)


def test_a_run_with_few_of_the_artifacts_is_reported_and_its_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = make_run(tmp_path / "run", without=("history", "sft", "candidate"))
    for name in ("PLUMBLINE_DATABASE_URL", "MLFLOW_TRACKING_URI", "PLUMBLINE_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-3")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "steps"), raise_on_error=True)
    with receive(200) as (url, received):
        monkeypatch.setenv("PLUMBLINE_WEBHOOK_URL", url)
        with pytest.raises(RuntimeError, match="stop"):
            pipeline(decision_uri=artifacts["decision"], evaluation_uri=artifacts["evaluation"])
    (summary,) = (tmp_path / "steps").glob("*/report/summary")
    assert read_json(summary)["verdict"] == "PROMOTE"
    (page,) = (tmp_path / "steps").glob("*/report/page")
    assert "no history artifact" in page.read_text()
    assert received[0]["status"] == "FAILED"
    assert received[0]["run_id"] == "run-3"


@pytest.mark.parametrize("step", [report, finish])
def test_components_compile_and_their_metadata_matches(step, tmp_path: Path) -> None:
    compiler.Compiler().compile(step, str(tmp_path / "component.yaml"))
    name = step.component_spec.name
    file = "metadata.yaml" if name == "report" else f"{name}.metadata.yaml"
    metadata = yaml.safe_load(Path(component_module.__file__).with_name(file).read_text())
    assert metadata["name"] == name
    declared = {entry["name"]: entry.get("optional", False) for entry in metadata["inputs"]}
    assert declared == {key: spec.optional for key, spec in step.component_spec.inputs.items()}
    assert {entry["name"] for entry in metadata["outputs"]} == set(step.component_spec.outputs or {})
