"""Recorded steps: the numbers of Pyro's own estimators, from the same random numbers."""

import copy
import logging
import math
import time
import tomllib
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from members import make, parts
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.distributions import constraints

from pyrovae import Batch, Mixture, Pair, fit, log_likelihood
from pyrovae.compile import LONG, WORTH, Recorded, backward, recorded
from pyrovae.graphs import record
from pyrovae.inference import svi
from pyrovae.models import Model
from pyrovae.objectives import (
    ELBO,
    STL,
    DReG,
    MarginalLikelihood,
    MeanFieldELBO,
    MultiplyIWAE,
    Objective,
    PartialIWAE,
    RenyiMax,
    WakeSleep,
)
from pyrovae.place import in_mode, unchecked
from pyrovae.products import _gains, _seconds, routed

EXAMPLES = Path(__file__).parent.parent / "examples"
X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) > 0.4).double()
IMAGES = X[:, :4].reshape(40, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
HOLES = torch.where(torch.arange(240).reshape(40, 6) % 5 == 0, torch.nan, X)
SMALL = {"kind": "mlp", "hidden": (5,)}
FLOW = {"kind": "flow", "flow": "maf", "transforms": 1, "hidden": (4,)}


@pytest.fixture(autouse=True)
def short_fits_are_recorded(monkeypatch):
    monkeypatch.setattr("pyrovae.compile.WORTH", 1)


class Normed(nn.Module):
    """A convolution with batch normalisation and dropout."""

    def __init__(self, source, target):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48, math.prod(target)),
        )

    def forward(self, a):
        return self.layers(a)


def vae(**fields):
    base = {"kind": "vae", "x": (6,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
    return Model.from_spec(base | fields).double()


def normed():
    return vae(x=(1, 4, 4), encoder={"kind": "module", "path": Normed})


def behind(x=X, **fields):
    table = {"kind": "vae", "x": (6,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
    base = table | {"likelihood": "normal"} | fields
    model = Model.from_spec({"kind": "transformed", "base": base, "transform": "standardize"})
    return model.double(), Batch(x)


def hierarchical():
    levels = ({"kind": "stochastic", "z": (3,)},)
    return Model.from_spec(
        {"kind": "hierarchical-vae", "x": (6,), "z": (2,), "layers": levels}
    ).double()


def conditional():
    fields = {"kind": "conditional-vae", "context": (2,), "prior": "conditional"}
    return vae(**fields), Batch(X, context=X[:, :2])


def semi_supervised():
    labels = torch.arange(40) % 4 - 1
    return vae(kind="semi-supervised-vae", classes=3), Batch(X, labels=labels)


def mixture(family="normal", **fields):
    return Mixture(x=(6,), components=3, family=family, **fields).double()


def _factors(x):
    loading = pyro.param("loading", lambda: 0.5 * torch.randn(2, 6))
    scale = pyro.param("scale", torch.ones(6), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ loading, scale).to_event(1), obs=x)


def _guide(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(6, 2))
    width = pyro.param("width", torch.ones(2), constraint=constraints.interval(0.1, 3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ weight, width).to_event(1))


def pair(model=_factors, guide=_guide):
    return Pair(model=model, guide=guide)


def _coin(x):
    logits = pyro.param("logits", torch.zeros(2, 6))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Bernoulli(logits=logits[z.long()]).to_event(1), obs=x)


def _coin_guide(x):
    weight = pyro.param("weight", 0.1 * torch.ones(6))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=x @ weight))


