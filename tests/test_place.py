"""Subnormal numbers count as zero where that is wanted, on every thread, and nowhere else."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import Pair, fit, log_likelihood
from pyrovae.place import _openmp, flushed

SMALL = torch.full((4, 100_000), 1e-39)
pytestmark = pytest.mark.skipif(_openmp() is None, reason="cannot be set here")


def flushes():
    return not SMALL.mul(1).any()


def test_subnormal_numbers_are_flushed_on_all_threads_and_only_inside():
    assert not flushes()
    with flushed():
        assert flushes()
        with flushed():
            assert flushes()
        assert flushes()
    assert (SMALL.mul(1) == SMALL).all()


def test_they_are_back_after_an_error():
    with pytest.raises(KeyError), flushed():
        raise KeyError
    assert not flushes()


def test_fits_and_evaluations_flush_them():
    seen = []

    def model(x):
        seen.append(flushes())
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z.unsqueeze(-1) + pyro.param("shift", torch.zeros(()))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x[..., 0] / 2, 0.7))

    pair, x = Pair(model=model, guide=guide), torch.randn(20, 1)
    fit(pair, x, epochs=1, compile=False, progress=False)
    during = len(seen)
    log_likelihood(pair, x, particles=10)
    assert seen[during - 1]
    assert all(seen[during + 1 :])
    assert not flushes()
