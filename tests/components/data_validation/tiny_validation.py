"""Helpers of these tests: a tiny tokenizer, rows of each kind, files of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from components.data_validation.formats import Candidate
from components.data_validation.sources import RawRow

WORDS = [f"w{number}" for number in range(500)]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}"
    "{{ message['role'] }} {{ message['content'] }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token a word."""
    names = ["<unk>", "<eos>", "<pad>", "user", "assistant", "system", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(folder: Path) -> str:
    """The tokenizer as a folder that stands for a base model."""
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def words(number: int, count: int = 4) -> str:
    """Some words that no other number has in this order."""
    return " ".join(WORDS[(number * 7 + step * (1 + number // 500)) % 500] for step in range(count)) + f" n{number}"


def make_sft(number: int, **overrides: Any) -> dict[str, Any]:
    return {"prompt": f"ask {words(number)}", "completion": f"say {words(number, 6)}", "slice": "one", **overrides}


def make_prompt(number: int, **overrides: Any) -> dict[str, Any]:
    return {"prompt": f"ask {words(number)}", "slice": "one" if number % 2 else "two", **overrides}


def make_pair(number: int, **overrides: Any) -> dict[str, Any]:
    longer, shorter = f"yes {words(number, 6)}", f"no {words(number, 5)}"
    chosen, rejected = (longer, shorter) if number % 2 else (shorter, longer)
    return {"prompt": f"ask {words(number)}", "chosen": chosen, "rejected": rejected, "slice": "one", **overrides}


def write_rows(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_candidate(line: int = 1, **values: Any) -> Candidate:
    return Candidate(RawRow("data.jsonl", line, dict(values)), dict(values))


def checks_of(candidates: list[Candidate]) -> list[list[str]]:
    """Names of the checks that each candidate failed."""
    return [[reason.check for reason in candidate.reasons] for candidate in candidates]
