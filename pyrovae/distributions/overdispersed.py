r"""Counts that vary more than Poisson and binomial ones, because their rates vary too.

    negative binomial        x ~ Poisson(mu g),        g ~ Gamma(theta, theta)
    beta-binomial            x ~ Binomial(n, pi),      pi ~ Beta(c p, c (1 - p))
    Dirichlet-multinomial    x ~ Multinomial(n, pi),   pi ~ Dirichlet(c p)

With the rate integrated out, each is the plain distribution with a term for each rising factorial,

    R(a, n) = \sum_{j < n} log(1 + j / a) = log Gamma(a + n) - log Gamma(a) - n log a,

    negative binomial        x log mu - log x! - (theta + x) log(1 + mu / theta) + R(theta, x)
    beta-binomial            log Binomial(x; n, p) + R(cp, x) + R(c(1 - p), n - x) - R(c, n)
    Dirichlet-multinomial    log Multinomial(x; n, p) + \sum_k R(c p_k, x_k) - R(c, n)

and as theta or c grows, R vanishes and the plain distribution is what remains. A difference of two
log Gammas would lose that limit to rounding, so for large a it is Stirling's series,

    R(a, n) = (a + n - 1/2) log(1 + n / a) - n + s(a + n) - s(a),    s(t) = 1/12t - 1/360t^3 + ...

Everything takes logarithms of its parameters, since exp overflows where log p does not.
"""

import math
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

_LARGE = math.log(16)
_HUGE = 60.0
"""For a = e^60 and a million counts R is 0 in float64; smaller ones do not overflow in float32."""


def log_rising(log_a: Tensor, n: Tensor) -> Tensor:
    """R(a, n), the logarithm of a (a + 1) ... (a + n - 1) / a^n.

    Args:
        log_a: log a, any shape.
        n: whole numbers from 0, a shape that broadcasts with it.
    """
    a = log_a.clamp(_LARGE, _HUGE).exp()
    ratio = n * (-log_a.clamp(_LARGE, _HUGE)).exp()
    series = (a + n - 0.5) * ratio.log1p() - n + _stirling(a + n) - _stirling(a)
    low = log_a.clamp(max=_LARGE)
    a, first = low.exp().clamp(min=torch.finfo(low.dtype).tiny), n.clamp(max=1)
    direct = torch.lgamma(a + n) - torch.lgamma(a + first) - (n - first) * low
    return torch.where(log_a > _LARGE, series, direct)


def _stirling(t: Tensor) -> Tensor:
    """The error of Stirling's formula for log Gamma(t), to 1e-14 for t above 16."""
    u = 1 / t
    v = u * u
    return u * (1 / 12 - v * (1 / 360 - v * (1 / 1260 - v / 1680)))


def log_gamma_draw(log_a: Tensor) -> Tensor:
    """Draws of log g, g ~ Gamma(a, 1), which has the distribution of log Gamma(a + 1) + log u / a.

    It is finite also where g itself would be rounded to 0.
    """
    bounded = log_a.clamp(-_HUGE, _HUGE)
    a = bounded.exp()
    g = dist.Gamma(a + 1, torch.ones_like(a), validate_args=False).sample()
    u = torch.rand_like(a).clamp(min=torch.finfo(a.dtype).tiny)
    return g.log() + u.log() / a + (log_a - bounded).clamp(min=0)


class NegativeBinomial(dist.TorchDistribution):
    """A negative binomial by its mean mu and its dispersion theta, Var = mu + mu^2 / theta.

    Args:
        log_mean: log mu, any shape.
        log_dispersion: log theta, a shape that broadcasts with it.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "log_mean": constraints.real,
        "log_dispersion": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor) -> None:
        log_dispersion = log_dispersion.clamp(-_HUGE, _HUGE)
        self.log_mean, self.log_dispersion = broadcast_all(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + (2 * self.log_mean - self.log_dispersion).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        log_share = logsigmoid(self.log_dispersion - self.log_mean)  # of theta in theta + mu
        return (
            value * self.log_mean
            - torch.lgamma(value + 1)
            + (self.log_dispersion.exp() + value) * log_share
            + log_rising(self.log_dispersion, value)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        log_theta = self.log_dispersion.expand(shape)
        log_rate = self.log_mean - log_theta + log_gamma_draw(log_theta)
        return torch.poisson(log_rate.clamp(max=40.0).exp())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(
            self.log_mean.expand(batch_shape), self.log_dispersion.expand(batch_shape)
        )


class BetaBinomial(dist.TorchDistribution):
    """A beta-binomial by its mean n p and its concentration c, Var = n p (1-p) (c+n) / (c+1).

    Args:
        total: n.
        logits: the log-odds of p, any shape.
        log_concentration: log c, a shape that broadcasts with it.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "logits": constraints.real,
        "log_concentration": constraints.real,
    }

    def __init__(self, total: int, logits: Tensor, log_concentration: Tensor) -> None:
        log_concentration = log_concentration.clamp(-_HUGE, _HUGE)
        self.total = total
        self.logits, self.log_concentration = broadcast_all(logits, log_concentration)
        super().__init__(self.logits.shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.integer_interval(0, self.total)

    @property
    def mean(self) -> Tensor:
        return self.total * self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        more = 1 + (self.total - 1) * (-self.log_concentration).sigmoid()  # (c + n) / (c + 1)
        return self.mean * (-self.logits).sigmoid() * more

    def _log_shapes(self) -> tuple[Tensor, Tensor]:
        """log(c p) and log(c (1 - p))."""
        log_c = self.log_concentration
        return log_c + logsigmoid(self.logits), log_c + logsigmoid(-self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        rest = self.total - value
        a, b = self._log_shapes()
        whole = torch.full_like(value, self.total)
        return (
            torch.lgamma(whole + 1)
            - torch.lgamma(value + 1)
            - torch.lgamma(rest + 1)
            + value * logsigmoid(self.logits)
            + rest * logsigmoid(-self.logits)
            + log_rising(a, value)
            + log_rising(b, rest)
            - log_rising(self.log_concentration, whole)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        a, b = (log_gamma_draw(log_shape.expand(shape)) for log_shape in self._log_shapes())
        p = (a - b).sigmoid()
        return torch.binomial(torch.full_like(p, self.total), p)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        logits, log_c = (t.expand(batch_shape) for t in (self.logits, self.log_concentration))
        return type(self)(self.total, logits, log_c)
