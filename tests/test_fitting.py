"""Fitting: deterministic, local, and honest about failure. Data: the digits, black or white."""

import io
import itertools

import pyro
import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import nn

from pyrovae import (
    VAE,
    Batch,
    Mixture,
    Pair,
    compare,
    fit,
    latents,
    load,
    log_likelihood,
    log_weights,
    open_run,
    reconstruct,
    save,
)
from pyrovae.fitting import FitError
from pyrovae.inference import SVI, em, svi
from pyrovae.models import Model
from pyrovae.objectives import ELBO
from pyrovae.optim import Optim
from pyrovae.optimizers import SGD
from pyrovae.priors import Prior

X = torch.tensor(load_digits().data[:300] > 7).float()
FAST = {"epochs": 3, "batch_size": 50}


def vae(seed=0, **fields):
    torch.manual_seed(seed)
    small = {"kind": "mlp", "hidden": (16,)}
    return Model.from_spec({"kind": "vae", "x": (64,), "z": (3,), "encoder": small} | fields)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


PARTNERS = {"categorical": "one-hot", "uniform-sphere": "power-spherical"}


@pytest.mark.parametrize("prior", sorted(Prior.members))
def test_same_seed_same_weights_to_the_bit(prior):
    fields, rows = {"prior": prior, "posterior": PARTNERS.get(prior, "normal")}, Batch(X)
    if prior == "conditional":
        fields |= {"kind": "conditional-vae", "context": (1,)}
        rows = Batch(X, context=X[:, :1])
    models = [vae(**fields) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, rows, seed=seed, **FAST)
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


