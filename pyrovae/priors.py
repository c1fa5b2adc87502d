"""Priors p(z): what the latent is before any data are seen.

A prior returns one distribution with event shape `z` and batch shape `()`; the model's plate
broadcasts it over the rows. The bound pulls the *aggregated posterior* q(z) = mean_i q(z | x_i)
towards it,

    mean_i ELBO_i = mean_i E_q[log p(x_i | z)] - I_q(x; z) - KL(q(z) || p(z)),

so a prior that can take the shape of q(z) pays less in the last term. The standard normal cannot;
a mixture learns its components; the VampPrior *is* a mixture of the guide's own posteriors at
learned inputs (ELBO surgery: yet another way to carve up the variational evidence lower bound,
Hoffman & Johnson, 2016).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.part import Part


@dataclass(frozen=True)
class Guide:
    """The guide as a function: encoder input, shape `(rows, *seen)`, to q(z | it).

    Args:
        q: the function.
        index: in training, the places of the rows at hand among the training rows, `(rows,)`.
    """

    q: Callable[[Tensor], dist.Distribution]
    index: Tensor | None = None

    def __call__(self, seen: Tensor) -> dist.Distribution:
        """q(z | seen)."""
        return self.q(seen)


class Prior(Part):
    """The role of p(z). A member has `setup` and `forward`; `StandardNormal` is the shortest.

    It sets `support`, the values that an entry of z can take, where these are not the real
    numbers; `None` says that it is over whatever the guide is over.
    """

    support: ClassVar[Constraint | None] = constraints.real

    def given(self, context: tuple[int, ...]) -> None:
        """Told before `setup` by a model whose rows have a context: its event shape."""

    @abstractmethod
    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        """Make the tensors.

        Args:
            z: the event shape of the latent.
            seen: the event shape of what the encoder sees, the space of pseudo-inputs.
        """

    @abstractmethod
    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        """p(z), with event shape `z` and batch shape `()`, or `(rows,)` where it uses the context.

        Args:
            q: the guide; only priors that are defined through it call it.
            context: what the rows are conditioned on, shape `(rows, *context)`.
        """

    def start(self, seen: Tensor) -> None:
        """Begin at the data, before the first step: what the encoder sees, `(rows, *seen)`."""


class StandardNormal(Prior):
    """The standard normal, p(z) = N(z; 0, I).

    Auto-Encoding Variational Bayes (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114).
    """

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(self.loc.dim())


class GaussianMixture(Prior):
    r"""A mixture of normals with learned weights, means and scales.

    p(z) = \sum_k \pi_k N(z; \mu_k, diag \sigma_k^2)

    Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul et
    al., 2016, https://arxiv.org/abs/1611.02648).

    Args:
        components: how many normals.
    """

    components: PositiveInt = 10

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.loc = nn.Parameter(torch.randn(self.components, *z))
        self.log_scale = nn.Parameter(torch.zeros(self.components, *z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        normals = dist.Normal(self.loc, self.log_scale.exp()).to_event(self.loc.dim() - 1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class Vamp(Prior):
    r"""The variational mixture of posteriors, q averaged over learned pseudo-inputs.

    p(z) = 1/K \sum_k q(z | u_k)

    The pseudo-inputs start at rows of the data. VAE with a VampPrior (Tomczak & Welling, 2018,
    https://arxiv.org/abs/1705.07120).

    Args:
        components: how many pseudo-inputs.
    """

    components: PositiveInt = 100
    support: ClassVar[None] = None

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.inputs = nn.Parameter(torch.rand(self.components, *seen))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        uniform = dist.Categorical(logits=self.inputs.new_zeros(self.components))
        return dist.MixtureSameFamily(uniform, q(self.inputs))

    @torch.no_grad()
    def start(self, seen: Tensor) -> None:
        copies = -(-self.components // len(seen))
        order = torch.cat([torch.randperm(len(seen)) for _ in range(copies)])
        self.inputs.copy_(seen[order[: self.components].to(seen.device)])
