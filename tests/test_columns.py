"""Tables of mixed columns: the product of their families, units, gaps, specs and proposals."""

import copy
import re
import tomllib

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from scipy import stats
from torch import nn

import pyrovae
from pyrovae import VAE, Batch, Error, Mixture, fit, log_likelihood
from pyrovae.distributions import Joint
from pyrovae.evaluate.comparison import refuse_incomparable
from pyrovae.experiment import compare_spec, fit_spec
from pyrovae.families import Categorical, Columns, Family, LogNormal, Normal, Poisson
from pyrovae.models import Model, Transformed
from pyrovae.proposal import propose
from pyrovae.runs import open_run, save
from pyrovae.schema import schema
from pyrovae.specs import parse
from pyrovae.variants import candidates

KINDS = {
    "age": "normal",
    "sex": "bernoulli",
    "region": {"kind": "categorical", "classes": 4},
    "visits": "poisson",
    "cost": "log-normal",
    "stage": {"kind": "discretized-logistic", "levels": 30, "lowest": -4},
}
D = len(KINDS)


def assembled(columns=KINDS, **fields):
    family = Columns(columns=dict(columns), **fields)
    family.setup((len(columns),))
    return family.double()


def frame(rows=400, seed=0):
    """Patients whose columns depend on one hidden severity."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "age": 5000 + 1000 * z + 300 * rng.normal(size=rows),
            "sex": rng.binomial(1, 1 / (1 + np.exp(-z))),
            "region": rng.integers(4, size=rows),
            "visits": rng.poisson(np.exp(2 + 0.7 * z)),
            "cost": np.exp(8 + z + 0.3 * rng.normal(size=rows)),
            "stage": np.clip(np.round(10 + 4 * z + rng.normal(size=rows)), -4, 25),
        }
    )


def rows(count=400, seed=0):
    return torch.tensor(frame(count, seed).to_numpy(), dtype=torch.float64)


# The distribution


def test_log_p_is_the_sum_over_separate_families():
    family = assembled()
    h = torch.randn(7, 5, *family.params).double()
    x, start, total = rows(5), 0, 0.0
    for index, spec in enumerate(KINDS.values()):
        part = Family.from_spec(spec)
        part.setup((1,))
        size = part.params.numel()
        own = h[..., start : start + size].reshape(7, 5, *part.params)
        total = total + part.double()(own).log_prob(x[:, index : index + 1])
        start += size
    assert start == family.params.numel()
    p = family(h)
    assert (p.batch_shape, p.event_shape) == ((7, 5), (D,))
    assert torch.allclose(p.log_prob(x), total, rtol=1e-12)


def test_units_change_neither_the_density_nor_the_samples():
    """A started family is a density of raw numbers: scipy's, to the Jacobian."""
    family, x = assembled({"a": "normal", "b": "log-normal", "n": "poisson"}), rows()[:, [0, 4, 3]]
    family.start(x)
    assert torch.allclose(family.shift, torch.stack([x[:, 0].mean(), *torch.zeros(2).double()]))
    assert family.unit[2] == 1
    assert torch.allclose(family.columns["b"].smallest, 1e-3 * x[:, 1].log().std(correction=0))
    h = torch.randn(5).double()
    softplus = np.logaddexp(0, h.numpy())
    (m, _, _), (u, v, _) = family.shift.numpy(), family.unit.numpy()
    a = stats.norm(m + u * h[0].item(), u * (1e-3 + softplus[1]))
    sd_log = family.columns["b"].smallest.item() + softplus[3]
    b = stats.lognorm(sd_log, scale=v * np.exp(h[2].item()))
    n = stats.poisson(1e-4 + np.exp(h[4].item()))
    expected = a.logpdf(x[:, 0]) + b.logpdf(x[:, 1]) + n.logpmf(x[:, 2])
    p = family(h)
    assert np.allclose(p.log_prob(x), expected, rtol=1e-9)
    draws = p.sample((20_000,))
    for column, law in zip(draws.numpy().T, (a, b), strict=False):
        assert stats.kstest(column, law.cdf).pvalue > 1e-6  # by chance once in 10^6 draws
    assert np.allclose(p.mean, [law.mean() for law in (a, b, n)])
    assert np.allclose(p.variance, [law.var() for law in (a, b, n)])


