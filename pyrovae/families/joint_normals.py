r"""Normals whose entries depend on each other: a covariance that is full, shared, or of low rank.

With y = (x - m) / u, the rows in units of the data's standard deviations, and S their covariance,

    log N(x; mu, S) = -1/2 (y - nu)' S^-1 (y - nu) - 1/2 log |2 pi S| - \sum_i log u_i

is linear in y and the products y_i y_j, i <= j, which are the statistics of the two families with
a full covariance. Their M-step raises the eigenvalues of S to `floor`^2 where they are below: it
is the maximum under that constraint, so the likelihood never decreases.

Low rank is factor analysis, y = nu + B z + s e with z, e ~ N(0, I). EM regresses y on what it
expects of z. If it may fit a mean and a covariance of z as well, which are then folded back into
nu and B, its steps are longer (Parameter Expansion to Accelerate EM: the PX-EM Algorithm, Liu,
Rubin & Wu, 1998): with moments over rows and over z given y,

    nu = E[y],   B = cov(y, z) L^-T with L L' = cov(z),   s_i^2 = var(y_i) - \sum_j B_ij^2,

each s_i at least at its floor, which is the maximum under that constraint too.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Size, Tensor, nn
from torch.distributions.utils import tril_matrix_to_vec
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions import Full, JointNormal, LowRank, PresentNormal
from pyrovae.errors import Error
from pyrovae.families.continuous import HALF_LOG, inverse_scale, inverse_softplus, moments
from pyrovae.families.expectation import linear
from pyrovae.families.family import Family
from pyrovae.transforms import spread


@torch.no_grad()
def start(family: Any, x: Tensor) -> None:
    """Take the columns' means and standard deviations from all rows."""
    family.unit.copy_(spread(x))
    family.center.copy_(x.mean(0))


def present(_: Family, p: Any) -> dist.Distribution:
    """P over the entries that are there, of a normal with a full covariance."""
    return PresentNormal(p.loc, Full(p.scale_tril))


def statistics(family: Any, x: Tensor) -> Tensor:
    """The rows in units of the data and their products, see `_products`."""
    return _products((x - family.center) / family.unit)


class MultivariateNormal(Family):
    r"""A normal with a full covariance from the network, N(x; mu(h), L L').

    Args:
        floor: the smallest standard deviation in any direction, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3

    start, present, statistics = start, present, statistics

    def setup(self, event: tuple[int, ...]) -> None:
        _refuse_arrays(self, event)
        self.event = Size(event)
        self.unit, self.center = nn.Buffer(torch.ones(event)), nn.Buffer(torch.zeros(event))
        self.params = Size((event[0] + event[0] * (event[0] + 1) // 2,))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, tril = self._split(h)
        return dist.MultivariateNormal(loc, scale_tril=tril)

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and L."""
        (d,) = self.event
        return h[..., :d], _tril(self, h[..., d:])

    def table(self, batch: Batch, h: Tensor) -> Tensor:
        if batch.incomplete:
            return super().table(batch, h)
        return _table(batch.x, *self._split(h))

    def maximize(self, statistics: Tensor) -> Tensor:
        (d,) = self.event
        shift, square = statistics[..., :d], statistics[..., d:]
        covariance = _symmetric(square - _products(shift.flatten(0, -2))[:, d:].view_as(square), d)
        return torch.cat([self.center + self.unit * shift, _raw(self, covariance)], -1)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _natural(self, *self._split(h))

    def at_floor(self, h: Tensor) -> Tensor:
        return _at_floor(self, self._split(h)[1])


