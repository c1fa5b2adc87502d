"""Inference: two generators of epochs, over rows in memory or in a file.

`svi` maximises a bound by stochastic gradient steps on mini-batches, with Pyro's traces and
estimators (Black Box Variational Inference, Ranganath, Gerrish & Blei, 2014,
https://arxiv.org/abs/1401.0118). The estimator sums over the rows of a batch; the step is taken on
the loss per row, so that a learning rate does not depend on the batch size.

`em` alternates the E-step and the M-step over all rows, and never lowers the likelihood;
`online_em` takes both for each mini-batch.
"""

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, cast

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, Rows, as_batch, streamed
from pyrovae.compile import Recorded, backward
from pyrovae.errors import Error, brief
from pyrovae.models import Model
from pyrovae.models.model import Statistics
from pyrovae.objectives import ELBO, Objective
from pyrovae.optim import Optim
from pyrovae.optimizers import Adam
from pyrovae.place import RandomState, in_mode, unchecked

HALVINGS = 30
REPAIRS = 10


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Args:
        index: counted from 0.
        loss: the mean over rows of minus the bound, in nats, as met in training; for EM before its
            M-step.
        validation: the mean bound on the validation rows, NaN without any.
        seconds: since the fit began.
    """

    index: int
    loss: float
    validation: float = float("nan")
    seconds: float = 0.0


def _unheard(rows: int) -> None:
    """Nobody wants to know how many rows are done."""


class SVI(pyro.infer.SVI):
    """Pyro's SVI with a loss per row, a tensor that nothing waits for, and ordered parameters."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Optim,
        loss: pyro.infer.ELBO,
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self.elbo = loss
        self.backward = loss.backward if isinstance(loss, Recorded) else partial(backward, loss)

    def step(self, batch: Batch) -> Tensor:
        """Take one gradient step; returns the loss per row, detached."""
        loss, parameters = self.backward(self.model, self.guide, batch, rows=len(batch))
        params = list(dict.fromkeys(parameters.values()))
        self.optim(params)
        for parameter in params:
            parameter.grad = None
        return loss


def svi(
    model: Model,
    rows: Rows,
    *,
    objective: Objective | pyro.infer.ELBO = ELBO(),
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    advance: Callable[[int], None] = _unheard,
) -> Iterator[Epoch]:
    """Fit by steps of Adam on mini-batches, in a new random order each epoch.

    Args:
        model: it has seen the data (`model.start`).
        rows: on the model's device and in its precision.
        objective: the bound, or one of Pyro's estimators, such as `Recorded(Trace_ELBO())`.
        epochs: passes over the rows.
        batch_size: rows in a mini-batch; the last one of an epoch can be smaller.
        learning_rate: of Adam.
        advance: told the number of rows after every step.

    Raises:
        Error: the loss or a parameter became NaN or infinite; the model then has the weights from
            the epoch's start.
    """
    optim = Optim(Adam(), learning_rate, names=model.named_parameters)
    if isinstance(objective, Objective):
        objective = objective.build(model.enumerates)
    engine = SVI(model.model, model.guide, optim, objective)
    began = time.perf_counter()
    model.zero_grad()
    for index in range(epochs):
        good = Snapshot(model, optim)
        with model.scope(), in_mode(model, True), _quiet():
            try:
                total = _sweep(engine, rows, batch_size, advance)
            except (RuntimeError, ValueError) as failure:
                good.restore()
                if index == 0 or isinstance(failure, Error):
                    raise
                total = torch.tensor(torch.nan)
            if not _finite(total, *model.parameters()):
                good.restore()
                where = _culprit(model, engine, rows, batch_size)
                good.restore()
                raise Error(
                    f"the fit failed in epoch {index}, {where}; "
                    "the weights are those from before the epoch"
                )
        yield Epoch(index, total.item() / len(rows), seconds=time.perf_counter() - began)


def em(
    model: Model,
    rows: Rows | Iterable[Batch],
    *,
    epochs: int = 100,
    tolerance: float = 1e-6,
    runs: Model | None = None,
    advance: Callable[[int], None] = _unheard,
) -> Iterator[Epoch]:
    """Fit by expectation-maximisation until an iteration gains less than `tolerance` nats per row.

    Where the M-step is not exact its step is halved until the likelihood does not fall.

    Args:
        model: it has seen the data (`model.start`) and has `expect` and `maximize`.
        rows: on the model's device and in its precision; or batches of them, to be gone through
            once an iteration, so that they need not fit into memory. Then components that are
            left without rows stay where they are.
        epochs: iterations at most.
        tolerance: in nats per row; 0 takes all iterations.
        runs: several fits side by side, `model.beside`, that have seen the data, of which the
            model takes the best; the model itself unless given.
        advance: told the number of rows after every iteration.
    """
    runs, began, repairs = runs or model, time.perf_counter(), 0
    whole = as_batch(rows) if hasattr(rows, "to") else None
    batches = cast(Iterable[Batch], rows) if whole is None else [whole]
    count = sum(len(batch) for batch in batches)
    before = value = torch.tensor(-torch.inf, dtype=torch.float64)
    old: dict[str, Tensor] = {}
    for index in range(epochs):
        statistics, value = _risen(runs, batches, before, old)
        log_prob = statistics.log_prob.max().item() / count
        if not math.isfinite(log_prob):
            raise Error(
                f"the fit failed in iteration {index}: the training likelihood became {log_prob}"
            )
        still = tolerance > 0 and ((value - before).abs() / count < tolerance).all()
        if still and whole and repairs < REPAIRS and runs.repair(whole, statistics):
            still, repairs = False, repairs + 1
            statistics, value = _risen(runs, batches, before, {})
        old = {} if runs.exact_m_step else weights(runs)
        runs.maximize(statistics)
        model.choose(runs, int(value.argmax()))
        advance(count)
        yield Epoch(index, -log_prob, seconds=time.perf_counter() - began)
        if still:
            break
        before = value
    if old or runs is not model:
        _, value = _risen(runs, batches, value, old)
        model.choose(runs, int(value.argmax()))


