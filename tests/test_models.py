"""Conditional, semi-supervised and hierarchical VAEs and missing entries, by exact answers."""

from copy import deepcopy

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO
from scipy.stats import norm

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Error,
    HierarchicalVAE,
    SemiSupervisedVAE,
    Stochastic,
    fit,
    impute,
    load,
    log_likelihood,
    log_weights,
)
from pyrovae.families import FixedNormal, MultivariateNormal, SharedNormal
from pyrovae.models import Transformed
from pyrovae.networks import MLP
from pyrovae.transforms import Standardize

LINEAR = MLP(hidden=())


def linear():
    return deepcopy(LINEAR)


def conditional():
    """x | c ~ N(V c + b, W W' + s^2 I), and the rows' exact density."""
    vae = ConditionalVAE(
        x=(4,),
        z=(2,),
        context=(3,),
        likelihood=FixedNormal(scale=0.6),
        posterior=MultivariateNormal(),
        encoder=MLP(hidden=(16,)),
        decoder=linear(),
    ).double()
    context = torch.randn(30, 3).double()
    weight, bias = vae.decoder.output.weight.detach(), vae.decoder.output.bias.detach()
    w, v = weight[:, :2], weight[:, 2:]
    covariance = w @ w.mT + 0.36 * torch.eye(4)
    exact = dist.MultivariateNormal(context @ v.mT + bias, covariance)
    return vae, Batch(exact.sample(), context=context), exact


def within(estimate, exact, errors=4):
    """All rows but one in fifty agree to a few Monte-Carlo errors."""
    off = (torch.tensor(estimate.value) - exact).abs() > errors * torch.tensor(estimate.mcse)
    return off.float().mean() <= 0.02


def test_a_linear_conditional_vae_gives_the_exact_density_given_the_context():
    vae, batch, exact = conditional()
    fit(vae, batch, epochs=150, learning_rate=0.01, start=False)
    w = vae.decoder.output.weight.detach()
    mean = batch.context @ w[:, 2:].mT + vae.decoder.output.bias.detach()
    covariance = w[:, :2] @ w[:, :2].mT + 0.36 * torch.eye(4)
    exact = dist.MultivariateNormal(mean, covariance).log_prob(batch.x)
    assert within(log_likelihood(vae, batch, particles=2000), exact)


def test_the_context_moves_the_rows():
    vae, _, _ = conditional()
    context = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]]).double()
    w = vae.decoder.output.weight[:, 2:]
    rows = torch.cat([context[:1].expand(500, 3), context[1:].expand(500, 3)])
    x = vae.sample(1000, seed=0, context=rows)
    difference = x[:500].mean(0) - x[500:].mean(0)
    assert torch.allclose(difference, 10 * w[:, 0].detach(), atol=0.4)
    assert vae.sample(7, context=context[:1]).shape == (7, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the model 'conditional-vae' needs a context for each row"),
        ({"context": torch.zeros(20, 2)}, r"should have the shape \(20, 3\), got \(20, 2\)"),
        ({"context": torch.zeros(19, 3)}, r"should have the shape \(20, 3\), got \(19, 3\)"),
        ({"context": torch.full((20, 3), torch.nan)}, "the context holds NaN"),
    ],
)
def test_a_context_of_the_wrong_shape_is_refused(given, message):
    vae, _, _ = conditional()
    with pytest.raises(Error, match=message):
        fit(vae, Batch(torch.zeros(20, 4).double(), **given))


def test_a_model_that_ignores_the_context_refuses_it():
    with pytest.raises(Error, match="a context, which the model 'vae' ignores"):
        fit(VAE(x=(4,), z=(2,)), Batch(torch.zeros(20, 4), context=torch.zeros(20, 3)))
    with pytest.raises(Error, match="needs a context for each row"):
        conditional()[0].sample(3)


def test_the_context_stands_beside_images_as_channels():
    vae = ConditionalVAE(x=(1, 4, 4), z=(2,), context=(3,), encoder=MLP(), decoder=MLP())
    seen = vae.see(Batch(torch.zeros(2, 1, 4, 4), context=torch.eye(3)[:2]))
    assert seen.shape == (2, 4, 4, 4)
    assert (seen[0, 1] == 1).all()
    assert (seen[0, 2:] == 0).all()


