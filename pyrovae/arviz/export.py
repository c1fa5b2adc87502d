r"""A model and some rows as one tree, in the form that ArviZ gives a Bayesian analysis.

A row x has latents z of its own, so draws have the dimensions (chain, draw, row, ...):

    variational               z ~ q(z | x)
    sample_stats              log p(x, z) - log q(z | x) of these, and what such weights say
    posterior                 z ~ p(z | x), by a sampler
    log_likelihood_given_z    log p(x | z) at these
    posterior_predictive      x ~ p(x | z) with some of these
    prior                     z ~ p(z)
    prior_predictive          x ~ p(x | z) with some of these
    pointwise                 log p(x), one number a row, and its error
    observed_data             x
    constant_data             what x is given

All that is drawn for a row is given what the row is given: its context, size factor or total.

log p(x | z) is not called log_likelihood, where `arviz_stats.loo` would look for it. Without its x
the posterior of a row is the prior, and leave-one-out would get there by weighing the posterior's
draws by 1 / p(x | z): too far to go for any number of draws, so that what comes out prefers ever
more latents.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from pyro import poutine
from torch import Tensor
from xarray import Dataset, DataTree

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import base, one_hot
from pyrovae.errors import Error
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.evaluate.mcmc import Posterior, posterior
from pyrovae.evaluate.samplers import Draws, Resampled, Sampler, weighted
from pyrovae.evaluate.weights import BLOCK, checked, evaluating, reduce
from pyrovae.models import Model
from pyrovae.models.model import observed
from pyrovae.part import validated
from pyrovae.place import unchecked
from pyrovae.traces import log_density, sites
from pyrovae.versions import versions

ROW = ("row",)
DRAWS = ("chain", "draw", *ROW)
ENTRIES = {1: ("column",), 3: ("channel", "height", "width")}
"""What the dimensions of x are called, where it has so many."""
FIGURES = {
    "log_weight": "log p(x, z) - log q(z | x), in nats",
    "log_p": "log p(x), in nats",
    "mcse": "Monte-Carlo standard error of log_p, in nats",
    "ess": "effective sample size of the weights",
    "khat": "Pareto k-hat of the weights; -inf where they are all equal, as with q(z|x) = p(z|x)",
    "particles": "draws of z behind log_p",
    "posterior_rhat": "largest R-hat of the entries of z in posterior",
    "posterior_ess": "effective sample size behind the draws in posterior",
    "posterior_accepted": "share of the sampler's moves that were accepted",
}
NOT_FOR_LOO = (
    "not called log_likelihood: leave-one-out by log p(x | z) with latents of the row's own fails "
    "and prefers ever more latents; compare models by pyrovae.arviz.held_out_elpd"
)


@validated
def to_arviz(
    model: Model,
    data: Any,
    *,
    draws: PositiveInt = 250,
    chains: PositiveInt = 4,
    method: Sampler | None = None,
    predictive: PositiveInt = 25,
    particles: PositiveInt | None = None,
    rows: PositiveInt | None = 100,
    columns: tuple[str, ...] | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> DataTree:
    """Draws, weights and log p(x) of rows as a tree for ArviZ; save it by its `to_netcdf`.

    It holds about rows x chains x (3 draws x entries of z + 2 predictive x entries of x) numbers.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw.
        draws: of z in each chain.
        chains: how many; they differ only where the sampler moves them.
        method: the sampler of `posterior`; unless given `resampled`, which takes any latents.
        predictive: draws of x in each chain, at most; their z are spread evenly over the draws.
        particles: for log p(x), as in `log_likelihood`.
        rows: the first rows only; all with None.
        columns: the names of the entries of x, such as `data.columns`; the model's own unless
            given.
        seed: of the draws.
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Returns:
        The groups that this file lists at its top; one-hot latents are whole numbers in them.

    Raises:
        Error: rows that the model cannot have generated; latents that the sampler cannot take;
            names that do not fit.

    Example:
        >>> from pyrovae import Mixture
        >>> tree = to_arviz(Mixture(x=(2,), components=3), torch.randn(5, 2))
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 250, 'row': 5}
    """
    everything, sampler = as_batch(data), method or Resampled()
    with evaluating(model, seed, device, dtype) as place:
        batch = checked(model, everything, place, rows)
        kept = np.linspace(0, draws - 1, min(predictive, draws)).round().astype(int)
        layout = _layout(model, batch[:1], columns, kept)
        log_p = log_likelihood(model, batch, particles=particles, seed=seed)
        found = posterior(model, batch, draws, method=sampler, chains=chains, seed=seed)
        q, log_w = weighted(model, batch, chains * draws)
        drawn = {"variational": _by_chain(q, chains), "posterior": found.z}
        drawn |= _drawn(model, batch, found.z, kept)
    x = {name: value[0, 0] for name, value in drawn.pop("observed_data").items()}
    given = {name: getattr(batch, name) for name in ("context", "labels", "offset")}
    given = {name: value.cpu() for name, value in given.items() if value is not None}
    groups = {group: layout.dataset(values) for group, values in drawn.items()} | {
        "sample_stats": _sample_stats(layout, log_w, chains, found, sampler),
        "pointwise": _pointwise(layout, log_p, str(model.tag)),
        "observed_data": layout.dataset(x, ROW),
        "constant_data": layout.dataset(given, ROW),
    }
    groups["posterior"].attrs = {
        "method": sampler.kind,
        "sampler": json.dumps(sampler.spec()),
        "chains": sampler.origin or "alike: the draws do not move",
    }
    groups["log_likelihood_given_z"].attrs = {"units": "nats", "note": NOT_FOR_LOO}
    tree = DataTree.from_dict({name: group for name, group in groups.items() if group})
    tree.attrs = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "pyrovae",
        "versions": json.dumps(versions()),
        "model": _text(model),
        "rows": f"the first {len(batch)} of {len(everything)}",
        "seed": seed,
    }
    return tree


@dataclass(frozen=True)
class _Layout:
    """How arrays become data sets: names and places along dimensions, states as numbers.

    Args:
        entries: the names of the dimensions of sites that have some of their own.
        one_hot: the latents that are one-hot vectors.
        columns: the names of the entries of a row, if they have any.
        kept: the draws of a chain that predictions are for.
    """

    entries: dict[str, tuple[str, ...]]
    one_hot: frozenset[str]
    columns: tuple[str, ...]
    kept: NDArray[np.int64]

    def dataset(self, values: dict[str, Any], leading: tuple[str, ...] = DRAWS) -> Dataset:
        """Arrays `(*leading, *event)` by site as a data set."""
        variables = {}
        for site, value in values.items():
            array, name = np.asarray(value), site.replace("/", ".")
            if site in self.one_hot:
                array = array.argmax(-1)
            event = array.ndim - len(leading)
            own = self.entries.get(site, ())
            inner = own if len(own) == event else [f"{name}_dim_{i}" for i in range(event)]
            variables[name] = ((*leading, *inner), array)
        sizes = Dataset(variables).sizes
        coords = {dim: np.arange(size) for dim, size in sizes.items()}
        if sizes.get("draw") == len(self.kept):
            coords["draw"] = self.kept
        if self.columns and "column" in sizes:
            coords["column"] = np.array(self.columns)
        return Dataset(variables, coords)


def _layout(
    model: Model, batch: Batch, columns: tuple[str, ...] | None, kept: NDArray[np.int64]
) -> _Layout:
    """The layout of a model's sites, from a run with one row."""
    names = model.names if columns is None else columns
    if columns is not None and (len(columns),) != tuple(model.event):
        raise Error(
            f"{len(columns)} names for rows of the shape {tuple(model.event)}: a vector takes one "
            "for each entry",
            "columns",
        )
    trace, event = _run(model, model.model, batch, 1), tuple(model.event)
    if taken := {name for name, _ in sites(trace)} & {*DRAWS, *sum(ENTRIES.values(), ())}:
        raise Error(f"the site '{min(taken)}' has the name of a dimension: rename it")
    data = {site["name"]: tuple(site["fn"].event_shape) for site in observed(trace)}
    entries = {name: ENTRIES.get(len(event), ()) for name in data if data[name] == event}
    hot = (name for name, site in sites(trace) if base(site["fn"].support) is one_hot)
    return _Layout(entries, frozenset(hot) - data.keys(), names, kept)


