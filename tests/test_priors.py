"""Priors one by one: densities, draws, exemplars, and another prior for a trained model."""

import math

import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from scipy import stats

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Error,
    FitError,
    Transformed,
    fit,
    log_likelihood,
    open_run,
    refit_prior,
    save,
)
from pyrovae.distributions import HorseshoeLike
from pyrovae.evaluate.weights import bound
from pyrovae.families import Columns
from pyrovae.models import HierarchicalVAE, Mixture, Stochastic
from pyrovae.priors import (
    Categorical,
    Conditional,
    Exemplar,
    GaussianMixture,
    Guide,
    Laplace,
    Prior,
    StudentT,
    UniformSphere,
    Vamp,
    exemplars,
)

SEEN, Z = (3,), (2,)


def q(seen):
    """A guide whose means and scales depend on the row."""
    loc, scale = seen[..., :2], 0.3 + seen[..., 2:].square().expand(*seen.shape[:-1], 2)
    return dist.Normal(loc, scale).to_event(1)


def assembled(prior, z=Z, seen=SEEN):
    prior.setup(z, seen)
    return prior.double()


def two_groups_vae(prior="standard-normal", **fields):
    """A small VAE of rows whose latents fall into two groups."""
    affine = {"kind": "mlp", "hidden": ()}
    return VAE(
        x=(2,),
        z=(1,),
        prior=prior,
        likelihood={"kind": "fixed-normal", "scale": 0.3},
        posterior={"kind": "normal", "floor": 1e-2},
        encoder=affine,
        decoder=affine,
        **fields,
    ).double()


