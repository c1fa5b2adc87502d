r"""A normalising flow as the prior: a density of any shape over the real vectors.

    log p(z) = log N(T^{-1}(z); 0, I) + log |det dT^{-1} / dz|

Training asks for the density at draws of the guide, never for draws of the prior, so T^{-1} is the
direction that takes one pass of each network.
"""

from math import prod
from typing import Annotated

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyrovae.distributions import NormalizingFlow, build_flow
from pyrovae.distributions.flow import FlowName
from pyrovae.errors import Error
from pyrovae.priors.prior import Guide, Prior


class Flow(Prior):
    r"""A learned invertible map of a standard normal, z = T(e) with e ~ N(0, I).

    Variational Lossy Autoencoder (Chen et al., 2017, https://arxiv.org/abs/1611.02731). Neural
    Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019, https://arxiv.org/abs/1906.04032).

    Args:
        flow: masked autoregressive with affine maps (maf) or splines (nsf), or coupling (realnvp).
        transforms: how many maps follow one another.
        hidden: the sizes of the hidden layers of each map's network.
    """

    flow: FlowName = "nsf"
    transforms: PositiveInt = 3
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        if self.flow == "realnvp" and prod(z) < 2:
            raise Error("realnvp moves one half of z by the other: let z have 2 entries or more")
        self.map = build_flow(self.flow, prod(z), 0, self.transforms, self.hidden)
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        flat = NormalizingFlow(self.map(None).inv, self.loc.flatten())
        shape = dist.transforms.ReshapeTransform(flat.event_shape, self.loc.shape)
        return dist.TransformedDistribution(flat, [shape])

    @classmethod
    def examples(cls) -> tuple["Flow", ...]:
        return tuple(
            cls(flow=flow, transforms=2, hidden=(8,)) for flow in ("maf", "nsf", "realnvp")
        )
