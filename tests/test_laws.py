"""Laws that every member of a role obeys; a new member is tested by existing."""

import json
import tomllib

import pyro
import pytest
import tomli_w
import torch
from members import FAMILIES, MODELS, NETWORKS, PRIORS, TRANSFORMS, ids, make
from pyro import distributions as dist

from pyrovae import Batch, fit, log_likelihood, log_weights
from pyrovae.catalogue import roles
from pyrovae.families import Family
from pyrovae.inference import SVI
from pyrovae.models import Model
from pyrovae.objectives import ELBO, Objective
from pyrovae.optim import Optim
from pyrovae.part import Part
from pyrovae.runs import open_run, save

Z = (2,)


def standard_q(seen):
    """A guide for priors that are defined through one: mean from the first columns, sd 0.7."""
    return dist.Normal(seen[..., :2], torch.full_like(seen[..., :2], 0.7)).to_event(1)


def assembled_prior(parameter):
    prior = make(parameter)
    prior.setup(Z, (3,))
    return prior.double()


def assembled_family(parameter, event=(1,)):
    family = make(parameter)
    family.setup(event)
    return family.double()


def grid(family):
    """Values that cover the support of a family over the event (1,), and the weight of each."""
    if family.support.is_discrete:
        return torch.arange(2.0 if family.takes == "0 or 1" else 400.0).double()[:, None], 1.0
    values = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    return values[:, None], (values[1] - values[0]).item()


@pytest.mark.parametrize("parameter", PRIORS, ids=ids(PRIORS))
class TestPriors:
    def test_has_the_event_shape_of_z_and_no_batch(self, parameter):
        p = assembled_prior(parameter)(standard_q, None)
        assert (p.batch_shape, p.event_shape) == ((), Z)

    def test_integrates_to_one_and_samples_fit_the_density(self, parameter):
        p = assembled_prior(parameter)(standard_q, None)
        axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)
        mass = p.log_prob(points).exp() * (axis[1] - axis[0]) ** 2
        assert mass.sum().item() == pytest.approx(1, abs=1e-4)
        with torch.no_grad():
            draws = p.sample((20_000,))
        mean, square = (mass[:, None] * points).sum(0), (mass[:, None] * points**2).sum(0)
        error = 5 * draws.std(0) / 20_000**0.5  # fails by chance once in 10^6 draws
        assert ((draws.mean(0) - mean).abs() < error).all()
        assert ((draws**2).mean(0) - square).abs().max() < 0.15

    def test_broadcasts_in_a_plate(self, parameter):
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", 5, dim=-1):
            z = pyro.sample("z", assembled_prior(parameter)(standard_q, None))
        assert z.shape == (3, 5, *Z)

    def test_gradient_reaches_z_and_every_parameter(self, parameter):
        prior = assembled_prior(parameter)
        z = torch.randn(7, *Z).double().requires_grad_()
        prior(standard_q, None).log_prob(z).sum().backward()
        assert (z.grad != 0).all()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())

    def test_starts_at_data_of_fewer_rows_than_components(self, parameter):
        prior = assembled_prior(parameter)
        prior.start(torch.rand(4, 3).double())
        assert prior(standard_q, None).log_prob(torch.zeros(Z).double()).isfinite()


