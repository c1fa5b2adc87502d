"""Exact answers in float64: the linear-Gaussian VAE, closed-form gradients, closed-form KL."""

import math

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import SCALE, linear_vae
from torch import distributions as torch_dist

from pyrovae import Batch, log_likelihood, log_weights
from pyrovae.evaluate.weights import reduce
from pyrovae.families import Normal
from pyrovae.inference import SVI
from pyrovae.objectives import ELBO, MeanFieldELBO
from pyrovae.optim import Optim
from pyrovae.optimizers import SGD

D, J = 5, 2


@pytest.mark.parametrize("particles", [1, 10, 100])
def test_with_the_exact_guide_every_bound_is_log_p(particles):
    vae, exact = linear_vae()
    x = exact.sample((50,))
    result = log_likelihood(vae, x, particles=particles)
    assert np.allclose(result.value, exact.log_prob(x), atol=1e-6, rtol=0)
    assert np.allclose(result.elbo, exact.log_prob(x), atol=1e-6, rtol=0)
    assert np.allclose(result.mcse, 0, atol=1e-6) or particles == 1


def test_an_exact_guide_has_khat_minus_infinity_and_full_effective_size():
    vae, exact = linear_vae()
    result = log_likelihood(vae, exact.sample((20,)), particles=200)
    assert (result.khat == -np.inf).all()
    assert np.allclose(result.ess, 200)
    assert result.heavy == 0


def test_a_wrong_guide_still_gives_log_p_within_its_error():
    vae, exact = linear_vae(guide_scale=1.3, guide_shift=0.3)
    x = exact.sample((200,))
    result = log_likelihood(vae, x, particles=2000)
    z = (result.value - exact.log_prob(x).numpy()) / result.mcse
    assert (np.abs(z) < 3).mean() >= 0.98
    assert 0.90 <= (np.abs(z) < 1.96).mean() <= 0.99
    assert (result.khat < 0.7).all()
    assert result.elbo.mean() < exact.log_prob(x).mean().item() - 0.05


@pytest.mark.parametrize(("shrink", "expected"), [(0.8, 0.35), (0.5, 0.69)])
def test_khat_says_how_much_too_narrow_a_guide_is(shrink, expected):
    log_w = torch.randn(5000, 200, dtype=torch.float64) * shrink
    normal = torch_dist.Normal(0.0, 1.0), torch_dist.Normal(0.0, shrink)
    khat = reduce((normal[0].log_prob(log_w) - normal[1].log_prob(log_w)).numpy())["khat"]
    assert np.median(khat) == pytest.approx(expected, abs=0.06)


def test_more_particles_raise_the_bound_towards_log_p():
    vae, exact = linear_vae(guide_scale=1.5, guide_shift=0.5)
    x = exact.sample((400,))
    bounds = [log_likelihood(vae, x, particles=k).mean for k in (1, 5, 50)]
    assert bounds[0] < bounds[1] < bounds[2] < exact.log_prob(x).mean().item() + 0.02


def test_log_p_is_the_elbo_plus_the_kl_to_the_posterior():
    vae, exact = linear_vae(guide_scale=1.4, guide_shift=0.4)
    posterior, _ = linear_vae()
    posterior.load_state_dict(vae.state_dict())
    w, b = vae.decoder.output.weight, vae.decoder.output.bias
    variance = 1 / (1 + w.square().sum(0) / SCALE**2)
    x = torch_dist.MultivariateNormal(b, w @ w.T + SCALE**2 * torch.eye(D)).sample((30,))
    truth = torch_dist.Normal((x - b) @ w / SCALE**2 * variance, variance.sqrt())
    q = vae.q(x).base_dist
    kl = torch_dist.kl_divergence(torch_dist.Normal(q.loc, q.scale), truth).sum(-1)
    log_p = torch_dist.MultivariateNormal(b, w @ w.T + SCALE**2 * torch.eye(D)).log_prob(x)
    prior_kl = torch_dist.kl_divergence(
        torch_dist.Normal(q.loc, q.scale), torch_dist.Normal(torch.zeros(J), torch.ones(J))
    ).sum(-1)
    residual = (x - b - q.loc @ w.T).square().sum(-1) + (q.scale.square() @ w.square().sum(0))
    reconstruction = (
        -0.5 * residual / SCALE**2 - D / 2 * math.log(2 * math.pi) - D * math.log(SCALE)
    )
    assert torch.allclose(log_p, reconstruction - prior_kl + kl, atol=1e-10)
    estimate = log_weights(vae, x, 20_000).mean(0)
    assert torch.allclose(estimate, reconstruction - prior_kl, atol=0.05)
    assert exact.event_shape == (D,)


