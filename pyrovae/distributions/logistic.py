r"""A logistic variable rounded to whole levels, which end somewhere.

    P(x) = sigma(a) - sigma(b),      a = (x + 1/2 - mu) / s,   b = (x - 1/2 - mu) / s,

with all that lies below the lowest level folded into it (b = -infinity there) and all above the
highest into that (a = infinity). Far out both sigmoids round to the same number, so the
difference is factorised, which is exact everywhere,

    log P(x) = log sigma(a) + log sigma(-b) + log(1 - e^{-(a - b)}),      a - b = 1/s .

At an end one of the sigmoids is 1 and the last factor drops out
(PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
Modifications, Salimans, Karpathy, Chen & Kingma, 2017, https://arxiv.org/abs/1701.05517).
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid


class DiscretizedLogistic(dist.TorchDistribution):
    """Whole numbers from `low` to `high`, a logistic variable rounded and clamped.

    Args:
        loc: mu, in levels, any shape; it can lie outside the levels.
        scale: s, in levels, positive.
        low: the lowest level.
        high: the highest level.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        low: int = 0,
        high: int = 255,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.low, self.high = low, high
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.integer_interval(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        below, above = value > self.low, value < self.high
        a, b = ((value + half - self.loc) / self.scale for half in (0.5, -0.5))
        width = (-(-1 / self.scale).expm1()).log()
        return (
            torch.where(above, logsigmoid(a), 0.0)
            + torch.where(below, logsigmoid(-b), 0.0)
            + torch.where(above & below, width, 0.0)
        )

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            uniform = self.loc.new_empty(self._extended_shape(sample_shape)).uniform_()
            return (self.loc + self.scale * uniform.logit()).round().clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        return self._expect(lambda levels: levels)

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._expect(lambda levels: (levels - mean).square())

    def _expect(self, function: Any) -> Tensor:
        """The expectation of a function, summed over the levels."""
        levels = torch.arange(self.low, self.high + 1).to(self.loc)
        levels = levels.reshape(-1, *[1] * len(self.batch_shape))
        return (self.log_prob(levels).exp() * function(levels)).sum(0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        loc, scale = (t.expand(batch_shape) for t in (self.loc, self.scale))
        return type(self)(loc, scale, self.low, self.high, self._validate_args)