def semisupervised():
    vae = SemiSupervisedVAE(
        x=(4,),
        z=(2,),
        classes=3,
        likelihood=FixedNormal(scale=0.6),
        encoder=MLP(hidden=(16,)),
        decoder=linear(),
    ).double()
    vae.logits.data = torch.tensor([0.1, -0.7, 0.4]).double()
    vae.decoder.output.weight.data *= 2
    return vae, Batch(vae.sample(24, seed=1), labels=torch.arange(24) % 4 - 1)


def test_unlabelled_rows_are_summed_over_and_labelled_ones_are_not():
    """Against the sum over classes written out, with the same draws of z."""
    vae, batch = semisupervised()
    x, n = batch.x, len(batch)
    eps = torch.randn(3, n, 2).double()
    q_y = vae.classifier(x).log_softmax(-1)
    terms = []
    for k in range(3):
        y = torch.eye(3).double()[k].expand(n, 3)
        q = vae.q(torch.cat([x, y], -1))
        z = q.base_dist.loc + q.base_dist.scale * eps[k]
        p = vae.p(z, y, batch).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        terms.append(p - q.log_prob(z) + vae.logits.log_softmax(-1)[k])
    bound = torch.stack(terms, -1)
    labels = batch.labels.clamp(min=0)[:, None]
    labelled = bound.gather(1, labels)[:, 0] + vae.alpha * q_y.gather(1, labels)[:, 0]
    unlabelled = (q_y.exp() * (bound - q_y)).sum(-1)
    expected = torch.where(batch.labels >= 0, labelled, unlabelled).sum()

    draws = iter([eps])
    fixed = pytest.MonkeyPatch()
    fixed.setattr(
        torch.distributions.Normal,
        "rsample",
        lambda self, shape=(): self.loc + self.scale * next(draws),
    )
    try:
        with vae.scope():
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            loss = elbo.differentiable_loss(vae.model, vae.guide, batch)
    finally:
        fixed.undo()
    assert torch.allclose(-loss, expected, rtol=1e-10)


def test_evaluation_of_a_semi_supervised_vae_is_of_log_p_x_and_reads_no_labels():
    vae, batch = semisupervised()
    fit(vae, batch, epochs=200, learning_rate=0.01, start=False)
    weight, bias = vae.decoder.output.weight.detach(), vae.decoder.output.bias.detach()
    covariance = weight[:, :2] @ weight[:, :2].mT + 0.36 * torch.eye(4)
    classes = dist.MultivariateNormal(weight[:, 2:].mT + bias, covariance)
    exact = dist.MixtureSameFamily(dist.Categorical(logits=vae.logits.detach()), classes)
    with_labels = log_likelihood(vae, batch, particles=4000)
    assert within(with_labels, exact.log_prob(batch.x))
    rows = (batch, Batch(batch.x))
    with_labels, without = (log_likelihood(vae, some, particles=400) for some in rows)
    assert (with_labels.value == without.value).all()


def test_labels_teach_the_classifier():
    data = load("iris", transforms=["standardize"], seed=1)
    x = torch.cat([data.train.x, data.validation.x])
    truth = (x[:, 2] > x[:, 2].mean()).long()
    labels = truth.clone()
    labels[20:] = -1
    vae = SemiSupervisedVAE(x=(4,), z=(2,), classes=2, likelihood=SharedNormal())
    fit(vae, Batch((x - x.mean(0)) / x.std(0), labels=labels), epochs=100, learning_rate=0.01)
    assert (vae.predict((x - x.mean(0)) / x.std(0)) == truth).float().mean() > 0.9
    assert torch.allclose(vae.predict_proba(x).sum(-1), torch.ones(len(x)))


@pytest.mark.parametrize("label", [-2, 3])
def test_labels_outside_the_classes_are_refused(label):
    vae, batch = semisupervised()
    labels = batch.labels.clone()
    labels[5] = label
    with pytest.raises(
        Error, match=rf"labels are whole numbers from 0 to 2, or -1 .*, got {label}"
    ):
        fit(vae, batch.replace(labels=labels))


