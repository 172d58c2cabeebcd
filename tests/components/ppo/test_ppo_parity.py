"""Our engine against trl 1.12.0's `PPOTrainer`, number by number, on the same weights, answers and hyperparameters.

The fixture holds what TRL's own `train()` computed; `benchmarks/ppo/parity_peer.py` wrote it. Two differences are
known, and both are ours on purpose:

- TRL whitens with the unbiased variance, `n / (n - 1)` of ours: its advantages are ours times `sqrt((n - 1) / n)`.
- TRL pays the score of an answer that is shorter than the batch's longest one position after its last token, and has
  a value for that position too. The discounted sums are the same with gamma = lambda = 1; otherwise its advantages of
  the same answer depend on whether another answer of the batch is longer. We pay at the last token (Ziegler et al.
  2019).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_ppo import make_settings, make_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from components.ppo.advantages import Advantages, generalised_advantages, token_rewards, whiten
from components.ppo.losses import policy_loss, value_loss
from components.ppo.models import SeparateModels, ValueHead
from components.ppo.rollout import EncodedPrompt, Rollout
from components.ppo.scoring import Scores
from components.ppo.trainer import PPOTrainer
from components.ppo.update import Updater

FIXTURES = Path(__file__).parent / "fixtures"
EOS = 2
CASES = ("equal_lengths", "varied_lengths", "varied_lengths_monte_carlo")
VARIED = CASES[1:]

close = pytest.approx


@dataclass(frozen=True)
class Peer:
    """One of TRL's runs: hyperparameters, and its tensors by name."""

    options: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> Tensor:
        """Real response tokens."""
        return ~self["padding_mask"]

    @property
    def mask_p1(self) -> Tensor:
        """The same and one more position, where there is one: what TRL pays and values."""
        return ~self["padding_mask_p1"]

    @property
    def whitening(self) -> float:
        """TRL's whitened advantages over ours."""
        count = int(self.mask.sum())
        return ((count - 1) / count) ** 0.5

    def gradients(self, side: str) -> dict[str, Tensor]:
        prefix = f"gradient/{side}/"
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}


def _read(case: str) -> Peer:
    content = json.loads((FIXTURES / "trl_ppo.json").read_text())
    tensors = load_file(FIXTURES / "trl_ppo.safetensors")
    found = {name.removeprefix(f"{case}/"): each for name, each in tensors.items() if name.startswith(f"{case}/")}
    return Peer(content["cases"][case], found)


def _weights(name: str) -> dict[str, Tensor]:
    prefix = f"weights/{name}/"
    tensors = load_file(FIXTURES / "trl_ppo.safetensors")
    return {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}


def _config(**overrides: Any) -> LlamaConfig:
    return LlamaConfig(**json.loads((FIXTURES / "trl_ppo.json").read_text())["config"], **overrides)


def _classifier(name: str) -> LlamaForSequenceClassification:
    model = LlamaForSequenceClassification(_config(num_labels=1)).eval()
    model.load_state_dict(_weights(name))
    return model


def _make_models() -> SeparateModels:
    """Built around the reference's weights, which it copies; policy and value model follow."""
    reference = LlamaForCausalLM(_config()).eval()
    reference.load_state_dict(_weights("reference"))
    value = _classifier("value")
    models = SeparateModels(
        reference, value_backbone=value.model, value_head=ValueHead.of_reward_model(value, mean=0, std=1)
    )
    _load(models, policy="policy", value="value")
    return models


@torch.no_grad()
def _load(models: SeparateModels, *, policy: str, value: str) -> None:
    for parameters, known in (
        (models.policy_parameters(), _weights(policy)),
        (models.value_parameters(), {_our_name(name): each for name, each in _weights(value).items()}),
    ):
        assert set(parameters) == set(known)
        for name, parameter in parameters.items():
            parameter.copy_(known[name])


def _our_name(name: str) -> str:
    """Name among our value parameters of a classifier's weight."""
    return f"head.{name}" if name.startswith("score.") else name.replace("model.", "backbone.", 1)


def _make_trainer(peer: Peer) -> PPOTrainer:
    options = peer.options
    settings = make_settings(
        episodes_per_step=len(options["answers"]),
        microbatch=3,
        minibatches=1,
        temperature=options["temperature"],
        gamma=options["gamma"],
        lam=options["lam"],
        clip_ratio=options["clip_ratio"],
        value_clip=options["value_clip"],
        kl={"control": "fixed", "init_coef": options["kl_coef"]},
        reward={"normalise": "none", "clip": None, "missing_eos_penalty": options["missing_eos_penalty"]},
    )
    prompts = [EncodedPrompt(ids=ids, slice="all") for ids in options["prompts"]]
    return PPOTrainer(_make_models(), _classifier("reward"), make_tokenizer(), prompts, settings=settings, seed=0)


def _make_rollout(peer: Peer) -> Rollout:
    """The fixed answers. What decoding saw is withheld, so that our engine computes every number itself."""
    answers = peer.options["answers"]
    return Rollout(
        slices=["all"] * len(answers),
        prompts_ids=peer.options["prompts"],
        responses_ids=answers,
        finished=[answer[-1] == EOS for answer in answers],
        decode_logprobs=[[9.0] * len(answer) for answer in answers],
        decode_entropies=[[9.0] * len(answer) for answer in answers],
    )


def _score(peer: Peer) -> tuple[PPOTrainer, Rollout, Scores]:
    trainer, rollout = _make_trainer(peer), _make_rollout(peer)
    return trainer, rollout, trainer.score(rollout)


