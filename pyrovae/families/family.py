r"""The role of p(x | h) and q(z | h): from a network's output to a distribution.

A family says which shape it needs from a network (`params`), and turns an `h` of that shape into a
distribution over its event. The same class serves as likelihood, as guide where its samples are
reparameterised, z = mu + sigma * eps, and as the component of a mixture, whose "network" is a
table with one row of `h` per component.

A likelihood meets rows through `of`, which adds to h what the rows say themselves: totals, size
factors, and which entries are there. A missing entry is integrated out,

    log p(x_there | h) = log \int p(x | h) dx_missing,

for independent entries the sum over those that are there.

For mixtures fitted by EM a family states its sufficient statistics T(x) and the *closed-form
M-step*: the h at which the expected statistics are the observed ones, E[T(x) | h] = mean of T. For
an exponential family, which these are, that is where the likelihood is largest.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import Present, angle, base, one_hot, open_unit_interval, sphere
from pyrovae.errors import Error
from pyrovae.part import Part

_WORDS = {
    constraints.boolean: "0 or 1",
    constraints.nonnegative_integer: "whole numbers from 0",
    constraints.positive: "positive numbers",
    constraints.real: "finite real numbers",
    constraints.unit_interval: "numbers between 0 and 1",
    angle: "angles in radians, from -pi to pi",
    one_hot: "one-hot vectors",
    open_unit_interval: "numbers above 0 and below 1 (continuous-bernoulli takes 0 and 1 too)",
    sphere: "vectors of length 1",
}


def refuse_misfit(p: Any, event: tuple[int, ...]) -> None:
    """Refuse what is no distribution over the event."""
    if not isinstance(p, torch.distributions.Distribution):
        raise Error(f"forward gives {p!r}, not a distribution")
    if tuple(p.event_shape) != tuple(event):
        hint = "" if len(p.event_shape) == len(event) else f": end in .to_event({len(event)})"
        raise Error(f"forward is over {tuple(p.event_shape)}, not {tuple(event)}{hint}")


class Family(Part):
    """The role of p(x | h) and q(z | h).

    A member is a final class with `forward`; `FixedNormal` is the shortest. It sets `support`, the
    values that an entry of the event can take, `planes`, how many parameters an entry has, and
    where a density has no value at 0, `inside`, a number that is in the support.
    """

    support: ClassVar[Constraint] = constraints.real
    planes: ClassVar[int] = 1
    inside: ClassVar[float] = 0.0
    smooth: ClassVar[bool] = True
    """Whether the gradient of a draw has a gradient itself, as refinement in training needs."""

    def setup(self, event: tuple[int, ...]) -> None:
        """Take the event shape; `params`, the shape that a network has to deliver, follows."""
        self.event = Size(event)
        self.params = self.event if self.planes == 1 else Size((self.planes, *event))

    @abstractmethod
    def forward(self, h: Tensor) -> dist.Distribution:
        """The distribution over the event.

        Args:
            h: a network's output, shape `(..., *params)`.
        """

    def of(self, h: Tensor, batch: Batch) -> dist.Distribution:
        """p(x | h) of the rows of a batch, over the entries that are there."""
        p = self.given(h, batch)
        return self.present(p) if batch.incomplete else p

    def given(self, h: Tensor, batch: Batch) -> dist.Distribution:
        """p(x | h) given what a row is conditioned on, its total or its size factor."""
        return self(h)

    def present(self, p: dist.Distribution) -> dist.Distribution:
        """P over the entries that are there: NaN stands for one that is not.

        Raises:
            Error: the entries depend on each other, and cannot be skipped one by one.
        """
        if not isinstance(p, dist.Independent):
            raise Error(f"{self.kind} cannot skip single entries: drop or impute incomplete rows")
        return Present(p, self.inside)

    @property
    def states(self) -> int | None:
        """How many values the event has, of a guide that can be summed over; `None` otherwise."""
        return None

    @property
    def conditions(self) -> str:
        """What p(x | h) is given besides h, in words; empty for nothing."""
        return ""

    def check(self, batch: Batch) -> None:
        """Refuse rows without what the family needs to know of them, or with what it ignores."""
        if batch.offset is not None:
            raise Error(f"{self.kind} takes no size factors: leave the offset out")

    def blank(self, x: Tensor) -> Tensor:
        """Rows of zeros, `(rows, *event)`, as rows to sample in place of: with typical totals."""
        return x

    @property
    def seen(self) -> Size:
        """The shape of what an encoder sees of one event."""
        return self.event

    def encode(self, x: Tensor) -> Tensor:
        """What an encoder sees of x, shape `(..., *seen)`."""
        return x

    @property
    def seen_missing(self) -> Size:
        """The shape of `encode_missing` of one event."""
        return self.seen if self.seen != self.event else Size((2 * self.seen[0], *self.seen[1:]))

    def encode_missing(self, x: Tensor) -> Tensor:
        """What an encoder sees of x where entries can be missing, NaN, `(..., *seen_missing)`.

        Zeros in their place, and beside the row, along its first dimension, a mask that is 1 where
        an entry is there. A one-hot code needs none: no class is all zeros.
        """
        seen = self.encode(x)
        if self.seen != self.event:
            return seen.nan_to_num(0.0)
        there = ~x.isnan()
        return torch.cat([torch.where(there, seen, 0.0), there.to(x)], -len(self.event))

    def start(self, x: Tensor) -> None:
        """Begin at the data, before the first step: all rows, shape `(rows, *event)`."""

    def marginal(self, batch: Batch) -> Tensor | None:
        """The h, shape `params`, that fits all rows at once: where a decoder begins.

        By default that of the closed-form M-step, and without one `None`, which begins anywhere.
        """
        if not self.has_m_step:
            return None
        sums = [self.statistics(part.x).sum(0) for part in batch.split(4096)]
        return self.maximize(torch.stack(sums).sum(0)[None] / len(batch))[0]

    @property
    def measure(self) -> str:
        """The base measure: `counting` for probabilities, `lebesgue` for densities."""
        return "counting" if self.support.is_discrete else "lebesgue"

    def refuse_misfit(self, event: tuple[int, ...]) -> None:
        """Refuse a member whose `forward` is not over the event, or not over its `support`."""
        p = self(torch.zeros(1, *self.params))
        refuse_misfit(p, event)
        support = base(p.support)
        if not isinstance(self.support, type(support)):
            raise Error(f"forward is over {support}, and the class says support = {self.support}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, where the family has been told."""
        return ()

    @property
    def takes(self) -> str:
        """The support in words."""
        return _WORDS.get(self.support, str(self.support))

    @property
    def has_m_step(self) -> bool:
        """Whether the family gives `statistics` and `maximize`."""
        return type(self).maximize is not Family.maximize

    def table(self, x: Tensor, h: Tensor) -> Tensor:
        """The densities log p(x_i | h_k), shape `(rows, components)`, of rows and a table of h."""
        x = x.unsqueeze(1)
        return self.given(h, Batch(x)).log_prob(x)

    def statistics(self, x: Tensor) -> Tensor:
        """The sufficient statistics T(x), shape `(rows, statistics)`, of rows `(rows, *event)`."""
        raise Error(f"{self.kind} has no closed-form M-step: fit the mixture with method = 'svi'")

    def maximize(self, statistics: Tensor) -> Tensor:
        """The h, `(components, *params)`, with expected statistics `(components, statistics)`."""
        raise Error(f"{self.kind} has no closed-form M-step: fit the mixture with method = 'svi'")
