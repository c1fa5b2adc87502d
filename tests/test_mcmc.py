"""Draws of p(z | x): of the right mean and spread, from chains that say when they disagree."""

from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import two_modes
from linear_gaussian import linear_vae, true_posterior

from pyrovae import VAE, HierarchicalVAE, Mixture, Pair, SemiSupervisedVAE, posterior
from pyrovae.evaluate.samplers import HMC, NUTS, Guide, Pace, Resampled, Sampler, Spread
from pyrovae.models import Stochastic

LENGTHS = (1.5, 1.2, 1.0, 0.8, 0.6)
SAMPLERS = {"hmc": HMC(warmup=200, leapfrogs=3), "resampled": Resampled(particles=20_000)}


@cache
def drawn(sampler):
    """A linear VAE, rows, and draws of their latents."""
    vae, exact = linear_vae(1.3, 0.3, 20, LENGTHS)
    x = exact.sample((40,))
    return vae, x, posterior(vae, x, 400, method=SAMPLERS[sampler])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_have_the_mean_and_spread_of_the_posterior(sampler):
    vae, x, found = drawn(sampler)
    mean, sd = true_posterior(vae, x)
    assert found.ess.min() >= 600
    assert ((found.mean["z"] - mean) / sd).abs().max() < 0.15
    assert (found.sd["z"] / sd - 1).abs().max() < 0.15


def test_chains_on_a_normal_posterior_mix():
    _, _, found = drawn("hmc")
    assert (found.rhat <= 1.01).mean() > 0.9
    assert (found.accepted > 0.7).all()
    assert found.z["z"].shape == (4, 400, 40, 5)
    assert "4 chains of 400 draws by hmc for 40 rows" in str(found)


def test_the_guide_is_what_it_is():
    vae, exact = linear_vae(1.3, 0.3, 20, LENGTHS)
    x = exact.sample((30,))
    mean, sd = true_posterior(vae, x)
    found = posterior(vae, x, 1000, method="guide")
    shift, stretch = (found.mean["z"] - mean) / sd, found.sd["z"] / sd
    assert shift.mean().item() == pytest.approx(0.3, abs=0.03)
    assert stretch.mean().item() == pytest.approx(1.3, abs=0.03)
    assert np.isnan(found.accepted).all()


def test_chains_from_the_prior_show_a_mode_that_the_guide_leaves_out():
    pair, x = two_modes.pair(), torch.linspace(2, 3, 20)[:, None].double()
    found = posterior(pair, x, 200, chains=8)
    assert (found.z["z"][:4] > 0).float().mean() > 0.9
    assert (found.z["z"][4:] < 0).any()
    assert (found.rhat > 1.1).all()
    assert len(found.unmixed) == 20
    assert "R-hat above 1.01 in 100.0% of rows" in str(found)


def test_the_no_u_turn_sampler_of_pyro_agrees():
    """A posterior that is not normal; four standard errors of 2 means and spreads."""
    pair, x = Pair(model=curved, guide=curved_guide), torch.tensor([[1.2]]).double()
    ours = posterior(pair, x, 500)
    pyros = posterior(pair, x, 150, method=NUTS(warmup=60), chains=1)
    assert pyros.method == "nuts"
    error = np.sqrt(1 / ours.ess + 1 / pyros.ess)
    difference = (ours.mean["z"] - pyros.mean["z"]) / pyros.sd["z"]
    assert (difference.abs().amax(-1).numpy() < 4 * error).all()
    assert ((ours.sd["z"] / pyros.sd["z"]).log().abs().amax(-1).numpy() < 4 * error).all()


