from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from components.demo_world.tokenizer_and_model import make_model, make_tokenizer
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json
from components.shared.models import (
    DEFAULT_CHAT_TEMPLATE,
    decode_response,
    encode_prompt,
    encode_response,
    load_policy,
    load_reward_model,
    load_tokenizer,
    prepare_tokenizer,
    save_policy,
    save_reward_model,
    stop_token_ids,
)
from components.shared.records import Message
from components.shared.scoring import rewards

SIZES: dict[str, Any] = {"layers": 1, "hidden_size": 16, "feedforward_size": 32, "heads": 2}
SHAPES = ("llama", "gpt2")


def _make_bare_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, like GPT-2's: no pad token and no chat template unless given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<|endoftext|>", **special})


def _make_folder(folder: Path, *, shape: str = "llama", tokenizer: Any = None, seed: int = 0) -> Path:
    tokenizer = tokenizer or make_tokenizer()
    make_model(tokenizer, seed=seed, shape=shape, **SIZES).save_pretrained(str(folder))  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(str(folder))
    return folder


def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "lack"),
    [
        ({}, "chat template"),
        ({"chat_template": DEFAULT_CHAT_TEMPLATE}, "pad token apart from EOS"),
        ({"chat_template": DEFAULT_CHAT_TEMPLATE, "pad_token": "<|endoftext|>"}, "pad token apart from EOS"),
    ],
)
def test_a_tokenizer_that_lacks_something_is_refused_and_prepared_for_training(
    tmp_path: Path, special: dict[str, str], lack: str
):
    _make_bare_tokenizer(**special).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=lack):
        load_tokenizer(tmp_path)
    prepared = prepare_tokenizer(tmp_path)
    assert prepared.chat_template
    assert prepared.pad_token_id != prepared.eos_token_id
    prepared.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == prepared.pad_token_id


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path):
    _make_bare_tokenizer(eos_token=None).save_pretrained(tmp_path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="no EOS"):
        prepare_tokenizer(tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_pad_token_grows_the_models_embeddings(tmp_path: Path, shape: str):
    bare = _make_bare_tokenizer()
    model = make_model(bare, seed=0, shape=shape, **SIZES)  # pyright: ignore[reportArgumentType]
    bare.save_pretrained(tmp_path)
    prepared = prepare_tokenizer(tmp_path, model)
    assert model.config.pad_token_id == prepared.pad_token_id == len(bare)
    assert _logits(model, [prepared.pad_token_id]).shape[-1] >= len(prepared)  # pyright: ignore[reportArgumentType]


def test_a_folder_without_a_tokenizer_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(InputError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="no such model folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_stop_tokens_are_the_tokenizers_and_the_models():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0, **SIZES)
    model.generation_config.eos_token_id = [5, 6]  # pyright: ignore[reportOptionalMemberAccess]
    assert stop_token_ids(tokenizer, model) == (tokenizer.eos_token_id, 5, 6)


# --- text and token ids ----------------------------------------------------------------------------------------------


def test_a_text_prompt_is_one_turn_of_the_user():
    tokenizer = make_tokenizer()
    as_turn = encode_prompt(tokenizer, [Message(role="user", content="why is it so ?")])
    assert encode_prompt(tokenizer, "why is it so ?") == as_turn
    assert as_turn[0] == tokenizer.bos_token_id
    assert as_turn.count(tokenizer.bos_token_id) == 1


def test_a_finished_answer_ends_with_one_eos_and_a_cut_one_with_none():
    tokenizer = make_tokenizer()
    finished, cut = (encode_response(tokenizer, "it is so .", finished=flag) for flag in (True, False))
    assert finished == [*cut, tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in cut


def test_a_blank_finished_answer_is_eos_alone():
    tokenizer = make_tokenizer()
    assert encode_response(tokenizer, "") == [tokenizer.eos_token_id]
    assert decode_response(tokenizer, [tokenizer.eos_token_id]) == ""  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["", "plain", "naïve — 日本 🙂", 'two\nlines\tand "quotes"', "<|endoftext|", "a  b"])
def test_an_answer_survives_encoding_and_decoding(text: str):
    tokenizer = _make_bare_tokenizer()
    assert decode_response(tokenizer, encode_response(tokenizer, text)) == text.strip()


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_policy_loads_with_the_same_logits(tmp_path: Path, shape: str):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0, shape=shape, **SIZES).eval()  # pyright: ignore[reportArgumentType]
    save_policy(model, tokenizer, tmp_path / "policy", base_model="tiny", base_digest="d", step=3)
    loaded = load_policy(tmp_path / "policy")
    assert not loaded.training
    torch.testing.assert_close(_logits(loaded, [1, 9, 8]), _logits(model, [1, 9, 8]))
    record = read_json(tmp_path / "policy" / "policy.json")
    assert record == {"format": "full", "base_model": "tiny", "base_digest": "d", "step": 3}


def _make_adapter(base: Path, folder: Path) -> Any:
    """Saves a LoRA adapter with random weights over `base`; returns the adapted model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(base))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    adapted.save_pretrained(str(folder))
    return adapted


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_weights_are_merged_when_a_policy_is_saved(tmp_path: Path, shape: str):
    base = _make_folder(tmp_path / "base", shape=shape)
    adapted = _make_adapter(base, tmp_path / "adapter")
    expected = _logits(adapted, [1, 9, 8])
    save_policy(adapted, make_tokenizer(), tmp_path / "policy", base_model="tiny", base_digest="d")
    assert not (tmp_path / "policy" / "adapter_config.json").exists()
    torch.testing.assert_close(_logits(load_policy(tmp_path / "policy"), [1, 9, 8]), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_loads_over_its_reference_and_not_without(tmp_path: Path):
    base = _make_folder(tmp_path / "base")
    adapted = _make_adapter(base, tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter", reference=base)
    torch.testing.assert_close(_logits(loaded, [1, 9, 8]), _logits(adapted, [1, 9, 8]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ArtifactError, match="reference"):
        load_policy(tmp_path / "adapter")


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_a_folder_without_weights_is_an_error_that_says_what_to_do(tmp_path: Path, load: Any):
    folder = _make_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no safetensors weights.*save_pretrained"):
        load(folder)


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
@pytest.mark.parametrize("kept_bytes", [0, 100, -100])
def test_truncated_weights_are_an_error(tmp_path: Path, load: Any, kept_bytes: int):
    weights = _make_folder(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path / "model")


def test_a_folder_without_config_is_an_error(tmp_path: Path):
    folder = _make_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config"):
        load_policy(folder)


# --- reward models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_an_untrained_reward_model_scores_every_answer_zero(tmp_path: Path, shape: str):
    folder = _make_folder(tmp_path / "policy", shape=shape)
    model = load_reward_model(folder)
    scores = rewards(model, load_tokenizer(folder), [[1, 9], [1, 9]], [[8, 2], [7, 7, 2]])
    assert scores.tolist() == [0.0, 0.0]
    policy = load_policy(folder)
    for name, weights in policy.base_model.state_dict().items():
        torch.testing.assert_close(model.base_model.state_dict()[name], weights)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trained_reward_model_keeps_its_head(tmp_path: Path, shape: str):
    folder = _make_folder(tmp_path / "policy", shape=shape)
    tokenizer, model = load_tokenizer(folder), load_reward_model(folder)
    torch.nn.init.normal_(model.score.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    save_reward_model(model, tokenizer, tmp_path / "rm")
    before, after = (
        rewards(each, tokenizer, [[1, 9]], [[8, 2]]) for each in (model, load_reward_model(tmp_path / "rm"))
    )
    torch.testing.assert_close(before, after)
    assert float(after.abs().sum()) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reward_model_without_its_head_is_an_error(tmp_path: Path, shape: str):
    folder = _make_folder(tmp_path / "policy", shape=shape)
    save_reward_model(load_reward_model(folder), load_tokenizer(folder), tmp_path / "rm")
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "rm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors, 'score\.weight'"):
        load_reward_model(tmp_path / "rm")
