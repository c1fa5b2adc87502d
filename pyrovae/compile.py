r"""The recorded bound: Pyro's handlers run once, and from then on what they did.

A gradient step of `pyro.infer.SVI` runs the guide, runs the model against its trace, adds up
log p(x, z) - log q(z | x) and walks back. For given shapes that is always the same list of
operations, see `graphs`. `Recorded` stands around any of Pyro's estimators and keeps one list for
each kind of batch that it meets; the list is replayed, or compiled.

Whether the list is the truth is looked at, not assumed: the step at which it is recorded, and a
step now and then, are taken both ways, from the same random state,

    |f_recorded - f_plain| <= 10^-4 |f_plain|,      f = loss, each gradient, each buffer,

and where they differ, or nothing can be recorded, steps go on as plain Pyro. What can differ is
what the programs read in Python: a number or an attribute is as it was when it was recorded. A
weight that changes from step to step is a tensor, changed in place.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, Literal

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.errors import brief
from pyrovae.graphs import (
    Graph,
    How,
    RecordingError,
    record,
    refuse_hooks,
    taken_apart,
)
from pyrovae.place import RandomState

TOLERANCE, FLOOR = 1e-4, 1e-2
WORTH, LONG = 1000, 9000
"""From how many steps on the time is won back that recording takes, and that Inductor takes."""
MANY, PYTHON = 10**10, 200_000
"""Numbers that compiled steps have to write in all; Python takes the time of so many a step."""
Parameters = dict[str, Tensor]
Backend = Literal["no", "replay", "inductor"]
logger = logging.getLogger("pyrovae")


def backward(
    elbo: pyro.infer.ELBO, model: Any, guide: Any, *args: Any, rows: int = 1
) -> tuple[Tensor, Parameters]:
    """The loss for each of so many rows, and the parameters by name, with its gradients."""
    with poutine.trace(param_only=True) as capture:
        loss = elbo.differentiable_loss(model, guide, *args) / rows
    loss.backward()
    sites = sorted(capture.trace.nodes.items())
    return loss.detach(), {name: site["value"].unconstrained() for name, site in sites}


def recorded(elbo: pyro.infer.ELBO, how: How, steps: int, others: int = 0) -> pyro.infer.ELBO:
    """The estimator, recorded and compiled where that pays.

    By the number of steps, not by the clock: the same seed is to give the same numbers.

    Args:
        elbo: any of Pyro's.
        how: compiled at once, not even recorded, or `auto`, by the number of steps.
        steps: how many are planned.
        others: how many are planned beside them with a smaller batch.
    """
    if how == "auto" and steps >= WORTH:
        return Recorded(elbo, steps, others >= WORTH)
    return Recorded(elbo, math.inf) if how is True else elbo


class Recorded(pyro.infer.ELBO):
    """An estimator whose steps are recorded. `backend` and `reason` say what became of it.

    Models and guides take their rows as a `Batch`, and other arguments that are tensors.

    Args:
        elbo: any of Pyro's.
        steps: how many are planned, infinity to have them compiled at any price. Where that wins
            time the kind of batch that is met first is compiled by Inductor; other kinds, such as
            an epoch's last batch, are replayed.
        others: whether other kinds are recorded at all.
        every: how many steps of a kind lie between two comparisons with plain Pyro.
    """

    def __init__(
        self, elbo: pyro.infer.ELBO, steps: float = 0, others: bool = True, every: int = 500
    ) -> None:
        super().__init__(elbo.num_particles)
        self.elbo, self.steps, self.others, self.every = elbo, steps, others, every
        self.kinds: dict[Any, _Kind] = {}
        self.known: dict[str, tuple[int, Backend]] = {}
        self.modules: dict[Any, list[nn.Module]] = {}
        self.reason = ""

    @property
    def backend(self) -> Backend:
        """What runs the steps: `no` where they are plain Pyro."""
        backends = {kind.backend for kind in self.kinds.values()}
        return max(backends, key=("no", "replay", "inductor").index, default="no")

    def backward(
        self, model: Any, guide: Any, *args: Any, rows: int = 1
    ) -> tuple[Tensor, Parameters]:
        """As the function of this name; the operations of the step are recorded and run again."""
        if (model, guide) not in self.modules:
            self.modules[model, guide] = _modules(model, guide)
        step = _Step(self.elbo, model, guide, args, rows, self.modules[model, guide])
        if (kind := self.kinds.get(key := step.kind)) is None:
            kind = self.kinds[key] = self._kind(step)
        kind.met += 1
        if kind.wanted != "no" and kind.met >= 2:  # at first parameters are new
            kind.record, kind.wanted = self._record(step, kind.wanted), "no"
        elif kind.record and kind.met % self.every == 0:
            kind.record = self._kept(kind.record, step)
        return kind.record(step.tensors) if kind.record else step.plain()

    def _kind(self, step: "_Step") -> "_Kind":
        """What is to become of steps of a kind: what it was where the fit is taken up again."""
        met, backend = self.known.get(name := step.name, (0, "no"))
        if met < 2:
            first = not self.kinds and self.known.keys() <= {name}
            backend = "inductor" if first else "replay" if self.others else "no"
        return _Kind(name, met, backend)

    def state(self) -> dict[str, tuple[int, Backend]]:
        """How many steps of each kind there were, and what runs them, for `load`."""
        return self.known | {kind.name: (kind.met, kind.backend) for kind in self.kinds.values()}

    def load(self, state: Mapping[str, tuple[int, Backend]]) -> None:
        """Go on with a fit: steps of each kind are run by what ran them before."""
        self.known, self.kinds = {name: (met, by) for name, (met, by) in state.items()}, {}

    def _record(self, step: "_Step", wanted: Backend) -> "_Record | None":
        """The step's operations, as the fastest backend runs them that gives the same numbers.

        What is wanted is the fastest that is tried.
        """
        try:
            replay = _replay(step)
        except RecordingError as refused:
            self._say(logging.INFO, f"Steps run as plain Pyro: {refused}.")
            return None
        if wanted == "inductor" and self._pays(replay):
            try:
                compiled = replay.compiled(step).captured(step)
                if not (different := _different(compiled, step)):
                    return compiled
                why = f"compiled, they give another value of {different}"
            except Exception as failure:
                why = brief(failure)
            self._say(logging.INFO, f"Steps are replayed, not compiled: {why}.")
        return self._kept(replay.captured(step), step)

    def _pays(self, record: "_Record") -> bool:
        """Whether compiled steps win back the seconds that Inductor takes, with an empty cache."""
        return self.steps >= LONG and self.steps * (record.graph.written + PYTHON) >= MANY

    def _kept(self, record: "_Record", step: "_Step") -> "_Record | None":
        """The record, if it gives the numbers of plain Pyro."""
        if not (different := _different(record, step)):
            return record
        self._say(
            logging.WARNING,
            f"Steps run as plain Pyro: recorded, they give another value of {different}. The "
            "model or guide reads what is no tensor and changes, such as a number.",
        )
        return None

    def _say(self, level: int, sentence: str) -> None:
        """Say, once, why steps do not run faster."""
        if sentence != self.reason:
            logger.log(level, sentence)
        self.reason = sentence

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """What Pyro's own SVI asks for: the loss, with its gradients on the parameters."""
        if kwargs:
            return self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        loss, parameters = self.backward(model, guide, *args)
        for name in parameters:
            pyro.param(name)
        return loss.item()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The plain estimator's loss."""
        return self.elbo.loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The plain estimator's loss, to be differentiated."""
        return self.elbo.differentiable_loss(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)


