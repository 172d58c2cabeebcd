"""Policy, reference and value model, behind one interface and in two parameterisations.

`SeparateModels` holds three models of their own: what tiny models want, because nothing is switched. `SharedBackbone`
holds one frozen backbone with a LoRA adapter for the policy and one for the value model; the reference is the backbone
with adapters off.

All models stay in evaluation mode: dropout would make the probability ratio differ from 1 before anything was learned.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.packing import PackedBatch
from components.ppo.settings import LoRASettings
from components.shared.errors import InputError
from components.shared.files import write_json
from components.shared.models import save_policy
from components.shared.scoring import forbid_pad_

__all__ = ["ActorCritic", "SeparateModels", "SharedBackbone", "ValueHead"]

_POLICY_ADAPTER = "default"  # PEFT writes the adapter of this name, and no other, where its loader looks for it.
_VALUE_ADAPTER = "value"


class ActorCritic(ABC):
    """The models that PPO needs, by what it asks of them.

    Attributes:
        device: Where the models live.
    """

    device: torch.device

    @abstractmethod
    def sampling_policy(self) -> PreTrainedModel:
        """The policy, ready to sample from."""

    @abstractmethod
    def policy_logits(self, batch: PackedBatch) -> Tensor:
        """Logits of the policy before each response token, `(tokens, vocabulary)`, float32; the pad token's is -inf."""

    @abstractmethod
    def reference_logits(self, batch: PackedBatch) -> Tensor:
        """The same of the frozen reference, without gradient."""

    @abstractmethod
    def values(self, batch: PackedBatch) -> Tensor:
        """Value of the state before each response token, `(tokens,)`, float32, in units of shaped score."""

    @abstractmethod
    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """What the policy's optimizer moves, by name."""

    @abstractmethod
    def value_parameters(self) -> dict[str, nn.Parameter]:
        """What the value model's optimizer moves, by name."""

    @abstractmethod
    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        """Saves the policy as it is now as a policy folder; training can go on.

        Args:
            tokenizer: The policy's tokenizer.
            folder: Where to write.
            origin: `base_model` and `base_digest` of the reference.
            step: Number of updates made.
        """

    @abstractmethod
    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        """Saves the policy with whole weights; the last thing done with these models."""

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
        """`(tokens, hidden)` to `(tokens,)`."""
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

    def __init__(self, policy: PreTrainedModel, *, value_backbone: PreTrainedModel, value_head: ValueHead) -> None:
        """Takes over `policy` and `value_backbone` (a transformer without a head); the reference is a copy."""
        self.device = policy.device
        self._policy = policy.eval().requires_grad_(True)
        self._reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self._backbone = value_backbone.eval().requires_grad_(True)
        self._head = value_head.requires_grad_(True)
        self._logits = _logits_function(policy)

    def sampling_policy(self) -> PreTrainedModel:
        return self._policy

    def policy_logits(self, batch: PackedBatch) -> Tensor:
        with self.autocast():
            return self._logits(self._policy, batch)

    @torch.no_grad()
    def reference_logits(self, batch: PackedBatch) -> Tensor:
        with self.autocast():
            return self._logits(self._reference, batch)

    def values(self, batch: PackedBatch) -> Tensor:
        with self.autocast():
            hidden = _response_hidden(self._backbone, batch)
        return self._head(hidden)

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._policy.named_parameters())

    def value_parameters(self) -> dict[str, nn.Parameter]:
        parameters = {f"backbone.{name}": parameter for name, parameter in self._backbone.named_parameters()}
        return parameters | {f"head.{name}": parameter for name, parameter in self._head.named_parameters()}

    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        save_policy(self._policy, tokenizer, folder, **origin, step=step)

    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        save_policy(self._policy, tokenizer, folder, **origin, step=step)


class SharedBackbone(ActorCritic):
    """One frozen backbone; an adapter for the policy, another with a head for the value model."""

    def __init__(self, policy: PreTrainedModel, *, value_head: ValueHead, lora: LoRASettings) -> None:
        """Takes over `policy`; both adapters start as no change, so policy and reference are equal at first."""
        from peft import LoraConfig, get_peft_model

        self.device = policy.device
        config = LoraConfig(
            task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=lora.targets
        )
        self._logits = _logits_function(policy)
        self._peft: Any = get_peft_model(policy, config, adapter_name=_POLICY_ADAPTER)
        self._peft.add_adapter(_VALUE_ADAPTER, copy.deepcopy(config))
        self._peft.eval()
        self._model: PreTrainedModel = self._peft.get_base_model()
        self._head = value_head.requires_grad_(True)

    def sampling_policy(self) -> PreTrainedModel:
        self._peft.set_adapter(_POLICY_ADAPTER)
        return self._model

    def policy_logits(self, batch: PackedBatch) -> Tensor:
        self._peft.set_adapter(_POLICY_ADAPTER)
        with self.autocast():
            return self._logits(self._model, batch)

    @torch.no_grad()
    def reference_logits(self, batch: PackedBatch) -> Tensor:
        with self._peft.disable_adapter(), self.autocast():
            return self._logits(self._model, batch)

    def values(self, batch: PackedBatch) -> Tensor:
        self._peft.set_adapter(_VALUE_ADAPTER)
        with self.autocast():
            hidden = _response_hidden(self._model.base_model, batch)
        return self._head(hidden)

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        return self._adapter_parameters(_POLICY_ADAPTER)

    def value_parameters(self) -> dict[str, nn.Parameter]:
        head = {f"head.{name}": parameter for name, parameter in self._head.named_parameters()}
        return self._adapter_parameters(_VALUE_ADAPTER) | head

    def save_checkpoint(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        self._peft.save_pretrained(folder, selected_adapters=[_POLICY_ADAPTER])
        tokenizer.save_pretrained(folder)
        write_json(folder / "policy.json", {"format": "adapter", **origin, "step": step})

    def save_candidate(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, origin: dict[str, str], step: int
    ) -> None:
        self._peft.delete_adapter(_VALUE_ADAPTER)
        self._peft.set_adapter(_POLICY_ADAPTER)
        save_policy(self._peft, tokenizer, folder, **origin, step=step)

    def _adapter_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._peft.named_parameters() if f".{adapter}." in f"{name}."}


def _response_hidden(backbone: nn.Module, batch: PackedBatch) -> Tensor:
    """Last hidden states at the positions that predict a response token, `(tokens, hidden)`."""
    hidden = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden[batch.rows, batch.columns]


def _head_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    head: Any = model.get_output_embeddings()
    return forbid_pad_(head(_response_hidden(model.base_model, batch)).float(), batch.pad_id)


def _whole_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[batch.rows, batch.columns].float()
    return forbid_pad_(logits, batch.pad_id)


def _logits_function(model: PreTrainedModel) -> Any:
    """The head on response positions only, where that is what the model computes; the whole forward pass elsewhere.

    Some architectures scale or cap their logits after the head; a probe tells.
    """
    with torch.no_grad():
        probe = torch.arange(8, device=model.device).unsqueeze(0) % model.config.vocab_size
        columns = torch.arange(8, device=model.device)
        rows = torch.zeros_like(columns)
        batch = PackedBatch(input_ids=probe, rows=rows, columns=columns, targets=columns, pad_id=0)
        if model.get_output_embeddings() is None:
            return _whole_logits
        same = torch.allclose(_head_logits(model, batch), _whole_logits(model, batch), rtol=1e-3, atol=1e-3)
    return _head_logits if same else _whole_logits
