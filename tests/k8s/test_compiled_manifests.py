"""What `plumbline compile --manifest` writes, a cluster takes: the resources' schemas, names, and sizes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from pipelines.cluster.compilation import PIPELINES, compile_manifest
from pipelines.settings import RunSettings, load_run_settings
from tests.k8s.manifests import Manifest, load
from tests.k8s.schemas import schema_problems

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LARGEST_APPLIED = 262_144
"""Bytes of an object that `kubectl apply` can keep in the annotation `last-applied-configuration`."""


def _settings() -> RunSettings:
    """With the most that a profile can add: prod's."""
    values = load_run_settings("gpu-example").model_dump(mode="json")
    image = {"image": "registry.example.com/plumbline/plumbline-light@sha256:" + "0" * 64}
    values["execution"] = {"profile": "prod", "light": image, "train": image}
    return RunSettings.model_validate(values)


def _compiled(pipeline: str, folder: Path) -> list[Manifest]:
    path, version = compile_manifest(_settings(), pipeline, folder / "manifest.yaml", namespace="plumbline")
    manifests = load(path.read_text())
    assert [one["kind"] for one in manifests] == ["Pipeline", "PipelineVersion"]
    assert manifests[1]["metadata"]["name"] == version
    return manifests


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_resources_of_a_pipeline_fit_their_definitions(pipeline: str, tmp_path: Path) -> None:
    manifests = _compiled(pipeline, tmp_path)
    assert [problem for one in manifests for problem in schema_problems(one)] == []
    owner, version = manifests
    assert version["spec"]["pipelineName"] == owner["metadata"]["name"]
    for one in manifests:
        assert _NAME.fullmatch(one["metadata"]["name"])
        assert len(json.dumps(one).encode()) < _LARGEST_APPLIED


@pytest.mark.parametrize(
    ("field", "value"), [("pipelineSpec", None), ("pipelineSpec", "text"), ("pipelineId", "1"), ("displayName", 3)]
)
def test_a_version_of_another_shape_is_noticed(field: str, value: object, tmp_path: Path) -> None:
    version = copy.deepcopy(_compiled("soak", tmp_path)[1])
    if value is None:
        del version["spec"][field]
    else:
        version["spec"][field] = value
    assert schema_problems(version)
