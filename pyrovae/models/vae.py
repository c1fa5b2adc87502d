"""The variational autoencoder: a prior, a likelihood and a guide, each declared once.

    log p(x) = ELBO + KL(q(z|x) || p(z|x)),      ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

Maximising the ELBO in the parameters of both programs raises log p(x) and draws q towards the
posterior at once.
"""

from collections.abc import Iterable
from copy import deepcopy

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import all_states
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, MultivariateNormal, Normal
from pyrovae.models.model import Model
from pyrovae.models.seams import (
    assemble,
    begin,
    few_states,
    refuse_misfits,
    see,
    seen_shape,
    summed,
)
from pyrovae.networks import MLP, Network
from pyrovae.part import Shape
from pyrovae.priors import Guide, Prior, StandardNormal
from pyrovae.refinements import Refinement


class VAE(Model):
    """A variational autoencoder, p(x, z) = p(z) p(x | z) with the guide q(z | x).

    Auto-Encoding Variational Bayes (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114).

    Args:
        x: the event shape of the data.
        z: the event shape of the latent.
        prior: p(z).
        likelihood: p(x | z), its parameters from the decoder.
        posterior: q(z | x), its parameters from the encoder; a family with reparameterised
            samples.
        encoder: the network from x to q's parameters.
        decoder: the network from z to the likelihood's parameters.
        refine: how what the encoder proposes is refined for each row, if at all.
        missing: whether entries of x can be missing, NaN: the likelihood skips them, the encoder
            sees a zero and a mask.
        marginal_start: whether the decoder begins at the data's marginal distribution.

    Example:
        >>> vae = VAE(x=(64,), z=(8,), prior="laplace", encoder=MLP(hidden=(32,)))
        >>> vae.sample(5, seed=0).shape
        torch.Size([5, 64])
        >>> vae.prior
        Laplace(scale=1.0)
    """

    x: Shape
    z: Shape
    prior: Prior = StandardNormal()
    likelihood: Family = Bernoulli()
    posterior: Family = Normal()
    encoder: Network = MLP()
    decoder: Network = MLP()
    refine: Refinement | None = None
    missing: bool = False
    marginal_start: bool = True

    def setup(self) -> None:
        assemble(self, likelihood=(self.x,), posterior=(self.z,))
        seen = seen_shape(self.likelihood, self.missing)
        assemble(
            self,
            prior=(self.z, seen),
            encoder=(seen, self.posterior.params),
            decoder=(self.z, self.likelihood.params),
        )
        refuse_misfits(self)

    def q(self, seen: Tensor) -> dist.Distribution:
        """The guide's distribution of z, from what the encoder sees of x."""
        return self.posterior(self.encoder(seen))

    def p(self, z: Tensor, batch: Batch) -> dist.Distribution:
        """The likelihood's distribution of x, for the rows of a batch."""
        return self.likelihood.of(self.decoder(z), batch)

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior(Guide(self.q, batch.index)))
            return pyro.sample("x", self.p(z, batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        pyro.module("vae", self)
        seen = see(self.likelihood, batch.x, self.missing)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self._proposed(seen, batch), infer=summed(self.enumerates))

    def _proposed(self, seen: Tensor, batch: Batch) -> dist.Distribution:
        """What the encoder proposes, refined where the model says so."""
        h = self.encoder(seen)
        if self.refine is None:
            return self.posterior(h)
        return self.posterior(self.refine(h, lambda h: self._bound(h, batch)))

    def _bound(self, h: Tensor, batch: Batch) -> Tensor:
        """The ELBO of each row, `(rows,)`, one draw, for a guide with the parameters h."""
        q = self.posterior(h)
        z = q.rsample()
        log_p = self.prior(Guide(self.q, batch.index)).log_prob(z)
        return log_p + self.p(z, batch).log_prob(batch.x) - q.log_prob(z)

    def refuse_training(self, method: str) -> None:
        if self.refine and not self.posterior.smooth:
            raise Error(
                f"the gradient of draws of {self.posterior.kind} has no gradient: refine it in "
                "evaluation only, or train with another posterior, such as normal",
                "refine",
            )

    def start(self, batch: Batch) -> None:
        batch = batch.filled(self.likelihood.inside)
        begin(self.likelihood, self.decoder, batch, self.marginal_start)
        self.prior.start(see(self.likelihood, batch.x, self.missing))

    def log_prob(self, batch: Batch) -> Tensor:
        """Log p(x) = log of the sum over all states of z, where these are few."""
        if not self.exact:
            return super().log_prob(batch)
        states = all_states(self.z).to(batch.x)[:, None]
        log_p = self.prior(Guide(self.q)).log_prob(states)
        return torch.cat(
            [
                (log_p + self.p(states, part).log_prob(part.x)).logsumexp(0)
                for part in batch.split(256)
            ]
        )

    @classmethod
    def examples(cls) -> Iterable["VAE"]:
        small = MLP(hidden=(8,))
        return (
            cls(x=(3,), z=(2,), encoder=deepcopy(small), decoder=deepcopy(small)),
            cls(x=(2, 2), z=(2,), likelihood=Normal(), posterior=MultivariateNormal()),
        )

    @property
    def enumerates(self) -> bool:
        return few_states(self.posterior)

    @property
    def exact(self) -> bool:
        return self.enumerates
