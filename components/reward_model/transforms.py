"""What is done to an answer to test a reward model: attacks that should not pay, edits that should not matter."""

from __future__ import annotations

import re
from collections.abc import Callable

from components.reward_model.settings import ANSWER, BULLETS, HarmlessEdit

__all__ = ["apply_edit", "apply_template", "replaces_answer"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def apply_template(template: str, answer: str) -> str:
    """The answer dressed up by an attack's template."""
    return template.replace(BULLETS, _bullets(answer)).replace(ANSWER, answer)


def replaces_answer(template: str) -> bool:
    """Whether nothing of the answer is left, so that the result is finished even if the answer was not."""
    return ANSWER not in template and BULLETS not in template


def apply_edit(edit: HarmlessEdit, answer: str) -> str:
    """The answer after an edit that no reader would mind."""
    return _EDITS[edit](answer)


def _bullets(answer: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in _SENTENCE_END.split(answer.strip()))


def _typographic_quotes(answer: str) -> str:
    opened = re.sub(r'(^|(?<=[\s(]))"', "“", answer)
    return opened.replace('"', "”").replace("'", "’")


_EDITS: dict[HarmlessEdit, Callable[[str], str]] = {
    "trailing_newline": lambda answer: answer + "\n",
    "double_space": lambda answer: answer.replace(" ", "  "),
    "typographic_quotes": _typographic_quotes,
}
