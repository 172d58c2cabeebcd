"""Log-probabilities, values and gradients of both parameterisations."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ppo import (
    make_gpt2_policy,
    make_models,
    make_policy,
    make_settings,
    make_tokenizer,
    make_trainer,
    save_reward_adapter,
)
from transformers import Gemma2Config, Gemma2ForCausalLM

from components.ppo.models import SharedBackbone
from components.ppo.packing import pack, unpack
from components.ppo.rollout import Rollout
from components.shared.errors import ArtifactError
from components.shared.models import (
    REWARD_ADAPTER,
    load_policy,
    load_reward_model,
)
from components.shared.scoring import response_logprobs, rewards
from components.shared.world import World

PROMPTS = [[1, 4], [1, 5, 6, 7], [1]]
RESPONSES = [[8, 9, 2], [4, 2], [10, 11, 12, 13, 5]]
CPU = torch.device("cpu")


def _make_capped_policy() -> Any:
    """A model whose logits are capped after the head."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=2,
    )
    return Gemma2ForCausalLM(config).eval()


def _packed_logprobs(models: Any, *, temperature: float = 1.0) -> list[torch.Tensor]:
    batch = pack(PROMPTS, RESPONSES, pad_id=0, device=CPU)
    packed = models.policy_logprobs(batch, temperature=temperature).logprobs
    return list(packed.detach().split([len(response) for response in RESPONSES]))


