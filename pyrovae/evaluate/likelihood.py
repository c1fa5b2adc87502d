r"""How large log p(x) is, for each row, and how sure that is.

Everything here is a reduction of one quantity, the log-weight

    log w_k = log p(x, z_k) - log q(z_k | x),   z_k ~ q(z | x),   E[w_k] = p(x) .

A discrete latent of few states is summed over in w_k rather than drawn: its states are then no
part of the error.

The estimate log p^_K = log (1/K) \sum_k w_k is, in expectation, a lower bound on log p(x) that
rises with K, from the ELBO at K = 1 (Importance Weighted Autoencoders, Burda, Grosse &
Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519). Four figures say how far to trust it:

* its Monte-Carlo standard error, by the delta method sd(w) / (mean(w) sqrt(K));
* the effective sample size (\sum w)^2 / \sum w^2;
* the Pareto k-hat of the largest weights: above min(1 - 1/log10 K, 0.7) the weights' tail is too
  heavy for the K at hand, and the standard error is too small as well (Pareto Smoothed Importance
  Sampling, Vehtari, Simpson, Gelman, Yao & Gabry, 2024, https://arxiv.org/abs/1507.02646);
* whether it is a bound at all: a mixture knows log p(x).

No training knob is read here: the log densities are the unscaled ones, in evaluation mode, without
gradient.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.models import Model
from pyrovae.models.model import observed, require_model, require_positive
from pyrovae.part import validated
from pyrovae.place import destination, in_mode, placed, seeded, unchecked

Array = NDArray[np.float64]
BLOCK = 4096
"""Rows times particles that go through a model at a time: few enough to stay in cache."""


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
    plate = pyro.plate("particles", particles, dim=-2)
    guide, joint = paired_traces(model, batch, plate, enumerates=model.enumerates)
    log_p = log_density(joint, particles, len(batch))
    log_q = log_density(guide, particles, len(batch), drawn=True)
    return (log_p - log_q).flatten(0, -3).logsumexp(0)


def paired_traces(
    model: Model, batch: Batch, plate: AbstractContextManager[Any], enumerates: bool = False
) -> tuple[poutine.Trace, poutine.Trace]:
    """The guide's run inside a plate, and the model's on the same latents.

    Where it enumerates, a latent that can be summed over takes all its values instead of being
    drawn, along a dimension to the left of the particles.
    """
    with model.scope(), unchecked():
        with plate, poutine.enum(first_available_dim=-3) if enumerates else nullcontext():
            guide = poutine.trace(model.guide).get_trace(batch)
        with plate:
            joint = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    drawn, scored = _latents(guide), _latents(joint)
    if drawn != scored:
        raise Error(
            f"the latents of model and guide differ ({', '.join(sorted(drawn ^ scored))}): "
            "log p(x) needs each in both"
        )
    return guide, joint


def _latents(trace: poutine.Trace) -> set[str]:
    return {
        name
        for name, site in _sites(trace)
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


def _sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    return (
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    )


def _refuse_global(trace: poutine.Trace, rows: int) -> None:
    for name, site in _sites(trace):
        if all((frame.dim, frame.size) != (-1, rows) for frame in site["cond_indep_stack"]):
            raise Error(
                f"the site '{name}' is not in a plate of the rows at dimension -1: "
                "only local latents have a log-weight per row"
            )


def log_density(trace: poutine.Trace, particles: int, rows: int, drawn: bool = False) -> Tensor:
    """The sum of the unscaled log densities of all sites, or of those that were drawn.

    Its shape is `(states, particles, rows)`, with one state where nothing is enumerated.
    """
    _refuse_global(trace, rows)
    total = torch.zeros(())
    for _, site in _sites(trace):
        if not (drawn and "_enumerate_dim" in site["infer"]):
            entry = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            total = total + scale_and_mask(entry, mask=site["mask"])
    return total.expand(torch.broadcast_shapes(total.shape, (1, particles, rows)))


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each row, in nats, on the raw scale. Every array has the shape `(rows,)`.

    Args:
        value: the estimate of log p(x).
        mcse: its Monte-Carlo standard error, 0 where it is exact.
        ess: the effective sample size.
        khat: the Pareto k-hat; -infinity where all weights are equal.
        elbo: the mean log-weight, an estimate of the ELBO.
        particles: the draws for each row, K.
        exact: whether this is log p(x) itself, or in expectation a lower bound.
        dimensions: the entries of one row, D.
        given: what the rows are conditioned on, empty for log p(x) itself.
    """

    value: Array
    mcse: Array
    ess: Array
    khat: Array
    elbo: Array
    particles: int
    exact: bool
    dimensions: int
    given: str = ""

    @property
    def mean(self) -> float:
        """The mean over rows."""
        return float(self.value.mean())

    @property
    def se(self) -> float:
        """The standard error of the mean over rows, seen as a sample; NaN for a single row."""
        return (
            float(self.value.std(ddof=1) / math.sqrt(len(self.value)))
            if len(self.value) > 1
            else math.nan
        )

    @property
    def mean_mcse(self) -> float:
        """The Monte-Carlo standard error of the mean, for these rows."""
        return float(np.sqrt(np.square(self.mcse).sum()) / len(self.mcse))

    @property
    def bits_per_dim(self) -> float:
        """The negative mean in bits for each entry of a row."""
        return -self.mean / (self.dimensions * math.log(2))

    @property
    def threshold(self) -> float:
        """The k-hat above which the estimate for a row is unreliable with this many particles."""
        return min(1 - 1 / math.log10(self.particles), 0.7) if self.particles > 10 else 0.0

    @property
    def heavy(self) -> float:
        """The share of rows with k-hat above 0.7; NaN with too few draws to fit a tail."""
        known = self.khat[~np.isnan(self.khat)]
        return float((known > 0.7).mean()) if len(known) else math.nan

    @property
    def kind(self) -> str:
        """`exact` or `lower bound`."""
        return "exact" if self.exact else "lower bound"

    def summary(self) -> dict[str, Any]:
        """The figures of the whole set, as they are written to results.json."""
        return {
            "mean": self.mean,
            "se": self.se,
            "mcse": self.mean_mcse,
            "kind": self.kind,
            "bits_per_dim": self.bits_per_dim,
            "elbo": float(self.elbo.mean()),
            "khat_above_0.7": self.heavy,
            "particles": self.particles,
            "rows": len(self.value),
        }

    def __str__(self) -> str:
        given = f" | {self.given}" if self.given else ""
        figure = f"log p(x{given}) = {self.mean:.2f} ± {self.se:.2f} nats"
        if self.exact:
            return f"{figure} (exact, {len(self.value)} rows)"
        heavy = "" if math.isnan(self.heavy) else f", k-hat > 0.7 in {self.heavy:.1%} of rows"
        return (
            f"{figure} (lower bound, {len(self.value)} rows, {self.particles} particles, "
            f"Monte-Carlo error {self.mean_mcse:.3f}{heavy})"
        )


