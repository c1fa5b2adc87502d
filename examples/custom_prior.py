"""A prior of one's own in fifteen lines, used from Python here and from custom_prior.toml.

python examples/custom_prior.py
pyrovae compare examples/custom_prior.toml
"""

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.priors import Prior


class CorrelatedNormal(Prior):
    """A normal with a learned full covariance, p(z) = N(0, L L')."""

    def setup(self, z, seen):
        self.raw = nn.Parameter(torch.zeros(*z, *z))

    def forward(self, q, context=None):
        tril = self.raw.tril(-1) + self.raw.diagonal().exp().diag()
        return dist.MultivariateNormal(self.raw.new_zeros(len(tril)), scale_tril=tril)


if __name__ == "__main__":
    import pyrovae

    data = pyrovae.load("iris", transforms=["standardize"])
    models = {}
    for prior in ("standard-normal", "correlated-normal"):
        torch.manual_seed(0)
        vae = pyrovae.VAE(x=data.event, z=(2,), prior=prior, likelihood="shared-normal")
        models[prior] = data.wrap(vae)
        print(pyrovae.fit(models[prior], data.train, data.validation, epochs=200, batch_size=32))
    print(pyrovae.compare(models, data.test, particles=500))
