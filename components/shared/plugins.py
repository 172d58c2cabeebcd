"""What a user plugs in (raters, rewards, judges) is named in the settings as `module:attribute` and loaded here."""

from __future__ import annotations

import importlib
from typing import Any

from components.shared.errors import InputError

__all__ = ["load_attribute"]


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
