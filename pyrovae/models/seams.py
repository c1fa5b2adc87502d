"""Where the parts of a model meet: what an encoder sees, and what cannot be put together.

An encoder sees x as the likelihood encodes it, with a mask beside it where entries can be missing.
What a row is conditioned on is put beside it in the same way: beside an image as further channels.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import STATES
from pyrovae.errors import Error, brief
from pyrovae.families import Family, Normal
from pyrovae.families.family import refuse_misfit
from pyrovae.networks import Network
from pyrovae.part import Part
from pyrovae.place import in_mode, seeded
from pyrovae.priors import Guide, Prior


def assemble(whole: Part, **shapes: tuple[Any, ...]) -> None:
    """Set the named parts up, each with its shapes, and try the networks; an error names the part.

    Raises:
        Error: shapes that a part does not take, a network that does not give what it was told.
    """
    for name, given in shapes.items():
        part = getattr(whole, name)
        under(name, partial(part.setup, *given))
        if isinstance(part, Network):
            under(name, partial(_refuse_network, part, *given))


def seen_shape(likelihood: Family, missing: bool) -> Size:
    """The shape of what an encoder sees of a row."""
    return likelihood.seen_missing if missing else likelihood.seen


def see(likelihood: Family, x: Tensor, missing: bool) -> Tensor:
    """What an encoder sees of rows `(..., *event)`."""
    return likelihood.encode_missing(x) if missing else likelihood.encode(x)


def beside(shape: tuple[int, ...], context: tuple[int, ...]) -> Size:
    """The shape of an event with a context beside it."""
    if len(shape) == 1:
        return Size((shape[0] + prod(context),))
    if len(shape) == 3:
        channels = context[0] if context[1:] == shape[1:] else prod(context)
        return Size((shape[0] + channels, *shape[1:]))
    return Size((prod(shape) + prod(context),))


def join(a: Tensor, c: Tensor, shape: tuple[int, ...], context: tuple[int, ...]) -> Tensor:
    """Events `(..., *shape)` with their contexts `(..., *context)` beside them."""
    image = len(shape) == 3
    if image and context[1:] != shape[1:]:
        c = c.flatten(-len(context))[..., None, None].expand(
            *c.shape[: -len(context)], -1, *shape[1:]
        )
    elif not image:
        a, c = a.flatten(-len(shape)), c.flatten(-len(context))
    dim = -3 if image else -1
    leading = torch.broadcast_shapes(a.shape[: a.dim() - abs(dim)], c.shape[: c.dim() - abs(dim)])
    return torch.cat([t.expand(*leading, *t.shape[dim:]) for t in (a, c)], dim)


@torch.no_grad()
def begin(likelihood: Family, decoder: Network, batch: Batch, marginal: bool) -> None:
    """Start the likelihood at the data, complete, and the decoder at their marginal."""
    likelihood.start(batch.x)
    h = likelihood.marginal(batch) if marginal else None
    if h is not None:
        decoder.start(h)


@torch.no_grad()
def _refuse_network(network: Network, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Refuse a network that does not give the shape that it was told."""
    try:
        with seeded(0), in_mode(network, False):
            shape = tuple(network(torch.zeros(2, *source)).shape)
    except Error:
        raise
    except Exception as failure:
        why = f"cannot take rows of the shape {tuple(source)}: {brief(failure)}"
        raise Error(why) from failure
    if shape != (2, *target):
        raise Error(f"gives {shape[1:]} for {tuple(source)}, not {tuple(target)}")


@torch.no_grad()
def refuse_misfits(model: Any, context: Tensor | None = None) -> None:
    """Run likelihood, prior and guide of a VAE once, and refuse what cannot be put together.

    Args:
        model: with the fields of `VAE`, all of them set up, and the guide's function `q`.
        context: two rows of zeros, `(2, *context)`, for a prior that makes use of one.
    """
    with seeded(0), in_mode(model, False):
        under("likelihood", partial(_refuse_likelihood, model.likelihood, model.missing))
        under("prior", lambda: refuse_misfit(model.prior(Guide(model.q), context), model.z))
        under("posterior", partial(_refuse_guide, model.prior, model.posterior, model.z))


def _refuse_likelihood(likelihood: Family, missing: bool) -> None:
    """Refuse a likelihood that is no distribution over x, or cannot skip entries and has to."""
    likelihood.refuse_misfit(likelihood.event)
    if missing:
        likelihood.present(likelihood(torch.zeros(1, *likelihood.params)))


def _refuse_guide(prior: Prior, posterior: Family, z: tuple[int, ...]) -> None:
    """Refuse a guide that is no distribution over z, or over other values than the prior."""
    posterior.refuse_misfit(z)
    if not _can_guide(posterior):
        partners = _partners(prior.support, z)
        raise Error(f"{posterior.kind} has no reparameterised samples: use {partners}")
    if prior.support is not None and type(prior.support) is not type(posterior.support):
        raise Error(
            f"{posterior.kind} is over {posterior.takes} and {prior.kind} is not: "
            f"use {_partners(prior.support, z)}"
        )


def few_states(posterior: Family) -> bool:
    """Whether the states of a discrete guide are few enough to sum over."""
    return posterior.states is not None and posterior.states <= STATES


def summed(enumerates: bool) -> dict[str, str]:
    """What tells Pyro to sum over the values of a site."""
    return {"enumerate": "parallel"} if enumerates else {}


def _partners(support: Constraint | None, z: tuple[int, ...]) -> str:
    """The guides over a support, by name, the usual one first."""
    found = [kind for kind in sorted(Family.members) if _guides(kind, support, z)]
    found.sort(key=lambda kind: kind != Normal.kind)
    return " or ".join(found[:4]) if found else "another prior"


def _guides(kind: str, support: Constraint | None, z: tuple[int, ...]) -> bool:
    """Whether a family can be the guide of a prior with this support."""
    family: Any = next(iter(Family.members[kind].examples()))
    if support is not None and type(family.support) is not type(support):
        return False
    try:
        family.setup(z)
        return _can_guide(family)
    except Error:
        return False


def _can_guide(family: Family) -> bool:
    """Whether draws have a gradient, or are few enough to be summed over."""
    return few_states(family) or bool(family(torch.zeros(1, *family.params)).has_rsample)


def under(name: str, check: Callable[[], None]) -> None:
    """A check of one part, with the part's name in the error."""
    try:
        check()
    except Error as error:
        raise error.under(name) from None