LINE = {"kind": "linear", "initial": 0.3, "final": 2.0}
COUNTS, FLOATS = (3 * X).round(), X + 0.5
NORMAL = {"likelihood": "normal"}
CASES = {
    "bernoulli": lambda: (vae(), X),
    "five particles": lambda: (vae(), X, ELBO(particles=5)),
    "closed-form KL": lambda: (vae(), X, MeanFieldELBO(particles=2)),
    "mixture prior": lambda: (vae(prior={"kind": "gaussian-mixture", "components": 3}), X),
    "vamp prior": lambda: (vae(prior={"kind": "vamp", "components": 3}), X),
    "flow prior": lambda: (vae(prior=FLOW), X),
    "student-t prior": lambda: (vae(prior="student-t"), X),
    "learned prior": lambda: (vae(prior="learned-normal"), X),
    "categorical prior": lambda: (vae(prior="categorical", posterior="one-hot"), X),
    "relaxed bernoulli": lambda: (
        vae(
            prior="relaxed-bernoulli",
            posterior="relaxed-bernoulli",
            decoder={"kind": "squashed", "network": SMALL},
        ),
        X,
    ),
    "sphere": lambda: (vae(prior="uniform-sphere", posterior="power-spherical", z=(3,)), X),
    "normal": lambda: (vae(likelihood="normal"), FLOATS),
    "shared scale": lambda: (vae(likelihood="shared-normal"), FLOATS),
    "full likelihood": lambda: (vae(likelihood="multivariate-normal"), FLOATS),
    "poisson": lambda: (vae(likelihood="poisson"), COUNTS),
    "counts": lambda: (vae(likelihood="zero-inflated-negative-binomial"), COUNTS),
    "continuous bernoulli": lambda: (vae(likelihood="continuous-bernoulli"), 0.8 * X + 0.1),
    "gamma": lambda: (vae(likelihood="gamma"), FLOATS),
    "classes": lambda: (vae(likelihood={"kind": "categorical", "classes": 4}), COUNTS),
    "full guide": lambda: (vae(posterior="multivariate-normal"), X),
    "low-rank guide": lambda: (vae(posterior="low-rank-normal", z=(3,)), X),
    "mixture guide": lambda: (vae(posterior="mixture-of-normals"), X),
    "flow guide": lambda: (vae(posterior=FLOW | {"flow": "realnvp"}), X),
    "dropout": lambda: (vae(decoder=SMALL | {"dropout": 0.4, "layer_norm": True}), X),
    "conv": lambda: (vae(x=(1, 4, 4), encoder={"kind": "conv", "channels": (3,)}), IMAGES),
    "batch norm": lambda: (normed(), IMAGES),
    "refined": lambda: (vae(refine={"kind": "semi-amortized", "steps": 2, "particles": 2}), X),
    "hierarchy": lambda: (hierarchical(), X),
    "context": conditional,
    "semi-supervised": semi_supervised,
    "size factors": lambda: (
        vae(likelihood={"kind": "poisson", "exposure": "offset"}),
        Batch(COUNTS, offset=1 + torch.arange(40).double() % 3),
    ),
    "transformed": behind,
    "missing": lambda: (vae(missing=True), HOLES),
    "transformed, missing": lambda: behind(HOLES, missing=True),
    "mixture": lambda: (mixture(), X),
    "mixture, marginal": lambda: (mixture("bernoulli"), X, MarginalLikelihood()),
    "factor analysis": lambda: (
        Model.from_spec({"kind": "factor-analysis", "x": (6,), "factors": 2}).double(),
        X,
    ),
    "pair": lambda: (pair(), X),
    "score function": lambda: (pair(_coin, _coin_guide), X),
    "weighed KL": lambda: (vae(), X, ELBO(beta=LINE, free_bits=LINE, total_correlation=LINE)),
    "weighed KL, closed form": lambda: (hierarchical(), X, MeanFieldELBO(beta=2.0, free_bits=0.2)),
    "weighed states": lambda: (*semi_supervised(), ELBO(beta=LINE)),
    "dreams of states": lambda: (vae(prior="categorical", posterior="one-hot"), X, WakeSleep()),
    "dreams, semi-supervised": lambda: (*semi_supervised(), WakeSleep()),
}
OBJECTIVES = {
    "dreg": lambda: (hierarchical(), X, DReG()),
    "multiply-iwae": lambda: (*conditional(), MultiplyIWAE(groups=2)),
    "partial-iwae": lambda: (
        vae(refine={"kind": "semi-amortized", "steps": 1}),
        X,
        PartialIWAE(groups=2, particles=2),
    ),
    "renyi-max": lambda: (pair(), X, RenyiMax()),
    "stl": lambda: (vae(prior="vamp"), X, STL(particles=3, beta=LINE)),
    "wake-sleep": lambda: (vae(missing=True), HOLES, WakeSleep(encoder="both")),
}
CASES |= {
    f"objective {member[0]}": OBJECTIVES.get(
        member[1].kind, lambda member=member: (vae(), X, make(member))
    )
    for member in parts(Objective)
    if member[1] is not MarginalLikelihood
}