@pytest.mark.parametrize("make", [make_policy, make_gpt2_policy, _make_capped_policy])
@pytest.mark.parametrize("parameterisation", ["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_the_shared_scorer(make: Any, parameterisation: str, temperature: float) -> None:
    policy = make()
    expected = response_logprobs(policy, make_tokenizer(), PROMPTS, RESPONSES, temperature=temperature)
    models = make_models(make_settings(parameterisation=parameterisation), policy=policy)

    for ours, theirs in zip(_packed_logprobs(models, temperature=temperature), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_what_is_learned_from_is_what_was_sampled_where_the_pad_token_is_likely(parameterisation: str) -> None:
    policy = make_policy()
    pad = torch.zeros(14)
    pad[0] = 20.0
    head: Any = policy.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits + pad)
    trainer = make_trainer(policy=policy, parameterisation=parameterisation)

    rollout = trainer.rollout()
    row = trainer.step()

    assert all(0 not in response for response in rollout.responses_ids)
    assert row["logprob_gap"] < 1e-4
    assert row["approx_kl_update"] < 1.0
    assert 0 < row["entropy"] < math.log(13)


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_reference_stays_while_the_policy_moves(parameterisation: str) -> None:
    trainer = make_trainer(parameterisation=parameterisation)
    batch = pack(PROMPTS, RESPONSES, pad_id=0, device=CPU)
    before = trainer.models.reference_logprobs(batch, temperature=1.0)
    start = trainer.models.policy_logprobs(batch, temperature=1.0).logprobs.detach()

    for _ in range(2):
        trainer.step()

    assert torch.equal(start, before)
    assert torch.equal(trainer.models.reference_logprobs(batch, temperature=1.0), before)
    assert not torch.allclose(trainer.models.policy_logprobs(batch, temperature=1.0).logprobs, before)


def test_adapters_of_policy_and_value_are_apart() -> None:
    models = make_models(make_settings(parameterisation="lora"))
    assert isinstance(models, SharedBackbone)
    batch = pack(PROMPTS, RESPONSES, pad_id=0, device=CPU)
    policy, value = models.policy_parameters(), models.value_parameters()

    models.policy_logprobs(batch, temperature=1.0).logprobs.sum().backward()
    policy_moved = {name for name, parameter in policy.items() if parameter.grad is not None}
    value_moved = {name for name, parameter in value.items() if parameter.grad is not None}

    assert policy_moved == set(policy)
    assert not value_moved
    assert not set(policy) & set(value)


def test_value_model_with_a_zero_head_values_everything_at_zero() -> None:
    models = make_models(make_settings(value_init="policy"))

    assert models.values(pack(PROMPTS, RESPONSES, pad_id=0, device=CPU)).abs().max() == 0


def test_lora_candidate_computes_what_the_policy_computed(tmp_path: Any) -> None:
    trainer = make_trainer(parameterisation="lora")
    trainer.step()
    expected = _packed_logprobs(trainer.models)

    trainer.models.save_candidate(
        make_tokenizer(), tmp_path, origin={"base_model": "tiny", "base_digest": "0" * 64}, step=1
    )

    saved = response_logprobs(load_policy(tmp_path), make_tokenizer(), PROMPTS, RESPONSES)
    for ours, theirs in zip(expected, saved, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_adapters_over_a_half_precision_backbone_are_float32() -> None:
    trainer = make_trainer(parameterisation="lora", policy=make_policy().to(torch.bfloat16))
    moved = trainer.models.policy_parameters() | trainer.models.value_parameters()

    row = trainer.step()

    assert {parameter.dtype for parameter in moved.values()} == {torch.float32}
    assert trainer.models.sampling_policy().get_input_embeddings().weight.dtype == torch.bfloat16
    assert row["kl"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("make", [make_policy, make_gpt2_policy])
def test_a_reward_adapter_on_the_shared_backbone_scores_as_its_merged_model(make: Any, tmp_path: Any) -> None:
    save_reward_adapter(make(), tmp_path, base_digest="aa", dropout=0.5)
    expected = rewards(load_reward_model(tmp_path / "reward"), make_tokenizer(), PROMPTS, RESPONSES)
    models = make_models(make_settings(parameterisation="lora"), policy=make())
    assert isinstance(models, SharedBackbone)
    policy_before = _packed_logprobs(models)

    adapter: Any = models.attach_reward_adapter(tmp_path / "reward" / REWARD_ADAPTER)

    assert expected.std() > 0.1
    assert torch.allclose(rewards(adapter, make_tokenizer(), PROMPTS, RESPONSES), expected, atol=1e-4)
    for before, after in zip(policy_before, _packed_logprobs(models), strict=True):
        assert torch.equal(before, after)
    models.save_candidate(make_tokenizer(), tmp_path / "out", origin={"base_model": "", "base_digest": ""}, step=0)
    saved = response_logprobs(load_policy(tmp_path / "out"), make_tokenizer(), PROMPTS, RESPONSES)
    assert torch.allclose(torch.cat(policy_before), torch.cat(saved), atol=1e-5)


def test_a_candidate_over_a_half_precision_backbone_is_the_policy_that_was_trained(tmp_path: Any) -> None:
    """Merged in bfloat16 the small updates of an adapter would be rounded away."""
    trainer = make_trainer(parameterisation="lora", policy=make_policy().to(torch.bfloat16), steps=2)
    trainer.train()
    exact = copy.deepcopy(trainer.models)
    exact._peft.float()  # pyright: ignore
    expected = torch.cat(_packed_logprobs(exact))

    trainer.models.save_candidate(make_tokenizer(), tmp_path, origin={"base_model": "", "base_digest": ""}, step=2)

    saved = response_logprobs(load_policy(tmp_path, dtype=torch.float32), make_tokenizer(), PROMPTS, RESPONSES)
    assert torch.allclose(torch.cat(saved), expected, atol=1e-4)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Any) -> None:
    save_reward_adapter(make_policy(num_hidden_layers=2), tmp_path, base_digest="aa")
    models = make_models(make_settings(parameterisation="lora"))
    assert isinstance(models, SharedBackbone)

    with pytest.raises(ArtifactError, match="does not fit"):
        models.attach_reward_adapter(tmp_path / "reward" / REWARD_ADAPTER)


def test_unpack_puts_tokens_back_where_they_were() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])

    padded = unpack(torch.tensor([1.0, 2.0, 3.0]), mask)

    assert padded.tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    assert padded[mask].tolist() == [1.0, 2.0, 3.0]


def _make_rollout(lengths: list[tuple[int, int]]) -> Rollout:
    generator = torch.Generator().manual_seed(len(lengths))

    def draw(size: int) -> list[int]:
        return torch.randint(4, 14, (size,), generator=generator).tolist()

    responses = [draw(response) for _, response in lengths]
    return Rollout(
        slices=["all"] * len(lengths),
        prompts_ids=[draw(prompt) for prompt, _ in lengths],
        responses_ids=responses,
        finished=[True] * len(lengths),
        decode_logprobs=[[0.0] * len(response) for response in responses],
    )


class _Alone(World):
    """One of several processes whose sums are taken outside."""

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Leaves this process's part as it is."""

    def sum_gradients(self, parameters: Any) -> None:
        """Leaves this process's part as it is."""


def _gradients(
    rollout: Rollout, order: list[int], *, parameterisation: str, microbatch: int, processes: int = 1
) -> dict[str, torch.Tensor]:
    """Sums over the processes of each one's gradient."""
    total: dict[str, torch.Tensor] = {}
    for rank in range(processes):
        trainer = make_trainer(microbatch=microbatch, parameterisation=parameterisation)
        scores = trainer.score(rollout)
        advantages = trainer.advantages(scores)
        trainer._updater._world = _Alone(rank=rank, size=processes)
        trainer._updater.accumulate_gradients(rollout, scores, advantages, order)
        for name, parameter in (trainer.models.policy_parameters() | trainer.models.value_parameters()).items():
            if parameter.grad is not None:
                total[name] = total.get(name, torch.zeros(())) + parameter.grad
    return total


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=7),
    microbatch=st.integers(2, 8),
    processes=st.integers(1, 3),
    parameterisation=st.sampled_from(["full", "lora"]),
    data=st.data(),
)
def test_gradient_depends_on_neither_padding_nor_order_nor_microbatch_nor_processes(
    lengths: list[tuple[int, int]], microbatch: int, processes: int, parameterisation: str, data: st.DataObject
) -> None:
    """One sequence a micro-batch has no padding at all; several in a micro-batch are padded to the longest."""
    rollout = _make_rollout(lengths)
    order = data.draw(st.permutations(range(len(lengths))))

    alone = _gradients(rollout, list(range(len(lengths))), parameterisation=parameterisation, microbatch=1)
    together = _gradients(
        rollout, list(order), parameterisation=parameterisation, microbatch=microbatch, processes=processes
    )

    assert alone.keys() == together.keys()
    for name, gradient in alone.items():
        assert torch.allclose(gradient, together[name], atol=1e-5, rtol=1e-4), name
