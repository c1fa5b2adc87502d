r"""Mixtures: priors with several centres, p(z) = \sum_k \pi_k p_k(z).

Where the data fall into groups, so does q(z), and a prior with one centre pays for the empty space
between them. A Gaussian mixture learns its components; the VampPrior borrows them from the guide,
so that a component moves with the encoder and needs no learning of its own beyond its input.
"""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pyrovae.priors.prior import Guide, Prior


class GaussianMixture(Prior):
    r"""A mixture of normals, p(z) = \sum_k \pi_k N(z; \mu_k, diag \sigma_k^2), all learned.

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
    r"""The guide averaged over learned pseudo-inputs, p(z) = \sum_k \pi_k q(z | u_k).

    The pseudo-inputs start at rows of the data. VAE with a VampPrior (Tomczak & Welling, 2018,
    https://arxiv.org/abs/1705.07120).

    Args:
        components: how many pseudo-inputs, K.
        learned_weights: whether pi is learned; 1/K otherwise.
    """

    components: PositiveInt = 100
    learned_weights: bool = False
    support: ClassVar[None] = None

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.inputs = nn.Parameter(torch.rand(self.components, *seen))
        logits = torch.zeros(self.components)
        self.logits = (
            nn.Parameter(logits) if self.learned_weights else nn.Buffer(logits, persistent=False)
        )

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), q(self.inputs))

    @torch.no_grad()
    def start(self, seen: Tensor) -> None:
        copies = -(-self.components // len(seen))
        order = torch.cat([torch.randperm(len(seen)) for _ in range(copies)])
        self.inputs.copy_(seen[order[: self.components].to(seen.device)])

    @classmethod
    def examples(cls) -> tuple["Vamp", ...]:
        return cls(components=5), cls(components=5, learned_weights=True)
