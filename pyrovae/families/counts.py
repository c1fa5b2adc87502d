r"""Families over counts without an upper limit, under a log link.

    Poisson              log p(x | h) = \sum_i x_i log r_i - r_i - log x_i!,     r = e^h
    negative binomial    a Poisson whose rate varies: mean mu = e^h, Var x = mu + mu^2 / theta
    zero-inflated        (1 - pi) p(x) + pi [x = 0]: with probability pi nothing is counted

Each of them takes a size factor e for each row, see `exposure`. Where a decoder starts and what EM
does with them is in `rates`.

A component of a mixture that saw no count in a column would give a later one the probability 0 and
its row log p = -infinity: rates have a floor.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import overdispersed
from pyrovae.families import exposure as size
from pyrovae.families import rates
from pyrovae.families.expectation import Prepared
from pyrovae.families.exposure import Exposure
from pyrovae.families.family import Family

Floor = Annotated[float, Field(gt=0, lt=0.5)]
Dispersion = Literal["shared", "network"]


class Poisson(Family):
    """Independent counts, with h the logarithm of the rate.

    Args:
        floor: the smallest rate, for a size factor of 1, which keeps the probability of a count
            that was never seen above zero.
        exposure: where the size factors of the rows are from: `none` has none, `offset` takes
            those that are given with the rows, `total` the rows' totals.
    """

    floor: Floor = 1e-4
    exposure: Exposure = "none"
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    setup, start, given, check = size.setup, size.start, size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        return dist.Poisson((self.floor + h.exp()) * log_e.exp()).to_event(len(self.event))

    def marginal(self, batch: Batch) -> Tensor:
        return rates.inverse_rate(self, rates.moments(self, batch)[0])

    def prepare(self, batch: Batch) -> Prepared:
        """The counts, the size factor, and what of log p no h has a part in."""
        x, log_e = batch.x, size.log_exposure(self, batch)
        e = log_e.exp().reshape(-1, 1).to(x).expand(len(x), 1)
        rest = (x * log_e - torch.lgamma(x + 1)).flatten(1).sum(-1, keepdim=True)
        return Prepared(batch, torch.cat([x.flatten(1), e, rest], -1))

    def statistics(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.prepare(Batch(x)).t)

    def maximize(self, statistics: Tensor) -> Tensor:
        rate = statistics[..., :-2] / statistics[..., -2:-1]
        return rates.inverse_rate(self, rate.unflatten(-1, self.params))

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor] | None:
        if h.dtype != torch.float64:
            return None  # large terms cancel
        rate = (self.floor + h.exp()).flatten(-len(self.event))
        total = rate.sum(-1, keepdim=True)
        return torch.cat([rate.log(), -total, torch.ones_like(total)], -1), 0 * total[..., 0]


class ZeroInflatedPoisson(Family):
    """A Poisson that is 0 with a further probability, (1 - pi) Poisson(x; e^h_1) + pi [x = 0].

    The log-odds of pi are h_2. Zero-Inflated Poisson Regression, with an Application to Defects in
    Manufacturing (Lambert, 1992, https://doi.org/10.2307/1269547).

    Args:
        floor: the smallest rate, for a size factor of 1.
        exposure: where the size factors of the rows are from: `none` has none, `offset` takes
            those that are given with the rows, `total` the rows' totals.
    """

    floor: Floor = 1e-4
    exposure: Exposure = "none"
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    planes: ClassVar[int] = 2
    setup, start, given, check = size.setup, size.start, size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        log_rate, logit = h.unbind(-1 - len(self.event))
        return inflated(dist.Poisson((self.floor + log_rate.exp()) * log_e.exp()), logit, self)

    def marginal(self, batch: Batch) -> Tensor:
        mean, s, _ = rates.moments(self, batch)
        share = (1 / s).clamp(0.05, 0.95)
        return torch.stack([(mean / share).log(), -share.logit()])

    def expect(self, rows: Prepared, r: Tensor, h: Tensor) -> list[Tensor]:
        """The sums over rows of c, x and c e, c the probability of no further zero."""
        batch = rows.batch.unsqueeze(r.dim() - 1)
        log_e, (log_rate, logit) = size.log_exposure(self, batch), h.unbind(-1 - len(self.event))
        r = r[(..., *[None] * len(self.event))]
        c = r * rates.counted(batch.x, -(self.floor + log_rate.exp()) * log_e.exp(), logit)
        return [total.sum(0) for total in (c, c * batch.x, c * log_e.exp())]

    def improve(self, n: Tensor, t: list[Tensor], h: Tensor) -> Tensor:
        c, x, exposed = t
        odds = rates.inflation(c, n[(..., *[None] * len(self.event))])
        return torch.stack([rates.inverse_rate(self, x / exposed), odds], -1 - len(self.event))


class NegativeBinomial(Family):
    """Independent counts with mean mu = e^h and Var x = mu + mu^2 / theta: overdispersed.

    As theta grows it becomes a Poisson. Deep generative modeling for single-cell transcriptomics
    (Lopez, Regier, Cole, Jordan & Yosef, 2018, https://doi.org/10.1038/s41592-018-0229-2).

    Args:
        dispersion: where theta is from: `shared` has one for each entry of the event, learned and
            the same for all rows; with `network` log theta is the last part of h.
        exposure: where the size factors of the rows are from: `none` has none, `offset` takes
            those that are given with the rows, `total` the rows' totals.
        floor: the smallest mean in the M-step of a mixture, for a size factor of 1.
    """

    dispersion: Dispersion = "shared"
    exposure: Exposure = "none"
    floor: Floor = 1e-4
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    setup, start, given, check = rates.setup, rates.start, size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode
    expect, improve = rates.expect, rates.improve

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        log_mean, log_theta = rates.split(self, h)
        p = overdispersed.NegativeBinomial(log_mean + log_e, log_theta)
        return p.to_event(len(self.event))

    def marginal(self, batch: Batch) -> Tensor:
        mean, s, _ = rates.moments(self, batch)
        return rates.join(self, mean.log(), rates.log_dispersion(s))

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(), cls(dispersion="network")


class ZeroInflatedNegativeBinomial(Family):
    """A negative binomial that is 0 with a further probability, (1 - pi) NB(x) + pi [x = 0].

    The log-odds of pi are h_2; the rest as in `NegativeBinomial`. Deep generative modeling for
    single-cell transcriptomics (Lopez, Regier, Cole, Jordan & Yosef, 2018,
    https://doi.org/10.1038/s41592-018-0229-2).

    Args:
        dispersion: where theta is from: `shared` has one for each entry of the event, learned and
            the same for all rows; with `network` log theta is the last part of h.
        exposure: where the size factors of the rows are from: `none` has none, `offset` takes
            those that are given with the rows, `total` the rows' totals.
        floor: the smallest mean in the M-step of a mixture, for a size factor of 1.
    """

    dispersion: Dispersion = "shared"
    exposure: Exposure = "none"
    floor: Floor = 1e-4
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    planes: ClassVar[int] = 2
    setup, start, given, check = rates.setup, rates.start, size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode
    expect, improve = rates.expect, rates.improve

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        log_mean, logit, log_theta = rates.split(self, h)
        return inflated(overdispersed.NegativeBinomial(log_mean + log_e, log_theta), logit, self)

    def marginal(self, batch: Batch) -> Tensor:
        mean, s, t = rates.moments(self, batch)
        share = rates.inflation_free(s, t)
        return rates.join(
            self, (mean / share).log(), -share.logit(), rates.log_dispersion(share * s)
        )

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(), cls(dispersion="network")


def inflated(p: Any, logit: Tensor, family: Family) -> dist.Distribution:
    """P with further zeros, over the event of a family."""
    return dist.ZeroInflatedDistribution(p, gate_logits=logit).to_event(len(family.event))
