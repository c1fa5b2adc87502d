r"""Linear models, x = W z + b + e with z ~ N(0, I) and e ~ N(0, Psi): VAEs that can be solved.

With a linear decoder and normal noise both things that a VAE approximates are known,

    p(x) = N(b, W W' + Psi),
    p(z | x) = N(G^-1 W' Psi^-1 (x - b), G^-1),     G = I + W' Psi^-1 W,

and a linear encoder is enough for the guide. Psi is diagonal in factor analysis, sigma^2 I in
probabilistic PCA. With the posterior as guide log p(x, z) - log q(z | x) is log p(x) whatever z
is drawn, so SVI has the exact gradient, and EM applies: factor analysis is a mixture of one
component, and of probabilistic PCA the maximum is known. With the eigenvalues l_1 >= ... >= l_D
and eigenvectors U of the covariance of the rows,

    sigma^2 = mean(l_J+1, ..., l_D),     W = U_J (diag(l_1, ..., l_J) - sigma^2 I)^1/2 .

A rotation of z leaves p(x) as it is, so W is known up to one, and of its D J entries J (J - 1) / 2
are not free. A linear VAE that is trained has the same maximum (Don't Blame the ELBO! A Linear VAE
Perspective on Posterior Collapse, Lucas, Tucker, Grosse & Norouzi, 2019,
https://arxiv.org/abs/1911.02469).
"""

import copy
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import JointNormal, Present
from pyrovae.errors import Error
from pyrovae.families import Family, LowRankNormal
from pyrovae.families.continuous import inverse_scale
from pyrovae.models import surface
from pyrovae.models.model import Model, Statistics
from pyrovae.part import Shape
from pyrovae.transforms import spread

BLOCK = 4096
"""Rows that go through the model at a time."""


def family(model: Any) -> LowRankNormal:
    """The family of the rows, N(b, W W' + Psi), of fields that fit together."""
    if len(model.x) != 1:
        raise Error(f"{model.kind} takes vectors as rows, got {model.x}: flatten them", "x")
    if model.factors >= model.x[0]:
        raise Error(
            f"should be fewer than the {model.x[0]} entries of a row, got {model.factors}",
            "factors",
        )
    made = LowRankNormal(rank=model.factors, floor=model.floor)
    made.setup(model.x)
    return made


def program(model: Any, batch: Batch) -> Tensor:
    """The Pyro program z ~ N(0, I), x ~ N(W z + b, Psi); returns x, `(..., rows, *x)`."""
    batch = as_batch(batch)
    pyro.module(model.kind, model)
    p = model.family(model.h)
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(p.loc.new_zeros(model.factors), 1.0).to_event(1))
        loc = p.loc + z @ p.covariance.factor.mT
        x = dist.Normal(loc, p.covariance.scale).to_event(1)
        return pyro.sample("x", Present(x) if batch.incomplete else x, obs=batch.x)


def guide(model: Any, batch: Batch) -> None:
    """The Pyro program of the posterior."""
    batch = as_batch(batch)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", model.posterior(batch))


def posterior(model: Any, batch: Batch) -> JointNormal:
    """p(z | x) of each row, given its entries that are there; `.mean` are the factor scores."""
    p, there = model.family(model.h), ~batch.x.isnan()
    covariance = p.covariance.over(there) if batch.incomplete else p.covariance
    return covariance.factors(torch.where(there, batch.x - p.loc, 0.0))


def log_prob(model: Any, batch: Batch) -> Tensor:
    """Log p(x), shape `(rows,)`, over the entries that are there."""
    return torch.cat(
        [model.family.of(model.h, part).log_prob(part.x) for part in batch.split(BLOCK)]
    )


def refuse_incomplete(batch: Batch) -> None:
    """Refuse rows with missing entries in an E-step."""
    if batch.incomplete:
        raise Error("EM takes complete rows: use method = 'svi', or drop the incomplete ones")


def remarks(model: Any) -> tuple[str, ...]:
    """How many entries have no noise but the floor's, which is known as a Heywood case."""
    scale = model.family(model.h).covariance.scale
    low = int((scale <= 1.001 * model.floor * model.family.unit).sum())
    return (f"the noise of {low} of {len(scale)} entries is at its floor",) if low else ()


