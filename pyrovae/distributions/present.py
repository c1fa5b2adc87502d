r"""A distribution over the entries that are there, NaN standing for those that are not.

Of independent entries the missing ones integrate to one, and their terms are left out:

    log p(x) = \sum_{i there} log p(x_i) .

A NaN that is only masked afterwards still makes its gradient NaN, so it is replaced by a number
inside the support first.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions.constraints import Constraint


class Present(dist.TorchDistribution):
    """Independent entries of which some can be missing; samples are complete.

    Args:
        whole: the distribution of complete rows, an `Independent`.
        inside: a number in the support of an entry; or one for each, in the event shape.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, whole: Any, inside: float | Tensor = 0.0) -> None:
        self.whole, self.inside = whole, inside
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return self.whole.support

    @property
    def has_rsample(self) -> bool:
        return self.whole.has_rsample

    def log_prob(self, value: Tensor) -> Tensor:
        there = ~value.isnan()
        entries = self.whole.base_dist.log_prob(torch.where(there, value, self.inside))
        dims = tuple(range(-len(self.event_shape), 0))
        return torch.where(there, entries, 0.0).sum(dims)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.whole.rsample(sample_shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        return self.whole.sample(sample_shape)

    def complete(self, x: Tensor) -> Tensor:
        """x, `(..., *event)`, with each missing entry drawn given those that are there."""
        leading = x.shape[: x.dim() - len(self.event_shape)]
        draws = self.expand(torch.broadcast_shapes(leading, self.batch_shape)).sample()
        return torch.where(x.isnan(), draws, x)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.whole.expand(batch_shape), self.inside)
