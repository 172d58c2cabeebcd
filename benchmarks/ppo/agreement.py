"""Do both sides compute and learn the same? Two comparisons, in numbers.

Same weights: our engine learns two updates at the headline shape; TRL's functions then score the same answers under the
same adapter. Log-probabilities, KL and rewards should differ by rounding only.

Same training: both sides' whole training loops, from the same weights, over the same given answers, for some updates,
with the optimizer's settings made equal. Their policies should end up at the same KL from the reference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.ppo.ours import build, settings_of
from benchmarks.ppo.workload import (
    EQUAL_SHAPE,
    EQUAL_TRAINING,
    SHAPES,
    WORKLOAD_FILE,
    ForcedLengths,
    Training,
    Workload,
    draw_answers,
    read_json,
)
from benchmarks.ppo.world import write_world

__all__ = ["compare"]

_SCORED_UPDATES = 2


def compare(peer: Path) -> dict[str, Any]:
    """Runs both comparisons.

    Args:
        peer: Python of the peer's environment.

    Returns:
        `logprob` (nats, largest difference of a token), `kl` (nats a sequence, difference of the mean after the last
        update of the second comparison), and what they come from.
    """
    with tempfile.TemporaryDirectory() as folder:
        scored = _same_weights(Path(folder) / "scored", peer)
        trained = _same_training(Path(folder) / "trained", peer)
    return {
        "logprob": scored["logprob"],
        "kl": abs(trained["kl"]["ours"][-1] - trained["kl"]["peer"][-1]),
        "same_weights": scored,
        "same_training": trained,
    }


def _same_weights(world: Path, peer: Path) -> dict[str, Any]:
    write_world(world, next(iter(SHAPES.values())))
    content = read_json(world / WORKLOAD_FILE)
    workload = Workload.from_json(content["workload"])
    overrides = {"policy_learning_rate": 1e-3, "decode_tolerance_nats": 1e-9}
    trainer = build(world, settings_of(workload, Training(), steps=9, overrides=overrides), seed=0)
    with ForcedLengths(trainer.models.sampling_policy(), content["prompts"], content["lengths"]).attached():
        for _ in range(_SCORED_UPDATES):
            trainer.step()
        rollout = trainer.rollout()
    scores = trainer.score(rollout)
    origin = {"base_model": "random", "base_digest": "0" * 64}
    trainer.models.save_checkpoint(trainer._tokenizer, world / "adapter", origin=origin, step=_SCORED_UPDATES)
    ours = {
        "prompts": rollout.prompts_ids,
        "answers": rollout.responses_ids,
        "logprobs": [row[keep].tolist() for row, keep in zip(scores.logprobs, scores.mask, strict=True)],
        "reference": [row[keep].tolist() for row, keep in zip(scores.reference_logprobs, scores.mask, strict=True)],
        "rewards": scores.rewards.tolist(),
        "kl": float(scores.kl.mean()),
    }
    (world / "scored.json").write_text(json.dumps(ours), encoding="utf-8")
    found = _run_peer(peer, "score", world)
    return {**found, "kl_ours": ours["kl"], "decode_gap": scores.decode_gap}


def _same_training(world: Path, peer: Path) -> dict[str, Any]:
    write_world(world, EQUAL_SHAPE)
    content = read_json(world / WORKLOAD_FILE)
    overrides = {"parameterisation": "full", "max_grad_norm": 1e9}
    settings = settings_of(EQUAL_SHAPE, EQUAL_TRAINING, steps=EQUAL_SHAPE.updates, overrides=overrides)
    trainer = build(world, settings, seed=0)
    forcer = ForcedLengths(
        trainer.models.sampling_policy(), content["prompts"], content["lengths"], answers=draw_answers(EQUAL_SHAPE)
    )
    with forcer.attached():
        trainer.train()
    found = _run_peer(peer, "train", world)
    ours = {
        "kl": [row["kl"] for row in trainer.history],
        "policy_loss": [row["policy_loss"] for row in trainer.history],
        "value_loss": [row["value_loss"] for row in trainer.history],
        "reward": [row["reward_mean"] for row in trainer.history],
    }
    return {name: {"ours": ours[name], "peer": found[name]} for name in ours}


def _run_peer(peer: Path, what: str, world: Path) -> dict[str, Any]:
    from benchmarks.ppo.compare import run_side

    return run_side(peer, "benchmarks.ppo.agreement_peer", what, str(world))


if __name__ == "__main__":
    from benchmarks.ppo.peer_environment import ensure

    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(compare(ensure()), indent=1) + "\n")
