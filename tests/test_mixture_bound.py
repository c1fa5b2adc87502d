"""The bound on any model's likelihood, against exact suprema, grids of atoms, and models."""

import math

import numpy as np
import pytest
import torch
from members import FAMILIES, events, ids, make
from scipy import stats
from sklearn.datasets import load_iris

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    FactorAnalysis,
    Mixture,
    Transformed,
    fit,
    log_likelihood,
    mixture_bound,
)
from pyrovae.models import Pair

TOLERANCE = 1e-3


def mixture(x, family, **fields):
    """A mixture that has seen the rows, in float64; only its family matters."""
    model = Mixture(x=tuple(x.shape[1:]), components=2, family=family, **fields).double()
    model.start(Batch(x))
    return model


def on_a_grid(density):
    """The least and the largest that the supremum over weights of columns can be, by EM."""
    density, counts = np.unique(density, axis=0, return_counts=True)
    share, w = counts / counts.sum(), np.full(density.shape[1], 1 / density.shape[1])
    for _ in range(20_000):
        f = density @ w
        d = (share / f) @ density
        if d.max() < 1 + 2e-4:
            break
        w = w * d
    return share @ np.log(f), share @ np.log(f) + np.log(d.max())


def line(rows=80):
    centre = torch.where(torch.rand(rows, 1) < 0.4, -2.0, 1.0)
    return (centre + 0.8 * torch.randn(rows, 1)).double()


