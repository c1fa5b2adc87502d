r"""One-hot vectors, with samples that a gradient flows through.

    log p(x) = \sum_i \sum_k x_ik log p_ik

is linear in x, so where all states can be listed an expectation is a sum over them, and where they
cannot, the *straight-through* sample x + p - stop(p) has the value of x and the gradient of its
mean (Estimating or Propagating Gradients Through Stochastic Neurons, Bengio, Leonard & Courville,
2013, https://arxiv.org/abs/1308.3432). The latter is biased, and of small variance.
"""

from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.distributions.supports import one_hot

STATES = 256
"""Up to how many states of a discrete latent are summed over."""


class OneHot(dist.TorchDistribution):
    """Independent categorical variables as one-hot vectors.

    Args:
        logits: shape `(..., *event)`, the classes last.
        event_dim: how many of the last dimensions are the event's.
        straight_through: whether samples have the gradient of their mean; Pyro sums over the
            values only of those that have none.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, event_dim: int = 1, straight_through: bool = False) -> None:
        self.logits = logits.log_softmax(-1)
        self.has_rsample = straight_through
        split = logits.dim() - event_dim
        super().__init__(logits.shape[:split], logits.shape[split:], validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.independent(one_hot, len(self.event_shape) - 1)

    @property
    def mean(self) -> Tensor:
        return self.logits.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        dims = tuple(range(-len(self.event_shape), 0))
        return (value * self.logits).sum(dims)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            logits = self.logits.expand(self._extended_shape(Size(sample_shape)))
            chosen = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
            return torch.zeros_like(logits).scatter(-1, chosen[..., None], 1.0)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        value, probs = self.sample(sample_shape), self.mean
        return value + (probs - probs.detach())

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All states, shape `(states, *batch or ones, *event)`."""
        states = all_states(self.event_shape).to(self.logits)
        ones = (1,) * len(self.batch_shape)
        states = states.reshape(-1, *ones, *self.event_shape)
        return states.expand(-1, *self.batch_shape, *self.event_shape) if expand else states

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return type(self)(logits, len(self.event_shape), self.has_rsample)


def all_states(event: tuple[int, ...]) -> Tensor:
    """Every array of one-hot vectors of the shape `event`, `(states, *event)`."""
    *variables, classes = event
    choices = [torch.arange(classes)] * int(torch.Size(variables).numel())
    index = torch.cartesian_prod(*choices).reshape(-1, *variables)
    return torch.eye(classes, dtype=torch.int64)[index]
