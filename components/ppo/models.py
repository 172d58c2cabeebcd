"""Policy, reference and value model, behind one interface and in two parameterisations.

`SeparateModels` holds three models of their own: what tiny models want, because nothing is switched. `SharedBackbone`
holds one frozen backbone with a LoRA adapter for the policy and one for the value model; the reference is the backbone
with adapters off, and a reward model that was trained as an adapter over the same weights is one more. In both the
value model may instead be a head on the policy's own trunk: half the work of an update, at the price that value and
policy pull at the same weights.

All models stay in evaluation mode: dropout would make the probability ratio differ from 1 before anything was learned.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.logprob_head import LogprobHead, TokenLogprobs, response_hidden
from components.ppo.packing import PackedBatch
from components.ppo.settings import LoRASettings
from components.ppo.sharding import Sharding, fill, gather, skeleton
from components.shared.errors import ArtifactError, InputError
from components.shared.files import write_json
from components.shared.models import save_policy

__all__ = ["ActorCritic", "RewardAdapter", "SeparateModels", "SharedBackbone", "ValueHead"]

_POLICY_ADAPTER = "default"  # PEFT writes the adapter of this name, and no other, where its loader looks for it.
_VALUE_ADAPTER = "plumbline_value"  # names that no module of a base model has
_REWARD_ADAPTER = "plumbline_reward"


class ActorCritic(ABC):
    """The models that PPO needs, by what it asks of them.

    Attributes:
        device: Where the models live.
        sharding: How their weights are divided among processes; None: they are whole.
    """

    device: torch.device
    sharding: Sharding | None = None

    @abstractmethod
    def shard(self, sharding: Sharding) -> None:
        """Divides the weights among the processes; before any parameter was handed out."""

    @abstractmethod
    def sampling_policy(self) -> PreTrainedModel:
        """The policy, ready to sample from."""

    @property
    @abstractmethod
    def trunk_is_shared(self) -> bool:
        """Whether the value model is a head on the policy's trunk."""

    @abstractmethod
    def policy_logprobs(self, batch: PackedBatch, *, temperature: float, entropy: bool = False) -> TokenLogprobs:
        """log pi of each response token, and the entropy before it."""

    @abstractmethod
    def reference_logprobs(self, batch: PackedBatch, *, temperature: float) -> Tensor:
        """log-probabilities under the frozen reference, `(tokens,)`, nats, without gradient."""

    @abstractmethod
    def values(self, batch: PackedBatch) -> Tensor:
        """Value of the state before each response token, `(tokens,)`, float32, in units of shaped score."""

    @abstractmethod
    def policy_logprobs_and_values(
        self, batch: PackedBatch, *, temperature: float, detach_trunk: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both in one pass, where the trunk is shared.

        Args:
            batch: The sequences.
            temperature: Above 0.
            detach_trunk: Whether the values' gradient stops at the head.
        """

    @abstractmethod
    def value_of_hidden(self, hidden: Tensor) -> Tensor:
        """Values from the policy's last hidden states `(n, hidden)`, `(n,)`, where the trunk is shared."""

    @abstractmethod
    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """What the policy's optimizer moves, by name."""

    @abstractmethod
    def value_parameters(self) -> dict[str, nn.Parameter]:
        """What the value model's optimizer moves, by name."""

    @abstractmethod
    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        """Saves the policy as it is now as a policy folder; training can go on.

        Args:
            tokenizer: The policy's tokenizer.
            folder: Where to write; None in a process that gives its shards only.
            origin: `base_model` and `base_digest` of the reference.
            step: Number of updates made.
        """

    @abstractmethod
    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        """Saves the policy with whole weights; the last thing done with these models."""

    def _reshard(self) -> None:
        """Lets go of gathered weights: what is a parameter afterwards is what the optimizers move."""
        if self.sharding is not None:
            self.sharding.reshard()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 arithmetic on a GPU that has it; weights and results stay float32."""
        enabled = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


class ValueHead(nn.Module):
    """A linear value on hidden states, brought from raw rewards to shaped scores: `(w . h + b - mean) / std`."""

    def __init__(self, score: nn.Linear, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.score = score
        self.mean = mean
        self.std = std

    def forward(self, hidden: Tensor) -> Tensor:
        """`(tokens, hidden)` to `(tokens,)`, float32 under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.score(hidden.to(self.score.weight.dtype)).squeeze(-1).float() - self.mean) / self.std

    @classmethod
    def zero(cls, hidden_size: int, device: torch.device) -> ValueHead:
        """A head that values everything at 0."""
        score = nn.Linear(hidden_size, 1, bias=False, device=device)
        nn.init.zeros_(score.weight)
        return cls(score)

    @classmethod
    def of_reward_model(cls, reward_model: PreTrainedModel, *, mean: float, std: float) -> ValueHead:
        """A copy of the reward model's score head, in float32.

        Args:
            reward_model: A sequence classifier with one label.
            mean: Mean of its raw rewards, from its evaluation.
            std: Their standard deviation.

        Raises:
            InputError: The model has no linear `score` head.
        """
        score = getattr(reward_model, "score", None)
        if not isinstance(score, nn.Linear):
            raise InputError(
                f"{type(reward_model).__name__} has no linear `score` head to start a value model from.",
                where="ppo.value_init",
                hint="Set value_init to 'policy'.",
            )
        return cls(copy.deepcopy(score).float(), mean=mean, std=std)


