r"""Whether the latent is used: which entries of z tell rows apart, and whether x shows it.

A bound can be at its best with q(z | x) = p(z) and a decoder that ignores z: *posterior collapse*.
What a latent takes up is KL(q(z|x) || p(z)), of which the mean over rows is

    mean_i KL(q(z|x_i) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),     q(z) = 1/N \sum_i q(z|x_i):

what z tells of x, and how far the aggregated posterior is from the prior that new rows come from
(ELBO surgery: yet another way to carve up the variational evidence lower bound, Hoffman & Johnson,
2016). Of several latents each term is a sum over them, z_s given those before it, as with

    KL(q(z_s|x, z_<s) || p(z_s|z_<s)),     q(z_s|z_<s) = q(z_1, ..., z_s) / q(z_1, ..., z_s-1) .

With N rows in q(z), a row's own among them, I_q is at most log N. It is that of these rows; for
the population that they come from it is a lower bound (Representation Learning with Contrastive
Predictive Coding, van den Oord, Li & Vinyals, 2018, https://arxiv.org/abs/1807.03748), and the
marginal KL, KL(q(z) || p(z)), an upper one. By x is meant all that the guide sees, so the
context too.

An entry z_j has

* an *activity*, Var_i(E_q[z_j|x_i]) / spread(z_j)^2; above 0.01 it is active (Importance Weighted
  Autoencoders, Burda, Grosse & Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519). The spread
  is half the distance from the 16 % to the 84 % quantile of p(z_j), which is a normal's standard
  deviation, and is known for heavy tails too: z and a z + b have the same activity. The mean of K
  draws varies by itself, by Var_q(z_j|x_i) / K, which is taken off;
* a *sensitivity*, the mean of log p(x|z) - log p(x|z') with z' = z but for z'_j, a new draw from
  the prior: 0 where the decoder ignores the entry, and where q(z_j|x) = p(z_j).
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import base
from pyrovae.errors import Error
from pyrovae.evaluate.twosample import mmd
from pyrovae.evaluate.use import LatentUse, SiteUse
from pyrovae.evaluate.weights import BLOCK, Array, checked, evaluating, paired_traces
from pyrovae.models import Model
from pyrovae.part import validated
from pyrovae.place import unchecked
from pyrovae.traces import log_density, refuse_global, sites

ROWS = 1000
"""The rows that stand for q(z), at most, chosen at random: all pairs of them are needed."""
DRAWS = 10_000
"""The draws of the prior that its spread is taken from."""
WORDS = {
    "kl": "KL",
    "kl_of": "KL of an entry",
    "information": "I(x; z)",
    "marginal": "marginal KL",
    "activity": "activity",
    "sensitivity_of": "sensitivity of an entry",
}

Latents = Mapping[str, Tensor]
"""A value of each latent by site, `(rows, *event)`."""


@validated
def latent_use(
    model: Model,
    data: Any,
    *,
    particles: Annotated[int, Field(ge=2)] = 100,
    rows: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> LatentUse:
    """Which latents are used, and whether their aggregated posterior is the prior.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw.
        particles: draws of z for each row, for the KL and the activity.
        rows: the first rows only; all unless given.
        seed: of the draws, and of the rows that stand for q(z).
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: rows that the model cannot have generated; no latent, one that is not local, one
            that the guide sets to a point, or one that only the guide has; a density that is not
            finite.

    Example:
        >>> from pyrovae import VAE
        >>> use = latent_use(VAE(x=(4,), z=(2,)), torch.zeros(20, 4))
        >>> use["z"].kl.shape, use["z"].active.shape
        ((20,), (2,))
    """
    with evaluating(model, seed, device, dtype) as place:
        batch = checked(model, data, place, rows)
        supports, ordered = _supports(model, batch[:1])
        drawn = _drawn(model, batch, list(supports), particles)
        some = batch[torch.randperm(len(batch))[:ROWS]]
        z, log_q, log_p = _one_draw(model, some, list(supports))
        log_mixture = _log_mixture(model, some, z, log_q)
        information, marginal = log_q - log_mixture, log_mixture - log_p
        prior, moves = _from_prior(model, some, z), _moves(model, some, z)
        found = []
        for index, (name, support) in enumerate(supports.items()):
            spread = _spread(prior[name], support)
            figures = {
                **_activity(drawn[name], spread, particles),
                **_sensitivity(model, some, z, name, support),
                "kl": drawn[name]["kl"],
                "kl_of": drawn[name]["kl_of"],
                "information": information[index],
                "marginal": marginal[index],
            }
            notes = []
            for names, reason in _left_out(figures, support, ordered, moves[name]):
                figures |= {key: np.full_like(figures[key], np.nan) for key in names}
                notes.append(f"{name}: no {', no '.join(WORDS[key] for key in names)}: {reason}.")
            event, p_value = tuple(z[name].shape[1:]), _p_value(z[name], prior[name], spread, seed)
            found.append(SiteUse(name, event, p_value=p_value, notes=tuple(notes), **figures))
        kl = np.sum([of_site["kl"] for of_site in drawn.values()], 0)
        total = marginal.sum(0) * (np.nan if any(moves.values()) else 1.0)
        return LatentUse(tuple(found), kl, information.sum(0), total, particles)


def _supports(model: Model, row: Batch) -> tuple[dict[str, Constraint], bool]:
    """What the smallest piece of each latent can be, and whether the model has the same order."""
    guide, joint = paired_traces(model, row, nullcontext())
    for trace in (guide, joint):
        refuse_global(trace, 1)
    guided, drawn = (
        {name: site["fn"] for name, site in sites(trace) if not site["is_observed"]}
        for trace in (guide, joint)
    )
    if not guided:
        raise Error(f"the model '{model.kind}' has no latent", "model")
    if extra := guided.keys() - drawn.keys():
        raise Error(f"'{min(extra)}' is in the guide only: q(z | x) is not known without it")
    for name, fn in guided.items():
        if isinstance(_piece(fn), Delta):
            raise Error(f"the guide sets '{name}' to a point, which has no KL to a density")
    supports = {name: base(fn.support) for name, fn in guided.items()}
    return supports, list(guided) == list(drawn)


def _left_out(
    figures: Mapping[str, Array], support: Constraint, ordered: bool, moves: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The figures that there are not, and why."""
    if len(figures["kl"]) == 1:
        yield ("activity", "information", "marginal"), "one row has no spread"
    if not ordered:
        alone = "kl", "kl_of", "information", "marginal"
        yield alone, "the guide draws the latents in another order than the model"
    if moves:
        yield ("activity", "marginal"), "the prior depends on what the row is given"
    if support.is_discrete:
        yield ("activity", "kl_of", "sensitivity_of"), "a class is one unit, without a spread"
    elif support.event_dim:
        yield ("kl_of", "sensitivity_of"), "the support ties the entries together"
    elif np.isnan(figures["kl_of"]).all():
        yield ("kl_of",), "q(z|x) or p(z) does not factorise over the entries"


