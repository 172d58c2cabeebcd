"""The stage end to end on tiny models: every method learns, and leaves what PPO leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_preferences import make_artifacts, make_pairs, make_tokenizer, run_arguments

from components.preference_optimization.settings import Method
from components.preference_optimization.stage import run
from components.shared.artifacts import read_artifact
from components.shared.errors import ArtifactError, InputError, PlumblineError
from components.shared.files import read_json, read_jsonl
from components.shared.models import encode_prompt, encode_response, load_policy, load_tokenizer
from components.shared.records import PromptRecord
from components.shared.scoring import response_logprobs

COMMON = {
    *("step", "episodes", "reward_mean", "reward_std", "kl", "kl_per_token", "entropy", "response_tokens"),
    *("finished_share", "repetition_share", "slices"),
}
SUMMARY = {
    *("steps", "kl_target", "kl_final", "kl_last_third", "reward_start", "reward_final", "stopped_early"),
    *("stop_reason", "optimizer", "method", "beta"),
}
METHODS = get_args(Method)
SAMPLING = ("grpo", "rloo", "online_dpo")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_artifacts(tmp_path_factory.mktemp("inputs"))


def _margin(policy: str | Path, **options: Any) -> float:
    """Mean over the pairs of log pi(chosen) - log pi(rejected), nats."""
    tokenizer, model, pairs = make_tokenizer(), load_policy(policy, **options), make_pairs()
    prompts = [encode_prompt(tokenizer, pair.prompt) for pair in pairs]
    chosen, rejected = (
        response_logprobs(model, tokenizer, prompts, [encode_response(tokenizer, getattr(p, side)) for p in pairs])
        for side in ("chosen", "rejected")
    )
    return float(torch.stack([a.sum() - b.sum() for a, b in zip(chosen, rejected, strict=True)]).mean())


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_the_artifacts_that_ppo_leaves(
    tmp_path: Path, inputs: dict[str, str], method: str, parameterisation: str
) -> None:
    arguments = run_arguments(tmp_path, method, inputs=inputs, parameterisation=parameterisation, max_steps=5)

    result = run(**arguments)

    candidate = read_artifact(arguments["output_policy"], "policy")
    assert result["digest"] == candidate.digest
    assert read_json(candidate.file("policy.json")) == {
        "format": "full",
        "base_model": "tiny",
        "base_digest": read_artifact(inputs["policy"], "policy").digest,
        "step": 5,
    }
    assert candidate.manifest["inputs"].keys() == {"policy", "reward_model", "dataset", "pairs"}
    checkpoints = read_artifact(arguments["output_checkpoints"], "policy_checkpoints")
    assert sorted(path.name for path in checkpoints.path.glob("step-*")) == ["step-0002", "step-0004"]
    history = read_artifact(arguments["output_history"], "training_history")
    rows = list(read_jsonl(history.file("history.jsonl")))
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert all(set(row) >= COMMON for row in rows)
    assert {"policy_loss", "grad_norm", "learning_rate"} <= set(rows[1])
    assert set(rows[0]["slices"]["odd"]) == {"n", "reward", "kl", "response_tokens"}
    assert abs(rows[0]["kl"]) < 1e-4, "the policy starts as the reference"
    summary = read_json(history.file("summary.json"))
    assert set(summary) == SUMMARY
    assert summary["method"] == method
    assert summary["kl_final"] == rows[-1]["kl"]

    ids = torch.tensor([[1, 4, 5, 6]])
    before = load_policy(inputs["policy"])(ids).logits
    middle = load_policy(checkpoints.path / "step-0002", reference=inputs["policy"])(ids).logits
    after = load_policy(candidate.path)(ids).logits
    assert not torch.allclose(before, middle)
    assert not torch.allclose(middle, after)


@pytest.mark.parametrize(("method", "gain"), [("dpo", 2.0), ("kto", 2.0), ("ipo", 0.6)])
def test_learning_from_pairs_raises_the_margin_of_chosen_over_rejected(
    tmp_path: Path, inputs: dict[str, str], method: str, gain: float
) -> None:
    """IPO stops at the margin that its beta names: half a nat a token, of two or three tokens here."""
    arguments = run_arguments(tmp_path, method, inputs=inputs, max_steps=10)
    run(**arguments)
    before = _margin(inputs["policy"])
    middle = _margin(Path(arguments["output_checkpoints"]) / "step-0004")
    assert before + gain / 2 < middle
    assert before + gain < _margin(arguments["output_policy"])


@pytest.mark.parametrize("method", SAMPLING)
def test_learning_from_own_answers_raises_the_reward(tmp_path: Path, inputs: dict[str, str], method: str) -> None:
    summary = run(**run_arguments(tmp_path, method, inputs=inputs, max_steps=20, evaluate_every_steps=10))
    assert summary["reward_final"] > summary["reward_start"] + 0.5


@pytest.mark.parametrize("method", ["dpo", "grpo", "rloo"])
def test_a_larger_beta_stays_nearer_to_the_reference(tmp_path: Path, inputs: dict[str, str], method: str) -> None:
    loose, tight = (
        run(**run_arguments(tmp_path / str(beta), method, inputs=inputs, max_steps=16, beta=beta, learning_rate=5e-3))
        for beta in (0.01, 3.0)
    )
    assert tight["kl_final"] < 0.8 * loose["kl_final"]


def test_same_seed_gives_the_same_outputs_and_another_seed_others(tmp_path: Path, inputs: dict[str, str]) -> None:
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = run_arguments(tmp_path / name, "grpo", inputs=inputs, max_steps=3) | {"seed": seed}
        run(**arguments)
        outputs = (("output_policy", "policy"), ("output_history", "training_history"))
        digests.append([read_artifact(arguments[output], kind).digest for output, kind in outputs])
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_a_gpt2_shaped_policy_learns(tmp_path: Path) -> None:
    inputs = make_artifacts(tmp_path / "in", kind="gpt2")
    summary = run(**run_arguments(tmp_path, "rloo", inputs=inputs, max_steps=20, evaluate_every_steps=10))
    assert summary["reward_final"] > summary["reward_start"]


def test_epochs_count_passes_over_the_pairs(tmp_path: Path, inputs: dict[str, str]) -> None:
    summary = run(**run_arguments(tmp_path, "dpo", inputs=inputs, max_steps=None, epochs=2.0))
    assert summary["steps"] == 2 * len(make_pairs()) / 16


# --- bad input -------------------------------------------------------------------------------------------------------


def test_no_pairs_is_an_error_that_says_which_methods_need_none(tmp_path: Path, inputs: dict[str, str]) -> None:
    without = {name: path for name, path in inputs.items() if name != "pairs"}
    with pytest.raises(InputError, match=r"no preferences/train.jsonl, and DPO learns from .*grpo, rloo or online_dpo"):
        run(**run_arguments(tmp_path, "dpo", inputs=without))
    assert run(**run_arguments(tmp_path, "grpo", inputs=without, max_steps=1))["steps"] == 1


def test_pairs_without_a_difference_teach_nothing(tmp_path: Path) -> None:
    same = [pair.model_copy(update={"rejected": pair.chosen}) for pair in make_pairs(8)]
    inputs = make_artifacts(tmp_path / "in", pairs=same)
    with pytest.raises(InputError, match=r"no preference pairs to learn from \(8 were read\)"):
        run(**run_arguments(tmp_path, "ipo", inputs=inputs))


def test_a_reward_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    inputs = make_artifacts(tmp_path / "in", reward_words=tuple(f"other{i}" for i in range(10)))
    with pytest.raises(InputError, match="different vocabularies"):
        run(**run_arguments(tmp_path, "online_dpo", inputs=inputs))


def test_a_reward_model_without_spread_is_refused(tmp_path: Path) -> None:
    inputs = make_artifacts(tmp_path / "in", reward_std=0.0)
    with pytest.raises(ArtifactError, match="positive std"):
        run(**run_arguments(tmp_path, "dpo", inputs=inputs))


def test_the_reward_model_that_judges_over_optimisation_is_not_optimised(tmp_path: Path) -> None:
    inputs = make_artifacts(tmp_path / "in", reward_split="divergence")
    with pytest.raises(InputError, match="divergence split"):
        run(**run_arguments(tmp_path, "rloo", inputs=inputs))


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path, method: str) -> None:
    inputs = make_artifacts(tmp_path / "in", prompts=[PromptRecord(id="long", prompt="red " * 12)])
    with pytest.raises(InputError, match=r"longest prompt \(14 tokens\) .* limit of 16 tokens"):
        run(**run_arguments(tmp_path, method, inputs=inputs))
    assert not (tmp_path / "out").exists()


def test_more_tokens_than_the_policy_reads_are_refused(tmp_path: Path, inputs: dict[str, str]) -> None:
    with pytest.raises(InputError, match="max_tokens is 65, the policy reads 64"):
        run(**run_arguments(tmp_path, "dpo", inputs=inputs, max_tokens=65))


@pytest.mark.parametrize(("method", "what"), [("grpo", "20 prompts"), ("kto", "200 answers")])
def test_fewer_examples_than_a_step_takes_are_refused(
    tmp_path: Path, inputs: dict[str, str], method: str, what: str
) -> None:
    sizes = {"grpo": {"batch_size": 40}, "kto": {"batch_size": 200}}[method]
    with pytest.raises(InputError, match=f"a step takes {what}"):
        run(**run_arguments(tmp_path, method, inputs=inputs, **sizes))


def test_no_training_prompts_is_an_error(tmp_path: Path) -> None:
    inputs = make_artifacts(tmp_path / "in", prompts=[])
    with pytest.raises(InputError, match="no training prompts"):
        run(**run_arguments(tmp_path, "dpo", inputs=inputs))


@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_a_training_that_blows_up_stops_and_leaves_nothing(tmp_path: Path, inputs: dict[str, str], method: str) -> None:
    with pytest.raises(PlumblineError, match=r"(nan|inf).*Lower learning_rate"):
        run(**run_arguments(tmp_path, method, inputs=inputs, learning_rate=1e30, max_grad_norm=1e30))
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_goes_with_the_candidate(tmp_path: Path, inputs: dict[str, str]) -> None:
    arguments = run_arguments(tmp_path, "kto", inputs=inputs, max_steps=1)
    run(**arguments)
    assert load_tokenizer(arguments["output_policy"]).get_vocab() == make_tokenizer().get_vocab()
