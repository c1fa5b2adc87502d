"""Exact answers for models that have one: sums over states, mixtures, integrals on a grid."""

import math

import numpy as np
import pytest
import torch
from members import PRIORS, everywhere, ids, make
from pyro import poutine
from torch import distributions as torch_dist
from torch.nn import Linear

from pyrovae import VAE, Batch, ConditionalVAE, Error, fit, log_likelihood, log_weights
from pyrovae.distributions import all_states
from pyrovae.objectives import ELBO
from pyrovae.priors import GaussianMixture, Guide
from pyrovae.refinements import SemiAmortized

AFFINE = {"kind": "mlp", "hidden": ()}
SCALE = 0.8


def within_three_errors(result, exact):
    """Fails by chance for 0.3 % of seeds."""
    error = abs(result.mean - exact.mean().item()) / result.mean_mcse
    assert result.mean_mcse < 0.02
    assert error < 3, f"{error:.1f} standard errors"


class TestLinear:
    @pytest.mark.parametrize("likelihood", ["fixed-normal", "shared-normal"])
    def test_a_mixture_prior_through_a_linear_decoder_is_a_mixture(self, likelihood):
        vae = VAE(
            x=(4,),
            z=(2,),
            prior=GaussianMixture(components=3),
            likelihood=likelihood,
            encoder=AFFINE,
            decoder=AFFINE,
        ).double()
        with torch.no_grad():
            for tensor in vae.prior.parameters():
                tensor.copy_(0.5 * torch.randn_like(tensor))
            w, b = vae.decoder.output.weight, vae.decoder.output.bias
            inverse = torch.linalg.pinv(w)
            vae.encoder.output.weight.copy_(torch.cat([0.5 * inverse, torch.zeros(2, 4)]))
            vae.encoder.output.bias.copy_(torch.cat([-0.5 * inverse @ b, torch.ones(2)]))
            p = vae.prior(Guide(vae.q))
            noise = vae.p(torch.zeros(1, 2).double(), Batch(b[None])).base_dist.scale.square()
            scale = vae.prior.log_scale.exp()
            covariance = torch.einsum("dj,kj,ej->kde", w, scale**2, w) + noise[0].diag_embed()
            exact = torch_dist.MixtureSameFamily(
                torch_dist.Categorical(logits=vae.prior.logits),
                torch_dist.MultivariateNormal(vae.prior.loc @ w.T + b, covariance),
            )
            x = exact.sample((40,))
        assert p.event_shape == (2,)
        within_three_errors(log_likelihood(vae, x, particles=2000), exact.log_prob(x))

    @pytest.mark.parametrize(
        ("posterior", "tight"), [("multivariate-normal", True), ("normal", False)]
    )
    def test_only_a_guide_with_the_covariance_closes_the_gap(self, posterior, tight):
        w = torch.tensor([[1.0, 0.8], [0.0, 1.0], [1.0, -0.5]]).double()
        covariance = w @ w.T + 0.25 * torch.eye(3).double()
        exact = torch_dist.MultivariateNormal(torch.zeros(3).double(), covariance)
        x = exact.sample((300,))
        vae = VAE(
            x=(3,),
            z=(2,),
            likelihood={"kind": "fixed-normal", "scale": 0.5},
            posterior=posterior,
            encoder=AFFINE,
            decoder=AFFINE,
        ).double()
        with torch.no_grad():
            vae.decoder.output.weight.copy_(w)
            vae.decoder.output.bias.zero_()
        optimizer = torch.optim.Adam(vae.encoder.parameters(), 0.05)
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 ** (step // 100)
            optimizer.zero_grad()
            (-log_weights(vae, x).mean()).backward()
            optimizer.step()
        gap = exact.log_prob(x).mean().item() - log_weights(vae, x, 500).mean().item()
        assert (gap < 0.01) == tight, gap
        assert gap > -0.005


def discrete(z):
    vae = VAE(x=(5,), z=z, prior="categorical", posterior="one-hot").double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.randn(z))
        for tensor in (*vae.decoder.parameters(), *vae.encoder.parameters()):
            tensor.mul_(3)
    return vae, torch.randint(2, (7, 5)).double()


