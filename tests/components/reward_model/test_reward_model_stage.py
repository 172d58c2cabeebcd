from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import make_dataset, make_pairs, make_policy, make_record, make_records, make_settings, make_tokenizer

from components.reward_model import stage
from components.reward_model.settings import RewardModelSettings
from components.reward_model.train import make_trainer, training_rows
from components.shared import hf_training
from components.shared.artifacts import read_artifact
from components.shared.errors import InputError
from components.shared.files import read_json, read_jsonl, sha256_file
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE, TrainingFolder
from components.shared.models import REWARD_ADAPTER, encode_prompt, encode_response, load_reward_model, load_tokenizer
from components.shared.scoring import rewards


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    make_dataset(folder / "data", train=make_judged_records(100), heldout=make_judged_records(100))
    make_policy(folder / "llama")
    make_policy(folder / "gpt2", kind="gpt2")
    return folder


@pytest.fixture(autouse=True)
def no_services(monkeypatch):
    monkeypatch.delenv(CHECKPOINTS_VARIABLE, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make_judged_records(n: int) -> list[Any]:
    """Every seventh pair was judged the other way round."""
    return [
        record.model_copy(update={"chosen": record.rejected, "rejected": record.chosen}) if i % 7 == 0 else record
        for i, record in enumerate(make_records(n))
    ]


def run(world: Path, output: Path, *, policy: str = "llama", split: str = "train", **overrides: Any) -> dict[str, Any]:
    return stage.run(
        policy=world / policy,
        dataset=world / "data",
        output=output,
        train_split=split,
        seed=0,
        settings=make_settings(**overrides),
    )


def score(folder: Path, response: str) -> float:
    tokenizer = load_tokenizer(folder)
    prompt, answer = encode_prompt(tokenizer, "how do i fix it"), encode_response(tokenizer, response)
    return rewards(load_reward_model(folder), tokenizer, [prompt], [answer]).item()


@pytest.mark.parametrize(("parameterisation", "learning_rate"), [("full", 0.005), ("lora", 0.02)])
def test_it_learns_what_people_prefer(world, tmp_path, parameterisation, learning_rate):
    metadata = run(world, tmp_path / "rm", parameterisation=parameterisation, learning_rate=learning_rate, epochs=6)

    artifact = read_artifact(tmp_path / "rm", "reward_model")
    assert metadata["digest"] == artifact.digest
    assert metadata["accuracy"] > 0.75
    assert metadata["steps"] == 78
    assert score(artifact.path, "good plan step .") > score(artifact.path, "bad plan step .")
    assert not artifact.path.joinpath("adapter_config.json").exists()
    evaluation, scale = read_json(artifact.file("evaluation.json")), read_json(artifact.file("reward.json"))
    assert evaluation["passed"] is metadata["passed"]
    assert evaluation["n"] == 100 == len(list(read_jsonl(artifact.file("predictions.jsonl"))))
    assert scale["slope"] > 0
    assert scale["std"] > 0
    assert scale["train_split"] == "train"


def test_with_adapters_the_new_score_head_is_trained_too(world, tmp_path):
    run(world, tmp_path / "rm", policy="gpt2", parameterisation="lora", epochs=1)
    assert load_reward_model(tmp_path / "rm").score.weight.abs().max() > 1e-3
    adapter = tmp_path / "rm" / REWARD_ADAPTER
    assert read_json(adapter / "base.json")["base_digest"] == read_artifact(world / "gpt2", "policy").digest
    assert (adapter / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_mixed_precision_trains_what_it_trains_in_float32(world, tmp_path, monkeypatch, parameterisation):
    monkeypatch.setattr(hf_training, "pick_dtype", lambda device: torch.bfloat16)
    settings = make_parsed_settings(parameterisation=parameterisation, gradient_checkpointing=True)
    model = load_reward_model(world / "llama", dtype=hf_training.weights_dtype(settings))
    pairs = make_pairs(tmp_path, make_records(16), settings)
    trainer = make_trainer(
        model, make_tokenizer(), pairs, settings, folder=TrainingFolder(tmp_path, durable=False), seed=0
    )
    assert trainer.args.bf16
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in trainer.model.parameters() if not parameter.requires_grad}
    assert trained == {torch.float32}
    assert frozen == ({torch.bfloat16} if parameterisation == "lora" else set())
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))


def test_the_second_reward_model_learns_from_its_own_split(world, tmp_path):
    metadata = run(world, tmp_path / "rm", split="divergence", epochs=1)
    assert metadata["steps"] == 7
    assert read_json(tmp_path / "rm/reward.json")["train_split"] == "divergence"