@pytest.mark.parametrize("parameter", FAMILIES, ids=ids(FAMILIES))
class TestFamilies:
    def test_integrates_to_one_and_samples_fit_the_density(self, parameter):
        family = assembled_family(parameter)
        p = family(torch.randn(family.params).double())
        values, weight = grid(family)
        mass = p.log_prob(values).exp() * weight
        assert mass.sum().item() == pytest.approx(1, abs=1e-6)
        draws = p.sample((20_000,))[:, 0]
        mean = (mass * values[:, 0]).sum()
        variance = (mass * (values[:, 0] - mean) ** 2).sum()
        assert abs(draws.mean() - mean) < 5 * (variance / 20_000) ** 0.5
        assert draws.var().item() == pytest.approx(variance.item(), rel=0.1)
        assert family.support.check(draws).all()

    def test_takes_any_leading_dimensions(self, parameter):
        family = assembled_family(parameter, (3,))
        h = torch.randn(4, 5, *family.params).double()
        p = family(h)
        assert (p.batch_shape, p.event_shape) == ((4, 5), (3,))
        x = p.sample()
        one_by_one = torch.stack(
            [family(h[i, j]).log_prob(x[i, j]) for i in range(4) for j in range(5)]
        )
        assert torch.allclose(p.log_prob(x).flatten(), one_by_one, rtol=1e-12, atol=1e-12)

    def test_the_table_of_a_mixture_is_the_density_of_each_pair(self, parameter):
        family = assembled_family(parameter, (3,))
        h = torch.randn(4, *family.params).double()
        x = family(h[0]).sample((6,))
        pairs = torch.stack([family(h[k]).log_prob(x) for k in range(4)], -1)
        assert torch.allclose(family.table(x, h), pairs, rtol=1e-12, atol=1e-12)

    def test_gradient_reaches_the_network_and_every_parameter(self, parameter):
        family = assembled_family(parameter, (3,))
        h = torch.randn(6, *family.params).double().requires_grad_()
        x = family(h.detach()).sample()
        family(h).log_prob(x).sum().backward()
        assert h.grad is not None
        assert (h.grad != 0).all()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in family.parameters())

    def test_encodes_to_the_shape_that_it_says(self, parameter):
        family = assembled_family(parameter, (3,))
        x = family(torch.randn(6, *family.params).double()).sample()
        assert family.encode(x).shape == (6, *family.seen)
        assert family.encode(x).isfinite().all()

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_starts_at_data_of_any_scale(self, parameter, scale):
        family = assembled_family(parameter, (3,))
        if not family.support.is_discrete:
            x = scale * torch.randn(50, 3).double()
            x[:, 0] = 1.0  # a constant column
            family.start(x)
            assert family(torch.zeros(family.params).double()).log_prob(x).isfinite().all()

    def test_the_m_step_is_where_the_likelihood_is_largest(self, parameter):
        family = assembled_family(parameter, (2,))
        if type(family).maximize is Family.maximize:
            with pytest.raises(
                ValueError, match="no closed-form M-step: fit the mixture with method = 'svi'"
            ):
                family.maximize(torch.zeros(1, 2))
            return
        x = family(torch.randn(family.params).double()).sample((400,))
        family.start(x)
        weights = torch.rand(400, 3).double()
        means = weights.mT @ family.statistics(x) / weights.sum(0)[:, None]
        h = family.maximize(means).requires_grad_()
        (weights * family(h).log_prob(x[:, None])).sum().backward()
        assert h.shape == (3, *family.params)
        assert h.grad.abs().max() < 1e-6  # the gradient of a sum over 400 rows

    def test_is_stable_far_out_in_float32(self, parameter):
        family = assembled_family(parameter).float()
        x = torch.tensor([[0.0], [1.0]])
        for value in (-50.0, 50.0):
            h = torch.full((2, *family.params), value).requires_grad_()
            log_prob = family(h).log_prob(x)
            log_prob.clamp(min=-1e30).sum().backward()
            assert not log_prob.isnan().any()
            assert h.grad is not None
            assert not h.grad.isnan().any()


@pytest.mark.parametrize("parameter", NETWORKS, ids=ids(NETWORKS))
@pytest.mark.parametrize(
    ("source", "target"), [((3,), (2,)), ((1, 4, 4), (2, 3)), ((5,), (1, 6, 6))]
)
def test_networks_map_shapes_under_any_leading_dimensions(parameter, source, target):
    network = make(parameter)
    network.setup(source, target)
    a = torch.randn(2, 7, *source)
    assert network(a).shape == (2, 7, *target)
    assert torch.allclose(network(a)[1, 3], network(a[1, 3]), atol=1e-6)
    network(a).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("parameter", TRANSFORMS, ids=ids(TRANSFORMS))
def test_transforms_keep_shapes_and_invert_where_they_say(parameter):
    step = make(parameter)
    x = torch.arange(24.0).double().reshape(6, 4) % 7
    step.setup((4,))
    step.double().start(x)
    y = step(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    if not step.invertible:
        with pytest.raises(ValueError, match="cannot be inverted"):
            step.bijection()
        return
    assert torch.allclose(step.bijection().inv(y), x)
    jacobian = torch.autograd.functional.jacobian(step, x[0])
    log_det = step.bijection().log_abs_det_jacobian(x[0], y[0]).sum()
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian).logabsdet)


