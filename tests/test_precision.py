"""Networks in half precision: the factors of layers are rounded, and nothing else."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae import Pair, fit, log_likelihood
from pyrovae.compile import backward
from pyrovae.inference import weights
from pyrovae.models import Model
from pyrovae.objectives import ELBO
from pyrovae.place import seeded
from pyrovae.precision import HalfPrecision, _Layers

X = (torch.rand(48, 12, generator=torch.Generator().manual_seed(0)) > 0.4).float()
LAYERS = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "linear without bias": (nn.Linear(6, 5, bias=False), (7, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), (7, 6, 8)),
    "conv2d": (nn.Conv2d(6, 4, (3, 1), stride=2, groups=2), (7, 6, 8, 8)),
    "conv_transpose2d": (nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), (7, 6, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_rounds_its_factors_only(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, requires_grad=True)
    with _Layers():
        found = layer(x)
    found.sum().backward()
    given, gradient = x.grad, layer.weight.grad
    bias = None if layer.bias is None else layer.bias.grad
    layer.zero_grad()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    rounded = x.detach().bfloat16().float().requires_grad_()
    wanted = layer(rounded)
    wanted.sum().backward()
    for mine, exact in ((found, wanted), (given, rounded.grad), (gradient, layer.weight.grad)):
        assert mine.dtype == torch.float32
        assert (mine - exact).norm() <= 2**-8 * exact.norm()
    assert bias is None or torch.equal(bias, layer.bias.grad)


def gradients(elbo, model, x):
    with seeded(1), model.scope():
        loss, params = backward(elbo, model.model, model.guide, x, rows=len(x))
    found = {name: p.grad for name, p in params.items()} | {"loss": loss}
    for p in params.values():
        p.grad = None
    return found


def test_a_vae_is_rounded_by_a_little():
    with seeded(0):
        model = Model.from_spec({"kind": "vae", "x": (12,), "z": (3,)}).float()
    found = gradients(HalfPrecision(ELBO().build()), model, X)
    for name, wanted in gradients(ELBO().build(), model, X).items():
        assert found[name].dtype == torch.float32
        assert 0 < (found[name] - wanted).norm() < 0.02 * wanted.norm(), name


def test_a_model_without_networks_is_not_rounded():
    def model(x):
        scale = pyro.param("scale", torch.eye(12) + 0.1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0).to_event(1))
            pyro.sample("x", dist.MultivariateNormal(z @ scale, scale @ scale.mT), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    pair = Pair(model=model, guide=guide)
    found = gradients(HalfPrecision(ELBO().build()), pair, X)
    assert all(torch.equal(found[k], v) for k, v in gradients(ELBO().build(), pair, X).items())


def test_fit_takes_it_in_training_alone(monkeypatch):
    monkeypatch.setattr("pyrovae.compile.WORTH", 1)
    ends = {}
    for autocast, compile in ((False, False), (True, False), (True, "auto")):  # noqa: A001
        with seeded(0):
            model = Model.from_spec({"kind": "vae", "x": (12,), "z": (3,)}).float()
        history = fit(model, X, epochs=4, batch_size=24, compile=compile, autocast=autocast)
        ends[autocast, compile] = weights(model), log_likelihood(model, X, particles=10).mean
        assert history.compiled == ("replay" if compile else "no")
    rounded, replayed = ends[True, False], ends[True, "auto"]
    assert all(torch.equal(replayed[0][name], tensor) for name, tensor in rounded[0].items())
    assert not all(torch.equal(ends[False, False][0][n], t) for n, t in rounded[0].items())
    assert rounded[1] == pytest.approx(ends[False, False][1], abs=0.1)
    assert log_likelihood(model, X, particles=10).mean == replayed[1]
