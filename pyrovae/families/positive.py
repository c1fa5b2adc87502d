r"""Families over positive numbers: durations, amounts, concentrations, intensities.

    log-normal   log p(x | h) = \sum_i log N(log x_i; mu_i, sigma_i^2) - log x_i
    gamma        log p(x | h) = \sum_i k_i (log x_i/m_i - x_i/m_i) - log x_i + k_i log k_i - ...

Both have errors in proportion to what is measured: sigma for the one, 1 / sqrt(k) for the other is
the relative error. Of the same mean and variance the log-normal has the heavier tail, and the
gamma more mass near 0. An encoder sees log x.
"""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.families.continuous import at_floor, at_moments, inverse_scale, moments
from pyrovae.families.family import Family
from pyrovae.families.mixing import concentration
from pyrovae.transforms import spread


class LogNormal(Family):
    """A normal on the scale of the logarithm, log x ~ N(mu(h), diag sigma(h)^2).

    Args:
        floor: the smallest standard deviation of log x, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    support: ClassVar[Constraint] = constraints.positive
    inside: ClassVar[float] = 1.0
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw = h.unbind(-1 - len(self.event))
        return dist.LogNormal(loc, self.smallest + softplus(raw)).to_event(len(self.event))

    def encode(self, x: Tensor) -> Tensor:
        return x.log()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x.log()))
        self.center.copy_(x.log().mean(0))

    def statistics(self, x: Tensor) -> Tensor:
        return moments(x.log(), self.center, self.smallest / self.floor)

    def maximize(self, statistics: Tensor) -> Tensor:
        unit = self.smallest / self.floor
        return at_moments(statistics, self.center, unit, self.floor)


class Gamma(Family):
    r"""A gamma distribution with mean m = e^h and concentration k from the network.

    The network gives the *dispersion* 1 / k = (standard deviation / mean)^2.

    Args:
        floor: the smallest standard deviation relative to the mean, as a fraction of the standard
            deviation of the data's logarithm.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    support: ClassVar[Constraint] = constraints.positive
    inside: ClassVar[float] = 1.0
    at_floor = at_floor
    smooth: ClassVar[bool] = False

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor**2))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        log_mean, raw = h.unbind(-1 - len(self.event))
        k = 1 / (self.smallest + softplus(raw))
        return distributions.Gamma(log_mean, k).to_event(len(self.event))

    def encode(self, x: Tensor) -> Tensor:
        return x.log()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_((self.floor * spread(x.log())).square())
        self.center.copy_(x.log().mean(0))

    def statistics(self, x: Tensor) -> Tensor:
        log_ratio = (x.log() - self.center).flatten(1)
        return torch.cat([log_ratio, log_ratio.expm1()], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        dims = -1 - len(self.event)
        mean_log, excess = statistics.unflatten(-1, (2, *self.event)).unbind(dims)
        log_mean = excess.log1p()
        raw = inverse_scale(1 / concentration(log_mean - mean_log), self.smallest)
        return torch.stack([self.center + log_mean, raw], dims)
