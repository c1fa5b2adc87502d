r"""Families over K classes, numbered from 0, and over K levels in order.

    categorical    log p(x | h) = \sum_i log softmax(h_i)_{x_i}
    ordered        log p(x | h) = \sum_i log[sigmoid(c_{x_i + 1} - h_i) - sigmoid(c_{x_i} - h_i)]

Classes have a parameter each. Levels have a single location h and cut points c between them that
are the same for all rows, so that whatever moves h up makes every higher level more probable.
"""

from collections.abc import Iterable
from typing import Annotated, Self

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions.levels import Levels, ordered_logits
from pyrovae.families.continuous import inverse_softplus
from pyrovae.families.family import Family

Classes = Annotated[int, Field(ge=2)]
Floor = Annotated[float, Field(gt=0, lt=0.5)]
_LEAST = 1e-4
"""The smallest distance between two cut points, in units of the logistic's scale."""


class Categorical(Family):
    """Independent classes, with h their log-probabilities up to a constant.

    Args:
        classes: K; an entry is a whole number from 0 to K - 1.
        floor: the smallest probability in the M-step of a mixture, as a fraction of 1 / K.
    """

    classes: Classes
    floor: Floor = 0.01

    def setup(self, event: tuple[int, ...]) -> None:
        self.event, self.params = Size(event), Size((self.classes, *event))

    def forward(self, h: Tensor) -> dist.Distribution:
        return Levels(h.movedim(-1 - len(self.event), -1)).to_event(len(self.event))

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.classes - 1)

    @property
    def takes(self) -> str:
        return f"whole numbers from 0 to {self.classes - 1}"

    @property
    def freedom(self) -> int:
        return (self.classes - 1) * self.event.numel()

    @property
    def seen(self) -> Size:
        return Size((*self.event, self.classes))

    def encode(self, x: Tensor) -> Tensor:
        """One-hot vectors, all zeros where an entry is missing."""
        return (x[..., None] == torch.arange(self.classes).to(x)).to(x.dtype)

    def statistics(self, x: Tensor) -> Tensor:
        return self.encode(x).movedim(-1, 1).flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        dim = -1 - len(self.event)
        shares = statistics.unflatten(-1, self.params).movedim(dim, -1)
        return floored(shares, self.floor / self.classes).log().movedim(-1, dim)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        eta = h.log_softmax(-1 - len(self.event)).flatten(-len(self.params))
        return eta, torch.zeros_like(eta[..., 0])

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(classes=2), cls(classes=5)


class OrderedLogistic(Family):
    """Levels in order by proportional odds, p(x < k | h) = sigmoid(c_k - h).

    Regression Models for Ordinal Data (McCullagh, 1980).

    Args:
        classes: how many levels; an entry is a whole number from 0 to `classes` - 1.
    """

    classes: Classes

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.raw_cuts = nn.Parameter(torch.zeros(*event, self.classes - 1))

    def forward(self, h: Tensor) -> dist.Distribution:
        gaps = _LEAST + softplus(self.raw_cuts[..., 1:])
        cuts = torch.cat([self.raw_cuts[..., :1], gaps], -1).cumsum(-1)
        return Levels(ordered_logits(h, cuts, gaps)).to_event(len(self.event))

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.classes - 1)

    @property
    def takes(self) -> str:
        return f"whole numbers from 0 to {self.classes - 1}"

    def encode(self, x: Tensor) -> Tensor:
        return x / (self.classes - 1)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Cut points at the data's shares, with half an observation more of each level."""
        counts = torch.stack([(x == k).sum(0) for k in range(self.classes)], -1).to(x) + 0.5
        below, above = counts.cumsum(-1)[..., :-1], counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        cuts = (below / above).log()
        gaps = (cuts.diff(dim=-1) - _LEAST).clamp(min=1e-6)
        self.raw_cuts.copy_(torch.cat([cuts[..., :1], inverse_softplus(gaps)], -1))

    def marginal(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x[0])

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(classes=2), cls(classes=5)


def floored(weights: Tensor, least: float) -> Tensor:
    r"""The probabilities q >= least with the largest \sum_k w_k log q_k, over the last dimension.

    Those that would be below are at the bound, and the rest is shared in proportion to w.
    """
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    low = torch.zeros_like(weights, dtype=torch.bool)
    while True:
        free = weights.masked_fill(low, 0.0)
        left = 1 - least * low.to(weights).sum(-1, keepdim=True)
        q = torch.where(low, least, free * left / free.sum(-1, keepdim=True))
        if not (below := q < least).any():
            return q
        low |= below