def test_columns_are_drawn_apart_where_one_has_no_batch_of_its_own():
    same = torch.distributions.Normal(torch.zeros(1), 1.0)
    wide = torch.distributions.Normal(torch.zeros(6, 1), 1.0)
    shift, unit = torch.zeros(2), torch.ones(2)
    columns = [torch.distributions.Independent(d, 1) for d in (same, wide)]
    p = Joint(columns, shift, unit).to_event(1)
    assert p.sample()[..., 0].unique().numel() == 6
    p = p.expand((3, 6))
    x = p.sample((2,))
    assert x.shape == (2, 3, 6, 2)
    assert x[..., 0].unique().numel() == 36
    assert p.log_prob(x).shape == (2, 3, 6)


def test_samples_are_in_the_support_of_each_column_and_others_are_not():
    family = assembled()
    x = family(torch.randn(50, *family.params).double()).sample()
    assert family.support.check(x).all()
    wrong = torch.tensor([torch.nan, 2.0, 4.0, 1.5, 0.0, 26.0]).double()
    assert not family.support.check(wrong).any()
    assert family.support.check(wrong).shape == (D,)


def test_extreme_outputs_have_finite_gradients_in_float32():
    family, x = assembled().float(), rows(20).float()
    family.start(x)
    for value in (-50.0, 50.0):
        h = torch.full((20, *family.params), value).requires_grad_()
        log_prob = family(h).log_prob(x)
        log_prob.clamp(min=-1e30).sum().backward()
        assert not log_prob.isnan().any()
        assert h.grad.isfinite().all()


def test_the_m_step_is_that_of_each_column():
    columns = {"a": "normal", "b": "bernoulli", "c": {"kind": "categorical", "classes": 4}}
    family, x = assembled(columns), Batch(rows()[:, :3])
    family.start(x.x)
    weights = torch.rand(400, 3).double()
    h = torch.randn(3, *family.params).double()
    h = family.improve(weights.sum(0), family.expect(family.prepare(x), weights, h), h)
    (weights * family.table(x, h.requires_grad_())).sum().backward()
    assert h.shape == (3, *family.params)
    assert h.grad.abs().max() < 1e-6
    assert family.exact_m_step
    assert family.freedom == 2 + 1 + 3
    assert not assembled().exact_m_step


def test_the_marginal_is_that_of_each_column_and_zeros_where_there_is_none():
    class Anywhere(Family):
        """A family that begins anywhere."""

        def forward(self, h):
            return torch.distributions.Independent(torch.distributions.Normal(h, 1.0), 1)

    try:
        family, x = assembled(KINDS | {"z": "anywhere"}), rows()
        x = torch.cat([x, x[:, :1]], -1)
        family.start(x)
        h = family.marginal(Batch(x))
        assert torch.allclose(family(h).mean, x.mean(0), rtol=0.1)
        assert h[-1] == 0
        assert (h[:-1] != 0).any()
    finally:
        del Family.members["anywhere"]


def test_em_fits_a_mixture_of_mixed_columns_and_finds_the_groups():
    torch.manual_seed(1)
    k = torch.rand(600, 1) < 0.4
    x = torch.cat(
        [
            torch.where(k, 40.0, 70.0) + 5 * torch.randn(600, 1),
            (torch.rand(600, 1) < torch.where(k, 0.9, 0.2)).float(),
            torch.poisson(torch.where(k, 1.0, 8.0)),
        ],
        -1,
    )
    columns = Columns(columns={"a": "normal", "b": "bernoulli", "c": "poisson"})
    mixture = Mixture(x=(3,), components=2, family=columns)
    history = fit(mixture, x)
    losses = torch.tensor([epoch.loss for epoch in history.epochs])
    assert (losses.diff() < 1e-9).all()
    weights = mixture.logits.softmax(-1).sort().values
    assert torch.allclose(weights, torch.tensor([0.4, 0.6]).double(), atol=0.07)
    assert log_likelihood(mixture, x).exact


# What an encoder sees, and gaps


