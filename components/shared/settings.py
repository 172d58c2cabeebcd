"""Strict settings: unknown keys are errors, and every error names its path in the YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.shared.errors import InputError

__all__ = ["StrictModel", "as_parameter", "load_settings", "parse_settings"]

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of all settings: immutable, and a misspelt key is an error rather than a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


_NULL = "null"


def as_parameter(model: BaseModel) -> dict[str, Any]:
    """Settings as a KFP parameter. KFP has no null: None becomes the text `null`, which `parse_settings` turns back."""
    return _replace(model.model_dump(mode="json"), None, _NULL)


def parse_settings(values: Any, model: type[Model], *, where: str) -> Model:
    """Validates `values` against `model`.

    Args:
        values: Parsed YAML or JSON; None stands for an empty mapping, the string `null` for None.
        model: The settings model.
        where: What the values came from, for the error.

    Raises:
        InputError: One line per fault, each with its dotted path.
    """
    try:
        return model.model_validate({} if values is None else _replace(values, _NULL, None))
    except ValidationError as error:
        faults = "; ".join(_describe(fault) for fault in error.errors())
        raise InputError(f"settings are not valid: {faults}.", where=where) from error


def load_settings(path: str | Path, model: type[Model]) -> Model:
    """Reads a YAML file into a settings model.

    Raises:
        InputError: The file is missing, is not YAML, or does not fit the model.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read settings: {error.strerror}.", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"is not valid YAML: {error}.", where=str(path)) from error
    return parse_settings(values, model, where=str(path))


def _replace(value: Any, old: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, old, new) for item in value]
    return new if value is old or (isinstance(value, str) and value == old) else value


def _describe(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown setting; check its spelling"
    message = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    if fault["type"] == "value_error" and not path:
        return message  # about several settings at once, which it names
    return f"{path or '(top level)'}: {message}, got {fault['input']!r}"
