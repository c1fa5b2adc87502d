"""A posterior with two modes, z and -z, and a guide that knows of one of them."""

import pyro
import pyro.distributions as dist

from pyrovae import Pair


def two_modes(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.square(), 0.3).to_event(1), obs=x)


def one_mode(x):
    with pyro.plate("data", len(x), dim=-1):
        loc = x.clamp(min=0.5).sqrt()
        pyro.sample("z", dist.Normal(loc, 0.15 / loc).to_event(1))


def pair():
    """p(z) = N(0, 1), p(x | z) = N(z^2, 0.3^2), q near the positive root."""
    return Pair(model=two_modes, guide=one_mode)
