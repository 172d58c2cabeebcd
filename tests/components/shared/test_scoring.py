from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.demo_world.tokenizer_and_model import make_model, make_tokenizer
from components.shared.generation import generate
from components.shared.models import load_reward_model
from components.shared.scoring import response_logprobs, rewards, right_pad, sequence_kl

SIZES: dict[str, Any] = {"layers": 1, "hidden_size": 16, "feedforward_size": 32, "heads": 2}
SHAPES = ("llama", "gpt2")
TOKENIZER = make_tokenizer()
PROMPTS = [[1, 20, 30], [1, 40], [1, 50, 60, 70, 80, 90], [1]]
RESPONSES = [[33, 34, 2], [44, 45, 46, 47, 48], [2], [55, 56]]


def _make_policy(*, seed: int = 0, shape: str = "llama") -> Any:
    return make_model(TOKENIZER, seed=seed, shape=shape, **SIZES).eval()  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", params=SHAPES)
def reward_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("policy")
    _make_policy(shape=request.param).save_pretrained(folder)
    TOKENIZER.save_pretrained(str(folder))
    model: Any = load_reward_model(folder)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_log_probabilities_are_those_of_one_unpadded_forward_pass(shape: str, batch_size: int):
    policy = _make_policy(shape=shape)
    found = response_logprobs(policy, TOKENIZER, PROMPTS, RESPONSES, batch_size=batch_size, temperature=0.7)
    for prompt, response, logprobs in zip(PROMPTS, RESPONSES, found, strict=True):
        with torch.no_grad():
            logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logits[:, TOKENIZER.pad_token_id] = -torch.inf
        expected = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(1, 90), min_size=1, max_size=9), st.lists(st.integers(1, 90), min_size=1, max_size=9)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_lengths_of_prompts_and_answers_confuse_the_scoring(rows: list[tuple[list[int], list[int]]]):
    policy = _make_policy()
    prompts, responses = [row[0] for row in rows], [row[1] for row in rows]
    together = response_logprobs(policy, TOKENIZER, prompts, responses)
    for prompt, response, logprobs in zip(prompts, responses, together, strict=True):
        [alone] = response_logprobs(policy, TOKENIZER, [prompt], [response])
        torch.testing.assert_close(logprobs, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_reward_is_the_score_at_the_answers_last_token(reward_model: Any, batch_size: int):
    found = rewards(reward_model, TOKENIZER, PROMPTS, RESPONSES, batch_size=batch_size)
    for prompt, response, reward in zip(PROMPTS, RESPONSES, found, strict=True):
        with torch.no_grad():
            hidden = reward_model.base_model(torch.tensor([prompt + response])).last_hidden_state[0, -1]
        torch.testing.assert_close(reward, reward_model.score(hidden).squeeze().detach(), atol=1e-5, rtol=0)


def test_eos_is_read_by_the_reward_model(reward_model: Any):
    finished, cut = rewards(reward_model, TOKENIZER, [[1, 20]] * 2, [[33, 2], [33]]).tolist()
    assert finished != pytest.approx(cut, abs=1e-6)


def test_sequence_kl_sums_the_log_ratios_of_known_numbers():
    policy = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
    reference = [torch.tensor([-2.0, -2.5]), torch.tensor([-0.25])]
    assert sequence_kl(policy, reference).tolist() == [1.5, -0.25]


def test_kl_of_a_policy_to_itself_is_zero_and_its_estimate_is_unbiased():
    """One token a sequence: the mean of k1 is the exact KL of the two next-token distributions, within its error."""
    policy, reference, draws = _make_policy(seed=0), _make_policy(seed=1), 3000
    for model in (policy, reference):
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(4.0)
    sampled = generate(policy, TOKENIZER, [PROMPTS[0]] * draws, max_new_tokens=1, batch_size=draws, seed=0)
    prompts, responses = [s.prompt_ids for s in sampled], [s.response_ids for s in sampled]
    own, other = (response_logprobs(m, TOKENIZER, prompts, responses, batch_size=500) for m in (policy, reference))
    with torch.no_grad():
        logits = [m(torch.tensor([PROMPTS[0]])).logits[0, -1, 1:].double() for m in (policy, reference)]
    assert TOKENIZER.pad_token_id == 0  # left out of the distributions
    exact_own, exact_other = (torch.log_softmax(each, -1) for each in logits)
    exact = float((exact_own.exp() * (exact_own - exact_other)).sum())
    estimate = sequence_kl(own, other)
    assert sequence_kl(own, own).abs().max() == 0
    assert exact > 0.1
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * float(estimate.std()) / draws**0.5)


def test_padding_is_masked():
    ids, mask = right_pad([[5, 6, 7], [8]], pad=0, device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
