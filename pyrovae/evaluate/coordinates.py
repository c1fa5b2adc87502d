r"""The latents of each row as points of R^J, where they can be moved.

A latent on an interval, of positive numbers or on a simplex is z = T(u) with u unconstrained, and
densities follow by the change of variables,

    log p(x, u) = log p(x, T(u)) + log |det dT/du|,        the same for log q(u | x).

All latent sites of a row, in the order of the model, stand side by side in one vector u of J
entries. Everything that moves latents, annealing and Hamiltonian Monte Carlo, works with such
vectors: arrays `(particles, rows, J)` whose densities are `(particles, rows)`.
"""

from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyrovae.batch import Batch
from pyrovae.distributions.supports import base
from pyrovae.errors import Error
from pyrovae.evaluate.weights import paired_traces
from pyrovae.models import Model
from pyrovae.place import unchecked
from pyrovae.traces import log_density, refuse_global, sites

INSTEAD = "method = 'iwae' for log p(x), 'resampled' for draws"


class Coordinates:
    """The unconstrained latents u of the rows of a batch, and the densities of model and guide.

    Args:
        model: with continuous latents.
        batch: rows.
        purpose: what needs them, for the error message.

    Raises:
        Error: a discrete latent, one on a space without coordinates such as a sphere, none at
            all, or one that is not local.
    """

    def __init__(self, model: Model, batch: Batch, purpose: str = "moving latents") -> None:
        self.model, self.batch = model, batch
        guide, joint = paired_traces(model, batch, nullcontext())
        refuse_global(joint, len(batch))
        self.maps: dict[str, Any] = {}
        self.events: dict[str, torch.Size] = {}
        for name, site in sites(joint):
            if name in guide:
                self.maps[name] = _map(name, site["fn"], purpose)
                self.events[name] = self.maps[name].inverse_shape(site["fn"].event_shape)
        if not self.maps:
            raise Error(f"the model '{model.kind}' has no latents: {purpose} is of no use")
        self.sizes = [event.numel() for event in self.events.values()]

    def z(self, u: Tensor) -> dict[str, Tensor]:
        """The latents by site, `(particles, rows, *event)`, at u."""
        parts = zip(self.events.items(), u.split(self.sizes, -1), strict=True)
        return {
            name: self.maps[name](part.reshape(*u.shape[:-1], *event))
            for (name, event), part in parts
        }

    def u(self, z: dict[str, Tensor]) -> Tensor:
        """The coordinates `(particles, rows, J)` of latents by site."""
        flat = (self.maps[name].inv(z[name]).flatten(2) for name in self.events)
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in flat], -1)

    def log_joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(u) and log p(x | u), each `(particles, rows)`, with gradient."""
        z = self.z(u)
        trace = self._run(poutine.condition(self.model.model, data=z), len(u))
        latent = self._density(trace, u, inside=True) + self._log_det(u, z)
        return latent, self._density(trace, u, inside=False)

    def log_f(self, u: Tensor) -> Tensor:
        """Log p(x, u), `(particles, rows)`, with gradient."""
        log_p, log_p_x = self.log_joint(u)
        return log_p + log_p_x

    def log_guide(self, u: Tensor) -> Tensor:
        """Log q(u | x), `(particles, rows)`, with gradient."""
        z = self.z(u)
        trace = self._run(poutine.condition(self.model.guide, data=z), len(u))
        return self._density(trace, u, inside=True) + self._log_det(u, z)

    def from_guide(self, particles: int) -> Tensor:
        """Draws u ~ q(u | x), `(particles, rows, J)`."""
        return self.u(self._values(self._run(self.model.guide, particles), particles))

    def from_prior(self, particles: int) -> Tensor:
        """Draws u ~ p(u), `(particles, rows, J)`."""
        trace = self._run(poutine.uncondition(self.model.model), particles)
        return self.u(self._values(trace, particles))

    def _run(self, program: Any, particles: int) -> poutine.Trace:
        plate = pyro.plate("particles", particles, dim=-2)
        with self.model.scope(), unchecked(), plate:
            return poutine.trace(program).get_trace(self.batch)

    def _values(self, trace: poutine.Trace, particles: int) -> dict[str, Tensor]:
        values = ((name, trace.nodes[name]) for name in self.events)
        return {
            name: site["value"].expand(particles, len(self.batch), *site["fn"].event_shape)
            for name, site in values
        }

    def _density(self, trace: poutine.Trace, u: Tensor, inside: bool) -> Tensor:
        def of(site: Any) -> bool:
            return (site["name"] in self.events) == inside

        return log_density(trace, len(u), len(self.batch), of)[0]

    def _log_det(self, u: Tensor, z: dict[str, Tensor]) -> Tensor:
        """Log |det dT/du|, summed over sites."""
        total = u.new_zeros(u.shape[:-1])
        parts = zip(self.events.items(), u.split(self.sizes, -1), strict=True)
        for (name, event), part in parts:
            inner = part.reshape(*u.shape[:-1], *event)
            entries = self.maps[name].log_abs_det_jacobian(inner, z[name])
            total = total + entries.reshape(*u.shape[:-1], -1).sum(-1)
        return total


def _map(name: str, p: Any, purpose: str) -> Any:
    """The bijection T from R^n to the support of a latent."""
    support = base(p.support)
    if support.is_discrete:
        raise Error(
            f"the latent '{name}' is discrete, and {purpose} needs continuous ones: use {INSTEAD}"
        )
    plain = support
    if isinstance(support, constraints.interval):
        plain = constraints.interval(support.lower_bound, support.upper_bound)
    try:
        return biject_to(plain)
    except NotImplementedError:
        raise Error(
            f"the latent '{name}' is on a space without coordinates, such as a circle or sphere, "
            f"and {purpose} needs some: use {INSTEAD}"
        ) from None
