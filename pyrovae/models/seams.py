"""Where the parts of a model meet: what an encoder sees, and what cannot be put together.

An encoder sees x as the likelihood encodes it, with a mask beside it where entries can be missing.
What a row is conditioned on is put beside it in the same way: beside an image as further channels.
"""

from collections.abc import Callable, Sequence
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
from pyrovae.priors import Guide, Prior

Map = tuple[str, Network, tuple[int, ...], tuple[int, ...]]
"""A network's name, itself, and the shapes that it maps between."""


def assemble(whole: Part, **shapes: tuple[Any, ...]) -> None:
    """Set the named parts up, each with its shapes; an error names the part."""
    for name, given in shapes.items():
        under(name, partial(getattr(whole, name).setup, *given))


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


def refuse_networks(maps: Sequence[Map]) -> None:
    """Refuse a network that does not give the shape that it was told."""
    for name, network, source, target in maps:
        try:
            shape = tuple(network(torch.zeros(2, *source)).shape)
        except Error as error:
            raise error.under(name) from None
        except Exception as failure:
            why = f"cannot take rows of the shape {tuple(source)}: {brief(failure)}"
            raise Error(why, name) from failure
        if shape != (2, *target):
            raise Error(f"gives {shape[1:]} for {tuple(source)}, not {tuple(target)}", name)


def refuse_likelihood(likelihood: Family, missing: bool) -> None:
    """Refuse a likelihood that is no distribution over x, or cannot skip entries and has to."""
    under("likelihood", lambda: likelihood.refuse_misfit(likelihood.event))
    if missing:
        p = likelihood(torch.zeros(1, *likelihood.params))
        under("likelihood", lambda: likelihood.present(p))


def few_states(posterior: Family) -> bool:
    """Whether the states of a discrete guide are few enough to sum over."""
    return posterior.states is not None and posterior.states <= STATES


def summed(enumerates: bool) -> dict[str, str]:
    """What tells Pyro to sum over the values of a site."""
    return {"enumerate": "parallel"} if enumerates else {}


def refuse_latent(
    prior: Prior, posterior: Family, q: Guide, z: tuple[int, ...], context: Tensor | None = None
) -> None:
    """Refuse a prior and a guide that are no distributions over z, or over different supports."""
    under("prior", lambda: refuse_misfit(prior(q, context), z))
    under("posterior", lambda: posterior.refuse_misfit(z))
    if not _can_guide(posterior):
        raise Error(
            f"{posterior.kind} has no reparameterised samples: use {_partners(prior.support, z)}",
            "posterior",
        )
    if prior.support is not None and type(prior.support) is not type(posterior.support):
        raise Error(
            f"{posterior.kind} is over {posterior.takes} and {prior.kind} is not: "
            f"use {_partners(prior.support, z)}",
            "posterior",
        )


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