class FactorAnalysis(Model):
    """Factor analysis, x = W z + b + e, z ~ N(0, I), with a noise variance for each entry.

    EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982). Its likelihood can have several
    maxima: EM begins at the principal components, and at random factors in each restart.

    Args:
        x: the event shape of the data, vectors.
        factors: the entries of z, fewer than those of x.
        floor: the smallest standard deviation of the noise, as a fraction of the data's.

    Example:
        >>> model = FactorAnalysis(x=(4,), factors=2)
        >>> model.posterior(Batch(torch.zeros(5, 4))).mean.shape
        torch.Size([5, 2])
    """

    x: Shape
    factors: PositiveInt
    floor: PositiveFloat = 1e-3

    missing = True
    model, guide, posterior, log_prob, remarks = program, guide, posterior, log_prob, remarks
    score_samples, bic, aic = surface.score_samples, surface.bic, surface.aic

    def setup(self) -> None:
        self.family = family(self)
        self.h = nn.Parameter(torch.randn(self.family.params))

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        batch = batch.filled()
        self.family.start(batch.x)
        self.runs.copy_(self.family.marginal(batch))
        self.runs[1:, 1] = inverse_scale(self.family.unit, self.floor * self.family.unit)
        self.runs[1:, 2:].normal_(std=0.1)

    @torch.no_grad()
    def expect(self, batch: Batch) -> Statistics:
        refuse_incomplete(batch)
        return reduce(add, map(self._expect, batch.split(BLOCK)))

    def _expect(self, batch: Batch) -> Statistics:
        rows = self.family.prepare(batch)
        log_prob = self.family.densities(self.runs)(rows)
        r = torch.ones_like(log_prob)
        t = self.family.expect(rows, r, self.runs)
        return Statistics(r.sum(0), t, log_prob.double().sum(0))

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        self.runs.copy_(self.family.improve(statistics.n, statistics.t, self.runs))

    @property
    def runs(self) -> Tensor:
        """Of one run the h, or of several side by side, `(runs, *params)`: mixtures of one."""
        return self.h.view(-1, *self.family.params)

    def beside(self, runs: int) -> "FactorAnalysis":
        if runs == 1:
            return self
        wide = copy.deepcopy(self)
        wide.h.data = self.h.data.expand(runs, *self.h.shape).clone()
        return wide

    @torch.no_grad()
    def choose(self, runs: Model, index: int) -> None:
        if isinstance(runs, FactorAnalysis) and runs is not self:
            self.family.load_state_dict(runs.family.state_dict())
            self.h.copy_(runs.h[index])

    @property
    def freedom(self) -> int:
        """The number of free parameters, for information criteria."""
        return self.family.freedom

    @classmethod
    def examples(cls) -> Iterable["FactorAnalysis"]:
        return cls(x=(4,), factors=2), cls(x=(3,), factors=1)

    @property
    def method(self) -> Literal["svi", "em"]:
        return "em"

    @property
    def exact(self) -> bool:
        return True

    @property
    def observation(self) -> Family:
        return self.family


class ProbabilisticPCA(Model):
    """Probabilistic PCA, x = W z + b + e, z ~ N(0, I), e ~ N(0, sigma^2 I).

    Probabilistic Principal Component Analysis (Tipping & Bishop, 1999). EM gives the maximum in
    one iteration. Unlike factor analysis it depends on the units of the columns.

    Args:
        x: the event shape of the data, vectors.
        factors: the entries of z, fewer than those of x.
        floor: the smallest sigma, as a fraction of the data's standard deviation over all entries.
    """

    x: Shape
    factors: PositiveInt
    floor: PositiveFloat = 1e-3

    missing = True
    model, guide, posterior, log_prob, remarks = program, guide, posterior, log_prob, remarks
    score_samples, bic, aic = surface.score_samples, surface.bic, surface.aic

    def setup(self) -> None:
        self.family = family(self)
        self.loc, self.raw = nn.Parameter(torch.zeros(self.x)), nn.Parameter(torch.zeros(()))
        self.factor = nn.Parameter(torch.randn(self.factors, *self.x))

    @property
    def h(self) -> Tensor:
        """The parameters of p(x), with one sigma for all entries, whose units are the same."""
        return torch.cat([torch.stack([self.loc, self.raw.expand_as(self.loc)]), self.factor])

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        x = batch.filled().x
        unit = spread((x - x.mean(0)).reshape(-1, 1))
        self.family.unit.copy_(unit)
        self.family.center.copy_(x.mean(0))
        self.loc.copy_(x.mean(0))
        self.raw.copy_(inverse_scale(unit, self.floor * unit)[0])
        self.factor.normal_(std=0.1)

    @torch.no_grad()
    def expect(self, batch: Batch) -> Statistics:
        refuse_incomplete(batch)
        y = (batch.x - self.family.center) / self.family.unit
        n, log_prob = y.new_tensor(len(y)), self.log_prob(batch)
        return Statistics(n, (y.sum(0), y.mT @ y), log_prob.double().sum())

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        mean, square = (s / statistics.n for s in statistics.t)
        values, vectors = torch.linalg.eigh(square - torch.outer(mean, mean))
        noise = values[: -self.factors].mean().clamp(min=self.floor**2)
        lengths = (values[-self.factors :] - noise).clamp(min=0).sqrt()
        center, unit = self.family.center, self.family.unit
        self.loc.copy_(center + unit * mean)
        self.raw.copy_(inverse_scale(unit * noise.sqrt(), self.floor * unit)[0])
        self.factor.copy_((vectors[:, -self.factors :] * lengths).mT)

    @property
    def freedom(self) -> int:
        """The number of free parameters, for information criteria."""
        (d,), j = self.x, self.factors
        return d + d * j - j * (j - 1) // 2 + 1

    @classmethod
    def examples(cls) -> Iterable["ProbabilisticPCA"]:
        return cls(x=(4,), factors=2), cls(x=(3,), factors=1)

    @property
    def method(self) -> Literal["svi", "em"]:
        return "em"

    @property
    def exact(self) -> bool:
        return True

    @property
    def observation(self) -> Family:
        return self.family
