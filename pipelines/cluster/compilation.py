"""Pipelines as files: KFP's IR YAML, each component's own YAML, and PipelineVersion manifests for GitOps."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.shared.errors import InputError
from pipelines.settings import RunSettings

__all__ = [
    "PIPELINES",
    "Compiled",
    "compile_components",
    "compile_manifest",
    "compile_pipeline",
    "compiled",
    "pipeline_for",
]


@dataclass(frozen=True)
class PipelineKind:
    """A pipeline that Plumbline can write.

    Attributes:
        builder: `module:function` that makes it from a run's settings.
        account: Whose rights its runs need.
    """

    builder: str
    account: Literal["training", "promotion"]

    def build(self, settings: RunSettings) -> Any:
        module, function = self.builder.split(":")
        make: Callable[[RunSettings], Any] = getattr(importlib.import_module(module), function)
        return make(settings)


PIPELINES = {
    "rlhf": PipelineKind("pipelines.rlhf:build_rlhf", "training"),
    "preference": PipelineKind("pipelines.preference:build_preference", "training"),
    "retraining": PipelineKind("pipelines.retraining:build_retraining", "training"),
    "soak": PipelineKind("pipelines.soak:build_soak", "promotion"),
    "release": PipelineKind("pipelines.release:build_release_run", "promotion"),
    "release-live": PipelineKind("pipelines.release:build_live_release_run", "promotion"),
}


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline.

    Attributes:
        kind: Its key in `PIPELINES`.
        name: The pipeline's name on a cluster.
        version: Name of this version of it: the same content has the same name.
        documents: Its IR: the pipeline's spec and, if there is one, the platform's.
        path: The file it was compiled to.
    """

    kind: str
    name: str
    version: str
    documents: list[dict[str, Any]]
    path: Path


def pipeline_for(settings: RunSettings, pipeline: str | None) -> str:
    """The key in `PIPELINES`; None takes the training pipeline that `settings.optimizer` asks for.

    Raises:
        InputError: There is no such pipeline.
    """
    name = pipeline or ("rlhf" if settings.optimizer == "ppo" else "preference")
    if name not in PIPELINES:
        raise InputError(f"no pipeline {name!r}.", where="pipeline", hint=f"One of: {', '.join(PIPELINES)}.")
    return name


def compile_pipeline(settings: RunSettings, pipeline: str | None, output: str | Path) -> Path:
    """Writes a pipeline as IR YAML, with the settings as its parameters' defaults.

    Args:
        settings: The run; its profile gives images, resources and references.
        pipeline: A key of `PIPELINES`; None takes the training pipeline that `settings.optimizer` asks for.
        output: A `.yaml` file.

    Raises:
        InputError: The output is not a YAML file name, or the profile cannot be used.
    """
    from kfp import compiler

    output = _yaml_file(output)
    built = PIPELINES[pipeline_for(settings, pipeline)].build(settings)
    compiler.Compiler().compile(built, package_path=str(output))
    return output


def compiled(settings: RunSettings, pipeline: str | None, output: str | Path) -> Compiled:
    """As `compile_pipeline`, and what it is called on a cluster."""
    import yaml

    path = compile_pipeline(settings, pipeline, output)
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    name = documents[0]["pipelineInfo"]["name"]
    return Compiled(pipeline_for(settings, pipeline), name, _version_name(name, path), documents, path)


def compile_manifest(
    settings: RunSettings, pipeline: str | None, output: str | Path, *, namespace: str | None
) -> tuple[Path, str]:
    """Writes a pipeline as `Pipeline` and `PipelineVersion` resources, for GitOps.

    A PipelineVersion cannot be changed, so that its name follows from its content.

    Args:
        settings: The run.
        pipeline: As for `compile_pipeline`.
        output: A `.yaml` file.
        namespace: Where the resources belong; None leaves it to whoever applies them.

    Returns:
        The file, and the version's name.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    output = _yaml_file(output)
    version = compiled(settings, pipeline, output)
    options = KubernetesManifestOptions(
        pipeline_name=version.name,
        pipeline_version_name=version.version,
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        PIPELINES[version.kind].build(settings),
        package_path=str(output),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    return output, version.version


def compile_components(folder: str | Path) -> list[Path]:
    """Writes each component as YAML of its own, for other people's pipelines.

    Returns:
        The files, by name.
    """
    from kfp import compiler
    from kfp.dsl.base_component import BaseComponent

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for shell in sorted((Path(__file__).resolve().parents[2] / "components").glob("*/component.py")):
        module = importlib.import_module(f"components.{shell.parent.name}.component")
        for name in module.__all__:
            component = getattr(module, name)
            if isinstance(component, BaseComponent):
                path = folder / f"{name}.yaml"
                compiler.Compiler().compile(component, package_path=str(path))
                written.append(path)
    return written


def _yaml_file(output: str | Path) -> Path:
    output = Path(output)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError("the output must end in .yaml or .yml.", where=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _version_name(pipeline: str, path: Path) -> str:
    return f"{pipeline}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
