r"""Hamiltonian moves of many chains on many rows at once, along a path of densities.

The path leads from a density p_0 of the coordinates u that can be drawn from to the joint density,

    log f_b(u) = log p_0(u) + b [log p(x, u) - log p_0(u)],      0 <= b <= 1,

so that f_1 is proportional to the posterior. A move gives u a velocity v ~ N(0, I), follows

    du/dt = s v,     dv/dt = s d log f_b(u) / du

for L leapfrog steps of the length e, and accepts the end with the probability
min(1, exp(-change of H)), H = -log f_b(u) + v'v / 2 (MCMC Using Hamiltonian Dynamics, Neal, 2011,
https://arxiv.org/abs/1206.1901). s, of the size of the spread of u, and e are each row's own, and
are found before anything is drawn with them: see `annealing` and `samplers`.

Chains are the first dimension, rows the second: u is `(chains, rows, J)`, densities
`(chains, rows)`. e is jittered by a fifth, and adaptation keeps L e below pi / 2, a quarter of the
period of a normal density in units of s, whose end owes nothing to where it began.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.recorded import Recorded
from pyrovae.graphs import How

TARGET = 0.8
"""The share of moves that adaptation aims to have accepted."""
QUARTER = 0.5 * math.pi
"""The longest trajectory, in units of the spread of u."""


@dataclass(frozen=True, eq=False)
class Point:
    """A place on the path, with what both ends of the path say of it.

    Args:
        u: coordinates, `(chains, rows, J)`.
        start: log p_0(u), `(chains, rows)`.
        change: log p(x, u) - log p_0(u), `(chains, rows)`.
        start_slope: the gradient of `start`, `(chains, rows, J)`.
        change_slope: the gradient of `change`, `(chains, rows, J)`.
    """

    u: Tensor
    start: Tensor
    change: Tensor
    start_slope: Tensor
    change_slope: Tensor

    def log_f(self, b: Tensor) -> Tensor:
        """Log f_b(u), `(chains, rows)`."""
        return self.start + b * self.change

    def slope(self, b: Tensor) -> Tensor:
        """Its gradient, `(chains, rows, J)`."""
        return self.start_slope + b[..., None] * self.change_slope

    def where(self, chosen: Tensor, other: "Point") -> "Point":
        """This point where `chosen`, `(chains, rows)`, the other one elsewhere."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Point(
            *(
                torch.where(chosen.view(*chosen.shape, *[1] * (a.dim() - 2)), a, c)
                for a, c in pairs
            )
        )


Path = Callable[[Tensor], Point]
"""From coordinates to a point."""


def from_prior(at: Coordinates, how: How = "auto") -> Path:
    """The path from the prior, p_0 = p(u), to the joint density."""
    return _path(at, at.log_joint, how)


def from_guide(at: Coordinates, how: How = "auto") -> Path:
    """The path from the guide, p_0 = q(u | x), to the joint density."""

    def densities(u: Tensor) -> tuple[Tensor, Tensor]:
        log_q = at.log_guide(u)
        return log_q, at.log_f(u) - log_q

    return _path(at, densities, how)


def _path(at: Coordinates, densities: Callable[[Tensor], tuple[Tensor, Tensor]], how: How) -> Path:
    """The path of log p_0 and its change, whose operations are recorded."""
    values = Recorded(partial(_with_slopes, densities), at.model, how)
    return lambda u: Point(u.detach(), *values(u))


def _with_slopes(
    densities: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor
) -> tuple[Tensor, ...]:
    """The densities at u and their gradients; what is not a number has the density 0."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = densities(u)
        slopes = [
            torch.autograd.grad(value.sum(), u, retain_graph=True)[0]
            if value.requires_grad
            else torch.zeros_like(u)
            for value in values
        ]
    logs = (torch.where(value.isnan(), -torch.inf, value.detach()) for value in values)
    return *logs, *(slope.nan_to_num(0, 0, 0) for slope in slopes)


def move(
    path: Path, here: Point, b: Tensor, step: Tensor, scale: Tensor, leapfrogs: int
) -> tuple[Point, Tensor]:
    """One Hamiltonian move of every chain, and the probability that it was accepted.

    Args:
        path: of the densities.
        here: where the chains are.
        b: the place on the path, `(rows,)`.
        step: the length of a leapfrog step, `(rows,)`, at most `QUARTER / leapfrogs`.
        scale: s, `(rows, J)`.
        leapfrogs: steps, L.
    """
    v = torch.randn_like(here.u)
    jitter = 0.8 + 0.4 * torch.rand_like(here.start)
    e = (step * jitter)[..., None] * scale
    there, w = here, v
    for _ in range(leapfrogs):
        w = w + 0.5 * e * there.slope(b)
        there = path(there.u + e * w)
        w = w + 0.5 * e * there.slope(b)
    gain = there.log_f(b) - here.log_f(b) + 0.5 * (v.square() - w.square()).sum(-1)
    chance = torch.where(gain.isnan(), -torch.inf, gain).clamp(max=0).exp()
    return there.where(torch.rand_like(chance) < chance, here), chance
