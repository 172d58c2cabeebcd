"""Writes the parity fixture: what trl 1.12.0's `PPOTrainer.train()` computes on fixed answers, number by number.

    benchmarks/.peer-venv/bin/python -m benchmarks.ppo.parity_peer tests/components/ppo/fixtures

TRL's own code runs, generation included; only the random draw of a token is replaced by the fixed answer. Its local
variables are read off the running frame where it whitens the advantages and where it goes backward. Between the two,
policy and value model get new weights, so that probability ratios differ from 1 and both clips act.

TRL leaves the pad token in the distribution, our engine does not. So its models here have a pad logit of -1e9.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl
import trl.experimental.ppo.ppo_trainer as trl_ppo
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

logging.disable(logging.WARNING)

PAD, EOS = 0, 2
CONFIG = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
PROMPTS = [[1, 4, 5], [1, 6, 7, 8, 9], [1, 10], [1, 11, 12, 13], [1, 14, 15, 4], [1, 5, 7]]
EQUAL = [
    [4, 5, 6, 7, 8, EOS],
    [9, 10, 11, 12, 13, 14],
    [15, 4, 4, 6, 9, EOS],
    [7, 8, 7, 8, 7, EOS],
    [13, 12, 11, 10, 9, 8],
    [5, 15, 14, 6, 6, EOS],
]
VARIED = [
    [4, EOS],
    [9, 10, 11, 12, 13, 14],
    [15, 4, 4, EOS],
    [EOS],
    [13, 12, 11, 10, 9, EOS],
    [5, 15, EOS],
]


@dataclass(frozen=True)
class Case:
    """Answers and hyperparameters of a run."""

    answers: list[list[int]]
    gamma: float
    lam: float
    temperature: float = 0.7
    kl_coef: float = 0.3
    clip_ratio: float = 0.2
    value_clip: float = 0.2
    missing_eos_penalty: float = 1.0


CASES = {
    "equal_lengths": Case(EQUAL, gamma=0.98, lam=0.9),
    "varied_lengths": Case(VARIED, gamma=0.98, lam=0.9),
    "varied_lengths_monte_carlo": Case(VARIED, gamma=1.0, lam=1.0),
}


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({f"w{number}": number for number in range(CONFIG["vocab_size"])}, unk_token="w3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="w0", bos_token="w1", eos_token="w2", padding_side="left"
    )


def _language_model(seed: int, *, near: nn.Module | None = None) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return _near(LlamaForCausalLM(LlamaConfig(**CONFIG)), near)


def _classifier(seed: int, *, near: nn.Module | None = None) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return _near(LlamaForSequenceClassification(LlamaConfig(**CONFIG, num_labels=1)), near)


def _near(model: Any, other: nn.Module | None) -> Any:
    """`model`, or weights a tenth of the way from `other` to it."""
    if other is not None:
        known = other.state_dict()
        model.load_state_dict({name: torch.lerp(known[name], each, 0.1) for name, each in model.state_dict().items()})
    return model


def _models() -> dict[str, nn.Module]:
    reference = _language_model(0)
    policy = _language_model(1, near=reference)
    value = _classifier(2)
    return {
        "reference": reference,
        "policy": policy,
        "new_policy": _language_model(3, near=policy),
        "value": value,
        "new_value": _classifier(4, near=value),
        "reward": _classifier(5),
    }


def _forbid_pad(_: nn.Module, __: Any, output: Any) -> Any:
    output.logits[..., PAD] = -1e9
    return output


class _FixedAnswers:
    """Stands in for `torch.multinomial`: rows are told apart by the prompts that the policy is first run on."""

    def __init__(self, answers: list[list[int]]) -> None:
        self._answers = {tuple(prompt): answer for prompt, answer in zip(PROMPTS, answers, strict=True)}
        self._rows: list[list[int]] = []
        self._step = 0

    def see(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if ids.shape[1] > 1:
            rows = [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]
            self._rows, self._step = [self._answers.get(row, []) for row in rows], 0

    def draw(self, probabilities: Tensor, num_samples: int) -> Tensor:
        if len(probabilities) != len(self._rows) or num_samples != 1:
            raise RuntimeError("TRL samples in a way that this script does not know")
        column = [[row[self._step] if self._step < len(row) else EOS] for row in self._rows]
        self._step += 1
        return torch.tensor(column)


class _Capture:
    """Reads TRL's local variables, and exchanges the weights in between."""

    _AT_WHITENING = (
        *("responses", "scores", "logprobs", "ref_logprobs", "kl", "values", "rewards", "advantages", "returns"),
        *("padding_mask", "padding_mask_p1"),
    )
    _AT_BACKWARD = ("new_logprobs", "vpred", "pg_loss", "vf_loss")

    def __init__(self, trainer: trl_ppo.PPOTrainer, models: dict[str, nn.Module]) -> None:
        self.found: dict[str, Tensor] = {}
        self._trainer = trainer
        self._models = models
        self._whiten = trl_ppo.masked_whiten
        self._backward = trainer.accelerator.backward

    def whiten(self, values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        names = sys._getframe(1).f_locals
        self._keep({name: names[name] for name in self._AT_WHITENING} | {"input_ids": names["query_responses"]})
        whitened = self._whiten(values, mask, shift_mean)
        self._keep({"whitened": torch.masked_fill(whitened, names["padding_mask"], 0.0)})
        self._trainer.model.policy.load_state_dict(self._models["new_policy"].state_dict())
        self._trainer.model.value_model.load_state_dict(self._models["new_value"].state_dict())
        return whitened

    def backward(self, loss: Tensor) -> None:
        names = sys._getframe(1).f_locals
        order = torch.from_numpy(names["micro_batch_inds"]).argsort()
        rows = {name: names[name][order] if names[name].dim() else names[name] for name in self._AT_BACKWARD}
        self._keep(rows)
        self._backward(loss)
        for side, model in (("policy", self._trainer.model.policy), ("value", self._trainer.model.value_model)):
            self._keep({f"gradient/{side}/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None})

    def _keep(self, tensors: dict[str, Tensor]) -> None:
        self.found |= {name: each.detach().clone().contiguous() for name, each in tensors.items()}


def run_case(case: Case) -> tuple[dict[str, Tensor], list[list[int]]]:
    """One update by TRL; what was captured, and the prompts in the order of its rows."""
    models = _models()
    for name in ("policy", "reference"):
        models[name].register_forward_hook(_forbid_pad)
    answers = _FixedAnswers(case.answers)
    models["policy"].register_forward_pre_hook(answers.see, with_kwargs=True)
    with tempfile.TemporaryDirectory() as output:
        arguments = trl_ppo.PPOConfig(
            output_dir=output,
            per_device_train_batch_size=len(PROMPTS),
            gradient_accumulation_steps=1,
            num_ppo_epochs=1,
            total_episodes=len(PROMPTS),
            num_sample_generations=0,
            response_length=max(map(len, case.answers)),
            stop_token="eos",
            temperature=case.temperature,
            kl_coef=case.kl_coef,
            cliprange=case.clip_ratio,
            cliprange_value=case.value_clip,
            vf_coef=1.0,
            gamma=case.gamma,
            lam=case.lam,
            missing_eos_penalty=case.missing_eos_penalty,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = trl_ppo.PPOTrainer(
            args=arguments,
            processing_class=_tokenizer(),
            model=models["policy"],
            ref_model=models["reference"],
            reward_model=models["reward"],
            value_model=models["value"],
            train_dataset=Dataset.from_dict({"input_ids": PROMPTS}),
        )
        capture = _Capture(trainer, models)
        originals = trl_ppo.masked_whiten, torch.multinomial
        trl_ppo.masked_whiten, torch.multinomial = capture.whiten, answers.draw
        trainer.accelerator.backward = capture.backward
        try:
            trainer.train()
        finally:
            trl_ppo.masked_whiten, torch.multinomial = originals
    width = capture.found["input_ids"].shape[1] - capture.found["responses"].shape[1]
    prompts = [[token for token in row if token != PAD] for row in capture.found["input_ids"][:, :width].tolist()]
    return capture.found, prompts


def main() -> None:
    """Writes the fixture into the folder given."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    tensors = {
        f"weights/{name}/{key}": each for name, model in _models().items() for key, each in model.state_dict().items()
    }
    cases: dict[str, Any] = {}
    for name, case in CASES.items():
        found, prompts = run_case(case)
        tensors |= {f"{name}/{key}": each for key, each in found.items()}
        known = dict(zip(map(tuple, PROMPTS), case.answers, strict=True))
        settings = {key: each for key, each in vars(case).items() if key != "answers"}
        cases[name] = settings | {"prompts": prompts, "answers": [known[tuple(prompt)] for prompt in prompts]}
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "trl_ppo.safetensors")
    versions = {"trl": trl.__version__, "torch": torch.__version__}
    content = {"versions": versions, "config": CONFIG, "cases": cases}
    (folder / "trl_ppo.safetensors").chmod(0o644)
    (folder / "trl_ppo.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
