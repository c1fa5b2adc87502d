r"""Distributions over directions, the unit sphere S^{D-1} in R^D.

Densities are with respect to the sphere's surface, whose area is 2 pi^{D/2} / Gamma(D/2). The
*Power Spherical* distribution around a direction mu,

    p(x) = C (1 + mu'x)^kappa,
    log C = -(alpha + beta) log 2 - beta log pi - log Gamma(alpha) + log Gamma(alpha + beta),
    alpha = (D - 1)/2 + kappa,    beta = (D - 1)/2,

is uniform at kappa = 0 and close to a normal with the variance 2/kappa in each direction for a
large kappa. Its samples need no rejection: the cosine t = mu'x is 2b - 1 with b ~ Beta(alpha,
beta), and the rest of x is a uniform direction orthogonal to mu (The Power Spherical distribution,
De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437).

Of two unit vectors, 1 + mu'x = 2 - |x - mu|^2 / 2. The right-hand side keeps its digits where x is
close to mu, which is where a large kappa needs them.
"""

import math
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import normalize

from pyrovae.distributions.supports import sphere


class UniformSphere(dist.TorchDistribution):
    """The uniform distribution over directions, p(x) = Gamma(D/2) / (2 pi^{D/2}).

    Args:
        dim: D, the length of the vectors.
        like: a tensor whose dtype and device the samples have.
        batch_shape: the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = sphere
    has_rsample = True

    def __init__(self, dim: int, like: Tensor | None = None, batch_shape: Any = Size()) -> None:
        self.like = torch.zeros(()) if like is None else like
        super().__init__(Size(batch_shape), Size((dim,)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.mean + 1 / self.event_shape[0]

    def entropy(self) -> Tensor:
        """The logarithm of the sphere's area."""
        half = self.event_shape[0] / 2
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return self.like.new_full(self.batch_shape, area)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return -self.entropy().expand(shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Directions of standard normals."""
        shape = self._extended_shape(Size(sample_shape))
        return normalize(torch.randn_like(self.like.new_empty(shape)), dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.event_shape[0], self.like, batch_shape)


class PowerSpherical(dist.TorchDistribution):
    """The Power Spherical distribution, p(x) = C (1 + mu'x)^kappa.

    Args:
        direction: mu, of length 1, shape `(*batch, D)` with D at least 2.
        concentration: kappa, at least 0, shape `batch`.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "direction": sphere,
        "concentration": constraints.nonnegative,
    }
    support = sphere
    has_rsample = True

    def __init__(
        self, direction: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        self.direction, self.concentration = direction, concentration
        super().__init__(direction.shape[:-1], direction.shape[-1:], validate_args=validate_args)

    @property
    def _beta(self) -> tuple[Tensor, Tensor]:
        """The alpha and beta of the Beta distribution of (1 + mu'x)/2."""
        half = (self.event_shape[0] - 1) / 2
        return half + self.concentration, torch.full_like(self.concentration, half)

    @property
    def mean(self) -> Tensor:
        alpha, beta = self._beta
        return ((alpha - beta) / (alpha + beta))[..., None] * self.direction

    @property
    def variance(self) -> Tensor:
        (alpha, beta), along = self._beta, self.direction.square()
        square = 1 - 4 * alpha * beta / ((alpha + beta) * (alpha + beta + 1))  # E t^2
        across = (1 - square) / (self.event_shape[0] - 1)
        return across[..., None] + (square - across)[..., None] * along - self.mean.square()

    @property
    def _log_peak(self) -> Tensor:
        """The log density at mu, in float64: a difference of large numbers."""
        alpha, beta = (parameter.double() for parameter in self._beta)
        gammas = (alpha + beta).lgamma() - alpha.lgamma()
        peak = gammas - beta * math.log(4 * math.pi)
        return peak.to(self.concentration)

    def entropy(self) -> Tensor:
        """Minus log p(mu) - kappa E log b, where E log b = psi(alpha) - psi(alpha + beta)."""
        alpha, beta = (parameter.double() for parameter in self._beta)
        log_b = (alpha.digamma() - (alpha + beta).digamma()).to(self.concentration)
        return -self._log_peak - self.concentration * log_b

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        apart = (value - self.direction).square().sum(-1) / 4
        apart = apart.clamp(max=1 - torch.finfo(apart.dtype).eps)
        return self._log_peak + self.concentration * (-apart).log1p()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws around one end of the first axis, which a reflection takes to mu.

        It is the end further from mu, so that the reflection is smooth in mu.
        """
        mu = self.direction
        pairs = dist.Dirichlet(torch.stack(self._beta, -1), validate_args=False)
        b, rest = pairs.rsample(sample_shape).unbind(-1)
        across = 2 * (b * rest).sqrt()
        around = normalize(torch.randn_like(mu[..., 1:].expand(*b.shape, -1)), dim=-1)
        end = torch.where(mu[..., :1] < 0, 1.0, -1.0).to(mu)
        draw = torch.cat([end * (b - rest)[..., None], across[..., None] * around], -1)
        normal = torch.cat([mu[..., :1] - end, mu[..., 1:]], -1)
        along = (normal * draw).sum(-1, keepdim=True) / (1 + mu[..., :1].abs())
        return draw - along * normal

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        direction = self.direction.expand(*batch_shape, -1)
        return type(self)(direction, self.concentration.expand(batch_shape), self._validate_args)