def test_a_linear_hierarchy_gives_the_exact_density():
    def layer():
        return Stochastic(
            z=(3,), family=FixedNormal(scale=0.5), network=linear(), encoder=MLP(hidden=(16,))
        )

    vae = HierarchicalVAE(
        x=(4,),
        z=(2,),
        layers=(layer(), layer()),
        likelihood=FixedNormal(scale=0.6),
        decoder=linear(),
        encoder=MLP(hidden=(16,)),
    ).double()
    x = vae.sample(60, seed=2)
    fit(vae, x, epochs=150, learning_rate=0.01, start=False)
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    for network, scale in [(part.network, 0.5) for part in vae.layers] + [(vae.decoder, 0.6)]:
        w, b = network.output.weight.detach(), network.output.bias.detach()
        mean, covariance = w @ mean + b, w @ covariance @ w.mT + scale**2 * torch.eye(len(b))
    exact = dist.MultivariateNormal(mean, covariance).log_prob(x)
    assert within(log_likelihood(vae, x, particles=4000), exact)
    with vae.scope():
        sites = pyro.poutine.trace(vae.guide).get_trace(Batch(x)).stochastic_nodes
    assert {"z1", "z2", "z3"} <= set(sites)


def test_the_layers_of_a_hierarchy_are_checked():
    with pytest.raises(Error, match="layers: a hierarchy has at least one layer"):
        HierarchicalVAE(x=(4,), z=(2,), layers=())
    with pytest.raises(Error, match=r"layers\.0\.posterior: bernoulli cannot be the guide"):
        HierarchicalVAE(x=(4,), z=(2,), layers=[Stochastic(z=(2,), posterior="bernoulli")])
    with pytest.raises(Error, match=r"layers\.0\.family: unknown family 'norml'"):
        HierarchicalVAE(
            x=(4,), z=(2,), layers=[{"kind": "stochastic", "z": [2], "family": "norml"}]
        )


def holed(x, share=0.3, seed=0):
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(holes, torch.nan, x)


def linear_with_holes(wrapped=False):
    """A linear VAE of incomplete rows, and its exact mean and covariance."""
    vae = VAE(
        x=(5,),
        z=(2,),
        likelihood=FixedNormal(scale=0.5),
        encoder=MLP(hidden=(32,)),
        decoder=linear(),
        missing=True,
    )
    w, b = vae.decoder.output.weight.detach().double(), vae.decoder.output.bias.detach().double()
    covariance = w @ w.mT + 0.25 * torch.eye(5)
    model, mean = vae, b
    if wrapped:
        model = Transformed(base=vae, transform=Standardize()).double()
        scale = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]).double()
        model.transform.scale.copy_(scale)
        model.transform.loc.copy_(torch.arange(5.0))
        mean, covariance = scale * b + torch.arange(5.0), scale[:, None] * covariance * scale
    x = holed(dist.MultivariateNormal(mean, covariance).sample((40,)))
    return model.double(), x, mean, covariance


def present(x, mean, covariance):
    """The exact log density of the entries that are there."""
    rows = []
    for row in x:
        there = ~row.isnan()
        if there.any():
            part = dist.MultivariateNormal(mean[there], covariance[there][:, there])
            rows.append(part.log_prob(row[there]))
        else:
            rows.append(torch.zeros(()).double())
    return torch.stack(rows)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_density_of_an_incomplete_row_is_that_of_its_entries(wrapped):
    model, x, mean, covariance = linear_with_holes(wrapped)
    estimate = log_likelihood(model, x, particles=20_000)
    assert within(estimate, present(x, mean, covariance))


@pytest.mark.parametrize("wrapped", [False, True])
def test_imputations_have_the_exact_conditional_moments(wrapped):
    model, x, mean, covariance = linear_with_holes(wrapped)
    some = impute(model, x[:8], draws=40_000, seed=3)
    assert torch.allclose(some.weights.sum(0), torch.ones(8).double())
    quantiles = {probability: some.quantile(probability) for probability in (0.05, 0.5, 0.95)}
    for i, row in enumerate(x[:8]):
        there, gone = ~row.isnan(), row.isnan()
        if not gone.any():
            continue
        gain = covariance[gone][:, there] @ torch.linalg.inv(covariance[there][:, there])
        expected = mean[gone] + gain @ (row[there] - mean[there])
        spread = covariance[gone][:, gone] - gain @ covariance[there][:, gone]
        sd = spread.diagonal().sqrt()
        error = 6 * sd / some.ess[i].sqrt()
        assert ((some.mean[i, gone] - expected).abs() < error).all()
        for probability, found in quantiles.items():
            exact = expected + sd * float(norm.ppf(probability))
            assert ((found[i, gone] - exact).abs() < 2.5 * error).all()
        assert (some.values[:, i, there] == row[there]).all()