@contextmanager
def stepping(model, training=True):
    with ExitStack() as stack:
        for context in (model.scope(), in_mode(model, training), unchecked()):
            stack.enter_context(context)
        yield


def gradients(model, take, seed=0):
    """The loss and the gradients of a step from a random state."""
    torch.manual_seed(seed)
    loss = take()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": torch.as_tensor(loss, dtype=torch.float64)} | found


def by_pyro(model, batch, elbo, seed=0, training=True):
    """A step by the estimator itself."""

    def take():
        loss = elbo.differentiable_loss(model.model, model.guide, batch) / len(batch)
        loss.backward()
        return loss.detach()

    with stepping(model, training):
        return gradients(model, take, seed)


def by_record(model, batch, mine, seed=0, training=True):
    """A step by a recorded estimator."""
    with stepping(model, training):
        return gradients(
            model,
            lambda: mine.backward(model.model, model.guide, batch, rows=len(batch))[0],
            seed,
        )


def refuse_difference(found, wanted, tolerance):
    """Compare norm-wise; a gradient of rounding alone, with a thousandth of the largest."""
    assert found.keys() == wanted.keys()
    least = 1e-3 * max(value.norm() for name, value in wanted.items() if name != "loss")
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * max(value.norm(), least), name


def recorded_kinds(mine):
    return sum(kind.backend != "no" for kind in mine.kinds.values())


def compare_with_pyro(model, batches, elbo, tolerance, **options):
    """Three steps on each batch; returns the recorded estimator."""
    mine = Recorded(elbo, **options)
    for seed, batch in enumerate([batch for batch in batches for _ in range(3)]):
        stock = by_pyro(model, batch, elbo, seed)
        state = torch.get_rng_state()
        refuse_difference(by_record(model, batch, mine, seed), stock, tolerance)
        assert torch.equal(torch.get_rng_state(), state)
    return mine


def prepared(case):
    model, rows, *objective = CASES[case]()
    rows = rows if isinstance(rows, Batch) else Batch(rows)
    model.check(rows)
    model.start(rows)
    return model, rows, (objective or [ELBO()])[0].build(model.enumerates)


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_step_is_the_step_of_pyro(case):
    model, rows, elbo = prepared(case)
    mine = compare_with_pyro(model, (rows[:17], rows[17:34]), elbo, 1e-10)
    assert (mine.backend, mine.reason) == ("replay", "")
    assert recorded_kinds(mine) == 1


@pytest.mark.parametrize("case", ["mixture prior", "semi-supervised", "transformed, missing"])
def test_a_smaller_batch_is_recorded_apart(case):
    model, rows, elbo = prepared(case)
    mine = compare_with_pyro(model, (rows[:17], rows[34:], rows[17:34]), elbo, 1e-10)
    assert (mine.backend, mine.reason) == ("replay", "")
    assert recorded_kinds(mine) == 2


FEW = ["mixture prior", "full guide", "counts", "batch norm", "missing"]


@pytest.mark.parametrize("case", FEW)
def test_a_replayed_step_is_the_step_of_pyro_to_the_bit_in_float32(case):
    model, rows, elbo = prepared(case)
    model, rows = model.float(), rows.to(torch.device("cpu"), torch.float32)
    mine = compare_with_pyro(model, (rows[:17], rows[17:34]), elbo, 0.0)
    assert mine.backend == "replay"


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (vae(), X),
        lambda: (normed(), IMAGES),
        lambda: (vae(missing=True, prior="vamp"), HOLES),
        lambda: (pair(), X),
        conditional,
    ],
)
def test_a_recorded_fit_ends_at_the_weights_of_a_plain_one_to_the_bit(make):
    ends, losses = [], []
    for how in (False, "auto"):
        torch.manual_seed(0)
        model, rows = make()
        history = fit(model, rows, method="svi", epochs=6, batch_size=16, compile=how, seed=3)
        assert history.compiled == ("no" if how is False else "replay")
        ends.append(weights(model))
        losses.append(torch.tensor([epoch.loss for epoch in history.epochs]))
    assert same(*ends)
    assert torch.allclose(*losses, rtol=1e-12)


