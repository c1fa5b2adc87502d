"""Factor analysis, probabilistic PCA and mixtures of factor analysers, by exact answers."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pyro import poutine
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as Reference
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae import (
    VAE,
    Batch,
    Error,
    FactorAnalysis,
    Mixture,
    ProbabilisticPCA,
    Transformed,
    compare,
    fit,
    impute,
    latents,
    log_likelihood,
    reconstruct,
)
from pyrovae.distributions import JointNormal, LowRank
from pyrovae.families import LowRankNormal
from pyrovae.families.continuous import inverse_softplus
from pyrovae.inference import em
from pyrovae.objectives import ELBO

MODELS = [FactorAnalysis, ProbabilisticPCA]


def rows(load):
    return torch.tensor(load().data)


def standard(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


def sklearns(x, factors):
    """The mean log-likelihood that scikit-learn's factor analysis reaches, in raw units."""
    y = standard(x).numpy()
    reference = Reference(factors, svd_method="lapack", tol=1e-10, max_iter=20_000).fit(y)
    return reference.score(y) - x.std(0, correction=0).log().sum().item()


def random_model(member, d=5, factors=2):
    """A model with weights of no meaning, and rows that it could have generated."""
    model = member(x=(d,), factors=factors).double()
    model.start(Batch(3 * torch.randn(50, d).double() + 7))
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model, model.sample(30)


def holed(x, share=0.3):
    return torch.where(torch.rand(x.shape) < share, torch.nan, x)


def dense(model):
    """The mean and the covariance of p(x)."""
    p = model.family(model.h)
    w = p.covariance.factor
    return p.loc.detach(), (w @ w.mT + p.covariance.scale.square().diag()).detach()


def losses(model, x, epochs=200, **options):
    history = fit(model, x, epochs=epochs, tolerance=0, **options)
    return [epoch.loss for epoch in history.epochs]


def never_rises(values, slack=1e-10):
    return all(b <= a + slack for a, b in pairwise(values))


def planes(count=400, seed=3):
    """Rows near two planes through one point in five dimensions, and the exact density."""
    generator = torch.Generator().manual_seed(seed)
    w = 2 * torch.randn(2, 5, 2, generator=generator).double()
    covariance = w @ w.mT + 0.01 * torch.eye(5)
    parts = MultivariateNormal(torch.zeros(2, 5).double(), covariance)
    torch.manual_seed(seed)
    k = torch.rand(count) < 0.4
    x = parts.sample((count,))[torch.arange(count), k.long()]
    weights = torch.tensor([0.6, 0.4]).double().log()
    return x, (parts.log_prob(x[:, None]) + weights).logsumexp(-1)


