"""What a user plugs in (raters, rewards, judges) is named in the settings as `module:attribute` and loaded here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.shared.errors import InputError
from components.shared.files import digest_of, sha256_file

__all__ = ["load_attribute", "plug_in_digest"]


def load_attribute(reference: str) -> Any:
    """Imports `module:attribute`.

    Raises:
        InputError: The reference is malformed, the module cannot be imported, or it has no such attribute.
    """
    module_name, separator, attribute = reference.partition(":")
    if not (separator and module_name and attribute):
        raise InputError(f"{reference!r} is not of the form 'module:attribute'.", where="plug-in")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"cannot import {module_name!r}: {error}.", where=f"plug-in {reference}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise InputError(f"module {module_name!r} has no {attribute!r}.", where=f"plug-in {reference}") from error


def plug_in_digest(references: Iterable[str]) -> str:
    """sha256 (hex) over the source of plug-ins: each one's module and the Python files beside it.

    A cache that knows a plug-in by its name alone would not see that its code changed.

    Raises:
        InputError: A module cannot be found.
    """
    sources = {}
    for reference in references:
        module_name = reference.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module_name)
        except ImportError as error:
            raise InputError(f"cannot import {module_name!r}: {error}.", where=f"plug-in {reference}") from error
        if spec is None:
            raise InputError(f"there is no module {module_name!r}.", where=f"plug-in {reference}")
        if spec.has_location and spec.origin:
            files = sorted(Path(spec.origin).parent.glob("*.py"))
            sources[reference] = {file.name: sha256_file(file) for file in files}
    return digest_of(sources)