def test_gradients_that_are_views_of_one_number_are_laid_out_as_parameters():
    def model(x):
        pyro.factor("sum", pyro.param("shift", torch.zeros(6, 2)).sum())
        return _factors(x)

    ends = []
    for how in (False, "auto"):
        torch.manual_seed(0)
        programs = pair(model)
        assert fit(programs, X, epochs=6, compile=how).compiled == ("replay" if how else "no")
        ends.append(weights(programs))
    assert same(*ends)


def test_states_of_probability_zero_are_left_out_of_a_recorded_sum():
    certain = X[:, 0] > 0

    def model(x):
        rate = 1 + pyro.param("rate", torch.ones(()))
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            impossible = dist.Poisson(torch.where((y == 1) & certain, 0.0, rate + y))
            pyro.sample("x", impossible, obs=1 + x[:, 1])

    def guide(x):
        logits = torch.where(certain, -1e4, pyro.param("logit", torch.zeros(())))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    elbo, found = TraceEnum_ELBO(max_plate_nesting=1), []
    mine = Recorded(elbo)
    with pyro.get_param_store().scope(), unchecked():
        for take in (mine.backward, mine.backward, partial(backward, elbo)):
            loss, parameters = take(model, guide, X.float())
            found.append(torch.stack([loss, *[p.grad for p in parameters.values()]]))
            for parameter in parameters.values():
                parameter.grad = None
    assert mine.backend == "replay"
    assert found[-1].isfinite().all()
    assert torch.allclose(found[1], found[2])


def test_steps_with_pyros_own_svi_are_recorded_too():
    ends = []
    for elbo in (Trace_ELBO(), mine := Recorded(Trace_ELBO(), every=3)):
        torch.manual_seed(0)
        model = vae()
        with stepping(model):
            engine = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
            for _ in range(10):
                loss = engine.step(Batch(X))
        ends.append((weights(model), torch.tensor(loss)))
    assert mine.backend == "replay"
    assert isinstance(loss, float)
    for name, tensor in ends[0][0].items():
        assert torch.allclose(tensor, ends[1][0][name], rtol=1e-10), name
    assert torch.allclose(ends[0][1], ends[1][1], rtol=1e-10)


def test_buffers_move_as_in_plain_pyro_and_recording_does_not_move_them():
    model, twin, rows = normed(), normed(), Batch(IMAGES)
    twin.load_state_dict(model.state_dict())
    mine = Recorded(Trace_ELBO(), every=4)
    for _ in range(9):
        by_record(model, rows, mine)
        by_pyro(twin, rows, Trace_ELBO())
        assert same(weights(model), weights(twin))
    assert mine.backend == "replay"
    assert model.get_buffer("encoder.module.layers.1.num_batches_tracked") == 9


def test_training_and_evaluation_mode_are_recorded_apart():
    model, rows, mine = normed(), Batch(IMAGES), Recorded(Trace_ELBO())
    for training in (True, True, False, False, True, False):
        found = by_record(model, rows, mine, training=training)
        refuse_difference(found, by_pyro(model, rows, Trace_ELBO(), training=training), 1e-10)
    assert recorded_kinds(mine) == 2


def test_complete_and_incomplete_batches_are_recorded_apart():
    model = vae(missing=True)
    batches = Batch(X[:17]), Batch(HOLES[:17]), Batch(X[17:34])
    mine = compare_with_pyro(model, batches, Trace_ELBO(), 1e-10)
    assert (mine.reason, recorded_kinds(mine)) == ("", 2)


def test_noise_is_new_at_every_step():
    model, mine = vae(), Recorded(Trace_ELBO())
    with stepping(model):
        losses = {mine.backward(model.model, model.guide, Batch(X))[0].item() for _ in range(10)}
    assert mine.backend == "replay"
    assert len(losses) == 10


def weighted(model, guide, beta):
    """The programs with their densities times a weight, which a function gives."""

    def scaled(program):
        def run(x):
            with poutine.scale(scale=beta()):
                return program(x)

        return run

    return scaled(model), scaled(guide)