@dataclass
class _Kind:
    """What became of steps of one kind: how many there were, and how they are taken."""

    name: str
    met: int
    wanted: Backend
    record: "_Record | None" = None

    @property
    def backend(self) -> Backend:
        """What runs the steps."""
        return self.record.backend if self.record else "no"


@dataclass
class _Step:
    """A gradient step that is to be taken."""

    elbo: pyro.infer.ELBO
    model: Any
    guide: Any
    args: tuple[Any, ...]
    rows: int
    modules: list[nn.Module]

    def plain(self) -> tuple[Tensor, Parameters]:
        return backward(self.elbo, self.model, self.guide, *self.args, rows=self.rows)

    @cached_property
    def parts(self) -> tuple[list[Tensor], Any]:
        return taken_apart(self.args)

    @property
    def tensors(self) -> list[Tensor]:
        return self.parts[0]

    @property
    def kind(self) -> Any:
        """What the list of operations can depend on, the values of tensors aside."""
        modes = tuple([module.training for module in self.modules])
        return self.model, self.guide, self.rows, self.parts[1], modes

    @property
    def name(self) -> str:
        """The kind without model and guide, the same in every process."""
        return sha256(repr(self.kind[2:]).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class _Record:
    """The operations of a kind of step.

    Args:
        graph: of the tensors that are trained and those of the batch.
        parameters: all, by name.
        trained: those that have a gradient.
        buffers: tensors that a step changes in place.
        backend: what runs the graph.
    """

    graph: Graph
    parameters: Parameters
    trained: list[Tensor]
    buffers: list[Tensor]
    backend: Backend = "replay"

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, Parameters]:
        loss, *gradients = self.graph(*self.trained, *tensors)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        return loss, self.parameters

    def compiled(self, step: _Step) -> "_Record":
        """The same operations, compiled by Inductor."""
        graph = self.graph.compiled(*self.trained, *step.tensors)
        return replace(self, graph=graph, backend="inductor")

    def captured(self, step: _Step) -> "_Record":
        """The same operations, on a CUDA device as one launch."""
        if not self.trained[0].is_cuda:
            return self
        moment = _Moment(self.buffers)
        try:
            return replace(self, graph=self.graph.captured(*self.trained, *step.tensors))
        except RuntimeError as failure:
            logger.info(f"Steps are not captured as CUDA graphs: {brief(failure)}.")
            return self
        finally:
            moment.restore()


