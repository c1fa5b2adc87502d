r"""The parts of the bound: how well rows are reconstructed, and what their latents cost.

    log w = log p(x | z) - \sum_s (log q(z_s | x, z_<s) - log p(z_s | z_<s)),   z ~ q(z | x)

The means over rows of both terms are the *reconstruction* and the *KL* of each latent z_s, or of
each layer of a hierarchy. From the same draws as the bound they add up to it. A KL that goes to 0
is posterior collapse, seen while it happens.

A latent y that is summed over is not drawn from q(y | x). The sum is a bound as well, with the
best guide that there is for the draws of the other latents,

    log \sum_y w_y = \sum_y r_y (log w_y - log r_y),   r_y = w_y / \sum_y w_y,

so that means over y are with r, and the KL of y is that of r to p(y).

An entry of z is an *active unit* if the mean of q(z | x) tells rows apart, Var_i(E_q[z_j|x_i]) >
0.01 (Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
https://arxiv.org/abs/1509.00519). That is for priors of unit scale; `latent_use` looks closer.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, as_rows
from pyrovae.evaluate.use import LEAST
from pyrovae.evaluate.weights import (
    Terms,
    bounds,
    is_drawn,
    means,
    over_states,
    terms,
)
from pyrovae.models import Model
from pyrovae.place import destination
from pyrovae.ranks import ALONE, World
from pyrovae.traces import sites


def parts(model: Model, data: Any, seed: int = 0, world: World = ALONE) -> dict[str, float]:
    """The bound, which is that of `bound` to the bit, and its parts: figures by name.

    Args:
        model: a fitted model; it is as it was afterwards.
        data: rows, shape `(rows, *x)`, raw.
        seed: of the draws, one for each row.
        world: of the processes that each go through a part of the rows.

    Returns:
        `bound`, in nats per row, and, where that is no log p(x) in closed form: `reconstruction`;
        `kl.SITE` of each latent, whose sum the bound falls short of it by; and `active.SITE`, the
        number of active units. The latter is there for the first latent that the guide draws
        (those after it depend on that draw), if it is continuous and its mean is known, and if
        there are two rows.

    Example:
        >>> from pyrovae import VAE
        >>> list(parts(VAE(x=(4,), z=(2,)), torch.zeros(20, 4)))
        ['bound', 'reconstruction', 'kl.z', 'active.z']
    """
    rows = as_rows(data)
    figures: dict[str, float] = {}
    for name, mean in means(model, rows, seed, lambda some: _parts(model, some), world).items():
        if not name.startswith("active."):
            figures[name] = mean.item()
        elif len(rows) > 1 and np.isfinite(mean).all():
            first, second = mean
            spread = (second - first**2) * len(rows) / (len(rows) - 1)
            figures[name] = float((spread > LEAST).sum())
    return figures


def _parts(model: Model, rows: Batch) -> dict[str, Tensor]:
    """The parts of each row; of its units the first two powers of the mean, `(rows, 2, units)`."""
    if model.exact:
        return {"bound": bounds(model, rows)}
    batch = rows.to(*destination(model))
    model.require(batch)
    found = terms(model, batch, 1)
    q = found.q | dict(_best(found))
    r = (found.log_w - over_states(found.log_w)).exp() if len(q) > len(found.q) else None
    costs = {name: q[name] - found.p.get(name, 0.0) for name in _latents(found.guide)}
    others = [value for name, value in found.p.items() if name not in costs]
    others += [-value for name, value in found.q.items() if name not in costs]
    return {
        "bound": over_states(found.log_w)[0],
        "reconstruction": _mean(sum(others, torch.zeros(())), r, len(batch)),
        **{f"kl.{name}": _mean(cost, r, len(batch)) for name, cost in costs.items()},
        **_units(found.guide),
    }


def _latents(guide: poutine.Trace) -> list[str]:
    return [name for name, site in sites(guide) if not site["is_observed"]]


def _best(found: Terms) -> Iterator[tuple[str, Tensor]]:
    """Log r of each latent that is summed over, given those before it."""
    for name, site in sites(found.guide):
        if not is_drawn(site):
            dim = site["infer"]["_enumerate_dim"]
            yield name, _over(found.log_w, dim) - _over(found.log_w, dim + 1)


def _over(log_w: Tensor, dim: int) -> Tensor:
    """The logarithm of the sum over all states to the left of a dimension, which all stay."""
    left = tuple(range(-log_w.dim(), dim))
    return log_w.logsumexp(left, keepdim=True) if left else log_w


def _mean(term: Tensor, r: Tensor | None, rows: int) -> Tensor:
    """The mean of a term over the states, `(rows,)`; a state without weight has no part in it."""
    if r is not None:
        term = torch.where(r == 0, 0.0, r * term)
    return term.expand(torch.broadcast_shapes(term.shape, (1, 1, rows))).flatten(0, -2).sum(0)


def _units(guide: poutine.Trace) -> dict[str, Tensor]:
    """The mean of the first latent that is drawn, and its square, if there is one."""
    log_q = torch.zeros(())
    for name, site in sites(guide):
        fn = site["fn"]
        if not is_drawn(site):
            log_q = log_q + fn.log_prob(site["value"])
            continue
        if site["is_observed"] or fn.support.is_discrete:
            break
        try:
            mean = fn.mean.reshape(*fn.batch_shape, -1).double()
        except NotImplementedError:
            break
        mean = (log_q.exp()[..., None] * mean).flatten(0, -3).sum(0)
        return {f"active.{name}": torch.stack([mean, mean**2], 1)}
    return {}
