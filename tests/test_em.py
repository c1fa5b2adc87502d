"""Laws of EM that every family obeys which it can fit; a new member is tested by existing."""

import functools
import statistics
from itertools import pairwise

import pyro
import pytest
import torch
from members import FAMILIES, events, ids, make
from sklearn.metrics import adjusted_rand_score
from torch.utils import _pytree as pytree

from pyrovae import Batch, Mixture, fit
from pyrovae.families import Binomial, Multinomial, NegativeBinomial, Poisson, StudentT
from pyrovae.families.mixing import concentration
from pyrovae.inference import em, online_em

REFUSED = {
    "flow": "the weights of its networks",
    "mixture-of-normals": "offsets, which its shifts could take up",
    "ordered-logistic": "cut points",
}
"""Families that have parameters shared by all components, and no M-step for these."""
FITTED = [p for p in FAMILIES if p[1].kind not in REFUSED]
STEEP = {"laplace-0": 0.05, "discretized-logistic-mixture-0": 0.2}
"""Where the gradient jumps over 0 at each of the rows, or parameters are all but redundant."""
RUNS = 2


def assembled(parameter):
    family = make(parameter)
    family.setup(events(family)[0])
    if "total" in family.conditions:
        family.start(torch.full((1, *family.event), 30 / family.event.numel()))
    return family.double()


def drawn(parameter, rows=200):
    """Rows of two components, and the mean log p(x) of these."""
    family = assembled(parameter)
    h = 1.5 * torch.randn(2, *family.params).double()
    with torch.no_grad():
        batch = Batch(family(h[(torch.rand(rows) < 0.4).long()]).sample())
        joint = family.table(batch, h) + torch.tensor([0.6, 0.4]).double().log()
    return batch, joint.logsumexp(-1).mean().item()


def mixture(parameter, components=2):
    family = make(parameter)
    return Mixture(x=events(family)[0], components=components, family=family).double()


def started(parameter, batch):
    """A mixture, and several that EM fits side by side, at their starts."""
    model = mixture(parameter)
    runs = model.beside(RUNS)
    runs.start(batch)
    return model, runs


@functools.cache
def fitted(parameter):
    """A fit: the model, its rows, what it has to reach, and the losses at first and to the end."""
    with torch.random.fork_rng():
        pyro.set_rng_seed(1)
        batch, reach = drawn(parameter)
        model, runs = started(parameter, batch)
        first = [epoch.loss for epoch in em(model, batch, epochs=25, tolerance=0, runs=runs)]
        last = [epoch.loss for epoch in em(model, batch, epochs=80, tolerance=1e-8)]
    return model, batch, reach, first, last


def test_families_with_shared_parameters_say_why_em_cannot_fit_them():
    found = {p[1].kind for p in FAMILIES if not assembled(p).fits_by_em}
    assert found == set(REFUSED)
    for parameter in FAMILIES:
        if parameter[1].kind in REFUSED:
            with pytest.raises(ValueError, match="no M-step for them: fit the mixture with"):
                mixture(parameter).expect(Batch(torch.zeros(4, *events(make(parameter))[0])))


