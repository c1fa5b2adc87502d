"""The variational autoencoder: a prior, a likelihood and a guide, each declared once.

    log p(x) = ELBO + KL(q(z|x) || p(z|x)),      ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

Maximising the ELBO in the parameters of both programs raises log p(x) and draws q towards the
posterior at once (Auto-Encoding Variational Bayes, Kingma & Welling, 2014,
https://arxiv.org/abs/1312.6114).
"""

from collections.abc import Callable, Iterable
from copy import deepcopy

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, MultivariateNormal, Normal
from pyrovae.families.family import refuse_misfit
from pyrovae.models.model import Model, Tag
from pyrovae.networks import MLP, Network
from pyrovae.part import Shape
from pyrovae.place import in_mode, seeded
from pyrovae.priors import Prior, StandardNormal


class VAE(Model):
    """A variational autoencoder.

    Args:
        x: the event shape of the data.
        z: the event shape of the latent.
        prior: p(z).
        likelihood: p(x | z), its parameters from the decoder.
        posterior: q(z | x), its parameters from the encoder; a family with reparameterised
            samples.
        encoder: the network from x to q's parameters.
        decoder: the network from z to the likelihood's parameters.

    Example:
        >>> vae = VAE(x=(64,), z=(8,), prior="vamp", encoder=MLP(hidden=(32,)))
        >>> vae.sample(5, seed=0).shape
        torch.Size([5, 64])
        >>> vae.prior
        Vamp(components=100)
    """

    x: Shape
    z: Shape
    prior: Prior = StandardNormal()
    likelihood: Family = Bernoulli()
    posterior: Family = Normal()
    encoder: Network = MLP()
    decoder: Network = MLP()

    def setup(self) -> None:
        self.likelihood.setup(self.x)
        self.posterior.setup(self.z)
        seen = self.likelihood.seen
        self.prior.setup(self.z, seen)
        self.encoder.setup(seen, self.posterior.params)
        self.decoder.setup(self.z, self.likelihood.params)
        self._refuse_misfits(seen)

    @torch.no_grad()
    def _refuse_misfits(self, seen: tuple[int, ...]) -> None:
        """Run every part once on a row of zeros, and refuse what cannot be put together."""
        with seeded(0), in_mode(self, False):
            for name, network, source, target in (
                ("encoder", self.encoder, seen, self.posterior.params),
                ("decoder", self.decoder, self.z, self.likelihood.params),
            ):
                shape = tuple(network(torch.zeros(1, *source)).shape[1:])
                if shape != tuple(target):
                    raise Error(f"gives {shape} for {tuple(source)}, not {tuple(target)}", name)
            _within("prior", lambda: refuse_misfit(self.prior(self.q, None), self.z))
            _within("posterior", lambda: self.posterior.refuse_misfit(self.z))
            _within("likelihood", lambda: self.likelihood.refuse_misfit(self.x))
            if not self.q(torch.zeros(1, *seen)).has_rsample:
                raise Error(
                    f"{self.posterior.kind} has no reparameterised samples: use normal",
                    "posterior",
                )

    def q(self, seen: Tensor) -> dist.Distribution:
        """The guide's distribution of z, from what the encoder sees of x."""
        return self.posterior(self.encoder(seen))

    def p(self, z: Tensor) -> dist.Distribution:
        """The likelihood's distribution of x."""
        return self.likelihood(self.decoder(z))

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior(self.q, batch.context))
            return pyro.sample("x", self.p(z), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        pyro.module("vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.q(self.likelihood.encode(batch.x)))

    def start(self, batch: Batch) -> None:
        self.likelihood.start(batch.x)
        self.prior.start(self.likelihood.encode(batch.x))

    @classmethod
    def examples(cls) -> Iterable["VAE"]:
        small = MLP(hidden=(8,))
        return (
            cls(x=(3,), z=(2,), encoder=deepcopy(small), decoder=deepcopy(small)),
            cls(x=(2, 2), z=(2,), likelihood=Normal(), posterior=MultivariateNormal()),
        )

    @property
    def event(self) -> tuple[int, ...]:
        return self.x

    @property
    def tag(self) -> Tag:
        return Tag(self.likelihood.measure)

    @property
    def support(self) -> Constraint:
        return self.likelihood.support

    @property
    def takes(self) -> str:
        return f"{self.likelihood.kind} takes {self.likelihood.takes}"


def _within(name: str, check: Callable[[], None]) -> None:
    """A check of one part, with the part's name in the error."""
    try:
        check()
    except Error as error:
        raise error.under(name) from None
