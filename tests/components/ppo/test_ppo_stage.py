"""The stage end to end on tiny models, both parameterisations."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_ppo import make_artifacts, make_reward_model, make_tokenizer, run_arguments, save_reward_adapter

from components.ppo.stage import run
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import read_json, read_jsonl, write_json
from components.shared.models import load_policy, save_reward_model

ROW = {
    *("step", "episodes", "reward_mean", "reward_std", "kl", "kl_k3", "kl_per_token", "kl_coef", "entropy"),
    *("policy_loss", "value_loss", "explained_variance", "clip_fraction", "value_clip_fraction", "approx_kl_update"),
    *("grad_norm", "value_grad_norm", "learning_rate", "response_tokens", "finished_share", "repetition_share"),
    *("tokens_per_second", "seconds", "slices"),
}


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_stage_writes_candidate_checkpoints_and_history(tmp_path: Path, parameterisation: str) -> None:
    arguments = run_arguments(tmp_path, parameterisation=parameterisation, steps=5)

    result = run(**arguments)

    candidate = read_artifact(arguments["output_policy"], "policy")
    assert result["digest"] == candidate.digest
    assert read_json(candidate.file("policy.json"))["format"] == "full"
    assert read_json(candidate.file("policy.json"))["step"] == 5
    checkpoints = read_artifact(arguments["output_checkpoints"], "policy_checkpoints")
    assert sorted(path.name for path in checkpoints.path.glob("step-*")) == ["step-0002", "step-0004"]
    history = read_artifact(arguments["output_history"], "training_history")
    rows = list(read_jsonl(history.file("history.jsonl")))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) >= ROW
    assert set(rows[0]["slices"]) == {"even", "odd"}
    assert set(rows[0]["slices"]["odd"]) == {"n", "reward", "kl", "response_tokens"}
    summary = read_json(history.file("summary.json"))
    assert summary["steps"] == 5
    assert summary["stopped_early"] is False


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_candidate_differs_from_reference_and_checkpoints_load_over_it(tmp_path: Path, parameterisation: str) -> None:
    arguments = run_arguments(tmp_path, parameterisation=parameterisation)

    run(**arguments)

    ids = torch.tensor([[1, 4, 5, 6]])
    reference = load_policy(arguments["policy"])(ids).logits
    middle = load_policy(Path(arguments["output_checkpoints"]) / "step-0002", reference=arguments["policy"])(ids).logits
    final = load_policy(arguments["output_policy"])(ids).logits
    assert not torch.allclose(reference, middle)
    assert not torch.allclose(middle, final)


def test_same_seed_gives_the_same_candidate_and_another_seed_another(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = run_arguments(tmp_path)
        outputs = {key: f"{value}-{name}" for key, value in arguments.items() if key.startswith("output_")}
        digests.append(run(**{**arguments, **outputs, "seed": seed})["digest"])

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_unknown_setting_is_named(tmp_path: Path) -> None:
    arguments = run_arguments(tmp_path)
    arguments["settings"] = json.loads('{"kl": {"tagret_nats": 3}}')

    with pytest.raises(InputError, match=r"kl\.tagret_nats: unknown setting"):
        run(**arguments)


def test_prompt_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    arguments = run_arguments(tmp_path, max_response_tokens=62)

    with pytest.raises(InputError, match="limit of 64 tokens"):
        run(**arguments)
    assert not Path(arguments["output_policy"]).exists()


def test_reward_model_without_spread_is_refused(tmp_path: Path) -> None:
    make_artifacts(tmp_path, reward_std=0.0)

    with pytest.raises(Exception, match="positive std"):
        run(**run_arguments(tmp_path))


def test_reward_model_shares_the_backbone_where_it_was_trained_over_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a backbone of its own it pays the same, to rounding."""
    caplog.set_level(logging.INFO)
    paid = {}
    for told, base_digest in (("share one backbone", None), ("belongs to another policy", "0" * 64)):
        arguments = run_arguments(tmp_path / told, parameterisation="lora")
        policy = read_artifact(arguments["policy"], "policy")
        base = load_policy(policy.path)
        save_reward_adapter(base, tmp_path / told / "parts", base_digest=base_digest or policy.digest)
        shutil.rmtree(arguments["reward_model"])
        with write_artifact(arguments["reward_model"], "reward_model", stage="reward_model") as draft:
            shutil.copytree(tmp_path / told / "parts/reward", draft.path, dirs_exist_ok=True)
            write_json(draft.path / "reward.json", {"mean": 0.0, "std": 1.0, "slope": 1.0})

        run(**arguments)

        assert told in caplog.text
        rows = read_jsonl(Path(arguments["output_history"]) / "history.jsonl")
        paid[told] = [row["reward_mean"] for row in rows]
    assert paid["share one backbone"] == pytest.approx(paid["belongs to another policy"], abs=1e-3)


def test_a_reward_model_with_fewer_embeddings_than_the_policy_samples_is_refused(tmp_path: Path) -> None:
    arguments = run_arguments(tmp_path)
    shutil.rmtree(arguments["reward_model"])
    with write_artifact(arguments["reward_model"], "reward_model", stage="reward_model") as draft:
        save_reward_model(make_reward_model(vocab_size=13), make_tokenizer(), draft.path)
        write_json(draft.path / "reward.json", {"mean": 0.0, "std": 1.0, "slope": 1.0})

    with pytest.raises(InputError, match="13 embeddings, the policy can sample 14"):
        run(**arguments)
