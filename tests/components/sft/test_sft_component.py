from __future__ import annotations

from pathlib import Path

import yaml
from kfp.compiler import Compiler

from components.sft import component


def test_metadata_describes_the_component_as_it_is():
    metadata = yaml.safe_load(Path(component.__file__).with_name("metadata.yaml").read_text())
    spec = component.sft.component_spec
    assert metadata["name"] == spec.name
    assert {entry["name"] for entry in metadata["inputs"]} == set(spec.inputs or {})
    assert {entry["name"] for entry in metadata["outputs"]} == set(spec.outputs or {})


def test_the_component_compiles(tmp_path):
    Compiler().compile(component.sft, str(tmp_path / "sft.yaml"))
    assert "components.sft.stage" in (tmp_path / "sft.yaml").read_text()