def _drawn(
    model: Model, batch: Batch, names: list[str], particles: int
) -> dict[str, dict[str, Array]]:
    """Of each latent and row the KL, and the mean and the variance of the entries over draws."""
    blocks = []
    for first, rows in enumerate(batch.split(size := max(1, BLOCK // particles))):
        guide, joint = paired_traces(model, rows, pyro.plate("particles", particles, dim=-2))
        log_p, log_q = (log_density(trace, particles, len(rows)) for trace in (joint, guide))
        if len(bad := torch.nonzero(~(log_p - log_q)[0].isfinite().all(0))):
            raise Error(f"the log-weight of row {first * size + int(bad[0])} is not finite")
        blocks.append({name: _reduced(guide.nodes[name], joint.nodes[name]) for name in names})
    return {
        name: {
            key: np.concatenate([block[name][key] for block in blocks]) for key in blocks[0][name]
        }
        for name in names
    }


def _reduced(q: Any, p: Any) -> dict[str, Array]:
    z = _array(q["value"])
    entries = z.reshape(*z.shape[:2], -1)
    each = [_of_entries(site) for site in (q, p)]
    kl_of = np.full_like(entries[0], np.nan)
    if each[0] is not None and each[1] is not None:
        kl_of = _array(each[0] - each[1]).reshape(entries.shape).mean(0)
    return {
        "kl": _array(_log_prob(q) - _log_prob(p)).mean(0),
        "kl_of": kl_of,
        "mean": entries.mean(0),
        "variance": entries.var(0, ddof=1),
    }


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.double().cpu().numpy()
    return array


def _log_prob(site: Any) -> Tensor:
    """The log density of a site, `(particles, rows)`."""
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return log_prob


def _piece(fn: Any) -> Any:
    """The distribution under `Independent`."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _of_entries(site: Any) -> Tensor | None:
    """The log density of each entry, `(particles, rows, *event)`, where they are independent."""
    piece = _piece(site["fn"])
    if piece.event_shape or site["mask"] is not None:
        return None
    log_prob: Tensor = piece.log_prob(site["value"])
    return log_prob


def _one_draw(model: Model, some: Batch, names: list[str]) -> tuple[Latents, Array, Array]:
    """A draw of q(z) for each row, and its log q(z|x) and log p(z), each `(sites, rows)`."""
    guide, joint = paired_traces(model, some, pyro.plate("particles", 1, dim=-2))
    log_q, log_p = (
        _array(torch.cat([_log_prob(trace.nodes[name]) for name in names]))
        for trace in (guide, joint)
    )
    return {name: guide.nodes[name]["value"][0] for name in names}, log_q, log_p


def _scored(
    model: Model, program: Any, rows: Batch, values: Latents, particles: int
) -> poutine.Trace:
    """The run of model or guide on latents `(particles, rows, *event)`."""
    plate = pyro.plate("particles", particles, dim=-2)
    with model.scope(), unchecked(), plate:
        return poutine.trace(poutine.condition(program, data=values)).get_trace(rows)


def _log_mixture(model: Model, some: Batch, z: Latents, log_q: Array) -> Array:
    """The log q(z_s|z_<s) of each row's draw, shape `(sites, rows)`, from all pairs of rows."""
    sums = []
    for index in torch.arange(len(some)).split(256):
        blocks = []
        for rows in some.split(max(1, BLOCK // len(index))):
            values = {
                name: value[index, None].expand(-1, len(rows), *value.shape[1:])
                for name, value in z.items()
            }
            trace = _scored(model, model.guide, rows, values, len(index))
            blocks.append(torch.stack([_log_prob(trace.nodes[name]) for name in z]).double())
        pairs = torch.cat(blocks, -1).cpu()
        pairs[:, torch.arange(len(index)), index] = torch.from_numpy(log_q[:, index])
        sums.append(pairs.cumsum(0).logsumexp(-1) - np.log(len(some)))
    together = torch.cat(sums, -1).numpy()
    return np.diff(together, axis=0, prepend=0.0)


def _from_prior(model: Model, some: Batch, names: Latents) -> dict[str, Tensor]:
    """Draws of the latents from the model alone, `(draws, *event)`, given what the rows are."""
    index = torch.arange(DRAWS) % len(some)
    free, blocks = poutine.uncondition(model.model), []
    for part in index.split(BLOCK):
        with model.scope(), unchecked():
            trace = poutine.trace(free).get_trace(some[part])
        blocks.append({name: trace.nodes[name]["value"] for name in names})
    return {name: torch.cat([block[name] for block in blocks]) for name in names}


def _moves(model: Model, some: Batch, z: Latents) -> dict[str, bool]:
    """Whether the density of the first row's latents under p depends on which row it is."""
    first = {name: value[:1].expand(value.shape)[None] for name, value in z.items()}
    trace = _scored(model, model.model, some, first, 1)
    densities = {name: _log_prob(trace.nodes[name]) for name in z}
    return {name: bool((d - d[:, :1]).abs().max() > 1e-3) for name, d in densities.items()}


def _spread(prior: Tensor, support: Constraint) -> Array:
    """Half the distance from the 16 % to the 84 % quantile of each entry; 1 for classes."""
    if support.is_discrete:
        return np.ones(1)
    low, high = np.quantile(_array(prior).reshape(len(prior), -1), (0.158655, 0.841345), axis=0)
    return (high - low) / 2


def _activity(drawn: Mapping[str, Array], spread: Array, particles: int) -> dict[str, Array]:
    """What each row adds to the activity of the entries, and the noise of an activity."""
    mean, variance = drawn["mean"], drawn["variance"] / particles
    others = max(len(mean) - 1, 1)
    moved = (mean - mean.mean(0)) ** 2 * len(mean) / others - variance
    noise = np.sqrt(2 * np.square(variance).mean(0) / others)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"activity": moved / spread**2, "noise": noise / spread**2}


def _sensitivity(
    model: Model, some: Batch, z: Latents, name: str, support: Constraint
) -> dict[str, Array]:
    """How much less probable all else is with a latent, and with each entry, drawn anew."""
    entries = z[name][0].numel()
    alone = 0 if support.is_discrete or support.event_dim else entries
    all_but = torch.cat([torch.zeros(1, entries), torch.ones(1, entries), torch.eye(entries)])
    anew = all_but[: 2 + alone].bool().to(z[name].device)
    blocks = []
    for index in torch.arange(len(some)).split(max(1, BLOCK // len(anew))):
        rows, values = some[index], {key: value[index][None] for key, value in z.items()}
        fn = _scored(model, model.model, rows, values, 1).nodes[name]["fn"]
        old, new = (t.reshape(len(index), -1) for t in (values[name], fn.sample()))
        mixed = torch.where(anew[:, None], new, old).reshape(len(anew), *values[name].shape[1:])
        values = {key: value.expand(len(anew), *value.shape[1:]) for key, value in values.items()}
        trace = _scored(model, model.model, rows, values | {name: mixed}, len(anew))
        blocks.append(log_density(trace, len(anew), len(rows), lambda s: s["name"] != name)[0])
    rest = _array(torch.cat(blocks, -1))
    lost = (rest[0] - rest[1:]).T
    each = lost[:, 1:] if alone else np.full((len(lost), entries), np.nan)
    return {"sensitivity": lost[:, 0], "sensitivity_of": each}


def _p_value(z: Tensor, prior: Tensor, spread: Array, seed: int) -> float:
    """The p-value of draws of q(z) being draws of p(z), NaN for a single one."""
    if len(z) == 1:
        return float("nan")
    unit = torch.from_numpy(np.where(spread > 0, spread, 1.0))
    a, b = (x.double().cpu().reshape(len(x), -1) / unit for x in (z, prior[:ROWS]))
    return mmd(a, b, seed=seed).p_value
