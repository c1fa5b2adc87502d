r"""The uniform distribution on [0, 1], tilted: the continuous Bernoulli.

    p(x) = e^{eta x} / \int_0^1 e^{eta t} dt,
    log p(x) = eta (x - 1/2) - L(eta / 2),       L(t) = log(sinh t / t) .

The derivatives of the log normaliser are the moments, mean = 1/2 + L'(eta/2) / 2 and
variance = L''(eta/2) / 4. All of them are even or odd in t, and 0/0 at 0, where series take over.
Without the normaliser, as the Bernoulli's cross-entropy of grey values, it is no density at all:
its integral grows with |eta|.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

_SMALL = 0.1
"""Where the series are as exact as the formulas, in float64."""


class TiltedUniform(dist.TorchDistribution):
    """The continuous Bernoulli distribution.

    Args:
        eta: the tilt; p(1) / p(0) = e^eta.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, eta: Tensor) -> None:
        self.eta = eta
        super().__init__(eta.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        t, u = _halves(self.eta)
        series = t * (1 / 3 - u * (1 / 45 - u * (2 / 945 - u / 4725)))
        large = _away(t)
        slope = torch.where(t.abs() < _SMALL, series, 1 / large.tanh() - 1 / large)
        return 0.5 + slope / 2

    @property
    def variance(self) -> Tensor:
        t, u = _halves(self.eta)
        series = 1 / 3 - u * (1 / 15 - u * (2 / 189 - u / 675))
        large = _away(t).abs()
        decay = (-2 * large).exp()
        formula = large.square().reciprocal() - 4 * decay / (1 - decay).square()
        return torch.where(t.abs() < _SMALL, series, formula) / 4

    def log_prob(self, value: Tensor) -> Tensor:
        t, u = _halves(self.eta)
        series = u * (1 / 6 - u * (1 / 180 - u * (1 / 2835 - u / 37800)))
        large = _away(t).abs()
        formula = large + (-(-2 * large).exp()).log1p() - (2 * large).log()
        return self.eta * (value - 0.5) - torch.where(t.abs() < _SMALL, series, formula)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """By the inverse of the distribution function, from the side that has the mass."""
        uniform = torch.rand_like(self.eta.expand(self._extended_shape(Size(sample_shape))))
        decay = -self.eta.abs().clamp(min=1e-6)
        near = ((uniform * decay.expm1()).log1p() / decay).clamp(0, 1)
        return torch.where(self.eta < 0, near, 1 - near)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.eta.expand(batch_shape))


def tilt(mean: Tensor) -> Tensor:
    """The eta with this mean, by Newton's method."""
    eta = 1 / (1 - mean) - 1 / mean
    for _ in range(6):
        p = TiltedUniform(eta)
        eta = eta - (p.mean - mean) / p.variance
    return eta


def _halves(eta: Tensor) -> tuple[Tensor, Tensor]:
    """T = eta / 2 and its square, the latter small."""
    t = eta / 2
    return t, t.clamp(-_SMALL, _SMALL).square()


def _away(t: Tensor) -> Tensor:
    """T, or where it is close to 0 a number that is not."""
    return torch.where(t.abs() < _SMALL, 1.0, t)
