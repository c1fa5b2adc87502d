r"""Joint normals, of which some entries can be missing.

The entries that are there are normal with their rows and columns of the covariance S. Each row of
a batch misses others, so to keep one shape the missing ones' are replaced by the identity's,

    C = T S T + (I - T),      T = diag(1 where an entry is there, 0 where not),

which has the determinant of S_there, and its inverse. With d = x - m where an entry of x is there,
0 where not, and n entries there,

    log p(x_there) = -1/2 (d' C^-1 d + log |C| + n log 2 pi) .

The missing entries given the others are a draw s of all, corrected by where it misses those that
are there (Pathwise Conditioning of Gaussian Processes, Wilson et al., 2021,
https://arxiv.org/abs/2011.04026):

    s + S C^-1 d,             d = x - s where an entry of x is there, 0 where not.

No covariance is multiplied out: each is R'R with R from the QR decomposition of a stack of its
roots, so a scale of 1e-3 beside 1 keeps its digits in float32.
"""

import math
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class Full:
    """The covariance L L'.

    Args:
        tril: L, lower triangular, shape `(..., D, D)`.
    """

    def __init__(self, tril: Tensor) -> None:
        self.tril = tril

    def over(self, there: Tensor) -> "Full":
        """The C above, for entries that are there or not, `(..., D)`."""
        kept = there.to(self.tril)
        rows = kept[..., None] * self.tril
        missing = (1 - kept).diag_embed().expand_as(rows)
        return Full(torch.linalg.qr(torch.cat([rows, missing], -1).mT).R.mT)

    def square(self, v: Tensor) -> Tensor:
        """The quadratic form v' S^-1 v."""
        root = torch.linalg.solve_triangular(self.tril, v[..., None], upper=False)
        return root.square().sum((-2, -1))

    def solve(self, v: Tensor) -> Tensor:
        """The vector S^-1 v."""
        return torch.cholesky_solve(v[..., None], self.tril)[..., 0]

    def times(self, v: Tensor) -> Tensor:
        """The vector S v."""
        return (self.tril @ (self.tril.mT @ v[..., None]))[..., 0]

    def log_det(self) -> Tensor:
        """The logarithm of |S|."""
        return 2 * self.tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def variance(self) -> Tensor:
        """The diagonal of S."""
        return self.tril.square().sum(-1)

    def noise(self, shape: Any) -> Tensor:
        """Draws with the mean 0, shape `(*shape, D)`."""
        eps = self.tril.new_empty(*shape, self.tril.shape[-1], 1).normal_()
        return (self.tril @ eps)[..., 0]


class LowRank:
    """The covariance W W' + diag(scale^2), never made: all costs are linear in D.

    With v = scale u and W = diag(scale) B the quadratic form is a sum of squares without
    cancellation, v' S^-1 v = min_c |u - B c|^2 + |c|^2, and |S| = |I + B'B| prod scale^2.

    Args:
        factor: W, shape `(..., D, rank)`.
        scale: shape `(..., D)`, positive.
    """

    def __init__(self, factor: Tensor, scale: Tensor) -> None:
        self.factor, self.scale = factor, scale
        self.b = factor / scale[..., None]
        rank = factor.shape[-1]
        identity = torch.eye(rank).to(factor).expand(*factor.shape[:-2], rank, rank)
        self.q, self.r = torch.linalg.qr(torch.cat([self.b, identity], -2))

    def over(self, there: Tensor) -> "LowRank":
        """The C above, for entries that are there or not, `(..., D)`."""
        factor = torch.where(there[..., None], self.factor, 0.0)
        return LowRank(factor, torch.where(there, self.scale, 1.0))

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The c of the least squares above, and u - B c."""
        u = v / self.scale
        projected = torch.einsum("...dj,...d->...j", self.q[..., : v.shape[-1], :], u)
        c = torch.linalg.solve_triangular(self.r, projected[..., None], upper=True)[..., 0]
        return c, u - torch.einsum("...dj,...j->...d", self.b, c)

    def factors(self, v: Tensor) -> "JointNormal":
        """p(z | v) of v = W z + scale e, z and e standard normal: N(c, (I + B'B)^-1)."""
        return JointNormal(self._split(v)[0], Full(torch.linalg.qr(self.root().mT).R.mT))

    def root(self) -> Tensor:
        """The upper triangular K with K K' = (I + B'B)^-1, shape `(..., rank, rank)`."""
        identity = torch.eye(self.r.shape[-1]).to(self.r).expand_as(self.r)
        return torch.linalg.solve_triangular(self.r, identity, upper=True)

    def square(self, v: Tensor) -> Tensor:
        """The quadratic form v' S^-1 v."""
        c, rest = self._split(v)
        return c.square().sum(-1) + rest.square().sum(-1)

    def solve(self, v: Tensor) -> Tensor:
        """The vector S^-1 v."""
        return self._split(v)[1] / self.scale

    def times(self, v: Tensor) -> Tensor:
        """The vector S v."""
        common = self.factor @ (self.factor.mT @ v[..., None])
        return common[..., 0] + self.scale.square() * v

    def log_det(self) -> Tensor:
        """The logarithm of |S|."""
        roots = self.r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return 2 * (roots + self.scale.log().sum(-1))

    def variance(self) -> Tensor:
        """The diagonal of S."""
        return self.factor.square().sum(-1) + self.scale.square()

    def noise(self, shape: Any) -> Tensor:
        """Draws with the mean 0, shape `(*shape, D)`."""
        d, rank = self.factor.shape[-2:]
        common = self.factor @ self.scale.new_empty(*shape, rank, 1).normal_()
        return common[..., 0] + self.scale * self.scale.new_empty(*shape, d).normal_()


class JointNormal(dist.TorchDistribution):
    """A normal over vectors.

    Args:
        loc: the mean, shape `(..., D)`.
        covariance: with leading dimensions that broadcast against those of the mean.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, covariance: Full | LowRank) -> None:
        self.loc, self.covariance = loc, covariance
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.covariance.variance().expand_as(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        return _log_density(value - self.loc, self.covariance, self.event_shape[0])

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.loc + self.covariance.noise(Size(sample_shape) + self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.loc.expand(*batch_shape, -1), self.covariance)


class PresentNormal(JointNormal):
    """A normal over the entries of vectors that are there, not NaN; samples are complete."""

    def log_prob(self, value: Tensor) -> Tensor:
        there = ~value.isnan()
        deviation = torch.where(there, value - self.loc, 0.0)
        return _log_density(deviation, self.covariance.over(there), there.to(value).sum(-1))

    def complete(self, x: Tensor) -> Tensor:
        """x, `(..., D)`, with the missing entries drawn given those that are there."""
        there = ~x.isnan()
        batch_shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        draw = self.expand(batch_shape).sample()
        deviation = torch.where(there, x - draw, 0.0)
        weights = self.covariance.over(there).solve(deviation)
        return torch.where(there, x, draw + self.covariance.times(weights))


def _log_density(deviation: Tensor, covariance: Full | LowRank, n: int | Tensor) -> Tensor:
    constant = n * math.log(2 * math.pi)
    return -0.5 * (covariance.square(deviation) + covariance.log_det() + constant)
