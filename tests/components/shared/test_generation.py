from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from components.demo_world.tokenizer_and_model import make_model, make_tokenizer
from components.shared.generation import Generation, generate
from components.shared.scoring import response_logprobs

SIZES: dict[str, Any] = {"layers": 1, "hidden_size": 16, "feedforward_size": 32, "heads": 2}
SHAPES = ("llama", "gpt2")
TOKENIZER = make_tokenizer()
PROMPTS = [[1, 20, 30], [1, 40], [1, 50, 60, 70, 80], [1, 33], [1, 20, 30, 31]]


def _make_policy(*, seed: int = 0, shape: str = "llama", eos_logit: float = 0.0, pad_logit: float = 0.0) -> Any:
    """A random policy; `eos_logit` is added to EOS's logit at every step, so that answers end sooner."""
    policy = make_model(TOKENIZER, seed=seed, shape=shape, **SIZES).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(4.0)  # pyright: ignore[reportCallIssue]
    if eos_logit or pad_logit:
        bias = torch.zeros(len(TOKENIZER))
        bias[TOKENIZER.eos_token_id] = eos_logit  # pyright: ignore[reportArgumentType, reportCallIssue]
        bias[TOKENIZER.pad_token_id] = pad_logit  # pyright: ignore[reportArgumentType, reportCallIssue]
        policy.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
    return policy


