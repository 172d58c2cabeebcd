"""The trainer: first update, ceiling, NaN, warm-up of the critic, and the four steps driven by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_ppo import make_prompts, make_settings, make_tokenizer, make_trainer

from components.ppo.errors import NotFiniteError
from components.ppo.history import metrics_of_row, summarise
from components.ppo.rollout import PromptCursor
from components.ppo.trainer import PPOTrainer, learning_rate_factor
from components.shared.errors import InputError
from components.shared.policy_optimization import repetition_share


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_first_update_starts_at_ratio_one_and_kl_zero(parameterisation: str) -> None:
    trainer = make_trainer(parameterisation=parameterisation, ppo_epochs=1)

    row = trainer.step()

    assert row["kl"] == pytest.approx(0.0, abs=1e-4)
    assert row["kl_k3"] == pytest.approx(0.0, abs=1e-6)
    assert row["approx_kl_update"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0
    assert row["logprob_gap"] < 1e-4


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_second_rollout_has_moved_from_the_reference(parameterisation: str) -> None:
    trainer = make_trainer(parameterisation=parameterisation)

    trainer.train()

    assert [row["step"] for row in trainer.history] == [1, 2, 3, 4]
    assert trainer.history[-1]["kl_k3"] > 1e-3
    assert trainer.done
    assert trainer.stop_reason is None


def test_the_four_steps_can_be_driven_by_hand() -> None:
    trainer = make_trainer()

    rollout = trainer.rollout()
    scores = trainer.score(rollout)
    advantages = trainer.advantages(scores)
    statistics = trainer.update(rollout, scores, advantages)

    assert scores.logprobs.shape == scores.values.shape == advantages.returns.shape == scores.mask.shape
    assert scores.rewards.shape == (8,)
    assert int(scores.mask.sum()) == rollout.response_tokens
    assert statistics.grad_norm > 0
    assert trainer.updates == 1


def test_above_the_ceiling_training_stops_without_an_update_and_keeps_the_last_good_policy() -> None:
    trainer = make_trainer(
        steps=50, policy_learning_rate=0.05, kl={"control": "off", "target_nats": 1.0, "ceiling_nats": 0.5}
    )
    weights: list[dict[str, torch.Tensor]] = [_weights(trainer)]

    trainer.train(after_step=lambda row: weights.append(_weights(trainer)))

    last = trainer.history[-1]
    assert last["kl"] > 0.5
    assert all(row["kl"] <= 0.5 for row in trainer.history[:-1])
    assert last["policy_loss"] is None
    assert "ceiling" in str(trainer.stop_reason)
    good = last["step"] - 2  # the policy that the row before the last one measured
    assert trainer.updates == good
    assert all(torch.equal(weights[-1][name], weights[good][name]) for name in weights[good])
    summary = summarise(trainer.history, trainer.settings.kl, stop_reason=trainer.stop_reason)
    assert summary["stopped_early"] is True
    assert summary["kl_target"] is None
    assert summary["steps"] == len(trainer.history) - 1


def test_the_last_updates_policy_is_held_to_the_ceiling_too() -> None:
    options = {"steps": 1, "policy_learning_rate": 0.05}
    trainer = make_trainer(**options, kl={"control": "off", "target_nats": 1.0, "ceiling_nats": 0.5})
    before = _weights(trainer)

    trainer.train()

    assert "ceiling" in str(trainer.stop_reason)
    assert [row["value_loss"] is None for row in trainer.history] == [False, True]
    assert trainer.updates == 0
    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())
    gentle = make_trainer(steps=1, policy_learning_rate=1e-5, kl={"target_nats": 1.0, "ceiling_nats": 2.0})
    gentle.train()
    assert (gentle.stop_reason, gentle.updates, len(gentle.history)) == (None, 1, 1)


def test_a_policy_that_an_alarm_ends_training_with_is_held_to_the_ceiling_too() -> None:
    alarm = {"patience": 1, "max_truncated_share": 0.0, "stop_on": ["truncation"]}
    options = {"steps": 3, "warmup_steps": 0, "alarms": alarm}
    trainer = make_trainer(**options, policy_learning_rate=0.05, kl={"control": "off", "ceiling_nats": 0.5})
    before = _weights(trainer)

    trainer.train()

    assert "ceiling" in str(trainer.stop_reason)
    assert trainer.history[-1]["kl"] > 0.5
    assert (len(trainer.history), trainer.updates) == (2, 0)
    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())
    gentle = make_trainer(**options, policy_learning_rate=1e-5, kl={"target_nats": 1.0, "ceiling_nats": 2.0})
    gentle.train()
    assert gentle.stop_reason is not None
    assert "ceiling" not in gentle.stop_reason
    assert (gentle.updates, len(gentle.history)) == (1, 1)


def test_an_alarm_on_the_last_step_leaves_no_row_of_a_policy_below_the_ceiling() -> None:
    alarm = {"patience": 1, "max_truncated_share": 0.0, "stop_on": ["truncation"]}
    options = {"steps": 1, "warmup_steps": 0, "alarms": alarm}
    trainer = make_trainer(**options, policy_learning_rate=1e-5, kl={"target_nats": 1.0, "ceiling_nats": 2.0})

    trainer.train()

    assert [row["value_loss"] is None for row in trainer.history] == [False]


def test_the_policys_warm_up_begins_when_the_critics_is_over() -> None:
    trainer = make_trainer(steps=6, warmup_steps=3, critic_warmup_steps=2, policy_learning_rate=0.004)

    trainer.train()

    rates = [row["learning_rate"] for row in trainer.history]
    assert rates == pytest.approx([0.0, 0.0, 0.001, 0.002, 0.003, 0.004])


def test_reward_that_is_not_a_number_stops_training_before_the_update() -> None:
    trainer = make_trainer()
    before = _weights(trainer)
    with torch.no_grad():
        trainer.rewards.main.model.score.weight.fill_(float("nan"))

    with pytest.raises(NotFiniteError, match="rewards"):
        trainer.step()

    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())


def test_gradient_that_is_not_a_number_stops_training_before_the_step() -> None:
    trainer = make_trainer()
    before = _weights(trainer)
    rollout = trainer.rollout()
    scores = trainer.score(rollout)
    advantages = trainer.advantages(scores)
    advantages.advantages[0, 0] = float("inf")

    with pytest.raises(NotFiniteError, match="loss or its gradient"):
        trainer.update(rollout, scores, advantages)

    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())


def test_while_the_critic_warms_up_the_policy_does_not_move() -> None:
    trainer = make_trainer(critic_warmup_steps=2)
    before = _weights(trainer)
    values = {name: p.detach().clone() for name, p in trainer.models.value_parameters().items()}

    for _ in range(2):
        trainer.step()

    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())
    assert any(not torch.equal(values[name], p) for name, p in trainer.models.value_parameters().items())
    assert trainer.controller.coef == trainer.settings.kl.init_coef
    trainer.step()
    assert any(not torch.equal(before[name], after) for name, after in _weights(trainer).items())


def test_several_minibatches_make_as_many_optimizer_steps() -> None:
    trainer = make_trainer(minibatches=2, ppo_epochs=3)

    trainer.step()

    state = trainer._updater.state_dict()["policy"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {6}


def test_every_prompt_comes_once_an_epoch_in_a_new_order() -> None:
    cursor = PromptCursor(7, seed=1)

    epochs = [cursor.take(7), cursor.take(7)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]


def test_cursor_goes_on_from_its_state_and_takes_more_than_an_epoch() -> None:
    cursor, other = PromptCursor(5, seed=1), PromptCursor(5, seed=1)
    cursor.take(3)
    other.load_state_dict(cursor.state_dict())

    assert cursor.take(13) == other.take(13)


def test_training_without_prompts_is_refused() -> None:
    trainer = make_trainer()

    with pytest.raises(InputError, match="no training prompts"):
        PPOTrainer(trainer.models, trainer.rewards.main.model, make_tokenizer(), [], settings=make_settings(), seed=0)


def test_more_minibatches_than_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"minibatches \(9\) must not be more than episodes_per_step \(8\)"):
        make_settings(minibatches=9)


def test_a_ceiling_below_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ceiling_nats \(2\) must be above target_nats \(6\)"):
        make_settings(kl={"ceiling_nats": 2.0})


def test_metrics_carry_slices_in_names_that_a_tracking_server_takes() -> None:
    row = make_trainer().step() | {"slices": {"how-to (safe)": {"n": 3, "reward": 0.5}}}

    metrics = metrics_of_row(row)

    assert metrics["slice/how-to _safe_/reward"] == 0.5
    assert metrics["kl"] == row["kl"]
    assert "step" not in metrics


def test_repetition_share_counts_trigrams_seen_before() -> None:
    assert repetition_share([1, 2, 3, 4]) == 0.0
    assert repetition_share([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)
    assert repetition_share([1]) == 0.0


def test_summary_averages_the_final_steps() -> None:
    history = _make_history(9)

    summary = summarise(history, make_settings().kl, stop_reason=None)

    assert summary == {
        "steps": 9,
        "kl_target": 6.0,
        "kl_final": 7.0,
        "kl_last_third": 8.0,
        "reward_start": 10.0,
        "reward_final": 70.0,
        "stopped_early": False,
        "stop_reason": None,
        "alarms": {},
    }


def test_summary_leaves_out_the_policy_above_the_ceiling() -> None:
    above = {"alarms": [], "kl": 1000.0, "reward_mean": 1000.0, "value_loss": None}

    summary = summarise([*_make_history(9), above], make_settings().kl, stop_reason="kl is above the ceiling")

    assert summary == {
        "steps": 9,
        "kl_target": 6.0,
        "kl_final": 7.0,
        "kl_last_third": 8.0,
        "reward_start": 10.0,
        "reward_final": 70.0,
        "stopped_early": True,
        "stop_reason": "kl is above the ceiling",
        "alarms": {},
    }


def test_learning_rate_rises_and_then_follows_its_schedule() -> None:
    options = {"steps": 12, "warmup_steps": 3, "final_learning_rate_share": 0.1}

    rates = {
        name: [learning_rate_factor(step, make_settings(learning_rate_schedule=name, **options)) for step in range(12)]
        for name in ("constant", "linear", "cosine")
    }

    assert rates["constant"] == [0.25, 0.5, 0.75, *[1.0] * 9]
    assert rates["linear"][3:] == pytest.approx([1.0 - 0.9 * i / 8 for i in range(9)])
    assert rates["cosine"][3] == 1.0
    assert rates["cosine"][7] == pytest.approx(0.55)
    assert rates["cosine"][11] == pytest.approx(0.1)


def test_a_schedule_without_room_after_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="leave no step"):
        make_settings(steps=3, warmup_steps=3, learning_rate_schedule="linear")


def test_several_samples_a_prompt_follow_each_other() -> None:
    trainer = make_trainer(samples_per_prompt=4)

    rollout = trainer.rollout()

    assert len(rollout) == 8
    assert rollout.prompts_ids[0] == rollout.prompts_ids[3] != rollout.prompts_ids[4]
    assert len({tuple(response) for response in rollout.responses_ids[:4]}) > 1
    with pytest.raises(ValueError, match="must be a multiple of samples_per_prompt"):
        make_settings(samples_per_prompt=3)


def test_log_probabilities_are_computed_again_where_decoding_disagrees() -> None:
    trainer = make_trainer()
    rollout = trainer.rollout()
    exact = trainer.score(rollout)
    worse = replace(rollout, decode_logprobs=[[p + 0.01 for p in row] for row in rollout.decode_logprobs])

    again = trainer.score(worse)

    assert not exact.recomputed
    assert again.recomputed
    assert again.decode_gap == pytest.approx(0.01, abs=1e-4)
    assert torch.allclose(exact.logprobs, again.logprobs, atol=1e-5)
    assert torch.allclose(exact.entropy, again.entropy, atol=1e-5)


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
def test_on_a_shared_trunk_values_come_from_decoding_and_both_losses_move_it(parameterisation: str) -> None:
    trainer = make_trainer(parameterisation=parameterisation, value_model="shared_trunk", steps=3)
    trainer.step()
    rollout = trainer.rollout()
    scores = trainer.score(rollout)
    recomputed = trainer.score(replace(rollout, decode_logprobs=[[0.0] * len(r) for r in rollout.responses_ids]))

    assert not scores.recomputed
    assert scores.values.abs().max() > 0
    assert torch.allclose(scores.values, recomputed.values, atol=1e-4)
    assert set(trainer.models.value_parameters()) == {"head.score.weight"}
    assert trainer.update(rollout, scores, trainer.advantages(scores)).value_grad_norm > 0


def test_while_the_critic_warms_up_on_a_shared_trunk_the_head_alone_learns() -> None:
    trainer = make_trainer(critic_warmup_steps=1, value_model="shared_trunk")
    before = _weights(trainer)

    trainer.step()

    assert all(torch.equal(before[name], after) for name, after in _weights(trainer).items())
    assert trainer.models.value_parameters()["head.score.weight"].abs().max() > 0


def test_rows_tell_slices_apart() -> None:
    row = make_trainer(episodes_per_step=len(make_prompts())).step()

    assert {name: part["n"] for name, part in row["slices"].items()} == {"even": 6, "odd": 6}
    weighted = sum(part["n"] * part["reward"] for part in row["slices"].values()) / 12
    assert weighted == pytest.approx(row["reward_mean"], abs=1e-5)


def _make_history(steps: int) -> list[dict[str, Any]]:
    return [{"kl": float(i), "reward_mean": 10.0 * i, "value_loss": 0.5, "alarms": []} for i in range(1, steps + 1)]


def _weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.models.policy_parameters().items()}
