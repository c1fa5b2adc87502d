r"""Families over the unit interval: proportions, probabilities, intensities of pixels.

    continuous Bernoulli   log p(x | h) = \sum_i eta_i (x_i - 1/2) - L(eta_i / 2)
    beta                   log p(x | h) = \sum_i (a_i - 1) log x_i + (b_i - 1) log(1 - x_i) - ...
    logit-normal           log p(x | h) = \sum_i log N(l_i; mu_i, sigma_i^2) - log x_i (1 - x_i),
                           l = logit x

At 0 and 1 themselves a beta density is infinite or zero and a logit-normal one is zero, so these
two refuse them. The continuous Bernoulli has a density of at most 1 + |eta| there and takes them:
images scaled to [0, 1] have black pixels. A column that is always 0 would still send it to
infinity, so |eta| has a limit, as every scale has a floor.
"""

from typing import Annotated, ClassVar

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import SigmoidTransform
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.batch import Batch
from pyrovae.distributions import TiltedUniform, open_unit_interval
from pyrovae.distributions.tilted import tilt
from pyrovae.families.continuous import at_floor, at_moments, inverse_scale, moments
from pyrovae.families.family import Family
from pyrovae.transforms import spread


class ContinuousBernoulli(Family):
    """Independent numbers from 0 to 1, p(x) = C(eta) e^{eta x} with eta = h / (1 + floor |h|).

    The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem &
    Cunningham, 2019, https://arxiv.org/abs/1907.06845).

    Args:
        floor: the smallest standard deviation, which entries close to 0 or to 1 have: about
            1 / |eta|.
    """

    floor: Annotated[float, Field(gt=0, lt=0.1)] = 1e-3
    support: ClassVar[Constraint] = constraints.unit_interval

    def forward(self, h: Tensor) -> dist.Distribution:
        return TiltedUniform(h / (1 + self.floor * h.abs())).to_event(len(self.event))

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        eta = tilt(statistics.clamp(self.floor, 1 - self.floor))
        eta = eta.clamp(-0.9 / self.floor, 0.9 / self.floor)
        return (eta / (1 - self.floor * eta.abs())).unflatten(-1, self.params)


class Beta(Family):
    """A beta distribution with mean m = 1 / (1 + e^-h) and concentration c from the network.

    The usual parameters are a = c m and b = c (1 - m). The network gives the *dispersion* 1 / c,
    about variance / (m (1 - m)).

    Args:
        floor: the smallest standard deviation, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    support: ClassVar[Constraint] = open_unit_interval
    inside: ClassVar[float] = 0.5
    at_floor = at_floor
    smooth: ClassVar[bool] = False

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor**2))

    def forward(self, h: Tensor) -> dist.Distribution:
        logits, raw = h.unbind(-1 - len(self.event))
        c = 1 / (self.smallest + softplus(raw))
        return distributions.Beta(logits, c).to_event(len(self.event))

    def encode(self, x: Tensor) -> Tensor:
        return x.logit()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        widest = (x.mean(0) * (1 - x.mean(0))).sqrt()
        self.smallest.copy_((self.floor * spread(x / widest)).square())

    def marginal(self, batch: Batch) -> Tensor:
        """By moments: variance = m (1 - m) / (1 + c)."""
        mean, variance = batch.x.mean(0), batch.x.var(0, correction=0)
        rest = (mean * (1 - mean) - variance).clamp(min=1e-3 * variance)
        dispersion = variance / rest.clamp(min=torch.finfo(rest.dtype).tiny)
        return torch.stack([mean.logit(), inverse_scale(dispersion, self.smallest)])


class LogitNormal(Family):
    """A normal on the scale of the log-odds, logit x ~ N(mu(h), diag sigma(h)^2).

    Args:
        floor: the smallest standard deviation of logit x, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    support: ClassVar[Constraint] = open_unit_interval
    inside: ClassVar[float] = 0.5
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw = h.unbind(-1 - len(self.event))
        normal = dist.Normal(loc, self.smallest + softplus(raw))
        p = dist.TransformedDistribution(normal, [SigmoidTransform()])
        return p.to_event(len(self.event))

    def encode(self, x: Tensor) -> Tensor:
        return x.logit()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x.logit()))
        self.center.copy_(x.logit().mean(0))

    def statistics(self, x: Tensor) -> Tensor:
        return moments(x.logit(), self.center, self.smallest / self.floor)

    def maximize(self, statistics: Tensor) -> Tensor:
        unit = self.smallest / self.floor
        return at_moments(statistics, self.center, unit, self.floor)
