"""What `test_ppo_sharding` runs in two processes: `python -m torch.distributed.run ... sharded_cases.py FOLDER`.

Every case builds trainers in both processes, some of them sharded, and asserts. Case by case the first process notes in
`FOLDER/passed.json` which ones it came through.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ppo import (
    load_latest,
    make_gpt2_policy,
    make_models,
    make_policy,
    make_prompts,
    make_reward_model,
    make_settings,
    save_reward_adapter,
)
from tiny_ppo import make_tokenizer as tokenizer
from torch.distributed.fsdp import FSDPModule

from components.ppo.checkpoint import CheckpointStore
from components.ppo.errors import NotFiniteError
from components.ppo.models import SharedBackbone
from components.ppo.sharding import Sharding, gather, is_sharded, part
from components.ppo.stage import _resume
from components.ppo.trainer import PPOTrainer
from components.shared.errors import InputError
from components.shared.files import write_json
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.world import World

_CPU = torch.device("cpu")
_UNEVEN = {"hidden_size": 18, "intermediate_size": 33, "num_attention_heads": 3, "num_key_value_heads": 1}
_SHAPE = {"num_hidden_layers": 3, "tie_word_embeddings": True, **_UNEVEN}


def _make_trainer(
    world: World, sharding: str | None, *, policy: Any = None, adapter: Path | None = None, **overrides: Any
) -> PPOTrainer:
    """Alone where `sharding` is None, else with the other process."""
    settings = make_settings(**overrides)
    torch.manual_seed(2)
    models = make_models(settings, policy=policy or make_policy(**_SHAPE))
    together = World(rank=world.rank, size=world.size) if sharding else World()
    reward_model: Any = make_reward_model(num_hidden_layers=2)
    if adapter is not None and isinstance(models, SharedBackbone):
        reward_model = models.attach_reward_adapter(adapter)
    if sharding:
        divided = Sharding(sharding, together, _CPU)
        models.shard(divided)
        if adapter is None:
            divided.apply(reward_model)
    return PPOTrainer(models, reward_model, tokenizer(), make_prompts(), settings=settings, seed=0, world=together)


def _require_same(alone: PPOTrainer, together: PPOTrainer) -> None:
    assert len(together.history) == len(alone.history)
    for one, other in zip(alone.history, together.history, strict=True):
        for column in ("reward_mean", "kl", "policy_loss", "value_loss", "grad_norm", "value_grad_norm"):
            if one[column] is not None:
                assert math.isclose(one[column], other[column], rel_tol=1e-3, abs_tol=1e-4), (one["step"], column)
    for of in ("policy_parameters", "value_parameters"):
        expected, found = getattr(alone.models, of)(), gather(getattr(together.models, of)())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, atol=1e-3), name


def each_process_holds_half(world: World, folder: Path) -> None:
    """Of every layer's weights, gradients and moments, before and after a step; odd sizes are no exception."""
    for sharding in ("zero2", "zero3"):
        for parameterisation in ("lora", "full"):
            trainer = _make_trainer(world, sharding, parameterisation=parameterisation)
            trainer.step()
            trainer.models.policy_parameters()  # lets go of what zero2 keeps gathered
            parameters = dict(trainer.models.sampling_policy().named_parameters())
            layered = {name: p for name, p in parameters.items() if ".layers." in name}
            assert layered
            assert all(is_sharded(p) for p in layered.values())
            assert not any(is_sharded(p) for name, p in parameters.items() if name not in layered)
            for parameter in layered.values():
                rows = parameter.shape[0]
                expected = -(-rows // 2) if world.rank == 0 else rows // 2
                assert part(parameter).shape == (expected, *parameter.shape[1:])
                assert part(parameter).untyped_storage().nbytes() <= -(-rows // 2) * parameter[0].numel() * 4
            for optimizer in (trainer._updater._policy_optimizer, trainer._updater._value_optimizer):
                for parameter, state in optimizer.state.items():
                    assert part(state["exp_avg"]).shape == part(parameter).shape


def uneven_layers_learn_as_one_process_does(world: World, folder: Path) -> None:
    """Three layers, sizes that do not halve, tied embeddings; five prompts for two processes."""
    for sharding in ("zero2", "zero3"):
        choices: list[dict[str, Any]] = [
            {"parameterisation": "lora"},
            {"parameterisation": "full", "episodes_per_step": 5, "microbatch": 2},
            {"parameterisation": "lora", "value_model": "shared_trunk", "critic_warmup_steps": 1},
            {"parameterisation": "full", "value_model": "shared_trunk", "decode_tolerance_nats": 0},
        ]
        for options in choices:
            trainers = [_make_trainer(world, kind, **options) for kind in (None, sharding)]
            for trainer in trainers:
                trainer.train()
            _require_same(*trainers)


def other_architectures_are_sharded_too(world: World, folder: Path) -> None:
    """GPT-2: other layer names, transposed weights, learned positions."""
    trainers = [
        _make_trainer(world, kind, policy=make_gpt2_policy(), parameterisation="lora") for kind in (None, "zero3")
    ]
    for trainer in trainers:
        trainer.train()
    _require_same(*trainers)


def a_reward_adapter_is_divided_with_its_backbone(world: World, folder: Path) -> None:
    if world.is_main:
        save_reward_adapter(make_policy(**_SHAPE), folder, base_digest="0" * 64)
    world.wait()
    for sharding in ("zero2", "zero3"):
        options: Any = {"parameterisation": "lora", "adapter": folder / "reward/adapter"}
        trainers = [_make_trainer(world, kind, **options) for kind in (None, sharding)]
        for trainer in trainers:
            trainer.train()
        _require_same(*trainers)


def a_checkpoint_brings_back_shards_and_moments(world: World, folder: Path) -> None:
    """Four steps are two steps, a checkpoint, a new trainer and two more; to the last bit."""
    for sharding, options in (
        ("zero2", {"parameterisation": "lora", "kl": {"ceiling_nats": 1e3}}),
        ("zero3", {"parameterisation": "full", "kl": {"ceiling_nats": 1e3}}),
    ):
        whole = _make_trainer(world, sharding, **options)
        whole.train()
        store = CheckpointStore(folder / sharding, {"run": sharding})
        first = _make_trainer(world, sharding, **options)
        for _ in range(2):
            first.step()
        state = first.state()
        if world.is_main:
            store.save(state)
        world.wait()
        found = load_latest(store)
        assert found is not None
        assert found.step == 2
        second = _make_trainer(world, sharding, **options)
        second.rollout()  # whatever it gathered must not outlive the load
        second.load_state(found)
        second.train()
        _require_equal(whole, second)


def _require_equal(one: PPOTrainer, other: PPOTrainer) -> None:
    assert [row["grad_norm"] for row in one.history] == [row["grad_norm"] for row in other.history]
    for of in ("policy_parameters", "value_parameters"):
        expected, found = (gather(getattr(trainer.models, of)()) for trainer in (one, other))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert one._last_good is not None
    assert other._last_good is not None
    assert all(torch.equal(other._last_good[name], tensor) for name, tensor in one._last_good.items())


def the_ceiling_brings_back_the_last_good_policy(world: World, folder: Path) -> None:
    options: Any = {"kl": {"control": "off", "ceiling_nats": 0.05}, "policy_learning_rate": 0.1, "steps": 8}
    for sharding, parameterisation in (("zero2", "full"), ("zero3", "lora"), ("zero2", "lora")):
        trainers = [
            _make_trainer(world, kind, parameterisation=parameterisation, **options) for kind in (None, sharding)
        ]
        for trainer in trainers:
            trainer.train()
            assert trainer.stop_reason is not None
            assert "ceiling" in trainer.stop_reason
        _require_same(*trainers)
        kl = [float(trainer.score(trainer.rollout()).kl.mean()) for trainer in trainers]
        assert math.isclose(*kl, abs_tol=1e-4)


def a_weight_that_is_not_finite_stops_all_processes(world: World, folder: Path) -> None:
    trainer = _make_trainer(world, "zero3", parameterisation="full")
    parameter = next(p for p in trainer.models.policy_parameters().values() if is_sharded(p))
    rollout = trainer.rollout()
    scores = trainer.score(rollout)
    if world.rank == 1:
        part(parameter).view(-1)[0] = math.nan
    with pytest.raises(NotFiniteError):
        trainer.update(rollout, scores, trainer.advantages(scores))


def a_half_precision_backbone_takes_float32_adapters(world: World, folder: Path) -> None:
    """What a GPU does: the frozen backbone in bfloat16 in one gather with adapters in float32."""
    trainers = [
        _make_trainer(world, kind, policy=_half_precision(make_policy()), parameterisation="lora", steps=1)
        for kind in (None, "zero3")
    ]
    for trainer in trainers:
        trainer.step()
    parameters = trainers[1].models.policy_parameters().values()
    assert all(p.dtype == torch.float32 and is_sharded(p) for p in parameters)
    assert math.isclose(*(trainer.history[0]["kl"] for trainer in trainers), abs_tol=0.05)


def _half_precision(model: Any) -> Any:
    return model.to(torch.bfloat16)


def zero3_lets_go_after_each_layer_and_zero2_keeps(world: World, folder: Path) -> None:
    for sharding, kept in (("zero2", True), ("zero3", False)):
        trainer = _make_trainer(world, sharding, parameterisation="lora")
        trainer.rollout()
        trunk: Any = trainer.models.sampling_policy().base_model
        layers: list[Any] = [layer for layer in trunk.layers if isinstance(layer, FSDPModule)]
        assert len(layers) == 3
        assert all(any(is_sharded(p) for p in layer.parameters()) is not kept for layer in layers)


def processes_that_see_different_checkpoints_stop(world: World, folder: Path) -> None:
    """As on two machines that do not share the folder."""
    trainer = _make_trainer(world, "zero3", parameterisation="lora")
    trainer.step()
    state = trainer.state()
    machine = TrainingFolder(folder / f"machine-{world.rank}", durable=True)
    store = CheckpointStore(machine.path / "resume", {})
    if world.is_main:
        store.save(state)
    with pytest.raises(InputError, match="same checkpoints"):
        _resume(trainer, store, machine)


CASES: list[Callable[[World, Path], None]] = [
    each_process_holds_half,
    zero3_lets_go_after_each_layer_and_zero2_keeps,
    uneven_layers_learn_as_one_process_does,
    other_architectures_are_sharded_too,
    a_reward_adapter_is_divided_with_its_backbone,
    a_checkpoint_brings_back_shards_and_moments,
    the_ceiling_brings_back_the_last_good_policy,
    a_half_precision_backbone_takes_float32_adapters,
    a_weight_that_is_not_finite_stops_all_processes,
    processes_that_see_different_checkpoints_stop,
]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = World.join()
    passed: list[str] = []
    for case in CASES:
        case(world, folder)
        world.wait()
        passed.append(case.__name__)
        if world.is_main:
            write_json(folder / "passed.json", passed)
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
