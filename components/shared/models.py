"""Language models, reward models and tokenizers: load, save, encode.

One rule keeps training, sampling and scoring in agreement: text becomes token ids here and nowhere else. A prompt is
rendered with the tokenizer's chat template, an answer is its tokens plus EOS if it was finished; later stages pass
token ids, not text.
"""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, write_json
from components.shared.records import Prompt

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "decode_response",
    "encode_prompt",
    "encode_response",
    "load_policy",
    "load_reward_model",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "prepare_tokenizer",
    "read_policy_record",
    "save_policy",
    "save_reward_model",
    "seed_everything",
    "stop_token_ids",
]

logger = logging.getLogger(__name__)

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For base models without a template; installed by supervised fine-tuning and saved with the policy."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PAD_TOKEN = "<|pad|>"


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float32."""
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def seed_everything(seed: int) -> None:
    """Seeds python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# --- tokenizers ------------------------------------------------------------------------------------------------------


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
    _require_folder_if_path(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no tokenizer can be loaded: {_first_line(error)}", where=str(source), hint="Save one beside the weights."
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


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's EOS and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    stops = [tokenizer.eos_token_id] + (configured if isinstance(configured, list) else [configured])
    return tuple(dict.fromkeys(int(token) for token in stops if token is not None))  # pyright: ignore[reportArgumentType]


# --- policies --------------------------------------------------------------------------------------------------------


def load_policy(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    reference: str | Path | None = None,
) -> PreTrainedModel:
    """Loads a causal language model in evaluation mode.

    Args:
        source: Folder or hub id; a folder may be an adapter over `reference`.
        dtype: Number type of the weights; by default what the device computes best.
        device: Where to put it; by default the first GPU, else the CPU.
        reference: Folder that an adapter belongs to.

    Raises:
        InputError: Not a causal language model, or a folder without weights.
        ArtifactError: An adapter without its reference.
    """
    device = device or pick_device()
    dtype = dtype or pick_dtype(device)
    if (Path(source) / "adapter_config.json").is_file():
        model = _load_adapter(Path(source), reference, dtype)
    else:
        model = _load_weights(AutoModelForCausalLM, source, dtype=dtype)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue]


def save_policy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    base_model: str,
    base_digest: str,
    step: int | None = None,
) -> None:
    """Saves a policy as safetensors with its tokenizer and `policy.json`; LoRA weights are merged into the base.

    Args:
        model: A transformers model, or a PEFT model over one.
        tokenizer: Its tokenizer.
        folder: Where to write.
        base_model: The model that training started from.
        base_digest: Digest of what training started from.
        step: The training step, for a checkpoint.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"format": "full", "base_model": base_model, "base_digest": base_digest, "step": step}
    write_json(folder / "policy.json", record)


def _load_adapter(source: Path, reference: str | Path | None, dtype: torch.dtype) -> Any:
    from peft import PeftModel

    if reference is None:
        raise ArtifactError("is an adapter; the reference that it belongs to was not given.", where=str(source))
    base = _load_weights(AutoModelForCausalLM, reference, dtype=dtype)
    return PeftModel.from_pretrained(base, str(source)).merge_and_unload()  # pyright: ignore[reportCallIssue]


# --- reward models ---------------------------------------------------------------------------------------------------


def load_reward_model(
    source: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> PreTrainedModel:
    """Loads a sequence classifier with one label, in evaluation mode.

    From a policy folder the transformer's weights are taken and the score head is new and zero: every answer scores 0
    before training, so the Bradley-Terry loss starts at ln 2.

    Raises:
        InputError: The architecture has no sequence classifier, or a folder without weights.
    """
    device = device or pick_device()
    tokenizer = load_tokenizer(source)
    config = _load_config(source)
    is_reward_model = any("SequenceClassification" in name for name in config.architectures or [])
    model = _load_weights(
        AutoModelForSequenceClassification,
        source,
        dtype=dtype or pick_dtype(device),
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not is_reward_model:
        torch.nn.init.zeros_(model.score.weight)
    return model.to(device).eval()


def save_reward_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Saves a reward model as safetensors with its tokenizer; LoRA weights are merged."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- loading ---------------------------------------------------------------------------------------------------------


def _load_config(source: str | Path) -> Any:
    _require_folder_if_path(source)
    try:
        return AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise InputError(f"no model config can be loaded: {_first_line(error)}", where=str(source)) from error


def _load_weights(model_class: Any, source: str | Path, **options: Any) -> Any:
    _load_config(source)
    _require_weights(source)
    try:
        return model_class.from_pretrained(str(source), use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"cannot be loaded as {model_class.__name__}: {_first_line(error)}", where=str(source)
        ) from error


def _require_folder_if_path(source: str | Path) -> None:
    looks_like_path = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or os.sep * 2 in str(source)
    if looks_like_path and not Path(source).is_dir():
        raise InputError("no such model folder.", where=str(source), hint="Give a folder or a hub id.")


def _require_weights(source: str | Path) -> None:
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(
            "the model folder has no safetensors weights.",
            where=str(source),
            hint="Save the model with save_pretrained(); pickled weights (.bin) are not read.",
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_policy_record(folder: str | Path) -> dict[str, Any]:
    """`policy.json` of a policy folder."""
    return read_json(Path(folder) / "policy.json")
