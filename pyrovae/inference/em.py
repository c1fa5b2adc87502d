"""Expectation-maximisation: a generator of iterations over all rows, or over mini-batches.

Each iteration takes the E-step, the posterior of the components under the present parameters, and
the M-step, the parameters of highest expected log p(x, k) under that posterior. It never lowers
the likelihood (Maximum Likelihood from Incomplete Data via the EM Algorithm, Dempster, Laird &
Rubin, 1977).
"""

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from pyrovae.batch import Batch, Rows, as_batch
from pyrovae.errors import Error
from pyrovae.inference.epoch import Epoch, new_order, ordered, unheard, weights
from pyrovae.models import Model
from pyrovae.models.model import Statistics

HALVINGS = 30
REPAIRS = 10


def em(
    model: Model,
    rows: Rows | Iterable[Batch],
    *,
    epochs: int = 100,
    tolerance: float = 1e-6,
    runs: Model | None = None,
    advance: Callable[[int], None] = unheard,
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
    advance: Callable[[int], None] = unheard,
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
        for batch in ordered(rows, batch_size, new_order()):
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