@pytest.mark.parametrize("z", [(4,), (2, 3)])
class TestDiscrete:
    def brute_force(self, vae, x):
        """log p(x, z) and log q(z | x) of every state and row, by the definitions alone."""
        states = all_states(vae.z).double()
        prior = (states * vae.prior.logits.log_softmax(-1)).flatten(1).sum(-1)
        h = vae.decoder(states)
        log_x = -torch.nn.functional.softplus(-h) @ x.T - torch.nn.functional.softplus(h) @ (
            1 - x.T
        )
        log_q = torch.einsum("s...,n...->sn", states, vae.encoder(x).log_softmax(-1))
        return prior[:, None] + log_x, log_q

    def test_log_p_is_the_sum_over_all_states(self, z):
        vae, x = discrete(z)
        result = log_likelihood(vae, x)
        exact = self.brute_force(vae, x)[0].logsumexp(0).detach().numpy()
        assert result.exact
        assert np.allclose(result.value, exact, rtol=0, atol=1e-9)

    def test_the_bound_and_its_gradient_are_the_sums_over_all_states(self, z):
        vae, x = discrete(z)
        with vae.scope():
            loss = ELBO().build(vae.enumerates).differentiable_loss(vae.model, vae.guide, Batch(x))
        joint, log_q = self.brute_force(vae, x)
        exact = -(log_q.exp() * (joint - log_q)).sum()
        assert loss.item() == pytest.approx(exact.item(), abs=1e-9)
        parameters = list(vae.parameters())
        ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, exact))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
            assert b.abs().sum() > 0

    def test_particles_add_nothing_to_a_sum(self, z):
        vae, x = discrete(z)
        losses = []
        for particles in (1, 3):
            elbo = ELBO(particles=particles).build(vae.enumerates)
            with vae.scope():
                losses.append(elbo.differentiable_loss(vae.model, vae.guide, Batch(x)).item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def planar(prior, posterior="normal"):
    """A nonlinear VAE with z on the plane whose decoder grows in every direction, and rows."""
    decoder = {"kind": "mlp", "hidden": (5,)}
    parts = {"x": (3,), "z": (2,), "prior": prior, "posterior": posterior}
    parts |= {"likelihood": {"kind": "fixed-normal", "scale": SCALE}}
    parts |= {"encoder": AFFINE, "decoder": decoder}
    given = prior.kind == "conditional"
    vae = (ConditionalVAE(context=(1,), **parts) if given else VAE(**parts)).double()
    inner = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0]]
    outer = [[1.5, -1.0, 0.0, 0.0, 0.3], [0.0, 0.0, 1.2, -1.6, -0.3], [0.5, 0.2, -0.4, 0.3, 0.8]]
    with torch.no_grad():
        first = next(layer for layer in vae.decoder.layers.modules() if isinstance(layer, Linear))
        first.weight[:, :2] = torch.tensor(inner)
        vae.decoder.output.weight.copy_(torch.tensor(outer))
        mean = slice(1, 3) if posterior == "power-spherical" else slice(0, 2)
        vae.encoder.output.weight.zero_()[mean, :2] = torch.eye(2) / 1.8
        vae.encoder.output.bias.fill_(0.5)[mean] = 0
    context = torch.randn(4, 1).double() if given else None
    z = torch.randn(4, 2).double()
    with torch.no_grad():
        x = vae.p(z, Batch(z.new_zeros(4, 3), context)).sample()
    return vae, Batch(x, context)


def integrated(vae, batch):
    """log p(x) of each row by summing over a grid of z."""
    with torch.no_grad():
        z, weight = everywhere(vae.prior)
        log_p = vae.prior(Guide(vae.q), batch.context).log_prob(z[:, None])
        log_x = vae.p(z[:, None].expand(-1, len(batch), -1), batch).log_prob(batch.x)
        return (log_p + log_x + weight.log()[:, None]).logsumexp(0)


