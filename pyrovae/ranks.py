r"""Several processes that take the steps of one fit together.

Each process, a rank r of N, holds a copy of the model and takes its own part of every batch. The
loss per row of a batch of B rows is the mean over its parts of B_r rows, and so is its gradient,

    grad L = sum_r B_r / B  grad L_r,      L_r = the loss per row of part r,

one sum over the ranks, after which every rank takes the same step: N processes with B / N rows
each do what one does with B, up to the order of a sum. That holds for every loss that is a sum
over rows; what is a function of the whole batch becomes the mean of that function of the parts.

Where the ranks have to be the same they are told so by rank 0: the weights at the start, the order
of the rows. Where they have to differ they are seeded apart: the noise. What one of them finds
out, such as a loss that is not finite, is asked of all before any of them acts on it, because a
rank that leaves the common path makes the others wait; one that fails ends, and they end with it.

A process belongs to a world if the environment says so, as `torchrun` and `launch` set it. The
ranks speak over gloo, and tensors on GPUs over NCCL. A world of one says nothing to anybody.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as group
import torch.distributed.nn  # imported later, its default arguments keep the group: gloo aborts
from torch import Tensor, nn

from pyrovae.errors import Error, brief

LOST = 3
"""The exit code of a process that cannot reach the others any more."""
V = TypeVar("V")
logger = logging.getLogger("pyrovae")


@dataclass(frozen=True)
class World:
    """The processes of a fit, as one of them sees them; every rank calls the same in turn.

    Args:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: it prints and writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The places of this rank's rows among so many: contiguous, the first ranks take more."""
        each, more = divmod(rows, self.size)
        begin = self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))

    def part(self, rows: V) -> V:
        """This rank's rows, of a batch, of a tensor, or of their index."""
        return rows if self.size == 1 else rows[self.share(len(rows))]  # type: ignore

    def seed(self, seed: int) -> int:
        """The seed of this rank's noise: rank 0 keeps the one it is given."""
        if self.first:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0] >> 1)

    @torch.no_grad()
    def combine(self, parameters: Mapping[str, Tensor], rows: int, total: int) -> None:
        """Replace the gradients by the mean over all rows of a batch, in one sum.

        A parameter that no rank has a gradient of is left without one.

        Args:
            parameters: all of the model, by name, whether this rank has a gradient of them or not.
            rows: how many this rank's gradients are the mean over; it may be 0.
            total: how many there are on all ranks.
        """
        if self.size > 1:
            trained = (p for _, p in sorted(parameters.items()) if p.requires_grad)
            for some in _alike(trained):
                self._combine(some, rows / total)

    def _combine(self, parameters: list[Tensor], weight: float) -> None:
        gradients = [p.grad for p in parameters]
        there = torch.tensor([gradient is not None for gradient in gradients])
        known = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(g.flatten() for g in known), there.to(known[0])]).mul_(weight)
        _heard(group.all_reduce, flat)
        *sums, reached = flat.split([*(p.numel() for p in parameters), len(parameters)])
        anywhere = there if there.all() else reached.cpu() > 0
        for p, gradient, some in zip(parameters, sums, anywhere.tolist(), strict=True):
            if some:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.copy_(gradient.view_as(p))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same on all of them; not finite where one is not."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        _heard(group.all_reduce, total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether one of the ranks says so."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def shared(self, value: V) -> V:
        """What rank 0 has, on all ranks: a number, an order of rows, a state on the CPU."""
        if self.size == 1:
            return value
        values = [value if self.first else None]
        _heard(group.broadcast_object_list, values, 0)
        return values[0]  # type: ignore[return-value]

    def gathered(self, value: V) -> list[V]:
        """What each rank has, in their order, on all ranks; tensors on the CPU."""
        values: list[Any] = [value]
        if self.size > 1:
            values *= self.size
            _heard(group.all_gather_object, values, value)
        return values

    @torch.no_grad()
    def spread(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0.

        Raises:
            Error: the ranks do not hold the same model.
        """
        if self.size == 1:
            return
        mine = {name: t.cpu() for name, t in _tensors(module)}
        forms = self.gathered({name: (t.shape, t.dtype) for name, t in mine.items()})
        if any(form != forms[0] for form in forms):
            raise Error("the processes of a fit hold different models: give each the same spec")
        found = self.shared(mine)
        for name, tensor in _tensors(module):
            tensor.copy_(found[name])

    @torch.no_grad()
    def average(self, module: nn.Module) -> None:
        """Give every rank the mean of the floating-point buffers; equal ones stay to the bit."""
        if self.size == 1:
            return
        for some in _alike(b for b in module.buffers() if b.is_floating_point()):
            mine = torch.cat([buffer.flatten() for buffer in some])
            mean = mine.clone()
            _heard(group.broadcast, mean, 0)
            apart = torch.where(mine == mean, 0, mine - mean)
            _heard(group.all_reduce, apart)
            mean += apart / self.size
            for buffer, values in zip(some, mean.split([b.numel() for b in some]), strict=True):
                buffer.copy_(values.view_as(buffer))


ALONE = World()


@contextmanager
def joined(device: str | None = None) -> Iterator[World]:
    """The world that the environment puts this process into; within another `joined`, the same.

    All ranks leave together. A rank that raises leaves at once, and the others, which cannot
    reach it any more, end with the exit code `LOST`.

    Args:
        device: of the fit; for `cuda` each rank gets the GPU of its own number.

    Raises:
        Error: more processes than GPUs, or one GPU for several processes.
    """
    if group.is_available() and group.is_initialized():
        yield World(group.get_rank(), group.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    parallel = device is not None and torch.device(device).type == "cuda"
    if parallel:
        _take_gpu(str(device))
    _heard(group.init_process_group, "cpu:gloo,cuda:nccl" if parallel else "gloo")
    world = World(group.get_rank(), group.get_world_size())
    try:
        yield world
        world.any(False)  # all are here
    except BaseException:
        if not parallel:  # what others will never answer keeps NCCL from ending
            group.destroy_process_group()
        raise
    group.destroy_process_group()


def refuse(size: int, rows: int, batch_size: int) -> None:
    """Refuse a fit in which a process has no rows.

    Raises:
        Error: more processes than rows, or than rows in a batch.
    """
    if size > rows:
        raise Error(
            f"{size} processes are more than the {rows} training rows: lower processes",
            "processes",
        )
    if size > batch_size:
        raise Error(
            f"{size} processes are more than the {batch_size} rows of a batch, of which each "
            "takes its part: lower processes, or raise batch_size",
            "processes",
        )


def _take_gpu(device: str) -> None:
    """Make the GPU of this rank's number on its machine the present one."""
    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if torch.device(device).index is not None:
        raise Error(f"'{device}' is one GPU: several processes take 'cuda', one each", "device")
    if place >= there:
        raise Error(
            f"each process takes a GPU of its own, and this machine has {there}: lower processes",
            "processes",
        )
    torch.cuda.set_device(place)


def _heard(call: Callable[..., Any], *args: Any) -> None:
    """Call; where the others cannot be reached, end this process, without a traceback.

    The failure is let go of before: it holds the group, which has to end before the process does.
    """
    try:
        call(*args)
        return
    except RuntimeError as failure:
        reason = brief(failure)
    logger.error(f"Process {os.environ.get('RANK')} lost the others: {reason}")
    raise SystemExit(LOST)


def _alike(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors that fit into one, in order, for each precision and device."""
    found: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found[tensor.dtype, tensor.device].append(tensor)
    return found.values()


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
