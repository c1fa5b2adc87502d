r"""Families over the number of successes in a known number of trials.

    Bernoulli        one trial: log p(x | h) = \sum_i x_i h_i - log(1 + e^{h_i}),   h the log-odds
    binomial         the same summed over n trials, + log of the number of ways to order them
    beta-binomial    a binomial whose probability varies: p ~ Beta with mean sigmoid(h_1) and
                     concentration c = e^{h_2}, Var x = n p (1 - p) (c + n) / (c + 1)

A component of a mixture that saw no success in a column would give a later one the probability 0
and its row log p = -infinity: the M-steps keep probabilities above a floor.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Self

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions import overdispersed
from pyrovae.families.expectation import linear
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

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        return statistics.clamp(self.floor, 1 - self.floor).logit().unflatten(-1, self.params)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        eta = h.flatten(-len(self.event))
        return eta, softplus(eta).sum(-1)

    def table(self, batch: Batch, h: Tensor) -> Tensor:
        if batch.incomplete:
            return super().table(batch, h)
        return linear(self.statistics(batch.x), *self.natural(h))


class Binomial(Family):
    """Independent numbers of successes in `total` trials, with h the log-odds of a success.

    Args:
        total: how many trials an entry has.
        floor: the smallest probability of success or failure in the M-step of a mixture.
    """

    total: PositiveInt
    floor: Floor = 0.01

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Binomial(self.total, logits=h).to_event(len(self.event))

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.total)

    @property
    def takes(self) -> str:
        return f"whole numbers from 0 to {self.total}"

    def encode(self, x: Tensor) -> Tensor:
        return x / self.total

    def statistics(self, x: Tensor) -> Tensor:
        """The fractions of successes, and what of log p no h has a part in."""
        n = x.new_tensor(self.total)
        ways = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
        return torch.cat([x.flatten(1) / n, ways.flatten(1).sum(-1, keepdim=True)], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        share = statistics[..., :-1].clamp(self.floor, 1 - self.floor)
        return share.logit().unflatten(-1, self.params)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor] | None:
        if h.dtype != torch.float64:
            return None  # large terms cancel
        eta = self.total * h.flatten(-len(self.event))
        a = self.total * softplus(h).flatten(-len(self.event)).sum(-1)
        return torch.cat([eta, torch.ones_like(a[..., None])], -1), a

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(total=1), cls(total=16)


class BetaBinomial(Family):
    """Independent successes in `total` trials, their probability drawn for each: overdispersed.

    It has the mean total * sigmoid(h_1) and the concentration c = e^{h_2}; as c grows it becomes a
    binomial, and for c = 2 and h_1 = 0 all numbers are equally probable.

    Args:
        total: how many trials an entry has.
    """

    total: PositiveInt
    planes: ClassVar[int] = 2

    def forward(self, h: Tensor) -> dist.Distribution:
        logits, log_c = h.unbind(-1 - len(self.event))
        return overdispersed.BetaBinomial(self.total, logits, log_c).to_event(len(self.event))

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.total)

    @property
    def takes(self) -> str:
        return f"whole numbers from 0 to {self.total}"

    def encode(self, x: Tensor) -> Tensor:
        return x / self.total

    @property
    def freedom(self) -> int:
        return min(self.total, 2) * self.event.numel()

    def marginal(self, batch: Batch) -> Tensor:
        """By how often two of an entry's trials succeed together, p^2 + p (1 - p) / (c + 1)."""
        x, n = batch.x, self.total
        p = x.mean(0).div(n).clamp(0.5 / (n * len(x)), 1 - 0.5 / (n * len(x)))
        both = (x * (x - 1)).mean(0) / max(n * (n - 1), 1)
        excess = ((both - p.square()) / (p * (1 - p))).clamp(1e-3, 0.99)
        return torch.stack([p.logit(), -excess.logit()])

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(total=1), cls(total=16)