def _drawn(model: Model, batch: Batch, z: Draws, kept: NDArray[np.int64]) -> dict[str, Draws]:
    """What the model says of rows, at draws of their latents and by itself.

    Args:
        model: in evaluation mode, without gradient.
        batch: rows.
        z: draws of their latents.
        kept: the draws of a chain that x is drawn with.

    Returns:
        Arrays by group and site, rows in the third dimension; one draw of `observed_data`.
    """
    chains, draws = next(iter(z.values())).shape[:2]
    size = max(1, BLOCK // (chains * draws))
    blocks = []
    for first in range(0, len(batch), size):
        rows = slice(first, first + size)
        some = {name: value[:, :, rows].to(batch.x.device) for name, value in z.items()}
        blocks.append(_drawn_at_once(model, batch[rows], some, kept))
    return {
        group: {name: torch.cat([block[group][name] for block in blocks], 2) for name in values}
        for group, values in blocks[0].items()
    }


def _drawn_at_once(
    model: Model, batch: Batch, z: Draws, kept: NDArray[np.int64]
) -> dict[str, Draws]:
    """The same for a few rows."""
    chains, draws, rows = next(iter(z.values())).shape[:3]
    free, few = poutine.uncondition(model.model), {name: z[name][:, kept] for name in z}
    seen = _run(model, model.model, batch, chains * draws, z)
    again = _run(model, free, batch, chains * len(kept), few)
    prior = _run(model, free, batch, chains * draws)
    data = [site["name"] for site in observed(seen) if site["name"] not in z]
    log_p = {name: _log_p_given_z(seen, name, chains * draws, rows) for name in data}
    x = _by_chain(_values(prior, data, chains * draws, rows), chains)
    return {
        "log_likelihood_given_z": _by_chain(log_p, chains),
        "posterior_predictive": _by_chain(_values(again, data, chains * len(kept), rows), chains),
        "prior": _by_chain(_values(prior, list(z), chains * draws, rows), chains),
        "prior_predictive": {name: x[name][:, kept] for name in data},
        "observed_data": {name: seen.nodes[name]["value"].cpu()[None, None] for name in data},
    }


def _run(
    model: Model, program: Any, batch: Batch, particles: int, z: Draws | None = None
) -> poutine.Trace:
    """The trace of a program in a plate of particles, with latents `(chains, draws, ...)`."""
    fixed = {name: value.flatten(0, 1) for name, value in (z or {}).items()}
    with model.scope(), unchecked(), pyro.plate("particles", particles, dim=-2):
        return poutine.trace(poutine.condition(program, data=fixed)).get_trace(batch)


def _log_p_given_z(trace: poutine.Trace, name: str, particles: int, rows: int) -> Tensor:
    """The log density of an observed site, `(particles, rows)`."""
    return log_density(trace, particles, rows, lambda site: site["name"] == name)[0]


def _values(trace: poutine.Trace, names: list[str], particles: int, rows: int) -> Draws:
    """The values of sites, `(particles, rows, *event)`."""
    found = ((name, trace.nodes[name]) for name in names)
    return {
        name: site["value"].expand(particles, rows, *site["fn"].event_shape)
        for name, site in found
    }


def _by_chain(values: Draws, chains: int) -> Draws:
    """Arrays `(chains * draws, ...)` as `(chains, draws, ...)`."""
    return {name: value.unflatten(0, (chains, -1)).cpu() for name, value in values.items()}


def _sample_stats(
    layout: _Layout, log_w: Tensor, chains: int, found: Posterior, sampler: Sampler
) -> Dataset:
    """Log-weights of the draws in `variational`, and what the draws of each row are worth."""
    weights = reduce(log_w.double().cpu().numpy())
    rows = {"khat": weights["khat"], "ess": weights["ess"], "posterior_ess": found.ess}
    if sampler.origin:
        rows["posterior_rhat"] = found.rhat
    if not np.isnan(found.accepted).all():
        rows["posterior_accepted"] = found.accepted
    stats = layout.dataset(_by_chain({"log_weight": log_w.double()}, chains))
    return _explained(stats.assign(layout.dataset(rows, ROW).data_vars))


def _pointwise(layout: _Layout, log_p: LogLikelihood, measure: str) -> Dataset:
    """Log p(x) of each row, with what is known of it."""
    rows = {name: getattr(log_p, name) for name in ("mcse", "ess", "khat", "particles")}
    found = _explained(layout.dataset({"log_p": log_p.value, **rows}, ROW))
    return found.assign_attrs(kind=log_p.kind, method=log_p.method, measure=measure)


def _explained(figures: Dataset) -> Dataset:
    """Figures with their meaning, in nats where they have a unit."""
    for name in figures.data_vars:
        figures[name].attrs["long_name"] = FIGURES[str(name)]
    return figures.assign_attrs(units="nats")


def _text(model: Model) -> str:
    """The spec of a model as JSON, or its parts where no spec can name them."""
    try:
        return json.dumps(model.spec())
    except Error:
        return repr(model)
