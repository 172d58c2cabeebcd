"""A tokenizer and an untrained model, small enough to learn the demo world on one CPU core.

The tokenizer has one token a word and a chat template; the model is Llama- or GPT-2-shaped. Both are saved as an
ordinary Hugging Face folder, so that the pipeline meets nothing special.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from components.demo_world import vocabulary as words
from components.demo_world.answers import every_answer
from components.demo_world.prompts import all_questions

__all__ = ["CHAT_TEMPLATE", "Shape", "make_model", "make_tokenizer", "save_model_folder", "world_vocabulary"]

Shape = Literal["llama", "gpt2"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>")
_MAX_POSITIONS = 128

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<assistant>{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<' + message['role'] + '> ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def world_vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark that the world's questions and answers use, sorted."""
    rng = random.Random(0)
    seen: set[str] = set()
    for slice_name in words.SLICES:
        for question in all_questions(slice_name):
            seen.update(words.split_words(question.text))
        for question in {(q.verb, q.subject, q.detail): q for q in all_questions(slice_name)}.values():
            for answer in every_answer(question, rng):
                seen.update(words.split_words(answer))
    return tuple(sorted(seen))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the world's vocabulary, with distinct pad, bos, eos and unk tokens."""
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *world_vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=_MAX_POSITIONS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    shape: Shape = "llama",
    layers: int = 2,
    hidden_size: int = 128,
    feedforward_size: int = 256,
    heads: int = 4,
) -> PreTrainedModel:
    """A randomly initialised model; the defaults give about 0.36 M parameters.

    `initializer_range` is 0.06: with the usual 0.02 a model of this size never learns to copy slots.

    Args:
        tokenizer: Gives the vocabulary size and the special tokens.
        seed: Seed of the weights.
        shape: "llama" or "gpt2".
        layers: Transformer blocks.
        hidden_size: Width of the residual stream.
        feedforward_size: Width inside the feed-forward blocks.
        heads: Attention heads.
    """
    common = {
        "vocab_size": len(tokenizer),
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    n_layer=layers,
                    n_embd=hidden_size,
                    n_inner=feedforward_size,
                    n_head=heads,
                    n_positions=_MAX_POSITIONS,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                    resid_pdrop=0.0,
                    **common,
                )
            )
        return LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=layers,
                hidden_size=hidden_size,
                intermediate_size=feedforward_size,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                max_position_embeddings=_MAX_POSITIONS,
                **common,
            )
        )


def save_model_folder(folder: str | Path, *, seed: int, shape: Shape = "llama", **sizes: int) -> None:
    """Writes tokenizer and untrained model as a Hugging Face folder (safetensors).

    Args:
        folder: Where to.
        seed: Seed of the weights.
        shape: "llama" or "gpt2".
        **sizes: Sizes of `make_model`.
    """
    hf_logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=seed, shape=shape, **sizes).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
