r"""The hierarchical VAE: several layers of latents, each the prior of the one below it.

    p(x, z_1, ..., z_L) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1)
    q(z_1, ..., z_L | x) = q(z_L | x) q(z_{L-1} | x, z_L) ... q(z_1 | x, z_2)

The guide goes down as the model does, so that each layer of q meets the same parents as its layer
of p. The top layer has any prior; a layer below it is a family whose parameters a network computes
from the layer above.
"""

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, Normal
from pyrovae.models.model import Model
from pyrovae.models.seams import (
    assemble,
    begin,
    beside,
    join,
    refuse_misfits,
    see,
    seen_shape,
    under,
)
from pyrovae.networks import MLP, Network
from pyrovae.part import Part, Shape
from pyrovae.priors import Guide, Prior, StandardNormal


class Layer(Part):
    """The role of a layer of latents below another one. `Stochastic` is the member."""

    z: tuple[int, ...]

    @abstractmethod
    def setup(self, above: tuple[int, ...], seen: tuple[int, ...]) -> None:
        """Make the tensors, for the event shapes of the layer above and of the encoder's view."""

    @abstractmethod
    def forward(self, above: Tensor) -> dist.Distribution:
        """p(z_l | z_{l+1}), for `above` of the shape `(..., *above)`."""

    @abstractmethod
    def q(self, seen: Tensor, above: Tensor) -> dist.Distribution:
        """The guide of the layer given the one above, for `seen` of the shape `(rows, *seen)`."""

    @abstractmethod
    def refuse_misfits(self) -> None:
        """Refuse networks and families that do not fit together."""


class Stochastic(Layer):
    """A family of latents whose parameters are a network of the layer above.

    Args:
        z: the event shape of the layer.
        family: p(z_l | z_{l+1}), its parameters from the network.
        network: from z_{l+1} to the parameters of the family.
        posterior: q(z_l | x, z_{l+1}); a family with reparameterised samples.
        encoder: from x and z_{l+1} to the parameters of the posterior.
    """

    z: Shape
    family: Family = Normal()
    network: Network = MLP()
    posterior: Family = Normal()
    encoder: Network = MLP()

    def setup(self, above: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.above, self.seen = above, seen
        assemble(self, family=(self.z,), posterior=(self.z,))
        assemble(
            self,
            network=(above, self.family.params),
            encoder=(beside(seen, above), self.posterior.params),
        )

    def forward(self, above: Tensor) -> dist.Distribution:
        return self.family(self.network(above))

    def q(self, seen: Tensor, above: Tensor) -> dist.Distribution:
        return self.posterior(self.encoder(join(seen, above, self.seen, self.above)))

    @torch.no_grad()
    def refuse_misfits(self) -> None:
        above, seen = torch.zeros(1, *self.above), torch.zeros(1, *self.seen)
        self.family.refuse_misfit(self.z)
        self.posterior.refuse_misfit(self.z)
        if not self.q(seen, above).has_rsample or type(self.family.support) is not type(
            self.posterior.support
        ):
            raise Error(
                f"{self.posterior.kind} cannot be the guide of {self.family.kind}: it needs "
                "reparameterised samples and the same support",
                "posterior",
            )

    @classmethod
    def examples(cls) -> Iterable["Stochastic"]:
        return (cls(z=(2,)),)


class HierarchicalVAE(Model):
    """A VAE with any number of layers of latents, sites `z1` (next to x) to `zL` (the top).

    Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby & Winther, 2016,
    https://arxiv.org/abs/1602.02282).

    Args:
        x: the event shape of the data.
        z: the event shape of the top layer.
        layers: those below the top, from the upper to the lower ones.
        prior: p(z_L), of the top.
        likelihood: p(x | z_1), its parameters from the decoder.
        posterior: q(z_L | x), of the top.
        encoder: the network from x to the parameters of q(z_L | x).
        decoder: the network from z_1 to the likelihood's parameters.
        missing: whether entries of x can be missing, as in `VAE`.
        marginal_start: whether the decoder begins at the data's marginal distribution.

    Example:
        >>> vae = HierarchicalVAE(x=(64,), z=(2,), layers=[Stochastic(z=(8,))])
        >>> vae.sample(5, seed=0).shape
        torch.Size([5, 64])
    """

    x: Shape
    z: Shape
    layers: tuple[Layer, ...]
    prior: Prior = StandardNormal()
    likelihood: Family = Bernoulli()
    posterior: Family = Normal()
    encoder: Network = MLP()
    decoder: Network = MLP()
    missing: bool = False
    marginal_start: bool = True

    def setup(self) -> None:
        if not self.layers:
            raise Error("a hierarchy has at least one layer below the top: use vae", "layers")
        self.parts = nn.ModuleList(self.layers)
        assemble(self, likelihood=(self.x,), posterior=(self.z,))
        self.seen = seen_shape(self.likelihood, self.missing)
        assemble(self, prior=(self.z, self.seen), encoder=(self.seen, self.posterior.params))
        above: tuple[int, ...] = self.z
        for index, layer in enumerate(self.layers):
            under(f"layers.{index}", partial(layer.setup, above, self.seen))
            under(f"layers.{index}", layer.refuse_misfits)
            above = layer.z
        assemble(self, decoder=(above, self.likelihood.params))
        refuse_misfits(self)

    def q(self, seen: Tensor) -> dist.Distribution:
        """The guide's distribution of the top layer, from what the encoder sees of x."""
        return self.posterior(self.encoder(seen))

    def p(self, z: Tensor, batch: Batch) -> dist.Distribution:
        """The likelihood's distribution of x, for the rows of a batch."""
        return self.likelihood.of(self.decoder(z), batch)

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("hierarchical_vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample(f"z{len(self.layers) + 1}", self.prior(Guide(self.q, batch.index)))
            for name, layer in self._downwards():
                z = pyro.sample(name, layer(z))
            return pyro.sample("x", self.p(z, batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        pyro.module("hierarchical_vae", self)
        seen = see(self.likelihood, batch.x, self.missing)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample(f"z{len(self.layers) + 1}", self.q(seen))
            for name, layer in self._downwards():
                z = pyro.sample(name, layer.q(seen, z))

    def _downwards(self) -> Iterable[tuple[str, Layer]]:
        return ((f"z{len(self.layers) - index}", layer) for index, layer in enumerate(self.layers))

    def start(self, batch: Batch) -> None:
        batch = batch.filled(self.likelihood.inside)
        begin(self.likelihood, self.decoder, batch, self.marginal_start)
        self.prior.start(see(self.likelihood, batch.x, self.missing))

    @classmethod
    def examples(cls) -> Iterable["HierarchicalVAE"]:
        return (
            cls(x=(3,), z=(2,), layers=(Stochastic(z=(3,)), Stochastic(z=(2,)))),
            cls(x=(1, 2, 2), z=(2,), layers=(Stochastic(z=(2,)),), likelihood=Normal()),
        )
