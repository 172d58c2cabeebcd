"""The PPO trainer: `rollout`, `score`, `advantages`, `update`, and `train` that loops them.

A notebook can drive the four steps by hand:

    rollout = trainer.rollout()
    scores = trainer.score(rollout)
    advantages = trainer.advantages(scores)
    trainer.update(rollout, scores, advantages)

A step's random numbers follow from the run's seed and the step's number, so that a resumed run samples what the
uninterrupted one would have sampled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.advantages import Advantages, estimate_advantages
from components.ppo.alarms import raise_alarms
from components.ppo.checkpoint import CheckpointStore, TrainingState, random_states, restore_random_states
from components.ppo.history import history_row
from components.ppo.kl_control import KLController
from components.ppo.models import ActorCritic, RewardAdapter
from components.ppo.reward_shaping import MAIN
from components.ppo.rewards import ModelReward, Rewards, RewardSource
from components.ppo.rollout import EncodedPrompt, PromptCursor, Rollout, sample_rollout
from components.ppo.scoring import Scores, require_finite, score_rollout
from components.ppo.settings import PPOSettings
from components.ppo.sharding import gather, load_parts, parts, parts_of
from components.ppo.update import Updater, UpdateStatistics
from components.shared.errors import InputError
from components.shared.world import World

__all__ = ["PPOTrainer", "learning_rate_factor"]

logger = logging.getLogger(__name__)

_ROLLOUT_STREAM, _UPDATE_STREAM = 0, 1


class PPOTrainer:
    """Trains a policy against a reward model.

    Attributes:
        settings: Settings of the run.
        models: Policy, reference and value model.
        rewards: What responses are paid by.
        controller: The KL coefficient and how it moves.
        updates: Updates made so far.
        history: Rows so far; see `components.ppo.history`.
        stop_reason: Why training ended early; None while it has not.
        world: The processes that train together.
    """

    def __init__(
        self,
        models: ActorCritic,
        reward_model: PreTrainedModel | RewardAdapter,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        *,
        settings: PPOSettings,
        seed: int,
        reward_mean: float = 0.0,
        reward_std: float = 1.0,
        further_rewards: Sequence[RewardSource] = (),
        world: World | None = None,
    ) -> None:
        """Sets up a training that has not begun.

        Args:
            models: Policy, reference and value model.
            reward_model: Sequence classifier with one label, or an adapter in its place; only read.
            tokenizer: Shared by policy and reward model.
            prompts: Training prompts.
            settings: Settings of the run.
            seed: Of everything random.
            reward_mean: Mean of the reward model's raw rewards, from its evaluation.
            reward_std: Their standard deviation.
            further_rewards: One source for each of `settings.reward.sources`.
            world: The processes that train together; absent: this one is alone.

        Raises:
            InputError: There are no prompts, or the further rewards are not those that the settings name.
        """
        if not prompts:
            raise InputError("there are no training prompts.", where="prompts/train.jsonl")
        self.settings = settings
        self.models = models
        self.controller = KLController.start(settings.kl, episodes_per_step=settings.episodes_per_step)
        self.updates = 0
        self.history: list[dict[str, Any]] = []
        self.stop_reason: str | None = None
        main = ModelReward(
            MAIN, reward_model, tokenizer, mean=reward_mean, std=reward_std, microbatch=settings.microbatch
        )
        self.rewards = Rewards(settings.reward, main, further_rewards)
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._seed = seed
        self._cursor = PromptCursor(len(prompts), seed=seed)
        self.world = world or World()
        pad_id = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        self._updater = Updater(models, settings, pad_id=pad_id, world=self.world)
        self._last_good: dict[str, Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether training has ended, early or not."""
        return self.stop_reason is not None or self.updates >= self.settings.steps

    def rollout(self) -> Rollout:
        """Samples `episodes_per_step` responses, `samples_per_prompt` to each of the next prompts."""
        count = self.settings.episodes_per_step // self.settings.samples_per_prompt
        return sample_rollout(
            self.models,
            self._tokenizer,
            [self._prompts[i] for i in self._cursor.take(count)],
            settings=self.settings,
            seed=self._step_seed(_ROLLOUT_STREAM),
            world=self.world,
        )

    def score(self, rollout: Rollout) -> Scores:
        """Rewards, log-probabilities, values and KL of a rollout.

        Raises:
            NotFiniteError: Some number is NaN or infinite.
            RewardRuleError: A rule failed.
        """
        return score_rollout(
            self.models,
            self.rewards,
            self._tokenizer,
            rollout,
            settings=self.settings,
            check=self.updates,
            world=self.world,
        )

    def advantages(self, scores: Scores) -> Advantages:
        """Advantages and returns under the KL coefficient of now."""
        return estimate_advantages(
            scores.scores,
            scores.log_ratio,
            scores.values,
            scores.mask,
            kl_coef=self.controller.coef,
            gamma=self.settings.gamma,
            lam=self.settings.lam,
        )

    def update(self, rollout: Rollout, scores: Scores, advantages: Advantages) -> UpdateStatistics:
        """Learns from a rollout, then moves the KL coefficient.

        Raises:
            NotFiniteError: A loss, gradient or weight is NaN or infinite.
        """
        train_policy = self.updates >= self.settings.critic_warmup_steps
        statistics = self._updater.update(
            rollout,
            scores,
            advantages,
            policy_rate=self._policy_rate(),
            value_rate=learning_rate_factor(self.updates, self.settings),
            train_policy=train_policy,
            seed=self._step_seed(_UPDATE_STREAM),
        )
        require_finite("a weight of the policy", *self.models.policy_parameters().values())
        require_finite("a weight of the value model", *self.models.value_parameters().values())
        if train_policy:
            self.controller.update(float(scores.kl.mean()), episodes=len(rollout))
        self.updates += 1
        return statistics

    def step(self) -> dict[str, Any]:
        """One PPO step; appends to `history` and returns its row.

        When the rollout's KL is above the ceiling, nothing is learned from it: `stop_reason` is set, and the policy
        goes back to the last one whose KL was below. The last update's policy is held to the ceiling as well, whatever
        ended training: by one more rollout, whose row is kept only where it is above.
        """
        row = self._step(learn=True)
        self._keep(row)
        exceeds = self.controller.exceeds_ceiling
        if self.done and self.settings.kl.ceiling_nats is not None and not exceeds(row["kl"]):
            beyond = self._step(learn=False)
            if exceeds(beyond["kl"]):
                self._keep(beyond)
        return self.history[-1]

    def _keep(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        self._look_for_alarms(row)

    def _step(self, *, learn: bool) -> dict[str, Any]:
        started = time.perf_counter()
        coef, rate = self.controller.coef, self.settings.policy_learning_rate * self._policy_rate()
        rollout = self.rollout()
        scores = self.score(rollout)
        advantages = update = None
        number = self.updates + 1
        if self.controller.exceeds_ceiling(kl := float(scores.kl.mean())):
            self._stop_at_ceiling(kl)
        elif learn:
            self._keep_as_good()
            advantages = self.advantages(scores)
            update = self.update(rollout, scores, advantages)
        return history_row(
            step=number,
            rollout=rollout,
            scores=scores,
            advantages=advantages,
            update=update,
            kl_coef=coef,
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )

    def train(
        self,
        *,
        store: CheckpointStore | None = None,
        after_step: Callable[[dict[str, Any]], None] | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> None:
        """Steps until done.

        Args:
            store: Where resume checkpoints go; absent: none are kept. The first process writes, all are given it.
            after_step: Called with each row, before its checkpoint: what it writes is older than the checkpoint.
            stop_requested: Asked after each step; True saves a checkpoint and returns with `done` still False.
        """
        while not self.done:
            row = self.step()
            if after_step is not None:
                after_step(row)
            stopping = stop_requested is not None and stop_requested()
            if store is not None and (stopping or self.done or self.updates % self.settings.save_every_steps == 0):
                self._save(store)
            if stopping:
                return

    def state(self) -> TrainingState:
        """All that `load_state` needs to go on from here; all processes take part, the first one's is complete."""
        policy, keep = self.models.policy_parameters(), self.world.is_main
        weights = {"policy": gather(policy, keep=keep), "value": gather(self.models.value_parameters(), keep=keep)}
        if self._last_good is not None:
            weights["last_good"] = gather(policy, held=self._last_good, keep=keep)
        return TrainingState(
            step=self.updates,
            weights=weights,
            optimizers=self._updater.state_dict(),
            random=random_states(),
            progress={
                "kl_coef": self.controller.coef,
                "reward_moments": self.rewards.state_dict(),
                "cursor": self._cursor.state_dict(),
                "stop_reason": self.stop_reason,
                "history": self.history,
            },
        )

    def load_state(self, state: TrainingState) -> None:
        """Goes to where `state` was taken; settings, inputs and seed must be the same."""
        policy, value = self.models.policy_parameters(), self.models.value_parameters()
        load_parts(policy, parts_of(state.weights["policy"], policy))
        load_parts(value, parts_of(state.weights["value"], value))
        self._updater.load_state_dict(state.optimizers)
        restore_random_states(state.random)
        good = state.weights.get("last_good")
        self._last_good = None if good is None else parts_of(good, policy)
        self.controller.coef = state.progress["kl_coef"]
        self.rewards.load_state_dict(state.progress["reward_moments"])
        self._cursor.load_state_dict(state.progress["cursor"])
        self.stop_reason = state.progress["stop_reason"]
        self.history = list(state.progress["history"])
        self.updates = state.step

    def _save(self, store: CheckpointStore) -> None:
        """Saves a checkpoint; the processes go on, or end, together."""
        if self.world.is_main or self.models.sharding is not None:
            state = self.state()
            if self.world.is_main:
                store.save(state)
        self.world.wait()

    def _policy_rate(self) -> float:
        """Factor on the policy's learning rate: 0 while the critic warms up, and the warm-up begins after that."""
        waited = self.updates - self.settings.critic_warmup_steps
        if waited < 0:
            return 0.0
        return min(learning_rate_factor(waited, self.settings), learning_rate_factor(self.updates, self.settings))

    def _step_seed(self, stream: int) -> int:
        return int(np.random.SeedSequence([self._seed, self.updates, stream]).generate_state(1, np.uint64)[0] >> 1)

    def _look_for_alarms(self, row: dict[str, Any]) -> None:
        alarms = raise_alarms(self.history, self.settings.alarms)
        row["alarms"] = [alarm.name for alarm in alarms]
        for alarm in alarms:
            if alarm.new:
                logger.warning("step %d: %s.", row["step"], alarm.reason)
            if alarm.name in self.settings.alarms.stop_on and self.stop_reason is None:
                self.stop_reason = alarm.reason

    def _keep_as_good(self) -> None:
        """Remembers the policy just measured below the ceiling: a copy, on the CPU, of what is trained."""
        if self.settings.kl.ceiling_nats is not None:
            self._last_good = parts(self.models.policy_parameters())

    def _stop_at_ceiling(self, kl: float) -> None:
        self.stop_reason = f"kl {kl:.2f} nats is above the ceiling of {self.settings.kl.ceiling_nats:g} nats"
        logger.warning("step %d: %s; back to the policy before the last update.", self.updates + 1, self.stop_reason)
        if self._last_good is not None:
            load_parts(self.models.policy_parameters(), self._last_good)
            self.updates -= 1


def learning_rate_factor(updates: int, settings: PPOSettings) -> float:
    """Factor on the learning rates after `updates` updates: warm-up, then the schedule; in (0, 1]."""
    if updates < settings.warmup_steps:
        return (updates + 1) / (settings.warmup_steps + 1)
    if settings.learning_rate_schedule == "constant":
        return 1.0
    falling = max(1, settings.steps - 1 - settings.warmup_steps)
    done = min(1.0, (updates - settings.warmup_steps) / falling)
    left = 1.0 - done if settings.learning_rate_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.final_learning_rate_share + (1.0 - settings.final_learning_rate_share) * left
