"""What rows are given beside x (context, labels, size factors), categories, missing entries."""

import gzip
import struct

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae import (
    VAE,
    ConditionalVAE,
    Mixture,
    Pair,
    SemiSupervisedVAE,
    compare,
    fit,
    latents,
    load,
    log_likelihood,
    open_run,
    reconstruct,
    save,
)
from pyrovae.batch import as_batch
from pyrovae.errors import Error
from pyrovae.families import Normal
from pyrovae.models.pair import _factors, _factors_guide
from pyrovae.networks import MLP
from pyrovae.transforms import Binarize, Dequantize, Standardize

ROWS = 40


def frame():
    """A table in which every cell says its row."""
    i = np.arange(ROWS)
    return pd.DataFrame(
        {
            "x1": i + 0.5,
            "sex": np.where(i % 2, "m", "f"),
            "x2": -i - 0.5,
            "age": 100.0 + i,
            "kind": [("b", "a", None)[row % 3] for row in i],
            "visits": 1 + i,
        }
    )


def parts(data):
    """The rows of training, validation and test."""
    return [as_batch(data.train), data.validation, data.test]


def rows_of(part):
    return (part.x[:, 0] - 0.5).long()


# Splits


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", [(), (Dequantize(),)], ids=["plain", "noisy"])
def test_every_row_keeps_what_it_is_given(seed, noise):
    columns = {"context": ["sex", "age"], "labels": "kind", "offset": "visits"}
    table = frame()
    if noise:
        table["x1"], table["x2"] = table["x1"] - 0.5, table["x2"] + 0.5
    data = load(table, seed=seed, transforms=noise, **columns)
    assert data.columns == ("x1", "x2")
    seen = []
    for part in parts(data):
        i = part.x[:, 0].floor().long() if noise else rows_of(part)
        female = (i % 2 == 0).double()
        assert torch.equal(part.context, torch.stack([female, 1 - female, 100.0 + i], 1))
        assert part.labels.tolist() == [(1, 0, -1)[row % 3] for row in i]
        assert torch.equal(part.offset, 1.0 + i)
        assert (part.context.dtype, part.offset.dtype) == (part.x.dtype, part.x.dtype)
        seen += i.tolist()
    assert sorted(seen) == list(range(ROWS))


def test_noisy_rows_keep_what_they_are_given_in_any_order():
    x = np.arange(ROWS, dtype=float)[:, None]
    data = load(x, context=x, labels=x[:, 0], transforms=[Dequantize()])
    some = data.train[torch.tensor([5, 2, 9])]
    assert torch.equal(some.x.floor(), some.context)
    assert torch.equal(some.x.floor()[:, 0].long(), some.labels)
    moved = data.train.to(torch.device("cpu"), torch.float32)[:4]
    assert (moved.context.dtype, moved.labels.dtype) == (torch.float32, torch.int64)


def test_an_official_test_part_keeps_what_its_rows_are_given(mnist):
    folder, images, labels = mnist
    data = load(name="mnist", path=folder, labels="target", context=images[:, None])
    assert data.test.labels.tolist() == [int(data.classes.index(str(y))) for y in labels[-4:]]
    for part in parts(data):
        assert torch.equal(part.x, part.context)


# The class of named sets


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("iris", ("setosa", "versicolor", "virginica")),
        ("wine", ("class_0", "class_1", "class_2")),
        ("breast-cancer", ("benign", "malignant")),
        ("digits", tuple("0123456789")),
    ],
)
def test_the_class_of_named_sets_is_a_column_beside_x(name, classes):
    plain, data = load(name=name), load(name=name, labels="target", context=("target",))
    assert data.classes == classes
    assert data.levels == {"target": classes}
    assert data.context == (len(classes),)
    assert (data.columns, data.event) == (plain.columns, plain.event)
    for part, same in zip(parts(data), parts(plain), strict=True):
        assert torch.equal(part.x, same.x)
        assert torch.equal(part.context.argmax(1), part.labels)
        assert same.labels is None
        assert same.context is None