@validated
def log_likelihood(
    model: Model,
    data: Any,
    *,
    particles: PositiveInt = 1000,
    rows: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> LogLikelihood:
    """Log p(x) of each row, with its uncertainty.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw.
        particles: draws of z for each row, K; an exact model needs none.
        rows: the first rows only; all unless given.
        seed: of the draws.
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given. Sums over particles are in
            float64 in any case.

    Raises:
        Error: rows of the wrong shape, not finite or outside the support; a latent that is not
            local.

    Example:
        >>> from pyrovae import Mixture
        >>> result = log_likelihood(Mixture(x=(2,), family="fixed-normal"), torch.zeros(3, 2))
        >>> result.value.shape, result.kind
        ((3,), 'exact')
    """
    require_model(model)
    with (
        in_mode(model, False),
        placed(model, device, dtype) as place,
        seeded(seed),
        torch.no_grad(),
    ):
        batch = as_batch(data)[:rows].to(*place)
        model.check(batch)
        if model.exact:
            columns = _exact(model.log_prob(batch))
            particles = 1
        else:
            for trace in paired_traces(model, batch[:1], nullcontext()):
                _refuse_global(trace, 1)
            blocks = zip(*_blocks(model, batch, particles), strict=True)
            columns = tuple(np.concatenate(column) for column in blocks)
    value, mcse, ess, khat, elbo = columns
    return LogLikelihood(
        value,
        mcse,
        ess,
        khat,
        elbo,
        particles=particles,
        exact=model.exact,
        dimensions=math.prod(model.event),
        given=model.tag.given,
    )


def _exact(log_prob: Tensor) -> tuple[Array, ...]:
    """The columns of `LogLikelihood` where log p(x) is known."""
    value = log_prob.double().cpu().numpy()
    if len(bad := np.flatnonzero(np.isnan(value))):
        raise Error(f"log p(x) of row {bad[0]} is not a number")
    none = np.zeros_like(value)
    return value, none, none + 1, none - np.inf, value


def _blocks(model: Model, batch: Batch, particles: int) -> Iterator[tuple[Array, ...]]:
    """The columns of `LogLikelihood` for a few rows at a time: memory stays the same."""
    at_once = min(particles, 256)
    draws = [at_once] * (particles // at_once) + [particles % at_once] * (particles % at_once > 0)
    for first, rows in enumerate(batch.split(size := max(1, BLOCK // at_once))):
        log_w = torch.cat([log_weights(model, rows, k).double().cpu() for k in draws])
        if len(bad := torch.nonzero(log_w.isnan().any(0) | (log_w == torch.inf).any(0))):
            raise Error(f"the log-weight of row {first * size + int(bad[0])} is not finite")
        yield reduce(log_w.numpy())


def reduce(log_w: Array) -> tuple[Array, Array, Array, Array, Array]:
    """The value, mcse, ess, khat and elbo, each `(rows,)`, of log-weights `(particles, rows)`."""
    particles = len(log_w)
    top = np.maximum(log_w.max(0), np.finfo(np.float64).min)
    w = np.exp(log_w - top)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = top + np.log(w.mean(0))
        ess = np.square(w.sum(0)) / np.square(w).sum(0)
        mcse = np.sqrt(np.maximum(particles / ess - 1, 0) / (particles - 1))
    return value, mcse, ess, np.array([_khat(column) for column in log_w.T]), log_w.mean(0)


def _khat(log_w: Array) -> float:
    """The Pareto k-hat, from the exceedances of the largest weights over the next one.

    It is -infinity where they are all equal, infinity where a few outweigh the rest beyond the
    reach of floating-point numbers, NaN where they are too few or tied.
    """
    from arviz_stats.base import array_stats

    tail = int(min(0.2 * len(log_w), 3 * math.sqrt(len(log_w))))
    if tail < 5 or not np.isfinite(log_w.max()):
        return math.nan
    cutoff, *largest = np.sort(log_w)[-tail - 1 :] - log_w.max()
    if largest[-1] - largest[0] < 1e-9:
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
        return {name: site["value"] for name, site in _sites(guide)}


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
    with torch.no_grad(), seeded(seed), in_mode(model, False):
        batch = as_batch(data)
        if model.exact:
            return model.log_prob(batch).double().mean().item()
        return sum(
            log_weights(model, rows).double().sum().item() for rows in batch.split(BLOCK)
        ) / len(batch)
