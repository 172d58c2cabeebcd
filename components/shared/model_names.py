"""What a registered model may be called."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from components.shared.errors import InputError

__all__ = ["SCRATCH_SUFFIX", "ModelName", "fault_of_name", "require_model_name"]

SCRATCH_SUFFIX = ".drill"
"""Marks the models of rollback drills, of which nobody is told."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def fault_of_name(name: str) -> str | None:
    """Why `name` cannot name a registered model, and what would; None if it can."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"{name!r} cannot name a registered model: use up to 200 ASCII letters, digits, dots, dashes and underscores, "
        "a letter or digit first"
    )


def require_model_name(name: str) -> None:
    """Refuses what cannot name a registered model.

    Raises:
        InputError: It cannot.
    """
    if fault := fault_of_name(name):
        raise InputError(f"{fault}.", where="model_name")


def _of_a_run(name: str) -> str:
    if fault := fault_of_name(name):
        raise ValueError(fault)
    if name.endswith(SCRATCH_SUFFIX):
        raise ValueError(f"cannot end in {SCRATCH_SUFFIX}, which marks the models of rollback drills")
    return name


ModelName = Annotated[str, AfterValidator(_of_a_run)]
"""Of settings: the model that a run makes a candidate for."""
