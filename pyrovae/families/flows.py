r"""Normalising flows around a normal, all of it from h.

    x = mu + sigma * T_c(eps),  eps ~ N(0, I),    (mu, sigma, c) from h,
    log p(x | h) = log N(eps; 0, I) - log |det dT_c / d eps| - \sum_i log sigma_i

The normal, which T = identity leaves, is what a network learns first: where the row is. The maps
bend it, inside the few units around 0 where a spline can. c describes the row to the networks in
T, which are shared by all rows and take it beside the entries that they see.
"""

from typing import Literal

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform
from torch.nn.functional import softplus

from pyrovae.batch import Batch
from pyrovae.distributions import NormalizingFlow, build_flow
from pyrovae.errors import Error
from pyrovae.families.continuous import inverse_softplus
from pyrovae.families.family import Family
from pyrovae.transforms import spread


class Flow(Family):
    """A normalising flow, x = mu + sigma * T_c(eps) with eps ~ N(0, I), and mu, sigma, c from h.

    Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016,
    https://arxiv.org/abs/1606.04934). Neural Spline Flows (Durkan et al., 2019,
    https://arxiv.org/abs/1906.04032).

    Args:
        flow: masked autoregressive maps, affine (maf) or of splines (nsf), or affine coupling
            (realnvp), of which one alone leaves every second entry as it is.
        transforms: how many maps follow one another.
        hidden: the sizes of the hidden layers in each map.
        context: the size of c.
        fast: what takes one pass of the networks, `samples`, for a guide, or `densities`, for a
            likelihood; the other takes one for each entry, and of realnvp both take one.
        floor: the smallest sigma, as a fraction of the data's standard deviation.
    """

    flow: Literal["maf", "nsf", "realnvp"] = "nsf"
    transforms: PositiveInt = 3
    hidden: tuple[PositiveInt, ...] = (64, 64)
    context: PositiveInt = 16
    fast: Literal["densities", "samples"] = "samples"
    floor: PositiveFloat = 1e-3

    def setup(self, event: tuple[int, ...]) -> None:
        if len(event) != 1:
            raise Error(f"{self.kind} takes vectors, not {tuple(event)}: flatten them")
        self.event, self.params = Size(event), Size((2 * event[0] + self.context,))
        self.maps = build_flow(self.flow, event[0], self.context, self.transforms, self.hidden)
        self.center, self.unit = nn.Buffer(torch.zeros(event)), nn.Buffer(torch.ones(event))

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, raw_scale, context = h.tensor_split((self.event[0], 2 * self.event[0]), -1)
        maps = self.maps(context)
        flow = NormalizingFlow(maps if self.fast == "samples" else maps.inv, loc)
        mu = self.center + self.unit * loc
        sigma = self.unit * (self.floor + softplus(raw_scale))
        return dist.TransformedDistribution(flow, [AffineTransform(mu, sigma, 1, cache_size=1)])

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.center.copy_(x.mean(0))
        self.unit.copy_(spread(x))

    def marginal(self, batch: Batch) -> Tensor:
        """The data's mean and standard deviations, and c = 0."""
        one = inverse_softplus(torch.ones_like(self.unit))
        return torch.cat([0 * one, one, one.new_zeros(self.context)])