def test_the_labels_of_a_named_set_are_those_of_its_makers():
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    data = load("breast-cancer", labels="target")
    names = {
        tuple(x): bunch.target_names[y] for x, y in zip(bunch.data, bunch.target, strict=True)
    }
    found = [data.classes[label] for label in data.test.labels]
    assert found == [names[tuple(x)] for x in data.test.x.tolist()]


def idx(array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


@pytest.fixture(params=[False, True], ids=["plain", "gzipped"])
def mnist(request, tmp_path):
    """A folder of idx files, all images and all labels."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, size=(16, 3, 5), dtype=np.uint8)
    labels = np.array([7, 2, 0, 5] * 4, dtype=np.uint8)
    for part, which in (("train", slice(12)), ("t10k", slice(12, 16))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw, name = idx(array[which]), f"{part}-{kind}-ubyte"
            if request.param:
                raw, name = gzip.compress(raw), f"{name}.gz"
            (tmp_path / name).write_bytes(raw)
    return str(tmp_path), images, labels


def test_mnist_has_its_labels(mnist):
    folder, images, labels = mnist
    data = load(name="mnist", path=folder, labels="target")
    assert data.classes == ("0", "2", "5", "7")
    known = {tuple(x.flatten()): str(y) for x, y in zip(images, labels, strict=True)}
    for part in parts(data):
        for x, label in zip(part.x, part.labels, strict=True):
            assert known[tuple(x.flatten().int().tolist())] == data.classes[label]


def test_mnist_without_its_labels(mnist, tmp_path):
    folder, _, _ = mnist
    for path in tmp_path.glob("*labels*"):
        path.unlink()
    assert load(name="mnist", path=folder).test.labels is None
    with pytest.raises(Error, match=r"has no file 'train-labels-idx1-ubyte', gzipped or not"):
        load(name="mnist", path=folder, labels="target")


# Labels


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (["b", "a"] * 20, ("a", "b"), [1, 0]),
        (np.array([10, 9] * 20), ("9", "10"), [1, 0]),
        (np.array([2.0, 10.0, np.nan, 1.0] * 10), ("1", "2", "10"), [1, 2, -1, 0]),
        (np.array([0, -1, 1, 1] * 10), ("0", "1"), [0, -1, 1, 1]),
        (torch.tensor([True, False] * 20), ("False", "True"), [1, 0]),
        (["b", None, "", " a "] * 10, ("a", "b"), [1, -1, -1, 0]),
        (["b", float("nan"), 3, "a"] * 10, ("3", "a", "b"), [2, -1, 0, 1]),
        (np.array(["b", float("nan"), "c", "c"] * 10), ("b", "c"), [0, -1, 1, 1]),
        (pd.Series(["b", pd.NA, "a", "a"] * 10), ("a", "b"), [1, -1, 0, 0]),
        (pd.Series([3, pd.NA, 1, 1] * 10, dtype="Int64"), ("1", "3"), [1, -1, 0, 0]),
        (pd.Categorical(["z", "y"] * 20, categories=["z", "y", "x"]), ("y", "z"), [1, 0]),
        (np.ma.masked_equal([5, 7, 0, 5] * 10, 0), ("5", "7"), [0, 1, -1, 0]),
        (np.array([[4], [3]] * 20), ("3", "4"), [1, 0]),
    ],
    ids=[
        "words", "numbers in their order", "floats", "-1", "truth values", "empty words",
        "a mixture", "words of numpy", "words of pandas", "whole numbers of pandas", "categories",
        "a mask", "2-D",
    ],
)  # fmt: skip
def test_labels_become_codes(labels, classes, codes):
    x = np.arange(ROWS)[:, None] + 0.5
    data = load(x, labels=labels)
    assert data.classes == classes
    for part in parts(data):
        assert part.labels.dtype == torch.int64
        assert part.labels.tolist() == [codes[row % len(codes)] for row in rows_of(part)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(ROWS, 0.5), r"data\.labels: should be whole numbers or words, got 0\.5"),
        (np.full(ROWS, np.inf), r"data\.labels: should be whole numbers or words, got inf"),
        (np.full(ROWS, 3), "should name two classes or more, got 1: where it is NaN"),
        (np.tile([1, -1], ROWS // 2), "should name two classes or more, got 1"),
        (np.full(ROWS, np.nan), "should name two classes or more, got 0"),
        (np.zeros(7), r"have one row for each of the 40 rows of 'array', not 7"),
        (np.zeros((ROWS, 2)), r"data\.labels: should have the shape \(rows,\), got \(40, 2\)"),
        (3, "have one row for each of the 40 rows of 'array', not 3"),
        ("king", r"data\.labels: unknown column 'king'. Did you mean 'kind'\?"),
        ([[1], [1, 2]], r"data\.labels: "),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(Error, match=message):
        load(frame()[["x1", "kind"]], labels=labels, columns=("x1",))


# Contexts


def test_numbers_of_a_context_stay_and_words_become_zeros_and_ones():
    data = load(frame(), context=("age", "sex"), columns=("x1",))
    assert data.levels == {"sex": ("f", "m")}
    assert data.context == (3,)
    assert data.declares == {"x": (1,), "context": (3,)}
    for part in parts(data):
        assert torch.equal(part.context[:, 0], 99.5 + part.x[:, 0])
        assert part.context[:, 1:].sum(1).tolist() == [1] * len(part)


def test_numbers_of_a_context_can_be_categories():
    x = pd.DataFrame({"x": np.arange(40.0) + 0.5, "ward": [30, 4, 7, 4] * 10})
    data = load(x, context=("ward",), categories=("ward",))
    assert data.levels == {"ward": ("4", "7", "30")}
    for part in parts(data):
        codes = [(2, 0, 1, 0)[row % 4] for row in rows_of(part)]
        assert part.context.argmax(1).tolist() == codes


def test_levels_are_learnt_on_all_rows():
    words = np.array([f"w{i:02}" for i in range(ROWS)])
    data = load(np.arange(ROWS)[:, None] + 0.5, context=words)
    assert data.context == (ROWS,)
    for part in parts(data):
        assert torch.equal(part.context.argmax(1), rows_of(part))


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_a_context_of_any_shape(shape, wrap):
    i = np.arange(ROWS, dtype=np.float32)
    context = np.broadcast_to(i.reshape(-1, *[1] * len(shape)), (ROWS, *shape)).copy()
    data = load(i[:, None] + 0.5, context=wrap(context))
    assert data.context == shape
    for part in parts(data):
        assert torch.equal(part.context.flatten(1)[:, 0].long(), rows_of(part))


def test_a_frame_as_a_context():
    table = frame()
    one = load(table, columns=("x1",), context=("sex", "age"))
    other = load(table[["x1"]], context=table[["sex", "age"]])
    assert torch.equal(one.test.context, other.test.context)
    assert one.levels == other.levels


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            np.zeros((7, 2)),
            r"data\.context: should be named by a column, or have one row for each ",
        ),
        ("age", r"context: should be a list of column names, such as \['age'\], .*got 'age'"),
        ((), r"context: should be a list of column names"),
        (("agee",), r"data\.context: unknown column 'agee'. Did you mean 'age'\?"),
        (("kind",), r"data\.context: column 'kind' of the context has no finite value in 13 rows"),
        (np.full((ROWS, 2), np.inf), r"column '1' of the context has no finite value in 40 rows"),
        (
            np.full((ROWS, 1, 2), np.nan),
            r"the context has no finite value in 40 rows, first row 0",
        ),
        (np.full((ROWS, 1, 2), "a"), r"data\.context: it holds 'a', no number"),
        (np.full((ROWS, 1), 1j), r"data\.context: column '1' holds '1j', no number"),
    ],
)
def test_wrong_contexts(context, message):
    with pytest.raises(Error, match=message):
        load(frame(), context=context, columns=("x1",))


def test_a_column_cannot_be_modelled_and_given():
    with pytest.raises(Error, match="column 'age' is what rows are given, and no part of x"):
        load(frame(), columns=("x1", "age"), context=("age",))


def test_a_table_that_is_all_given():
    with pytest.raises(Error, match="has no column"):
        load(frame()[["age", "sex"]], context=("age", "sex"))


def test_columns_without_names_cannot_be_named():
    for names in ({"context": ("a",)}, {"labels": "a"}, {"offset": "a"}, {"categories": ("a",)}):
        with pytest.raises(Error, match=f"{next(iter(names))}: the columns have no names"):
            load(np.zeros((20, 2)), **names)


# Size factors


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (np.arange(ROWS), r"data\.offset: size factors are positive numbers, got 0 in row 0"),
        (np.full(ROWS, -2.0), "got -2 in row 0"),
        (np.full(ROWS, np.nan), "got nan in row 0"),
        (np.full(ROWS, np.inf), "got inf in row 0"),
        (np.ones((ROWS, 2)), r"data\.offset: should have the shape \(rows,\), got \(40, 2\)"),
        (np.ones(3), "one row for each of the 40 rows of 'array', not 3"),
        ("sex", r"data\.offset: column 'sex' holds 'f', no number"),
        ("visit", "unknown column 'visit'. Did you mean 'visits'"),
    ],
)
def test_wrong_size_factors(offset, message):
    with pytest.raises(Error, match=message):
        load(frame(), columns=("x1",), offset=offset)


# The fingerprint


def test_the_fingerprint_is_of_what_rows_are_given_too():
    x, given = np.arange(ROWS)[:, None] + 0.5, np.arange(ROWS) % 2 + 1
    other = np.where(np.arange(ROWS) == 17, 3 - given, given)
    marks = [
        load(x, **{name: array}).fingerprint
        for name in ("context", "labels", "offset")
        for array in (given, other)
    ]
    assert len({load(x).fingerprint, *marks}) == 7
    assert load(x, labels=given).fingerprint == load(x, labels=given).fingerprint


# Categories


@pytest.mark.parametrize("dtype", [object, "category", "str"])
def test_words_become_codes(dtype):
    table = frame()[["x1", "kind", "sex"]].astype({"sex": dtype, "kind": dtype})
    data = load(table, categories=("kind", "sex"))
    assert data.columns == ("x1", "kind", "sex")
    assert data.levels == {"kind": ("a", "b"), "sex": ("f", "m")}
    for part in parts(data):
        for x1, kind, sex in part.x.tolist():
            row = int(x1 - 0.5)
            assert sex == row % 2
            assert kind == (1, 0)[row % 3] if row % 3 < 2 else np.isnan(kind)


def test_words_of_a_csv_become_codes(tmp_path):
    frame().to_csv(tmp_path / "t.csv", index=False)
    data = load(path=str(tmp_path / "t.csv"), columns=("x1", "kind"), categories=("kind",))
    assert data.levels == {"kind": ("a", "b")}
    assert parts(data)[0].x.isnan().any(0).tolist() == [False, True]


def test_words_are_refused_with_a_hint():
    with pytest.raises(Error, match="holds 'f', no number: choose columns, or name it in categor"):
        load(frame())


def test_an_unknown_category():
    with pytest.raises(Error, match=r"data\.categories: unknown column 'sx'. Did you mean 'sex'"):
        load(frame(), columns=("x1",), categories=("sx",))


def test_columns_of_the_same_name_stay_apart():
    table = pd.DataFrame(np.arange(40.0).reshape(20, 2), columns=["a", "a"]).assign(word="w")
    data = load(table, labels=["p", "q"] * 10, context=("word",))
    assert torch.equal(data.test.x[:, 1] - data.test.x[:, 0], torch.ones(4).double())


# Missing entries


def holes(share=0.2, columns=3):
    random = np.random.default_rng(3)
    x = random.normal(size=(200, columns))
    return np.where(random.uniform(size=x.shape) < share, np.nan, x)


def test_missing_entries_are_loaded():
    x = holes()
    data = load(x, transforms=[Standardize()])
    found = torch.cat([part.x for part in parts(data)])
    assert int(found.isnan().sum()) == np.isnan(x).sum()
    assert not data.quantised


@pytest.mark.parametrize("cell", ["", "NA", "nan", "null", "None"])
def test_missing_cells_of_a_csv(cell, tmp_path):
    rows = "".join(f"{i},{cell if i % 4 == 0 else i}\n" for i in range(20))
    (tmp_path / "t.csv").write_text("a,b\n" + rows)
    for part in parts(load(path=str(tmp_path / "t.csv"))):
        assert torch.equal(part.x[:, 1].isnan(), part.x[:, 0] % 4 == 0)


def test_missing_cells_of_pandas():
    table = pd.DataFrame({"a": pd.array([1, None, 3, 4] * 5, dtype="Int64"), "b": range(20)})
    for part in parts(load(table)):
        assert torch.equal(part.x[:, 0].isnan(), part.x[:, 1] % 4 == 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (pd.DataFrame({"a": range(20), "b": [None] * 20}), "column 'b' of 'array' is missing in"),
        (np.full((20, 2), np.nan), "column '1' of 'array' is missing in every training row"),
        (np.full((20, 1, 2, 2), np.nan), r"the entry \[0, 0, 0\] of 'array' is missing in every"),
    ],
)
def test_columns_that_are_entirely_missing(x, message):
    with pytest.raises(Error, match=message):
        load(x)


def test_a_row_can_be_entirely_missing_and_has_probability_one():
    x = holes()
    x[:20] = np.nan
    data = load(x)
    model = VAE(x=(3,), z=(2,), likelihood=Normal(), missing=True, **small())
    empty = data.train[data.train.x.isnan().all(1)]
    assert len(empty) > 5
    assert log_likelihood(model, empty, particles=1000).value == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("step", [Binarize(), Binarize(stochastic=True), Dequantize()])
def test_noise_leaves_missing_entries_missing(step):
    whole = np.random.default_rng(0).integers(0, 9, size=(60, 2)).astype(float)
    x = np.where(np.random.default_rng(1).uniform(size=whole.shape) < 0.3, np.nan, whole)
    before = torch.random.get_rng_state()
    data = load(x, transforms=[step])
    assert torch.equal(torch.random.get_rng_state(), before)
    found = torch.cat([part.x for part in parts(data)])
    assert int(found.isnan().sum()) == np.isnan(x).sum()
    assert found[~found.isnan()].isfinite().all()
    assert data.quantised == isinstance(step, Binarize)


def small():
    return {"encoder": MLP(hidden=(4,)), "decoder": MLP(hidden=(4,))}


@pytest.mark.parametrize("kind", [Mixture, VAE, "wrapped"])
def test_models_of_complete_rows_refuse_missing_entries(kind):
    data = load(holes(), transforms=[Standardize()] if kind == "wrapped" else ())
    if kind is Mixture:
        model = Mixture(x=(3,), components=2, family=Normal())
    else:
        model = data.wrap(VAE(x=(3,), z=(2,), likelihood=Normal(), **small()))
    remedy = "rows hold NaN, missing entries, first .*: set missing = true on a model .*drop the"
    with pytest.raises(Error, match=f"train: .*{remedy}"):
        fit(model, data, epochs=1)
    with pytest.raises(Error, match=remedy):
        log_likelihood(model, data.test)


# From load to figures


def given():
    """Rows whose second half is its context, which moves their mean by far."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, size=300)
    x = random.normal(size=(300, 2)) + 10.0 * label[:, None]
    return load(
        pd.DataFrame(x, columns=["a", "b"]).assign(group=np.where(label, "new", "old")),
        context=("group",),
        labels="group",
        transforms=[Standardize()],
        columns=("a", "b"),
    )


def test_a_conditional_model_from_load_to_samples(tmp_path):
    data = given()
    model = data.wrap(
        ConditionalVAE(x=data.event, z=(1,), context=data.context, likelihood=Normal(), **small())
    )
    fit(model, data, epochs=20, batch_size=16, learning_rate=0.02)
    result = log_likelihood(model, data.test, particles=50)
    shuffled = data.test.replace(context=data.test.context.flip(1))
    assert result.mean > log_likelihood(model, shuffled, particles=50).mean + 5
    for x in (
        model.sample(data.test, seed=0),
        reconstruct(model, data.test, particles=1)[0],
    ):
        near = (x.mean(1) > 5).long()
        codes = data.test.labels
        old = data.levels["group"].index("old")
        assert (near == (codes != old).long()).float().mean() > 0.95
    assert latents(model, data.test)["z"].shape == (1, len(data.test), 1)
    save(model, tmp_path / "run")
    again = open_run(tmp_path / "run").model
    assert torch.equal(model.sample(data.test, seed=1), again.sample(data.test, seed=1))


@pytest.mark.parametrize("use", [latents, reconstruct, log_likelihood, fit])
def test_a_conditional_model_says_what_it_needs(use):
    model = ConditionalVAE(x=(2,), z=(1,), context=(2,), likelihood=Normal(), **small())
    with pytest.raises(Error, match=r"needs a context for each row: Batch\(x, context\), or data"):
        use(model, torch.randn(30, 2))


def test_a_semi_supervised_model_takes_the_classes_of_the_data():
    data = load("iris", labels="target")
    model = SemiSupervisedVAE(
        x=data.event, z=(1,), classes=data.declares["classes"], likelihood=Normal(), **small()
    )
    fit(model, data, epochs=1)
    assert log_likelihood(model, data.test, particles=2).value.shape == (30,)


@pytest.mark.parametrize("other", [Mixture, VAE])
def test_a_context_is_refused_by_models_that_ignore_it(other):
    data = given()
    settings = {"z": (1,), "likelihood": Normal()} if other is VAE else {"components": 2}
    model = data.wrap(other(x=data.event, **settings))
    with pytest.raises(Error, match=f"have a context, which the model '{other.kind}' ignores"):
        fit(model, data)
    conditional = data.wrap(
        ConditionalVAE(x=data.event, z=(1,), context=data.context, likelihood=Normal())
    )
    with pytest.raises(
        Error,
        match=r"'c' and 'm' cannot be compared: log p\(x\) of the one is a density \(Lebesgue "
        r"measure\) given the context, of the other a density \(Lebesgue measure\)$",
    ):
        compare({"c": conditional, "m": model}, data)


def test_a_mixture_refuses_size_factors_that_its_family_does_not_take():
    data = load(frame(), columns=("x1", "x2"), offset="visits")
    with pytest.raises(Error, match="multivariate-normal takes no size factors: leave the offset"):
        fit(Mixture(x=(2,), components=2), data)


# Hand-written models


def shifted(x, context):
    import pyro
    import pyro.distributions as dist

    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(context + z, 1.0).to_event(1), obs=x)


