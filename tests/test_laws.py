"""Laws that every member of a role obeys; a new member is tested by existing."""

import functools
import json
import math
import re
import tomllib

import pyro
import pytest
import tomli_w
import torch
from members import MODELS, NETWORKS, PRIORS, TRANSFORMS, everywhere, ids, make, parts
from pyro import distributions as dist

from pyrovae import Batch, Error, fit, log_likelihood, log_weights
from pyrovae.catalogue import roles
from pyrovae.inference import SVI
from pyrovae.models import Model
from pyrovae.networks import Network
from pyrovae.objectives import ELBO, Objective
from pyrovae.optim import Optim
from pyrovae.optimizers import SGD
from pyrovae.part import Part
from pyrovae.priors import Guide
from pyrovae.runs import open_run, save

Z, CONTEXT = (2,), (4,)
OBJECTIVES = [p for p in parts(Objective) if p[0] != "marginal-likelihood-0"]


def standard_q(seen):
    """A guide for priors that are defined through one: mean from the first columns, sd 0.7."""
    return dist.Normal(seen[..., :2], torch.full_like(seen[..., :2], 0.7)).to_event(1)


def assembled_prior(parameter):
    prior = make(parameter)
    prior.given(CONTEXT)
    prior.setup(Z, (3,))
    return prior.double()


def p_of_z(prior, rows=1):
    return prior(Guide(standard_q), torch.ones(rows, *CONTEXT).double())


@pytest.mark.parametrize("parameter", PRIORS, ids=ids(PRIORS))
class TestPriors:
    def test_has_the_event_shape_of_z_and_a_batch_only_of_contexts(self, parameter):
        prior = assembled_prior(parameter)
        p = p_of_z(prior, rows=5)
        assert p.event_shape == Z
        assert p.batch_shape == ((5,) if prior.kind == "conditional" else ())

    def test_integrates_to_one_and_samples_fit_the_density(self, parameter):
        prior = assembled_prior(parameter)
        p, (points, weight) = p_of_z(prior), everywhere(prior)
        with torch.no_grad():
            mass = p.log_prob(points).exp() * weight
            draws = p.sample((20_000,)).reshape(-1, *Z)
        assert mass.sum().item() == pytest.approx(1, abs=1e-3 if prior.kind == "flow" else 1e-5)
        for moment in (torch.tanh, lambda z: z.tanh() ** 2, lambda z: z.tanh().prod(-1)):
            expected = torch.einsum("i,i...->...", mass, moment(points))
            error = 5 * moment(draws).std(0) / 20_000**0.5  # by chance once in 10^6 draws
            assert ((moment(draws).mean(0) - expected).abs() < error + 1e-3).all()

    def test_broadcasts_in_a_plate(self, parameter):
        p = p_of_z(assembled_prior(parameter), rows=5)
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", 5, dim=-1):
            z = pyro.sample("z", p)
        assert z.shape == (3, 5, *Z)
        log_p = p.expand((3, 5)).log_prob(z)
        assert log_p.shape == (3, 5)
        assert torch.allclose(log_p[2, 1], p.log_prob(z[2, 1]).reshape(-1)[0])

    def test_gradient_reaches_z_and_every_parameter(self, parameter):
        prior = assembled_prior(parameter)
        for entry in prior.parameters():
            entry.data += 0.1 * torch.randn_like(entry)
        z = torch.randn(7, *Z).double().requires_grad_()
        log_p = p_of_z(prior).log_prob(z)
        if prior.kind == "uniform-sphere":
            assert not log_p.requires_grad
            return
        log_p.sum().backward()
        assert (z.grad != 0).all()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())

    def test_starts_at_data_of_fewer_rows_than_components(self, parameter):
        prior = assembled_prior(parameter)
        prior.start(torch.rand(4, 3).double())
        assert p_of_z(prior).log_prob(everywhere(prior)[0][:1]).isfinite()

    def test_is_stable_at_0_and_far_out_in_float32(self, parameter):
        prior = assembled_prior(parameter).float()
        z = torch.tensor([[0.0, 0.0], [0.0, 30.0], [-30.0, 1e-30]]).requires_grad_()
        p = prior(Guide(standard_q), torch.ones(1, *CONTEXT))
        log_p = p.log_prob(z)
        assert log_p.isfinite().all()
        assert p.sample((100,)).dtype == torch.float32
        if log_p.requires_grad:
            log_p.sum().backward()
            assert z.grad.isfinite().all()
            assert all(entry.grad.isfinite().all() for entry in prior.parameters())


