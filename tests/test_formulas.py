"""Formulas against torch's own functions in float64."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from pyrovae.formulas import FORMULAS
from pyrovae.graphs import record

NORMAL = torch.randn(2000, generator=torch.Generator().manual_seed(0))
EDGES = [0.0, -0.0, 1e-8, 0.6, -0.6, 6.7, 20.5, 88.0, -86.0, math.inf, -math.inf, math.nan]
X = torch.cat([torch.tensor(EDGES), *(scale * NORMAL for scale in (1e-3, 0.1, 1, 5, 30))])
FUNCTIONS = {
    "softplus": functional.softplus,
    "steep softplus": lambda x: functional.softplus(x, beta=4.0),
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "log-sigmoid": functional.logsigmoid,
}


def with_derivative(name, x):
    x = x.detach().requires_grad_()
    value = FUNCTIONS[name](x)
    return value.detach(), *torch.autograd.grad(value.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_formulas_are_right_to_the_last_digits(name, dtype):
    x, digits = X.to(dtype), 10 * torch.finfo(dtype).eps
    value, slope = record(partial(with_derivative, name), x).compiled(x)(x)
    wanted, wanted_slope = with_derivative(name, x.double())
    close = partial(torch.testing.assert_close, rtol=digits, equal_nan=True)
    close(value.double(), wanted, atol=torch.finfo(torch.float32).tiny)
    close(slope.double(), wanted_slope, atol=digits)


def test_every_formula_stands_for_an_operation_of_the_functions():
    graphs = (record(partial(with_derivative, name), X).operations for name in FUNCTIONS)
    assert {node.target for graph in graphs for node in graph.nodes} >= FORMULAS.keys()
