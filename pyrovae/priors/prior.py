"""The role of p(z): what the latent is before any data are seen.

A prior returns one distribution with event shape `z` and batch shape `()`; the model's plate
broadcasts it over the rows. The bound pulls the *aggregated posterior* q(z) = mean_i q(z | x_i)
towards it,

    mean_i ELBO_i = mean_i E_q[log p(x_i | z)] - I_q(x; z) - KL(q(z) || p(z)),

so a prior that can take the shape of q(z) pays less in the last term. The standard normal cannot;
mixtures and flows learn it; the VampPrior and the exemplars *are* mixtures of the guide's own
posteriors.

ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson,
2016).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor
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
