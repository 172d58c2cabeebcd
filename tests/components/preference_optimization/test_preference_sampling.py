"""What TRL is given: whole groups of prompts, answers of the scored policy, pay of the sampled token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_preferences import make_artifacts, make_policy, make_reward_model, make_settings, make_tokenizer

from components.preference_optimization.payment import Payment
from components.preference_optimization.sampling import GroupSampler, positions_from_mask
from components.preference_optimization.settings import PreferenceOptimizationSettings, RewardSettings
from components.preference_optimization.setup import Inputs, build_training
from components.shared.artifacts import read_artifact
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.policy_optimization import RewardScale
from components.shared.scoring import response_logprobs, rewards


def _make_payment(scale: RewardScale = RewardScale(0.0, 1.0), **settings: Any) -> Payment:  # noqa: B008
    return Payment(make_reward_model(), make_tokenizer(), scale, RewardSettings(**settings), stops=[2], batch_size=4)


def _make_training(folder: Path, method: str, *, kind: str = "llama", **settings: Any) -> Any:
    paths = make_artifacts(folder / "in", kind=kind)
    inputs = Inputs(
        policy=read_artifact(paths["policy"], "policy"),
        reward_model=read_artifact(paths["reward_model"], "reward_model"),
        dataset=read_artifact(paths["dataset"], "dataset"),
        pairs=read_artifact(paths["pairs"], "dataset"),
    )
    chosen = PreferenceOptimizationSettings.model_validate(make_settings(method, **settings))
    return build_training(inputs, chosen, folder=TrainingFolder(folder / "work", durable=False), seed=0)


# --- pay -------------------------------------------------------------------------------------------------------------


def test_pay_is_the_reward_of_the_sampled_tokens_in_deviations() -> None:
    prompts, answers = [[1, 4, 9], [1, 5, 9]], [[6, 7, 2], [8, 8, 8, 2]]
    raw = rewards(make_reward_model(), make_tokenizer(), prompts, answers)
    paid = _make_payment(RewardScale(0.3, 0.5), clip=None)(prompts, answers)
    assert paid == pytest.approx(((raw - 0.3) / 0.5).tolist(), rel=1e-5)


def test_padding_after_an_answer_is_not_paid_for() -> None:
    assert _make_payment()([[1, 4, 9]], [[6, 7, 2, 0, 0]]) == _make_payment()([[1, 4, 9]], [[6, 7, 2]])


def test_an_answer_that_was_cut_pays_the_penalty() -> None:
    free, dear = (_make_payment(missing_eos_penalty=cost)([[1, 4, 9]] * 2, [[6, 7, 2], [6, 7, 8]]) for cost in (0, 2))
    assert dear[0] == free[0]
    assert dear[1] == pytest.approx(free[1] - 2)


def test_pay_is_clipped() -> None:
    paid = _make_payment(RewardScale(0.0, 1e-6), clip=5.0)([[1, 4, 9]], [[6, 7, 2]])
    assert abs(paid[0]) == pytest.approx(5.0)


# --- order -----------------------------------------------------------------------------------------------------------


def test_groups_are_whole_and_a_steps_prompts_come_once_a_pass() -> None:
    sampler = GroupSampler([3] * 7, prompts_per_step=3, group_size=2, passes=2, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 2 * 3 * 2 * 2
    step = order[:12]
    assert step[:6] == step[6:]
    assert step[0:6:2] == step[1:6:2]
    assert len(set(order[:12]) | set(order[12:])) == 6


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        sampler = GroupSampler([3] * 20, prompts_per_step=5, group_size=2, passes=1, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


# --- the policy that is sampled is the policy that is trained ------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_trainer_scores_the_policy_that_was_sampled_however_prompts_are_padded(tmp_path: Path, kind: str) -> None:
    training = _make_training(tmp_path, "grpo", kind=kind)
    trainer = training.trainer
    prompts, answers = [[1, 4, 9], [1, 5, 5, 5, 5, 9]], [[6, 7, 2], [8, 8, 8]]
    ids = torch.tensor([[0, 0, 0, *prompts[0], *answers[0]], [*prompts[1], *answers[1]]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])

    scored, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 3)

    ours = response_logprobs(make_policy(kind), make_tokenizer(), prompts, answers)
    # TRL leaves the pad token in the distribution; it is a small share of these, and no answer ever has it
    full = torch.log_softmax(make_policy(kind)(torch.tensor([prompts[0] + answers[0]])).logits[0], dim=-1)
    picked = full[torch.arange(2, 5), torch.tensor(answers[0])]
    assert torch.allclose(scored[0], picked, atol=1e-4)
    assert torch.allclose(scored[0] - scored[0].mean(), ours[0] - ours[0].mean(), atol=0.2)


def test_positions_that_are_given_are_left_alone() -> None:
    mask = torch.ones(1, 3, dtype=torch.long)
    assert positions_from_mask(None, (), {"attention_mask": mask, "position_ids": mask}) is None  # type: ignore[arg-type]
    assert positions_from_mask(None, (), {}) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_groups_are_sampled_from_the_whole_distribution_and_differ(tmp_path: Path, method: str) -> None:
    trainer = _make_training(tmp_path, method).trainer
    assert (trainer.top_k, trainer.top_p, trainer.args.bf16) == (0, 1.0, False)
    prompts = [[1, 4, 9]] * 4 + [[1, 5, 9]] * 4
    answers = trainer._sampled(prompts)
    assert answers != trainer._sampled(prompts), "a step that samples twice samples other answers"
    assert len({tuple(answer) for answer in answers}) > 4
    assert not any(0 in answer for answer in answers), "no answer has a pad token"


def test_an_online_step_ranks_two_answers_of_each_prompt_in_blocks(tmp_path: Path) -> None:
    trainer = _make_training(tmp_path, "online_dpo").trainer
    prompt_ids, prompt_mask, answer_ids, answer_mask, _ = trainer._generate(trainer.model, [[1, 4, 9], [1, 5, 5, 9]])
    assert torch.equal(prompt_ids[:2], prompt_ids[2:])
    assert prompt_ids[0].tolist() == [0, 1, 4, 9]
    assert prompt_mask[0].tolist() == [0, 1, 1, 1]
    assert answer_ids.shape == answer_mask.shape
    assert ((answer_ids == 0) == (answer_mask == 0)).all()


def test_an_online_steps_gradient_does_not_depend_on_its_forward_passes(tmp_path: Path) -> None:
    """TRL 1.16 sums the forward passes of a step where it should take their mean."""
    norms = []
    for passes, size in ((1, 8), (4, 2)):
        training = _make_training(
            tmp_path / str(passes), "online_dpo", batch_size=size, gradient_accumulation=passes, max_steps=1
        )
        training.trainer.train()
        norms.append(training.trainer.state.log_history[0]["grad_norm"])
    assert norms[1] < 2 * norms[0]
