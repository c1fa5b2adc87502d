"""The parts of the bound: they add up to it, and agree with closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import linear_vae, true_posterior
from members import MODELS, ids, make
from torch.distributions import Normal, kl_divergence

from pyrovae import VAE, Pair
from pyrovae.batch import Batch
from pyrovae.evaluate import bound
from pyrovae.evaluate.parts import parts
from pyrovae.models import ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE, Stochastic


def rows_of(model, rows=30):
    """Rows that the model can have generated, and a context where it needs one."""
    context = torch.randn(rows, *model.context) if getattr(model, "context", None) else None
    batch = Batch(torch.rand(rows, *model.event).round(), context)
    batch = batch.to(torch.device("cpu"), torch.float64)
    model.start(batch)
    return batch


def cost(figures):
    return math.fsum(value for name, value in figures.items() if name.startswith("kl."))


def latents_of(figures):
    return [name.removeprefix("kl.") for name in figures if name.startswith("kl.")]


@pytest.mark.parametrize("parameter", MODELS, ids=ids(MODELS))
def test_the_parts_add_up_to_the_bound(parameter):
    model = make(parameter).double()
    batch = rows_of(model)
    state = torch.get_rng_state()
    figures = parts(model, batch, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert not pyro.get_param_store().keys()
    assert figures["bound"] == bound(model, batch, seed=4)
    if model.exact:
        assert list(figures) == ["bound"]
    else:
        assert figures["reconstruction"] - cost(figures) == pytest.approx(
            figures["bound"], rel=1e-12
        )


def test_many_rows_and_missing_entries():
    vae = VAE(x=(3,), z=(2,), missing=True, prior="vamp").double()
    x = torch.rand(9000, 3).double().round()
    x[torch.rand(9000, 3) < 0.3] = torch.nan
    vae.start(Batch(x))
    figures = parts(vae, x)
    assert figures["bound"] == bound(vae, x)
    assert figures["reconstruction"] - cost(figures) == pytest.approx(figures["bound"], rel=1e-12)
    some = parts(vae, x[:1])
    assert list(some) == ["bound", "reconstruction", "kl.z"]  # one row has no spread


def test_against_closed_forms():
    vae, exact = linear_vae(guide_scale=1.4, guide_shift=0.5)
    x = exact.sample((50_000,))
    figures = parts(vae, x)
    with torch.no_grad():
        mean, sd = true_posterior(vae, x)
        q = Normal(mean + 0.5 * sd, 1.4 * sd)
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
        drawn = (q.log_prob(z := q.sample()) - Normal(0.0, 1.0).log_prob(z)).sum(-1)
        noise = ((drawn - kl).std() / math.sqrt(len(x))).item()
        assert figures["kl.z"] == pytest.approx(kl.mean().item(), abs=4 * noise)  # fails 6e-5
        decoded = vae.likelihood(vae.decoder(q.mean))
        residual = (x - decoded.mean).square().sum(-1)
        w = vae.decoder.output.weight
        spread = (w.square() * q.stddev[:1].square()).sum()
        expected = -0.5 * (residual + spread) / 0.49 - 2.5 * math.log(2 * math.pi * 0.49)
        assert figures["reconstruction"] == pytest.approx(expected.mean().item(), abs=0.05)
    assert noise < 0.01


def test_a_dead_unit_is_not_active():
    vae, exact = linear_vae(lengths=(1.5, 0.6, 0.0))
    assert parts(vae, exact.sample((2000,)))["active.z"] == 2


@pytest.mark.parametrize(("share", "active"), [(0.9, 0), (1.1, 1)])
def test_a_unit_is_active_from_a_hundredth_on(share, active):
    vae, exact = linear_vae(lengths=(1.0,))
    x = exact.sample((400,))
    weight, bias = vae.encoder.output.weight.data, vae.encoder.output.bias.data
    mean = (x @ weight.T + bias)[:, 0]
    factor = math.sqrt(0.01 * share / mean.var().item())
    weight[0] *= factor
    bias[0] += 1e3  # far from 0, where squares lose digits
    assert parts(vae, x)["active.z"] == active


def hierarchy():
    return HierarchicalVAE(x=(4,), z=(2,), layers=(Stochastic(z=(3,)),)).double()


def test_each_layer_has_a_kl_and_the_first_its_units():
    model, x = hierarchy(), torch.rand(40, 4).double().round()
    figures = parts(model, x)
    assert list(figures) == ["bound", "reconstruction", "kl.z2", "kl.z1", "active.z2"]
    with torch.no_grad():  # a layer whose guide is its prior
        layer = model.layers[0]
        for network in (layer.network, layer.encoder):
            for parameter in network.parameters():
                parameter.zero_()
    figures = parts(model, x)
    assert figures["kl.z1"] == pytest.approx(0.0, abs=1e-12)
    assert figures["kl.z2"] > 1e-3


def test_a_context_is_taken_along():
    vae = ConditionalVAE(x=(3,), z=(2,), context=(2,)).double()
    batch = Batch(torch.rand(20, 3).round(), torch.randn(20, 2)).to(
        torch.device("cpu"), torch.float64
    )
    assert latents_of(parts(vae, batch)) == ["z"]


def summing(monkeypatch, model, guide):
    """A pair of which the latents that the guide enumerates are summed over."""
    monkeypatch.setattr(Pair, "enumerates", True)
    return Pair(model=model, guide=guide)


ENUMERATE = {"enumerate": "parallel"}
FIRST = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
SECOND = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
CENTRES = torch.tensor([[-2.0, 0.5], [1.0, 1.5], [3.0, 0.0]], dtype=torch.float64)


def two_classes(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Categorical(FIRST))
        b = pyro.sample("b", dist.Categorical(SECOND[a]))
        return pyro.sample("x", dist.Normal(CENTRES[a, b], 1.0), obs=x[:, 0])


def two_classes_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("a", dist.Categorical(x.new_ones(3)), infer=ENUMERATE)
        pyro.sample("b", dist.Categorical(x.new_ones(2)), infer=ENUMERATE)


def test_what_is_summed_over_has_the_exact_posterior_as_guide(monkeypatch):
    x = 2 * torch.randn(40, 1).double()
    figures = parts(summing(monkeypatch, two_classes, two_classes_guide), x)
    log_x = Normal(CENTRES, 1.0).log_prob(x[..., None])
    log_p = FIRST.log()[:, None] + SECOND.log() + log_x
    evidence = log_p.logsumexp((1, 2), keepdim=True)
    r = (log_p - evidence).exp()
    of_a = r.sum(2)
    of_b = r / of_a[..., None]
    expected = {
        "bound": evidence,
        "reconstruction": (r * log_x).sum((1, 2)),
        "kl.a": (of_a * (of_a / FIRST).log()).sum(1),
        "kl.b": (r * (of_b / SECOND).log()).sum((1, 2)),
    }
    assert figures == pytest.approx({k: v.mean().item() for k, v in expected.items()}, rel=1e-10)


def test_a_state_that_cannot_be_takes_no_part(monkeypatch):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Categorical(x.new_tensor([0.5, 0.5, 0.0])))
            return pyro.sample("x", dist.Normal(CENTRES[a, 0], 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Categorical(x.new_ones(3)), infer=ENUMERATE)

    figures = parts(summing(monkeypatch, model, guide), torch.randn(20, 1).double())
    assert figures["reconstruction"] - cost(figures) == pytest.approx(figures["bound"])


@pytest.mark.parametrize(("share", "active"), [(0.9, 0), (1.1, 1)])
def test_the_mean_of_a_latent_that_depends_on_a_class_is_over_classes(monkeypatch, share, active):
    x = torch.randn(50, 1).double()
    height = math.sqrt(0.01 * share / x.sigmoid().var().item())

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.5)))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=x[:, 0]), infer=ENUMERATE)
            pyro.sample("z", dist.Normal(height * y, 1.0))

    assert parts(summing(monkeypatch, model, guide), x)["active.z"] == active


def test_the_classes_of_a_semi_supervised_vae():
    model = SemiSupervisedVAE(x=(4,), z=(2,), classes=3).double()
    figures = parts(model, torch.rand(50, 4).double().round())
    assert latents_of(figures) == ["y", "z"]
    assert 0 <= figures["kl.y"] <= math.log(3)


def test_a_mean_that_is_not_known_is_left_out():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def heavy(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Cauchy(x[:, 0], 1.0))

    def moved(x):
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(x[:, 0], 1.0)
            transforms = [torch.distributions.transforms.TanhTransform()]
            pyro.sample("z", dist.TransformedDistribution(base, transforms))

    for guide in (heavy, moved):
        figures = parts(Pair(model=model, guide=guide), torch.randn(30, 1).double())
        assert list(figures) == ["bound", "reconstruction", "kl.z"]


def test_a_row_that_cannot_be_has_a_bound_of_minus_infinity():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            return pyro.sample("x", dist.Uniform(z - 1e3, 1e3), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    figures = parts(Pair(model=model, guide=guide), torch.tensor([[0.0], [2e3]]).double())
    assert figures["bound"] == figures["reconstruction"] == -math.inf
    assert math.isfinite(figures["kl.z"])