def curved(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
        rate = pyro.sample("rate", dist.Gamma(x.new_full((1,), 3.0), 2.0).to_event(1))
        loc = rate * z.sum(-1, keepdim=True).tanh()
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


def curved_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("rate", dist.LogNormal(x.new_zeros(1), 1.0).to_event(1))


def test_bounded_latents_stay_inside_and_have_the_right_mean():
    """z ~ Gamma(3, 2) with x ~ Poisson(z): the posterior is Gamma(3 + x, 3)."""
    pair, x = Pair(model=rates, guide=rates_guide), torch.arange(6.0).double()[:, None]
    found = posterior(pair, x, 400, method=HMC(warmup=200, leapfrogs=3))
    mean, sd = (3 + x) / 3, (3 + x).sqrt() / 3
    assert (found.z["z"] > 0).all()
    error = 4 / np.sqrt(found.ess)[:, None]
    assert (((found.mean["z"] - mean) / sd).abs().numpy() < error).all()


def rates(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Gamma(x.new_full((1,), 3.0), 2.0).to_event(1))
        pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)


def rates_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.LogNormal(x.log1p(), 1.0).to_event(1))


def test_layers_are_moved_together():
    model = HierarchicalVAE(x=(3,), z=(2,), layers=(Stochastic(z=(3,)),))
    found = posterior(model, torch.zeros(4, 3), 20, method=HMC(warmup=20))
    assert {name: tuple(z.shape) for name, z in found.z.items()} == {
        "z2": (4, 20, 4, 2),
        "z1": (4, 20, 4, 3),
    }


@pytest.mark.parametrize("method", ["guide", "resampled"])
def test_a_discrete_latent_is_drawn_where_it_need_not_be_moved(method):
    model = SemiSupervisedVAE(x=(3,), z=(2,), classes=3)
    found = posterior(model, torch.zeros(4, 3), 20, method=method)
    assert found.z["y"].shape == (4, 20, 4, 3)
    assert (found.z["y"].sum(-1) == 1).all()


@pytest.mark.parametrize("method", ["hmc", "nuts"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SemiSupervisedVAE(x=(3,), z=(2,), classes=3), "the latent 'y' is discrete, and Hamilton"),
        (Mixture(x=(3,), components=2), "discrete"),
        (
            VAE(x=(3,), z=(3,), prior="uniform-sphere", posterior="power-spherical"),
            "on a space without coordinates",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(model, message, method):
    with pytest.raises(ValueError, match=message):
        posterior(model, torch.zeros(2, 3), 5, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws: should be a whole number from 1"),
        ({"chains": 0}, "chains: should be greater than 0"),
        ({"method": "mala"}, "method: unknown sampler 'mala'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        posterior(VAE(x=(3,), z=(2,)), torch.zeros(2, 3), **options)


@pytest.mark.parametrize("sampler", [HMC(warmup=5), NUTS(warmup=5), Guide(), Resampled()])
def test_every_sampler_leaves_the_model_as_it_was(sampler):
    vae = VAE(x=(3,), z=(2,))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    found = posterior(vae, torch.zeros(1, 3), 3, method=sampler, chains=1)
    assert found.z["z"].shape == (1, 3, 1, 2)
    assert np.isnan(found.rhat).all()
    assert vae.training
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert len(pyro.get_param_store()) == 0
    again = posterior(vae, torch.zeros(1, 3), 3, method=sampler, chains=1)
    assert torch.equal(found.z["z"], again.z["z"])


def test_every_sampler_is_tried():
    assert set(Sampler.members) == {"guide", "hmc", "nuts", "resampled"}


def test_the_spread_is_that_within_chains():
    u = torch.randn(2000, 3, 4, 2).double() * 0.5 + torch.tensor([-9.0, 0.0, 9.0])[:, None, None]
    spread = Spread(u[0])
    for some in u:
        spread.add(some)
    assert torch.allclose(spread.sd, torch.full((4, 2), 0.5).double(), rtol=0.05)


def test_the_pace_settles_where_the_target_is_met():
    pace = Pace(torch.full((3,), 0.01), 0.9)
    wanted = torch.tensor([0.1, 0.5, 2.0])
    for _ in range(500):
        pace.learn((1 - 0.2 * pace.step / wanted).clamp(0, 1))
    assert torch.allclose(pace.settled, wanted.clamp(max=0.9), rtol=0.1)
