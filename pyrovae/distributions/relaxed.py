r"""Zeros and ones made continuous, on the scale of their log-odds.

    y = (h + log u - log(1 - u)) / t,     u uniform on [0, 1],     b = 1 / (1 + e^{-y})

At every temperature t the sign of y is a coin with the log-odds h, P(y > 0) = 1 / (1 + e^{-h}),
and as t falls b goes to 0 or 1: it becomes the coin itself, and its draws stay differentiable.
With s = t y - h

    log p(y) = log t - log(1 + e^{-s}) - log(1 + e^{s}) .

The density is of y, not of b. Already for t = 0.1 one b in three is 1 to the last digit of
float32, where it has no density that could be told. A ratio of two densities, such as p(z) / q(z),
is the same on both scales.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor, pi
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid


class RelaxedBernoulli(dist.TorchDistribution):
    """The log-odds of relaxed zeros and ones: a logistic distribution.

    Args:
        logits: h, any shape.
        temperature: t, above 0, a number or a tensor without dimensions.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real}
    support: ClassVar[Constraint] = constraints.real
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: Tensor | float) -> None:
        self.logits = logits
        self.temperature = torch.as_tensor(temperature).to(logits)
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits / self.temperature

    @property
    def variance(self) -> Tensor:
        return (pi**2 / 3 / self.temperature.square()).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        s = self.temperature * value - self.logits
        return self.temperature.log() + logsigmoid(s) + logsigmoid(-s)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """By the ratio of two exponential numbers: they are never 0, as u and 1 - u can be."""
        logits = self.logits.expand(self._extended_shape(Size(sample_shape)))
        one, other = (torch.empty_like(logits).exponential_() for _ in range(2))
        return (logits + one.log() - other.log()) / self.temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.logits.expand(batch_shape), self.temperature)
