"""The one optimiser: the steps of torch's own, recorded or not."""

import pytest
import torch

from pyrovae.graphs import PATIENCE
from pyrovae.optim import Optim

STEPS = PATIENCE + 15


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)


@pytest.mark.parametrize(
    ("constructor", "options"),
    [
        (torch.optim.Adam, {"lr": 0.1, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True, "fused": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
        (torch.optim.Adam, {"lr": 0.1}),
    ],
)
def test_its_steps_are_those_of_torch(constructor, options):
    mine, theirs = ([torch.ones(3, 2), torch.ones(4)] for _ in range(2))
    optim, optimizer = Optim(constructor, options), None
    states = []
    for step in range(STEPS):
        few = step in (3, STEPS - 4)
        if step == STEPS - 8:
            states.append(optim.get_state())
            optim.set_state(states[0])
        for params in (mine, theirs):
            for param, gradient in zip(params, gradients(step), strict=True):
                param.grad = gradient
            params[0].grad = None if few else params[0].grad
        if optimizer is None:
            optimizer = constructor(theirs, **options)
        if step == STEPS - 6:
            optim.optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.01
        optim(mine)
        optimizer.step()
        assert all(map(torch.equal, mine, theirs)), step
    assert optim.same < STEPS


def test_only_a_fused_step_that_stays_the_same_is_recorded():
    param = torch.ones(2)
    optim = Optim(torch.optim.Adam, {"lr": 0.1, "fused": True})

    def steps(count):
        for _ in range(count):
            param.grad = torch.ones(2)
            optim([param])
        return optim.graph is not None

    assert not steps(PATIENCE)
    assert steps(1)
    optim.optimizer.param_groups[0]["lr"] = 0.2
    assert not steps(PATIENCE)
    assert steps(1)
    other = torch.ones(2)
    other.grad = torch.ones(2)
    optim([param, other])
    assert optim.graph is None
    optim.set_state({})
    assert not steps(PATIENCE)
    assert steps(2)
