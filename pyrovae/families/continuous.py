r"""Families over the real numbers.

With a location mu, a scale sigma and y_i = (x_i - mu_i) / sigma_i,

    normal        log p(x | h) = -1/2 \sum_i y_i^2 - D/2 log 2 pi - \sum_i log sigma_i
    Laplace       log p(x | h) = -\sum_i |y_i| - \sum_i log 2 sigma_i
    Student's t   log p(x | h) = -\sum_i (nu_i + 1)/2 log(1 + y_i^2 / nu_i) - ...

An entry that is far off costs the square of its distance, the distance, or its logarithm: the
further down, the less an outlier moves the fit.

A likelihood whose scale is free has no maximum: a component that shrinks onto one data point sends
it to infinity (Leveraging the Exact Likelihood of Deep Latent Variable Models, Mattei & Frellsen,
2018, https://arxiv.org/abs/1802.04826). So every learned scale has a floor, a fraction of the
data's standard deviation in that column once the family has seen data, and absolute before.
"""

import math
from math import prod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat
from torch import Size, Tensor, nn
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.families.expectation import Prepared
from pyrovae.families.family import Family
from pyrovae.families.mixing import concentration, gap, shared
from pyrovae.transforms import spread

HALF_LOG = 0.5 * math.log(2 * math.pi)


def inverse_softplus(y: Tensor) -> Tensor:
    """The a with log(1 + exp(a)) = y, for y > 0."""
    return y + (-(-y).expm1()).log()


def inverse_scale(scale: Tensor, smallest: Tensor) -> Tensor:
    """The a with smallest + softplus(a) = scale, or a scale just above the smallest."""
    return inverse_softplus((scale - smallest).clamp(min=1e-6 * smallest))


def moments(x: Tensor, center: Tensor, unit: Tensor) -> Tensor:
    """The statistics of normals, y and y^2, shape `(rows, 2 D)`, y = (x - center) / unit."""
    t = x.new_empty(len(x), 2, *center.shape)
    y = torch.sub(x, center, out=t[:, 0]).div_(unit)
    torch.mul(y, y, out=t[:, 1])
    return t.flatten(1)


def at_moments(statistics: Tensor, center: Tensor, unit: Tensor, floor: float) -> Tensor:
    """The locations and raw scales, `(..., 2, *event)`, of normals with these moments."""
    dims = -1 - center.dim()
    shift, square = statistics.unflatten(-1, (2, *center.shape)).unbind(dims)
    scale = unit * (square - shift.square()).clamp(min=0).sqrt()
    return torch.stack([center + unit * shift, inverse_scale(scale, floor * unit)], dims)


def at_floor(family: Any, h: Tensor) -> Tensor:
    """Which components have a scale at its floor, smallest + softplus(the last plane of h)."""
    dims = len(family.event)
    low: Tensor = softplus(h.unbind(-1 - dims)[-1]) <= 1e-3 * family.smallest
    return low.flatten(-dims).any(-1)


class FixedNormal(Family):
    """A normal whose standard deviation is given, N(x; h, scale^2 I): least squares.

    Args:
        scale: the standard deviation, in the units of x.
    """

    scale: PositiveFloat = 1.0

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Normal(h, h.new_tensor(self.scale)).to_event(len(self.event))

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        return statistics.unflatten(-1, self.params)