ON_THE_PLANE = [
    parameter for parameter in PRIORS if parameter[1].kind not in ("categorical", "uniform-sphere")
]


@pytest.mark.parametrize("parameter", ON_THE_PLANE, ids=ids(ON_THE_PLANE))
def test_log_likelihood_is_the_integral_over_the_plane(parameter):
    vae, batch = planar(make(parameter))
    within_three_errors(log_likelihood(vae, batch, particles=10_000), integrated(vae, batch))


def test_log_likelihood_is_the_integral_over_the_circle():
    prior = make(next(parameter for parameter in PRIORS if parameter[0] == "uniform-sphere-0"))
    vae, batch = planar(prior, posterior="power-spherical")
    within_three_errors(log_likelihood(vae, batch, particles=10_000), integrated(vae, batch))


class TestRefined:
    def pair(self, prior="standard-normal", posterior="normal", **settings):
        """The same model without and with a refinement."""
        parts = {"prior": prior, "likelihood": "fixed-normal", "posterior": posterior}
        plain, refined = (
            VAE(x=(3,), z=(2,), **parts, refine=refine).double()
            for refine in (None, SemiAmortized(**settings))
        )
        refined.load_state_dict(plain.state_dict())
        return plain, refined, 2 * torch.randn(60, 3).double()

    def test_raises_the_bound_of_a_row_on_average(self):
        plain, refined, x = self.pair(steps=20)
        gain = log_weights(refined, x, 200).mean(0) - log_weights(plain, x, 200).mean(0)
        assert gain.mean() > 4 * gain.std() / 60**0.5
        assert gain.mean() > 0.05

    def test_evaluation_leaves_weights_and_gradients(self):
        _, refined, x = self.pair()
        before = {name: tensor.clone() for name, tensor in refined.state_dict().items()}
        log_likelihood(refined, x, particles=10)
        for name, tensor in refined.state_dict().items():
            assert (tensor == before[name]).all()
        assert all(parameter.grad is None for parameter in refined.parameters())

    def test_the_likelihood_is_that_of_the_model_without_it(self):
        plain, refined, x = self.pair(steps=10)
        a, b = (log_likelihood(model, x, particles=3000) for model in (plain, refined))
        error = math.hypot(a.mean_mcse, b.mean_mcse)
        assert abs(a.mean - b.mean) < 3 * error  # fails by chance for 0.3 % of seeds
        assert b.elbo.mean() > a.elbo.mean()
        assert b.mean_mcse < a.mean_mcse

    def test_trains_through_the_steps(self):
        _, refined, x = self.pair(steps=2)
        history = fit(refined, x, epochs=20, batch_size=30, learning_rate=0.01)
        assert history.epochs[-1].loss < history.epochs[0].loss

    @pytest.mark.parametrize("posterior", ["gamma", "beta", "mixture-of-normals"])
    def test_does_not_train_through_a_gradient_that_has_none(self, posterior):
        _, refined, x = self.pair(prior="vamp", posterior=posterior)
        with pytest.raises(Error, match=r"^refine: the gradient of draws of " + posterior):
            fit(refined, x, epochs=1)
        assert math.isfinite(log_likelihood(refined, x, particles=5).mean)

    def test_a_vamp_prior_is_made_of_the_unrefined_guide(self):
        _, refined, x = self.pair(prior={"kind": "vamp", "components": 6})
        with refined.scope():
            guide = poutine.trace(refined.guide).get_trace(Batch(x))
            joint = poutine.trace(poutine.replay(refined.model, trace=guide)).get_trace(Batch(x))
        z = joint.nodes["z"]["value"]
        posteriors = refined.posterior(refined.encoder(refined.prior.inputs))
        expected = posteriors.log_prob(z[:, None]).logsumexp(-1) - math.log(6)
        assert torch.allclose(joint.nodes["z"]["fn"].log_prob(z), expected)
        drawn = guide.nodes["z"]["fn"]
        assert not torch.allclose(drawn.log_prob(z), refined.q(x).log_prob(z))
