r"""Families over counts without an upper limit, under a log link.

    Poisson              log p(x | h) = \sum_i x_i log r_i - r_i - log x_i!,     r = e^h
    negative binomial    a Poisson whose rate varies: mean mu = e^h, Var x = mu + mu^2 / theta
    zero-inflated        (1 - pi) p(x) + pi [x = 0]: with probability pi nothing is counted

Each of them takes a size factor e for each row, see `exposure`. A decoder starts at the moments of
the data: with the factorial moments m_k, the sum over rows of x (x - 1) ... (x - k + 1) over that
of e^k, and s = m_2 / m_1^2, t = m_3 / (m_1 m_2),

    Poisson                           s = t = 1
    negative binomial                 s = 1 + 1 / theta,    t = 1 + 2 / theta
    with an inflation pi of zeros     both divided by 1 - pi, and m_1 multiplied by it.

A component of a mixture that saw no count in a column would give a later one the probability 0 and
its row log p = -infinity: the Poisson's rate has a floor. The others have no closed-form M-step.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import overdispersed
from pyrovae.families import exposure as size
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
        return self._inverse(moments(self, batch)[0])

    def statistics(self, x: Tensor) -> Tensor:
        log_e = size.log_exposure(self, Batch(x)).reshape(-1, 1)
        return torch.cat([x.flatten(1), log_e.to(x).exp().expand(len(x), 1)], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        return self._inverse(statistics[..., :-1] / statistics[..., -1:]).unflatten(
            -1, self.params
        )

    def _inverse(self, rate: Tensor) -> Tensor:
        return (rate - self.floor).clamp(min=1e-3 * self.floor).log()


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
        mean, s, _ = moments(self, batch)
        share = (1 / s).clamp(0.05, 0.95)
        return torch.stack([(mean / share).log(), -share.logit()])


class NegativeBinomial(Family):
    """Independent counts with mean mu = e^h and Var x = mu + mu^2 / theta: overdispersed.

    As theta grows it becomes a Poisson. Deep generative modeling for single-cell transcriptomics
    (Lopez, Regier, Cole, Jordan & Yosef, 2018, https://doi.org/10.1038/s41592-018-0229-2).

    Args:
        dispersion: where theta is from: `shared` has one for each entry of the event, learned and
            the same for all rows; with `network` log theta is the last part of h.
        exposure: where the size factors of the rows are from: `none` has none, `offset` takes
            those that are given with the rows, `total` the rows' totals.
    """

    dispersion: Dispersion = "shared"
    exposure: Exposure = "none"
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    given, check = size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode

    def setup(self, event: tuple[int, ...]) -> None:
        setup_dispersed(self, event)

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        log_mean, log_theta = split(self, h)
        p = overdispersed.NegativeBinomial(log_mean + log_e, log_theta)
        return p.to_event(len(self.event))

    def start(self, x: Tensor) -> None:
        start_dispersed(self, x)

    def marginal(self, batch: Batch) -> Tensor:
        mean, s, _ = moments(self, batch)
        return join(self, mean.log(), log_dispersion(s))

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
    """

    dispersion: Dispersion = "shared"
    exposure: Exposure = "none"
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    planes: ClassVar[int] = 2
    given, check = size.given, size.check
    conditions, blank, encode = property(size.conditions), size.blank, size.encode

    def setup(self, event: tuple[int, ...]) -> None:
        setup_dispersed(self, event)

    def forward(self, h: Tensor, log_e: Tensor = size.NONE) -> dist.Distribution:
        log_mean, logit, log_theta = split(self, h)
        return inflated(overdispersed.NegativeBinomial(log_mean + log_e, log_theta), logit, self)

    def start(self, x: Tensor) -> None:
        start_dispersed(self, x)

    def marginal(self, batch: Batch) -> Tensor:
        mean, s, t = moments(self, batch)
        share = inflation_free(s, t)
        return join(self, (mean / share).log(), -share.logit(), log_dispersion(share * s))

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(), cls(dispersion="network")


def moments(family: Family, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """m_1, s and t of each entry, shape `event`; an entry that is always 0 has half a count."""
    x = batch.x
    e = (torch.zeros_like(x) + size.log_exposure(family, batch)).exp()
    one = x.sum(0).clamp(min=0.5) / e.sum(0)
    two = (x * (x - 1)).sum(0) / e.square().sum(0)
    three = (x * (x - 1) * (x - 2)).sum(0) / e.pow(3).sum(0)
    return one, two / one.square(), (three / (one * two)).nan_to_num(1.0)


def log_dispersion(s: Tensor) -> Tensor:
    """Log theta of a negative binomial, between 0.001 and 1000."""
    return -(s - 1).clamp(1e-3, 1e3).log()


def inflation_free(s: Tensor, t: Tensor) -> Tensor:
    """1 - pi of a zero-inflated negative binomial, between 0.05 and 0.95."""
    return 1 / (2 * s - t).clamp(1 / 0.95, 1 / 0.05)


def inflated(p: Any, logit: Tensor, family: Family) -> dist.Distribution:
    """P with further zeros, over the event of a family."""
    return dist.ZeroInflatedDistribution(p, gate_logits=logit).to_event(len(family.event))


def setup_dispersed(family: Any, event: tuple[int, ...]) -> None:
    """Log theta as a parameter where it is shared, and otherwise as one more plane of h."""
    size.setup(family, event)
    if family.dispersion == "shared":
        family.log_dispersion = nn.Parameter(torch.zeros(family.event))
    else:
        family.params = Size((family.planes + 1, *event))


@torch.no_grad()
def start_dispersed(family: Any, x: Tensor) -> None:
    """Take the mean total and, where it is shared, theta from the data."""
    size.start(family, x)
    if family.dispersion == "shared":
        _, s, t = moments(family, Batch(x))
        share = inflation_free(s, t) if family.planes > 1 else 1.0
        family.log_dispersion.copy_(log_dispersion(share * s))


def split(family: Any, h: Tensor) -> tuple[Tensor, ...]:
    """The planes of h, and log theta after them where it is shared."""
    many = len(family.params) > len(family.event)
    planes = h.unbind(-1 - len(family.event)) if many else (h,)
    return (*planes, family.log_dispersion) if family.dispersion == "shared" else planes


def join(family: Any, *planes: Tensor) -> Tensor:
    """The h that `split` takes apart."""
    own = planes[:-1] if family.dispersion == "shared" else planes
    return torch.stack(own) if len(own) > 1 else own[0]