def test_a_bad_reward_model_is_written_and_says_that_it_failed(world, tmp_path):
    """It learned the opposite of what the held-out raters think."""
    opposite = [
        record.model_copy(update={"chosen": record.rejected, "rejected": record.chosen}) for record in make_records(100)
    ]
    make_dataset(tmp_path / "data", train=opposite, heldout=make_records(100))
    metadata = stage.run(
        policy=world / "llama",
        dataset=tmp_path / "data",
        output=tmp_path / "rm",
        train_split="train",
        seed=0,
        settings=make_settings(),
    )
    assert metadata["passed"] is False
    checks = read_json(tmp_path / "rm/evaluation.json")["checks"]
    assert "accuracy_lower_bound" in {check["name"] for check in checks if not check["passed"]}


@pytest.mark.parametrize("place", ["a folder", "object storage, and on another machine"])
def test_an_interrupted_run_goes_on_to_the_same_reward_model(world, tmp_path, monkeypatch, bucket, place):
    run(world, tmp_path / "whole")
    remote = place != "a folder"
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, f"s3://{bucket}/checkpoints" if remote else str(tmp_path / "checkpoints"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    pending = [20]

    def report(label: str, done: int, total: int, **_: Any) -> None:
        if pending and done == pending[0]:
            pending.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(hf_training, "report", report)
    with pytest.raises(SystemExit) as exit_info:
        run(world, tmp_path / "resumed")
    assert exit_info.value.code == 143
    assert not (tmp_path / "resumed").exists()

    steps = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    run(world, tmp_path / "resumed")
    assert steps[0] == 21
    for name in ("model.safetensors", "evaluation.json", "reward.json"):
        assert sha256_file(tmp_path / "resumed" / name) == sha256_file(tmp_path / "whole" / name)


def test_an_unknown_split_is_an_error(world, tmp_path):
    with pytest.raises(InputError, match="not 'train' or 'divergence'"):
        run(world, tmp_path / "rm", split="heldout")


def test_an_empty_heldout_split_is_an_error_before_any_training(world, tmp_path):
    make_dataset(tmp_path / "data", train=make_records(8), heldout=[])
    with pytest.raises(InputError, match=r"heldout\.jsonl: there are no pairs"):
        stage.run(
            policy=world / "llama",
            dataset=tmp_path / "data",
            output=tmp_path / "rm",
            train_split="train",
            seed=0,
            settings=make_settings(),
        )


def make_parsed_settings(**overrides: Any) -> RewardModelSettings:
    return RewardModelSettings(**make_settings(**overrides))


def test_eos_ends_an_answer_only_if_it_was_finished(tmp_path):
    tokenizer = make_tokenizer()
    [pair] = make_pairs(tmp_path, [make_record(0, rejected_finished=False)], make_parsed_settings())
    assert pair.chosen_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in pair.rejected_ids


def test_no_overlong_pair_is_dropped(tmp_path):
    settings = make_parsed_settings(max_tokens=20)
    pairs = make_pairs(tmp_path, [make_record(0, chosen="good " * 40), make_record(1)], settings)
    rows = training_rows(pairs, settings)
    assert len(rows) == 2
    assert len(rows["chosen_ids"][0]) == 20
    assert [pair.cut for pair in pairs] == [True, False]


def test_a_prompt_without_room_for_an_answer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"record 'p0'.*no room"):
        make_pairs(tmp_path, [make_record(0)], make_parsed_settings(max_tokens=5))


def test_the_margin_follows_the_strength(tmp_path):
    settings = make_parsed_settings(margin_scale=3.0)
    pairs = make_pairs(tmp_path, [make_record(0, strength=0.25), make_record(1, strength=1.0)], settings)
    assert training_rows(pairs, settings)["margin"][:] == [0.75, 3.0]


@pytest.mark.parametrize(("strengths", "use"), [([1.0, 1.0], True), ([0.2, 1.0], False)])
def test_there_is_no_margin_when_strength_is_unknown_or_not_to_be_used(tmp_path, strengths, use):
    settings = make_parsed_settings(use_margin_from_strength=use)
    records = [make_record(i, strength=strength) for i, strength in enumerate(strengths)]
    rows = training_rows(make_pairs(tmp_path, records, settings), settings)
    assert "margin" not in rows.column_names


def test_training_starts_where_no_answer_is_preferred(world):
    """The new head is zero, so the first loss is ln 2."""
    model = load_reward_model(world / "llama")
    assert torch.count_nonzero(model.score.weight) == 0