def test_random_numbers_go_on_as_if_nothing_had_happened():
    before = torch.get_rng_state()
    model = vae()
    torch.set_rng_state(before)
    fit(model, X, X, **FAST)
    log_likelihood(model, X, particles=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_parameter_store_is_as_it_was_after_every_public_call():
    store = pyro.get_param_store()
    with store.scope():
        mine = pyro.param("mine", torch.ones(2))
        model, mixture = vae(), Mixture(x=(64,), components=2, family="bernoulli")
        calls = [
            lambda: fit(model, X, X, **FAST),
            lambda: fit(mixture, X, method="svi", **FAST),
            lambda: fit(mixture, X),
            lambda: log_likelihood(model, X, particles=3),
            lambda: log_weights(model, X, 3),
            lambda: compare({"vae": model, "mixture": mixture}, X, particles=3),
            lambda: model.sample(3),
            lambda: list(svi(model, Batch(X), epochs=1)),
        ]
        for call in calls:
            call()
            assert set(store.keys()) == {"mine"}
            assert store["mine"] is not None
            assert torch.equal(pyro.param("mine"), mine)
        for epoch in svi(model, Batch(X), epochs=2):
            assert set(store.keys()) == {"mine"}, epoch
        with pytest.raises(FitError):
            fit(model, X, learning_rate=1e20, **FAST)
        assert set(store.keys()) == {"mine"}


def test_two_models_train_in_turn_as_each_alone():
    together, alone = [vae(0), vae(1, prior="vamp")], [vae(0), vae(1, prior="vamp")]
    random = [torch.Generator().manual_seed(0).get_state()] * 2
    courses = [svi(model, Batch(X), epochs=3) for model in together]
    for _ in range(3):
        for index, course in enumerate(courses):
            torch.set_rng_state(random[index])
            next(course)
            random[index] = torch.get_rng_state()
    for model, twin in zip(together, alone, strict=True):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        list(svi(twin, Batch(X), epochs=3))
        assert not same(weights(model), weights(vae(0)))
        assert same(weights(model), weights(twin))


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_evaluation_changes_nothing(mode):
    model = vae(decoder={"kind": "mlp", "hidden": (16,), "layer_norm": True})
    model.train(mode == "train")
    if mode == "mixed":
        model.encoder.train()
    kept, modes = weights(model), [m.training for m in model.modules()]
    kept_grad = [p.grad for p in model.parameters()]
    log_likelihood(model, X, particles=7)
    log_likelihood(model, X, particles=7, dtype="float64")
    compare({"a": model}, X, particles=3)
    model.sample(4)
    assert same(weights(model), kept)
    assert [m.training for m in model.modules()] == modes
    assert [p.grad for p in model.parameters()] == kept_grad
    assert next(model.parameters()).dtype == torch.float32


def test_precision_is_an_argument_of_fit_and_evaluation():
    model = vae()
    fit(model, X, dtype="float64", **FAST)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    a = log_likelihood(model, X, particles=50, seed=1)
    b = log_likelihood(model, X, particles=50, seed=1, dtype="float32")
    assert a.mean == pytest.approx(b.mean, abs=0.2)
    assert a.mean != b.mean
    with pytest.raises(ValueError, match="dtype: should be 'float32' or 'float64', got 'half'"):
        fit(model, X, dtype="half")
    with pytest.raises(ValueError, match="device: the device 'abacus' cannot be used here"):
        fit(model, X, device="abacus")


def test_early_stopping_keeps_the_weights_of_the_best_epoch():
    model = vae()
    history = fit(model, X[:80], X[80:], epochs=400, batch_size=20, learning_rate=5e-3, patience=5)
    values = [epoch.validation for epoch in history.epochs]
    assert history.stopped == "early stopping"
    assert history.best == values.index(max(values))
    assert len(values) == history.best + 6
    from pyrovae.evaluate import bound

    assert bound(model, X[80:]) == pytest.approx(max(values), abs=1e-5)


def test_validation_does_not_change_the_course_of_training():
    a, b = vae(), vae()
    with_, without = fit(a, X, X[:50], **FAST), fit(b, X, **FAST)
    assert [e.loss for e in with_.epochs] == [e.loss for e in without.epochs]


def test_em_stops_where_it_stands_still():
    history = fit(
        Mixture(x=(64,), components=2, family="bernoulli"), X, epochs=500, tolerance=1e-4
    )
    assert len(history.epochs) < 500
    assert history.stopped == "converged"


def test_a_fit_goes_on_from_present_weights():
    model = vae(prior="vamp")
    fit(model, X, **FAST)
    pseudo = model.prior.inputs.detach().clone()
    fit(model, X, start=False, epochs=1, batch_size=300, learning_rate=1e-9)
    assert torch.allclose(model.prior.inputs, pseudo, atol=1e-6)


def test_the_loss_is_per_row_whatever_the_batches():
    a, b = vae(), vae()
    one = fit(a, X, epochs=1, batch_size=300, learning_rate=1e-12).epochs[0].loss
    many = fit(b, X, epochs=1, batch_size=70, learning_rate=1e-12).epochs[0].loss
    assert one == pytest.approx(many, rel=0.02)
    assert one == pytest.approx(-log_weights(a, X, 200).mean().item(), rel=0.01)


class Breaks(Prior):
    """A prior that fails after some calls."""

    def setup(self, z, seen):
        self.loc = nn.Parameter(torch.zeros(z))

    def forward(self, q, context=None):
        bad = float("nan") if self.loc.abs().max() > 0.02 else 0.0
        return pyro.distributions.Normal(self.loc + bad, 1.0).to_event(1)


del Prior.members["breaks"]


def test_a_nan_names_epoch_step_and_part_and_keeps_the_last_good_weights():
    model = vae(prior=Breaks())
    expected = (
        r"the fit failed in epoch (\d+), step \d: the log density of 'z' in the model became NaN"
    )
    with pytest.raises(FitError, match=expected) as failure:
        fit(model, X, epochs=20, batch_size=50, learning_rate=1.2e-3)
    good = len(failure.value.history.epochs)
    assert f"in epoch {good}, step" in str(failure.value)
    assert good > 0
    assert all(p.isfinite().all() for p in model.parameters())
    again = vae(prior=Breaks())
    fit(again, X, epochs=good, batch_size=50, learning_rate=1.2e-3)
    assert same(weights(model), weights(again))


def test_an_overflow_names_the_network():
    with pytest.raises(FitError, match=r"epoch 0, step \d+: .*(encoder|decoder)"):
        fit(vae(), X, learning_rate=1e20, **FAST)


@pytest.mark.parametrize(
    ("train", "validation", "options", "message"),
    [
        (
            X[:20],
            None,
            {"batch_size": 128},
            "train: 20 training rows are fewer than a batch of 128: lower batch_size",
        ),
        (X[:0], None, {}, "train: the data have no row"),
        (
            X[:, :5],
            None,
            {},
            r"train: rows of the data have the shape \(5,\), the model's x has \(64,\)",
        ),
        (X * torch.nan, None, {}, "train: 300 of 300 rows hold NaN, missing"),
        (X / 0.0, None, {}, "train: 300 of 300 rows hold infinite values"),
        (
            X * 0.3,
            None,
            {},
            "train: .* rows are outside the support, such as row 0 .*: bernoulli takes 0 or 1",
        ),
        (X, X * 0.3, {}, "validation: .* rows are outside the support"),
        (X, None, {"patience": 3}, "patience: early stopping judges by validation rows"),
        (X, None, {"method": "em"}, "EM cannot fit the model 'vae': use method = 'svi'"),
        ("digits", None, {}, "train: the data should be numbers"),
        (
            X[:, 0],
            None,
            {},
            r"train: the data should have the shape \(rows, \*event\), got \(300,\)",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_the_first_step(
    train, validation, options, message
):
    model = vae()
    kept = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, train, validation, **options)
    assert same(weights(model), kept)


def test_fractional_counts_are_refused_for_poisson():
    with pytest.raises(
        ValueError, match=r"with the value 0\.5: poisson takes whole numbers from 0"
    ):
        fit(VAE(x=(64,), z=(2,), likelihood="poisson"), X + 0.5)


def test_noisy_rows_are_drawn_anew_and_deterministically():
    data = load("digits", transforms=({"kind": "binarize", "stochastic": True},), flatten=True)
    a, b = vae(), vae()
    fit(a, data.train, data.validation, epochs=2)
    fit(b, data.train, data.validation, epochs=2)
    assert same(weights(a), weights(b))
    assert not torch.equal(data.train[:].x, data.train[:].x)


def test_history_prints_and_plots():
    history = fit(vae(), X, X[:50], **FAST)
    assert "finished after 3 epochs" in str(history)
    lines = history.plot().get_lines()
    assert list(lines[0].get_ydata()) == [-epoch.loss for epoch in history.epochs]
    assert list(lines[1].get_ydata()) == [epoch.validation for epoch in history.epochs]


def test_progress_is_silent_without_a_terminal(capfd):
    fit(vae(), X, **FAST)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_loss_and_speed_in_a_terminal(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("pyrovae.progress.Console", lambda stderr: terminal)
    fit(vae(), X, epochs=5, batch_size=50)
    assert "loss" in screen.getvalue()
    assert "rows/s" in screen.getvalue()


def test_generators_leave_the_loop_to_the_user():
    losses = [epoch.loss for epoch in itertools.islice(svi(vae(), Batch(X), epochs=99), 3)]
    assert len(losses) == 3
    model = Mixture(x=(64,), components=2, family="bernoulli")
    model.start(Batch(X))
    assert [epoch.index for epoch in em(model, Batch(X), epochs=4, tolerance=0)] == [0, 1, 2, 3]
    assert isinstance(model, Model)


def test_data_as_a_whole_are_fitted_and_compared():
    data = load("digits", transforms=["binarize"], flatten=True)
    a, b, mixture = vae(), vae(), Mixture(x=(64,), components=3, family="bernoulli")
    fit(a, data, epochs=2)
    fit(b, data.train, data.validation, epochs=2)
    fit(mixture, data)
    assert same(weights(a), weights(b))
    one = compare({"a": a, "m": [mixture]}, data, particles=5)
    two = compare({"a": b, "m": [mixture]}, data.test, data.validation, particles=5)
    assert one["a"].result.mean == two["a"].result.mean
    assert one["m"].model is mixture


def test_data_refuse_a_model_without_their_transforms():
    data = load("iris", transforms=["standardize"])
    model = VAE(x=(4,), z=(2,), likelihood="shared-normal")
    with pytest.raises(ValueError, match=r"go through standardize: use data\.wrap\(model\)"):
        fit(model, data)
    with pytest.raises(ValueError, match="whole levels, of which a density has no bound"):
        fit(VAE(x=(1, 8, 8), z=(2,), likelihood="normal"), load("digits"))
    wrapped = data.wrap(model)
    assert data.wrap(wrapped) is wrapped
    fit(wrapped, data, epochs=2)


def test_batches_are_all_rows_where_there_are_fewer():
    a, b = vae(), vae()
    fit(a, X[:40], epochs=2)
    fit(b, X[:40], epochs=2, batch_size=40)
    assert same(weights(a), weights(b))


def test_latents_are_draws_from_the_guide():
    model = vae()
    z = latents(model, X[:7], particles=500)["z"]
    assert z.shape == (500, 7, 3)
    q = model.q(X[:7]).base_dist
    assert ((z.mean(0) - q.loc).abs() < 5 * q.scale / 500**0.5).all()
    mixture = Mixture(x=(64,), components=2, family="bernoulli")
    fit(mixture, X)
    assert latents(mixture, X[:7])["k"].shape == (1, 7)


def test_samples_are_a_function_of_the_seed():
    model = vae()
    assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1))
    assert not torch.equal(model.sample(5, seed=1), model.sample(5, seed=2))


def test_a_model_is_saved_and_opened_from_python(tmp_path):
    model = vae()
    save(model, str(tmp_path / "mine"))
    again = open_run(str(tmp_path / "mine")).model
    assert same(weights(again), weights(model))
    with pytest.raises(ValueError, match="exists: name another folder"):
        save(model, tmp_path / "mine")
    save(vae(1), tmp_path / "mine", force=True)


def test_what_a_killed_save_left_goes_with_the_next(tmp_path):
    (tmp_path / ".mine.draft").mkdir()
    (tmp_path / ".mine.draft" / "history.csv").write_text("epoch")
    save(vae(), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_discrete_guide_has_no_mean_field_bound():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Bernoulli(0.5))
            shift = pyro.param("shift", torch.tensor(1.0))
            normal = pyro.distributions.Normal((z * shift)[..., None], 1.0)
            pyro.sample("x", normal.to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            logit = pyro.param("logit", torch.tensor(0.0))
            pyro.sample("z", pyro.distributions.Bernoulli(logits=logit * x[:, 0]))

    pair = Pair(model=model, guide=guide)
    with pytest.raises(ValueError, match="mean-field-elbo has no gradient through 'z', whose"):
        fit(pair, torch.randn(50, 1), objective="mean-field-elbo")
    fit(pair, torch.randn(50, 1), epochs=2)


def test_divergence_of_a_discrete_model_is_a_fit_error():
    mixture, x = Mixture(x=(2,), components=3, family="normal"), torch.randn(300, 2)
    with pytest.raises(FitError, match=r"the fit failed in epoch \d, step \d"):
        fit(mixture, x, method="svi", learning_rate=1e30, epochs=5, batch_size=300)
    assert all(p.isfinite().all() for p in mixture.parameters())


def test_noisy_rows_can_judge():
    data = load("digits", transforms=({"kind": "binarize", "stochastic": True},), flatten=True)
    history = fit(vae(), data.train, data.train, epochs=1)
    assert history.epochs[0].validation < 0


@pytest.mark.parametrize("call", [fit, log_likelihood])
def test_what_is_no_model_is_refused(call):
    with pytest.raises(ValueError, match=r"model: should be a model, such as VAE\(...\), got"):
        call("vae", X)


@pytest.mark.parametrize(
    ("bounds", "patience", "best", "epochs"),
    [
        ([-5, -4, -4, -6, -7], 2, 1, 4),  # the first of equals, then two epochs without a gain
        ([float("nan"), -9, -8, -8.5], None, 2, 4),
        ([-9, float("nan"), -8], None, 2, 3),
        ([float("nan")] * 3, None, 2, 3),
    ],
)
def test_the_best_epoch_is_the_first_with_the_highest_bound(
    monkeypatch, bounds, patience, best, epochs
):
    values, kept = iter(bounds), []

    def pretended(model, batch, world):
        kept.append(weights(model))
        return {"bound": next(values)}

    monkeypatch.setattr("pyrovae.history.parts", pretended)
    model = vae()
    history = fit(model, X, X, epochs=len(bounds), batch_size=100, patience=patience)
    assert (history.best, len(history.epochs)) == (best, epochs)
    assert same(weights(model), kept[best])


class Unlucky(Prior):
    """A prior that now and then, by chance, fails."""

    def setup(self, z, seen):
        self.loc = nn.Buffer(torch.zeros(z))
        self.failed = []

    def forward(self, q, context=None):
        bad = bool(torch.rand(()) < 0.05)
        self.failed.append(bad and self.training)
        loc = self.loc + (float("nan") if self.failed[-1] else 0.0)
        return pyro.distributions.Normal(loc, 1.0).to_event(1)


del Prior.members["unlucky"]


def test_a_failure_by_chance_is_found_again_where_it_was():
    model = vae(prior=Unlucky())
    model.prior.failed.clear()
    with pytest.raises(FitError) as failure:
        fit(model, X, epochs=50, batch_size=50)
    epoch, step = divmod(model.prior.failed.index(True), 6)
    assert f"in epoch {epoch}, step {step}: the log density of 'z'" in str(failure.value)


def test_em_goes_on_from_present_weights():
    model = Mixture(x=(64,), components=5, family="bernoulli")
    first = fit(model, X, epochs=4, tolerance=0)
    second = fit(model, X, epochs=1, start=False)
    assert second.epochs[0].loss < first.epochs[-1].loss
    assert second.epochs[0].loss == pytest.approx(first.epochs[-1].loss, abs=0.5)


def test_parameters_are_stepped_in_the_order_of_their_names():
    model = vae()
    engine = SVI(model.model, model.guide, Optim(SGD(), 0.1), ELBO().build())
    with model.scope():
        engine.step(Batch(X))
    names = {parameter: name for name, parameter in model.named_parameters()}
    (group,) = engine.optim.optimizer.param_groups
    assert [names[p] for p in group["params"]] == sorted(names.values())


def test_a_model_starts_at_the_data():
    x = 3 + 2 * torch.randn(200, 4)
    model = VAE(x=(4,), z=(2,), prior="vamp", likelihood="shared-normal")
    model.start(Batch(x))
    scale = model.p(torch.zeros(1, 2), Batch(torch.zeros(1, 3))).base_dist.scale
    assert torch.allclose(scale, x.std(0, correction=0), rtol=0.01)
    assert all((row == x).all(-1).any() for row in model.prior.inputs)


def test_reconstructions_are_draws_of_x_given_z():
    model = VAE(x=(64,), z=(2,), likelihood={"kind": "fixed-normal", "scale": 1e-3})
    x = reconstruct(model, X[:5], particles=7)
    assert x.shape == (7, 5, 64)
    z = latents(model, X[:5], particles=7)["z"]
    assert torch.allclose(x, model.p(z, Batch(x)).mean, atol=0.01)
    behind = load("iris", transforms=["standardize"])
    wrapped = behind.wrap(VAE(x=(4,), z=(2,), likelihood="shared-normal"))
    fit(wrapped, behind, epochs=100, learning_rate=0.01)
    near = reconstruct(wrapped, behind.test, particles=50).mean(0)
    assert (near - behind.test.x).square().mean() < 0.3 * behind.test.x.var(0).mean()


def test_every_epoch_takes_every_row_once_in_a_new_order_in_training_mode():
    class Recorded(Batch):
        taken, modes = [], set()

        def __getitem__(self, rows):
            self.taken.append(rows)
            return Batch(self.x[rows])

    model = vae().eval()
    model.encoder.register_forward_hook(
        lambda module, _, output: Recorded.modes.add(module.training)
    )
    list(svi(model, Recorded(X), epochs=2, batch_size=70))
    first, second = torch.cat(Recorded.taken[:5]), torch.cat(Recorded.taken[5:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(300))
    assert not torch.equal(first, second)
    assert Recorded.modes == {True}
    assert not model.training
