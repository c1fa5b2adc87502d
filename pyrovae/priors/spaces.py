"""Priors over other spaces than the plane: the sphere, classes, and what is nearly binary.

On a sphere z has a direction and no length. The uniform distribution has no centre there, so it
pulls no row towards one, as the normal does (Hyperspherical Variational Auto-Encoders, Davidson et
al., 2018). Over classes z is one of finitely many values, and E_q and log p(x) are sums: a model
takes them exactly where the values are few. Relaxed zeros and ones are in the plane, by their
log-odds, and gather far out in it, where b is close to 0 or to 1.
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
from pyrovae.schedules import Rate, held


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


class RelaxedBernoulli(Prior):
    """The log-odds of relaxed zeros and ones, with learned probabilities of a one.

    The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables (Maddison, Mnih
    & Teh, 2017, https://arxiv.org/abs/1611.00712). Categorical Reparameterization with
    Gumbel-Softmax (Jang, Gu & Poole, 2017, https://arxiv.org/abs/1611.01144).

    Args:
        temperature: the lower, the closer to zeros and ones.
    """

    temperature: Rate = 0.5

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.logits = nn.Parameter(torch.zeros(z))
        self.temperature_now = held(self.temperature, "temperature")

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        p = distributions.RelaxedBernoulli(self.logits, self.temperature_now)
        return p.to_event(self.logits.dim())
