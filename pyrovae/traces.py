r"""Traces: what the densities of a run of model and guide say of each row.

A trace holds, for each sample site, a distribution and a value. Where all of them live in a plate
of the rows at dimension -1, and particles in one at dimension -2, sums over sites have a meaning
for each row,

    log p(x, z) = \sum_{sites of the model} log p(value | parents),

of shape `(particles, rows)`, and with states that are summed over in front, `(states, particles,
rows)`. A site outside the plate belongs to all rows at once: then no row has a density of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.errors import Error


def of_guide(
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    plate: AbstractContextManager[Any],
    drawing: AbstractContextManager[Any] | None = None,
) -> poutine.Trace:
    """The guide's run inside a plate.

    Args:
        guide: a Pyro program.
        args: of the program.
        kwargs: of the program.
        plate: of the particles.
        drawing: a handler around the guide.
    """
    with plate, drawing or nullcontext():
        return poutine.trace(guide).get_trace(*args, **kwargs)


def of_model(
    model: Callable[..., Any],
    drawn: poutine.Trace,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    plate: AbstractContextManager[Any],
) -> poutine.Trace:
    """The model's run on the latents of a run of the guide.

    Raises:
        Error: a latent that one of them lacks.
    """
    with plate:
        joint = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    if different := latents(drawn) ^ latents(joint):
        raise Error(
            f"the latents of model and guide differ ({', '.join(sorted(different))}): "
            "log p(x) needs each in both"
        )
    return joint


def latents(trace: poutine.Trace) -> set[str]:
    """The names of the sites that are drawn, without those that a guide alone has use for."""
    return {
        name
        for name, site in sites(trace)
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


def sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace by name, without those of subsampling and deterministic ones."""
    return (
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    )


def outside(trace: poutine.Trace, rows: int) -> str | None:
    """The first site that is not in the plate of the rows, if any."""
    for name, site in sites(trace):
        if all((frame.dim, frame.size) != (-1, rows) for frame in site["cond_indep_stack"]):
            return name
    return None


def refuse_global(trace: poutine.Trace, rows: int) -> None:
    """Refuse a trace with a site that is not in the plate of the rows."""
    if name := outside(trace, rows):
        raise Error(
            f"the site '{name}' is not in a plate of the rows at dimension -1: "
            "only local latents have a log-weight per row"
        )


def log_density(
    trace: poutine.Trace,
    particles: int,
    rows: int,
    of: Callable[[Any], bool] = lambda _: True,
    scaled: bool = False,
) -> Tensor:
    """The sum of the log densities of the sites of a trace, or of some of them.

    Its shape is `(states, particles, rows)`, with one state where nothing is enumerated.

    Args:
        trace: of a model or a guide, every site in the plate of the rows.
        particles: in the plate at dimension -2.
        rows: in the plate at dimension -1.
        of: whether a site takes part.
        scaled: whether with the weights that handlers give to sites, such as `beta`.
    """
    refuse_global(trace, rows)
    total = torch.zeros(())
    for _, site in sites(trace):
        if of(site):
            entry = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            scale = site["scale"] if scaled else 1.0
            total = total + scale_and_mask(entry, scale, site["mask"])
    return total.expand(torch.broadcast_shapes(total.shape, (1, particles, rows)))
