"""Every test starts from one seed and leaves nothing behind."""

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_global():
    pyro.set_rng_seed(0)
    yield
    assert len(pyro.get_param_store()) == 0
    assert torch.get_default_dtype() == torch.float32
    assert torch.distributions.Distribution._validate_args