class SeparateModels(ActorCritic):
    """Policy, reference and value model with weights of their own; every weight of policy and value is trained."""

    def __init__(
        self, policy: PreTrainedModel, *, value_backbone: PreTrainedModel | None, value_head: ValueHead
    ) -> None:
        """Takes over the models; the reference is a copy of the policy.

        Args:
            policy: Causal language model.
            value_backbone: A transformer without a head; None puts the value head on the policy's trunk.
            value_head: Its head.
        """
        self.device = policy.device
        self._policy = policy.eval().requires_grad_(True)
        self._reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self._backbone = None if value_backbone is None else value_backbone.eval().requires_grad_(True)
        self._head = value_head.requires_grad_(True)
        self._policy_head = LogprobHead(self._policy)
        self._reference_head = LogprobHead(self._reference)

    def shard(self, sharding: Sharding) -> None:
        for model in (self._policy, self._reference, self._backbone):
            if model is not None:
                sharding.apply(model)
        self._head.to(sharding.device)
        self.device, self.sharding = sharding.device, sharding

    @property
    def trunk_is_shared(self) -> bool:
        return self._backbone is None

    def sampling_policy(self) -> PreTrainedModel:
        return self._policy

    def policy_logprobs(self, batch: PackedBatch, *, temperature: float, entropy: bool = False) -> TokenLogprobs:
        with self.autocast():
            return self._policy_head.run(batch, temperature=temperature, entropy=entropy)[0]

    @torch.no_grad()
    def reference_logprobs(self, batch: PackedBatch, *, temperature: float) -> Tensor:
        with self.autocast():
            return self._reference_head.run(batch, temperature=temperature)[0].logprobs

    def values(self, batch: PackedBatch) -> Tensor:
        with self.autocast():
            hidden = response_hidden(self._backbone or self._policy.base_model, batch)
        return self._head(hidden)

    def policy_logprobs_and_values(
        self, batch: PackedBatch, *, temperature: float, detach_trunk: bool = False
    ) -> tuple[Tensor, Tensor]:
        with self.autocast():
            scored, hidden = self._policy_head.run(batch, temperature=temperature)
        return scored.logprobs, self._head(hidden.detach() if detach_trunk else hidden)

    def value_of_hidden(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        self._reshard()
        return dict(self._policy.named_parameters())

    def value_parameters(self) -> dict[str, nn.Parameter]:
        self._reshard()
        own = {} if self._backbone is None else dict(self._backbone.named_parameters())
        parameters = {f"backbone.{name}": parameter for name, parameter in own.items()}
        return parameters | {f"head.{name}": parameter for name, parameter in self._head.named_parameters()}

    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        policy = self._policy if self.sharding is None else self._whole_policy(keep=folder is not None)
        if folder is not None:
            save_policy(policy, tokenizer, folder, **origin, step=step)

    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        self.save_checkpoint(tokenizer, folder, origin=origin, step=step)

    def _whole_policy(self, *, keep: bool) -> Any:
        """The policy with whole weights, on the CPU; all processes take part."""
        self._reshard()
        weights = gather(self._policy.state_dict(), keep=keep)
        return fill(skeleton(self._policy), weights) if keep else None


class SharedBackbone(ActorCritic):
    """One frozen backbone; an adapter for the policy, and for the value model another adapter or only a head."""

    def __init__(
        self, policy: PreTrainedModel, *, value_head: ValueHead, lora: LoRASettings, value_adapter: bool = True
    ) -> None:
        """Takes over `policy`; adapters start as no change, so policy and reference are equal at first.

        Args:
            policy: Causal language model.
            value_head: Head of the value model.
            lora: Of each adapter.
            value_adapter: False puts the value head on the policy's trunk.
        """
        from peft import LoraConfig, get_peft_model

        self.device = policy.device
        config = LoraConfig(
            task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=lora.targets
        )
        self._peft: Any = get_peft_model(policy, config, adapter_name=_POLICY_ADAPTER)
        self._value_adapter = value_adapter
        if value_adapter:
            self._peft.add_adapter(_VALUE_ADAPTER, copy.deepcopy(config))
        self._peft.eval()
        self._model: PreTrainedModel = self._peft.get_base_model()
        self._head = value_head.requires_grad_(True)
        self._policy_head = LogprobHead(self._model)

    def shard(self, sharding: Sharding) -> None:
        trained = [*self.policy_parameters().values(), *self.value_parameters().values()]
        self._peft.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        sharding.apply(self._model)
        self._head.to(sharding.device)
        self.device, self.sharding = sharding.device, sharding

    @property
    def trunk_is_shared(self) -> bool:
        return not self._value_adapter

    def sampling_policy(self) -> PreTrainedModel:
        self._use(_POLICY_ADAPTER)
        return self._model

    def policy_logprobs(self, batch: PackedBatch, *, temperature: float, entropy: bool = False) -> TokenLogprobs:
        self._use(_POLICY_ADAPTER)
        with self.autocast():
            return self._policy_head.run(batch, temperature=temperature, entropy=entropy)[0]

    @torch.no_grad()
    def reference_logprobs(self, batch: PackedBatch, *, temperature: float) -> Tensor:
        with self._without_adapters(), self.autocast():
            return self._policy_head.run(batch, temperature=temperature)[0].logprobs

    def values(self, batch: PackedBatch) -> Tensor:
        self._use(_VALUE_ADAPTER if self._value_adapter else _POLICY_ADAPTER)
        with self.autocast():
            hidden = response_hidden(self._model.base_model, batch)
        return self._head(hidden)

    def policy_logprobs_and_values(
        self, batch: PackedBatch, *, temperature: float, detach_trunk: bool = False
    ) -> tuple[Tensor, Tensor]:
        self._use(_POLICY_ADAPTER)
        with self.autocast():
            scored, hidden = self._policy_head.run(batch, temperature=temperature)
        return scored.logprobs, self._head(hidden.detach() if detach_trunk else hidden)

    def value_of_hidden(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def attach_reward_adapter(self, folder: Path) -> RewardAdapter:
        """Puts a reward model's adapter on the backbone, in place of a reward model of its own.

        Args:
            folder: The adapter, trained over the very weights of the backbone.

        Raises:
            ArtifactError: It does not fit the backbone, or has no score head.
        """
        from peft import LoraConfig, set_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights

        weights = load_peft_weights(str(folder), device=str(self.device))
        heads = [name for name in weights if name.endswith("score.weight")]
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.task_type, config.modules_to_save = "CAUSAL_LM", None
        self._peft.add_adapter(_REWARD_ADAPTER, config)
        own = {name: tensor for name, tensor in weights.items() if name not in heads}
        unknown = set_peft_model_state_dict(self._peft, own, adapter_name=_REWARD_ADAPTER).unexpected_keys
        if unknown or len(heads) != 1 or len(own) != len(self._adapter_parameters(_REWARD_ADAPTER)):
            raise ArtifactError(
                "the reward model's adapter does not fit the policy.",
                where=str(folder),
                hint="Run the reward_model stage again.",
            )
        self._peft.eval()  # an adapter comes in training mode, its dropout on
        return RewardAdapter(self, weights[heads[0]].float())

    @torch.no_grad()
    def reward_hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states under the reward adapter, `(batch, time, hidden)`."""
        self._use(_REWARD_ADAPTER)
        with self.autocast():
            return self._model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        self._reshard()
        return self._adapter_parameters(_POLICY_ADAPTER)

    def value_parameters(self) -> dict[str, nn.Parameter]:
        self._reshard()
        head = {f"head.{name}": parameter for name, parameter in self._head.named_parameters()}
        return (self._adapter_parameters(_VALUE_ADAPTER) if self._value_adapter else {}) | head

    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        weights = {} if self.sharding is None else {"state_dict": self._whole_weights(keep=folder is not None)}
        if folder is not None:
            self._peft.save_pretrained(folder, selected_adapters=[_POLICY_ADAPTER], **weights)
            tokenizer.save_pretrained(folder)
            write_json(folder / "policy.json", {"format": "adapter", **origin, "step": step})

    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, *, origin: dict[str, str], step: int
    ) -> None:
        policy: Any = self._peft
        if self.sharding is None:
            for adapter in set(self._peft.peft_config) - {_POLICY_ADAPTER}:
                self._peft.delete_adapter(adapter)
            self._peft.set_adapter(_POLICY_ADAPTER)
        else:
            weights = self._whole_weights(keep=folder is not None, backbone=True)
            policy = self._of_whole_weights(weights) if folder is not None else None
        if folder is not None:
            policy.float()  # merged in half precision, small updates would be rounded away
            save_policy(policy, tokenizer, folder, **origin, step=step)

    def _whole_weights(self, *, keep: bool, backbone: bool = False) -> dict[str, Tensor]:
        """Whole weights of the policy's adapter, on demand the backbone's too; all processes take part."""
        self._reshard()
        weights = {
            name: tensor
            for name, tensor in self._peft.state_dict().items()
            if (f".{_POLICY_ADAPTER}." in name if "lora_" in name else backbone)
        }
        return gather(weights, keep=keep)

    def _of_whole_weights(self, weights: dict[str, Tensor]) -> Any:
        """The policy with its adapter beside its backbone, from `_whole_weights`."""
        from peft import get_peft_model

        config = copy.deepcopy(self._peft.peft_config[_POLICY_ADAPTER])
        return fill(get_peft_model(skeleton(self._model), config, adapter_name=_POLICY_ADAPTER), weights)

    def _use(self, adapter: str) -> None:
        """Makes an adapter the active one; a switch walks over every layer, so none is made without need."""
        if self.sharding is not None:
            self._switch(adapter)
        elif self._peft.active_adapter != adapter:
            self._peft.set_adapter(adapter)

    def _without_adapters(self) -> AbstractContextManager[Any]:
        """No adapter is active in the block, nor, where weights are sharded, until one is used again."""
        if self.sharding is None:
            return self._peft.disable_adapter()
        self._switch(None)
        return nullcontext()

    def _switch(self, adapter: str | None) -> None:
        """As PEFT switches, but freezes nothing: that would reach a gathered weight and not its shard."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self._peft.modules():
            if isinstance(module, BaseTunerLayer):
                module._disable_adapters = adapter is None
                module._active_adapter = [adapter or _POLICY_ADAPTER]

    def _adapter_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._peft.named_parameters() if f".{adapter}." in f"{name}."}


class RewardAdapter:
    """A reward model that is an adapter and a head over the policy's backbone; called as the reward model would be."""

    def __init__(self, models: SharedBackbone, head: Tensor) -> None:
        """Takes the head's weights, `(1, hidden)`, float32."""
        self._models = models
        self._head = head

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self._models.device

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Scores right-padded sequences at their last token: `logits`, `(batch, 1)`, float32."""
        hidden = self._models.reward_hidden(input_ids)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        last = hidden[rows, attention_mask.sum(dim=1) - 1]
        return SimpleNamespace(logits=last.float() @ self._head.to(last.device).T)
