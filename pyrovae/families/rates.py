r"""What families over counts have in common: their moments, and their M-steps.

A decoder starts at the moments of the data: with the factorial moments m_k, the sum over rows of
x (x - 1) ... (x - k + 1) over that of e^k, e their size factors, and s = m_2 / m_1^2,
t = m_3 / (m_1 m_2),

    Poisson                           s = t = 1
    negative binomial                 s = 1 + 1 / theta,    t = 1 + 2 / theta
    with an inflation pi of zeros     both divided by 1 - pi, and m_1 multiplied by it.

In a mixture two latents are beside k: w, which the rate of a negative binomial is multiplied by,
see `mixing`, and whether an entry is one of the further zeros. Given x,

    w ~ Gamma(theta + x, theta + e mu),
    c = (1 - pi) p(0) / ((1 - pi) p(0) + pi) where x = 0, the probability that it is none, else 1.

The M-step is, with r the responsibilities of a component for the rows, w = 1 for a Poisson, and
alpha the mean of w,

    1 - pi = \sum r c / \sum r,    mu = alpha \sum r c x / \sum r c e w .

Without size factors alpha makes mu the mean of x, whatever w is.
"""

from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import logsigmoid

from pyrovae.batch import Batch
from pyrovae.families import exposure as size
from pyrovae.families.expectation import Prepared
from pyrovae.families.family import Family
from pyrovae.families.mixing import concentration, gap, shared

LIMITS = 1e-3, 1e3
"""The smallest theta and the largest, with which it is as good as a Poisson."""
SURE = 1e-6
"""The smallest probability of a further zero, and of none."""


def moments(family: Family, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """m_1, s and t of each entry, shape `event`; an entry that is always 0 has half a count."""
    x = batch.x
    e = (torch.zeros_like(x) + size.log_exposure(family, batch)).exp()
    one = x.sum(0).clamp(min=0.5) / e.sum(0)
    two = (x * (x - 1)).sum(0) / e.square().sum(0)
    three = (x * (x - 1) * (x - 2)).sum(0) / e.pow(3).sum(0)
    return one, two / one.square(), (three / (one * two)).nan_to_num(1.0)


def log_dispersion(s: Tensor) -> Tensor:
    """Log theta of a negative binomial."""
    return -(s - 1).clamp(*LIMITS).log()


def inflation_free(s: Tensor, t: Tensor) -> Tensor:
    """1 - pi of a zero-inflated negative binomial, between 0.05 and 0.95."""
    return 1 / (2 * s - t).clamp(1 / 0.95, 1 / 0.05)


def setup(family: Any, event: tuple[int, ...]) -> None:
    """Log theta as a parameter where it is shared, and otherwise as one more plane of h."""
    size.setup(family, event)
    if family.dispersion == "shared":
        family.log_dispersion = nn.Parameter(torch.zeros(family.event))
    else:
        family.params = Size((family.planes + 1, *event))


@torch.no_grad()
def start(family: Any, x: Tensor) -> None:
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
    return torch.stack(own, -1 - len(family.event)) if len(own) > 1 else own[0]


def inverse_rate(family: Any, rate: Tensor) -> Tensor:
    """The h with floor + e^h = rate, or a rate just above the floor."""
    return (rate - family.floor).clamp(min=1e-3 * family.floor).log()


def counted(x: Tensor, log_zero: Tensor, logit: Tensor) -> Tensor:
    """The probability c that an entry is no further zero.

    Args:
        x: counts.
        log_zero: log p(0) without further zeros.
        logit: the log-odds of pi.
    """
    return torch.where(x > 0, 1.0, (log_zero - logit).sigmoid())


def inflation(c: Tensor, n: Tensor) -> Tensor:
    """The log-odds of pi, of n entries of which c are no further zeros."""
    return -(c / n).clamp(SURE, 1 - SURE).logit()


def expect(family: Any, rows: Prepared, r: Tensor, h: Tensor) -> list[Tensor]:
    """The sums over rows of c, c x, c e w, c w and c E[log w] of a negative binomial."""
    batch = rows.batch.unsqueeze(r.dim() - 1)
    x, log_e = batch.x, size.log_exposure(family, batch)
    log_mean, *logit, log_theta = split(family, h)
    log_mean, theta = log_mean + log_e, log_theta.exp()
    rate = theta + log_mean.exp()
    w, log_w = (theta + x) / rate, (theta + x).digamma() - rate.log()
    c = r[(..., *[None] * len(family.event))]
    if logit:
        c = c * counted(x, theta * logsigmoid(log_theta - log_mean), logit[0])
    return [c.sum(0), *((c * t).sum(0) for t in (x, log_e.exp() * w, w, log_w))]


def improve(family: Any, n: Tensor, t: list[Tensor], h: Tensor) -> Tensor:
    """The M-step of a negative binomial, also of one with further zeros."""
    c, x, exposed, w, log_w = t
    some, dims = c.clamp(min=torch.finfo(h.dtype).tiny), len(family.event)
    w, log_w = w / some, log_w / some
    alpha = torch.where(w * x > family.floor * exposed, w, 1.0)
    log_mean = (alpha * x / exposed).clamp(min=family.floor).log()
    gaps = gap(w, log_w, alpha)
    if family.dispersion == "shared":
        gaps = shared(gaps, some, dims)
    log_theta = concentration(gaps).clamp(*LIMITS).log()
    if family.dispersion == "shared":
        family.log_dispersion.copy_(log_theta.view_as(family.log_dispersion))
    odds = [inflation(c, n[(..., *[None] * dims)])] if family.planes > 1 else []
    return join(family, log_mean, *odds, log_theta)
