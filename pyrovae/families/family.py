r"""The role of p(x | h) and q(z | h): from a network's output to a distribution.

A family says which shape it needs from a network (`params`), and turns an `h` of that shape into a
distribution over its event. The same class serves as likelihood, as guide where its samples are
reparameterised, z = mu + sigma * eps, and as the component of a mixture, whose "network" is a
table with one row of `h` per component.

A likelihood meets rows through `of`, which adds to h what the rows say themselves: totals, size
factors, and which entries are there. A missing entry is integrated out,

    log p(x_there | h) = log \int p(x | h) dx_missing,

for independent entries the sum over those that are there.

A mixture is fitted by EM, see `expectation`. An exponential family states its sufficient
statistics T(x) and the *closed-form M-step*: the h at which the expected statistics are the
observed ones, E[T(x) | h] = mean of T, which is where its likelihood is largest. Any other family
is fitted by Newton steps on the densities of its rows, and need not say anything.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import Present, angle, base, one_hot, open_unit_interval, sphere
from pyrovae.errors import Error
from pyrovae.families import expectation
from pyrovae.families.expectation import Prepared
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

    @property
    def exact_m_step(self) -> bool:
        """Whether the M-step never lowers the likelihood, or can take a step that is too long."""
        return self.has_m_step or type(self).improve is not Family.improve

    @property
    def fits_by_em(self) -> bool:
        """Whether EM can fit a mixture: what components share has no M-step unless stated."""
        return self.exact_m_step or not any(True for _ in self.parameters())

    def table(self, batch: Batch, h: Tensor) -> Tensor:
        """The densities log p(x_i | h_k), shape `(rows, *components)`.

        Args:
            batch: the rows.
            h: one for each component, shape `(*components, *params)`.
        """
        batch = batch.unsqueeze(h.dim() - len(self.params))
        return self.of(h, batch).log_prob(batch.x)

    def statistics(self, x: Tensor) -> Tensor:
        """The sufficient statistics T(x), shape `(rows, statistics)`, of rows `(rows, *event)`."""
        raise Error(f"{self.kind} has no closed-form M-step")

    def maximize(self, statistics: Tensor) -> Tensor:
        """The h, `(..., *params)`, whose expected statistics are these, `(..., statistics)`."""
        raise Error(f"{self.kind} has no closed-form M-step")

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor] | None:
        """The eta and A of log p(x | h) = T(x) eta - A, where the E-step is to make use of them.

        Shapes `(..., statistics)` and `(...)`. Then all densities are one matrix product.
        """
        return None

    @property
    def freedom(self) -> int:
        """The free parameters of one component."""
        return self.params.numel()

    def at_floor(self, h: Tensor) -> Tensor:
        """Which components have a scale at its floor, shape `(*components)`."""
        return torch.zeros(h.shape[: -len(self.params)], dtype=torch.bool, device=h.device)

    def prepare(self, batch: Batch) -> Any:
        """What the E-step needs of rows, made once for both of its halves."""
        return Prepared(batch, self.statistics(batch.x) if self.has_m_step else None)

    def densities(self, h: Tensor) -> Callable[[Any], Tensor]:
        """As `table`, a function of rows that were prepared; what only h says is found once."""
        return expectation.densities(self, h)

    def expect(self, rows: Any, r: Tensor, h: Tensor) -> Any:
        """The statistics of the components, tensors `(*components, ...)` that add up over rows.

        Args:
            rows: prepared.
            r: how much of each row is each component's, shape `(rows, *components)`.
            h: as it is, shape `(*components, *params)`.
        """
        return expectation.expect(self, rows, r, h)

    def improve(self, n: Tensor, t: Any, h: Tensor) -> Tensor:
        """The M-step: the h that is best, or at least better, for these statistics.

        What components share, the family's own parameters, is set along with it.

        Args:
            n: the rows of each component, shape `(*components)`.
            t: what `expect` gave, summed over rows.
            h: as it is, shape `(*components, *params)`.
        """
        return expectation.improve(self, n, t, h)