def _replay(step: _Step) -> _Record:
    """Take the step once for its parameters and buffers and once for its operations; go back."""
    refuse_hooks(step.modules)
    moment = _Moment([b for module in step.modules for b in module.buffers(recurse=False)])
    loss, parameters = step.plain()
    buffers = moment.changed()
    trained = [p for p in dict.fromkeys(parameters.values()) if p.grad is not None]
    for parameter in trained:
        parameter.grad = None
    moment.restore()

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        total = step.elbo.differentiable_loss(step.model, step.guide, *step.args)
        mean = total.to(loss.dtype) / step.rows
        gradients = torch.autograd.grad(mean, trained)
        return mean.detach(), *map(_laid_out_as, gradients, trained)

    try:
        graph = record(function, *trained, *step.tensors)
    finally:
        moment.restore()
    return _Record(graph, parameters, trained, buffers)


def _laid_out_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the parameter's memory layout, which fused optimisers rely on."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _modules(*programs: Any) -> list[nn.Module]:
    """The modules that programs are, or are methods of, and those within."""
    owners = (getattr(program, "__self__", program) for program in programs)
    found = (owner.modules() for owner in owners if isinstance(owner, nn.Module))
    return list(dict.fromkeys(chain.from_iterable(found)))


class _Moment:
    """The random state and some tensors, to go back to."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.random = RandomState()
        self.tensors = [(tensor, tensor.clone()) for tensor in tensors]

    def changed(self) -> list[Tensor]:
        """The tensors that have other values now."""
        return [tensor for tensor, old in self.tensors if not torch.equal(tensor, old)]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back."""
        self.random.restore()
        for tensor, old in self.tensors:
            tensor.copy_(old)


def _different(record: _Record, step: _Step) -> str:
    """The name of what differs between the record and plain Pyro, if anything.

    The step is taken both ways from the same state, which is then gone back to.
    """
    moment = _Moment(record.buffers)
    found = _outcome(lambda: record(step.tensors), record.buffers)
    moment.restore()
    wanted = _outcome(step.plain, record.buffers)
    moment.restore()
    return _difference(found, wanted)


def _outcome(
    take: Callable[[], tuple[Tensor, Parameters]], buffers: list[Tensor]
) -> dict[str, Tensor]:
    """All that a step finds and changes, by name."""
    loss, parameters = take()
    outcome = {"the loss": loss}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            outcome[f"the gradient of '{name}'"] = parameter.grad
    for parameter in parameters.values():
        parameter.grad = None
    return outcome | {f"buffer {i}": b.clone() for i, b in enumerate(buffers)}


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The name of what differs, if anything; what is not finite is compared by no one.

    A gradient that is zero but for rounding is held against the largest one.
    """
    if odd := sorted(found.keys() ^ wanted.keys()):
        return odd[0]
    size = {name: tensor.double().norm().nan_to_num() for name, tensor in wanted.items()}
    largest = max(value for name, value in size.items() if "gradient" in name)
    for name, tensor in wanted.items():
        scale = max(size[name], FLOOR * largest) if "gradient" in name else size[name]
        error = (found[name].double() - tensor.double()).norm()
        apart = tensor.isfinite().all() and not error <= TOLERANCE * scale
        if apart or found[name].stride() != tensor.stride():
            return name
    return ""