def two_groups(rows=200):
    x = 0.3 * torch.randn(rows, 2).double()
    x[: rows // 2] += 2
    x[rows // 2 :] -= 2
    return x


class TestHorseshoeLike:
    def test_integrates_to_one_but_for_the_rounded_pole(self):
        t = torch.linspace(-40, 60, 20_001, dtype=torch.float64)
        z = t.exp()
        p = HorseshoeLike(torch.tensor(0.7).double())
        mass = 2 * (p.log_prob(z).exp() * z).sum() * (t[1] - t[0])
        assert mass.item() == pytest.approx(1 - 1e-7, abs=1e-9)

    def test_is_the_closed_form_away_from_the_pole(self):
        z = torch.tensor([1e-3, -0.5, 2.0, 9e3, -2e4, 1e7]).double()
        expected = ((0.7 / z) ** 2).log1p().log() - math.log(2 * math.pi * 0.7)
        log_p = HorseshoeLike(torch.tensor(0.7).double()).log_prob(z)
        assert torch.allclose(log_p, expected, rtol=1e-7, atol=0)

    def test_draws_have_its_distribution_function(self):
        draws = HorseshoeLike(torch.tensor(2.0).double()).sample((20_000,)).abs()
        t = torch.linspace(-25, 25, 5001, dtype=torch.float64)
        density = 2 * HorseshoeLike(torch.tensor(2.0).double()).log_prob(t.exp()).exp() * t.exp()
        cdf = torch.cumsum(density, 0) * (t[1] - t[0])
        place = torch.searchsorted(t, draws.log()).clamp(max=5000)
        uniform = cdf[place].numpy()
        assert stats.kstest(uniform, "uniform").pvalue > 1e-4  # once in 10^4 by chance

    def test_its_draws_have_a_gradient_in_the_scale(self):
        scale = torch.tensor(2.0).requires_grad_()
        draw = HorseshoeLike(scale).rsample((5,))
        draw.sum().backward()
        assert scale.grad == pytest.approx((draw.sum() / 2).item(), rel=1e-5)

    @pytest.mark.parametrize("z", [0.0, -0.0, 1e-38, 1e-9, 1e19, 1e25, -3e38])
    def test_has_a_finite_density_and_gradient_anywhere_in_float32(self, z):
        value = torch.tensor(z).requires_grad_()
        scale = torch.tensor(1.0).requires_grad_()
        log_p = HorseshoeLike(scale).log_prob(value)
        log_p.backward()
        assert log_p.isfinite()
        assert value.grad.isfinite()
        assert scale.grad.isfinite()


def test_laplace_and_student_t_have_the_textbook_densities():
    z = torch.randn(6, 2).double()
    laplace = assembled(Laplace(scale=0.7))(q, None)
    assert torch.allclose(
        laplace.log_prob(z), torch.tensor(stats.laplace.logpdf(z, scale=0.7)).sum(-1)
    )
    for learned in (False, True):
        student = assembled(StudentT(degrees_of_freedom=3.5, learned=learned))(q, None)
        assert torch.allclose(
            student.log_prob(z), torch.tensor(stats.t.logpdf(z, 3.5)).sum(-1), rtol=1e-6
        )


class TestUniformSphere:
    def test_integrates_to_one_over_the_sphere_in_three_dimensions(self):
        p = assembled(UniformSphere(), z=(3,))(q, None)
        polar = (torch.arange(200).double() + 0.5) * math.pi / 200
        points = torch.stack([polar.sin(), torch.zeros_like(polar), polar.cos()], -1)
        rings = 2 * math.pi * polar.sin() * math.pi / 200
        assert (p.log_prob(points).exp() * rings).sum().item() == pytest.approx(1, abs=1e-4)

    def test_prefers_no_direction(self):
        draws = assembled(UniformSphere(), z=(3,))(q, None).sample((40_000,))
        assert draws.mean(0).abs().max() < 5 * (1 / 3 / 40_000) ** 0.5
        second = torch.einsum("ni,nj->ij", draws, draws) / 40_000
        assert torch.allclose(second, torch.eye(3).double() / 3, atol=0.01)

    def test_takes_several_directions(self):
        p = assembled(UniformSphere(), z=(4, 3))(q, None)
        draws = p.sample((5,))
        assert (p.batch_shape, draws.shape) == ((), (5, 4, 3))
        assert torch.allclose(draws.norm(dim=-1), torch.ones(5, 4).double())
        assert p.log_prob(draws)[0].item() == pytest.approx(-4 * math.log(4 * math.pi))

    def test_refuses_a_sphere_of_two_points(self):
        with pytest.raises(Error, match="a sphere has at least 2 dimensions"):
            UniformSphere().setup((1,), SEEN)


def test_categorical_gives_each_state_the_product_of_its_probabilities():
    prior = assembled(Categorical(), z=(2, 3))
    prior.logits.data = torch.randn(2, 3).double()
    p = prior(q, None)
    states = p.enumerate_support()
    expected = (prior.logits.log_softmax(-1) * states).sum((-1, -2))
    assert states.shape == (9, 2, 3)
    assert torch.allclose(p.log_prob(states), expected)
    assert p.log_prob(states).logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("z", "summed"), [((4, 4), True), ((5, 4), False)])
def test_categorical_is_summed_over_or_drawn_straight_through_by_itself(z, summed):
    vae = VAE(x=(6,), z=z, prior="categorical", posterior="one-hot")
    x = torch.randint(2, (60, 1)).expand(60, 6).float()
    history = fit(vae, x, epochs=40, batch_size=30, learning_rate=0.02)
    assert (vae.enumerates, vae.exact) == (summed, summed)
    # log 2 at best, 6 log 2 at the marginals
    assert history.epochs[-1].loss < 2.5 < history.epochs[0].loss
    assert log_likelihood(vae, x[:5], particles=20).exact == summed


class TestVamp:
    def test_is_the_weighted_average_of_posteriors(self):
        prior = assembled(Vamp(components=4, learned_weights=True))
        prior.logits.data = torch.randn(4).double()
        z = torch.randn(6, *Z).double()
        terms = q(prior.inputs).log_prob(z[:, None]) + prior.logits.log_softmax(0)
        assert torch.allclose(prior(Guide(q)).log_prob(z), terms.logsumexp(-1))

    def test_equal_weights_are_no_part_of_what_is_saved(self):
        assert set(assembled(Vamp()).state_dict()) == {"inputs"}
        assert set(assembled(Vamp(learned_weights=True)).state_dict()) == {"inputs", "logits"}


def started_exemplar(rows=50, neighbours=7):
    prior = assembled(Exemplar(neighbours=neighbours))
    prior.start(torch.randn(rows, *SEEN).double())
    return prior


def average(prior, z, leave=None):
    """The log of the average of q over all rows, or over all but one for each latent."""
    terms = q(prior.rows).log_prob(z.unsqueeze(-2))
    if leave is None:
        return terms.logsumexp(-1) - math.log(len(prior.rows))
    own = torch.arange(len(prior.rows)) == leave[:, None]
    return terms.masked_fill(own, -torch.inf).logsumexp(-1) - math.log(len(prior.rows) - 1)


class TestExemplar:
    @pytest.mark.parametrize("entries", [1, 1000, 2**22])
    def test_in_evaluation_is_the_average_over_all_rows_in_any_chunks(self, entries, monkeypatch):
        monkeypatch.setattr(exemplars, "ENTRIES", entries)
        prior = started_exemplar().eval()
        z = torch.randn(6, 5, *Z).double()
        index = torch.arange(5)
        for guide in (Guide(q), Guide(q, index)):
            p = prior(guide).expand((6, 5))
            assert torch.allclose(p.log_prob(z), average(prior, z), rtol=1e-12)

    def test_in_evaluation_takes_guides_that_are_no_normals(self):
        prior = started_exemplar().eval()
        guide = Guide(lambda seen: dist.StudentT(3.0, seen[..., :2], 0.5).to_event(1))
        z = torch.randn(6, *Z).double()
        terms = guide(prior.rows).log_prob(z[:, None])
        expected = terms.logsumexp(-1) - math.log(len(prior.rows))
        assert torch.allclose(prior(guide).log_prob(z), expected, rtol=1e-12)

    def test_in_evaluation_keeps_the_digits_of_narrow_posteriors_in_float32(self):
        prior = started_exemplar().eval().float()
        guide = Guide(lambda seen: dist.Normal(100 + seen[..., :2], 1e-3).to_event(1))
        z = guide(prior.rows[:6]).sample()
        exact = guide(prior.rows).log_prob(z[:, None]).logsumexp(-1) - math.log(50)
        assert torch.allclose(prior(guide).log_prob(z), exact, atol=1e-4)

    @pytest.mark.parametrize("particles", [(), (3,)])
    def test_in_training_with_all_neighbours_is_the_leave_one_out_average(self, particles):
        prior = started_exemplar(neighbours=1000)
        index = torch.tensor([4, 0, 49])
        z = torch.randn(*particles, 3, *Z).double()
        p = prior(Guide(q, index)).expand((*particles, 3))
        assert torch.allclose(p.log_prob(z), average(prior, z, index), rtol=1e-12)

    def test_fewer_neighbours_are_a_lower_bound_and_the_nearest(self):
        prior = started_exemplar(neighbours=7)
        index = torch.tensor([4, 0, 49])
        z = torch.randn(20, 3, *Z).double()
        p = prior(Guide(q, index)).expand((20, 3))
        distance = (prior.rows[:, :2] - z[:, :, None]).norm(dim=-1)
        distance[:, torch.arange(3), index] = torch.inf
        assert (
            p.nearest(z).sort(-1).values == distance.argsort(-1)[..., :7].sort(-1).values
        ).all()
        assert (p.log_prob(z) < average(prior, z, index)).all()
        assert (p.log_prob(z) > average(prior, z, index) - 3).all()

    def test_a_row_is_never_its_own_neighbour_nor_drawn_for_itself(self):
        prior = assembled(Exemplar(neighbours=3))
        rows = 100 * torch.arange(4)[:, None].double() * torch.tensor([1.0, 0.0, 0.0])
        prior.start(rows)
        index = torch.tensor([2, 0])
        p = prior(Guide(q, index))
        assert (p.nearest(rows[index][:, :2]) != index[:, None]).all()
        owners = (p.sample((400,))[..., 0] / 100).round()
        assert (owners != index).all()
        assert [set(column.tolist()) for column in owners.mT] == [{0, 1, 3}, {1, 2, 3}]

    def test_keeps_a_copy_of_the_rows(self):
        prior, rows = assembled(Exemplar()), torch.randn(20, *SEEN).double()
        prior.start(rows)
        rows.zero_()
        assert (prior.rows != 0).all()

    def test_an_enumerated_latent_meets_every_row(self):
        prior = started_exemplar(neighbours=1000)
        index = torch.tensor([4, 0, 49])
        z = torch.randn(6, 1, *Z).double()
        expected = average(prior, z.expand(6, 3, *Z), index)
        assert torch.allclose(prior(Guide(q, index)).log_prob(z), expected)

    def test_the_places_of_the_rows_at_hand_follow_the_guide(self):
        prior = started_exemplar()
        prior(Guide(q, torch.arange(3)))
        assert torch.allclose(prior.places, prior.rows[:, :2])
        moved = Guide(lambda seen: q(seen + 1), torch.tensor([5, 6]))
        prior(moved)
        shift = prior.places - prior.rows[:, :2]
        assert torch.allclose(shift[5:7], torch.ones(2, 2).double())
        assert (shift[7:] == 0).all()
        assert (shift[:5] == 0).all()

    def test_the_gradient_reaches_the_guide_through_the_neighbours(self):
        prior = started_exemplar()
        shift = torch.zeros(2).double().requires_grad_()
        guide = Guide(lambda seen: dist.Normal(seen[..., :2] + shift, 1.0).to_event(1))
        z = torch.ones(4, 2).double()
        for part in (guide, Guide(guide.q, torch.arange(4))):
            (gradient,) = torch.autograd.grad(prior(part).log_prob(z).sum(), shift)
            assert (gradient != 0).all()

    def test_a_guide_without_a_mean_is_placed_by_a_draw(self):
        prior = started_exemplar()
        one_way = dist.transforms.TanhTransform()

        def bounded(seen):
            return dist.TransformedDistribution(dist.Normal(seen[..., :2], 1e-6), [one_way])

        p = prior(Guide(lambda seen: bounded(seen).to_event(1), torch.arange(3)))
        assert p.event_shape == Z
        assert torch.allclose(prior.places, prior.rows[:, :2].tanh(), atol=1e-4)

    def test_trains_evaluates_without_a_trace_and_is_saved_with_its_rows(self, tmp_path):
        x = two_groups(60)
        vae = two_groups_vae(Exemplar(neighbours=5))
        before = log_likelihood(vae, x[:8], particles=5).value.shape
        history = fit(vae, x, x[:10], epochs=5, batch_size=20, learning_rate=0.02)
        kept = {name: tensor.clone() for name, tensor in vae.named_buffers()}
        value = log_likelihood(vae, x[:8], particles=50).value
        assert before == value.shape
        assert history.epochs[-1].loss < history.epochs[0].loss
        assert all(
            kept[name].shape == b.shape and (kept[name] == b).all()
            for name, b in vae.named_buffers()
        )
        assert (vae.prior.rows == x).all()
        save(vae, tmp_path / "run", history)
        again = open_run(tmp_path / "run").model
        assert (log_likelihood(again, x[:8], particles=50).value == value).all()
        fit(again, x, epochs=1, start=False)

    def test_in_training_a_model_leaves_out_the_rows_at_hand(self):
        x = two_groups(30)
        vae = two_groups_vae(Exemplar(neighbours=29))
        vae.start(Batch(x))
        index = torch.tensor([3, 7, 20])
        with vae.scope():
            guide = poutine.trace(vae.guide).get_trace(Batch(x[index], index=index))
            joint = poutine.trace(poutine.replay(vae.model, trace=guide))
            site = joint.get_trace(Batch(x[index], index=index)).nodes["z"]
        terms = vae.q(x).log_prob(site["value"][:, None])
        own = torch.arange(30) == index[:, None]
        expected = terms.masked_fill(own, -torch.inf).logsumexp(-1) - math.log(29)
        assert torch.allclose(site["fn"].log_prob(site["value"]), expected)

    def test_refuses_a_single_row_and_rows_that_it_did_not_start_at(self):
        with pytest.raises(Error, match="exemplar needs at least 2 training rows, got 1"):
            fit(two_groups_vae("exemplar"), two_groups(2)[:1])
        with pytest.raises(FitError, match="exemplar has to start at its training rows"):
            fit(two_groups_vae("exemplar"), two_groups(), start=False)
        vae = two_groups_vae("exemplar")
        fit(vae, two_groups(20), epochs=1)
        with pytest.raises(FitError, match="exemplar has to start at its training rows"):
            fit(vae, two_groups(40), start=False)


class TestConditional:
    def test_is_refused_by_a_model_without_a_context(self):
        with pytest.raises(Error, match="conditional needs rows with a context: use the model"):
            VAE(x=(3,), z=(2,), prior="conditional")

    def test_is_its_family_at_the_networks_output(self):
        prior = Conditional(family="multivariate-normal", network={"kind": "mlp", "hidden": ()})
        prior.given((4,))
        prior.setup(Z, SEEN)
        context, z = torch.randn(5, 4), torch.randn(3, 5, *Z)
        p = prior(Guide(q), context)
        assert p.batch_shape == (5,)
        expected = prior.family(prior.network(context)).log_prob(z)
        assert torch.allclose(p.log_prob(z), expected)

    def test_is_over_what_its_family_is_over(self):
        with pytest.raises(Error, match="normal is over finite real numbers and conditional is"):
            ConditionalVAE(x=(3,), z=(2,), context=(2,), prior=Conditional(family="bernoulli"))

    def test_learns_what_the_context_says_of_the_latent(self):
        x = two_groups(80)
        context = x.mean(1, keepdim=True).sign()
        parts = {
            "encoder": {"kind": "mlp", "hidden": ()},
            "decoder": {"kind": "mlp", "hidden": ()},
        }
        vae = ConditionalVAE(
            x=(2,), z=(1,), context=(1,), prior="conditional", likelihood="shared-normal", **parts
        ).double()
        fit(vae, Batch(x, context), epochs=150, batch_size=80, learning_rate=0.02)
        means = vae.prior(Guide(vae.q), torch.tensor([[1.0], [-1.0]]).double()).base_dist.loc
        assert (means[0] - means[1]).abs() > 0.1


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestRefitPrior:
    def fitted(self, **fields):
        vae = two_groups_vae(**fields)
        with torch.no_grad():
            vae.encoder.output.weight.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
            vae.encoder.output.bias.copy_(torch.tensor([0.0, -2.0]))
            vae.decoder.output.weight.copy_(torch.tensor([[1.0], [1.0]]))
            vae.decoder.output.bias.zero_()
        return vae

    @pytest.mark.parametrize(
        "prior",
        [
            "learned-normal",
            GaussianMixture(components=2),
            {"kind": "vamp", "components": 6},
            "exemplar",
            {"kind": "flow", "flow": "nsf", "transforms": 1, "hidden": [8]},
        ],
        ids=["learned-normal", "gaussian-mixture", "vamp", "exemplar", "flow"],
    )
    def test_fits_the_aggregated_posterior_and_leaves_the_rest(self, prior):
        vae, x, held_out = self.fitted(), two_groups(), two_groups(50)
        before, modes = state(vae), [module.training for module in vae.modules()]
        random = torch.get_rng_state()
        new = refit_prior(vae, prior, x, held_out, epochs=30, learning_rate=0.05)
        assert (torch.get_rng_state() == random).all()
        assert modes == [module.training for module in vae.modules()]
        assert all((before[name] == tensor).all() for name, tensor in vae.state_dict().items())
        assert all(p.grad is None for p in (*vae.parameters(), *new.parameters()))
        for name, tensor in new.state_dict().items():
            if not name.startswith("prior."):
                assert (tensor == before[name]).all(), name
        assert new.prior.kind != vae.prior.kind
        rows = two_groups(40)
        gain = log_likelihood(new, rows, particles=200).mean - log_likelihood(vae, rows).mean
        assert gain > (0.3 if new.prior.kind != "learned-normal" else 0.0)

    def test_a_learned_normal_ends_at_the_moments_of_the_aggregated_posterior(self):
        vae, x = self.fitted(), two_groups()
        new = refit_prior(vae, "learned-normal", x, epochs=200, learning_rate=0.02, batch_size=200)
        guide = vae.q(x).base_dist
        variance = (guide.scale.square() + guide.loc.square()).mean() - guide.loc.mean().square()
        assert new.prior.loc.item() == pytest.approx(guide.loc.mean().item(), abs=0.05)
        assert new.prior.log_scale.exp().item() == pytest.approx(variance.sqrt().item(), rel=0.02)

    def test_the_same_seed_gives_the_same_prior(self):
        vae, x = self.fitted(), two_groups()
        a, b, c = (refit_prior(vae, "vamp", x, epochs=1, seed=seed) for seed in (1, 1, 2))
        assert (a.prior.inputs == b.prior.inputs).all()
        assert (a.prior.inputs != c.prior.inputs).any()

    def test_ends_at_the_best_validation_epoch_and_can_stop_early(self):
        vae, x, held_out = self.fitted(), two_groups(), two_groups(30)
        prior = {"kind": "gaussian-mixture", "components": 2}
        kwargs = {"epochs": 40, "learning_rate": 0.5}
        best = refit_prior(vae, prior, x, held_out, **kwargs)
        stopped = refit_prior(vae, prior, x, held_out, patience=40, **kwargs)
        last = refit_prior(vae, prior, x, **kwargs)
        value = [bound(m, held_out) for m in (best, stopped, last)]
        assert value[0] == value[1]
        assert value[0] > value[2]

    def test_goes_through_a_transform_and_through_layers_and_contexts(self):
        x = two_groups(60)
        inside = Transformed(base=self.fitted(), transform="standardize").double()
        inside.transform.start(x)
        new = refit_prior(inside, "vamp", x, epochs=2)
        assert new.base.prior.kind == "vamp"
        assert (new.transform.loc == inside.transform.loc).all()
        deep = HierarchicalVAE(
            x=(2,), z=(2,), layers=(Stochastic(z=(2,)),), likelihood="fixed-normal"
        )
        assert refit_prior(deep, "gaussian-mixture", x.float(), epochs=2).prior.components == 10
        given = ConditionalVAE(x=(2,), z=(1,), context=(2,), likelihood="fixed-normal").double()
        new = refit_prior(given, "conditional", Batch(x, x.sign()), epochs=2)
        assert new.prior.kind == "conditional"

    def test_refuses_what_cannot_be(self):
        x = two_groups(20)
        with pytest.raises(Error, match="the model 'mixture' has no prior to exchange"):
            refit_prior(Mixture(x=(2,), components=2), "vamp", x)
        with pytest.raises(Error, match="normal is over finite real numbers and categorical is"):
            refit_prior(self.fitted(), "categorical", x)
        with pytest.raises(Error, match="train: rows of the data have the shape"):
            refit_prior(self.fitted(), "vamp", torch.zeros(9, 5))
        with pytest.raises(Error, match="early stopping judges by validation rows"):
            refit_prior(self.fitted(), "vamp", x, patience=3)
        with pytest.raises(Error, match="unknown prior 'vmap'"):
            refit_prior(self.fitted(), "vmap", x)
        with pytest.raises(Error, match="should be a model"):
            refit_prior(x, "vamp", x)

    def test_only_the_prior_is_in_training_mode(self):
        seen = set()

        class Watch(Prior):
            """A prior that notes the modes."""

            def setup(self, z, seen):
                self.loc = torch.nn.Parameter(torch.zeros(z))

            def forward(self, guide, context=None):
                seen.add((self.training, guide.q.__self__.encoder.training))
                return dist.Normal(self.loc, 1.0).to_event(1)

        try:
            refit_prior(self.fitted(), "watch", two_groups(20), epochs=1)
        finally:
            del Prior.members["watch"]
        assert seen == {(False, False), (True, False)}

    def test_a_prior_that_fails_says_so(self):
        class Wild(Prior):
            """A prior that is not a number."""

            def setup(self, z, seen):
                self.loc = torch.nn.Parameter(torch.zeros(z))

            def forward(self, guide, context=None):
                return dist.Normal(self.loc * torch.nan, 1.0, validate_args=False).to_event(1)

        try:
            with pytest.raises(FitError, match="the fit of the prior failed in epoch 0"):
                refit_prior(self.fitted(), "wild", two_groups(20))
        finally:
            del Prior.members["wild"]


@pytest.mark.parametrize("prior", [Exemplar(), Vamp(components=5)])
def test_another_prior_begins_at_rows_as_the_trained_encoder_sees_them(prior):
    rows = torch.stack([torch.arange(20) % 4, torch.randn(20)], -1)
    classes = {"kind": "categorical", "classes": 4}
    columns = Columns(columns={"a": classes, "b": "normal"}, embedding=3)
    vae = VAE(x=(2,), z=(2,), likelihood=columns, posterior="normal")
    fit(vae, rows, epochs=1, progress=False)
    new = refit_prior(vae, prior, rows, epochs=1, learning_rate=1e-9, seed=5, progress=False)
    own = new.prior.rows if prior.kind == "exemplar" else new.prior.inputs
    distance = torch.cdist(own, new.likelihood.encode(rows)).min(-1).values
    assert distance.max() < 1e-3
