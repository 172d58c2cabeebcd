"""What a cluster is asked for, in files that a reviewer can read: one for each pipeline and profile.

`make golden` writes them anew; the diff is then for a person to read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from compiled_view import view

from pipelines.cluster import compile_pipeline
from pipelines.placement import shipped_profiles
from pipelines.settings import RunSettings, load_run_settings

_GOLDEN = Path(__file__).parent / "golden"
_PIPELINES = ["rlhf", "preference", "retraining", "soak", "release", "release-live"]
_IMAGE = "registry.example.com/plumbline/{kind}@sha256:" + "0" * 64


def _settings(profile: str) -> RunSettings:
    """The GPU example without resources of its own: what is seen is the profile's."""
    values = load_run_settings("gpu-example").model_dump(mode="json")
    images = {kind: {"image": _IMAGE.format(kind=kind)} for kind in ("light", "train")}
    values["execution"] = {"profile": profile, **(images if profile == "prod" else {})}
    return RunSettings.model_validate(values)


@pytest.mark.parametrize("profile", shipped_profiles())
@pytest.mark.parametrize("pipeline", _PIPELINES)
def test_a_compiled_pipeline_is_what_the_golden_file_says(
    pipeline: str, profile: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seen = view(compile_pipeline(_settings(profile), pipeline, tmp_path / "pipeline.yaml"))
    golden = _GOLDEN / f"{pipeline}-{profile}.yaml"
    if request.config.getoption("--golden"):
        golden.write_text(seen)
    assert golden.is_file(), "no golden file; `make golden` writes it"
    assert seen == golden.read_text(), f"{golden.name} differs; if that is meant, `make golden` and read the diff"


def test_a_golden_file_notices_a_changed_secret(tmp_path: Path) -> None:
    path = compile_pipeline(_settings("dev"), "rlhf", tmp_path / "pipeline.yaml")
    path.write_text(path.read_text().replace("plumbline-mlflow", "somebody-elses"))
    assert view(path) != (_GOLDEN / "rlhf-dev.yaml").read_text()
