from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sft import make_base_model, make_records, make_settings, make_tokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from components.sft.demonstrations import Demonstration, encode_demonstrations, training_rows
from components.sft.heldout import heldout_metrics
from components.sft.settings import SFTSettings
from components.shared.errors import InputError
from components.shared.models import DEFAULT_CHAT_TEMPLATE, encode_prompt, encode_response, load_policy
from components.shared.records import write_records


def make_chat_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def encode(folder: Path, records: list[Any], **overrides: Any) -> list[Demonstration]:
    write_records(folder / "sft.jsonl", records)
    return encode_demonstrations(folder / "sft.jsonl", make_chat_tokenizer(), SFTSettings(**make_settings(**overrides)))


def make_trainer(folder: Path, demonstrations: list[Demonstration], **overrides: Any) -> SFTTrainer:
    config = SFTConfig(
        output_dir=str(folder),
        **({"max_length": None} | overrides),
        bf16=False,
        use_cpu=True,
        report_to="none",
        activation_checkpointing=False,
        per_device_train_batch_size=len(demonstrations),
    )
    return SFTTrainer(
        model=load_policy(make_base_model(folder / "base")),
        args=config,
        train_dataset=training_rows(demonstrations, completion_only_loss=True),
        processing_class=make_chat_tokenizer(),
    )


def test_rows_are_the_ids_that_sampling_and_scoring_use(tmp_path):
    [record] = make_records(1)
    tokenizer = make_chat_tokenizer()
    rows = training_rows(encode(tmp_path, [record]), completion_only_loss=True)
    prompt, response = encode_prompt(tokenizer, record.prompt), encode_response(tokenizer, record.completion)
    assert rows["input_ids"][0] == prompt + response
    assert rows["labels"][0] == [-100] * len(prompt) + response
    assert response[-1] == tokenizer.eos_token_id


def test_the_trainer_gets_the_rows_as_they_are(tmp_path):
    demonstrations = encode(tmp_path, make_records(3))
    rows = training_rows(demonstrations, completion_only_loss=True)
    prepared = make_trainer(tmp_path, demonstrations).train_dataset
    assert prepared["input_ids"][:] == rows["input_ids"][:]
    assert prepared["labels"][:] == rows["labels"][:]


def test_prompts_are_learned_only_when_asked_for(tmp_path):
    demonstrations = encode(tmp_path, make_records(1))
    rows = training_rows(demonstrations, completion_only_loss=False)
    assert rows["labels"][0] == rows["input_ids"][0]


def test_a_cut_answer_has_no_eos(tmp_path):
    tokenizer = make_chat_tokenizer()
    [whole] = encode(tmp_path, make_records(1))
    length = len(whole.prompt_ids) + len(whole.response_ids)
    [cut] = encode(tmp_path, make_records(1), max_tokens=length - 1)
    assert cut.cut
    assert cut.response_ids == whole.response_ids[:-1]
    assert tokenizer.eos_token_id not in cut.response_ids


def test_an_overlong_record_is_named(tmp_path):
    with pytest.raises(InputError, match=r"record 'd1'.*no room"):
        encode(tmp_path, make_records(2), max_tokens=8)


def test_packed_demonstrations_do_not_attend_to_each_other(tmp_path):
    demonstrations = encode(tmp_path, make_records(5))
    padded = make_trainer(tmp_path / "padded", demonstrations)
    packed = make_trainer(tmp_path / "packed", demonstrations, packing=True, max_length=64)
    assert len(packed.train_dataset) < len(demonstrations)
    losses = []
    for trainer in (padded, packed):
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_heldout_loss_of_a_uniform_model_is_the_log_of_what_it_may_say(tmp_path):
    demonstrations = encode(tmp_path, make_records(8))
    model = load_policy(make_base_model(tmp_path / "base"))
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    metrics = heldout_metrics(model, make_chat_tokenizer(), demonstrations, batch_size=3)
    vocabulary = len(make_chat_tokenizer()) - 1  # all but the pad token, which is never said
    assert metrics["heldout_loss"] == pytest.approx(math.log(vocabulary), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(vocabulary, rel=1e-5)
    assert metrics["tokens"] == sum(len(each.response_ids) for each in demonstrations)
    assert sum(part["n"] for part in metrics["slices"].values()) == metrics["n"] == 8


def test_heldout_loss_of_a_broken_model_is_unknown_and_not_a_number(tmp_path):
    demonstrations = encode(tmp_path, make_records(2))
    model = load_policy(make_base_model(tmp_path / "base"))
    torch.nn.init.constant_(model.get_output_embeddings().weight, math.nan)
    assert heldout_metrics(model, make_chat_tokenizer(), demonstrations, batch_size=2)["heldout_loss"] is None