def _losses(
    peer: Peer, trainer: PPOTrainer, rollout: Rollout, scores: Scores, advantages: Advantages
) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    """Losses and gradients under the new weights, the old ones having sampled."""
    _load(trainer.models, policy="new_policy", value="new_value")  # pyright: ignore[reportArgumentType]
    updater = Updater(trainer.models, trainer.settings, pad_id=0)
    losses = updater.accumulate_gradients(rollout, scores, advantages, list(range(len(rollout))))
    parameters = {"policy": trainer.models.policy_parameters(), "value": trainer.models.value_parameters()}
    gradients = {side: {name: p.grad for name, p in named.items()} for side, named in parameters.items()}
    return losses, gradients  # pyright: ignore[reportReturnType]


def _assert_close(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> None:
    if mask is not None:
        ours, theirs = ours[mask], theirs[mask]
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_scores_of_a_rollout_are_those_of_trl(case: str) -> None:
    peer = _read(case)
    _, _, scores = _score(peer)

    assert torch.equal(scores.mask, peer.mask)
    _assert_close(scores.logprobs, peer["logprobs"], peer.mask)
    _assert_close(scores.reference_logprobs, peer["ref_logprobs"], peer.mask)
    _assert_close(scores.values, peer["values"], peer.mask)
    _assert_close(scores.scores, peer["scores"])
    _assert_close(scores.kl, peer["kl"].sum(dim=1))


def test_rewards_advantages_and_returns_of_equal_lengths_are_those_of_trl() -> None:
    peer = _read("equal_lengths")
    trainer, _, scores = _score(peer)
    options = peer.options
    rewards = token_rewards(scores.scores, scores.log_ratio, scores.mask, kl_coef=options["kl_coef"])
    plain, _ = generalised_advantages(rewards, scores.values, scores.mask, gamma=options["gamma"], lam=options["lam"])
    found = trainer.advantages(scores)

    _assert_close(rewards, peer["rewards"])
    _assert_close(plain, peer["advantages"])
    _assert_close(found.returns, peer["returns"])
    _assert_close(found.advantages * peer.whitening, peer["whitened"])


def test_losses_and_gradients_of_equal_lengths_are_those_of_trl() -> None:
    peer = _read("equal_lengths")
    trainer, rollout, scores = _score(peer)
    ours = trainer.advantages(scores)
    advantages = Advantages(advantages=ours.advantages * peer.whitening, returns=ours.returns)
    losses, gradients = _losses(peer, trainer, rollout, scores, advantages)

    assert losses["policy_loss"] == close(float(peer["pg_loss"]), abs=1e-5)
    assert losses["value_loss"] == close(float(peer["vf_loss"]), abs=1e-5)
    assert 0 < losses["clip_fraction"] < 1, "the fixture shall exercise the clip"
    assert 0 < losses["value_clip_fraction"] < 1, "the fixture shall exercise the value clip"
    for side, expected in (("policy", peer.gradients("policy")), ("value", peer.gradients("value"))):
        named = expected if side == "policy" else {_our_name(name): each for name, each in expected.items()}
        assert set(named) == set(gradients[side])
        for name, gradient in named.items():
            _assert_close(gradients[side][name], gradient)


def test_advantages_of_short_answers_are_those_of_trl_where_its_extra_position_does_not_matter() -> None:
    peer = _read("varied_lengths_monte_carlo")
    trainer, rollout, scores = _score(peer)
    ours = trainer.advantages(scores)
    advantages = Advantages(advantages=ours.advantages * peer.whitening, returns=ours.returns)
    losses, gradients = _losses(peer, trainer, rollout, scores, advantages)

    _assert_close(advantages.advantages, peer["whitened"])
    _assert_close(ours.returns, peer["returns"], peer.mask)
    assert losses["policy_loss"] == close(float(peer["pg_loss"]), abs=1e-5)
    for name, gradient in peer.gradients("policy").items():
        _assert_close(gradients["policy"][name], gradient)


@pytest.mark.parametrize("case", VARIED)
def test_our_functions_on_trls_layout_of_short_answers_give_its_numbers(case: str) -> None:
    peer = _read(case)
    options, mask, mask_p1 = peer.options, peer.mask, peer.mask_p1
    plain, returns = generalised_advantages(
        peer["rewards"], peer["values"], mask_p1, gamma=options["gamma"], lam=options["lam"]
    )
    policy = policy_loss(
        peer["new_logprobs"][mask], peer["logprobs"][mask], peer["whitened"][mask], clip_ratio=options["clip_ratio"]
    )
    value = value_loss(
        peer["vpred"][mask_p1], peer["values"][mask_p1], peer["returns"][mask_p1], clip=options["value_clip"]
    )

    _assert_close(plain, peer["advantages"], mask_p1)
    _assert_close(returns, peer["returns"], mask_p1)
    _assert_close(whiten(peer["advantages"], mask) * peer.whitening, peer["whitened"])
    assert float(policy.loss / mask.sum()) == close(float(peer["pg_loss"]), abs=1e-5)
    assert float(value.loss / mask_p1.sum()) == close(float(peer["vf_loss"]), abs=1e-5)


@pytest.mark.parametrize("case", VARIED)
def test_rewards_of_short_answers_differ_from_trls_in_where_the_score_is_paid_and_nowhere_else(case: str) -> None:
    peer = _read(case)
    _, _, scores = _score(peer)
    ours = token_rewards(scores.scores, scores.log_ratio, scores.mask, kl_coef=peer.options["kl_coef"])
    last = scores.mask.sum(dim=1) - 1
    short = (last + 1 < ours.shape[1]).nonzero().squeeze(1)
    moved = ours.clone()
    moved[short, last[short]] -= scores.scores[short]
    moved[short, last[short] + 1] += scores.scores[short]

    assert len(short) > 0
    _assert_close(moved, peer["rewards"])