def _generate(policy: Any, prompts: list[list[int]], **overrides: Any) -> list[Generation]:
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 0, **overrides}
    return generate(policy, TOKENIZER, prompts, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_first_token_is_sampled_from_the_softmax_of_the_logits(shape: str, temperature: float):
    policy, draws = _make_policy(shape=shape), 4000
    with torch.no_grad():
        logits = policy(torch.tensor([PROMPTS[0]])).logits[0, -1]
    logits[TOKENIZER.pad_token_id] = -torch.inf
    expected = torch.softmax(logits.double() / temperature, -1)
    sampled = _generate(
        policy, [PROMPTS[0]] * draws, max_new_tokens=1, temperature=temperature, batch_size=draws, seed=1
    )
    counts = torch.bincount(torch.tensor([s.response_ids[0] for s in sampled]), minlength=len(expected)).double()
    common = expected * draws >= 10
    observed_bins = [*counts[common].tolist(), float(counts[~common].sum())]
    expected_bins = [*(expected[common] * draws).tolist(), float(expected[~common].sum() * draws)]
    assert len(observed_bins) > 10
    assert chisquare(observed_bins, expected_bins).pvalue > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logit", [{}, {"eos_logit": 6.0}, {"pad_logit": 20.0}])
def test_log_probabilities_at_decode_agree_with_a_full_forward_pass(
    shape: str, temperature: float, logit: dict[str, Any]
):
    policy = _make_policy(shape=shape, **logit)
    sampled = _generate(policy, PROMPTS * 4, temperature=temperature, batch_size=7)
    recomputed = response_logprobs(
        policy,
        TOKENIZER,
        [s.prompt_ids for s in sampled],
        [s.response_ids for s in sampled],
        batch_size=3,
        temperature=temperature,
    )
    for one, other in zip(sampled, recomputed, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_pad_token_is_never_sampled_however_likely_it_is(temperature: float):
    sampled = _generate(_make_policy(pad_logit=50.0), PROMPTS * 10, temperature=temperature)
    assert all(TOKENIZER.pad_token_id not in one.response_ids for one in sampled)
    assert sampled == _generate(_make_policy(), PROMPTS * 10, temperature=temperature)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_do_not_depend_on_batching_or_order(shape: str):
    policy = _make_policy(shape=shape)
    alone = [_generate(policy, [prompt], temperature=0.0)[0].response_ids for prompt in PROMPTS]
    together = [s.response_ids for s in _generate(policy, PROMPTS, temperature=0.0)]
    backwards = [s.response_ids for s in _generate(policy, PROMPTS[::-1], temperature=0.0, batch_size=2)]
    assert alone == together == backwards[::-1]


def test_greedy_takes_the_most_likely_token_at_every_step():
    policy = _make_policy()
    [sampled] = _generate(policy, [PROMPTS[0]], temperature=0.0)
    with torch.no_grad():
        logits = policy(torch.tensor([sampled.prompt_ids + sampled.response_ids])).logits[0]
    first = len(sampled.prompt_ids) - 1
    assert logits[first:-1].argmax(-1).tolist() == sampled.response_ids


def test_answers_come_back_in_the_order_of_the_prompts():
    assert [s.prompt_ids for s in _generate(_make_policy(), PROMPTS, batch_size=2)] == PROMPTS


def test_finished_answers_end_with_eos_and_the_others_hold_none():
    sampled = _generate(_make_policy(eos_logit=4.0), PROMPTS * 20)
    assert {s.finished for s in sampled} == {True, False}
    for one in sampled:
        assert (one.response_ids[-1] == TOKENIZER.eos_token_id) is one.finished
        assert TOKENIZER.eos_token_id not in one.response_ids[:-1]
        assert one.finished or len(one.response_ids) == 8
        assert len(one.logprobs) == len(one.response_ids)


def test_any_stop_token_of_the_model_ends_an_answer():
    policy = _make_policy()
    policy.generation_config.eos_token_id = list(range(2, len(TOKENIZER)))
    assert all(s.finished and len(s.response_ids) == 1 for s in _generate(policy, PROMPTS * 5) if s.response_ids[0] > 1)


def test_the_models_own_sampling_defaults_are_not_used():
    policy = _make_policy()
    expected = _generate(policy, PROMPTS)
    policy.generation_config.top_k = 1
    policy.generation_config.repetition_penalty = 5.0
    assert _generate(policy, PROMPTS) == expected


def test_the_same_seed_gives_the_same_answers_and_another_seed_others():
    policy = _make_policy()
    assert _generate(policy, PROMPTS) == _generate(policy, PROMPTS) != _generate(policy, PROMPTS, seed=1)


def test_an_answer_depends_neither_on_its_batch_nor_on_the_order():
    policy = _make_policy(eos_logit=2.0)
    together = [s.response_ids for s in _generate(policy, PROMPTS * 6, batch_size=30)]
    apart = [s.response_ids for s in _generate(policy, PROMPTS * 6, batch_size=4)]
    order = list(range(30))[::-1]
    backwards = _generate(policy, [(PROMPTS * 6)[i] for i in order], numbers=order)
    assert together == apart == [s.response_ids for s in backwards[::-1]]
    assert len({tuple(answer) for answer in together}) > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_several_samples_share_a_prompt_and_are_as_if_each_had_its_own(shape: str):
    policy = _make_policy(shape=shape, eos_logit=2.0)
    shared = _generate(policy, PROMPTS, samples_per_prompt=4)
    apart = _generate(policy, [prompt for prompt in PROMPTS for _ in range(4)])
    assert [s.prompt_ids for s in shared] == [s.prompt_ids for s in apart]
    assert [s.response_ids for s in shared] == [s.response_ids for s in apart]
    for one, other in zip(shared, apart, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropies_are_those_of_the_distributions_sampled_from(temperature: float):
    policy = _make_policy(pad_logit=5.0)
    for sampled in _generate(policy, PROMPTS, temperature=temperature):
        with torch.no_grad():
            logits = policy(torch.tensor([sampled.prompt_ids + sampled.response_ids])).logits[0]
        logits[:, TOKENIZER.pad_token_id] = -torch.inf
        logits = logits[len(sampled.prompt_ids) - 1 : -1] / temperature
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert sampled.entropies == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_observed_are_the_hidden_states_that_tokens_were_sampled_from(shape: str):
    policy = _make_policy(shape=shape)
    for sampled in _generate(policy, PROMPTS, samples_per_prompt=2, observe=lambda hidden: hidden.sum(1)):
        with torch.no_grad():
            ids = torch.tensor([sampled.prompt_ids + sampled.response_ids])
            hidden = policy.base_model(ids).last_hidden_state[0, len(sampled.prompt_ids) - 1 : -1]
        assert sampled.observed == pytest.approx(hidden.sum(1).tolist(), abs=1e-3)


def test_the_policy_keeps_its_mode():
    policy = _make_policy().train()
    _generate(policy, PROMPTS)
    assert policy.training


def test_no_prompts_give_no_answers():
    assert _generate(_make_policy(), []) == []


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"max_new_tokens": 0}])
def test_impossible_options_are_errors(options: dict[str, Any]):
    with pytest.raises(ValueError, match="need temperature"):
        _generate(_make_policy(), PROMPTS, **options)
