"""Priors over other spaces than the plane: the sphere, and classes.

On a sphere z has a direction and no length. The uniform distribution has no centre there, so it
pulls no row towards one, as the normal does (Hyperspherical Variational Auto-Encoders, Davidson et
al., 2018). Over classes z is one of finitely many values, and E_q and log p(x) are sums: a model
takes them exactly where the values are few.
"""

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyrovae import distributions
from pyrovae.distributions import one_hot, sphere
from pyrovae.errors import Error
from pyrovae.priors.prior import Guide, Prior


class UniformSphere(Prior):
    r"""The uniform distribution over directions, p(z) = \Gamma(D/2) / (2 \pi^{D/2}), |z| = 1.

    Hyperspherical Variational Auto-Encoders (Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018,
    https://arxiv.org/abs/1804.00891).
    """

    support: ClassVar[Constraint] = sphere

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        if z[-1] < 2:
            raise Error("a sphere has at least 2 dimensions: let z end in 2 or more")
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        *variables, dim = self.loc.shape
        return distributions.UniformSphere(dim, self.loc, variables).to_event(len(variables))


class Categorical(Prior):
    r"""Classes as one-hot vectors, p(z) = \prod_i \pi_{i, z_i}, with learned probabilities.

    The event of z is `(classes,)` for one variable, `(variables, classes)` for several.
    """

    support: ClassVar[Constraint] = one_hot

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.logits = nn.Parameter(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return distributions.OneHot(self.logits, self.logits.dim())
