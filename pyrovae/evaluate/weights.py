r"""Log-weights, the one quantity that evaluation reduces, and what a set of them says.

    log w_k = log p(x, z_k) - log q(z_k | x),   z_k ~ q(z | x),   E[w_k] = p(x) .

A discrete latent of few states is summed over in w_k rather than drawn: its states are then no
part of the error. Of K weights of a row,

* log p^_K = log (1/K) \sum_k w_k is, in expectation, a lower bound on log p(x) that rises with K
  from the ELBO at K = 1 (Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
  https://arxiv.org/abs/1509.00519);
* its standard error, by the delta method, is sd(w) / (mean(w) sqrt(K));
* the jackknife K log p^_K - (K - 1) mean_k log p^_{K without k} has a bias of order 1/K^2 in place
  of 1/K, and is no bound (Debiasing Evidence Approximations: On Importance-weighted Autoencoders
  and Jackknife Variational Inference, Nowozin, 2018);
* the effective sample size is (\sum w)^2 / \sum w^2;
* the Pareto k-hat of the largest weights says whether the tail is too heavy for the K at hand, and
  the standard error too small as well (Pareto Smoothed Importance Sampling, Vehtari, Simpson,
  Gelman, Yao & Gabry, 2024, https://arxiv.org/abs/1507.02646).

No training knob is read here: the log densities are the unscaled ones.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, as_batch, as_rows, in_blocks
from pyrovae.models import Model
from pyrovae.models.model import observed, require_model, require_positive
from pyrovae.place import Place, destination, flushed, in_mode, placed, seeded, unchecked
from pyrovae.ranks import ALONE, World
from pyrovae.traces import log_densities, of_guide, of_model, sites, total

Array = NDArray[np.float64]
BLOCK = 4096
"""Rows times particles that go through a model at a time: few enough to stay in cache."""
CURVE = (1, 10, 100, 1000, 5000)
"""The numbers of particles at which the bound is told, from one set of draws."""


@contextmanager
def evaluating(
    model: Model, seed: int, device: str | None = None, dtype: str | None = None
) -> Iterator[Place]:
    """A model in evaluation: at a place, from a seed, without gradient; afterwards as it was."""
    require_model(model)
    with (
        in_mode(model, False),
        placed(model, device, dtype) as place,
        seeded(seed),
        torch.no_grad(),
        flushed(),
    ):
        yield place


def checked(model: Model, data: Any, place: Place, rows: int | None = None) -> Batch:
    """The first rows of the data, at a place; refused if the model cannot have generated them."""
    batch = as_rows(data)[:rows].to(*place)
    model.check(batch)
    return batch


def log_weights(model: Model, data: Any, particles: int = 1) -> Tensor:
    """The log-weights log p(x, z) - log q(z | x), shape `(particles, rows)`, with gradient.

    The model is in the mode that it is in: call `model.eval()` first where they are to be an
    estimate of p(x), since in training dropout and labels take part.

    Args:
        model: any model whose latents live in a plate at dimension -1.
        data: rows, shape `(rows, *x)`.
        particles: draws of z for each row, K.

    Raises:
        Error: a latent outside the plate of the rows.
    """
    batch = as_batch(data).to(*destination(model))
    model.require(batch)
    return weigh(model, batch, particles)


def weigh(model: Model, batch: Batch, particles: int) -> Tensor:
    """The log-weights of rows that are where the model is, and that it takes."""
    return over_states(terms(model, batch, particles).log_w)


@dataclass(frozen=True)
class Terms:
    """What the log-weights of rows are the sum of.

    Args:
        guide: the run of the guide.
        p: the log densities of the sites of the model.
        q: those of the sites of the guide that are drawn, not summed over.
        log_w: their difference, `(*states, particles, rows)`, with one state where nothing is
            summed over.
    """

    guide: poutine.Trace
    p: dict[str, Tensor]
    q: dict[str, Tensor]
    log_w: Tensor


def terms(model: Model, batch: Batch, particles: int) -> Terms:
    """The terms of the log-weights of rows that are where the model is, and that it takes."""
    plate = pyro.plate("particles", particles, dim=-2)
    guide, joint = paired_traces(model, batch, plate, enumerates=model.enumerates)
    p = log_densities(joint, len(batch))
    q = log_densities(guide, len(batch), is_drawn)
    log_p, log_q = (total(of, particles, len(batch)) for of in (p, q))
    return Terms(guide, p, q, log_p - log_q.to(log_p))


def over_states(log_w: Tensor) -> Tensor:
    """The logarithm of the sum over all states, `(particles, rows)`."""
    return log_w.flatten(0, -3).logsumexp(0)


def paired_traces(
    model: Model, batch: Batch, plate: AbstractContextManager[Any], enumerates: bool = False
) -> tuple[poutine.Trace, poutine.Trace]:
    """The guide's run inside a plate, and the model's on the same latents.

    Where it enumerates, a latent that can be summed over takes all its values instead of being
    drawn, along a dimension to the left of the particles.
    """
    drawing = poutine.enum(first_available_dim=-3) if enumerates else None
    with model.scope(), unchecked():
        guide = of_guide(model.guide, (batch,), {}, plate, drawing)
        return guide, of_model(model.model, guide, (batch,), {}, plate)


def is_drawn(site: Any) -> bool:
    """Whether a latent is drawn, not summed over."""
    return "_enumerate_dim" not in site["infer"]


def reduce(log_w: Array) -> dict[str, Array]:
    """What log-weights `(particles, rows)` say of each row: arrays of `LogLikelihood`."""
    particles, rows = log_w.shape
    log_w = np.asfortranarray(log_w)  # all that follows goes through rows one by one
    total, ess, mcse = sums(log_w)
    return {
        "value": total - math.log(particles),
        "mcse": mcse,
        "ess": ess,
        "khat": np.array([_khat(column) for column in log_w.T]),
        "elbo": log_w.mean(0),
        "jackknife": _jackknife(log_w, total),
        "curve": np.stack([_bound(log_w, k) for k in CURVE], -1),
        "particles": np.full(rows, particles),
    }


def sums(log_w: Array) -> tuple[Array, Array, Array]:
    r"""Of log-weights `(particles, rows)`: log \sum w, effective sample size and standard error.

    The error is that of log p^_K, infinite where all weights are 0 and NaN for one particle.
    """
    total, particles = _log_sum(log_w), len(log_w)
    nothing = total == -np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        ess = np.exp(2 * total - _log_sum(2 * log_w))
        mcse = np.sqrt(np.maximum(particles / ess - 1, 0) / (particles - 1))
    return total, np.where(nothing, 0.0, ess), np.where(nothing, np.inf, mcse)


def _log_sum(log_w: Array, axis: int = 0) -> Array:
    """The logarithm of the sum of weights, -infinity where all of them are 0."""
    top = np.maximum(log_w.max(axis, keepdims=True), np.finfo(np.float64).min)
    with np.errstate(divide="ignore", invalid="ignore"):
        return top.squeeze(axis) + np.log(np.exp(log_w - top).sum(axis))


def _jackknife(log_w: Array, total: Array) -> Array:
    r"""The jackknife of the bound, `(rows,)`; NaN where one weight is all there is.

    Without w_k the sum of weights is 1 - w_k / \sum w of what it was, in which digits are lost
    for the largest weight alone.
    """
    particles = len(log_w)
    largest, others = log_w.argmax(0)[None], log_w.copy()
    np.put_along_axis(others, largest, -np.inf, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = np.log1p(-np.exp(log_w - total))
        np.put_along_axis(without, largest, (_log_sum(others) - total)[None], 0)
        change = without.mean(0) + math.log(particles / max(particles - 1, 1))
        corrected = total - math.log(particles) - (particles - 1) * change
    return np.where(np.isfinite(without).all(0), corrected, np.nan)


def _bound(log_w: Array, k: int) -> Array:
    """The bound of k particles, the mean over disjoint sets of k; NaN where there is no set."""
    sets = len(log_w) // k
    if not sets:
        return np.full(log_w.shape[1], np.nan)
    return _log_sum(log_w[: sets * k].reshape(sets, k, -1), 1).mean(0) - math.log(k)


def _khat(log_w: Array) -> float:
    """The Pareto k-hat, from the exceedances of the largest weights over the next one.

    It is -infinity where they are equal as float32 rounds them, infinity where a few outweigh the
    rest beyond the reach of floating-point numbers, NaN where they are too few or tied.
    """
    from arviz_stats.base import array_stats

    tail = int(min(0.2 * len(log_w), 3 * math.sqrt(len(log_w))))
    if tail < 5 or not np.isfinite(log_w.max()):
        return math.nan
    cutoff, *largest = np.sort(log_w)[-tail - 1 :] - log_w.max()
    if largest[-1] - largest[0] < 1e-6 * max(abs(log_w.max()), 100):
        return -math.inf
    quartile = largest[int(tail / 4 + 0.5) - 1]
    if quartile < -700:
        return math.inf
    if np.exp(quartile) == np.exp(cutoff):
        return math.nan
    return float(array_stats.psislw(-np.maximum(log_w, log_w.max() - 1e4))[1])


def latents(model: Model, data: Any, particles: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Draws of the latents of each row from the guide: site to `(particles, rows, *event)`.

    Args:
        model: a fitted model.
        data: rows, shape `(rows, *x)`, raw.
        particles: draws for each row.
        seed: of the draws.
    """
    with _guided(model, data, particles, seed) as (_, _, guide):
        return {name: site["value"] for name, site in sites(guide)}


