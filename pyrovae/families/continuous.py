r"""Families over the real numbers.

With a diagonal covariance

    log p(x | h) = -1/2 \sum_i ((x_i - mu_i) / sigma_i)^2 - D/2 log 2 pi - \sum_i log sigma_i .

A likelihood whose scale is free has no maximum: a component that shrinks onto one data point sends
it to infinity (Leveraging the Exact Likelihood of Deep Latent Variable Models, Mattei & Frellsen,
2018, https://arxiv.org/abs/1802.04826). So every learned scale has a floor, a fraction of the
data's standard deviation in that column once the family has seen data, and absolute before.
"""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat
from torch import Size, Tensor, nn
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import softplus

from pyrovae.errors import Error
from pyrovae.families.family import Family
from pyrovae.transforms import spread


def inverse_softplus(y: Tensor) -> Tensor:
    """The a with log(1 + exp(a)) = y, for y > 0."""
    return y + (-(-y).expm1()).log()


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
        centred = (x - self.center).flatten(1)
        return torch.cat([centred, centred.square()], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        shift, square = statistics.unflatten(-1, (2, *self.event)).unbind(1)
        scale = (square - shift.square()).clamp(min=0).sqrt()
        above = (scale - self.smallest).clamp(min=1e-6 * self.smallest)
        return torch.stack([self.center + shift, inverse_softplus(above)], 1)


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
        if len(event) != 1:
            raise Error(
                f"multivariate-normal takes vectors as rows, got {tuple(event)}: flatten them"
            )
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