def shifted_guide(x, context):
    import pyro
    import pyro.distributions as dist

    scale = pyro.param("scale", torch.ones(1), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal((x - context) / 2, scale).to_event(1))


def test_a_pair_is_given_the_context(tmp_path):
    data = load(np.random.default_rng(0).normal(5, 1, size=(50, 1)), context=np.full(50, 5.0))
    pair = Pair(model=shifted, guide=shifted_guide)
    fit(pair, data, epochs=2)
    assert pair.tag.given == "the context"
    assert log_likelihood(pair, data.test, particles=20).mean > -4
    assert pair.sample(data.test, seed=0).mean() > 3
    save(pair, tmp_path / "run")
    again = open_run(tmp_path / "run").model
    assert (again.context, again.tag) == ((1,), pair.tag)


def test_a_pair_that_does_not_take_what_the_rows_have():
    data = load("iris", columns=("sepal length (cm)", "sepal width (cm)", "petal width (cm)"),
                labels="target")  # fmt: skip
    with pytest.raises(Error, match=r"_factors' takes \(x: .*\).*, the rows have x, labels: it"):
        fit(Pair(model=_factors, guide=_factors_guide), data)
    with pytest.raises(Error, match=r"takes \(x, context\), the rows have x: it should take"):
        fit(Pair(model=shifted, guide=shifted_guide), torch.randn(50, 1))
