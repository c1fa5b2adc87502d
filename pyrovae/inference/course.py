r"""Stochastic variational inference: gradient steps on mini-batches, and where a fit stands.

The bound is maximised by stochastic gradients, with Pyro's traces and estimators (Black Box
Variational Inference, Ranganath, Gerrish & Blei, 2014, https://arxiv.org/abs/1401.0118). The
estimator sums over the rows of a batch; the step is taken on the loss per row, so that a learning
rate does not depend on the batch size.

A `Course` is a fit on its way. What its next step depends on is its `State`: weights, the running
means of the optimiser, torch's random numbers, the epoch, the number that the order of its rows
comes from, how many of its batches are done, and the bounds so far, by which schedules judge. A
course that is given the state of another one goes on to the same weights, to the bit.

The encoder can take steps of its own between those of all parameters. Early on it lags behind the
decoder, which then learns to do without z; more steps of q(z | x) alone keep it close to the
posterior (Lagging Inference Networks and Posterior Collapse in Variational Autoencoders, He et
al., 2019, https://arxiv.org/abs/1901.05534).
"""

import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, Rows
from pyrovae.compile import Parameters, Recorded, backward
from pyrovae.errors import Error
from pyrovae.inference.epoch import Epoch, new_order, ordered, unheard, weights
from pyrovae.inference.failures import culprit, finite
from pyrovae.models import Model
from pyrovae.optim import Optim
from pyrovae.place import RandomState, flushed, in_mode, unchecked
from pyrovae.ranks import ALONE, World
from pyrovae.schedules import Dials, Now


