"""The conditional VAE: a VAE of rows that are given a context c, such as covariates or a class.

    log p(x|c) >= E_q[log p(x|z,c)] - KL(q(z|x,c) || p(z|c))

The context, in units of its standard deviations, stands beside the encoder's input and beside z.
Whether the latent depends on it is the prior's business: `Conditional` says p(z|c), all others
p(z), which asks the decoder to say all that c does. What is compared is log p(x|c), never with a
log p(x).
"""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, Normal
from pyrovae.models.model import Model, Tag
from pyrovae.models.seams import (
    assemble,
    begin,
    beside,
    join,
    refuse_misfits,
    see,
    seen_shape,
)
from pyrovae.networks import MLP, Network
from pyrovae.part import Shape
from pyrovae.priors import Guide, Prior, StandardNormal
from pyrovae.transforms import spread


class ConditionalVAE(Model):
    """A VAE of p(x | c), with p(z | c), p(x | z, c) and q(z | x, c).

    Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee &
    Yan, 2015).

    Args:
        x: the event shape of the data.
        z: the event shape of the latent.
        context: the event shape of c.
        prior: p(z | c); only `conditional` makes use of c.
        likelihood: p(x | z, c), its parameters from the decoder.
        posterior: q(z | x, c), its parameters from the encoder; a family with reparameterised
            samples.
        encoder: the network from x and c to q's parameters.
        decoder: the network from z and c to the likelihood's parameters.
        missing: whether entries of x can be missing, as in `VAE`.
        marginal_start: whether the decoder begins at the data's marginal distribution.
    """

    x: Shape
    z: Shape
    context: Shape
    prior: Prior = StandardNormal()
    likelihood: Family = Bernoulli()
    posterior: Family = Normal()
    encoder: Network = MLP()
    decoder: Network = MLP()
    missing: bool = False
    marginal_start: bool = True

    def setup(self) -> None:
        assemble(self, likelihood=(self.x,), posterior=(self.z,))
        seen = beside(seen_shape(self.likelihood, self.missing), self.context)
        self.shift = nn.Buffer(torch.zeros(self.context))
        self.unit = nn.Buffer(torch.ones(self.context))
        self.prior.given(self.context)
        assemble(
            self,
            prior=(self.z, seen),
            encoder=(seen, self.posterior.params),
            decoder=(beside(self.z, self.context), self.likelihood.params),
        )
        refuse_misfits(self, torch.zeros(2, *self.context))

    def q(self, seen: Tensor) -> dist.Distribution:
        """The guide's distribution of z, from what the encoder sees of x and c."""
        return self.posterior(self.encoder(seen))

    def p(self, z: Tensor, batch: Batch) -> dist.Distribution:
        """The likelihood's distribution of x, for the rows of a batch."""
        inputs = join(z, self._scaled(batch), self.z, self.context)
        return self.likelihood.of(self.decoder(inputs), batch)

    def see(self, batch: Batch) -> Tensor:
        """What the encoder sees of x and c."""
        seen = see(self.likelihood, batch.x, self.missing)
        shape = seen_shape(self.likelihood, self.missing)
        return join(seen, self._scaled(batch), shape, self.context)

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior(Guide(self.q, batch.index), self._scaled(batch)))
            return pyro.sample("x", self.p(z, batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.q(self.see(batch)))

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        batch, context = batch.filled(self.likelihood.inside), self._context(batch)
        self.shift.copy_(context.mean(0))
        self.unit.copy_(spread(context))
        begin(self.likelihood, self.decoder, batch, self.marginal_start)
        self.prior.start(self.see(batch))

    def require(self, batch: Batch) -> None:
        context = self._context(batch)
        if tuple(context.shape) != (len(batch), *self.context):
            raise Error(
                f"the context of {len(batch)} rows should have the shape "
                f"{(len(batch), *self.context)}, got {tuple(context.shape)}"
            )
        if not context.isfinite().all():
            raise Error("the context holds NaN or infinite values: only x can be missing")

    def _scaled(self, batch: Batch) -> Tensor:
        """The context in standard deviations of the training rows', from their mean."""
        return (self._context(batch) - self.shift) / self.unit

    def _context(self, batch: Batch) -> Tensor:
        if batch.context is None:
            raise Error(
                f"the model '{self.kind}' needs a context for each row: Batch(x, context), or "
                "data.context in a spec"
            )
        return batch.context

    @classmethod
    def examples(cls) -> Iterable["ConditionalVAE"]:
        return (
            cls(x=(3,), z=(2,), context=(2,)),
            cls(x=(1, 2, 2), z=(2,), context=(1, 2, 2), likelihood=Normal()),
        )

    @property
    def tag(self) -> Tag:
        given = ", ".join(filter(None, ("the context", self.likelihood.conditions)))
        return Tag(self.likelihood.measure, given)
