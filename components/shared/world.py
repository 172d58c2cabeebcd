"""The processes that train together.

What is divided among them is the work of a step, and what each found is added up over all of them. Every mean is taken
over the whole batch (never a mean of the processes' means), so that how many processes there are changes a result by
rounding only. In PPO every process holds the whole of a step: the same rollout, scores and advantages, number for
number.

Where weights are sharded (PPO's `sharding`), a process cannot run a layer unless all others run it too: the world moves
in lockstep, and who has less work than another fills up with work that does not count.

What only one process does, such as writing, it does inside `together`, so that no other waits for one that has failed.
Such a wait may take hours, and has a group of its own (gloo) for it; an exchange in a training step does not, and one
that hangs, for a node that is gone or a cable that is loose, ends the training after the ordinary time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from components.shared.errors import InputError, PlumblineError, error_like
from components.shared.full_disk import full_disk

__all__ = ["World"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PATIENCE = timedelta(hours=3)
"""How long processes wait for one of them: the first alone writes a checkpoint, fetches or publishes it, evaluates."""
_TIMEOUT_VARIABLE = "PLUMBLINE_COLLECTIVE_TIMEOUT_SECONDS"
_TIMEOUT_SECONDS = 1800
"""How long an exchange in a training step may take; torch's own for gloo. It covers the slowest process's lag."""


class World:
    """This process's place among those that train together.

    Attributes:
        rank: From 0; the process with rank 0 writes what is written.
        size: Number of processes.
        local_rank: From 0 on each node.
        local_size: Processes on this node.
        lockstep: Whether all must make the same passes through the models; sharding sets it.
    """

    def __init__(
        self, *, rank: int = 0, size: int = 1, local_rank: int | None = None, local_size: int | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = rank if local_rank is None else local_rank
        self.local_size = size if local_size is None else local_size
        self.lockstep = False
        self._patient: Any = None  # torch types a group as one or a number

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[World]:
        """Joins for the length of the block."""
        world = cls.join()
        try:
            yield world
        finally:
            world.leave()

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
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_timeout())
        local = {"local_rank": os.environ.get("LOCAL_RANK"), "local_size": os.environ.get("LOCAL_WORLD_SIZE")}
        known = {name: int(value) for name, value in local.items() if value is not None}
        world = cls(rank=dist.get_rank(), size=dist.get_world_size(), **known)
        world._patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return world

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written."""
        return self.rank == 0

    @property
    def is_with_main(self) -> bool:
        """Whether this process is on the node of the one that writes; launchers number nodes' processes in blocks."""
        return self.rank == self.local_rank

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

    def together(self, work: Callable[[], _Result]) -> _Result:
        """Does `work` in every process; an error in one is raised in all, so that none waits for one that has ended.

        Raises:
            Exception: This process's own error.
            PlumblineError: Another's.
        """
        if self.size == 1:
            return work()
        failed: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (raised below, once the others know)
            failed = error
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, failed and _described(failed, self.rank), group=self._patient)
        if failed is not None:
            raise failed
        for one in told:
            if one is not None:
                raise error_like(*one)
        return result

    def from_main(self, value: _Item) -> _Item:
        """The first process's `value`, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._patient)
        return values[0]

    def gathered(self, value: _Item) -> list[_Item]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._patient)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier(group=self._patient)

    def leave(self) -> None:
        """Ends the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _timeout() -> timedelta:
    """Of an exchange in a training step.

    Raises:
        InputError: The environment names no number of seconds.
    """
    given = os.environ.get(_TIMEOUT_VARIABLE) or str(_TIMEOUT_SECONDS)
    if not given.isdecimal() or not int(given):
        raise InputError(f"is {given!r}, not a number of seconds.", where=_TIMEOUT_VARIABLE, hint="Give 1800, say.")
    return timedelta(seconds=int(given))


def _described(error: Exception, rank: int) -> tuple[str, str, str | None, str | None]:
    error = full_disk(error) or error
    if isinstance(error, PlumblineError):
        return type(error).__name__, error.problem, error.where, error.hint
    return "PlumblineError", f"{type(error).__name__}: {error}", f"process {rank}", None
