"""Tokenizers: load, supply what a base model's lacks, encode, decode.

One rule keeps training, sampling and scoring in agreement: text becomes token ids here and nowhere else. A prompt is
rendered with the tokenizer's chat template, an answer is its tokens plus EOS if it was finished; later stages pass
token ids, not text. This module needs no torch: steps that only count tokens run in the light image.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from components.shared.errors import InputError
from components.shared.hub_models import split_revision
from components.shared.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "decode_response",
    "encode_prompt",
    "encode_response",
    "first_line",
    "load_tokenizer",
    "prepare_tokenizer",
    "require_model_folder",
]

logger = logging.getLogger(__name__)

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For base models without a template; installed by supervised fine-tuning and saved with the policy."""

_PAD_TOKEN = "<|pad|>"


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a policy or reward model that Plumbline saved, or of a prepared base model.

    Raises:
        InputError: No tokenizer there, or it has no EOS, no chat template, or no pad token of its own.
    """
    tokenizer = _load_any_tokenizer(source)
    for present, what in (
        (tokenizer.chat_template, "a chat template"),
        (
            tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id,
            "a pad token apart from EOS",
        ),
    ):
        if not present:
            raise InputError(
                f"the tokenizer lacks {what}.",
                where=str(source),
                hint="Supervised fine-tuning adds it; use its policy.",
            )
    return tokenizer


def prepare_tokenizer(source: str | Path, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
    """Loads any base model's tokenizer and supplies what it lacks: chat template, pad token apart from EOS.

    A sequence classifier whose pad token is EOS would read its score before EOS, so a new pad token is added; `model`'s
    embeddings grow by it, and its config learns the token ids.

    Raises:
        InputError: No tokenizer there, or it has no EOS token, without which no answer can end.
    """
    tokenizer = _load_any_tokenizer(source)
    if not tokenizer.chat_template:
        logger.warning("%s: the tokenizer has no chat template; installing Plumbline's default.", source)
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        logger.warning("%s: no pad token apart from EOS; adding %s.", source, _PAD_TOKEN)
        tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
    if model is not None:
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:  # pyright: ignore
            model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
        if model.generation_config is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _load_any_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    require_model_folder(source)
    try:
        name, revision = split_revision(source)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no tokenizer can be loaded: {first_line(error)}", where=str(source), hint="Save one beside the weights."
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no EOS token, so no answer could end.", where=str(source), hint="Set eos_token."
        )
    tokenizer.padding_side = "right"
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt rendered with the chat template, ready for an answer."""
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [{"role": message.role, "content": message.content} for message in prompt]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, *, finished: bool = True) -> list[int]:
    """Token ids of an answer, with EOS if it is finished."""
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    if finished and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return ids


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of an answer: special tokens dropped, white space stripped."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def require_model_folder(source: str | Path) -> None:
    """Refuses a source that looks like a path and is no folder; anything else may be a hub id.

    Raises:
        InputError: No such folder.
    """
    looks_like_path = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or os.sep * 2 in str(source)
    if looks_like_path and not Path(source).is_dir():
        raise InputError("no such model folder.", where=str(source), hint="Give a folder or a hub id.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
