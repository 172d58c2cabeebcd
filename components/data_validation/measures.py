"""What is measured of each row before it is judged: visible characters, and tokens of the base model.

Tokens are counted as training will see them: the prompt through the chat template, the answer with EOS if it is
finished. Answers are encoded in batches and a prompt once, however many rows share it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from components.data_validation.formats import TEXT_FIELDS, Candidate, Kind
from components.shared.progress import report
from components.shared.records import Prompt, prompt_text
from components.shared.tokenizers import encode_prompt

__all__ = ["measure", "visible_text"]

_BATCH = 1024
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that Unicode calls letters or symbols and that show nothing."""

_ASCII_CONTROL = {code: None for code in (*range(32), 127) if not chr(code).isspace()}

_JUDGEMENT = ("rater", "rationale", "strength", "source", "chosen_finished", "rejected_finished")


def visible_text(text: str) -> str:
    """What a reader sees of a text: NFKC, invisible characters removed, runs of white space as one space.

    Unlike `records.normalise_text` it keeps upper and lower case apart: two answers may differ in nothing else.
    """
    if text.isascii():
        return " ".join(text.translate(_ASCII_CONTROL).split())
    shown = (c for c in unicodedata.normalize("NFKC", text) if not _is_invisible(c))
    return " ".join("".join(shown).split())


def measure(candidates: Sequence[Candidate], kind: Kind, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The frame that the expectations judge: one line a candidate that has a format.

    Candidates whose prompt the chat template refuses, or whose texts hold the tokenizer's control tokens, are rejected
    on the way.

    Args:
        candidates: Rows of one kind.
        kind: The kind of data.
        tokenizer: The base model's.

    Returns:
        A `pandas.DataFrame` with `row` (index into `candidates`), the fields, `<text>_visible` in characters and
        `<text>_tokens`, NaN where a value is not text.
    """
    import pandas as pd

    rows = [number for number, candidate in enumerate(candidates) if candidate.values]
    columns: dict[str, Any] = {"row": rows}
    kept = [candidates[number] for number in rows]
    names = ("id", "slice", "group_id", "prompt", *TEXT_FIELDS[kind], *(_JUDGEMENT if kind == "preferences" else ()))
    for name in names:
        values = [
            _shown(candidate.values.get(name)) if name == "prompt" else candidate.values.get(name) for candidate in kept
        ]
        columns[name] = pd.Series(values, dtype=object)
    for name in ("prompt", *TEXT_FIELDS[kind]):
        lengths = [len(visible_text(text)) if isinstance(text, str) else None for text in columns[name]]
        columns[f"{name}_visible"] = pd.Series(lengths, dtype=float)
    columns["prompt_tokens"] = pd.Series(_prompt_tokens(kept, tokenizer), dtype=float)
    for name in TEXT_FIELDS[kind]:
        columns[f"{name}_tokens"] = pd.Series(_answer_tokens(kept, name, tokenizer), dtype=float)
    if kind == "preferences":
        columns["strength_value"] = pd.Series([_number(c.values["strength"]) for c in kept], dtype=float)
    _reject_control_tokens(kept, kind, tokenizer)
    return pd.DataFrame(columns)


def _is_invisible(character: str) -> bool:
    return character in _BLANK_LETTERS or (unicodedata.category(character) in ("Cf", "Cc") and not character.isspace())


def _shown(prompt: Any) -> Any:
    return prompt_text(_PROMPT.validate_python(prompt)) if isinstance(prompt, list) else prompt


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # an integer of hundreds of digits: out of any range, and no reason to end the step
        return math.inf


def _prompt_tokens(candidates: Sequence[Candidate], tokenizer: PreTrainedTokenizerBase) -> list[int | None]:
    lengths: dict[str, int | str] = {}
    counts: list[int | None] = []
    for number, candidate in enumerate(candidates, start=1):
        prompt = candidate.values.get("prompt")
        length = _prompt_length(prompt, tokenizer, lengths) if isinstance(prompt, str | list) else None
        if isinstance(length, str):
            candidate.reject("unrenderable_prompt", f"the chat template refuses the prompt: {length}")
        counts.append(length if isinstance(length, int) else None)
        report("count prompt tokens", number, len(candidates))
    return counts


def _prompt_length(prompt: Any, tokenizer: PreTrainedTokenizerBase, known: dict[str, int | str]) -> int | str:
    """Tokens of a prompt, or why the chat template refuses it."""
    key = prompt if isinstance(prompt, str) else repr(prompt)
    if key not in known:
        try:
            known[key] = len(encode_prompt(tokenizer, _PROMPT.validate_python(prompt)))
        except TemplateError as error:
            known[key] = str(error)
    return known[key]


def _answer_tokens(candidates: Sequence[Candidate], name: str, tokenizer: PreTrainedTokenizerBase) -> list[int | None]:
    """Tokens of each answer as `encode_response` counts them, in batches."""
    counts: list[int | None] = [None] * len(candidates)
    texts = [
        (number, candidate.values[name])
        for number, candidate in enumerate(candidates)
        if isinstance(candidate.values.get(name), str)
    ]
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        encoded: Any = tokenizer([text for _, text in batch], add_special_tokens=False)["input_ids"]
        for (number, _), ids in zip(batch, encoded, strict=True):
            finished = candidates[number].values.get(f"{name}_finished", True)
            has_eos = bool(ids) and ids[-1] == tokenizer.eos_token_id
            counts[number] = len(ids) + int(bool(finished) and not has_eos)
        report(f"count {name} tokens", start + len(batch), len(texts))
    return counts


def _reject_control_tokens(candidates: Sequence[Candidate], kind: Kind, tokenizer: PreTrainedTokenizerBase) -> None:
    """A text that spells a control token would be encoded as one, and could end or forge a turn."""
    control = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
    for candidate in candidates:
        for name in ("prompt", *TEXT_FIELDS[kind]):
            text = _shown(candidate.values.get(name))
            if isinstance(text, str) and any(token in text for token in control):
                candidate.reject("control_token", f"{name} spells one of the tokenizer's control tokens")