def test_zeros_and_ones_can_have_their_frequencies_and_no_more():
    distinct = torch.tensor([[i >> k & 1 for k in range(5)] for i in range(0, 32, 3)]).double()
    for x, supremum in (
        (distinct, -math.log(len(distinct))),
        (distinct[[0, 0, 0, 1]], 0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
    ):
        result = mixture_bound(mixture(x, "bernoulli"), x, tolerance=TOLERANCE)
        assert result.proven
        assert result.upper == pytest.approx(supremum, abs=1e-12)
        assert result.value == pytest.approx(supremum, abs=TOLERANCE)
        assert result.value <= supremum + 1e-12


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_normals_on_a_line_reach_what_a_fine_grid_of_locations_does(scale):
    x = line()
    low, high = on_a_grid(stats.norm.pdf(x.numpy(), np.linspace(-6, 5, 551)[None], scale))
    result = mixture_bound(
        mixture(x, {"kind": "fixed-normal", "scale": scale}), x, tolerance=TOLERANCE
    )
    assert result.proven
    assert result.gap <= TOLERANCE
    assert low - TOLERANCE <= result.value <= high + 1e-4
    assert low - 1e-9 <= result.upper <= high + TOLERANCE


@pytest.mark.parametrize("exposure", ["none", "offset"])
def test_poissons_reach_what_a_fine_grid_of_rates_does(exposure):
    x = torch.poisson(torch.where(torch.rand(150, 1) < 0.5, 2.0, 9.0)).double()
    e = torch.ones(len(x)) if exposure == "none" else 0.5 + torch.rand(len(x)).round()
    rates = np.exp(np.linspace(np.log(1e-4), 4, 700))
    low, high = on_a_grid(stats.poisson.pmf(x.numpy(), rates[None] * e[:, None].numpy()))
    model = VAE(x=(1,), z=(1,), likelihood={"kind": "poisson", "exposure": exposure}).double()
    batch = Batch(x, offset=None if exposure == "none" else e.double())
    result = mixture_bound(model, batch, tolerance=TOLERANCE)
    assert result.proven
    assert result.gap <= TOLERANCE
    assert low - TOLERANCE <= result.value <= high + 1e-4
    assert low - 1e-9 <= result.upper <= high + TOLERANCE


def test_the_proof_holds_for_a_poor_mixture_as_well():
    x = line()
    model = mixture(x, {"kind": "fixed-normal", "scale": 0.3})
    best = mixture_bound(model, x, tolerance=TOLERANCE)
    poor = mixture_bound(model, x, atoms=1, iterations=1)
    assert poor.atoms == 1
    assert poor.proven
    assert poor.value < best.value - 0.3
    assert poor.upper > best.upper


@pytest.mark.parametrize("family", ["normal", "laplace", "student-t"])
def test_a_row_far_from_all_others_has_an_atom_at_the_smallest_scale(family):
    x = torch.randn(30, 3).double()
    model = mixture(x, family)
    result = mixture_bound(model, x)
    narrow = torch.stack([x, torch.full_like(x, -50.0)], 1)
    supremum = model.family(narrow).log_prob(x).mean().item() - math.log(len(x))
    assert result.value == pytest.approx(supremum, abs=TOLERANCE)
    assert result.upper == pytest.approx(supremum, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["normal", "spherical-normal", "multivariate-normal"])
def test_no_mixture_of_any_size_is_above_it(family):
    x = torch.as_tensor(load_iris().data)
    spec = {"kind": family, "floor": 0.3}
    result = mixture_bound(mixture(x, spec), x)
    assert 0 <= result.gap < 0.01
    assert not result.proven
    reached = []
    for components in (1, 3, 10, 40):
        model = Mixture(x=(4,), components=components, family=spec)
        fit(model, x, epochs=30, seed=components)
        reached.append(log_likelihood(model, x).mean)
        with torch.no_grad():
            model.h.add_(0.1 * torch.randn_like(model.h))
        reached.append(log_likelihood(model, x).mean)
    assert max(reached) <= result.upper
    assert max(reached) > result.value - 0.5


def test_a_vae_and_its_linear_case_are_below_it():
    x = torch.as_tensor(load_iris().data)
    vae = VAE(x=(4,), z=(2,), likelihood={"kind": "shared-normal", "floor": 0.05})
    fit(vae, x, epochs=40, learning_rate=5e-3)
    bound, result = mixture_bound(vae, x), log_likelihood(vae, x, particles=100)
    assert result.mean < bound.upper
    low, high = bound.value - result.mean, bound.upper - result.mean
    assert bound.left(result) == f"{low:.2f} to {high:.2f} nats per row are left on the table"
    linear = FactorAnalysis(x=(4,), factors=2)
    fit(linear, x)
    assert log_likelihood(linear, x).mean < mixture_bound(linear, x).upper


def test_what_the_family_has_learned_is_held():
    x = line()
    shared = mixture(x, "shared-normal")
    scale = shared.family(torch.zeros(1, 1).double()).base_dist.scale.item()
    fixed = mixture(x, {"kind": "fixed-normal", "scale": scale})
    a, b = (mixture_bound(model, x, tolerance=TOLERANCE) for model in (shared, fixed))
    assert a.value == pytest.approx(b.value, abs=1e-9)
    counts = torch.poisson(torch.rand(100, 1) * 8).double()
    model = mixture(counts, "negative-binomial")
    theta, means = 1.5, np.exp(np.linspace(-8, 4, 700))
    with torch.no_grad():
        model.family.log_dispersion.fill_(math.log(theta))
    low, high = on_a_grid(stats.nbinom.pmf(counts.numpy(), theta, theta / (theta + means[None])))
    result = mixture_bound(model, counts, tolerance=TOLERANCE)
    assert low - TOLERANCE <= result.value <= high + 1e-4
    assert low - 1e-9 <= result.upper <= high + TOLERANCE


def test_behind_a_transform_it_is_on_the_raw_scale():
    x = 10 + 5 * line()
    raw = mixture(x, {"kind": "fixed-normal", "scale": 2.0})
    family = {"kind": "fixed-normal", "scale": 2 / x.std(correction=0).item()}
    base = Mixture(x=(1,), components=2, family=family)
    inside = Transformed(base=base, transform="standardize").double()
    inside.start(Batch(x))
    a, b = (mixture_bound(model, x, tolerance=TOLERANCE) for model in (raw, inside))
    assert b.value == pytest.approx(a.value, abs=1e-8)
    assert b.upper == pytest.approx(a.upper, abs=1e-8)


def test_atoms_are_added_while_they_raise_the_value():
    x = torch.as_tensor(load_iris().data)
    model = mixture(x, {"kind": "normal", "floor": 0.3})
    rounds = [mixture_bound(model, x, iterations=n, tolerance=1e-3) for n in (1, 2, 3)]
    values = [result.value for result in rounds]
    assert values == sorted(values)
    assert values[0] < values[-1] - 1e-4
    assert max(values) <= min(result.upper for result in rounds)


def test_with_fewer_atoms_than_rows_it_says_how_far_it_may_be():
    x = torch.as_tensor(load_iris().data)
    model = mixture(x, {"kind": "fixed-normal", "scale": 0.1})
    whole, part = mixture_bound(model, x), mixture_bound(model, x, atoms=20)
    assert part.atoms == 20
    assert part.value < whole.value - 1
    assert part.upper > whole.value


def test_the_model_is_as_it_was_and_the_seed_reproduces():
    x = torch.as_tensor(load_iris().data)
    vae = VAE(x=(4,), z=(2,), likelihood="student-t")
    vae.start(Batch(x.float()))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (mixture_bound(vae, x, atoms=30, seed=3, iterations=2) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert vae.likelihood.smallest.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())


SLOW = ("flow-0", "mixture-of-normals-0")
QUICK = [parameter for parameter in FAMILIES if parameter[0] not in SLOW]


@pytest.mark.parametrize("parameter", QUICK, ids=ids(QUICK))
def test_every_family_has_one(parameter):
    family = make(parameter)
    model = Mixture(x=events(family)[0], components=2, family=family).double()
    with torch.no_grad():
        model.h.mul_(0.5)
    x = model.sample(8, seed=0)
    result = mixture_bound(model, x, iterations=3)
    assert math.isfinite(result.value)
    assert model.log_prob(Batch(x)).mean().item() <= result.upper
    if family.measure == "counting" and not family.conditions:
        assert result.value <= 1e-9


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Pair.examples()[0], torch.zeros(3, 3), "model: 'pair' has no observation family"),
        (Mixture(x=(2,), family="bernoulli"), torch.full((3, 2), 0.5), "outside the support"),
        (Mixture(x=(2,)), torch.tensor([[0.0, torch.nan]]), "NaN, missing entries"),
        (Mixture(x=(2,)), torch.zeros(4, 3), "shape"),
        ("vae", torch.zeros(4, 3), "model: should be a model"),
        (
            ConditionalVAE(x=(2,), z=(1,), context=(1,), likelihood="normal"),
            Batch(torch.zeros(4, 2), context=torch.zeros(4, 1)),
            "no such bound given a context",
        ),
    ],
)
def test_what_has_no_bound_is_refused_in_a_sentence(model, x, message):
    with pytest.raises(ValueError, match=message):
        mixture_bound(model, x)


def test_settings_and_results_of_other_rows_are_refused():
    model, x = Mixture(x=(1,), components=2, family="fixed-normal"), line(10)
    with pytest.raises(ValueError, match=r"atoms: .*greater than"):
        mixture_bound(model, x, atoms=0)
    with pytest.raises(ValueError, match="the bound is of 10 rows, this of 3"):
        mixture_bound(model, x).left(log_likelihood(model, x[:3]))


def test_it_reads_as_a_sentence():
    x = torch.tensor([[0.0], [1.0], [1.0]])
    assert str(mixture_bound(mixture(x.double(), "bernoulli"), x)) == (
        "mean log p(x) <= -0.64 nats for any prior and decoder of bernoulli (proven, 3 rows); "
        "2 atoms reach -0.64"
    )
