"""Language models and reward models: load and save. Their tokenizers (`tokenizers`) are offered here too."""

from __future__ import annotations

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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, write_json
from components.shared.hub_models import split_revision
from components.shared.tokenizers import (
    DEFAULT_CHAT_TEMPLATE,
    decode_response,
    encode_prompt,
    encode_response,
    first_line,
    load_tokenizer,
    prepare_tokenizer,
    require_model_folder,
)

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "REWARD_ADAPTER",
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

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_HEAD = "score.weight"

REWARD_ADAPTER = "adapter"
"""Folder of a reward model's unmerged adapter."""

hf_logging.disable_progress_bar()  # a step reports its own progress
hf_logging.set_verbosity_error()  # what a load lacks is checked below, not left to a warning


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
        InputError: The architecture has no sequence classifier, a folder without weights, or a reward model without
            its head.
    """
    device = device or pick_device()
    tokenizer = load_tokenizer(source)
    config = _load_config(source)
    is_reward_model = any("SequenceClassification" in name for name in config.architectures or [])
    model = _load_weights(
        AutoModelForSequenceClassification,
        source,
        may_lack=frozenset() if is_reward_model else frozenset({_HEAD}),
        dtype=dtype or pick_dtype(device),
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not is_reward_model:
        torch.nn.init.zeros_(model.score.weight)
    return model.to(device).eval()


def save_reward_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, base_digest: str | None = None
) -> None:
    """Saves a reward model as safetensors with its tokenizer; LoRA weights are merged.

    Args:
        model: A sequence classifier, or a PEFT model over one.
        tokenizer: Its tokenizer.
        folder: Where to write.
        base_digest: Digest of the policy that an adapter was trained over. The adapter is then kept too, unmerged, in
            `adapter/`: over the very same weights a later stage can use it without loading a second model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if base_digest is not None and hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / REWARD_ADAPTER)
        write_json(folder / REWARD_ADAPTER / "base.json", {"base_digest": base_digest})
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- loading ---------------------------------------------------------------------------------------------------------


def _load_config(source: str | Path) -> Any:
    require_model_folder(source)
    try:
        name, revision = split_revision(source)
        return AutoConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise InputError(f"no model config can be loaded: {first_line(error)}", where=str(source)) from error


def _load_weights(
    model_class: Any, source: str | Path, *, may_lack: frozenset[str] = frozenset(), **options: Any
) -> Any:
    _load_config(source)
    _require_weights(source)
    try:
        name, revision = split_revision(source)
        model, found = model_class.from_pretrained(
            name, revision=revision or "main", use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"cannot be loaded as {model_class.__name__}: {first_line(error)}", where=str(source)
        ) from error
    if missing := sorted(set(found["missing_keys"]) - may_lack):
        raise InputError(
            f"the weights lack {len(missing)} tensors, {missing[0]!r} among them; they would start at random.",
            where=str(source),
            hint="Save the whole model.",
        )
    return model


def _require_weights(source: str | Path) -> None:
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(
            "the model folder has no safetensors weights.",
            where=str(source),
            hint="Save the model with save_pretrained(); pickled weights (.bin) are not read.",
        )


def read_policy_record(folder: str | Path) -> dict[str, Any]:
    """`policy.json` of a policy folder."""
    return read_json(Path(folder) / "policy.json")
