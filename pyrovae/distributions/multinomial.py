r"""Counts that share a total, which may differ from row to row.

    log p(x | n) = log n! - \sum_k log x_k! + \sum_k x_k log p_k,        \sum_k x_k = n

A draw goes through the entries in order: given those before it, x_k is binomial, with what is left
of the total and the share p_k / \sum_{j >= k} p_j. The Dirichlet-multinomial draws p first; see
`overdispersed` for its density.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.distributions.overdispersed import log_gamma_draw, log_rising


class Multinomial(dist.TorchDistribution):
    """A multinomial whose total is a tensor: log p is -infinity for counts with another total.

    Args:
        total: whole numbers from 0, a shape that broadcasts with the batch shape.
        logits: log p up to a constant, shape `(..., *event)`, over all entries of an event.
        event_dim: how many of the last dimensions are the event's.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "total": constraints.nonnegative_integer,
        "logits": constraints.real,
    }

    def __init__(self, total: Tensor, logits: Tensor, event_dim: int = 1) -> None:
        split = logits.dim() - event_dim
        batch, event = (
            torch.broadcast_shapes(total.shape, logits.shape[:split]),
            logits.shape[split:],
        )
        self.total = total.expand(batch)
        flat = logits.flatten(split).log_softmax(-1).reshape(logits.shape)
        self.logits = flat.expand(batch + event)
        super().__init__(batch, event, validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    @property
    def _total(self) -> Tensor:
        """The total with a dimension for each of the event's."""
        return self.total[(..., *[None] * len(self.event_shape))]

    @property
    def mean(self) -> Tensor:
        return self._total * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean * -self.logits.expm1()

    def log_prob(self, value: Tensor) -> Tensor:
        # In float64: log n! has no digit behind the point in float32 where n is a million.
        value, total = value.flatten(-len(self.event_shape)).double(), self.total.double()
        logits = self.logits.flatten(len(self.batch_shape)).double().log_softmax(-1)
        entries = (value * logits - torch.lgamma(value + 1)).sum(-1)
        same = torch.isclose(value.sum(-1), total, rtol=1e-6, atol=0.5)
        log_p = torch.where(same, torch.lgamma(total + 1) + entries, -torch.inf)
        return log_p.to(self.logits)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape, split = self._extended_shape(Size(sample_shape)), len(self.batch_shape)
        logits = self.logits.flatten(split)
        share = (logits - logits.flip(-1).logcumsumexp(-1).flip(-1)).exp().clamp(max=1)
        left = self.total.expand(shape[: len(shape) - len(self.event_shape)]).clone()
        drawn = []
        for p in share.unbind(-1):
            drawn.append(torch.binomial(left, p.expand(left.shape)))
            left -= drawn[-1]
        return torch.stack(drawn, -1).reshape(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        total = self.total.expand(batch_shape)
        return type(self)(total, self.logits, len(self.event_shape))


class DirichletMultinomial(dist.TorchDistribution):
    r"""A multinomial with p ~ Dirichlet(a), the concentration c = \sum_k a_k.

    Its mean is n a_k / c, its variance the multinomial's times (c + n) / (c + 1).

    Args:
        total: whole numbers from 0, a shape that broadcasts with the batch shape.
        log_a: log a, shape `(..., *event)`, over all entries of an event.
        event_dim: how many of the last dimensions are the event's.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"log_a": constraints.real}

    def __init__(self, total: Tensor, log_a: Tensor, event_dim: int = 1) -> None:
        self.plain = Multinomial(total, log_a, event_dim)
        batch, event = self.plain.batch_shape, self.plain.event_shape
        self.log_a = log_a.expand(batch + event)
        super().__init__(batch, event, validate_args=False)

    @property
    def support(self) -> Constraint:
        return self.plain.support

    @property
    def mean(self) -> Tensor:
        return self.plain.mean

    @property
    def log_concentration(self) -> Tensor:
        """Log c, of the batch shape."""
        return self.log_a.flatten(len(self.batch_shape)).logsumexp(-1)

    @property
    def variance(self) -> Tensor:
        more = 1 + (self.plain.total - 1) * (-self.log_concentration).sigmoid()
        return self.plain.variance * more[(..., *[None] * len(self.event_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        dims = tuple(range(-len(self.event_shape), 0))
        value, total = value.double(), self.plain.total.double()
        excess = log_rising(self.log_a.double(), value).sum(dims)
        excess = excess - log_rising(self.log_concentration.double(), total)
        return (self.plain.log_prob(value) + excess).to(self.log_a)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        log_g = log_gamma_draw(self.log_a.expand(self._extended_shape(Size(sample_shape))))
        return Multinomial(self.plain.total, log_g, len(self.event_shape)).sample()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        total = self.plain.total.expand(batch_shape)
        return type(self)(total, self.log_a, len(self.event_shape))
