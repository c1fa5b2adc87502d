"""Supports that torch does not have, and what two supports have in common."""

import math
from typing import Any

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class _Angle(Constraint):
    """Angles in radians from -pi to pi, as float32 rounds them."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return value.abs() <= math.pi + 1e-6


class _OpenInterval(constraints.interval):
    """Numbers between two ends, without the ends."""

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound < value) & (value < self.upper_bound)


class _Sphere(Constraint):
    """Vectors of length 1, to the digits that float32 has: those may have been widened since."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < 1e-5


angle = _Angle()
open_unit_interval = _OpenInterval(0.0, 1.0)  # type: ignore[no-untyped-call]
sphere = _Sphere()
one_hot = constraints.one_hot


def base(support: Any) -> Constraint:
    """The support of one entry of an event, under `Independent`."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
