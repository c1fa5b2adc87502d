r"""Distributions by their mean and their concentration, exact however concentrated they are.

Gamma, beta and von Mises distributions with the concentration c have the form

    log p(x) = -c D(x, mean) - log V(x) - a normaliser,

with D >= 0, zero where x is the mean m and quadratic around it. A concentrated one is close to a
normal with a variance in proportion to 1 / c, the *dispersion*. Written in powers of x, as usual,
terms of the size c log c cancel, and at c = 10^6 no digit is left in float32. Here

    gamma        D = d(r)                                     d(r) = r - 1 - log r
    beta         D = m d(x / m) + (1 - m) d((1-x) / (1-m))
    von Mises    D = 2 sin^2((x - m) / 2)

and the normaliser by the remainder of Stirling's formula and the exponentially scaled Bessel
function.
"""

import math
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from pyrovae.distributions.supports import angle


def deviance(log_ratio: Tensor) -> Tensor:
    """d(r) = r - 1 - log r, by the logarithm of r."""
    return log_ratio.expm1() - log_ratio


def stirling(k: Tensor, log_k: Tensor) -> Tensor:
    """The remainder log Gamma(k) - (k log k - k), for k > 0; with its logarithm k may be tiny."""
    large, small = k.clamp(min=32.0), k.clamp(max=32.0)
    u = large.square().reciprocal()
    series = (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u / 1680))) / large
    return torch.where(
        k > 32.0,
        0.5 * (2 * math.pi / large).log() + series,
        (small + 1).lgamma() - log_k - (small * log_k - small),
    )


class Gamma(dist.TorchDistribution):
    """A gamma distribution, of variance mean^2 / concentration.

    Args:
        log_mean: the logarithm of the mean.
        concentration: the shape parameter.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.positive
    has_rsample = True

    def __init__(self, log_mean: Tensor, concentration: Tensor) -> None:
        self.log_mean, self.concentration = torch.broadcast_tensors(log_mean, concentration)
        super().__init__(self.log_mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean.square() / self.concentration

    def log_prob(self, value: Tensor) -> Tensor:
        log, k = value.log(), self.concentration
        return -k * deviance(log - self.log_mean) - log - stirling(k, k.log())

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        ratio = dist.Gamma(self.concentration, self.concentration).rsample(sample_shape)
        return (ratio * self.mean).clamp(min=torch.finfo(ratio.dtype).tiny)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(
            self.log_mean.expand(batch_shape), self.concentration.expand(batch_shape)
        )


class Beta(dist.TorchDistribution):
    """A beta distribution, of variance mean (1 - mean) / (1 + concentration).

    Args:
        logits: the log-odds of the mean.
        concentration: the sum of the two usual parameters.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, concentration: Tensor) -> None:
        self.logits, self.concentration = torch.broadcast_tensors(logits, concentration)
        super().__init__(self.logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (-self.logits).sigmoid() / (1 + self.concentration)

    def _usual(self) -> tuple[Tensor, Tensor]:
        c = self.concentration
        return c * self.logits.sigmoid(), c * (-self.logits).sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        log, log_rest = value.log(), (-value).log1p()
        log_c, log_m = self.concentration.log(), logsigmoid(self.logits)
        log_n = logsigmoid(-self.logits)
        parts = ((value, log, log_m), (1 - value, log_rest, log_n))
        fit = sum(self._fit(*part) for part in parts)
        return -fit - log - log_rest + stirling(self.concentration, log_c)

    def _fit(self, value: Tensor, log: Tensor, log_m: Tensor) -> Tensor:
        """The fit a d(x / m) and the remainder of log Gamma(a), for a = c m, which may be tiny.

        Far above m, a d(x / m) is c x - a (1 + log x / m): no overflow times no a.
        """
        c = self.concentration
        log_a, log_ratio = c.log() + log_m, log - log_m
        a = log_a.exp()
        near = a * deviance(log_ratio.clamp(max=1.0))
        far = c * value - a * (1 + log_ratio)
        return torch.where(log_ratio < 1.0, near, far) + stirling(a, log_a)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        value = dist.Beta(*self._usual()).rsample(sample_shape)
        info = torch.finfo(value.dtype)
        return value.clamp(info.tiny, 1 - info.eps)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        parameters = (self.logits, self.concentration)
        return type(self)(*(value.expand(batch_shape) for value in parameters))


class VonMises(dist.TorchDistribution):
    """The von Mises distribution of an angle; uniform at the concentration 0.

    Args:
        loc: the mean direction, in radians.
        concentration: for a large one the variance is 1 / concentration.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = angle

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        self.loc, self.concentration = torch.broadcast_tensors(loc, concentration)
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean direction."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The circular variance, 1 minus the length of the mean of (cos x, sin x)."""
        return dist.VonMises(self.loc, self.concentration).variance

    def log_prob(self, value: Tensor) -> Tensor:
        k = self.concentration
        bessel = torch.special.i0e(k.double()).log().to(k)  # its gradient cancels
        distance = 2 * ((value - self.loc) / 2).sin().square()
        return -k * distance - math.log(2 * math.pi) - bessel

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        value = dist.VonMises(self.loc, self.concentration).sample(sample_shape)
        return value.clamp(-math.pi, math.pi)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        parameters = (self.loc, self.concentration)
        return type(self)(*(value.expand(batch_shape) for value in parameters))
