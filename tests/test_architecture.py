"""The house rules of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGES = sorted(
    path.parent.name for path in (ROOT / "components").glob("*/__init__.py") if path.parent.name != "shared"
)
MAY_IMPORT = {"review": {"human_eval", "release_gate"}}
HEAVY = {
    "torch",
    "trl",
    "transformers",
    "peft",
    "great_expectations",
    "mlflow",
    "matplotlib",
    "datasets",
    "statsmodels",
}


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, at whatever depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_itself_and_shared_only(stage: str) -> None:
    allowed = {stage, "shared"} | MAY_IMPORT.get(stage, set())
    for path in _sources(f"components/{stage}"):
        stages = {name.split(".")[1] for name in _imports(path) if name.startswith("components.")}
        assert stages <= allowed, f"{path.relative_to(ROOT)} imports {sorted(stages - allowed)}"
        assert not any(name.split(".")[0] == "pipelines" for name in _imports(path)), path


def test_shared_imports_no_stage() -> None:
    for path in _sources("components/shared"):
        stages = {name.split(".")[1] for name in _imports(path) if name.startswith("components.")}
        assert stages <= {"shared"}, path


def test_only_the_demo_world_knows_the_hidden_taste() -> None:
    for path in _sources("components") + _sources("pipelines"):
        if "demo_world" not in path.parts:
            assert not any(name.endswith("demo_world.gold") or ".gold." in name for name in _imports(path)), path
    knowing = {
        path.name
        for path in _sources("components/demo_world")
        if any("demo_world.gold" in name for name in _imports(path))
    }
    assert knowing == {"raters.py"}, "only the simulated raters may ask the gold scorer"


def test_logic_imports_no_kfp() -> None:
    for path in _sources("components"):
        if path.name != "component.py":
            assert not any(name.split(".")[0] == "kfp" for name in _imports(path)), path


@pytest.mark.parametrize("stage", [s for s in STAGES if (ROOT / "components" / s / "settings.py").exists()])
def test_settings_and_shells_load_without_heavy_libraries(stage: str) -> None:
    modules = [f"components.{stage}.settings"]
    if (ROOT / "components" / stage / "component.py").exists():
        modules.append(f"components.{stage}.component")
    code = f"import sys, {', '.join(modules)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"


def test_help_loads_neither_kfp_nor_a_training_library() -> None:
    code = "import sys, pipelines.cli; print(sorted(({'kfp'} | %r) & set(sys.modules)))" % HEAVY  # noqa: UP031
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"


def _components() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((ROOT / "components").glob("*/*metadata.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found.append((document["name"], path))
    return found


def test_every_stage_of_the_pipeline_has_metadata() -> None:
    shells = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    assert {path.parent.name for _, path in _components()} == shells


@pytest.mark.parametrize(("name", "path"), _components(), ids=[name for name, _ in _components()])
def test_metadata_agrees_with_the_component_signature(name: str, path: Path) -> None:
    document = next(d for d in yaml.safe_load_all(path.read_text()) if d["name"] == name)
    component = getattr(importlib.import_module(f"components.{path.parent.name}.component"), name)
    spec = component.component_spec
    assert {entry["name"] for entry in document.get("inputs") or []} == set(spec.inputs or {})
    assert {entry["name"] for entry in document.get("outputs") or []} == set(spec.outputs or {})


def test_bodies_of_components_are_thin() -> None:
    for path in (ROOT / "components").glob("*/component.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                statements = [
                    s for s in node.body if not isinstance(s, ast.Expr) or not isinstance(s.value, ast.Constant)
                ]
                lines = sum((s.end_lineno or s.lineno) - s.lineno + 1 for s in statements)
                assert lines <= 40, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines of body"


def test_telemetry_is_off_once_components_is_imported() -> None:
    code = (
        "import os; [os.environ.pop(k, None) for k in ('HF_HUB_DISABLE_TELEMETRY', 'MLFLOW_DISABLE_TELEMETRY')];"
        "import components; print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['MLFLOW_DISABLE_TELEMETRY'],"
        "os.environ['GX_ANALYTICS_ENABLED'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "1",
        "true",
        "false",
    ]
