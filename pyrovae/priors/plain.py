r"""Priors of independent entries, p(z) = \prod_j p(z_j).

Which one it is decides what a small entry costs. Relative to the normal, whose log density falls
off as -z^2/2, the Laplace, -|z|, and more so the horseshoe-like density, with a pole at 0 and
tails as of a Cauchy, prefer many entries near 0 and let few be large: a *sparse* code. Student's t
forgives outliers without asking for zeros.

The scales are fixed where a decoder can take them over: multiplying z by a number and dividing the
decoder's first weights by it changes nothing.
"""

import pyro.distributions as dist
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.priors.prior import Guide, Prior


class StandardNormal(Prior):
    """The standard normal, p(z) = N(z; 0, I).

    Auto-Encoding Variational Bayes (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114).
    """

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(self.loc.dim())


class LearnedNormal(Prior):
    r"""A normal whose means and scales are learned, p(z) = N(z; \mu, diag \sigma^2)."""

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.loc = nn.Parameter(torch.zeros(z))
        self.log_scale = nn.Parameter(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(self.loc.dim())


class Laplace(Prior):
    r"""A sparse code, p(z) = \prod_j exp(-|z_j| / b) / (2 b).

    Args:
        scale: b, the mean of |z|.
    """

    scale: PositiveFloat = 1.0

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        scale = torch.full_like(self.loc, self.scale)
        return dist.Laplace(self.loc, scale).to_event(self.loc.dim())


class StudentT(Prior):
    r"""Heavy tails, p(z) = \prod_j t_{\nu}(z_j), which falls off as |z|^{-\nu - 1}.

    Args:
        degrees_of_freedom: nu; where it is learned, where it begins.
        learned: whether each entry of z learns a nu of its own.
    """

    degrees_of_freedom: PositiveFloat = 5.0
    learned: bool = False

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        log_nu = torch.full(z, self.degrees_of_freedom).log()
        self.log_nu = nn.Parameter(log_nu) if self.learned else nn.Buffer(log_nu)

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return dist.StudentT(self.log_nu.exp()).to_event(self.log_nu.dim())

    @classmethod
    def examples(cls) -> tuple["StudentT", ...]:
        return cls(), cls(learned=True)


class HorseshoeLike(Prior):
    r"""A sparser code, p(z) = \prod_j log(1 + \tau^2 / z_j^2) / (2 \pi \tau): a pole and a tail.

    The Horseshoe-Like Regularization for Feature Subset Selection (Bhadra, Datta, Polson &
    Willard, 2019, https://arxiv.org/abs/1702.07400).

    Args:
        scale: tau; half of the mass is in |z| < 0.41 tau.
    """

    scale: PositiveFloat = 1.0

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        scale = torch.full_like(self.loc, self.scale)
        return distributions.HorseshoeLike(scale).to_event(self.loc.dim())