class SVI(pyro.infer.SVI):
    """Pyro's SVI with a loss per row, a tensor that nothing waits for, and ordered parameters.

    Args:
        model: a Pyro program of one batch.
        guide: likewise.
        optim: steps all parameters.
        loss: the estimator.
        parts: a batch is gone through in so many parts, whose gradients are added up: it need not
            fit into memory as a whole.
        world: of the processes that each have a part of a batch, and take its step together.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Optim,
        loss: pyro.infer.ELBO,
        parts: int = 1,
        world: World = ALONE,
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self.elbo, self.parts, self.world = loss, parts, world
        self.backward = loss.backward if isinstance(loss, Recorded) else partial(backward, loss)

    def step(
        self, batch: Batch, only: Collection[Tensor] | None = None, rows: int | None = None
    ) -> Tensor:
        """Take one gradient step; returns the loss per row, detached.

        Args:
            batch: rows.
            only: the parameters that take part, all unless given.
            rows: how many there are in the batches of all processes.
        """
        loss, parameters = self._backward(batch)
        if self.world.size > 1:
            parameters = dict(self.optim.names())
            self.world.combine(parameters, len(batch), rows or len(batch))
        params = list(dict.fromkeys(parameters.values()))
        if only is not None:
            for parameter in params:
                parameter.grad = parameter.grad if parameter in only else None
        self.optim(params)
        for parameter in params:
            parameter.grad = None
        return loss

    def _backward(self, batch: Batch) -> tuple[Tensor, Parameters]:
        """The loss per row and the parameters, with the gradients of all parts of a batch."""
        rows = len(batch)
        if not rows:
            return torch.zeros(()), {}
        first, *others = batch.split(-(-rows // self.parts)) if self.parts > 1 else (batch,)
        loss, parameters = self.backward(self.model, self.guide, first, rows=rows)
        for part in others:
            held = {p: p.grad.clone() for p in parameters.values() if p.grad is not None}
            for parameter in held:
                parameter.grad = None
            more, found = self.backward(self.model, self.guide, part, rows=rows)
            loss, parameters = loss + more, parameters | found
            for parameter, gradient in held.items():
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss, parameters


@dataclass(frozen=True)
class State:
    """What goes into a checkpoint: tensors by name, and values that JSON holds."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def __or__(self, other: "State") -> "State":
        return State(self.tensors | other.tensors, self.values | other.values)

    def below(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name/`, without that."""
        cut = len(name) + 1
        return {k[cut:]: v for k, v in self.tensors.items() if k.startswith(f"{name}/")}


class Course:
    """A fit by SVI and where it stands.

    Args:
        model: it has seen the data (`model.start`).
        elbo: the estimator that is minimised.
        optim: steps the parameters.
        dials: what is scheduled: turned before every step.
        epochs: passes over the rows.
        batch_size: rows in a mini-batch; the last one of an epoch can be smaller.
        accumulate: in how many parts a batch is gone through.
        encoder_steps: steps of the guide's parameters alone before each step of all, on batches
            of their own; rounded.
        world: of the processes that go this way together.
    """

    def __init__(
        self,
        model: Model,
        elbo: pyro.infer.ELBO,
        optim: Optim,
        dials: Dials,
        *,
        epochs: int,
        batch_size: int,
        accumulate: int = 1,
        encoder_steps: float | Tensor = 0,
        world: World = ALONE,
    ) -> None:
        self.model, self.elbo, self.optim, self.dials = model, elbo, optim, dials
        self.engine = SVI(model.model, model.guide, optim, elbo, accumulate, world)
        self.world = world
        self.epochs, self.batch_size, self.encoder_steps = epochs, batch_size, encoder_steps
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.order: int | None = None
        self.losses: list[Tensor] = []
        self.bounds: list[float] = []
        self.guided: set[Tensor] = set()
        self.after: Callable[[], None] = _nothing

    def run(self, rows: Rows, advance: Callable[[int], None] = unheard) -> Iterator[Epoch]:
        """Go through the epochs that are left.

        Whoever judges an epoch lets the course `hear` of it, for schedules that look at bounds.

        Args:
            rows: on the model's device and in its precision.
            advance: told the number of rows after every step.

        Raises:
            Error: the loss or a parameter became NaN or infinite; the model then has the weights
                from the epoch's start.
        """
        began = time.perf_counter() - self.seconds
        self.model.zero_grad()
        while self.epoch < self.epochs:
            self.order = self.world.shared(new_order() if self.order is None else self.order)
            good = self.state()
            with self.model.scope(), in_mode(self.model, True), _quiet(), flushed():
                try:
                    self._sweep(rows, began, advance)
                    total = self.world.sum(torch.stack(self.losses).double().sum())
                except (RuntimeError, ValueError) as failure:
                    if self.world.size > 1:
                        raise
                    self.load(good)
                    if self.epoch == 0 or isinstance(failure, Error):
                        raise
                    total = torch.tensor(torch.nan)
                if not finite(total, *self.model.parameters()):
                    raise Error(self._failure(good, rows))
                self.world.average(self.model)
            yield Epoch(
                self.epoch,
                total.item() / len(rows),
                seconds=time.perf_counter() - began,
                figures=self.dials.read(),
            )
            self.epoch, self.step, self.order, self.losses = self.epoch + 1, 0, None, []

    def _failure(self, good: State, rows: Rows) -> str:
        """What went wrong since a state, which is gone back to."""
        self.load(good)
        where = "in some step"
        if self.world.size == 1:
            where = culprit(self, rows)
            self.load(good)
        return (
            f"the fit failed in epoch {self.epoch}, {where}; "
            "the weights are those from before the epoch"
        )

    def hear(self, epoch: Epoch) -> None:
        """Know the bound of an epoch on the validation rows."""
        self.bounds.append(epoch.validation)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the running means of its weights; afterwards with its own."""
        own = weights(self.model)
        self.model.load_state_dict(own | self.optim.averages())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _sweep(self, rows: Rows, began: float, advance: Callable[[int], None]) -> None:
        """Take the steps of an epoch that are left."""
        for batch in self.batches(rows):
            self.losses.append(self.take(batch, rows) * len(batch))
            self.seconds = time.perf_counter() - began
            advance(len(batch))
            self.after()

    def batches(self, rows: Rows) -> Iterator[Batch]:
        """The batches of the present epoch that are left."""
        return ordered(rows, self.batch_size, self.order or 0, self.step, self.world)

    def take(self, batch: Batch, rows: Rows) -> Tensor:
        """Take one step, and those of the encoder before it; returns the loss per row."""
        now = Now(self.epoch + self.step / -(-len(rows) // self.batch_size), tuple(self.bounds))
        self.dials.turn(now)
        count = min(self.batch_size, len(rows) - self.step * self.batch_size)
        for _ in range(round(float(self.encoder_steps))):
            self.engine.step(_some(rows, len(batch)), self._guided(rows), count)
        self.step += 1
        return self.engine.step(batch, rows=count)

    def _guided(self, rows: Rows) -> set[Tensor]:
        """The parameters that the guide's draws or their densities depend on."""
        if not self.guided:
            random, model = RandomState(), self.model
            with in_mode(model, False):
                trace = poutine.trace(model.guide).get_trace(rows[:1])
            random.restore()
            sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
            parts = [part for s in sites for part in (s["value"], s["fn"].log_prob(s["value"]))]
            total = sum(part.sum() for part in parts if part.requires_grad)
            if not isinstance(total, Tensor):
                raise Error("the guide has no parameters: leave it out", "encoder_steps")
            parameters = list(model.parameters())
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            self.guided = {p for p, g in zip(parameters, found, strict=True) if g is not None}
        return self.guided

    def state(self) -> State:
        """All that the next step depends on, copied."""
        tensors = {"weights": weights(self.model), "optim": self.optim.state()}
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        own = RandomState().tensors | {"losses": losses}
        for rank, its in enumerate(self.world.gathered(own)):
            tensors[f"rank {rank}"] = its
        recorded = self.elbo.state() if isinstance(self.elbo, Recorded) else {}
        return State(
            {f"{part}/{name}": t for part, named in tensors.items() for name, t in named.items()},
            {
                "epoch": self.epoch,
                "step": self.step,
                "order": self.order,
                "bounds": list(self.bounds),
                "seconds": self.seconds,
                "recorded": recorded,
            },
        )

    def load(self, state: State) -> None:
        """Go on from a state, of this course or of one with the same settings."""
        values = state.values
        self.model.load_state_dict(state.below("weights"))
        self.optim.load(state.below("optim"))
        own = state.below(f"rank {self.world.rank}")
        self.losses = list(own.pop("losses").to(next(self.model.parameters()).device))
        self.epoch, self.step, self.order = values["epoch"], values["step"], values["order"]
        self.bounds, self.seconds = list(values["bounds"]), values["seconds"]
        if isinstance(self.elbo, Recorded):
            self.elbo.load(values["recorded"])
        RandomState(own).restore()


def _nothing() -> None:
    """Nobody wants to do anything after a step."""


def _some(rows: Rows, count: int) -> Batch:
    """Rows drawn with replacement."""
    index = torch.randint(len(rows), (count,))
    return rows[index].replace(index=index)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pyro's checks and its warnings of NaN: a failed epoch is examined as a whole."""
    with unchecked(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")
        yield
