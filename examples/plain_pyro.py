"""A hand-written Pyro model and guide through fit, log_likelihood and compare.

The model is factor analysis with `pyro.param`; any model with local latents in a plate at
dimension -1 will do.

    python examples/plain_pyro.py
"""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pyrovae


def model(x):
    loading = pyro.param("loading", lambda: 0.1 * torch.randn(2, 4))
    mean = pyro.param("mean", torch.zeros(4))
    scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        return pyro.sample("x", dist.Normal(mean + z @ loading, scale).to_event(1), obs=x)


def guide(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(4, 2))
    bias = pyro.param("bias", torch.zeros(2))
    scale = pyro.param("guide_scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ weight + bias, scale).to_event(1))


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    data = pyrovae.load("iris")
    pair = pyrovae.Pair(model=model, guide=guide)
    print(
        pyrovae.fit(
            pair, data.train, data.validation, epochs=300, batch_size=32, learning_rate=0.02
        )
    )
    print(pyrovae.log_likelihood(pair, data.test, particles=1000))
    mixture = pyrovae.Mixture(x=data.event, components=3)
    pyrovae.fit(mixture, data.train, restarts=5)
    print(pyrovae.compare({"factors": pair, "mixture": mixture}, data.test))
