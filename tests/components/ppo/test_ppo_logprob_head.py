"""Log-probabilities from hidden states: every way of computing them gives the same numbers and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_ppo import make_gpt2_policy, make_policy

from components.ppo import logprob_head
from components.ppo.logprob_head import LogprobHead
from components.ppo.packing import pack

PROMPTS = [[1, 4], [1, 5, 6, 7], [1]]
RESPONSES = [[8, 9, 2], [4, 2], [10, 11, 12, 13, 5]]
PAD = 0


def _expected(model: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """By the definition, from the logits of the whole model."""
    batch = pack(PROMPTS, RESPONSES, pad_id=PAD, device=torch.device("cpu"))
    logits = model(batch.input_ids).logits[batch.rows, batch.columns] / temperature
    logits[:, PAD] = -torch.inf
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(batch.targets), distribution.entropy()


def _gradient(model: Any, logprobs: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum, with respect to the weights below the head."""
    model.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    layer = (
        model.base_model.layers[0].mlp.up_proj
        if hasattr(model.base_model, "layers")
        else model.transformer.h[0].attn.c_attn
    )
    return layer.weight.grad.clone()


@pytest.mark.parametrize("make", [make_policy, make_gpt2_policy])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk", [14, 14 * 4, 10_000])
def test_chunks_and_frozen_heads_change_neither_numbers_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, make: Any, temperature: float, frozen: bool, chunk: int
) -> None:
    monkeypatch.setattr(logprob_head, "_CHUNK_LOGITS", chunk)
    model = make()
    if frozen:
        model.set_output_embeddings(_untied(model.get_output_embeddings()))
    expected, entropy = _expected(model, temperature)
    gradient = _gradient(model, expected)
    batch = pack(PROMPTS, RESPONSES, pad_id=PAD, device=torch.device("cpu"))
    head = LogprobHead(model)

    found = head.run(batch, temperature=temperature)[0].logprobs
    with torch.no_grad():
        scored = head.run(batch, temperature=temperature, entropy=True)[0]

    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(_gradient(model, found), gradient, atol=1e-5)
    assert scored.entropy is not None
    assert torch.allclose(scored.logprobs, expected, atol=1e-5)
    assert torch.allclose(scored.entropy, entropy, atol=1e-5)


def test_a_trained_head_gets_its_gradient_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make_policy()
    expected = _head_gradient(model, _expected(model, 1.0)[0])
    monkeypatch.setattr(logprob_head, "_CHUNK_LOGITS", 28)
    batch = pack(PROMPTS, RESPONSES, pad_id=PAD, device=torch.device("cpu"))

    found = _head_gradient(model, LogprobHead(model).run(batch, temperature=1.0)[0].logprobs)

    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, atol=1e-5)


def _head_gradient(model: Any, logprobs: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    logprobs.sum().backward()
    return model.get_output_embeddings().weight.grad.clone()


def _untied(head: Any) -> torch.nn.Linear:
    """A frozen copy: the embedding that it may be tied to stays trainable."""
    copy = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    copy.weight.data.copy_(head.weight)
    return copy.requires_grad_(False)


@pytest.mark.parametrize("confidence", [0.8, 0.97, 0.995, 0.9999])
def test_gradient_of_a_confident_token_survives_half_precision(confidence: float) -> None:
    """With a frozen bfloat16 head; against float64, relative error of the gradient with respect to the hidden state."""
    torch.manual_seed(0)
    weight = (torch.randn(512, 64) / 8).to(torch.bfloat16)
    hidden, target = torch.randn(1, 64), torch.tensor([7])
    for _ in range(60):  # along the target's row until it is as likely as wanted
        if float(torch.softmax(hidden.to(torch.bfloat16).double() @ weight.double().T, dim=1)[0, 7]) >= confidence:
            break
        hidden = hidden + weight[7].float() * 0.3
    rounded = hidden.to(torch.bfloat16)
    exact = rounded.double().requires_grad_()
    logits = exact @ weight.double().T
    logits[:, PAD] = -torch.inf
    torch.log_softmax(logits, dim=1)[0, 7].backward()
    found = rounded.clone().requires_grad_()

    found_logprob: Any = logprob_head._FrozenHead.apply(found, weight, None, target, PAD, 1.0)
    found_logprob.sum().backward()

    assert exact.grad is not None
    assert found.grad is not None
    error = (found.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert float(error) < 0.1
