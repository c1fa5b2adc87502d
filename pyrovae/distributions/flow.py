r"""Normalising flows: a standard normal seen through an invertible map with a known Jacobian.

    z = T(eps),  eps ~ N(0, I),      log p(z) = log N(eps; 0, I) - log |det dT/d eps|

Any distribution over the real vectors is one, if T may be anything. *Coupling* layers (realnvp)
move one half of the entries by amounts that the other half gives, in one pass of a network in
either direction. *Autoregressive* layers (maf, and nsf with monotonic splines for affine maps)
move every entry by amounts that those before it give: one pass in one direction, and one for each
entry, after one another, in the other (Masked Autoregressive Flow for Density Estimation,
Papamakarios, Pavlakou & Murray, 2017, https://arxiv.org/abs/1705.07057). Which direction is T is
up to whoever uses it: a density of given rows wants T^{-1} to be fast, a guide its samples
(Improved Variational Inference with Inverse Autoregressive Flow, Kingma et al., 2016,
https://arxiv.org/abs/1606.04934).
"""

import math
from typing import Any, ClassVar, Literal, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

FlowName = Literal["maf", "nsf", "realnvp"]


def build_flow(
    flow: FlowName, features: int, context: int, transforms: int, hidden: tuple[int, ...]
) -> nn.Module:
    """A module from a context to the invertible map of a flow.

    It maps `c`, shape `(..., context)`, or `None` where `context` is 0, to a `Transform` from
    values, shape `(..., features)`, to noise, whose `inv` is the other direction.

    Args:
        flow: masked autoregressive (maf), the same with neural splines (nsf), which leave what is
            outside [-5, 5] as it is, or coupling (realnvp).
        features: the length of the vectors.
        context: the length of what they are conditioned on, 0 for nothing.
        transforms: how many maps follow one another.
        hidden: the sizes of the hidden layers of each map's network.
    """
    checks = Distribution._validate_args
    import zuko.flows  # which turns the checks of every distribution's arguments off

    Distribution.set_default_validate_args(checks)
    builders = {"maf": zuko.flows.MAF, "nsf": zuko.flows.NSF, "realnvp": zuko.flows.RealNVP}
    built = builders[flow](features, context, transforms=transforms, hidden_features=hidden)
    whole: nn.Module = built.transform
    return whole


class NormalizingFlow(dist.TorchDistribution):
    """The distribution of T(eps), eps ~ N(0, I).

    A draw is remembered with its density, which then costs no T^{-1}.

    Args:
        transform: T, a map over vectors, of `build_flow` or the `inv` of such a one.
        like: a tensor of the shape `(*batch, features)` whose dtype and device the samples have.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Any, like: Tensor) -> None:
        self.transform, self.like = transform, like
        self._drawn: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None:
            last, log_p, with_gradient = self._drawn
            if value is last and (with_gradient or not torch.is_grad_enabled()):
                return log_p
        value = value.expand(torch.broadcast_shapes(value.shape, self.like.shape))
        noise, jacobian = self.transform.inv.call_and_ladj(value)
        return _standard_normal(noise) + jacobian

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn_like(self.like.new_empty(shape))
        value, jacobian = self.transform.call_and_ladj(noise)
        self._drawn = value, _standard_normal(noise) - jacobian, torch.is_grad_enabled()
        return value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.transform, self.like.expand(*batch_shape, -1))


def _standard_normal(noise: Tensor) -> Tensor:
    """Log N(noise; 0, I), shape `(...)` of `(..., features)`."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)
