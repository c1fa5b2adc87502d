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

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Size, Tensor, nn
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions import Full, JointNormal, LowRank, PresentNormal
from pyrovae.errors import Error
from pyrovae.families.family import Family
from pyrovae.transforms import spread


def inverse_softplus(y: Tensor) -> Tensor:
    """The a with log(1 + exp(a)) = y, for y > 0."""
    return y + (-(-y).expm1()).log()


def inverse_scale(scale: Tensor, smallest: Tensor) -> Tensor:
    """The a with smallest + softplus(a) = scale, or a scale just above the smallest."""
    return inverse_softplus((scale - smallest).clamp(min=1e-6 * smallest))


def moments(x: Tensor, center: Tensor) -> Tensor:
    """The statistics of normals, shape `(rows, 2 D)`, of rows, the center taken off."""
    centred = (x - center).flatten(1)
    return torch.cat([centred, centred.square()], -1)


def at_moments(statistics: Tensor, center: Tensor, smallest: Tensor) -> Tensor:
    """The locations and raw scales, `(components, 2, *event)`, of normals with these moments."""
    shift, square = statistics.unflatten(-1, (2, *center.shape)).unbind(1)
    scale = (square - shift.square()).clamp(min=0).sqrt()
    return torch.stack([center + shift, inverse_scale(scale, smallest)], 1)


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

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Normal(h, self.smallest + softplus(self.raw_scale)).to_event(len(self.event))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.smallest.copy_(self.floor * spread(x))
        self.raw_scale.copy_(inverse_softplus(spread(x)))


class Normal(Family):
    """A normal with mean and standard deviation from the network, N(x; mu(h), diag sigma(h)^2).

    Args:
        floor: the smallest standard deviation, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2

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

    def statistics(self, x: Tensor) -> Tensor:
        return moments(x, self.center)

    def maximize(self, statistics: Tensor) -> Tensor:
        return at_moments(statistics, self.center, self.smallest)


class Laplace(Family):
    """A Laplace distribution with location and scale from the network, exp(-|x - mu| / b) / 2b.

    Args:
        floor: the smallest scale, as a fraction of the data's standard deviation.
    """

    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2

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

    Args:
        least: the smallest nu; above 2 the variance is finite.
        floor: the smallest scale, as a fraction of the data's standard deviation.
    """

    least: PositiveFloat = 2.0
    floor: PositiveFloat = 1e-3
    planes: ClassVar[int] = 2

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.raw_nu = nn.Parameter(torch.full(self.event, 3.0))
        self.smallest = nn.Buffer(torch.full(self.event, self.floor))

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

    @torch.no_grad()
    def marginal(self, batch: Batch) -> Tensor:
        """By EM: a t is a normal whose precision varies, w = E[precision | x] sigma^2."""
        loc, scale = batch.x.mean(0), spread(batch.x)
        for _ in range(20):
            w = (self.nu + 1) / (self.nu + ((batch.x - loc) / scale).square())
            loc = (w * batch.x).sum(0) / w.sum(0)
            scale = (w * (batch.x - loc).square()).mean(0).sqrt().clamp(min=self.smallest)
        return torch.stack([loc, inverse_scale(scale, self.smallest)])


class MultivariateNormal(Family):
    r"""A normal with a full covariance from the network, N(x; mu(h), L L').

    The M-step raises the eigenvalues of the covariance, in units of the data's standard
    deviations, to `floor`^2: it is the maximum under that constraint, so the likelihood never
    decreases.

    Args:
        floor: the smallest standard deviation in any direction, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3

    def setup(self, event: tuple[int, ...]) -> None:
        _refuse_arrays(self, event)
        self.event = Size(event)
        self.params = Size((event[0] + event[0] * (event[0] + 1) // 2,))
        self.unit = nn.Buffer(torch.ones(event))
        self.center = nn.Buffer(torch.zeros(event))

    def forward(self, h: Tensor) -> dist.Distribution:
        (d,) = self.event
        raw = vec_to_tril_matrix(h[..., d:])
        smallest = 0.5 * self.floor * self.unit
        diagonal = smallest + softplus(raw.diagonal(dim1=-2, dim2=-1))
        return dist.MultivariateNormal(h[..., :d], scale_tril=raw.tril(-1) + diagonal.diag_embed())

    def present(self, p: Any) -> dist.Distribution:
        return PresentNormal(p.loc, Full(p.scale_tril))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.unit.copy_(spread(x))
        self.center.copy_(x.mean(0))

    def statistics(self, x: Tensor) -> Tensor:
        scaled = (x - self.center) / self.unit
        return torch.cat([scaled, (scaled[:, :, None] * scaled[:, None, :]).flatten(1)], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        (d,) = self.event
        shift, square = statistics[:, :d], statistics[:, d:].unflatten(-1, (d, d))
        values, vectors = torch.linalg.eigh(square - shift[:, :, None] * shift[:, None, :])
        root = vectors * values.clamp(min=self.floor**2).sqrt()[:, None, :]
        tril = self.unit[:, None] * torch.linalg.qr(root.mT).R.mT
        tril = tril * tril.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
        diagonal = inverse_softplus(tril.diagonal(dim1=-2, dim2=-1) - 0.5 * self.floor * self.unit)
        raw = tril.tril(-1) + diagonal.diag_embed()
        return torch.cat([self.center + self.unit * shift, tril_matrix_to_vec(raw)], -1)


class LowRankNormal(Family):
    """A normal with factors that entries share, N(x; mu(h), W(h) W(h)' + diag sigma(h)^2).

    Between `Normal`, rank 0, and `MultivariateNormal`, at a cost linear in the number of entries.

    Args:
        rank: how many factors.
        floor: the smallest sigma, as a fraction of the data's standard deviation.
    """

    rank: PositiveInt = 2
    floor: PositiveFloat = 1e-3

    def setup(self, event: tuple[int, ...]) -> None:
        _refuse_arrays(self, event)
        self.event, self.params = Size(event), Size((2 + self.rank, *event))
        self.unit = nn.Buffer(torch.ones(event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw, *factors = h.unbind(-2)
        scale = self.floor * self.unit + softplus(raw)
        factor = torch.stack(factors, -1) * self.unit[:, None]
        return JointNormal(loc, LowRank(factor, scale))

    def present(self, p: Any) -> dist.Distribution:
        return PresentNormal(p.loc, p.covariance)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.unit.copy_(spread(x))

    @torch.no_grad()
    def marginal(self, batch: Batch) -> Tensor:
        """The first principal components of the correlations, above the mean of the others."""
        loc = batch.x.mean(0)
        centred = (batch.x - loc) / self.unit
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(batch))
        few = min(self.rank, len(values))
        noise = values[:-few].mean() if few < len(values) else values.new_zeros(())
        factor = values.new_zeros(len(values), self.rank)
        factor[:, :few] = vectors[:, -few:] * (values[-few:] - noise).clamp(min=0).sqrt()
        rest = centred.square().mean(0) - factor.square().sum(-1)
        raw = inverse_scale(self.unit * rest.clamp(min=0).sqrt(), self.floor * self.unit)
        return torch.stack([loc, raw, *factor.mT])


def _refuse_arrays(family: Family, event: tuple[int, ...]) -> None:
    if len(event) != 1:
        raise Error(f"{family.kind} takes vectors as rows, got {tuple(event)}: flatten them")
