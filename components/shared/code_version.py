"""Which code made an artifact: a digest over a stage's source and what it shares with others."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__all__ = ["code_version"]

_COMPONENTS = Path(__file__).resolve().parent.parent
_SOURCE_SUFFIXES = {".py", ".yaml", ".html", ".css"}


@cache
def code_version(stage: str) -> str:
    """sha256 (hex) over the source files of `components/<stage>` and `components/shared`.

    KFP's cache keys on a component's spec and inputs and does not see the logic behind a thin shell; passed as a
    parameter, this digest makes a change of logic a change of input.
    """
    digest = hashlib.sha256()
    for folder in (_COMPONENTS / stage, _COMPONENTS / "shared"):
        for file in sorted(folder.rglob("*")):
            if file.suffix in _SOURCE_SUFFIXES and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(_COMPONENTS)).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
