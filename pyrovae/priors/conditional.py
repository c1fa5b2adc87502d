"""A prior that knows what its row is given: p(z | c), its parameters from a network of c.

Of a model of p(x | c) it is the part that says how the latent itself depends on the context, where
any other prior asks the decoder to say all that c does.
"""

import pyro.distributions as dist
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

from pyrovae.errors import Error
from pyrovae.families import Family, Normal
from pyrovae.networks import MLP, Network
from pyrovae.priors.prior import Guide, Prior


class Conditional(Prior):
    """A family of latents given the context, p(z | c), for the model `conditional-vae`.

    Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee &
    Yan, 2015). Variational Autoencoders and Nonlinear ICA: A Unifying Framework (Khemakhem,
    Kingma, Monti & Hyvärinen, 2020, https://arxiv.org/abs/1907.04809).

    Args:
        family: p(z | c), its parameters from the network.
        network: from the context to the family's parameters.
    """

    family: Family = Normal()
    network: Network = MLP()

    def given(self, context: tuple[int, ...]) -> None:
        self.context = Size(context)

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        if not hasattr(self, "context"):
            raise Error("conditional needs rows with a context: use the model conditional-vae")
        self.family.setup(z)
        self.network.setup(self.context, self.family.params)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.family.support

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        return self.family(self.network(context))