class SharedNormal(Family):
    """A normal with one learned standard deviation per dimension, N(x; h, diag sigma^2).

    Args:
        floor: the smallest standard deviation, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.raw_scale = nn.Parameter(torch.zeros(self.event))
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Normal(h, self.smallest + softplus(self.raw_scale)).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x))
        self.raw_scale.copy_(inverse_softplus(spread(x)))
        self.center.copy_(x.mean(0))

    def statistics(self, x: Tensor) -> Tensor:
        return moments(x, self.center, self.smallest / self.floor)

    def maximize(self, statistics: Tensor) -> Tensor:
        """The locations; the scale belongs to all components, see `improve`."""
        shift = statistics.unflatten(-1, (2, *self.event)).unbind(-1 - len(self.event))[0]
        return self.center + self.smallest / self.floor * shift

    def improve(self, n: Tensor, t: Tensor, h: Tensor) -> Tensor:
        shift, square = (t / n[..., None]).chunk(2, -1)
        within = (n[..., None] * (square - shift.square())).sum(-2) / n.sum(-1, keepdim=True)
        scale = within.clamp(min=0).sqrt().view_as(self.raw_scale) * self.smallest / self.floor
        self.raw_scale.copy_(inverse_scale(scale, self.smallest))
        return self.maximize(t / n[..., None])


class Normal(Family):
    """A normal with mean and standard deviation from the network, N(x; mu(h), diag sigma(h)^2).

    Args:
        floor: the smallest standard deviation, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw_scale = h.unbind(-1 - len(self.event))
        return dist.Normal(loc, self.smallest + softplus(raw_scale)).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x))
        self.center.copy_(x.mean(0))

    @property
    def unit(self) -> Tensor:
        """The standard deviations of the data, in which the statistics are counted."""
        return self.smallest / self.floor

    def statistics(self, x: Tensor) -> Tensor:
        return moments(x, self.center, self.unit)

    def maximize(self, statistics: Tensor) -> Tensor:
        return at_moments(statistics, self.center, self.unit, self.floor)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        p: Any = self(h).base_dist
        precision = (self.unit / p.scale).square().flatten(-len(self.event))
        shift = ((p.loc - self.center) / self.unit).flatten(-len(self.event))
        a = 0.5 * precision * shift.square() + p.scale.flatten(-len(self.event)).log() + HALF_LOG
        return torch.cat([precision * shift, -0.5 * precision], -1), a.sum(-1)


