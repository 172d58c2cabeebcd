"""Pipelines whose parameters are a mapping: what several pipelines have in common is written once."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

__all__ = ["Given", "make_pipeline"]

Given = Mapping[str, Any]
"""A pipeline's parameters by name, inside its function."""


def make_pipeline(
    body: Callable[[Given], None], *, defaults: Given, meaning: Mapping[str, str], told: str, **options: Any
) -> Any:
    """Makes a KFP pipeline whose parameters are a mapping's: KFP reads them from the function's signature.

    Args:
        body: Places the tasks, given the parameters by name.
        defaults: The parameters, in order, with their defaults, whose types they have; a type instead of a value makes
            a parameter that must be given.
        meaning: What each means; KFP's UI shows it.
        told: What the pipeline does.
        **options: Of `dsl.pipeline`.
    """

    def pipeline(*values: Any) -> None:
        body(dict(zip(defaults, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, annotation=value)
        if isinstance(value, type)
        else inspect.Parameter(name, kind, default=value, annotation=type(value))
        for name, value in defaults.items()
    ]
    helped = "\n".join(f"    {name}: {meaning[name]}" for name in defaults)
    vars(pipeline)["__signature__"] = inspect.Signature(parameters)
    pipeline.__doc__ = f"{told}\n\nArgs:\n{helped}\n"
    return dsl.pipeline(pipeline, **options)
