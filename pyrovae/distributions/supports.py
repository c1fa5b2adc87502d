"""Supports that torch does not have, and what two supports have in common."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class _Sphere(Constraint):
    """Vectors of length 1."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = 100 * torch.finfo(value.dtype).eps
        return (value.norm(dim=-1) - 1).abs() < tolerance


sphere = _Sphere()
one_hot = constraints.one_hot


def base(support: Any) -> Constraint:
    """The support of one entry of an event, under `Independent`."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