def test_imputations_can_be_resampled_to_equal_weights():
    model, x, _, _ = linear_with_holes()
    some = impute(model, x, draws=2000)
    equal = some.resample(3000, seed=1)
    assert equal.shape == (3000, 40, 5)
    assert torch.allclose(equal.mean(0), some.mean, atol=0.15)
    low, high = some.interval(0.9)
    assert (low <= high).all()
    with pytest.raises(Error, match=r"a number from 0 to 1, got -0\.25"):
        some.interval(1.5)
    assert (some.missing == x.isnan()).all()


def test_training_with_missing_entries_has_finite_gradients_and_improves():
    model, x, _, _ = linear_with_holes()
    history = fit(model, x, epochs=30, batch_size=20, learning_rate=0.01)
    assert history.epochs[-1].loss < history.epochs[0].loss


@pytest.mark.parametrize("kind", ["beta", "gamma", "log-normal", "logit-normal"])
@pytest.mark.parametrize("table", [False, True])
def test_a_column_without_any_entry_begins_inside_the_support(kind, table):
    likelihood = {"kind": "columns", "columns": {"a": kind, "b": kind}} if table else kind
    model = VAE(x=(2,), z=(1,), likelihood=likelihood, missing=True)
    x = 0.1 + 0.8 * torch.rand(20, 2)
    x[:, 1] = torch.nan
    fit(model, x, epochs=1, progress=False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_mask_tells_the_encoder_a_missing_entry_from_a_zero():
    model, _, _, _ = linear_with_holes()
    zero = torch.zeros(1, 5).double()
    gone = zero.clone()
    gone[0, 2] = torch.nan
    with torch.no_grad():
        a, b = (log_weights(model, x, 1) for x in (zero, gone))
    assert (a != b).all()


def test_models_of_complete_rows_refuse_missing_entries():
    x = holed(torch.randn(20, 4))
    with pytest.raises(Error, match="missing = true"):
        fit(VAE(x=(4,), z=(2,), likelihood=SharedNormal()), x)
    with pytest.raises(Error, match="takes complete rows: build it with missing = true"):
        impute(VAE(x=(4,), z=(2,), likelihood=SharedNormal()), x)


def remove_and_impute(seed, epochs=200):
    """RMSE relative to column means, and the coverage of 90 % intervals, of removed entries."""
    from sklearn.datasets import load_breast_cancer

    x = torch.tensor(load_breast_cancer().data)
    x = ((x - x.mean(0)) / x.std(0, correction=0)).float()
    incomplete = holed(x, 0.3, seed)
    removed = incomplete.isnan()
    torch.manual_seed(seed)
    vae = VAE(x=(30,), z=(8,), likelihood=SharedNormal(), missing=True)
    fit(vae, incomplete, epochs=epochs, batch_size=64, seed=seed)
    some = impute(vae, incomplete, draws=200, seed=seed)
    means = incomplete.nanmean(0).expand_as(x)
    error = [(guess - x)[removed].square().mean().sqrt() for guess in (some.mean, means)]
    low, high = some.interval(0.9)
    covered = ((low <= x) & (x <= high))[removed].float().mean()
    return (error[0] / error[1]).item(), covered.item()


@pytest.mark.slow
def test_imputation_of_breast_cancer_beats_column_means_and_covers():
    figures = torch.tensor([remove_and_impute(seed) for seed in range(5)]).mean(0)
    print(f"RMSE relative to column means {figures[0]:.3f}, coverage {figures[1]:.3f}")
    assert figures[0] < 0.6
    assert 0.85 < figures[1] < 0.95


def test_imputation_beats_column_means():
    relative, covered = remove_and_impute(0, epochs=60)
    assert relative < 0.7
    assert 0.85 < covered < 0.99
