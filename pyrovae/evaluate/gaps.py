r"""How good the guide is, and whether its encoder or its family is what limits it.

The bound falls short of log p(x) by the *inference gap*, KL(q(z|x) || p(z|x)). With q* the best
guide of the family for this one row,

    log p(x) - ELBO[q]  =  (log p(x) - ELBO[q*])  +  (ELBO[q*] - ELBO[q]) :
       inference gap        approximation gap         amortisation gap

what no member of the family can say, and what the encoder loses against a guide made for the row
(Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
https://arxiv.org/abs/1801.03558). Both ELBOs are estimated with the same random numbers, which
were not used to find q*.

log p(x) is estimated by importance sampling. Draws of a guide do not know of a mode that it never
visits: of p(x) they find the part under q alone, and the weights look well behaved. Chains of
Hamiltonian Monte Carlo that start at the prior do get there, but not in proportion, and the
normals N_c with the chains' means and covariances turn where they have been into a proposal,

    r(z) = 1/2 q*(z|x) + 1/2 1/C \sum_c N_c(z),     log p^ = log mean_k p(x, z_k) / r(z_k) .

As every such estimate is in expectation a lower bound, one that is larger than what draws of q*
alone give is evidence that these miss something, and 1 - p^_q* / p^ is how much. It is a mode if
its mass lies behind a valley of p(x, z), seen from where q* is; the tails that a narrow guide
misses do not, nor does a mode without mass count.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.estimators import Estimator, Exact
from pyrovae.evaluate.freed import Freed
from pyrovae.evaluate.grade import GAPS, MISSED, GuideGrade
from pyrovae.evaluate.likelihood import named_rows, refuse_undefined
from pyrovae.evaluate.mcmc import MIXED, posterior
from pyrovae.evaluate.samplers import HMC, Sampler
from pyrovae.evaluate.weights import BLOCK, Array, checked, evaluating, log_weights, reduce
from pyrovae.models import Model
from pyrovae.part import validated
from pyrovae.place import seeded
from pyrovae.report import entries

ROWS = 256
"""Rows that go through at a time."""
CHAINS = 8
"""Chains of each row: four of them start at the prior."""
WIDER = 1.2
"""How much wider than those of the chains the covariances of the proposal are."""
WIDE = 64
"""The most entries of z of which covariances are taken."""
VALLEY = 1.0
"""How deep a valley of log p(x, z) is, at least, that parts two modes, in nats."""
Columns = dict[str, Any]


@validated
def grade_guide(
    model: Model,
    data: Any,
    *,
    particles: Annotated[int, Field(ge=50)] = 1000,
    draws: NonNegativeInt = 300,
    method: Estimator | None = None,
    sampler: Sampler | None = None,
    tolerance: PositiveFloat = 0.2,
    rows: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> GuideGrade:
    """Whether the guide is good, and otherwise whether its encoder or its family limits it.

    For N rows it takes at most 900 steps of the 16 N draws of a gradient, 2 N `particles` draws,
    and the chains: with 5 leapfrog steps a move 40 N gradients for each of `draws` and the
    sampler's warm-up. 256 rows go through side by side, so up to these time hardly grows.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw; a hundred tell enough.
        particles: draws of the guide for each row, K.
        draws: of each of eight chains, half of which start at the prior; 0 for no chains: then
            modes are not looked for.
        method: the estimator of log p(x); unless given, log p(x) itself where it is known, and
            importance sampling as `pyrovae.evaluate.gaps` says.
        sampler: what moves the chains; `hmc` with a warm-up of 300 moves unless given.
        tolerance: the mean inference gap in nats up to which the guide can be fine.
        rows: the first rows only; all unless given.
        seed: of the draws.
        device: where to compute; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: rows that the model cannot have generated; a latent that is not local; densities
            that are not numbers, with the rows; an estimator that cannot take the model.
    """
    notes: dict[str, None] = {}
    with (
        evaluating(model, seed, device, dtype) as place,
        np.errstate(invalid="ignore", over="ignore", divide="ignore"),
    ):
        batch = checked(model, data, place, rows)
        estimator = method or (Exact() if model.exact else None)
        moves = (sampler or HMC(warmup=300), draws) if draws else None
        blocks = [
            _block(model, some, particles, estimator, moves, notes) for some in batch.split(ROWS)
        ]
        entries = _entries(model, batch[:1]) if blocks[0]["mean_error"].shape[1] else ()
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    refuse_undefined(columns["elbo"])
    if len(lost := np.flatnonzero(np.isneginf(columns["elbo"]))):
        notes[
            f"Draws have the weight 0, so that the ELBO is -infinity, in {named_rows(lost)}."
        ] = None
    mcse = {name: columns.pop(f"{name}_mcse") for name in GAPS}
    chained = moves is not None and not np.isnan(columns["missed"]).all()
    sampling = f"importance sampling with draws of the guide{' and of chains' if chained else ''}"
    return GuideGrade(
        **columns,
        mcse=mcse,
        entries=entries,
        method=estimator.kind if estimator else sampling,
        particles=particles,
        tolerance=tolerance,
        notes=tuple(notes),
    )


def _block(
    model: Model,
    batch: Batch,
    particles: int,
    estimator: Estimator | None,
    moves: tuple[Sampler, int] | None,
    notes: dict[str, None],
) -> Columns:
    """The arrays of `GuideGrade` for a few rows."""
    guide, best, left = _guides(model, batch, notes)
    log_w = _log_weights((guide, best or guide), batch, particles)
    own = [reduce(some) for some in log_w]
    chains = _chains(guide, best or guide, batch, particles, moves, notes)
    log_p, mcse = chains.pop("log_r"), chains.pop("log_r_mcse")
    missed = _missed(own, log_p, mcse, chains.pop("behind"))
    if estimator:
        found = estimator(model, batch, None)
        log_p, mcse = found["value"], found["mcse"]
    # what each draw adds to the estimates of the ELBO, of the best one, and of log p(x)
    of_elbo, of_best = log_w - log_w.mean(1, keepdims=True)
    of_p = np.zeros_like(of_best)
    if np.isnan(log_p).all():
        log_p, mcse = own[1]["value"], np.zeros(len(batch))
        of_p = np.exp(log_w[1] - log_p) - 1
    return {
        "log_p": log_p,
        "elbo": log_w[0].mean(0),
        "best": log_w[1].mean(0) if best else np.full(len(batch), np.nan),
        "left": left,
        "khat": own[0]["khat"],
        "inference_mcse": np.hypot(_se(of_p - of_elbo), mcse),
        "approximation_mcse": np.hypot(_se(of_p - of_best), mcse),
        "amortisation_mcse": _se(of_best - of_elbo),
        **missed,
        **chains,
    }


def _se(terms: Array) -> Array:
    """The standard error of the mean of terms `(particles, rows)`."""
    error: Array = terms.std(0, ddof=1) / math.sqrt(len(terms))
    return error


def _missed(own: Sequence[Columns], log_p: Array, mcse: Array, behind: Array) -> Columns:
    """The share of p(x) that draws of neither guide find, and whether it is behind a valley."""
    values, errors = (np.stack([some[name] for some in own]) for name in ("value", "mcse"))
    short = log_p - values.max(0)
    error = np.hypot(mcse, np.take_along_axis(errors, values.argmax(0)[None], 0)[0])
    much = short > np.maximum(-math.log1p(-MISSED), 3 * error)
    return {"missed": -np.expm1(-short), "misses": much & (behind > MISSED)}


def _guides(
    model: Model, batch: Batch, notes: dict[str, None]
) -> tuple[Model, Model | None, Array]:
    """The model with its guide as it is, with the best one if it is known, and what is left."""
    try:
        freed = Freed(model, batch)
    except Error as reason:
        notes[f"The gap is not split: {reason.message}."] = None
        return model, None, np.full(len(batch), np.nan)
    if freed.restricted:
        notes[
            "A latent's guide depends on another latent, and was moved by the same for all its "
            "values: the approximation gap may be smaller and the amortisation gap larger."
        ] = None
    offsets, left = freed.best()
    return freed.at(freed.start), freed.at(offsets), left


def _log_weights(models: Sequence[Model], batch: Batch, particles: int) -> Array:
    """Log-weights from the same random numbers, `(models, particles, rows)`."""
    size, parts = max(1, BLOCK // len(batch)), []
    for some in torch.arange(particles).split(size):
        seed = int(torch.randint(2**31, ()))
        both = []
        for model in models:
            with seeded(seed):
                both.append(log_weights(model, batch, len(some)).double().cpu())
        parts.append(torch.stack(both))
    log_w: Array = torch.cat(parts, 1).numpy()
    return log_w


def _entries(model: Model, row: Batch) -> tuple[str, ...]:
    """The names of the entries of the latents, such as `z[0]`."""
    at = Coordinates(model, row)
    z = at.z(at.from_guide(1))
    return tuple(entry for name, value in z.items() for entry in entries(name, value.shape[2:]))


def _chains(
    guide: Model,
    best: Model,
    batch: Batch,
    particles: int,
    moves: tuple[Sampler, int] | None,
    notes: dict[str, None],
) -> Columns:
    """The guide against chains, and log p(x) as draws of the best guide and of them find it."""
    none = np.full(len(batch), np.nan)
    unknown = dict.fromkeys(("log_r", "log_r_mcse", "behind", "rhat", "error_noise"), none)
    unknown |= dict.fromkeys(("mean_error", "sd_error"), none[:, None][:, :0])
    if moves is None:
        return unknown
    sampler, draws = moves
    try:
        at = Coordinates(best, batch, "a chain")
    except Error as reason:
        notes[f"There are no chains: {reason.message.split(':')[0]}."] = None
        return unknown
    seed = int(torch.randint(2**31, ()))
    found = posterior(guide, batch, draws, method=sampler, chains=CHAINS, seed=seed)
    truth = _moments([_flat(found.pooled)])
    u = (Coordinates(guide, batch).from_guide(len(k)) for k in torch.arange(particles).split(16))
    q = _moments([_flat(at.z(some)) for some in u])
    mixed = np.where(found.rhat <= MIXED, 1.0, np.nan)[:, None]
    errors = {
        "mean_error": mixed * (q[0] - truth[0]) / truth[1],
        "sd_error": mixed * np.log(q[1] / truth[1]),
        "error_noise": np.sqrt(1 / found.ess + 1 / particles),
    }
    if sum(at.sizes) > WIDE:
        notes[f"With more than {WIDE} entries of z, what the guide misses is not known."] = None
        return unknown | errors | {"rhat": found.rhat}
    z = {name: value.to(batch.x) for name, value in found.pooled.items()}
    chains = at.u(z).unflatten(0, (CHAINS, draws))
    log_r, behind = _defended(at, _normals(chains), particles)
    found_p = reduce(log_r.double().cpu().numpy())
    weighed = {
        "log_r": found_p["value"],
        "log_r_mcse": found_p["mcse"],
        "behind": (log_r.softmax(0) * behind).sum(0).double().cpu().numpy(),
        "rhat": found.rhat,
    }
    return errors | weighed


def _flat(z: dict[str, Tensor]) -> Array:
    """Latents side by side, `(draws, rows, entries)`."""
    flat: Array = torch.cat([value.flatten(2).double() for value in z.values()], -1).cpu().numpy()
    return flat


def _moments(parts: Sequence[Array]) -> tuple[Array, Array]:
    """The mean and the standard deviation of each entry, `(rows, entries)`."""
    draws = np.concatenate(parts)
    return draws.mean(0), draws.std(0)


def _normals(u: Tensor) -> MultivariateNormal:
    """A normal for each chain and row, of draws `(chains, draws, rows, J)`."""
    mean, around = u.mean(1), u - u.mean(1, keepdim=True)
    covariance = WIDER * torch.einsum("cdri,cdrj->crij", around, around) / u.shape[1]
    variance = covariance.diagonal(dim1=-2, dim2=-1) + 1e-12
    factor, failed = torch.linalg.cholesky_ex(covariance + 1e-6 * variance.diag_embed())
    factor = torch.where(failed[..., None, None] > 0, variance.sqrt().diag_embed(), factor)
    return MultivariateNormal(mean, scale_tril=factor, validate_args=False)


def _defended(
    at: Coordinates, normals: MultivariateNormal, particles: int
) -> tuple[Tensor, Tensor]:
    """Draws of the guide and of the chains' normals: log-weights, and which are behind a valley.

    Both have the shape `(particles, rows)`. A valley is as deep as `VALLEY` nats, on the straight
    line from the draw of the guide with the largest p(x, u).
    """
    each, found = max(1, BLOCK // (2 * CHAINS * len(at.batch))), []
    u = at.from_guide(2 * CHAINS)
    home = torch.take_along_dim(u, at.log_f(u).argmax(0)[None, :, None], 0)
    for some in torch.arange(-(-particles // (2 * CHAINS))).split(each):
        u = normals.sample(some.shape).flatten(0, 1)
        u = torch.cat([at.from_guide(len(u)), u])
        log_normals = normals.log_prob(u[:, None]).logsumexp(1) - math.log(CHAINS)
        log_r = torch.logaddexp(at.log_guide(u), log_normals) - math.log(2)
        end = at.log_f(u)
        between = torch.stack([at.log_f(home.lerp(u, t)) for t in (0.25, 0.5, 0.75)]).amin(0)
        found.append((end - log_r, between < torch.minimum(at.log_f(home), end) - VALLEY))
    log_w, behind = (torch.cat(column) for column in zip(*found, strict=True))
    return log_w, behind
