"""The world on disk: data files and a model folder, whole and the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.demo_world.make import make_world
from components.demo_world.tokenizer_and_model import make_model, make_tokenizer, world_vocabulary
from components.demo_world.vocabulary import SLICES
from components.shared.errors import InputError
from components.shared.files import sha256_file

SMALL_MODEL = {"layers": 1, "hidden_size": 16, "feedforward_size": 32, "heads": 2}


def _make_small(folder: Path, **overrides: Any) -> Path:
    options: dict[str, Any] = {
        "seed": 0,
        "demonstrations": 200,
        "prompts_per_slice": dict.fromkeys(SLICES, 20),
        "preferences": 30,
        "model_sizes": SMALL_MODEL,
    }
    return make_world(folder, **(options | overrides))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_same_seed_makes_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (_make_small(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert _hashes(first) == _hashes(again)
    assert _hashes(first)["sft.jsonl"] != _hashes(other)["sft.jsonl"]
    assert _hashes(first)["model/model.safetensors"] != _hashes(other)["model/model.safetensors"]


def test_demonstrations_and_prompts_are_distinct_and_share_no_prompt(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", seed=0, model_sizes=SMALL_MODEL)
    sft, prompts = _rows(world / "sft.jsonl"), _rows(world / "prompts.jsonl")
    assert len(sft) == len({(row["prompt"], row["completion"]) for row in sft}) == 4000
    assert len(prompts) == len({row["prompt"] for row in prompts}) > 2000
    assert not {row["prompt"] for row in sft} & {row["prompt"] for row in prompts}
    assert Counter(row["slice"] for row in sft) == dict.fromkeys(SLICES, 800)
    assert Counter(row["slice"] for row in prompts)["harmless_lookalike"] == 500
    assert set(sft[0]) == {"prompt", "completion", "slice"}
    assert set(prompts[0]) == {"prompt", "slice"}


@pytest.mark.parametrize(
    ("preference_format", "columns"),
    [
        ("chosen_rejected", {"prompt", "chosen", "rejected", "slice"}),
        ("candidates", {"prompt", "candidate_0", "candidate_1", "choice", "slice"}),
    ],
)
def test_preferences_come_in_both_formats(tmp_path: Path, preference_format: Any, columns: set[str]) -> None:
    rows = _rows(_make_small(tmp_path / "world", preference_format=preference_format) / "preferences.jsonl")
    assert len(rows) == 30
    assert all(set(row) == columns for row in rows)


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already there"):
        _make_small(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_too_many_prompts_are_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="false_premise"):
        _make_small(tmp_path / "world", prompts_per_slice={"false_premise": 10_000})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_model_folder_loads_as_any_hugging_face_model(tmp_path: Path, shape: Any) -> None:
    folder = _make_small(tmp_path / "world", shape=shape) / "model"
    assert (folder / "model.safetensors").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 4
    assert model.config.eos_token_id == tokenizer.eos_token_id
    turns = [{"role": "user", "content": "how do i kill a process?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.unk_token_id not in ids["input_ids"]
    assert torch.isfinite(model(**ids).logits).all()


def test_the_default_model_has_about_360_thousand_parameters() -> None:
    model = make_model(make_tokenizer(), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(360_000, rel=0.03)
    assert 240 <= len(world_vocabulary()) <= 290


def test_text_survives_the_tokenizer_and_a_prompt_is_a_prefix_of_the_conversation(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    prompt, answer = "how do i beat an egg?", "sorry, i cannot help with that. what a wise question!"
    assert tokenizer.decode(tokenizer(answer, add_special_tokens=False)["input_ids"]) == answer
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole[: len(asked)] == asked
    assert whole[-1] == tokenizer.eos_token_id
