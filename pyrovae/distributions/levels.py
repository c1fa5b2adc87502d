r"""Numbered levels 0, ..., K - 1, and probabilities that respect their order.

    log p(x) = \sum_k [x = k] log p_k

*Proportional odds* cut a logistic variable around a location h at c_1 < ... < c_{K-1},

    p(x < k | h) = sigmoid(c_k - h),   so   p_k = sigmoid(c_{k+1} - h) - sigmoid(c_k - h) .

Far out both sigmoids round to the same number. Written as a product their difference does not,

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^{a - b}),

and b - a is the distance between two cuts, whatever h is.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid


class Levels(dist.TorchDistribution):
    """A level from 0 to K - 1, as a number of the dtype of the logits.

    Args:
        logits: log p_k up to a constant, shape `(..., K)`.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.integer_interval(0, self.logits.shape[-1] - 1)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.logits.shape[-1]).to(self.logits)

    @property
    def mean(self) -> Tensor:
        return self.logits.exp() @ self._levels

    @property
    def variance(self) -> Tensor:
        return (self.logits.exp() * (self._levels - self.mean[..., None]).square()).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits = self.logits.expand(*shape, -1)
        return logits.gather(-1, value.long().expand(shape)[..., None])[..., 0]

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        logits = self.logits.expand(*shape, -1)
        noise = torch.empty_like(logits).exponential_().log()
        return (logits - noise).argmax(-1).to(logits.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.logits.expand(*batch_shape, -1))


def ordered_logits(h: Tensor, cuts: Tensor, gaps: Tensor) -> Tensor:
    """Log p_k of the levels between cuts, shape `(..., K)`.

    Args:
        h: the location, shape `(...)`.
        cuts: c, shape `(..., K - 1)`.
        gaps: the distances between neighbouring cuts, exactly, shape `(..., K - 2)`.
    """
    distance = cuts - h[..., None]
    none = torch.zeros_like(distance[..., :1])
    between = torch.cat([none, (-(-gaps).expm1()).log().expand(*h.shape, -1), none], -1)
    below, above = logsigmoid(distance), logsigmoid(-distance)
    return torch.cat([below, none], -1) + torch.cat([none, above], -1) + between
