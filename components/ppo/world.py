"""The processes that train together.

Every process holds the whole of a step: the same rollout, scores and advantages, number for number. What is divided
among them is the work: each samples, scores and learns from its share, and what it found is added up over all of them.
So every mean is taken over the whole batch (never a mean of the processes' means), and how many processes there are
changes a result by rounding only.

Where weights are sharded (`sharding`), a process cannot run a layer unless all others run it too: the world moves in
lockstep, and who has less work than another fills up with work that does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["World"]

_Item = TypeVar("_Item")

_PATIENCE = timedelta(hours=3)
"""How long processes wait for one of them: the first alone writes a checkpoint, fetches or publishes it."""


class World:
    """This process's place among those that train together.

    Attributes:
        rank: From 0; the process with rank 0 writes what is written.
        size: Number of processes.
        lockstep: Whether all must make the same passes through the models; sharding sets it.
    """

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.lockstep = False

    @classmethod
    def join(cls) -> World:
        """Joins the process group that the launcher (`accelerate launch`, `torchrun`) describes in the environment.

        A process that was not launched as one of several is alone.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's part of `items`: every `size`-th, so that neighbours of like length are spread evenly."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def turns(self, items: Sequence[_Item]) -> list[tuple[_Item, bool]]:
        """This process's part of `items`, each with True; in lockstep as many in every process.

        What a part is short of is made up with the first of the items and False: passes whose result does not count.
        """
        mine = [(item, True) for item in self.share(items)]
        missing = -(-len(items) // self.size) - len(mine) if self.lockstep else 0
        return mine + [(item, False) for item in items[:1]] * missing

    def sum_(self, *tensors: Tensor) -> None:
        """Adds each tensor up over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds gradients up over all processes; a parameter that this process did not touch counts as zero.

        Those of sharded parameters are left alone: they were added up when they were sharded.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if not trained:
            return
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool, *, device: torch.device) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag), device=device)
        dist.all_reduce(count)
        return bool(count)

    def differs(self, number: int, *, device: torch.device) -> bool:
        """Whether the processes hold different numbers."""
        total = torch.tensor(number, device=device)
        self.sum_(total)
        return self.any(int(total) != number * self.size, device=device)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Ends the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
