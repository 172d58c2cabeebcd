"""Weights divided among processes, for models that do not fit on one GPU (ZeRO, by torch's FSDP2).

Every decoder layer is cut along its weights' first dimension, a shard to each process; so are the gradients and Adam's
moments of what is trained. A layer's weights are gathered when the layer runs, so all processes run the same layers in
the same order: see `World.turns`. Embeddings, final norm and heads stay whole in every process.

The rest of the stage meets a shard in few places, and for each there is a function here; a tensor that is not
sharded passes through all of them as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from components.shared.errors import InputError
from components.shared.world import World

__all__ = [
    "Sharding",
    "all_finite",
    "clip_gradients",
    "fill",
    "gather",
    "gather_optimizer",
    "is_sharded",
    "load_optimizer",
    "load_parts",
    "part",
    "parts",
    "parts_of",
    "same_sharding",
    "skeleton",
]


class Sharding:
    """How weights are divided.

    Attributes:
        device: Where this process computes.
    """

    def __init__(self, mode: str, world: World, device: torch.device) -> None:
        """Takes what every process must agree on.

        Args:
            mode: `zero3` gathers a layer's weights for its forward pass and again for its backward pass; `zero2`
                keeps them in between, and through passes that have no backward pass.
            world: The processes; from now on in lockstep.
            device: Where this one computes.

        Raises:
            InputError: There is only one process.
        """
        if world.size == 1:
            raise InputError(
                f"sharding {mode!r} divides weights among processes, and there is one.",
                where="ppo.sharding",
                hint="Set processes to more than 1, or sharding to none.",
            )
        world.lockstep = True
        self.device = device
        self._mesh = init_device_mesh(device.type, (world.size,))
        self._reshard_after_forward = mode == "zero3"
        self._layers: list[FSDPModule] = []

    def apply(self, model: Any) -> None:
        """Shards the decoder layers of a transformers model; the rest of it goes to the device whole.

        A layer at a time passes through the device: a model that is loaded on the CPU need not fit on it.

        Raises:
            InputError: The model does not say what its layers are.
        """
        trunk = model.base_model
        kinds = set(model._no_split_modules or ())
        layers = [module for module in trunk.modules() if type(module).__name__ in kinds]
        if not layers:
            raise InputError(
                f"{type(model).__name__} does not say which of its modules are decoder layers.",
                where="ppo.sharding",
                hint="Set sharding to none.",
            )
        options: Any = {"mesh": self._mesh, "reshard_after_forward": self._reshard_after_forward}
        for layer in layers:
            fully_shard(layer, **options)
        fully_shard(trunk, ignored_params={p for p in trunk.parameters() if not is_sharded(p)}, **options)
        for module in trunk.modules():
            if isinstance(module, FSDPModule):
                # The losses are divided by the tokens of the whole batch: gradients are added up, not averaged.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                self._layers.append(module)
        model.to(self.device)

    def reshard(self) -> None:
        """Lets go of gathered weights, so that the models' parameters are the shards."""
        for layer in self._layers:
            layer.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return isinstance(tensor, DTensor)


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; it shares its memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def same_sharding(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, the same in every process, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy, on the CPU, of what this process holds of each."""
    return {name: part(tensor).cpu().clone() for name, tensor in tensors.items()}


def parts_of(whole: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of whole tensors, on the CPU, what this process would hold if they were sharded as those in `like` are."""
    return {name: part(same_sharding(whole[name], tensor)).cpu() for name, tensor in like.items()}


@torch.no_grad()
def load_parts(parameters: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Goes back to where `parts` was taken."""
    for name, parameter in parameters.items():
        part(parameter).copy_(found[name])


def gather(
    tensors: Mapping[str, Tensor], *, keep: bool = True, held: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Whole copies on the CPU; all processes take part, one tensor after the other.

    Args:
        tensors: By name.
        keep: False gives nothing: for the processes that only take part.
        held: `parts` to take instead of what `tensors` hold now.
    """
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        source = tensor if held is None else _of_part(held[name], tensor)
        full = source.full_tensor() if isinstance(source, DTensor) else source
        if keep:
            whole[name] = full.detach().cpu().clone()
    return whole


def gather_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """The optimizer's state, whole; all processes take part, and those that do not `keep` it get no moments."""
    state = optimizer.state_dict()
    whole: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        moments = gather({name: value for name, value in values.items() if is_sharded(value)}, keep=keep)
        whole[index] = {**{name: value for name, value in values.items() if not is_sharded(value)}, **moments}
    return {**state, "state": whole}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Goes back to where `gather_optimizer` was taken; each process keeps its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: same_sharding(value, parameter) if _is_moment(value, parameter) else value
            for name, value in state["state"][index].items()
        }
        for index, parameter in enumerate(parameters)
        if index in state["state"]
    }
    optimizer.load_state_dict({**state, "state": moments})


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scales gradients so that their norm over all parameters, whole, is at most `limit`.

    Returns:
        The norm before; the same number in every process.
    """
    mesh = next((parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)), None)
    if mesh is None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    sharded = [part(p.grad) for p in parameters if p.grad is not None and is_sharded(p)]
    replicated = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    squares = _squares(sharded, mesh)
    dist.all_reduce(squares, group=mesh.get_group())
    norm = (squares + _squares(replicated, mesh)).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*sharded, *replicated):
        gradient.mul_(factor)
    return norm


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite, in this process and, of sharded tensors, in all."""
    tensors = list(tensors)
    finite = all(bool(torch.isfinite(part(tensor)).all()) for tensor in tensors)
    mesh = next((tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)), None)
    if mesh is None:
        return finite
    processes = torch.tensor(int(finite), device=mesh.device_type)
    dist.all_reduce(processes, group=mesh.get_group())
    return int(processes) == mesh.size()


def skeleton(model: Any) -> Any:
    """A model like `model`, not sharded and without memory: to be filled with whole weights and saved."""
    with torch.device("meta"):
        copy = type(model)(model.config)
    copy.generation_config = model.generation_config
    return copy


def fill(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Gives a `skeleton`, or an adapter over one, its weights."""
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    if absent := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"no weights for {', '.join(absent)}")
    return model


def _of_part(held: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return held
    shape: Any = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(held.to(like.device), like.device_mesh, like.placements, run_check=False, **shape)


def _is_moment(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _squares(gradients: list[Tensor], mesh: DeviceMesh) -> Tensor:
    """Sum of their squares, float32; 0 of none."""
    total = torch.zeros((), device=mesh.device_type)
    return total + sum(gradient.float().square().sum() for gradient in gradients)
