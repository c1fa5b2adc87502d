r"""Families over counts that share a total, given that total.

    multinomial              log p(x | n, h) = log n! - \sum_k log x_k! + \sum_k x_k log p_k
    Dirichlet-multinomial    the same with p drawn anew for each row from Dirichlet(e^h),

p = softmax(h) in both, and log \sum_k e^{h_k} the logarithm of the concentration in the latter. A
word that occurred once in a text is likely to occur again: that is what a finite concentration
says, and a multinomial cannot.

All entries of a row are one draw, whatever its dimensions. The total n is taken from the row, so
log p is that of x given n, and comparable with that of families that are given n as well.
"""

from typing import Annotated, Any, ClassVar

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import multinomial
from pyrovae.errors import Error
from pyrovae.families import exposure as size
from pyrovae.families.categorical import floored
from pyrovae.families.family import Family

Floor = Annotated[float, Field(gt=0, lt=0.5)]


def given(family: Family, h: Tensor, batch: Batch) -> dist.Distribution:
    """p(x | n, h), n the totals of the rows."""
    return family(h, size.totals(family, batch.x).round())


def typical(family: Any) -> Tensor:
    """The mean total of the training rows, a whole number."""
    return family.typical.round()


def blank(family: Family, x: Tensor) -> Tensor:
    """Rows with the mean total, spread over the entries."""
    return x + typical(family) / family.event.numel()


def check(family: Family, batch: Batch) -> None:
    """Refuse rows whose total is not known."""
    Family.check(family, batch)
    if batch.incomplete:
        raise Error(f"{family.kind} cannot skip single entries: drop or impute incomplete rows")


def conditions(_: Family) -> str:
    """What p(x | h) is given besides h."""
    return "the row totals"


class Multinomial(Family):
    """A share of the row's total for each entry, with h the logarithms of the shares.

    Variational Autoencoders for Collaborative Filtering (Liang, Krishnan, Hoffman & Jebara, 2018,
    https://arxiv.org/abs/1802.05814).

    Args:
        floor: the smallest share in the M-step of a mixture, as a fraction of an equal one.
    """

    floor: Floor = 0.01
    support: ClassVar[Constraint] = constraints.nonnegative_integer
    setup, start, given, check = size.setup, size.start, given, check
    conditions, blank, encode = property(conditions), blank, size.encode

    def forward(self, h: Tensor, total: Tensor | None = None) -> dist.Distribution:
        total = typical(self) if total is None else total
        return multinomial.Multinomial(total, h, len(self.event))

    @property
    def freedom(self) -> int:
        return self.event.numel() - 1

    def statistics(self, x: Tensor) -> Tensor:
        """The counts, and the logarithm of the number of ways to order them."""
        counts = x.flatten(1)
        ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        return torch.cat([counts, ways[:, None]], -1)

    def maximize(self, statistics: Tensor) -> Tensor:
        least = self.floor / self.event.numel()
        return floored(statistics[..., :-1], least).log().unflatten(-1, self.event)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor] | None:
        if h.dtype != torch.float64:
            return None  # large terms cancel
        eta = h.flatten(-len(self.event)).log_softmax(-1)
        none = torch.zeros_like(eta[..., 0])
        return torch.cat([eta, 1 + none[..., None]], -1), none


class DirichletMultinomial(Family):
    """A multinomial whose shares vary from row to row as Dirichlet(e^h): overdispersed.

    Modeling Word Burstiness Using the Dirichlet Distribution (Madsen, Kauchak & Elkan, 2005).
    """

    support: ClassVar[Constraint] = constraints.nonnegative_integer
    setup, start, given, check = size.setup, size.start, given, check
    conditions, blank, encode = property(conditions), blank, size.encode

    def forward(self, h: Tensor, total: Tensor | None = None) -> dist.Distribution:
        total = typical(self) if total is None else total
        return multinomial.DirichletMultinomial(total, h, len(self.event))

    def marginal(self, batch: Batch) -> Tensor:
        """By how often two of a row's counts are of the same entry, beyond chance."""
        x, n = batch.x, size.totals(self, batch.x)
        p = x.sum(0).clamp(min=0.5)
        p = p / p.sum()
        by_chance = p.square().sum()
        pairs = (x * (x - 1)).sum() / (n * (n - 1)).sum().clamp(min=1)
        excess = ((pairs - by_chance) / (1 - by_chance)).nan_to_num().clamp(1e-4, 0.99)
        return p.log() - excess.logit()