class TestMixturesOfFactorAnalysers:
    @pytest.mark.parametrize("many", [(4,), (2, 3)])
    def test_densities_in_one_product_are_the_table(self, many):
        family = LowRankNormal(rank=2)
        family.setup((6,))
        batch = Batch(torch.randn(20, 6).double() * torch.logspace(-4, 4, 6).double() + 5)
        family.double().start(batch.x)
        h = family.marginal(batch) + torch.randn(*many, 4, 6).double() * family.unit
        found = family.densities(h)(family.prepare(batch))
        assert found.shape == (20, *many)
        assert torch.allclose(found, family.table(batch, h), rtol=1e-10, atol=1e-10)

    def test_the_e_step_expects_the_factors_of_the_exact_posterior(self):
        family = LowRankNormal(rank=2)
        family.setup((4,))
        h, x, r = (torch.randn(n).double() for n in ((3, 4, 4), (9, 4), (9, 3)))
        r = r.softmax(-1)
        found = family.double().expect(family.prepare(Batch(x)), r, h)
        for k in range(3):
            p = family(h[k])
            w, precision = p.covariance.factor, p.covariance.scale.square().reciprocal()
            covariance = torch.linalg.inv(torch.eye(2) + w.mT @ (precision[:, None] * w))
            z = (x - p.loc) * precision @ w @ covariance
            zz = z[:, :, None] * z[:, None, :] + covariance
            yz = x[:, :, None] * z[:, None, :]
            for s, each in zip(found, (torch.cat([x, x**2], 1), z, zz, yz), strict=True):
                assert torch.allclose(s[k], torch.einsum("i,i...->...", r[:, k], each))

    def test_rows_with_responsibility_two_are_two_rows(self):
        family = LowRankNormal(rank=2)
        family.setup((4,))
        h, x = torch.randn(1, 4, 4).double(), torch.randn(12, 4).double()
        twice = torch.where(torch.arange(12) < 5, 2.0, 1.0).double()[:, None]
        both = torch.cat([x, x[:5]])
        family.double().start(both)
        new = [
            family.improve(r.sum(0), family.expect(family.prepare(Batch(some)), r, h), h)
            for some, r in ((x, twice), (both, torch.ones(17, 1).double()))
        ]
        assert torch.allclose(*new)

    @pytest.mark.parametrize(
        ("load", "rank"), [(load_wine, 1), (load_wine, 2), (load_wine, 12), (load_iris, 3)]
    )
    def test_one_component_is_scikit_learns_factor_analysis(self, load, rank):
        x = rows(load)
        family = {"kind": "low-rank-normal", "rank": rank, "floor": 1e-5}
        model = Mixture(x=x.shape[1:], components=1, family=family)
        values = losses(model, x, 150, restarts=1)
        assert never_rises(values)
        assert -values[-1] == pytest.approx(sklearns(x, rank), abs=1e-6)

    def test_expanding_the_parameters_takes_longer_steps(self):
        w = torch.randn(8, 2).double()
        x = torch.randn(300, 2).double() @ w.mT + 0.05 * torch.randn(300, 8).double()
        y, w, psi, steps = standard(x), 0.1 * w, torch.ones(8).double(), 20
        model = Mixture(x=(8,), components=1, family="low-rank-normal").double()
        model.start(Batch(y))
        model.h.data[0, 1], model.h.data[0, 2:] = inverse_softplus(psi - 1e-3), w.mT
        values = [-epoch.loss for epoch in em(model, Batch(y), epochs=steps + 1, tolerance=0)]
        for _ in range(steps):  # EM without expansion
            g = torch.linalg.inv(torch.eye(2) + w.mT @ (w / psi[:, None]))
            z = y @ (w / psi[:, None]) @ g
            w = (y.mT @ z) @ torch.linalg.inv(z.mT @ z + len(y) * g)
            psi = (y.square() - y * (z @ w.mT)).mean(0)
        plain = JointNormal(torch.zeros(8), LowRank(w, psi.sqrt())).log_prob(y).mean().item()
        assert sklearns(y, 2) - values[-1] < 0.01 * (sklearns(y, 2) - plain)

    @pytest.mark.parametrize(("components", "rank"), [(2, 2), (4, 1), (3, 6)])
    def test_em_never_decreases(self, components, rank):
        family = {"kind": "low-rank-normal", "rank": rank, "floor": 0.02}
        model = Mixture(x=(5,), components=components, family=family)
        values = losses(model, planes()[0], 60, restarts=3)
        assert never_rises(values)
        assert values[-1] < values[0]

    def test_finds_planes_that_cross(self):
        x, log_prob = planes()
        model = Mixture(x=(5,), components=2, family="low-rank-normal")
        fit(model, x, restarts=5)
        assert log_prob.mean() < model.log_prob(Batch(x)).mean() < log_prob.mean() + 0.15
        whole = Mixture(x=(5,), components=2)
        fit(whole, x)
        assert model.bic(x) < whole.bic(x)

    def test_statistics_of_runs_side_by_side_are_those_of_each(self):
        batch = Batch(planes(50)[0])
        model = Mixture(x=(5,), components=3, family="low-rank-normal").double()
        wide = model.beside(2)
        wide.start(batch)
        together = wide.expect(batch)
        wide.maximize(together)
        for run in range(2):
            one = copy.deepcopy(model)
            one.start(batch)
            one.h.data, one.logits.data = wide.h[run].detach(), wide.logits[run].detach()
            assert torch.allclose(
                one.log_prob(batch).sum(), wide.expect(batch).log_prob[run], atol=1e-8
            )

    def test_statistics_add_up_and_online_em_comes_close(self):
        x, _ = planes()
        model = Mixture(x=(5,), components=2, family="low-rank-normal").double()
        model.start(Batch(x))
        whole, halves = model.expect(Batch(x)), [model.expect(Batch(x[i::2])) for i in range(2)]
        for a, b in zip(whole.t, (halves[0] + halves[1]).t, strict=True):
            assert torch.allclose(a, b)
        by_em, online = (Mixture(x=(5,), components=2, family="low-rank-normal") for _ in "ab")
        fit(by_em, x)
        fit(online, x, method="online-em", epochs=60, batch_size=100)
        assert log_likelihood(online, x).mean > log_likelihood(by_em, x).mean - 0.03

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("data", ["columns", "scales", "duplicates", "one value", "one row"])
    def test_degenerate_data_give_finite_densities(self, data, dtype):
        x = torch.randn(40, 5).double()
        x[:, 1], x[:, 2] = 3.0, x[:, 0]
        if data == "scales":
            x *= torch.tensor([1e8, 1.0, 1e-8, 1.0, 1e4])
        elif data == "duplicates":
            x = x[:4].repeat(10, 1)
        elif data != "columns":
            x = torch.ones(40, 5).double() if data == "one value" else x[:1]
        components = min(3, len(x))
        family = {"kind": "low-rank-normal", "rank": 3}
        model = Mixture(x=(5,), components=components, family=family)
        values = losses(model, x, 60, dtype=dtype)
        assert np.isfinite(log_likelihood(model, x).value).all()
        if dtype == "float64":  # densities of 1e6 for each of five entries that cancel
            assert never_rises(values, 1e-8)

    def test_rounding_leaves_a_covariance_of_equal_rows_positive(self):
        family = LowRankNormal(rank=3)
        family.setup((5,))
        h, x = torch.randn(200, 5, 5), torch.randn(1, 5).expand(15, 5)
        h[:, 1] = -10  # sigma is at its floor
        rows, r = family.prepare(Batch(x)), torch.ones(15, 200)
        assert family.improve(r.sum(0), family.expect(rows, r, h), h).isfinite().all()

    def test_em_never_decreases_where_the_floor_binds(self):
        x = torch.randn(60, 5).double()
        x[:, 1], x[:, 2] = 3.0, x[:, 0]
        family = {"kind": "low-rank-normal", "rank": 3, "floor": 0.05}
        model = Mixture(x=(5,), components=2, family=family)
        assert never_rises(losses(model, x))
        assert model.remarks() == ("2 of 2 components have a scale at its floor",)
        scale = model.family(model.h).covariance.scale / model.family.unit
        assert scale.min() >= 0.05

    @pytest.mark.parametrize(("rank", "freedom"), [(1, 15), (2, 19), (4, 20), (6, 20)])
    def test_freedom_is_at_most_that_of_a_full_covariance(self, rank, freedom):
        family = LowRankNormal(rank=rank)
        family.setup((5,))
        assert family.freedom == freedom

    def test_cost_is_linear_in_the_number_of_entries(self):
        x = torch.randn(10, 1000)
        model = Mixture(x=(1000,), components=3, family={"kind": "low-rank-normal", "rank": 4})
        with Largest() as largest:
            model.start(Batch(x))
            list(em(model, Batch(x), epochs=2))
        assert 0 < largest.numbers <= 100 * 1000


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.parametrize("member", MODELS)
class TestLinearModels:
    def test_log_p_is_that_of_the_dense_covariance(self, member):
        model, x = random_model(member)
        exact = MultivariateNormal(*dense(model)).log_prob(x)
        assert torch.allclose(model.log_prob(Batch(x)), exact, rtol=1e-10, atol=1e-10)
        assert log_likelihood(model, x).exact

    def test_log_p_of_an_incomplete_row_is_that_of_its_entries(self, member):
        model, x = random_model(member)
        x = holed(x)
        mean, covariance = dense(model)
        for row, found in zip(x, model.log_prob(Batch(x)), strict=True):
            there = ~row.isnan()
            if there.any():
                p = MultivariateNormal(mean[there], covariance[there][:, there])
                assert torch.allclose(p.log_prob(row[there]), found, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("incomplete", [False, True])
    def test_the_posterior_is_exact(self, member, incomplete):
        model, x = random_model(member)
        batch = Batch(holed(x) if incomplete else x)
        q, log_p = model.posterior(batch), model.log_prob(batch)
        with model.scope(), torch.no_grad():
            for z in 3 * torch.randn(4, len(x), 2).double():
                joint = poutine.trace(poutine.condition(model.model, {"z": z})).get_trace(batch)
                joint.compute_log_prob()
                log_joint = joint.nodes["z"]["log_prob"] + joint.nodes["x"]["log_prob"]
                assert torch.allclose(log_joint - q.log_prob(z), log_p, rtol=1e-10, atol=1e-10)

    def test_every_gradient_step_is_that_of_log_p(self, member):
        model, x = random_model(member)
        (-model.log_prob(Batch(x)).sum()).backward()
        exact = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        with model.scope():
            loss = ELBO().build(False).differentiable_loss(model.model, model.guide, Batch(x))
        loss.backward()
        for parameter, gradient in zip(model.parameters(), exact, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-8, atol=1e-8)

    def test_svi_reaches_the_likelihood_of_em(self, member):
        x = standard(rows(load_wine))
        by_em, by_svi = (member(x=(13,), factors=2) for _ in range(2))
        fit(by_em, x, epochs=500)
        fit(by_svi, x, method="svi", epochs=150, batch_size=178, learning_rate=0.03)
        a, b = (log_likelihood(model, x).mean for model in (by_em, by_svi))
        assert abs(a - b) < 0.01

    def test_freedom_is_the_rank_of_the_map_to_mean_and_covariance(self, member):
        for d, factors in ((6, 1), (6, 2), (6, 3), (4, 3)):
            model, _ = random_model(member, d, factors)
            values = [parameter.detach() for parameter in model.parameters()]

            def moments(*values, model=model):
                for (name, _), value in zip(list(model.named_parameters()), values, strict=True):
                    model._parameters[name] = value
                p = model.family(model.h)
                w = p.covariance.factor
                covariance = w @ w.mT + p.covariance.scale.square().diag()
                return torch.cat([p.loc, covariance.flatten()])

            jacobian = torch.autograd.functional.jacobian(moments, tuple(values))
            jacobian = torch.cat([block.reshape(len(block), -1) for block in jacobian], 1)
            assert torch.linalg.matrix_rank(jacobian, rtol=1e-9) == model.freedom

    def test_information_criteria(self, member):
        x = rows(load_iris)
        model = member(x=(4,), factors=1)
        fit(model, x)
        log_p = model.score_samples(x).sum()
        assert model.bic(x) == pytest.approx(model.freedom * math.log(150) - 2 * log_p)
        assert model.aic(x) == pytest.approx(2 * model.freedom - 2 * log_p)

    def test_latents_reconstructions_samples_and_imputations(self, member):
        model, x = random_model(member)
        mean, covariance = dense(model)
        q = model.posterior(Batch(x))
        z = latents(model, x, particles=4000)["z"]  # five errors: by chance once in 10^6 draws
        assert z.shape == (4000, 30, 2)
        sd = q.variance.sqrt()
        assert ((z.mean(0) - q.mean).abs() < 5 * sd / 4000**0.5).all()
        assert reconstruct(model, x, particles=3).shape == (3, 30, 5)
        draws = model.sample(20_000, seed=1)
        error = 5 * covariance.diagonal().sqrt() / 20_000**0.5
        assert ((draws.mean(0) - mean).abs() < error).all()
        one = x[:1].clone()
        one[0, 3] = torch.nan
        there = [0, 1, 2, 4]
        gain = covariance[3, there] @ torch.linalg.inv(covariance[there][:, there])
        expected = mean[3] + gain @ (x[0, there] - mean[there])
        sd = (covariance[3, 3] - gain @ covariance[there, 3]).sqrt()
        found = impute(model, one, draws=4000).mean[0, 3]
        assert abs(found - expected) < 5 * sd / 4000**0.5

    def test_behind_a_transform_the_density_is_of_the_raw_rows(self, member):
        x = rows(load_wine)
        inside = Transformed(base=member(x=(13,), factors=2), transform="standardize")
        fit(inside, x)
        y = member(x=(13,), factors=2)
        fit(y, standard(x))
        jacobian = -x.std(0, correction=0).log().sum().item()
        expected = log_likelihood(y, standard(x)).mean + jacobian
        assert log_likelihood(inside, x).mean == pytest.approx(expected, abs=1e-6)
        assert np.isfinite(inside.score_samples(holed(x))).all()

    @pytest.mark.parametrize("data", ["columns", "scales", "duplicates", "one value", "one row"])
    def test_degenerate_data_give_finite_densities(self, member, data):
        x = torch.randn(40, 5).double()
        x[:, 1], x[:, 2] = 3.0, x[:, 0]
        if data == "scales":
            x *= torch.tensor([1e8, 1.0, 1e-8, 1.0, 1e4])
        elif data == "duplicates":
            x = x[:2].repeat(10, 1)
        elif data != "columns":
            x = torch.ones(40, 5).double() if data == "one value" else x[:1]
        model = member(x=(5,), factors=3)
        assert never_rises(losses(model, x, 40), 1e-8)
        assert np.isfinite(log_likelihood(model, x).value).all()
        if data == "one value":
            assert model.remarks() == ("the noise of 5 of 5 entries is at its floor",)

    def test_fields_and_rows_are_checked(self, member):
        with pytest.raises(Error, match="factors: should be fewer than the 4 entries of a row"):
            member(x=(4,), factors=4)
        with pytest.raises(Error, match=r"x: .* takes vectors as rows, got \(2, 2\)"):
            member(x=(2, 2), factors=1)
        x = torch.randn(20, 4)
        x[3, 1] = torch.nan
        with pytest.raises(Error, match="EM takes complete rows: use method = 'svi'"):
            fit(member(x=(4,), factors=1), x)
        history = fit(member(x=(4,), factors=1), x, method="svi", epochs=20, learning_rate=0.02)
        assert history.epochs[-1].loss < history.epochs[0].loss


class TestFactorAnalysis:
    @pytest.mark.parametrize(("load", "factors"), [(load_wine, 2), (load_iris, 3)])
    def test_is_scikit_learns(self, load, factors):
        x = rows(load)
        model = FactorAnalysis(x=x.shape[1:], factors=factors)
        assert never_rises(losses(model, x))
        assert log_likelihood(model, x).mean == pytest.approx(sklearns(x, factors), abs=1e-6)

    def test_does_not_depend_on_the_units_of_the_columns(self):
        x = rows(load_wine)
        a, b = (FactorAnalysis(x=(13,), factors=2) for _ in range(2))
        fit(a, x)
        fit(b, 1000 * x)
        expected = log_likelihood(a, x).mean - 13 * math.log(1000)
        assert log_likelihood(b, 1000 * x).mean == pytest.approx(expected, abs=1e-8)

    def test_restarts_find_a_higher_maximum(self):
        x = rows(load_breast_cancer)
        reached = []
        for restarts in (1, 5):
            model = FactorAnalysis(x=(30,), factors=3)
            fit(model, x, restarts=restarts)
            reached.append(log_likelihood(model, x).mean)
        assert reached[1] > reached[0] + 0.5

    def test_is_the_mixture_of_one(self):
        x = rows(load_wine)
        model = FactorAnalysis(x=(13,), factors=2)
        mixture = Mixture(x=(13,), components=1, family={"kind": "low-rank-normal", "rank": 2})
        fit(model, x, epochs=300, tolerance=1e-9)
        fit(mixture, x, epochs=300, tolerance=1e-9)
        assert model.freedom == mixture.freedom
        table = compare({"factor analysis": model, "mixture": mixture}, x)
        assert "exact" in str(table)
        assert np.allclose(model.score_samples(x), mixture.score_samples(x), atol=1e-3)


class TestProbabilisticPCA:
    @pytest.mark.parametrize("factors", [1, 2, 5])
    def test_one_iteration_is_the_maximum(self, factors):
        x = standard(rows(load_wine))
        model = ProbabilisticPCA(x=(13,), factors=factors)
        fit(model, x, epochs=1)
        values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
        noise = values[:-factors].mean()
        top, directions = values[-factors:], vectors[:, -factors:]
        w = model.family(model.h).covariance.factor
        assert torch.allclose(w @ w.mT, directions * (top - noise) @ directions.mT)
        log_det = top.log().sum() + (13 - factors) * noise.log()
        expected = -0.5 * (13 * math.log(2 * math.pi) + log_det + 13)
        assert log_likelihood(model, x).mean == pytest.approx(expected.item(), abs=1e-8)
        pca = PCA(factors, svd_solver="full").fit(x.numpy())
        ratio = (len(x) - 1) / len(x)  # of the two estimates of a variance
        scale = model.family(model.h).covariance.scale
        assert torch.allclose(scale.square(), scale.new_tensor(ratio * pca.noise_variance_))

    def test_the_density_is_scikit_learns(self):
        x = rows(load_wine)
        model = ProbabilisticPCA(x=(13,), factors=3)
        fit(model, x)
        pca = PCA(3, svd_solver="full").fit(x.numpy())
        n = len(x)
        shrunk = x.mean(0) + (x - x.mean(0)) * math.sqrt((n - 1) / n)
        jacobian = 13 * 0.5 * math.log((n - 1) / n)
        found = model.log_prob(Batch(shrunk)) + jacobian
        assert np.allclose(found.detach(), pca.score_samples(x.numpy()), atol=1e-8)

    def test_where_the_floor_binds_it_is_the_maximum_under_it(self):
        x = torch.randn(50, 2).double() @ torch.randn(2, 5).double()
        model = ProbabilisticPCA(x=(5,), factors=2, floor=0.05)
        fit(model, x)
        assert model.remarks() == ("the noise of 5 of 5 entries is at its floor",)
        best = model.log_prob(Batch(x)).mean().item()
        for _ in range(20):
            other = copy.deepcopy(model)
            other.raw.data += 0.1 * torch.rand(()).double()
            other.factor.data += 0.01 * torch.randn_like(other.factor)
            assert other.log_prob(Batch(x)).mean().item() < best

    def test_statistics_add_up_over_rows(self):
        x = rows(load_iris)
        a, b = (ProbabilisticPCA(x=(4,), factors=2).double() for _ in range(2))
        for model in (a, b):
            model.start(Batch(x))
        a.maximize(a.expect(Batch(x)))
        b.maximize(b.expect(Batch(x[:40])) + b.expect(Batch(x[40:])))
        assert torch.allclose(a.log_prob(Batch(x)), b.log_prob(Batch(x)))


@pytest.mark.parametrize("posterior", ["multivariate-normal", "normal"])
def test_a_linear_vae_by_svi_is_factor_analysis_by_maximum_likelihood(posterior):
    torch.manual_seed(1)
    loadings, scale = torch.randn(6, 2), torch.linspace(0.5, 1, 6)
    x = standard((torch.randn(300, 2) @ loadings.mT + scale * torch.randn(300, 6)).double())
    exact = FactorAnalysis(x=(6,), factors=2)
    fit(exact, x, epochs=500)
    best = log_likelihood(exact, x).mean
    vae = VAE(
        x=(6,),
        z=(2,),
        encoder="linear",
        decoder="linear",
        likelihood="shared-normal",
        posterior=posterior,
    ).double()
    for rate, epochs in ((0.05, 80), (0.01, 40)):
        start = rate == 0.05
        history = fit(vae, x, epochs=epochs, batch_size=100, learning_rate=rate, start=start)
    w, b = vae.decoder.output.weight, vae.decoder.output.bias
    sigma = vae.likelihood(b).base_dist.scale
    reached = JointNormal(b, LowRank(w, sigma)).log_prob(x).mean().item()
    assert best - 0.02 < reached < best + 1e-6  # in none of 40 seeds did it miss by more
    assert abs(-history.epochs[-1].loss - best) < 0.1  # and its guide is the posterior
    if posterior == "normal":  # which is diagonal only for one rotation of z
        g = (w / sigma[:, None]).mT @ (w / sigma[:, None])
        assert g[0, 1].abs() < 0.2 * (g[0, 0] * g[1, 1]).sqrt()
