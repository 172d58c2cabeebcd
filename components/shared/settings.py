"""Strict settings: unknown keys and keys given twice are errors, and every error names its path in the YAML file."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.shared.errors import InputError

__all__ = ["StrictModel", "as_parameter", "load_settings", "parse_settings", "read_yaml"]

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of all settings: immutable, numbers are finite, a misspelt key is an error rather than a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


_NULL = "null"
_LARGEST_INTEGER = 2**53 - 1
"""The largest that JSON's readers, KFP's among them, take exactly."""


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
    too_large = "; ".join(
        f"{path}: larger than {_LARGEST_INTEGER}" for path in _integers_beyond(values, _LARGEST_INTEGER)
    )
    if too_large:
        raise InputError(f"settings are not valid: {too_large}.", where=where)
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
    return parse_settings(read_yaml(path), model, where=str(path))


def read_yaml(path: str | Path) -> Any:
    """What is in a YAML file that a person wrote; None if it is empty.

    Raises:
        InputError: It cannot be read, is not YAML, or gives a key twice (YAML's readers take the last one silently, and
            a section copied to the end of a file would put the first one's limits back to their defaults).
    """
    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise InputError(f"cannot read settings: {error.strerror}.", where=str(path)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, an integer without end
        raise InputError(f"is not valid YAML: {_problem(error)}.", where=str(path)) from error


def _problem(error: Exception) -> str:
    """In one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        told = " ".join(part for part in (error.context, error.problem) if part)
        return f"{told}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node)
                if key in seen:
                    problem = f"{key_node.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def _integers_beyond(values: Any, limit: int, path: str = "") -> Iterator[str]:
    if isinstance(values, int) and abs(values) > limit:
        yield path or "(top level)"
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, item in items:
        yield from _integers_beyond(item, limit, f"{path}.{key}" if path else str(key))


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