@pytest.mark.parametrize("parameter", FITTED, ids=ids(FITTED))
class TestFamilies:
    def test_the_densities_of_the_e_step_are_those_of_the_family(self, parameter):
        family = assembled(parameter)
        x = family(torch.randn(5, *family.params).double()).sample()
        batch = Batch(x)
        for many in ((2,), (2, 3)):
            h = torch.randn(*many, *family.params).double()
            with torch.no_grad():
                found = family.densities(h)(family.prepare(batch))
                assert found.shape == (5, *many)
                assert torch.allclose(found, family.table(batch, h), rtol=1e-11, atol=1e-11)
                one_by_one = [
                    family.given(own, batch).log_prob(x) for own in h.flatten(0, len(many) - 1)
                ]
            own = torch.stack(one_by_one, -1).view_as(found)
            assert torch.allclose(found, own, rtol=1e-11, atol=1e-11)

    def test_never_decreases(self, parameter):
        _, _, _, first, last = fitted(parameter)
        assert len(first) == 25
        for losses in (first, last):
            assert all(b <= a + 1e-10 for a, b in pairwise(losses))

    def test_reaches_the_likelihood_of_what_made_the_data(self, parameter):
        _, _, reach, _, last = fitted(parameter)
        assert -last[-1] > reach - 0.01

    def test_ends_where_the_gradient_is_zero(self, parameter):
        model, batch, *_ = fitted(parameter)
        model.zero_grad()
        model.log_prob(batch).mean().backward()
        assert not model.family.at_floor(model.h).any()
        for entry in model.parameters():
            assert entry.grad.abs().max() < STEEP.get(parameter[0], 5e-3)

    def test_runs_side_by_side_are_the_same_as_one_after_another(self, parameter):
        batch, _ = drawn(parameter, 100)
        model, runs = started(parameter, batch)
        alone = []
        for run in range(RUNS):
            model.choose(runs, run)
            list(em(model, batch, epochs=4, tolerance=0))
            alone.append({name: entry.clone() for name, entry in model.named_parameters()})
        list(em(model, batch, epochs=4, tolerance=0, runs=runs))
        for name, entry in runs.named_parameters():
            own = torch.stack([state[name] for state in alone]).view_as(entry)
            assert torch.allclose(entry, own, rtol=1e-9, atol=1e-9), name

    def test_statistics_add_up_over_rows(self, parameter):
        batch, _ = drawn(parameter, 60)
        model, runs = started(parameter, batch)
        for some in (model, runs):
            parts = some.expect(batch[:13]) + some.expect(batch[13:])
            whole = some.expect(batch)
            for a, b in zip(*map(sums, (parts, whole)), strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)

    def test_an_empty_component_changes_nothing(self, parameter):
        batch, _ = drawn(parameter, 60)
        few, more = mixture(parameter, 2), mixture(parameter, 3)
        few.start(batch)
        more.family.load_state_dict(few.family.state_dict())
        with torch.no_grad():
            more.h.copy_(torch.cat([few.h, few.h[:1]]))
            more.logits.copy_(torch.cat([few.logits, torch.tensor([-1e4])]))
        for _ in range(2):
            for model in (few, more):
                model.maximize(model.expect(batch))
        assert all(entry.isfinite().all() for entry in more.parameters())
        if not few.exact_m_step:
            return
        assert torch.allclose(more.h[:2], few.h, rtol=1e-4, atol=1e-4)
        for a, b in zip(few.family.parameters(), more.family.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)

    def test_online_em_comes_close(self, parameter):
        best, batch, *_ = fitted(parameter)
        wanted, apart = best.log_prob(batch).mean().item(), []
        for _ in range(3 if parameter[0] in STEEP else 1):  # the order of rows matters to these
            online = mixture(parameter)
            online.load_state_dict(best.state_dict())
            list(online_em(online, batch, epochs=10, batch_size=50))
            apart.append(abs(online.log_prob(batch).mean().item() - wanted))
        assert statistics.median(apart) < (0.05 if parameter[0] in STEEP else 0.005)

    def test_freedom_is_how_many_ways_the_density_can_change(self, parameter):
        family = assembled(parameter)
        h = 0.5 * torch.randn(family.params).double()
        x, own = family(h).sample((300,)), h.expand(300, *h.shape).clone().requires_grad_()
        family.given(own, Batch(x)).log_prob(x).sum().backward()
        values = torch.linalg.svdvals(own.grad.flatten(1))
        assert (values > 1e-13 * values[0]).sum() == family.freedom


def sums(statistics):
    return pytree.tree_leaves((statistics.n, statistics.t, statistics.log_prob))


