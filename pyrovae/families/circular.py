r"""Families over angles: directions, phases, times of day.

The von Mises distribution is the normal distribution of the circle,

    log p(x | h) = \sum_i k_i cos(x_i - m_i) - log 2 pi I_0(k_i),

where I_0 is a Bessel function. Angles jump from pi to -pi, and neither a network's input nor its
output should: an encoder sees (cos x, sin x), and the mean direction m is that of a point (a, b)
in the plane.
"""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat
from torch import Size, Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.distributions import angle
from pyrovae.families.continuous import at_floor, inverse_scale
from pyrovae.families.family import Family
from pyrovae.transforms import spread


class VonMises(Family):
    """Independent angles, exp(k cos(x - m)) / (2 pi I_0(k)), with the direction m and k from h.

    The network gives a point (a, b) in the direction m, and the *dispersion* 1 / k, which for
    small ones is the variance.

    Args:
        floor: the smallest standard deviation, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 3
    support: ClassVar[Constraint] = angle
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor**2))

    def forward(self, h: Tensor) -> dist.Distribution:
        a, b, raw = h.unbind(-1 - len(self.event))
        k = 1 / (self.smallest + softplus(raw))
        return distributions.VonMises(torch.atan2(b, a), k).to_event(len(self.event))

    @property
    def freedom(self) -> int:
        return 2 * self.event.numel()

    @property
    def seen(self) -> Size:
        return Size((2 * self.event[0], *self.event[1:]))

    def encode(self, x: Tensor) -> Tensor:
        """The points on the circle: the cosines, then the sines."""
        return torch.cat([x.cos(), x.sin()], -len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        sd = spread(torch.stack([x.cos(), x.sin()], 1)).norm(dim=0)
        self.smallest.copy_((self.floor * sd).square())

    def statistics(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], 1).flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        dims = -1 - len(self.event)
        a, b = statistics.unflatten(-1, (2, *self.event)).unbind(dims)
        m = torch.atan2(b, a)
        dispersion = 1 / _concentration(torch.hypot(a, b))
        return torch.stack([m.cos(), m.sin(), inverse_scale(dispersion, self.smallest)], dims)


def _concentration(length: Tensor) -> Tensor:
    """The k with I_1(k) / I_0(k) = length, the length of the mean of (cos x, sin x).

    By Newton's method, from the approximation in Clustering on the Unit Hypersphere using von
    Mises-Fisher Distributions (Banerjee, Dhillon, Ghosh & Sra, 2005).
    """
    r = length.double().clamp(1e-6, 1 - 1e-12)
    k = r * (2 - r.square()) / (1 - r.square())
    for _ in range(5):
        a = torch.special.i1e(k) / torch.special.i0e(k)
        k = k - (a - r) / (1 - a.square() - a / k)
    return k.to(length)
