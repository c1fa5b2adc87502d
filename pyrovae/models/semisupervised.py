r"""The semi-supervised VAE (M2): a class y, known for some rows, and a style z.

    p(x, y, z) = p(y) p(z) p(x | y, z),        q(y, z | x) = q(y | x) q(z | x, y)

In training a row with a label contributes the bound on log p(x, y), a row without one the bound on
log p(x), in which y is summed over, not drawn:

    log p(x, y) >= E_q[log p(x | y, z) + log p(z) - log q(z | x, y)] + log p(y) = L(x, y)
    log p(x)    >= \sum_y q(y | x) (L(x, y) - log q(y | x)) .

The classifier q(y | x) stands in the second line only, so the labels teach it by a term of their
own, alpha log q(y | x), in training. Evaluation reads no labels: it is of log p(x).
"""

from collections.abc import Iterable
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import OneHot
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
    summed,
)
from pyrovae.networks import MLP, Network
from pyrovae.part import Shape
from pyrovae.place import destination, in_mode
from pyrovae.priors import Guide, Prior, StandardNormal

CERTAIN = 1e4
"""The log-odds of a label that is known; that of another class is then exactly 0 in any sum."""


class SemiSupervisedVAE(Model):
    """A VAE with a class that is known for some rows, summed over for the others.

    Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014,
    https://arxiv.org/abs/1406.5298).

    Args:
        x: the event shape of the data.
        z: the event shape of the style.
        classes: how many; labels are whole numbers from 0, and -1 where they are missing.
        prior: p(z).
        likelihood: p(x | y, z), its parameters from the decoder.
        posterior: q(z | x, y), its parameters from the encoder.
        encoder: the network from x and y to the parameters of q(z | x, y).
        decoder: the network from z and y to the likelihood's parameters.
        classifier: the network from x to the log-odds of q(y | x).
        alpha: the weight of log q(y | x) of the labels in training, in nats per labelled row.
        missing: whether entries of x can be missing, as in `VAE`.
        marginal_start: whether the decoder begins at the data's marginal distribution.
    """

    x: Shape
    z: Shape
    classes: Annotated[int, Field(ge=2)]
    prior: Prior = StandardNormal()
    likelihood: Family = Bernoulli()
    posterior: Family = Normal()
    encoder: Network = MLP()
    decoder: Network = MLP()
    classifier: Network = MLP()
    alpha: NonNegativeFloat = 10.0
    missing: bool = False
    marginal_start: bool = True

    def setup(self) -> None:
        y = (self.classes,)
        assemble(self, likelihood=(self.x,), posterior=(self.z,))
        self.seen = seen_shape(self.likelihood, self.missing)
        assemble(
            self,
            prior=(self.z, beside(self.seen, y)),
            encoder=(beside(self.seen, y), self.posterior.params),
            decoder=(beside(self.z, y), self.likelihood.params),
            classifier=(self.seen, y),
        )
        self.logits = nn.Parameter(torch.zeros(self.classes))
        refuse_misfits(self)

    def q(self, seen: Tensor) -> dist.Distribution:
        """The guide's distribution of z, from what the encoder sees of x with y beside it."""
        return self.posterior(self.encoder(seen))

    def p(self, z: Tensor, y: Tensor, batch: Batch) -> dist.Distribution:
        """The likelihood's distribution of x, for the rows of a batch."""
        inputs = join(z, y, self.z, (self.classes,))
        return self.likelihood.of(self.decoder(inputs), batch)

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("semi_supervised_vae", self)
        with pyro.plate("data", len(batch), dim=-1):
            y = pyro.sample("y", OneHot(self.logits))
            z = pyro.sample("z", self.prior(Guide(self.q, batch.index)))
            if self.training and batch.labels is not None:
                pyro.factor("labels", self.alpha * self._of_labels(batch.x, batch.labels))
            return pyro.sample("x", self.p(z, y, batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        pyro.module("semi_supervised_vae", self)
        seen = see(self.likelihood, batch.x, self.missing)
        logits = self.classifier(seen)
        if self.training and batch.labels is not None:
            known = batch.labels.ge(0)[:, None]
            logits = torch.where(known, CERTAIN * self._one_hot(batch.labels), logits)
        with pyro.plate("data", len(batch), dim=-1):
            y = pyro.sample("y", OneHot(logits), infer=summed(self.enumerates))
            pyro.sample("z", self.q(join(seen, y, self.seen, (self.classes,))))

    def _one_hot(self, labels: Tensor) -> Tensor:
        return torch.eye(self.classes).to(self.logits)[labels.clamp(min=0)]

    def _of_labels(self, x: Tensor, labels: Tensor) -> Tensor:
        """Log q(y | x) of the labels, 0 where there is none, shape `(rows,)`."""
        log_q = self.classifier(see(self.likelihood, x, self.missing)).log_softmax(-1)
        return torch.where(labels.ge(0), (log_q * self._one_hot(labels)).sum(-1), 0.0)

    @torch.no_grad()
    def predict_proba(self, data: object) -> Tensor:
        """q(y | x) of rows, shape `(rows, classes)`."""
        batch = as_batch(data).to(*destination(self))
        self.check(batch)
        with in_mode(self, False):
            return self.classifier(see(self.likelihood, batch.x, self.missing)).softmax(-1)

    def predict(self, data: object) -> Tensor:
        """The most probable class of rows, shape `(rows,)`."""
        return self.predict_proba(data).argmax(-1)

    def start(self, batch: Batch) -> None:
        batch = batch.filled(self.likelihood.inside)
        begin(self.likelihood, self.decoder, batch, self.marginal_start)
        seen = see(self.likelihood, batch.x, self.missing)
        y = OneHot(torch.zeros(len(batch), self.classes).to(seen)).sample()
        self.prior.start(join(seen, y, self.seen, (self.classes,)))

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if batch.labels is not None:
            strange = (batch.labels < -1) | (batch.labels >= self.classes)
            if strange.any():
                raise Error(
                    f"labels are whole numbers from 0 to {self.classes - 1}, or -1 where they are "
                    f"missing, got {batch.labels[strange][0].item()}"
                )

    @classmethod
    def examples(cls) -> Iterable["SemiSupervisedVAE"]:
        return (cls(x=(3,), z=(2,), classes=3),)

    @property
    def enumerates(self) -> bool:
        return True