def test_an_encoder_sees_each_column_in_its_own_code():
    family, x = assembled(), rows()
    family.start(x)
    seen = family.encode(x)
    assert seen.shape == (400, *family.seen) == (400, 9)
    assert torch.allclose(seen[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(correction=0))
    assert torch.equal(seen[:, 2:6], nn.functional.one_hot(x[:, 2].long(), 4).double())
    assert torch.allclose(seen[:, 6], x[:, 3].log1p())
    assert seen.abs().max() < 10


def test_a_missing_number_has_a_mask_and_a_missing_class_is_all_zeros():
    family, x = assembled(), rows(D)
    family.start(rows())
    x[torch.eye(D, dtype=torch.bool)] = torch.nan
    seen = family.encode_missing(x)
    assert seen.shape == (D, *family.seen_missing)
    age, sex, region, visits, cost, stage = seen.split([2, 2, 4, 2, 2, 2], -1)
    whole = family.encode(x)
    for row, place, code in (
        (0, 0, age),
        (1, 1, sex),
        (3, 6, visits),
        (4, 7, cost),
        (5, 8, stage),
    ):
        others = torch.arange(D) != row
        assert (code[row] == 0).all()
        assert (code[others, 1] == 1).all()
        assert torch.equal(code[others, 0], whole[others, place])
    assert (region[2] == 0).all()
    assert (region.sum(-1) == 1).sum() == D - 1


def test_classes_are_embedded_and_the_guide_trains_the_embedding():
    vae = VAE(x=(D,), z=(2,), likelihood=Columns(columns=KINDS, embedding=3), missing=True)
    assert vae.likelihood.seen_missing == (2 + 2 + 3 + 2 + 2 + 2,)
    assert [tuple(p.shape) for p in vae.likelihood.embeddings.values()] == [(4, 3)]
    x = rows().float()
    x[:20, 2] = torch.nan
    assert (vae.likelihood.encode_missing(x)[:20, 4:7] == 0).all()
    before = vae.likelihood.embeddings["2"].detach().clone()
    fit(vae, x, epochs=1)
    assert (vae.likelihood.embeddings["2"] != before).all()


def test_missing_entries_are_integrated_out():
    vae = VAE(x=(D,), z=(2,), likelihood=Columns(columns=KINDS), missing=True).double()
    x = rows(60)
    vae.start(Batch(x))
    gone = torch.rand(60, D) < 0.4
    gaps, z = x.masked_fill(gone, torch.nan), torch.randn(60, 2).double()
    entries = vae.likelihood(vae.decoder(z)).base_dist.log_prob(x)
    p = vae.p(z, Batch(gaps))
    assert torch.allclose(p.log_prob(gaps), entries.masked_fill(gone, 0.0).sum(-1))
    filled = p.complete(gaps)
    assert torch.equal(filled[~gone], x[~gone])
    assert vae.likelihood.support.check(filled).all()
    (-p.log_prob(gaps).sum()).backward()
    assert all(q.grad.isfinite().all() for q in vae.decoder.parameters())
    found = pyrovae.impute(vae, gaps, draws=10)
    assert vae.likelihood.support.check(found.values).all()


# Training, measures, size factors


def test_a_vae_of_mixed_columns_trains_evaluates_and_samples(tmp_path):
    x, test = rows(400), rows(100, seed=1)
    vae = VAE(x=(D,), z=(2,), likelihood=Columns(columns=KINDS))
    independent = VAE(x=(D,), z=(1,), likelihood=Columns(columns=KINDS)).double()
    independent.start(Batch(x))
    with torch.no_grad():
        p = independent.likelihood(independent.likelihood.marginal(Batch(x)))
        alone = p.log_prob(test).mean().item()
    history = fit(vae, x.float(), epochs=60, learning_rate=5e-3)
    result = log_likelihood(vae, test.float(), particles=100)
    assert result.mean > alone + 1  # columns that depend on each other are worth knowing
    vae.check(Batch(vae.sample(200)))
    save(vae, tmp_path / "run", history)
    again = log_likelihood(open_run(tmp_path / "run").model, test.float(), particles=100)
    assert (again.value == result.value).all()
    twin = copy.deepcopy(vae)
    assert (log_likelihood(twin, test.float(), particles=100).value == result.value).all()
    assert twin.likelihood.columns["age"] is twin.likelihood.parts[0]
    assert twin.likelihood.columns["age"] is not vae.likelihood.columns["age"]


def test_the_measure_is_told_by_column_and_only_equal_ones_are_compared():
    def vae(**columns):
        return VAE(x=(2,), z=(1,), likelihood=Columns(columns=columns))

    mixed = vae(a="normal", b="poisson")
    assert str(mixed.tag) == "a density, mixed (a: lebesgue, b: counting)"
    assert vae(a="normal", b="gamma").tag.measure == "lebesgue"
    assert vae(a="bernoulli", b="poisson").tag.measure == "counting"
    refuse_incomparable({"a": mixed, "b": vae(a="laplace", b="negative-binomial")})
    with pytest.raises(Error, match=r"mixed \(a: lebesgue, b: counting\), of the other .*b: leb"):
        refuse_incomparable({"a": mixed, "b": vae(a="poisson", b="normal")})
    with pytest.raises(Error, match="standardize needs a density: columns takes finite real"):
        Transformed(base=mixed, transform="standardize")


def test_size_factors_go_to_the_columns_that_take_them():
    columns = {"a": "normal", "n": {"kind": "poisson", "exposure": "offset"}}
    vae = VAE(x=(2,), z=(1,), likelihood=Columns(columns=columns)).double()
    assert vae.tag.given == "the size factors"
    x, e, z = rows(9)[:, [0, 3]], torch.rand(9).double() + 0.5, torch.randn(9, 1).double()
    batch = Batch(x, offset=e)
    vae.check(batch)
    h = vae.decoder(z)
    normal, poisson = h[:, :2], h[:, 2:]
    n = Poisson(exposure="offset")
    n.setup((1,))
    a = Normal()
    a.setup((1,))
    expected = a.double()(normal[..., None]).log_prob(x[:, :1]) + n.double()(
        poisson, e.log()[:, None]
    ).log_prob(x[:, 1:])
    assert torch.allclose(vae.p(z, batch).log_prob(x), expected)
    with pytest.raises(Error, match=r"columns\.n: poisson .* needs size factors"):
        vae.check(Batch(x))
    plain = VAE(x=(2,), z=(1,), likelihood=Columns(columns={"a": "normal", "n": "poisson"}))
    with pytest.raises(Error, match="columns takes no size factors"):
        plain.check(Batch(x.float(), offset=e.float()))


# Specs and errors


def test_python_and_toml_build_the_same_table():
    python = VAE(
        x=(3,),
        z=(2,),
        likelihood=Columns(
            columns={"a.b": Normal(floor=0.01), "k": Categorical(classes=3), "c d": LogNormal()},
            embedding=2,
        ),
    )
    text = tomli_w.dumps(python.spec())
    again = Model.from_spec(tomllib.loads(text))
    assert repr(again) == repr(python)
    assert again.spec() == python.spec()
    assert list(again.likelihood.columns) == ["a.b", "k", "c d"]
    again.load_state_dict(python.state_dict())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": "normal", "b": "bernouli"},
            r"^model\.likelihood\.columns\.b: unknown family 'bernouli'\. Did you mean 'berno",
        ),
        (
            {"a": "normal", "b": {"kind": "categorical", "classes": 1}},
            r"^model\.likelihood\.columns\.b\.classes: should be greater than or equal to 2",
        ),
        (
            {"a": "normal"},
            r"^model\.likelihood\.columns: rows have the shape \(2,\), and .* declared are 1:",
        ),
        ({}, r"^model\.likelihood\.columns: .*at least 1 item"),
        ("auto", r"^model\.likelihood\.columns: 'auto' is for spec files"),
        ({"a": "normal", "b": "one-hot"}, r"columns\.b: one-hot takes one-hot vectors, and a col"),
        (
            {"a": "normal", "b": "multinomial"},
            r"columns\.b: multinomial is given the row totals: ",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_its_path(columns, message):
    spec = {
        "kind": "vae",
        "x": [2],
        "z": [1],
        "likelihood": {"kind": "columns", "columns": columns},
    }
    with pytest.raises(Error, match=message):
        Model.from_spec(spec, "model")


def test_one_part_cannot_be_two_columns():
    shared = Normal()
    with pytest.raises(Error, match=r"columns\.b: this normal is already part of a model"):
        VAE(x=(2,), z=(1,), likelihood=Columns(columns={"a": shared, "b": shared}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.0, 1.0, 4.0], r"value 4\.0 in the column 'k': .*whole numbers from 0 to 3 \(k\)"),
        ([1.0, 0.3, 0.0], r"row 5 with the value 0\.3\d* in the column 'b'"),
        ([1.0, torch.nan, 0.0], "1 of 9 rows hold NaN"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_column(row, message):
    columns = {"a": "normal", "b": "bernoulli", "k": {"kind": "categorical", "classes": 4}}
    x = torch.zeros(9, 3)
    x[5] = torch.tensor(row)
    with pytest.raises(Error, match=message):
        fit(VAE(x=(3,), z=(1,), likelihood=Columns(columns=columns)), x)


# Proposals


def known(n=2000):
    """A frame of columns whose laws are known, with the kinds to be found."""
    rng = np.random.default_rng(3)
    columns = {
        "bernoulli": rng.binomial(1, 0.2, n),
        "categorical": rng.integers(7, size=n),
        "poisson": rng.poisson(9, n),
        "negative-binomial": rng.poisson(rng.gamma(2, 6, n)),
        "discretized-logistic": rng.integers(1990, 2021, n),
        "log-normal": rng.lognormal(2, 1, n),
        "gamma": rng.gamma(0.5, 30, n),
        "beta": rng.beta(2, 3, n),
        "normal": rng.normal(170, 8, n),
    }
    return pd.DataFrame({kind: column.astype(float) for kind, column in columns.items()})


@pytest.mark.parametrize("missing", [False, True])
def test_columns_of_known_laws_are_recognised(missing):
    data = known()
    if missing:
        data = data.mask(np.random.default_rng(0).random(data.shape) < 0.3)
    proposal = propose(data)
    assert [choice.family["kind"] for choice in proposal.choices.values()] == list(data.columns)
    assert proposal.columns["categorical"]["classes"] == 7
    assert proposal.columns["discretized-logistic"] | {"kind": ""} == {
        "kind": "",
        "levels": 31,
        "lowest": 1990,
    }
    family = proposal.family()
    vae = VAE(x=(9,), z=(2,), likelihood=family, missing=missing)
    history = fit(vae, data.to_numpy(), epochs=1)
    assert np.isfinite(history.epochs[0].loss)


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        ([0.0, 0.0, 1.0], "bernoulli", "zeros and ones"),
        ([1.0, 1.0, 1.0], "bernoulli", "zeros and ones"),
        ([-3.0, 2.0, 4.0], "discretized-logistic", "from -3 to 4, some below zero"),
        ([0.5, 0.25, 7.0], "normal", "real numbers from 0.25 to 7"),
        ([0.5, -0.25, 0.75], "normal", "real numbers"),
        ([0.31, 0.32, 0.33], "normal", "real numbers"),
        ([5e7, 7e7, 6e7], "normal", "real numbers"),
        ([torch.nan, torch.nan], "normal", "no value to judge by"),
        ([5.0, 5.0], "categorical", "whole numbers from 5 to 5"),
        ([50.0] * 500, "discretized-logistic", "too close together for counts"),
        (list(range(0, 4000, 7)), "negative-binomial", "variance of .* times the mean"),
    ],
)
def test_a_choice_comes_with_its_reason(values, kind, reason):
    proposal = propose(torch.tensor(values)[:, None])
    assert proposal.columns["x0"]["kind"] == kind
    assert re.search(reason, proposal.choices["x0"].reason)
    VAE(x=(1,), z=(1,), likelihood=proposal.family())


