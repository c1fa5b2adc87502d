"""Every test starts from one seed and leaves nothing behind."""

import gc

import pyro
import pytest
import torch

from pyrovae import assessment
from pyrovae.evaluate import freed, gaps, mcmc
from pyrovae.evaluate.samplers import HMC

torch.set_num_threads(1)


def pytest_collection_finish():
    """Do not look through modules and tests for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _nothing_global():
    pyro.set_rng_seed(0)
    yield
    assert len(pyro.get_param_store()) == 0
    assert torch.get_default_dtype() == torch.float32
    assert torch.distributions.Distribution._validate_args


@pytest.fixture
def little(monkeypatch):
    """The evaluation `quick` of few draws, short chains and short searches, for its form alone."""
    least = assessment.Effort(annealed=3, temperatures=5, draws=5, particles=50, rows=40)
    monkeypatch.setitem(assessment.EFFORTS, "quick", least)
    monkeypatch.setattr(freed, "STEPS", 10)
    monkeypatch.setattr(freed, "JUDGES", 64)
    for module in (assessment, gaps, mcmc):
        monkeypatch.setattr(module, "HMC", lambda warmup=0: HMC(warmup=10))
