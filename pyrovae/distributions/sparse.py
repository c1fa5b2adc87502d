r"""A density for sparse vectors, with a pole at 0 and tails as of a Cauchy.

    p(z) = log(1 + \tau^2 / z^2) / (2 \pi \tau)

A uniform number times a Cauchy has this density, \int_0^1 du u / (\pi (u^2 + z^2)) at tau = 1,
which is how it is sampled. The pole is integrable, but its logarithm and its gradient are not
finite. So |z| is taken as \sqrt{z^2 + (10^{-7} \tau)^2}: the density is finite at 0, and its
integral short of one by 10^{-7}.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor, pi
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

ROUND = 1e-7
"""Up to which |z|, in units of the scale, the pole is rounded off."""
FAR = 1e4
"""From which |z|, in units of the scale, log(1 + 1/z^2) is 1/z^2 to the last digit."""


class HorseshoeLike(dist.TorchDistribution):
    """The horseshoe-like distribution, a pole at 0 and heavy tails; it has no mean.

    The Horseshoe-Like Regularization for Feature Subset Selection (Bhadra, Datta, Polson &
    Willard, 2019, https://arxiv.org/abs/1702.07400).

    Args:
        scale: tau, any shape.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"scale": constraints.positive}
    support: ClassVar[Constraint] = constraints.real
    has_rsample = True

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale
        super().__init__(scale.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        distance = torch.hypot(value / self.scale, self.scale.new_tensor(ROUND))
        near = distance.clamp(max=FAR).pow(-2).log1p().log()
        far = -2 * distance.clamp(min=FAR).log()
        return torch.where(distance < FAR, near, far) - (2 * pi * self.scale).log()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        scale = self.scale.expand(self._extended_shape(Size(sample_shape)))
        cauchy = (pi * (torch.rand_like(scale) - 0.5)).tan()
        return scale * torch.rand_like(scale) * cauchy

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.scale.expand(batch_shape))