def test_classes_that_training_rows_lack_are_still_classes():
    x = np.zeros((100, 1))
    x[:50] = 1.0
    x[7] = 3.0
    for seed in range(12):  # 3 is a training row in most, and in the test rows of some
        data = pyrovae.load(x, seed=seed)
        assert propose(data).columns["x0"] == {"kind": "categorical", "classes": 4}
    assert sum(3.0 in pyrovae.load(x, seed=seed).train[:].x for seed in range(12)) < 12


def test_levels_of_words_are_classes():
    data = frame(60).assign(sex=["f", "m"] * 30, region=["n", "e", "s"] * 20)
    proposal = propose(pyrovae.load(data, categories=("sex", "region")))
    assert proposal.columns["sex"] == {"kind": "bernoulli"}
    assert proposal.columns["region"] == {"kind": "categorical", "classes": 3}
    assert proposal.choices["region"].reason == "a category: e, n, s"


def test_images_are_no_table():
    with pytest.raises(
        Error, match=r"a table has rows of numbers, these have the shape \(1, 8, 8"
    ):
        propose(pyrovae.load("digits"))


def auto_spec(tmp_path, columns, **model):
    frame(150).to_csv(tmp_path / "patients.csv", index=False)
    tree = {
        "data": {"path": str(tmp_path / "patients.csv")},
        "train": {"epochs": 2, "progress": False},
        "evaluate": {"particles": 10},
        "models": {
            "a": {"kind": "vae", "z": [1], "likelihood": {"kind": "columns", "columns": columns}},
            "b": {"extends": "a", "z": [2]},
        },
    }
    return parse(tree, "patients")


