r"""Families over levels in order: the grey values of a pixel, 0, 1, ..., 255.

A logistic variable is rounded to the levels. Its location and scale come in the units that the
encoder sees, in which the levels run from -1 to 1,

    mu = m + c h_1,    s = floor + c log(1 + e^{h_2}),

with m the middle of the levels and c half their range,

so that a network's outputs near 0 mean something in the middle. Where a density of dequantised
levels has no bound, this is a probability: it is at most 1 however small the scale. A scale far
below one level gains nothing, and a miss by one level costs it 1/s nats, so there is a floor, in
levels.

A logistic variable has the variance pi^2 s^2 / 3. What rounding and the ends change of that is
left out where a network begins.
"""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions import logistic
from pyrovae.families.continuous import inverse_softplus
from pyrovae.families.family import Family

Levels = Annotated[int, Field(ge=2)]


def _support(family: Any) -> Constraint:
    return constraints.integer_interval(family.lowest, family.lowest + family.levels - 1)


def _takes(family: Any) -> str:
    return f"whole numbers from {family.lowest} to {family.lowest + family.levels - 1}"


def _lowest(family: Any) -> float:
    return float(family.lowest)


def _range(family: Any) -> tuple[float, float]:
    """The middle of the levels, and half their range."""
    half = (family.levels - 1) / 2
    return family.lowest + half, half


def _encode(family: Any, x: Tensor) -> Tensor:
    """The levels from -1 to 1."""
    middle, half = _range(family)
    return (x - middle) / half


def _rounded(family: Any, loc: Tensor, raw: Tensor) -> logistic.DiscretizedLogistic:
    """The rounded logistic with a network's outputs for its location and scale."""
    middle, half = _range(family)
    loc, scale = middle + half * loc, family.floor + half * softplus(raw)
    last = family.lowest + family.levels - 1
    return logistic.DiscretizedLogistic(loc, scale, family.lowest, last)


def _raw(family: Any, loc: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The network's outputs for a location and a variance, of one level at least."""
    middle, half = _range(family)
    scale = variance.clamp(min=1).sqrt() * math.sqrt(3) / math.pi
    above = (scale - family.floor).clamp(min=1e-3 * family.floor)
    return (loc - middle) / half, inverse_softplus(above / half)


class DiscretizedLogistic(Family):
    """Independent levels, each a logistic variable rounded, P(x) = F(x + 1/2) - F(x - 1/2).

    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
    Modifications (Salimans, Karpathy, Chen & Kingma, 2017, https://arxiv.org/abs/1701.05517).

    Args:
        levels: how many.
        lowest: the first of them.
        floor: the smallest scale s, in levels.
    """

    levels: Levels = 256
    lowest: int = 0
    floor: PositiveFloat = 0.1
    planes: ClassVar[int] = 2
    support, takes = property(_support), property(_takes)
    inside, encode = property(_lowest), _encode

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw = h.unbind(-1 - len(self.event))
        return _rounded(self, loc, raw).to_event(len(self.event))

    def marginal(self, batch: Batch) -> Tensor:
        """By moments."""
        return torch.stack(_raw(self, batch.x.mean(0), batch.x.var(0, correction=0)))


class DiscretizedLogisticMixture(Family):
    r"""Independent levels, each from a mixture of rounded logistics, P(x) = \sum_k w_k P_k(x).

    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
    Modifications (Salimans, Karpathy, Chen & Kingma, 2017, https://arxiv.org/abs/1701.05517).

    Args:
        components: how many logistics an entry has.
        levels: how many levels.
        lowest: the first of them.
        floor: the smallest scale of a component, in levels.
    """

    components: PositiveInt = 5
    levels: Levels = 256
    lowest: int = 0
    floor: PositiveFloat = 0.1
    support, takes = property(_support), property(_takes)
    inside, encode = property(_lowest), _encode

    def setup(self, event: tuple[int, ...]) -> None:
        self.event, self.params = Size(event), Size((3 * self.components, *event))

    def forward(self, h: Tensor) -> dist.Distribution:
        planes = h.unflatten(plane := -1 - len(self.event), (3, self.components))
        logits, loc, raw = planes.movedim(plane, -1).unbind(plane - 1)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), _rounded(self, loc, raw))
        return mixture.to_event(len(self.event))

    @property
    def freedom(self) -> int:
        return (3 * self.components - 1) * self.event.numel()

    def marginal(self, batch: Batch) -> Tensor:
        """Each component at the moments of its share of the sorted values of an entry.

        To the variance of a share comes that of the entry over K^2, so that nothing between two
        shares is out of reach, and equal centres are moved apart within a level.
        """
        few = batch.x[:: -(-len(batch) // 4096)].sort(0).values
        ends = torch.linspace(0, len(few), self.components + 1).long().tolist()
        shares = [few[min(a, len(few) - 1) : max(b, a + 1)] for a, b in pairwise(ends)]
        centres = torch.stack([share.mean(0) for share in shares])
        variance = torch.stack([share.var(0, correction=0) for share in shares])
        apart = torch.linspace(-0.5, 0.5, self.components).to(few)
        centres = centres + apart.reshape(-1, *[1] * len(self.event))
        variance = variance + few.var(0, correction=0) / self.components**2
        loc, raw = _raw(self, centres, variance)
        return torch.cat([torch.zeros_like(loc), loc, raw])
