r"""Families over whole numbers. Their densities are probabilities: log p is at most 0.

    Bernoulli   log p(x | h) = \sum_i x_i h_i - log(1 + e^{h_i}),        h the log-odds
    Poisson     log p(x | h) = \sum_i x_i log r_i - r_i - log x_i!,      r = e^h

A component of a mixture that saw no 1 in a column would give a later 1 the probability 0 and its
row log p = -infinity: the M-steps keep probabilities and rates above a floor.
"""

from typing import Annotated, ClassVar

import pyro.distributions as dist
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae.families.family import Family

Floor = Annotated[float, Field(gt=0, lt=0.5)]


class Bernoulli(Family):
    """Independent zeros and ones, with h the log-odds of a one.

    Args:
        floor: the smallest probability of either value in the M-step of a mixture.
    """

    floor: Floor = 0.01
    support: ClassVar[Constraint] = constraints.boolean

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=h).to_event(len(self.event))

    def table(self, x: Tensor, h: Tensor) -> Tensor:
        """One matrix product: the log density is linear in x."""
        return x.flatten(1) @ h.flatten(1).mT - softplus(h).flatten(1).sum(-1)

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        return statistics.clamp(self.floor, 1 - self.floor).logit().unflatten(-1, self.params)


class Poisson(Family):
    """Independent counts, with h the logarithm of the rate.

    Args:
        floor: the smallest rate, which keeps the probability of a count that was never seen above
            zero.
    """

    floor: Floor = 1e-4
    support: ClassVar[Constraint] = constraints.nonnegative_integer

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Poisson(self.floor + h.exp()).to_event(len(self.event))

    def encode(self, x: Tensor) -> Tensor:
        """log(1 + x): counts span orders of magnitude."""
        return x.log1p()

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        above = (statistics - self.floor).clamp(min=1e-3 * self.floor)
        return above.log().unflatten(-1, self.params)