def test_gradients_through_trace_elbo_are_the_closed_form_ones():
    vae, exact = linear_vae(guide_scale=1.3, guide_shift=0.3)
    x, particles = exact.sample((7,)), 4
    with vae.scope():
        torch.manual_seed(1)
        ELBO(particles=particles).build().differentiable_loss(
            vae.model, vae.guide, Batch(x)
        ).backward()
    torch.manual_seed(1)
    q = vae.q(x).base_dist
    eps = torch.randn(particles, 7, J, dtype=torch.float64)
    z = q.loc + q.scale * eps
    w, b = vae.decoder.output.weight, vae.decoder.output.bias
    pull = (x - b - z @ w.T) / SCALE**2  # d log p(x | z) / d mu = Sigma^-1 r
    d_z = pull @ w - z  # d [log p(x | z) + log p(z)] / dz
    d_scale = d_z * eps + 1 / q.scale  # - log q contributes 1 / sigma
    raw = (vae.encoder.output(x))[:, J:]
    d_raw = d_scale.mean(0) * raw.sigmoid()
    d_h = torch.cat([d_z.mean(0), d_raw], -1)
    expected = {
        "decoder.output.weight": torch.einsum("lbd,lbj->dj", pull, z) / particles,
        "decoder.output.bias": pull.sum((0, 1)) / particles,
        "encoder.output.weight": d_h.T @ x,
        "encoder.output.bias": d_h.sum(0),
    }
    for name, parameter in vae.named_parameters():
        assert torch.allclose(-parameter.grad, expected[name], rtol=1e-10, atol=1e-10), name


def test_gradients_of_a_normal_in_mean_and_covariance_are_the_closed_form_ones():
    family = Normal(floor=1e-9)
    family.setup((3,))
    h = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    x = torch.randn(3, dtype=torch.float64)
    family.double()(h).log_prob(x).backward()
    mu, sigma = h[0], family(h).base_dist.scale
    r = x - mu
    d_sigma = -0.5 * (1 / sigma**2 - r**2 / sigma**4) * 2 * sigma  # through Sigma = sigma^2
    assert torch.allclose(h.grad[0], r / sigma**2)
    assert torch.allclose(h.grad[1], d_sigma * h[1].sigmoid())
    covariance = torch.tensor([[1.3, 0.4], [0.4, 0.8]], dtype=torch.float64).requires_grad_()
    mean = torch.zeros(2, dtype=torch.float64).requires_grad_()
    r = torch.tensor([0.5, -1.0], dtype=torch.float64)
    torch_dist.MultivariateNormal(mean, covariance).log_prob(r).backward()
    inverse = torch.linalg.inv(covariance)
    symmetric = 0.5 * (covariance.grad + covariance.grad.T)
    assert torch.allclose(mean.grad, inverse @ r)
    assert torch.allclose(symmetric, -0.5 * (inverse - torch.outer(inverse @ r, inverse @ r)))


def test_mean_field_elbo_and_the_closed_form_kl_agree():
    vae, exact = linear_vae(guide_scale=1.2, guide_shift=0.2)
    x = exact.sample((9,))
    q = vae.q(x).base_dist
    kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum()
    optim = Optim(SGD(), 0.0)
    torch.manual_seed(2)
    with vae.scope():
        loss = SVI(vae.model, vae.guide, optim, MeanFieldELBO().build()).step(Batch(x)) * 9
    torch.manual_seed(2)
    z = q.loc + q.scale * torch.randn(9, J, dtype=torch.float64)
    assert torch.allclose(loss, kl - vae.p(z, Batch(x)).log_prob(x).sum(), atol=1e-10)


def test_pyros_own_svi_takes_the_same_step():
    ours, exact = linear_vae(guide_scale=1.3)
    stock, _ = linear_vae()
    stock.load_state_dict(ours.state_dict())
    batch = Batch(exact.sample((8,)))
    for _ in range(3):
        torch.manual_seed(5)
        with ours.scope():
            optim = Optim(SGD(), 0.1)
            a = SVI(ours.model, ours.guide, optim, ELBO().build()).step(batch)
        torch.manual_seed(5)
        with stock.scope():
            optim = pyro.optim.SGD({"lr": 0.1 / 8})
            elbo = pyro.infer.Trace_ELBO()
            b = pyro.infer.SVI(stock.model, stock.guide, optim, elbo).step(batch.x)
        assert a.item() == pytest.approx(b / 8, rel=1e-12)
        for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)