class SphericalNormal(Family):
    """A normal with one standard deviation for all entries from the network, N(x; mu, sigma^2 I).

    Args:
        floor: the smallest standard deviation, as a fraction of the data's, over all entries.
    """

    floor: PositiveFloat = 1e-3

    def setup(self, event: tuple[int, ...]) -> None:
        self.event, self.params = Size(event), Size((prod(event) + 1,))
        self.smallest = nn.Buffer(torch.tensor(self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc = h[..., 1:].unflatten(-1, self.event)
        scale = self.smallest + softplus(h[..., 0])
        return dist.Normal(loc, scale[(..., *[None] * len(self.event))]).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        variance = x.var(0, correction=0).mean()
        self.smallest.copy_(self.floor * torch.where(variance > 0, variance, 1.0).sqrt())
        self.center.copy_(x.mean(0))

    @property
    def unit(self) -> Tensor:
        """The standard deviation of the data, in which the statistics are counted."""
        return self.smallest / self.floor

    def statistics(self, x: Tensor) -> Tensor:
        y = ((x - self.center) / self.unit).flatten(1)
        return torch.cat([y, y.square().sum(-1, keepdim=True)], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        shift, square = statistics[..., :-1], statistics[..., -1]
        variance = (square - shift.square().sum(-1)).clamp(min=0) / shift.shape[-1]
        raw = inverse_scale(self.unit * variance.sqrt(), self.smallest)
        return torch.cat([raw[..., None], self.center.flatten() + self.unit * shift], -1)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.smallest + softplus(h[..., 0])
        precision = (self.unit / scale).square()[..., None]
        shift = (h[..., 1:] - self.center.flatten()) / self.unit
        a = 0.5 * precision * shift.square() + scale.log()[..., None] + HALF_LOG
        return torch.cat([precision * shift, -0.5 * precision], -1), a.sum(-1)

    def at_floor(self, h: Tensor) -> Tensor:
        return self.smallest + softplus(h[..., 0]) <= 1.001 * self.smallest


class Laplace(Family):
    """A Laplace distribution with location and scale from the network, exp(-|x - mu| / b) / 2b.

    Args:
        floor: the smallest scale, as a fraction of the data's standard deviation.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw = h.unbind(-1 - len(self.event))
        return dist.Laplace(loc, self.smallest + softplus(raw)).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x))

    def marginal(self, batch: Batch) -> Tensor:
        """The median and the mean distance from it, where the likelihood is largest."""
        loc = batch.x.median(0).values
        return torch.stack([loc, inverse_scale((batch.x - loc).abs().mean(0), self.smallest)])


class StudentT(Family):
    """Student's t with location and scale from the network, and learned degrees of freedom nu.

    EM counts each entry by its expected precision, w = (nu + 1) / (nu + y^2): one that is far off
    counts little. Robust Mixture Modelling Using the t Distribution (Peel & McLachlan, 2000,
    https://doi.org/10.1023/A:1008981510081).

    Args:
        least: the smallest nu; above 2 the variance is finite.
        floor: the smallest scale, as a fraction of the data's standard deviation.
    """

    least: PositiveFloat = 2.0
    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2
    at_floor = at_floor

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.raw_nu = nn.Parameter(torch.full(self.event, 3.0))
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))
        self.center = nn.Buffer(torch.zeros(self.event))

    @property
    def nu(self) -> Tensor:
        """The degrees of freedom of each entry, shape `event`."""
        return self.least + softplus(self.raw_nu)

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw = h.unbind(-1 - len(self.event))
        scale = self.smallest + softplus(raw)
        return dist.StudentT(self.nu, loc, scale).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x))
        self.center.copy_(x.mean(0))

    @torch.no_grad()
    def marginal(self, batch: Batch) -> Tensor:
        """By EM, with nu as it is."""
        nu = self.nu.reshape(-1, *self.event)[0]
        loc, scale = batch.x.mean(0), spread(batch.x)
        for _ in range(20):
            w = (nu + 1) / (nu + ((batch.x - loc) / scale).square())
            loc = (w * batch.x).sum(0) / w.sum(0)
            scale = (w * (batch.x - loc).square()).mean(0).sqrt().clamp(min=self.smallest)
        return torch.stack([loc, inverse_scale(scale, self.smallest)])

    @property
    def unit(self) -> Tensor:
        """The standard deviations of the data, in which the statistics are counted."""
        return self.smallest / self.floor

    def expect(self, rows: Prepared, r: Tensor, h: Tensor) -> list[Tensor]:
        """The sums over rows of w, w u, w u^2 and E[log w], u = (x - center) / unit."""
        x = rows.batch.unsqueeze(r.dim() - 1).x
        p: Any = self(h).base_dist
        half = (p.df + 1) / 2
        w = half / (p.df / 2 + 0.5 * ((x - p.loc) / p.scale).square())
        log_w = w.log() + half.digamma() - half.log()
        u = (x - self.center) / self.unit
        r = r[(..., *[None] * len(self.event))]
        return [(r * t).sum(0) for t in (w, w * u, w * u.square(), log_w)]

    def improve(self, n: Tensor, t: list[Tensor], h: Tensor) -> Tensor:
        dims = len(self.event)
        n = n[(..., *[None] * dims)]
        w, wu, square, log_w = (total / n for total in t)
        shift = wu / w
        variance = square - w * shift.square()
        alpha = torch.where(variance > self.floor**2 * w, w, 1.0)
        scale = self.unit * (variance / alpha).clamp(min=0).sqrt()
        k = concentration(shared(gap(w, log_w, alpha), n, dims))
        nu = inverse_scale(2 * k, k.new_tensor(self.least))
        self.raw_nu.copy_(nu.view_as(self.raw_nu))
        raw = inverse_scale(scale, self.smallest)
        return torch.stack([self.center + self.unit * shift, raw], -1 - dims)
