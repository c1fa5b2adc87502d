r"""The columns of a table, each with a distribution and a unit of its own, independent.

    log p(x) = \sum_i log p_i((x_i - m_i) / u_i) - log u_i

The last term is the Jacobian of the unit, so the density is on the scale of x whatever the units
are; m = 0 and u = 1 where a number has none, as a count or a class.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

from pyrovae.distributions.supports import base


class _Columnwise(Constraint):
    """Entries of which each column has a support of its own.

    Args:
        supports: one for each column, of single numbers.
    """

    def __init__(self, supports: Sequence[Constraint]) -> None:
        self.supports = tuple(supports)

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Whether any column is: then there is no density with respect to volume."""
        return any(support.is_discrete for support in self.supports)

    def check(self, value: Tensor) -> Tensor:
        columns = zip(self.supports, value.unbind(-1), strict=True)
        return torch.stack([support.check(column) for support, column in columns], -1)


columnwise = _Columnwise


class Joint(dist.TorchDistribution):
    """Independent columns as the last dimension of a batch; `.to_event(1)` makes rows of them.

    Args:
        columns: their distributions, each with the event shape `(1,)`.
        shift: m, shape `(columns,)`.
        unit: u, shape `(columns,)`, positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, columns: Sequence[Any], shift: Tensor, unit: Tensor) -> None:
        batch = torch.broadcast_shapes(*(column.batch_shape for column in columns))
        self.columns = tuple(c if c.batch_shape == batch else c.expand(batch) for c in columns)
        self.shift, self.unit = shift, unit
        super().__init__(Size((*batch, len(self.columns))), validate_args=False)

    @property
    def support(self) -> Constraint:
        return columnwise([base(column.support) for column in self.columns])

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of each entry, shape `(..., columns)`."""
        inside = ((value - self.shift) / self.unit).split(1, -1)
        columns = zip(self.columns, inside, strict=True)
        terms = [column.log_prob(entry) for column, entry in columns]
        return torch.stack(terms, -1) - self.unit.log()

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        return self._raw([column.sample(sample_shape) for column in self.columns])

    @property
    def mean(self) -> Tensor:
        return self._raw([column.mean for column in self.columns])

    @property
    def variance(self) -> Tensor:
        variances = [column.variance for column in self.columns]
        return torch.cat(variances, -1) * self.unit.square()

    def _raw(self, entries: Sequence[Tensor]) -> Tensor:
        """The columns, each `(..., 1)`, side by side in their units."""
        return self.shift + self.unit * torch.cat(list(entries), -1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        columns = [column.expand(batch_shape[:-1]) for column in self.columns]
        return type(self)(columns, self.shift, self.unit)
