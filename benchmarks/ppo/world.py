"""Writes the artifacts that both sides load: policy, reward model, prompts, drawn lengths.

Run in Plumbline's environment. Weights are random: speed, memory and parity do not depend on what a model has learned.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.ppo.workload import WORKLOAD_FILE, Workload, draw_lengths, draw_prompts
from components.shared.artifacts import write_artifact
from components.shared.files import write_json
from components.shared.models import save_policy, save_reward_model
from components.shared.records import PromptRecord, write_records

__all__ = ["write_world"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ ' ' + message['content'] }}{% endfor %}"


def write_world(folder: Path, workload: Workload) -> None:
    """Writes `policy`, `reward`, `dataset` (artifacts) and `workload.json` into `folder`."""
    tokenizer = _tokenizer(workload.vocabulary)
    prompts = draw_prompts(workload)
    torch.manual_seed(workload.seed)
    with write_artifact(folder / "policy", "policy", stage="sft") as draft:
        policy = LlamaForCausalLM(_config(workload))
        save_policy(policy, tokenizer, draft.path, base_model="random", base_digest="0" * 64)
    with write_artifact(folder / "reward", "reward_model", stage="reward_model") as draft:
        save_reward_model(LlamaForSequenceClassification(_config(workload, num_labels=1)), tokenizer, draft.path)
        write_json(draft.path / "reward.json", {"mean": 0.0, "std": 1.0, "slope": 1.0})
    with write_artifact(folder / "dataset", "dataset", stage="data_validation") as draft:
        words = tokenizer.convert_ids_to_tokens
        records = [
            PromptRecord(id=str(number), prompt=" ".join(words(ids[1:])), slice="all")
            for number, ids in enumerate(prompts)
        ]
        write_records(draft.path / "prompts/train.jsonl", records)
    content = {"workload": workload.to_json(), "prompts": prompts, "lengths": draw_lengths(workload)}
    (folder / WORKLOAD_FILE).write_text(json.dumps(content), encoding="utf-8")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), vocabulary))]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=_TEMPLATE,
    )


def _config(workload: Workload, **overrides: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=workload.intermediate,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.kv_heads or workload.heads,
        tie_word_embeddings=workload.tied,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **overrides,
    )