class TiedNormal(Family):
    """A normal with one learned full covariance for all x, N(x; h, L L').

    As components of a mixture they share it, and linear boundaries part them; as a likelihood it
    leaves to the noise what entries have in common.

    Args:
        floor: the smallest standard deviation in any direction, as a fraction of the data's.
    """

    floor: PositiveFloat = 1e-3

    present, statistics = present, statistics

    def setup(self, event: tuple[int, ...]) -> None:
        _refuse_arrays(self, event)
        self.event = self.params = Size(event)
        self.unit, self.center = nn.Buffer(torch.ones(event)), nn.Buffer(torch.zeros(event))
        self.raw = nn.Parameter(torch.zeros(event[0] * (event[0] + 1) // 2))

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.MultivariateNormal(h, scale_tril=_tril(self, self.raw))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        start(self, x)
        centred = (x - self.center) / self.unit
        self.raw.copy_(_raw(self, (centred.mT @ centred / len(x))[None])[0])

    def table(self, batch: Batch, h: Tensor) -> Tensor:
        tril = _tril(self, self.raw).expand(*h.shape, -1)
        return super().table(batch, h) if batch.incomplete else _table(batch.x, h, tril)

    def maximize(self, statistics: Tensor) -> Tensor:
        """The means; the covariance belongs to all components, see `improve`."""
        return self.center + self.unit * statistics[..., : self.event[0]]

    def improve(self, n: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (d,) = self.event
        means = t / n[..., None]
        of_means = _products(means[..., :d].flatten(0, -2)).view_as(t)
        within = (t - n[..., None] * of_means)[..., d:].sum(-2) / n.sum(-1, keepdim=True)
        self.raw.copy_(_raw(self, _symmetric(within, d)).view_as(self.raw))
        return self.maximize(means)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _natural(self, h, _tril(self, self.raw).to(h).expand(*h.shape, -1))

    def at_floor(self, h: Tensor) -> Tensor:
        return _at_floor(self, _tril(self, self.raw)).expand(h.shape[:-1])


class LowRankNormal(Family):
    """A normal with factors that entries share, N(x; mu(h), W(h) W(h)' + diag sigma(h)^2).

    Between `Normal`, rank 0, and `MultivariateNormal`, at a cost linear in the number of entries.
    The EM Algorithm for Mixtures of Factor Analyzers (Ghahramani & Hinton, 1996).

    Args:
        rank: how many factors.
        floor: the smallest sigma, as a fraction of the data's standard deviation.
    """

    rank: PositiveInt = 2
    floor: PositiveFloat = 1e-3

    start = start

    def setup(self, event: tuple[int, ...]) -> None:
        _refuse_arrays(self, event)
        self.event, self.params = Size(event), Size((2 + self.rank, *event))
        self.unit, self.center = nn.Buffer(torch.ones(event)), nn.Buffer(torch.zeros(event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw, *factors = h.unbind(-2)
        scale = self.floor * self.unit + softplus(raw)
        factor = torch.stack(factors, -1) * self.unit[:, None]
        return JointNormal(loc, LowRank(factor, scale))

    def present(self, p: Any) -> dist.Distribution:
        return PresentNormal(p.loc, p.covariance)

    @torch.no_grad()
    def marginal(self, batch: Batch) -> Tensor:
        """The first principal components of the correlations, above the mean of the others."""
        loc = batch.x.mean(0)
        centred = (batch.x - loc) / self.unit
        rows, d = centred.shape
        few = min(self.rank, rows, d)
        _, roots, vectors = torch.svd_lowrank(centred, min(few + 8, rows, d))
        values, total = roots[:few].square() / rows, centred.square().mean(0)
        noise = (total.sum() - values.sum()).clamp(min=0) / max(d - few, 1)
        factor = values.new_zeros(d, self.rank)
        factor[:, :few] = vectors[:, :few] * (values - noise).clamp(min=0).sqrt()
        rest = (total - factor.square().sum(-1)).clamp(min=0)
        raw = inverse_scale(self.unit * rest.sqrt(), self.floor * self.unit)
        return torch.stack([loc, raw, *factor.mT])

    def prepare(self, batch: Batch) -> Tensor:
        return moments(batch.x, self.center, self.unit)

    def densities(self, h: Tensor) -> Callable[[Tensor], Tensor]:
        """Those of independent entries, and what the factors explain."""
        nu, covariance = self._scaled(h)
        precision = covariance.scale.square().reciprocal()
        a = 0.5 * (covariance.log_det() + (precision * nu.square()).sum(-1))
        a = a + (self.unit.log() + HALF_LOG).sum()
        eta = torch.cat([precision * nu, -0.5 * precision], -1)

        def table(rows: Tensor) -> Tensor:
            return linear(rows, eta, a) + 0.5 * _explained(rows, nu, covariance).square().sum(-1)

        return table

    def expect(self, rows: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The sums of y and y^2, of z, of zz' and of yz'."""
        nu, covariance = self._scaled(h)
        root = covariance.root()
        z = torch.einsum("i...l,...jl->i...j", _explained(rows, nu, covariance), root)
        mine, y = r[..., None] * z, rows[:, : self.event[0]]
        zz = torch.einsum("i...j,i...l->...jl", mine, z)
        zz = zz + r.sum(0)[..., None, None] * (root @ root.mT)
        sums = torch.einsum("i...,is->...s", r, rows)
        return sums, mine.sum(0), zz, torch.einsum("id,i...j->...dj", y, mine)

    def improve(self, n: Tensor, t: Any, h: Tensor) -> Tensor:
        sums, z, zz, yz = (s / n[(..., *[None] * (s.dim() - n.dim()))] for s in t)
        y, square = sums.chunk(2, -1)
        rounding = 10 * torch.finfo(h.dtype).eps * zz.diagonal(dim1=-2, dim2=-1).diag_embed()
        root = torch.linalg.cholesky_ex(zz - z[..., None] * z[..., None, :] + rounding).L
        across = yz - y[..., None] * z[..., None, :]
        factor = torch.linalg.solve_triangular(root, across.mT, upper=False)
        rest = (square - y.square() - factor.square().sum(-2)).clamp(min=0)
        raw = inverse_scale(self.unit * rest.sqrt(), self.floor * self.unit)
        loc = self.center + self.unit * y
        return torch.cat([torch.stack([loc, raw], -2), factor], -2)

    def _scaled(self, h: Tensor) -> tuple[Tensor, LowRank]:
        """The mean and the covariance of y."""
        scale = self.floor + softplus(h[..., 1, :]) / self.unit
        return (h[..., 0, :] - self.center) / self.unit, LowRank(h[..., 2:, :].mT, scale)

    @property
    def freedom(self) -> int:
        (d,), rotations = self.event, self.rank * (self.rank - 1) // 2
        return d + min(d + d * self.rank - rotations, d * (d + 1) // 2)

    def at_floor(self, h: Tensor) -> Tensor:
        return (softplus(h[..., 1, :]) <= 1e-3 * self.floor * self.unit).any(-1)


def _explained(rows: Tensor, nu: Tensor, covariance: LowRank) -> Tensor:
    """K^-1 E[z | y] with the covariance K K' of z given y, `(rows, *components, rank)`."""
    d = nu.shape[-1]
    m = covariance.q[..., :d, :] / covariance.scale[..., None]
    shift = torch.einsum("...d,...dj->...j", nu, m)
    return torch.einsum("id,...dj->i...j", rows[:, :d], m) - shift


def _refuse_arrays(family: Family, event: tuple[int, ...]) -> None:
    if len(event) != 1:
        raise Error(f"{family.kind} takes vectors as rows, got {tuple(event)}: flatten them")


def _tril(family: Any, raw: Tensor) -> Tensor:
    """L, lower triangular with a positive diagonal, of unconstrained numbers."""
    d = len(family.unit)
    row, column = torch.tril_indices(d, d, device=raw.device)
    tril = raw.new_zeros(*raw.shape[:-1], d, d)
    tril[..., row, column] = raw
    diagonal = 0.5 * family.floor * family.unit + softplus(tril.diagonal(dim1=-2, dim2=-1))
    return tril.tril(-1) + diagonal.diag_embed()


def _raw(family: Any, covariance: Tensor) -> Tensor:
    """The unconstrained numbers of L, of a covariance of y whose eigenvalues are raised."""
    tril = family.unit[:, None] * _root(covariance, family.floor)
    least = 0.5 * family.floor * family.unit
    diagonal = inverse_softplus(tril.diagonal(dim1=-2, dim2=-1) - least)
    return tril_matrix_to_vec(tril.tril(-1) + diagonal.diag_embed())


def _root(covariance: Tensor, floor: float) -> Tensor:
    """L with L L' the covariance, its eigenvalues raised to floor^2 where they are below."""
    smallest = floor**2 * torch.eye(covariance.shape[-1]).to(covariance)
    tril = torch.linalg.cholesky_ex(covariance).L
    low = torch.linalg.cholesky_ex(covariance - smallest).info != 0
    if low.any():
        values, vectors = torch.linalg.eigh(covariance[low])
        root = vectors * values.clamp(min=floor**2).sqrt()[..., None, :]
        upper = torch.linalg.qr(root.mT).R
        tril[low] = (upper * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None]).mT
    return tril


def _products(y: Tensor) -> Tensor:
    """Y and the products y_i y_j, i <= j, of rows `(rows, D)`; in memory, each has its own row."""
    y = y.mT.contiguous()
    d, rows = y.shape
    t = y.new_empty(d + d * (d + 1) // 2, rows)
    t[:d] = y
    end = d
    for i in range(d):
        torch.mul(y[i:], y[i], out=t[end : (end := end + d - i)])
    return t.mT


def _symmetric(triangle: Tensor, d: int) -> Tensor:
    """The matrices `(..., d, d)` of their entries (i, j), i <= j."""
    i, j = torch.triu_indices(d, d)
    matrix = triangle.new_empty(*triangle.shape[:-1], d, d)
    matrix[..., i, j] = matrix[..., j, i] = triangle
    return matrix


def _natural(family: Any, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """The natural parameters that belong to `_products`."""
    (d,) = family.event
    i, j = torch.triu_indices(d, d)
    identity = torch.eye(d).to(tril).expand_as(tril)
    root = torch.linalg.solve_triangular(tril / family.unit[:, None], identity, upper=False)
    precision = root.mT @ root
    shift = ((loc - family.center) / family.unit)[..., None]
    products = -precision[..., i, j] * torch.where(i == j, 0.5, 1.0).to(precision)
    a = 0.5 * (root @ shift).square().sum((-2, -1)) + d * HALF_LOG
    a = a + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.cat([(precision @ shift)[..., 0], products], -1), a


def _table(x: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
    """Log N(x_i; mu_k, L_k L_k'), `(rows, *components)`: all rows whitened in one product."""
    d = x.shape[-1]
    identity = torch.eye(d).to(tril).expand_as(tril)
    root = torch.linalg.solve_triangular(tril, identity, upper=False).flatten(0, -3)
    about = loc.flatten(0, -2).mean(0)
    white = ((x - about) @ root.flatten(0, 1).mT).unflatten(-1, (-1, d))
    white = white - (root @ (loc.flatten(0, -2) - about)[..., None])[..., 0]
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    square = white.square().sum(-1).unflatten(-1, log_det.shape)
    return -0.5 * square - log_det - d * HALF_LOG


def _at_floor(family: Any, tril: Tensor) -> Tensor:
    scaled = tril / family.unit[:, None]
    return torch.linalg.svdvals(scaled).amin(-1) <= 1.001 * family.floor
