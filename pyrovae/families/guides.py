r"""Families that are guides first: over directions, over choices, and with several modes.

A bound is as tight as the guide is close to the posterior, and what values a posterior has is the
prior's doing. Directions want a guide on the sphere. Choices want probabilities, whose expectation
is a sum over the states,

    E_q f(z) = \sum_z q(z) f(z),

or, where these are too many, a draw with the gradient of its mean; or choices that are relaxed,
continuous and nearly discrete. And a posterior with several modes, of which a single normal covers
one or blurs all, wants a mixture.
"""

from math import prod
from typing import Annotated, ClassVar

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Size, Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.batch import Batch
from pyrovae.distributions import STATES, one_hot, sphere
from pyrovae.errors import Error
from pyrovae.families.categorical import floored
from pyrovae.families.continuous import inverse_softplus
from pyrovae.families.expectation import linear
from pyrovae.families.family import Family
from pyrovae.schedules import Rate, held
from pyrovae.transforms import spread

Fraction = Annotated[float, Field(gt=0, lt=1)]


class PowerSpherical(Family):
    """Directions around mu, p(x | h) = C (1 + mu'x)^kappa, mu = h_1: / |h_1:|, kappa from h_0.

    The Power Spherical distribution (De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437).

    Args:
        floor: the smallest angular standard deviation, (2 / kappa)^1/2, in radians.
    """

    floor: Fraction = 0.01
    support: ClassVar[Constraint] = sphere
    smooth: ClassVar[bool] = False

    def setup(self, event: tuple[int, ...]) -> None:
        if len(event) != 1 or event[0] < 2:
            raise Error(f"{self.kind} takes vectors of 2 or more entries, not {tuple(event)}")
        self.event, self.params = Size(event), Size((1 + event[0],))
        self.axis = nn.Buffer(torch.eye(event[0])[0])

    def forward(self, h: Tensor) -> dist.Distribution:
        length = h[..., 1:].norm(dim=-1, keepdim=True)
        eps = torch.finfo(h.dtype).eps
        direction = torch.where(length > eps, h[..., 1:] / length.clamp(min=eps), self.axis)
        scale = self.floor + softplus(h[..., 0])
        return distributions.PowerSpherical(direction, 2 / scale.square())

    @property
    def freedom(self) -> int:
        return self.event[0]

    def marginal(self, batch: Batch) -> Tensor:
        """By the mean, which has the direction mu and the length kappa / (D - 1 + kappa)."""
        mean = batch.x.mean(0)
        length = mean.norm().clamp(1e-6, 1 - 1e-6)
        scale = (2 * (1 / length - 1) / (len(mean) - 1)).sqrt()
        raw = inverse_softplus((scale - self.floor).clamp(min=1e-2 * self.floor))
        return torch.cat([raw[None], mean / length])


class OneHot(Family):
    r"""Independent choices as one-hot vectors, log p(x | h) = \sum_ik x_ik log softmax(h_i)_k.

    As a guide of a few states it is summed over; with more its draws have the gradient of their
    mean. Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation (Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432).

    Args:
        floor: the smallest probability of a class in the M-step of a mixture, as a fraction of
            1 / classes.
    """

    floor: Fraction = 0.01
    support: ClassVar[Constraint] = one_hot

    def forward(self, h: Tensor) -> dist.Distribution:
        return distributions.OneHot(h, len(self.event), straight_through=self.states > STATES)

    @property
    def states(self) -> int:
        *variables, classes = self.event
        return classes ** prod(variables)

    @property
    def freedom(self) -> int:
        *variables, classes = self.event
        return prod(variables) * (classes - 1)

    def natural(self, h: Tensor) -> tuple[Tensor, Tensor]:
        eta = h.log_softmax(-1).flatten(-len(self.event))
        return eta, torch.zeros_like(eta[..., 0])

    def table(self, batch: Batch, h: Tensor) -> Tensor:
        if batch.incomplete:
            return super().table(batch, h)
        return linear(self.statistics(batch.x), *self.natural(h))

    def statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maximize(self, statistics: Tensor) -> Tensor:
        """The frequencies, none of them below the floor."""
        frequencies = statistics.unflatten(-1, self.event)
        return floored(frequencies, self.floor / self.event[-1]).log()


class RelaxedBernoulli(Family):
    """The log-odds y of relaxed zeros and ones, y = (h + logistic noise) / temperature.

    The guide of binary latents, with the prior of the same name: as the temperature falls
    1 / (1 + e^-y) goes to 0 or 1, which a `squashed` decoder sees, and draws stay differentiable.
    The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables (Maddison, Mnih
    & Teh, 2017, https://arxiv.org/abs/1611.00712). Categorical Reparameterization with
    Gumbel-Softmax (Jang, Gu & Poole, 2017, https://arxiv.org/abs/1611.01144).

    Args:
        temperature: the lower, the closer to zeros and ones, and the noisier the gradient.
    """

    temperature: Rate = 0.5

    def setup(self, event: tuple[int, ...]) -> None:
        super().setup(event)
        self.temperature_now = held(self.temperature, "temperature")

    def forward(self, h: Tensor) -> dist.Distribution:
        return distributions.RelaxedBernoulli(h, self.temperature_now).to_event(len(self.event))

    def marginal(self, batch: Batch) -> Tensor:
        return self.temperature_now * batch.x.mean(0)


class MixtureOfNormals(Family):
    r"""A mixture of normals, p(x | h) = \sum_k pi_k N(x; mu_k, diag sigma_k^2), all from h.

    Each component has a learned offset, which its mean is relative to and which starts at random:
    with equal starts, components would stay equal. Draws have exact gradients for all parameters.
    Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018,
    https://arxiv.org/abs/1805.08498).

    Args:
        components: how many normals.
        floor: the smallest standard deviation, as a fraction of the data's.
        stratified: whether the particles of a row are shared out among the components, which an
            ELBO gains from; where particles are weighted against each other, as for IWAE, the
            gradient is exact only without.
    """

    components: PositiveInt = 4
    floor: PositiveFloat = 1e-3
    stratified: bool = True

    smooth: ClassVar[bool] = False

    def setup(self, event: tuple[int, ...]) -> None:
        self.event = Size(event)
        self.params = Size((self.components, 1 + 2 * prod(event)))
        self.offset = nn.Parameter(0.7 * torch.randn(self.components, *event))
        self.center, self.unit = nn.Buffer(torch.zeros(event)), nn.Buffer(torch.ones(event))

    def forward(self, h: Tensor) -> dist.Distribution:
        dims = len(self.event)
        shift, raw_scale = h[..., 1:].unflatten(-1, (2, *self.event)).unbind(-1 - dims)
        loc = self.center + self.unit * (self.offset + shift)
        scale = self.unit * (self.floor + softplus(raw_scale))
        return distributions.NormalMixture(h[..., 0], loc, scale, dims, self.stratified)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.center.copy_(x.mean(0))
        self.unit.copy_(spread(x))

    def marginal(self, batch: Batch) -> Tensor:
        """Zero: equal weights, means at the offsets, about the data's mean and spread in all."""
        return batch.x.new_zeros(self.params)