def climbed(model, batch):
    """The model where a quasi-Newton method ends that starts at its parameters."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -model.log_prob(batch).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return model


def cells(rows=250, theta=(3.0, 6.0, 1.5), dropout=0.0):
    """Overdispersed counts of two types of cells, their size factors and their types."""
    k = (torch.rand(rows) < 0.4).long()
    mean = torch.tensor([[2.0, 8.0, 1.0], [9.0, 2.0, 1.0]]).double()[k]
    size = torch.rand(rows).double() * 3 + 0.3
    theta = torch.tensor(theta).double()
    w = torch.distributions.Gamma(theta, theta).sample((rows,))
    x = torch.poisson(size[:, None] * mean * w)
    return Batch(x * (torch.rand_like(x) >= dropout), offset=size), k


@pytest.mark.parametrize("exposure", ["offset", "total"])
@pytest.mark.parametrize(
    "family",
    [
        {"kind": "poisson"},
        {"kind": "negative-binomial"},
        {"kind": "negative-binomial", "dispersion": "network"},
        {"kind": "zero-inflated-poisson"},
        {"kind": "zero-inflated-negative-binomial"},
    ],
    ids=lambda family: "-".join(family.values()),
)
def test_counts_with_size_factors_reach_the_maximum(family, exposure):
    dropout = 0.3 if "zero" in family["kind"] else 0.0
    batch, _ = cells(dropout=dropout)
    if exposure == "total":  # given totals counts vary less: theta can come to its limit
        batch, _ = cells(theta=(0.6, 1.0, 0.5), dropout=dropout)
        batch = Batch(batch.x[batch.x.sum(-1) > 0])
    model = Mixture(x=(3,), components=2, family=family | {"exposure": exposure}).double()
    model.start(batch)
    losses = [epoch.loss for epoch in em(model, batch, epochs=250, tolerance=0)]
    assert all(b <= a + 1e-10 for a, b in pairwise(losses))
    found = model.log_prob(batch).mean().item()
    with torch.no_grad():
        own = model.family.densities(model.h)(model.family.prepare(batch))
        assert torch.allclose(own, model.family.table(batch, model.h), rtol=1e-11, atol=1e-11)
    more = climbed(model, batch).log_prob(batch).mean().item() - found
    assert more < (2e-3 if exposure == "total" else 5e-5)


def test_size_factors_part_what_sizes_blur():
    batch, k = cells(1000)
    agree = []
    for exposure, rows in (("offset", batch), ("none", Batch(batch.x))):
        model = Mixture(x=(3,), components=2, family=NegativeBinomial(exposure=exposure))
        fit(model, rows)
        agree.append(adjusted_rand_score(k, model.predict(rows)))
    assert agree[0] > agree[1] + 0.1


@pytest.mark.parametrize("family", [Poisson(), Binomial(total=9999), Multinomial()])
def test_large_counts_keep_their_digits_in_float32(family):
    h = torch.randn(4, 300).double()
    family.setup((300,))
    family.start(torch.full((1, 300), 1e3))
    x = family.double()(h + (7.0 if family.kind == "poisson" else 0.0)).sample()
    exact = family.table(Batch(x), h)
    h, batch = h.float(), Batch(x.float())
    found, table = family.float().densities(h)(family.prepare(batch)), family.table(batch, h)
    error, least = ((each - exact).abs().max() for each in (found, table))
    assert error <= 2 * least


def test_a_t_mixture_reaches_the_maximum():
    x = torch.distributions.StudentT(2.5).sample((300, 2)).double()
    x[:120] = 0.5 * x[:120] + torch.tensor([6.0, -4.0])
    model = Mixture(x=(2,), components=2, family=StudentT(least=0.5)).double()
    model.start(Batch(x))
    losses = [epoch.loss for epoch in em(model, Batch(x), epochs=200, tolerance=0)]
    assert all(b <= a + 1e-10 for a, b in pairwise(losses))
    found, nu = model.log_prob(Batch(x)).mean().item(), model.family.nu.clone()
    climbed(model, Batch(x))
    assert model.log_prob(Batch(x)).mean().item() - found < 1e-9
    assert torch.allclose(nu, model.family.nu, rtol=1e-3)
    assert (nu < 5).all()


@pytest.mark.parametrize(
    ("family", "data"),
    [
        ({"kind": "student-t"}, "uniform"),
        ({"kind": "student-t", "least": 3.0, "floor": 0.2}, "cauchy"),
        ({"kind": "student-t", "floor": 0.1}, "grid"),
        ({"kind": "negative-binomial"}, "poisson"),
        ({"kind": "negative-binomial"}, "zeros"),
        ({"kind": "negative-binomial", "floor": 0.3}, "sparse"),
        ({"kind": "zero-inflated-poisson"}, "zeros"),
        ({"kind": "zero-inflated-negative-binomial"}, "zeros"),
        ({"kind": "zero-inflated-negative-binomial", "dispersion": "network"}, "poisson"),
        ({"kind": "zero-inflated-poisson", "floor": 0.3}, "sparse"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_em_never_decreases_where_a_limit_binds(family, data):
    x = {
        "uniform": torch.rand(300, 2),
        "cauchy": torch.distributions.Cauchy(0.0, 1.0).sample((300, 2)),
        "grid": torch.randint(0, 3, (300, 2)).float(),
        "poisson": torch.poisson(torch.full((300, 2), 3.0)),
        "zeros": torch.poisson(torch.tensor([2.0, 0.0]).expand(300, 2)),
        "sparse": torch.poisson(torch.full((300, 2), 0.1)),
    }[data].double()
    size = {"exposure": "offset"} if data in ("poisson", "sparse") else {}
    batch = Batch(x, offset=torch.rand(300).double() + 0.5) if size else Batch(x)
    model = Mixture(x=(2,), components=3, family=family | size).double()
    model.start(batch)
    losses = [epoch.loss for epoch in em(model, batch, epochs=100, tolerance=0)]
    assert all(b <= a + 1e-10 for a, b in pairwise(losses))
    assert all(entry.isfinite().all() for entry in model.parameters())


def test_normal_data_make_a_t_as_good_as_normal():
    x = torch.randn(500, 1).double()
    t, normal = (Mixture(x=(1,), components=1, family=kind) for kind in ("student-t", "normal"))
    for model in (t, normal):
        fit(model, x, epochs=500)
    assert t.log_prob(Batch(x)).mean() > normal.log_prob(Batch(x)).mean() - 1e-3


@pytest.mark.parametrize("k", [1e-3, 0.1, 1.0, 30.0, 1e3])
def test_the_concentration_solves_its_equation(k):
    k = torch.tensor(k).double()
    assert concentration(k.log() - k.digamma()).item() == pytest.approx(k.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("beta", 0.3),
        ("gamma", 2.0),
        ("laplace", -1.0),
        ("log-normal", 2.0),
        ("logit-normal", 0.3),
        ("normal", -1.0),
        ("student-t", -1.0),
        ("von-mises", 3.0),
    ],
)
def test_a_scale_at_its_floor_is_reported(kind, value):
    x = torch.stack([torch.full((50,), value), torch.linspace(0.1, 0.9, 50)], -1).double()
    model = Mixture(x=(2,), components=1, family=kind)
    fit(model, x)
    assert model.family.at_floor(model.h).tolist() == [True]
    fit(model, x[:, 1:].expand(-1, 2))
    assert model.family.at_floor(model.h).tolist() == [False]


def separated(kind, rows=300):
    """Rows of two clusters, drawn without the family, and the cluster of each row."""
    k = (torch.rand(rows) < 0.4).long()
    first, second = torch.tensor([[1.0, 4.0], [4.0, 1.0]]).double()[k].unbind(-1)
    noise = torch.distributions
    draw = {
        "student-t": lambda m: 3 * m + noise.StudentT(2.5).sample((rows,)),
        "laplace": lambda m: 1e3 * m + noise.Laplace(0.0, 300.0).sample((rows,)),
        "gamma": lambda m: noise.Gamma(6.0, 6.0 / m).sample(),
        "beta": lambda m: noise.Beta(4.0 * m, 4.0 * (5 - m)).sample(),
        "von-mises": lambda m: noise.VonMises(m, 8.0 + 0 * m).sample(),
        "poisson": lambda m: torch.poisson(4 * m),
        "negative-binomial": lambda m: torch.poisson(noise.Gamma(5.0, 5.0 / (8 * m)).sample()),
        "zero-inflated-poisson": lambda m: torch.poisson(6 * m) * (torch.rand(rows) < 0.7),
    }[kind]
    return torch.stack([draw(m) for m in (first, second, first, second)], -1).double(), k


@pytest.mark.parametrize(
    "kind",
    [
        "beta",
        "gamma",
        "laplace",
        "negative-binomial",
        "poisson",
        "student-t",
        "von-mises",
        "zero-inflated-poisson",
    ],
)
def test_finds_clusters(kind):
    x, k = separated(kind)
    model = Mixture(x=(4,), components=2, family=kind)
    fit(model, x)
    assert adjusted_rand_score(k, model.predict(x)) > 0.9