def losses_of(programs, mine, weights, *arguments):
    """The loss, per weight, from the same noise at each of them."""
    with pyro.get_param_store().scope(), unchecked():
        mine.backward(*programs, X.float(), *arguments)
        for weight in weights:
            torch.manual_seed(0)
            yield (mine.backward(*programs, X.float(), *arguments)[0] / weight).item()


def test_a_weight_in_a_tensor_is_an_input():
    beta, values = torch.tensor(1.0), torch.linspace(0.1, 2, 20)
    mine = Recorded(Trace_ELBO(), every=5)
    programs = weighted(_factors, _guide, lambda: beta)
    losses = list(losses_of(programs, mine, map(beta.fill_, values)))
    assert losses == pytest.approx([losses[0]] * 20, rel=1e-6)
    assert (mine.backend, mine.reason, len(mine.kinds)) == ("replay", "", 1)


def test_further_arguments_are_inputs():
    def model(x, beta):
        with poutine.scale(scale=beta):
            return _factors(x)

    def guide(x, beta):
        with poutine.scale(scale=beta):
            return _guide(x)

    beta, mine = torch.tensor(1.0), Recorded(Trace_ELBO())
    losses = list(losses_of((model, guide), mine, map(beta.fill_, (0.1, 0.5, 2.0)), beta))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert (mine.backend, len(mine.kinds)) == ("replay", 1)


def test_a_number_that_changes_is_found_out(caplog):
    beta, mine = [1.0], Recorded(Trace_ELBO(), every=5)
    seen = []

    def values():
        for index in range(10):
            seen.append(mine.backend)
            beta[0] = 1.0 if index < 2 else 2.0
            yield beta[0]

    programs = weighted(_factors, _guide, lambda: beta[0])
    losses = list(losses_of(programs, mine, values()))
    assert seen == ["no"] + 3 * ["replay"] + 6 * ["no"]
    assert losses[2] == pytest.approx(losses[0] / 2)
    assert losses[3:] == pytest.approx([losses[0]] * 7)
    (warning,) = caplog.records
    assert (warning.name, warning.levelno) == ("pyrovae", logging.WARNING)
    assert warning.message.startswith("Steps run as plain Pyro: recorded, they give another")
    assert mine.reason == warning.message


def factors_with(look):
    def model(x):
        look(x)
        return _factors(x)

    return model


def checked(x):
    dist.Normal(x.sum(), x.square().sum(), validate_args=True)


def directed(x):
    pyro.sample("angle", dist.VonMises(x.mean(), 2.0))


def directed_guide(x):
    pyro.sample("angle", dist.VonMises(x.mean(), 2.0))
    return _guide(x)