def test_auto_is_decided_by_the_data_said_once_and_saved(tmp_path):
    said = []
    comparison = compare_spec(auto_spec(tmp_path, "auto"), tmp_path / "run", False, said.append)
    table = [text for text in said if text.startswith("age")]
    assert len(table) == 1
    assert "visits  negative-binomial" in " ".join(table[0].split("\n")[3].split("    "))
    assert "some below zero" in table[0]
    saved = tomllib.loads((tmp_path / "run" / "a" / "spec.toml").read_text())
    columns = saved["model"]["likelihood"]["columns"]
    assert list(columns) == list(KINDS)
    assert columns["region"] == {"kind": "categorical", "classes": 4, "floor": 0.01}
    assert comparison["a"].model.tag.measure.startswith("mixed (age: lebesgue, sex: counting")
    again = []
    compare_spec(auto_spec(tmp_path, "auto"), tmp_path / "run", False, again.append)
    assert sum("reused" in line for line in again) == 2


def test_declared_columns_are_put_in_the_order_of_the_data(tmp_path):
    spec = auto_spec(tmp_path, dict(reversed(KINDS.items())))
    one = parse({"data": spec.data, "train": spec.train["a"], "model": spec.models["a"]}, "one")
    run = fit_spec(one, tmp_path / "run", False, lambda text: None)
    assert list(run.model.likelihood.columns) == list(KINDS)