def online_em(
    model: Model,
    rows: Rows,
    *,
    epochs: int = 10,
    batch_size: int = 1024,
    decay: float = 0.6,
    advance: Callable[[int], None] = _unheard,
) -> Iterator[Epoch]:
    """Fit by EM on mini-batches: the statistics move towards those of each batch, s <- s + g s'.

    The step g = t^-decay gets smaller with each batch t. It is the same E-step and M-step; after
    a pass the model is where many iterations of `em` would have taken it. On-line
    Expectation-Maximization Algorithm for Latent Data Models (Cappé & Moulines, 2009,
    https://arxiv.org/abs/0712.4273).

    Args:
        model: it has seen the data (`model.start`) and has `expect` and `maximize`.
        rows: on the model's device and in its precision.
        epochs: passes over the rows, in a new random order each.
        batch_size: rows in a mini-batch.
        decay: above 0.5 and at most 1; the closer to 0.5, the faster the start is forgotten.
        advance: told the number of rows after every step.
    """
    began, step, count = time.perf_counter(), 0, len(rows)
    running: Statistics | None = None
    for index in range(epochs):
        total = 0.0
        for batch in _batches(rows, batch_size):
            found = model.expect(batch)
            total += found.log_prob.item()
            found = found * (count / len(batch))
            step += 1
            running = running.towards(found, step**-decay) if running else found
            model.maximize(running)
            advance(len(batch))
        if not math.isfinite(total):
            raise Error(f"the fit failed in epoch {index}: the training likelihood became {total}")
        yield Epoch(index, -total / count, seconds=time.perf_counter() - began)


def _all(model: Model, batches: Iterable[Batch]) -> Statistics:
    """The statistics of all batches."""
    return reduce(operator.add, (model.expect(batch) for batch in batches))


@torch.no_grad()
def _risen(
    runs: Model, batches: Iterable[Batch], before: Tensor, old: dict[str, Tensor]
) -> tuple[Statistics, Tensor]:
    """The statistics, and the objective of each run, after steps that lowered it were halved."""
    for _ in range(HALVINGS):
        statistics = _all(runs, batches)
        value = statistics.log_prob + runs.log_prior(statistics.n.sum(-1))
        rounding = 10 * torch.finfo(statistics.n.dtype).eps * before.abs()
        fallen = ~(value >= before - rounding)
        if not old or not fallen.any():
            break
        for name, parameter in runs.named_parameters():
            mask = fallen.reshape(*fallen.shape, *[1] * (parameter.dim() - fallen.dim()))
            parameter.copy_(torch.where(mask, 0.5 * (parameter + old[name]), parameter))
    return statistics, value


class Snapshot:
    """All that a fit's next step depends on, at one moment, to go back to."""

    def __init__(self, model: Model, optim: Optim) -> None:
        self.model, self.optim = model, optim
        self.weights, self.optim_state = weights(model), optim.get_state()
        self.random = RandomState()

    def restore(self) -> None:
        """Go back."""
        self.model.load_state_dict(self.weights)
        self.optim.set_state(self.optim_state)
        self.random.restore()


def weights(model: Model) -> dict[str, Tensor]:
    """A copy of the parameters and buffers, for `load_state_dict`."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pyro's checks and its warnings of NaN: a failed epoch is examined as a whole."""
    with unchecked(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")
        yield


def _batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    if streamed(rows):
        return rows.shuffled(batch_size)
    return (
        rows[index].replace(index=index) for index in torch.randperm(len(rows)).split(batch_size)
    )


def _sweep(engine: SVI, rows: Rows, batch_size: int, advance: Callable[[int], None]) -> Tensor:
    """One pass; returns the sum over rows of the loss, as a tensor that nothing waits for."""
    losses = []
    for batch in _batches(rows, batch_size):
        losses.append(engine.step(batch) * len(batch))
        advance(len(batch))
    return torch.stack(losses).double().sum()


def _finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _culprit(model: Model, engine: SVI, rows: Rows, batch_size: int) -> str:
    """Take the epoch's steps again, up to the first that fails: its index, and what failed."""
    for step, batch in enumerate(_batches(rows, batch_size)):
        before = Snapshot(model, engine.optim)
        try:
            if not _finite(engine.step(batch), *model.parameters()):
                before.restore()
                return f"step {step}: {_blame(model, engine, batch)}"
        except (RuntimeError, ValueError) as failure:
            return f"step {step}: {brief(failure)}"
    return "in a step that cannot be repeated, as its random numbers are not torch's"


def _blame(model: Model, engine: SVI, batch: Batch) -> str:
    """The first part whose output is not finite, else the first such gradient."""
    found: list[str] = []

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not _finite(output):
                found.append(f"'{name}' returned NaN or infinite values")

        return hook

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    guide = poutine.trace(model.guide).get_trace(batch)
    joint = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    for hook in hooks:
        hook.remove()
    for word, trace in (("guide", guide), ("model", joint)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not _finite(site["fn"].log_prob(site["value"])):
                found.append(f"the log density of '{name}' in the {word} became NaN or infinite")
    if found:
        return found[0]
    engine.elbo.differentiable_loss(model.model, model.guide, batch).backward()
    bad = [
        name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]
    model.zero_grad()
    return (
        f"the gradient of '{bad[0]}' became NaN or infinite"
        if bad
        else "the step itself overflowed: lower the learning rate"
    )