SHAPES = [
    ((3,), (2,)),
    ((1, 4, 4), (2, 3)),
    ((5,), (1, 5, 7)),
    ((2, 6, 5), (2, 3, 3, 3)),
    ((4, 3), (2,)),
]
"""Vectors; an image to a vector, a vector to an image, an image to planes of images; a set."""


def assembled_networks(parameter):
    """A network between each pair of shapes that it takes; of others it says what takes them."""
    for source, target in SHAPES:
        network = make(parameter)
        try:
            network.setup(source, target)
        except Error as error:
            other = Network.from_spec(re.search(r": use ([\w-]+)", str(error))[1])
            other.setup(source, target)
        else:
            yield network.double(), torch.randn(2, 7, *source).double(), target


@pytest.mark.parametrize("parameter", NETWORKS, ids=ids(NETWORKS))
class TestNetworks:
    def test_maps_some_shapes_under_any_leading_dimensions(self, parameter):
        networks = list(assembled_networks(parameter))
        assert networks
        for network, a, target in networks:
            y = network.eval()(a)
            assert (y.shape, y.dtype) == ((2, 7, *target), a.dtype)
            assert torch.allclose(y[1], network(a[1]), rtol=1e-12, atol=1e-12)
            assert torch.allclose(y[1, 3], network(a[1, 3]), rtol=1e-12, atol=1e-12)

    def test_gradient_reaches_the_source_and_every_parameter(self, parameter):
        for network, a, _ in assembled_networks(parameter):
            (network(a.requires_grad_()) ** 2).sum().backward()
            assert (a.grad != 0).any()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    @torch.no_grad()
    def test_starts_at_an_output_by_its_last_bias(self, parameter):
        for network, a, target in assembled_networks(parameter):
            starts = type(network).start is not Network.start
            output = torch.randn(target).double()
            network.eval().start(output)
            before = network(a)
            network.start(output + 1)
            assert torch.allclose(network(a), before + starts, rtol=1e-12, atol=1e-12)
            for p in network.parameters():
                p.zero_()
            network.start(output)
            assert (network(a) == output).all() == starts


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
    if getattr(model, "context", None):
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


@functools.cache
def bounded():
    """A model, its rows, and between what bounds lie: the ELBO and log p(x), means over rows."""
    model, batch = ready(MODELS[-1])
    with torch.no_grad():
        log_w = log_weights(model, batch, 2000)
    return model, batch, log_w.mean(), (log_w.logsumexp(0) - math.log(2000)).mean()


@pytest.mark.parametrize("parameter", OBJECTIVES, ids=ids(OBJECTIVES))
@pytest.mark.parametrize("particles", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_objectives_estimate_a_bound_between_the_elbo_and_log_p(parameter, particles):
    """With one particle all are the evidence lower bound; VR-max can be above log p."""
    model, batch, elbo, log_p = bounded()
    kind = make(parameter).kind
    table = {"kind": kind, "particles": particles}
    if "groups" in type(make(parameter)).fields.model_fields:
        table["groups"] = particles
    objective = Objective.from_spec(table).build()
    assert isinstance(objective, pyro.infer.ELBO)
    optim = Optim(SGD(), 0.0)
    with model.scope():
        engine = SVI(model.model, model.guide, optim, objective)
        steps = torch.stack([engine.step(Batch(batch.x.repeat(20, 1, 1))) for _ in range(8)])
    bound, error = -steps.mean(), 5 * steps.std() / 8**0.5
    assert bound > elbo - error - 0.02
    assert bound < log_p + error + 0.02 or kind == "renyi-max"
    if particles == 1 or kind in ("elbo", "mean-field-elbo", "stl"):
        assert bound < elbo + error + 0.02
    elif kind not in ("multiply-iwae", "renyi"):
        assert bound > elbo + 0.3 * (log_p - elbo)


@pytest.mark.parametrize("role", sorted(roles()))
def test_every_member_gives_examples_that_its_spec_rebuilds(role):
    for kind, member in roles()[role].members.items():
        examples = list(member.examples())
        assert examples, f"{kind} gives no examples"
        for part in examples:
            assert isinstance(part, member)
            assert part.spec()["kind"] == kind
            assert roles()[role].from_spec(part.spec()).spec() == part.spec()
            assert isinstance(part, Part)
            assert (member.__doc__ or "").strip(), f"{kind} has no docstring"
