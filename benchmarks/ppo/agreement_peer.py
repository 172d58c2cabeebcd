"""The peer's half of `agreement`: scores our answers with TRL's functions, or trains on the given answers.

TRL leaves the pad token in the distribution, our engine does not: the models here have a pad logit of -1e9.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as trl_ppo
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.ppo import peer
from benchmarks.ppo.workload import EQUAL_TRAINING, WORKLOAD_FILE, ForcedLengths, Workload, draw_answers, read_json

PAD = 0


def forbid_pad(_: nn.Module, __: Any, output: Any) -> Any:
    """A forward hook: no pad token is ever sampled."""
    output.logits[..., PAD] = -1e9
    return output


@torch.no_grad()
def score(world: Path) -> dict[str, float]:
    """Largest differences between our numbers and those of TRL's functions on the same weights."""
    ours = read_json(world / "scored.json")
    base = AutoModelForCausalLM.from_pretrained(world / "policy", dtype=torch.float32)
    base.register_forward_hook(forbid_pad)
    policy = PeftModel.from_pretrained(base, str(world / "adapter")).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(world / "reward", dtype=torch.float32).eval()
    context = max(map(len, ours["prompts"]))
    width = max(map(len, ours["answers"]))
    ids = torch.tensor(
        [
            [PAD] * (context - len(prompt)) + prompt + answer + [PAD] * (width - len(answer))
            for prompt, answer in zip(ours["prompts"], ours["answers"], strict=True)
        ]
    )
    answers = ids[:, context:]

    def logprobs() -> list[Tensor]:
        logits = trl_ppo.forward(policy, ids, PAD).logits[:, context - 1 : -1]
        found = trl_ppo.selective_log_softmax(logits, answers)
        return [row[: len(answer)] for row, answer in zip(found, ours["answers"], strict=True)]

    theirs = logprobs()
    with policy.disable_adapter():
        reference = logprobs()
    _, rewards, _ = trl_ppo.get_reward(reward, ids, PAD, context)
    kl = float(torch.stack([(a - b).sum() for a, b in zip(theirs, reference, strict=True)]).mean())
    return {
        "logprob": _largest(theirs, ours["logprobs"]),
        "reference_logprob": _largest(reference, ours["reference"]),
        "reward": float((rewards - torch.tensor(ours["rewards"])).abs().max()),
        "kl": abs(kl - ours["kl"]),
        "kl_peer": kl,
    }


def train(world: Path) -> dict[str, list[float]]:
    """TRL's `train()` on the given answers, all weights, the optimizer set as ours is."""
    content = read_json(world / WORKLOAD_FILE)
    workload = Workload.from_json(content["workload"])
    models = peer.load(world, EQUAL_TRAINING, value="full")
    models["model"].register_forward_hook(forbid_pad)
    forcer = ForcedLengths(models["model"], content["prompts"], content["lengths"], answers=draw_answers(workload))
    logged: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as output:
        trainer = peer.build(
            models,
            world,
            workload,
            EQUAL_TRAINING,
            prompts=content["prompts"],
            updates=workload.updates,
            output=output,
            adapter=False,
            options={"adam_beta2": 0.95, "adam_epsilon": 1e-5, "vf_coef": 1.0},
        )
        trainer.log = lambda logs, *_: logged.append(logs)
        with forcer.attached():
            trainer.train()
    names = {
        "kl": "objective/kl",
        "policy_loss": "loss/policy_avg",
        "value_loss": "loss/value_avg",
        "reward": "objective/scores",
    }
    return {name: [row[theirs] for row in logged] for name, theirs in names.items()}


def _largest(theirs: list[Tensor], ours: list[list[float]]) -> float:
    return max(float((row - torch.tensor(known)).abs().max()) for row, known in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps({"score": score, "train": train}[sys.argv[1]](Path(sys.argv[2]))) + "\n")