def test_columns_without_names_keep_their_order_in_the_saved_spec(tmp_path):
    np.save(tmp_path / "x.npy", frame(150)[["visits", "age"]].to_numpy())
    spec = auto_spec(tmp_path, {"n": {"kind": "poisson"}, "a": "normal"})
    tree = {
        "data": {"path": str(tmp_path / "x.npy")},
        "train": spec.train["a"],
        "evaluate": spec.evaluate,
        "models": spec.models,
    }
    compare_spec(parse(tree, "x"), tmp_path / "run", False, lambda text: None)
    saved = tomllib.loads((tmp_path / "run" / "spec.toml").read_text())
    assert list(saved["models"]["a"]["likelihood"]["columns"]) == ["n", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sex": None},
            r"^models\.a\.likelihood\.columns: the column 'sex' of the data has no fam",
        ),
        ({"extra": "normal"}, r"^models\.a\.likelihood\.columns: the data have no column 'extra'"),
    ],
)
def test_columns_that_are_not_those_of_the_data_are_refused(tmp_path, change, message):
    columns = {name: kind for name, kind in (KINDS | change).items() if kind}
    with pytest.raises(Error, match=message):
        compare_spec(auto_spec(tmp_path, columns), tmp_path / "run", False, print)


def test_the_schema_knows_auto():
    rule = schema()["$defs"]["Family.columns"]["properties"]["columns"]["anyOf"][0]["anyOf"]
    assert rule[0] == {"enum": ["auto"]}
    family = {"$ref": "#/$defs/Family"}
    choice = {"type": "array", "items": family, "minItems": 1}
    assert rule[1]["additionalProperties"] == {"anyOf": [family, choice]}


@pytest.mark.parametrize("columns", [["auto", KINDS], KINDS | {"cost": ["gamma", "log-normal"]}])
def test_families_of_columns_can_be_a_choice(tmp_path, columns):
    spec = auto_spec(tmp_path, columns)
    one = parse({"data": spec.data, "train": spec.train["a"], "model": spec.models["a"]}, "one")
    run = fit_spec(one, tmp_path / "run", True, lambda text: None)
    assert len(run.results["tried"]) == 2


def test_a_column_has_its_own_choices():
    def labels(**columns):
        likelihood = {"kind": "columns", "columns": {"age": "normal"} | columns}
        return [label for label, _ in candidates({"kind": "vae", "likelihood": likelihood})]

    start = "likelihood.columns.visits"
    assert labels(visits=["poisson", "normal"]) == [f"{start}=poisson", f"{start}=normal"]
    floors = {"kind": "normal", "floor": [0.1, 0.2]}
    assert labels(visits=floors) == [f"{start}.floor=0.1", f"{start}.floor=0.2"]
    named_as_fields = labels(kind="normal", floor=["normal", "laplace"])
    assert named_as_fields[0] == "likelihood.columns.floor=normal"
    with pytest.raises(Error, match=r"columns\.visits: is a choice among nothing"):
        labels(visits=[])