def reconstruct(model: Model, data: Any, particles: int = 1, seed: int = 0) -> Tensor:
    """Draws of x ~ p(x | z), z ~ q(z | x), shape `(particles, rows, *x)`, on the raw scale.

    Args:
        model: a fitted model.
        data: rows, shape `(rows, *x)`, raw.
        particles: draws for each row.
        seed: of the draws.
    """
    with _guided(model, data, particles, seed) as (batch, plate, guide):
        free = poutine.replay(poutine.uncondition(model.model), trace=guide)
        with model.scope(), unchecked(), plate:
            return observed(poutine.trace(free).get_trace(batch))[-1]["value"]


@contextmanager
def _guided(
    model: Model, data: Any, particles: int, seed: int
) -> Iterator[tuple[Batch, AbstractContextManager[Any], poutine.Trace]]:
    """The rows, a plate of particles and the guide's run in it, in evaluation."""
    require_positive(particles, "particles")
    plate = pyro.plate("particles", particles, dim=-2)
    with torch.no_grad(), seeded(seed), in_mode(model, False):
        batch = as_batch(data).to(*destination(model))
        model.check(batch)
        yield batch, plate, paired_traces(model, batch, plate)[0]


def bound(model: Model, data: Any, seed: int = 0) -> float:
    """The mean ELBO over rows, one draw each, fixed by the seed; log p(x) where it is known."""
    return means(model, data, seed, lambda rows: {"bound": bounds(model, rows)})["bound"].item()


def bounds(model: Model, rows: Batch) -> Tensor:
    """For each row a bound from one draw, or log p(x) where it is known, `(rows,)`."""
    return model.log_prob(rows) if model.exact else log_weights(model, rows)[0]


def means(
    model: Model,
    data: Any,
    seed: int,
    of: Callable[[Batch], dict[str, Tensor]],
    world: World = ALONE,
) -> dict[str, Array]:
    """The means over rows of what a function gives of some of them, `(rows, ...)` by name.

    Of several processes each goes through its part of the rows; all have the same means.
    """
    with torch.no_grad(), seeded(world.seed(seed)), in_mode(model, False), flushed():
        whole, totals = as_rows(data), dict[str, Tensor]()
        rows = world.part(whole)
        for block in in_blocks(rows):
            for some in [block] if model.exact else block.split(BLOCK):
                for name, figure in of(some).items():
                    totals[name] = figure.double().sum(0) + totals.get(name, 0.0)
        return {k: world.sum(t).cpu().numpy() / len(whole) for k, t in totals.items()}
