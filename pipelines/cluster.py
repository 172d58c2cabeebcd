"""Pipelines for a cluster: compiled to KFP's IR YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from components.shared.errors import InputError
from pipelines.settings import RunSettings

__all__ = ["compile_pipeline"]


def compile_pipeline(settings: RunSettings, pipeline: str | None, output: str | Path) -> Path:
    """Writes a pipeline as IR YAML, with the settings as its parameters' defaults.

    Args:
        settings: The run; `execution` gives images and resources.
        pipeline: `rlhf`, `preference` or `soak`; None takes the training pipeline that `settings.optimizer` asks for.
        output: A `.yaml` file.

    Raises:
        InputError: The output is not a YAML file name.
    """
    from kfp import compiler

    from pipelines.preference import build_preference
    from pipelines.rlhf import build_rlhf
    from pipelines.soak import build_soak

    output = Path(output)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError("the output must end in .yaml or .yml.", where=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    name = pipeline or ("rlhf" if settings.optimizer == "ppo" else "preference")
    build = {"rlhf": build_rlhf, "preference": build_preference, "soak": build_soak}[name]
    compiler.Compiler().compile(cast(Any, build(settings)), package_path=str(output))
    return output
