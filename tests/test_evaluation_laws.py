"""Evaluation cannot train: laws over all that can be asked of a model."""

import pyro
import pytest
import torch
from pyro import poutine

import pyrovae
from pyrovae import VAE, HierarchicalVAE, Pair, Stochastic, Transformed
from pyrovae.arviz import to_arviz
from pyrovae.evaluate import freed
from pyrovae.evaluate.estimators import AIS, grid
from pyrovae.evaluate.samplers import HMC, NUTS

X = torch.randn(25, 3)
AIS5, HMC5 = AIS(temperatures=5), HMC(warmup=5)
ASKED = {
    "iwae": lambda model: pyrovae.log_likelihood(model, X, particles=30).value,
    "defensive": lambda model: (
        pyrovae.log_likelihood(
            model, X, particles=30, method={"kind": "iwae", "defensive": 0.1, "tolerance": 0.5}
        ).value
    ),
    "grid": lambda model: (
        pyrovae.log_likelihood(model, X, method={"kind": "grid", "points": 20}).value
    ),
    "ais": lambda model: pyrovae.log_likelihood(model, X, particles=4, method=AIS5).value,
    "sandwich": lambda model: pyrovae.sandwich(model, 5, particles=4, method=AIS5).upper,
    "hmc": lambda model: pyrovae.posterior(model, X, 3, method=HMC5).rhat,
    "nuts": lambda model: pyrovae.posterior(model, X[:1], 3, method=NUTS(warmup=3), chains=1).mean,
    "guide": lambda model: pyrovae.posterior(model, X, 3, method="guide").mean,
    "resampled": lambda model: pyrovae.posterior(model, X, 3, method="resampled").ess,
    "grade_guide": lambda model: pyrovae.grade_guide(
        model, X[:3], particles=50, draws=5, sampler=HMC5
    ).summary(),
    "latent_use": lambda model: pyrovae.latent_use(model, X).summary(),
    "calibrate": lambda model: pyrovae.calibrate(model, 25).summary(),
    "predictive_check": lambda model: pyrovae.predictive_check(model, X).summary(),
    "grade_samples": lambda model: pyrovae.grade_samples(model, X, X, rows=20).summary(),
    "to_arviz": lambda model: to_arviz(model, X[:3], draws=5, particles=20)["pointwise"]["log_p"],
    "latents": lambda model: pyrovae.latents(model, X),
    "reconstruct": lambda model: pyrovae.reconstruct(model, X),
}


def model(x):
    net = NETWORKS[0]
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", pyro.distributions.Normal(x.new_zeros(2), 1.0).to_event(1))
        scale = pyro.param("scale", torch.ones(3))
        pyro.sample("x", pyro.distributions.Normal(net(z), scale.exp()).to_event(1), obs=x)


def guide(x):
    net = NETWORKS[1]
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", pyro.distributions.Normal(net(x), 0.8).to_event(1))


NETWORKS = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])


def vae():
    small = {"kind": "mlp", "hidden": (8,)}
    return VAE(x=(3,), z=(2,), likelihood="shared-normal", encoder=small, decoder=small)


MODELS = {
    "vae": vae,
    "behind-a-transform": lambda: Transformed(base=vae(), transform="standardize"),
    "hand-written": lambda: Pair(model=model, guide=guide, x=(3,)),
    "layers": lambda: HierarchicalVAE(
        x=(3,), z=(1,), layers=(Stochastic(z=(1,)),), likelihood="shared-normal"
    ),
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(freed, "STEPS", 10)
    monkeypatch.setattr(freed, "ROUNDS", 1)
    monkeypatch.setattr(grid, "FITS", 3)


@pytest.fixture(params=MODELS)
def started(request):
    made = MODELS[request.param]()
    made.start(pyrovae.Batch(X))
    return made


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_leaves_no_trace_and_reads_no_training_knob(name, started):
    tensors = {key: tensor.clone() for key, tensor in started.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in started.modules()]
    gradients = [torch.ones_like(p) for p in started.parameters()]
    for parameter, gradient in zip(started.parameters(), gradients, strict=True):
        parameter.grad = gradient
    random = torch.random.get_rng_state()
    plain = str(ASKED[name](started.train()))
    assert started.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert len(pyro.get_param_store()) == 0
    for key, tensor in started.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key
    for parameter, gradient in zip(started.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert parameter.requires_grad
    assert [len(module._forward_hooks) for module in started.modules()] == hooks
    with poutine.scale(scale=0.1):
        assert str(ASKED[name](started.eval())) == plain


def test_every_public_question_is_asked():
    from pyrovae.evaluate import __all__ as names

    others = {"bound", "compare", "impute", "log_weights", "mixture_bound", "select"}
    tests = {"c2st", "mmd", "memorisation", "log_likelihood", "posterior"}
    asked = {name for name in names if name[0].islower()}
    assert asked - others - tests <= ASKED.keys()