REFUSED = {
    "branch": (lambda x: x.mean() > 0.5 and None, r"decides by the value of a tensor \(in <lam"),
    "number": (
        lambda x: int(x.sum().item()),
        r"decides by the value of a tensor \(in <lambda>, t",
    ),
    "validation": (checked, r"by the value of a tensor \(in __init__, distribution.py:\d+\)\.$"),
    "nonzero": (lambda x: x.nonzero(), "decide a shape, that of nonzero"),
    "mask": (lambda x: x[x > 0.5], "decide a shape, that of index"),
    "unique": (lambda x: x.unique(), "decide a shape, that of _unique2"),
    "masked_select": (lambda x: x.masked_select(x > 0), "decide a shape, that of masked_select"),
    "rejection": (directed, r"value of a tensor \(in \w+, \w+.py"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_runs_as_plain_pyro_and_says_why(case, caplog):
    caplog.set_level(logging.INFO, "pyrovae")
    look, expected = REFUSED[case]
    guide = directed_guide if case == "rejection" else _guide
    ends = []
    for how in (False, "auto"):
        torch.manual_seed(0)
        model = pair(factors_with(look), guide)
        history = fit(model, X, epochs=4, batch_size=16, compile=how)
        assert history.compiled == "no"
        ends.append(weights(model))
    assert same(*ends)
    assert {record.name for record in caplog.records} == {"pyrovae"}
    assert len(caplog.records) == 1
    message = caplog.records[0].message
    assert message == history.remark
    assert message.startswith("Steps run as plain Pyro: ")
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(message)


def test_hooks_are_called_at_every_step():
    model, called = vae(), []
    model.encoder.register_forward_hook(lambda module, *_: called.append(module.training))
    history = fit(model, X, epochs=50, batch_size=20)
    assert history.remark.endswith("modules have hooks, which a recording would not call.")
    assert sum(called) == 100


def test_whole_numbers_as_index_are_recorded():
    order = torch.randperm(6)
    model = pair(factors_with(lambda x: pyro.factor("f", 0 * x[:, order].sum())))
    model.start(Batch(X))
    mine = compare_with_pyro(model, [Batch(X)], Trace_ELBO(), 1e-10)
    assert mine.backend == "replay"


def test_fits_too_short_to_pay_are_not_recorded(monkeypatch):
    monkeypatch.setattr("pyrovae.compile.WORTH", 12)
    found = {}
    for epochs in (5, 6, 12):
        model = vae()
        history = fit(model, X, epochs=epochs, batch_size=19)
        found[epochs] = history.compiled, history.remark
    assert found == {5: ("no", ""), 6: ("replay", ""), 12: ("replay", "")}
    assert fit(mixture("bernoulli"), X).compiled == "no"


@pytest.mark.parametrize(("others", "kinds"), [(False, 1), (True, 2)])
def test_smaller_batches_are_recorded_where_enough_are_planned(others, kinds):
    model, mine = vae(), Recorded(Trace_ELBO(), others=others)
    for _ in svi(model, Batch(X), objective=mine, epochs=3, batch_size=19):
        pass
    assert recorded_kinds(mine) == kinds


def test_auto_decides_by_the_number_of_steps(monkeypatch):
    monkeypatch.setattr("pyrovae.compile.WORTH", WORTH)
    elbo = Trace_ELBO()
    assert recorded(elbo, False, 10**6) is elbo
    assert recorded(elbo, "auto", WORTH - 1) is elbo
    assert recorded(elbo, "auto", WORTH).steps == WORTH
    assert not recorded(elbo, "auto", LONG, WORTH - 1).others
    assert recorded(elbo, "auto", LONG, WORTH).others
    assert recorded(elbo, True, 1).steps == math.inf


def compiled_kinds(monkeypatch, model, x, steps):
    """What would have been compiled by Inductor."""
    asked = []
    monkeypatch.setattr("pyrovae.graphs.Graph.compiled", lambda graph, *_: asked.append(graph))
    mine = Recorded(Trace_ELBO(), steps)
    for _ in svi(model, Batch(x), objective=mine, epochs=2, batch_size=len(x)):
        pass
    return len(asked)


def test_auto_compiles_the_example_of_images_and_no_small_network(monkeypatch):
    spec = tomllib.loads((EXAMPLES / "mnist.toml").read_text("utf-8"))
    rows, train = 60_000 - round(60_000 * spec["data"]["validation"]), spec["train"]
    steps = train["epochs"] * (rows // train["batch_size"])
    images = torch.rand(train["batch_size"], 784).round()
    model = Model.from_spec(spec["model"] | {"x": (784,)}).float()
    assert compiled_kinds(monkeypatch, model, images, LONG - 1) == 0
    assert compiled_kinds(monkeypatch, model, images, steps) == 1
    assert compiled_kinds(monkeypatch, vae(), X, steps) == 0
    assert compiled_kinds(monkeypatch, vae(), X, 10 * steps) == 1


def test_without_a_compiler_steps_are_replayed(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("pyrovae.graphs.routed", broken)
    history = fit(vae(), X, epochs=3, batch_size=20, compile=True)
    assert history.compiled == "replay"
    assert history.remark == ("Steps are replayed, not compiled: RuntimeError: no C++ compiler.")


def test_the_word_is_checked():
    with pytest.raises(ValueError, match="compile: should be 'auto', True or False, got 'yes'"):
        fit(vae(), X, compile="yes")


def test_a_recorded_fit_leaves_nothing_behind():
    state, isnan = torch.get_rng_state(), pyro.util.torch_isnan
    model = vae()
    torch.set_rng_state(state)
    history = fit(model, X, epochs=40, batch_size=16)
    assert history.compiled == "replay"
    assert torch.equal(torch.get_rng_state(), state)
    assert pyro.util.torch_isnan is isnan
    assert all(p.grad is None for p in model.parameters())
    assert len(pyro.get_param_store()) == 0


def test_a_failure_is_found_in_the_step_where_plain_pyro_fails():
    def growing(x):
        rate = pyro.param("rate", torch.tensor(0.0))
        pyro.factor("growth", rate + 0 * (70 - rate).log())
        return _factors(x)

    messages = []
    for how in (False, "auto"):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="the fit failed in epoch") as failure:
            fit(pair(growing), X.float(), learning_rate=1.0, epochs=200, compile=how)
        messages.append(str(failure.value))
    assert messages[0] == messages[1]
    assert int(messages[0].split("epoch ")[1].split(",")[0]) > 30


def test_evaluation_between_epochs_does_not_disturb_a_record():
    model, rows = vae(), Batch(X)
    mine = Recorded(Trace_ELBO(), every=3)
    torch.manual_seed(0)
    for epoch in svi(model, rows, objective=mine, epochs=5, batch_size=8):
        log_likelihood(model, rows, particles=3, dtype="float32")
        assert math.isfinite(epoch.loss)
    assert (mine.backend, mine.reason) == ("replay", "")


def test_products_go_to_the_faster_library_and_stay_the_same(monkeypatch):
    def function(a, w, b, g):
        return nn.functional.linear(a.relu(), w, b), g.mT @ a, g @ w, w[:2] @ w[:3].mT

    a, w = torch.randn(128, 784), torch.randn(400, 784)
    arguments = a, w, torch.randn(400), torch.randn(128, 400)
    graph = record(function, *arguments)
    for faster, count in ((True, 3), (False, 0)):
        monkeypatch.setattr("pyrovae.products._gains", lambda *_, faster=faster: faster)
        chosen = routed(copy.deepcopy(graph.operations))
        ours = chosen.find_nodes(op="call_function", target=torch.ops.pyrovae.product.default)
        assert len(ours) == count
        call = torch.fx.GraphModule({}, chosen)
        for found, wanted in zip(call(*arguments), function(*arguments), strict=True):
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()
            assert found.stride() == wanted.stride()


def test_the_faster_library_is_found_by_trying():
    layouts = ((128, 784), (784, 1)), ((784, 400), (1, 784))
    assert _gains(*layouts) in (True, False)
    assert _seconds(lambda: time.sleep(0.001)) == pytest.approx(0.001, rel=0.5)


def compiled_and_plain(make, rows, **options):
    ends, histories = [], []
    for how in (False, True):
        torch.manual_seed(0)
        model = make()
        histories.append(fit(model, rows, compile=how, **options))
        ends.append(weights(model))
    return ends, histories


def test_inductor_gives_the_same_fit_from_the_same_noise():
    before = torch._inductor.config.get_config_copy()
    make = lambda: vae(decoder=SMALL | {"dropout": 0.4})  # noqa: E731
    ends, (_, history) = compiled_and_plain(make, X, epochs=6, batch_size=16)
    assert (history.compiled, history.remark) == ("inductor", "")
    for name, tensor in ends[0].items():
        assert torch.allclose(tensor, ends[1][name], rtol=1e-8, atol=1e-10), name
    assert torch._inductor.config.get_config_copy() == before


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_inductor_gives_the_steps_of_pyro(case):
    model, rows, elbo = prepared(case)
    mine = compare_with_pyro(model, (rows[:17], rows[17:34]), elbo, 1e-10, steps=math.inf)
    if case == "flow guide":
        assert (mine.backend, "not compiled: " in mine.reason) == ("replay", True)
    else:
        assert (mine.backend, mine.reason) == ("inductor", "")


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW)
def test_inductor_gives_the_steps_of_pyro_in_float32(case):
    """To 1e-5 where the terms of a gradient do not cancel."""
    model, rows, elbo = prepared(case)
    model, rows = model.float(), rows.to(torch.device("cpu"), torch.float32)
    tolerance = {"counts": 5e-5, "batch norm": 5e-4}.get(case, 1e-5)
    mine = compare_with_pyro(model, (rows[:17], rows[17:34]), elbo, tolerance, steps=math.inf)
    assert (mine.backend, mine.reason) == ("inductor", "")