def ready(parameter):
    """A model in float64, and rows of its own with all that they are given."""
    model = make(parameter).double()
    if model.kind == "pair":
        model.start(Batch(torch.zeros(6, *model.event).double()))
    given = {}
    if hasattr(model, "context"):
        given["context"] = torch.randn(40, *model.context).double()
    if hasattr(model, "classes"):
        given["labels"] = torch.arange(40) % (model.classes + 1) - 1
    return model, Batch(model.sample(40, context=given.get("context")), **given)


@pytest.mark.parametrize("parameter", MODELS, ids=ids(MODELS))
class TestModels:
    def test_samples_have_the_shape_and_the_support_of_x(self, parameter):
        model, batch = ready(parameter)
        assert batch.x.shape == (40, *model.event)
        model.check(batch)

    def test_log_weights_have_the_shape_particles_by_rows(self, parameter):
        model, batch = ready(parameter)
        assert log_weights(model, batch[:5], 7).shape == (7, 5)

    def test_log_p_is_exact_where_it_says(self, parameter):
        model, batch = ready(parameter)
        if model.exact:
            log_w = log_weights(model, batch, 9)
            assert torch.allclose(log_w, model.log_prob(batch).expand(9, -1), atol=1e-9)
        else:
            with pytest.raises(
                ValueError, match="is an integral: estimate it with log_likelihood"
            ):
                Model.log_prob(model, batch)

    def test_gradient_reaches_every_parameter(self, parameter):
        model, batch = ready(parameter)
        model.start(batch)
        with model.scope():
            elbo = ELBO().build(model.enumerates)
            elbo.differentiable_loss(model.model, model.guide, batch).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_fits_and_improves(self, parameter):
        model, batch = ready(parameter)
        for parameter_ in model.parameters():
            parameter_.data += 0.3 * torch.randn_like(parameter_)
        history = fit(model, batch, epochs=30, batch_size=20, learning_rate=0.02)
        assert history.epochs[-1].loss < history.epochs[0].loss

    def test_survives_spec_to_toml_and_save_to_load(self, parameter, tmp_path):
        model, batch = ready(parameter)
        history = fit(model, batch, epochs=2, batch_size=20, dtype="float64")
        table = model.spec()
        assert tomllib.loads(tomli_w.dumps(table)) == table
        assert Model.from_spec(json.loads(json.dumps(table))).spec() == table
        save(model, tmp_path / "run", history)
        again = open_run(tmp_path / "run").model
        assert repr(again) == repr(model)
        a, b = (log_likelihood(m, batch, particles=20, seed=3).value for m in (model, again))
        assert (a == b).all()

    def test_is_refused_rows_of_another_shape(self, parameter):
        model, batch = ready(parameter)
        with pytest.raises(ValueError, match=r"train: rows of the data have the shape \(9,\)"):
            fit(model, batch.replace(x=torch.zeros(40, 9)))


@pytest.mark.parametrize("kind", sorted(Objective.members))
@pytest.mark.parametrize("particles", [1, 5])
def test_objectives_estimate_the_bound(kind, particles):
    model, batch = ready(MODELS[-1])
    objective = Objective.from_spec({"kind": kind, "particles": particles}).build()
    assert isinstance(objective, pyro.infer.ELBO)
    optim = Optim(torch.optim.SGD, {"lr": 0.0})
    with model.scope():
        losses = [
            SVI(model.model, model.guide, optim, objective).step(batch) for _ in range(200)
        ]
    exact = -log_weights(model, batch, 2000).mean()
    error = torch.stack(losses).std() / 200**0.5
    assert abs(torch.stack(losses).mean() - exact) < 5 * error + 0.02


@pytest.mark.parametrize("role", sorted(roles()))
def test_every_member_gives_examples_that_its_spec_rebuilds(role):
    for kind, member in roles()[role].members.items():
        parts = list(member.examples())
        assert parts, f"{kind} gives no examples"
        for part in parts:
            assert isinstance(part, member)
            assert part.spec()["kind"] == kind
            assert roles()[role].from_spec(part.spec()).spec() == part.spec()
            assert isinstance(part, Part)
            assert (member.__doc__ or "").strip(), f"{kind} has no docstring"
