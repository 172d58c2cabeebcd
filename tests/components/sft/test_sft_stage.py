from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sft import make_base_model, make_dataset, make_settings, make_tokenizer

from components.sft import stage
from components.shared import hf_training
from components.shared.artifacts import read_artifact
from components.shared.errors import InputError, PlumblineError
from components.shared.files import read_json, read_jsonl, sha256_file
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE
from components.shared.models import encode_prompt, load_policy, load_tokenizer, read_policy_record


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    make_dataset(folder / "data")
    make_base_model(folder / "llama")
    make_base_model(folder / "gpt2", kind="gpt2")
    return folder


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch):
    monkeypatch.delenv(CHECKPOINTS_VARIABLE, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(world: Path, output: Path, *, base: str | None = None, data: str | None = None, **overrides: Any) -> dict:
    return stage.run(
        dataset=data or world / "data",
        output=output,
        base_model=base or str(world / "llama"),
        seed=0,
        settings=make_settings(**overrides),
    )


def answer(policy: Path, prompt: str) -> str:
    tokenizer, model = load_tokenizer(policy), load_policy(policy)
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    return tokenizer.decode(output[0, ids.shape[1] :]).replace(" ", "")


def test_the_policy_answers_like_the_demonstrations_and_ends_its_answer(world, tmp_path):
    metadata = run(world, tmp_path / "policy", epochs=20)

    artifact = read_artifact(tmp_path / "policy", "policy")
    assert metadata["digest"] == artifact.digest
    assert answer(artifact.path, "say blue") == "hereisyourwordblue.</s>"
    assert metadata["perplexity"] < 1.2
    assert read_policy_record(artifact.path)["format"] == "full"
    assert set(artifact.manifest["inputs"]) == {"dataset", "base_model"}
    history = list(read_jsonl(artifact.file("sft_history.jsonl")))
    assert history[0]["loss"] > history[-2]["loss"]
    assert read_json(artifact.file("metrics.json"))["slices"].keys() == {"plain", "polite"}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_are_merged_into_a_full_policy(world, tmp_path, kind):
    settings = {"parameterisation": "lora", "learning_rate": 0.05, "epochs": 4}
    metadata = run(world, tmp_path / "policy", base=str(world / kind), **settings)

    assert not (tmp_path / "policy/adapter_config.json").exists()
    assert read_policy_record(tmp_path / "policy")["format"] == "full"
    before = load_policy(world / kind).state_dict()
    after = load_policy(tmp_path / "policy").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    untrained = run(world, tmp_path / "untrained", base=str(world / kind), learning_rate=1e-9, epochs=1)
    assert metadata["heldout_loss"] < untrained["heldout_loss"] - 0.1


def test_equal_runs_make_equal_policies_and_another_seed_does_not(world, tmp_path):
    first, second = run(world, tmp_path / "a"), run(world, tmp_path / "b")
    other = stage.run(
        dataset=world / "data",
        output=tmp_path / "c",
        base_model=str(world / "llama"),
        seed=1,
        settings=make_settings(),
    )
    assert first["digest"] == second["digest"] != other["digest"]


def weights_digest(policy: Path) -> str:
    return sha256_file(policy / "model.safetensors")


def interrupt_at(step: int, monkeypatch, interrupt) -> None:
    """Calls `interrupt` once, when training reports `step`."""
    pending = [step]

    def report(label: str, done: int, total: int, **_: Any) -> None:
        if pending and done == pending[0]:
            pending.clear()
            interrupt()

    monkeypatch.setattr(hf_training, "report", report)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("interrupt", "parameterisation"), [(terminate, "full"), (crash, "lora")])
def test_an_interrupted_run_goes_on_to_the_same_weights(world, tmp_path, monkeypatch, interrupt, parameterisation):
    settings = {"parameterisation": parameterisation, "save_every_steps": 4}
    run(world, tmp_path / "whole", **settings)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    interrupt_at(10, monkeypatch, interrupt)

    with pytest.raises((SystemExit, KeyboardInterrupt)) as exit_info:
        run(world, tmp_path / "resumed", **settings)
    if interrupt is terminate:
        assert exit_info.value.code == 143
    assert not (tmp_path / "resumed").exists()
    [folder] = (tmp_path / "checkpoints").iterdir()
    newest = "checkpoint-10" if interrupt is terminate else "checkpoint-8"
    assert (folder / newest / "complete.json").is_file()

    steps = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    run(world, tmp_path / "resumed", **settings)
    assert steps[0] == (11 if interrupt is terminate else 9)
    assert weights_digest(tmp_path / "resumed") == weights_digest(tmp_path / "whole")
    assert not folder.exists()


def test_a_run_interrupted_on_one_machine_goes_on_on_another(world, tmp_path, monkeypatch, bucket, bucket_client):
    run(world, tmp_path / "whole", save_every_steps=4)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, f"s3://{bucket}/checkpoints")
    interrupt_at(10, monkeypatch, crash)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "resumed", save_every_steps=4)

    steps = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    run(world, tmp_path / "resumed", save_every_steps=4)

    assert steps[0] == 9
    assert weights_digest(tmp_path / "resumed") == weights_digest(tmp_path / "whole")
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket)


def test_a_loss_that_is_not_finite_stops_the_stage(world, tmp_path):
    with pytest.raises(PlumblineError, match=r"loss is nan at step .*Lower learning_rate"):
        run(world, tmp_path / "policy", learning_rate=1e30, max_grad_norm=1e30, epochs=3, log_every_steps=1)
    assert not (tmp_path / "policy").exists()


def test_no_half_written_policy_is_left_when_saving_fails(world, tmp_path, monkeypatch):
    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "save_policy", disk_full)
    with pytest.raises(PlumblineError, match="the disk is full"):
        run(world, tmp_path / "policy", epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_folder_without_weights_is_named(world, tmp_path):
    folder = Path(make_base_model(tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no safetensors weights"):
        run(world, tmp_path / "policy", base=str(folder))


def test_a_base_model_without_pad_token_gets_one_apart_from_eos(world, tmp_path):
    base = make_base_model(tmp_path / "base", tokenizer=make_tokenizer(pad_token=None))
    run(world, tmp_path / "policy", base=base, epochs=1)
    tokenizer, model = load_tokenizer(tmp_path / "policy"), load_policy(tmp_path / "policy")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_an_empty_training_split_is_an_error(world, tmp_path):
    data = make_dataset(tmp_path / "data", n_train=0)
    with pytest.raises(InputError, match="no demonstrations"):
        run(world, tmp_path / "policy", data=data)


def test_an_empty_heldout_split_leaves_the_loss_unknown(world, tmp_path):
    data = make_dataset(tmp_path / "data", n_heldout=0)
    metadata = run(world, tmp_path / "policy", data=data, epochs=1)
    assert metadata["heldout_loss"] is None
    assert metadata["perplexity"] is None


def test_more_tokens_than_the_base_model_reads_are_refused(world, tmp_path):
    with pytest.raises(InputError, match="max_tokens is 4096, the base model reads 64"):
        run(world, tmp_path / "policy", max_tokens=4096)


def test_an_unknown_setting_is_named(world, tmp_path):
    with pytest.raises(InputError, match="learning_rat: unknown setting"):
        run(world, tmp_path / "policy", learning_rat=0.1)
