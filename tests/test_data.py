"""Where rows come from, how they are split and preprocessed, and what is refused."""

import gzip
import io
import math
import struct

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae import VAE, Mixture, load
from pyrovae.batch import as_batch
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Normal
from pyrovae.models import Transformed
from pyrovae.transforms import Binarize, Dequantize, Standardize

IDX = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def everything(data):
    """All rows of training, validation and test."""
    parts = [as_batch(data.train).x, data.validation.x, data.test.x]
    return torch.cat(parts)


def idx_bytes(array):
    head = struct.pack(">HBB", 0, IDX[array.dtype.name], array.ndim)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return head + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def same_rows(found, wanted):
    """Whether two sets of rows are equal up to their order."""
    found, wanted = (np.asarray(x, dtype=float).reshape(len(x), -1) for x in (found, wanted))
    return np.array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(20, 3))


@pytest.fixture
def put(tmp_path):
    """Write a file and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# Named sets


@pytest.mark.parametrize(
    ("name", "rows", "event"),
    [
        ("digits", 1797, (1, 8, 8)),
        ("wine", 178, (13,)),
        ("breast-cancer", 569, (30,)),
        ("iris", 150, (4,)),
    ],
)
def test_named_sets_have_their_shapes(name, rows, event):
    data = load(name=name)
    assert data.name == name
    assert data.event == event
    assert everything(data).shape == (rows, *event)
    assert len(data.test) == round(0.2 * rows)


def test_digits_are_what_is_loaded_unless_told_otherwise():
    assert load().name == "digits"


@pytest.mark.parametrize(("name", "quantised"), [("digits", True), ("wine", False)])
def test_whole_levels_are_known(name, quantised):
    assert load(name=name).quantised == quantised


def test_columns_of_a_named_set_can_be_chosen():
    data = load(name="wine", columns=("ash", "alcohol"))
    everyone = load(name="wine")
    where = [everyone.columns.index(name) for name in ("ash", "alcohol")]
    assert data.columns == ("ash", "alcohol")
    assert torch.equal(data.test.x, everyone.test.x[:, where])


def test_flatten_makes_rows_vectors():
    flat, image = load(flatten=True), load()
    assert flat.event == (64,)
    assert torch.equal(flat.test.x, image.test.x.flatten(1))


@pytest.fixture
def pixels():
    random = np.random.default_rng(1)
    return [random.integers(0, 256, size=(n, 3, 5), dtype=np.uint8) for n in (12, 4)]


@pytest.fixture(params=[False, True], ids=["plain", "gzipped"])
def mnist(request, pixels, tmp_path):
    for part, images in zip(("train", "t10k"), pixels, strict=True):
        raw, name = idx_bytes(images), f"{part}-images-idx3-ubyte"
        if request.param:
            raw, name = gzip.compress(raw), f"{name}.gz"
        (tmp_path / name).write_bytes(raw)
    return tmp_path


def test_mnist_keeps_its_official_test_rows(mnist, pixels):
    data = load(name="mnist", path=str(mnist), validation=0.25, test=0.5)
    train, test = pixels
    assert data.event == (1, 3, 5)
    assert data.quantised
    assert np.array_equal(data.test.x.numpy(), test[:, None])
    assert len(data.validation) == 3
    assert same_rows(torch.cat([data.train.x, data.validation.x]), train)


def test_the_seed_splits_off_validation_rows_of_mnist_only(mnist):
    one, other = (load(name="mnist", path=str(mnist), seed=seed) for seed in (0, 1))
    assert torch.equal(one.test.x, other.test.x)
    assert not torch.equal(one.train.x, other.train.x)


def test_mnist_without_its_folder(tmp_path):
    with pytest.raises(Error, match=r"data\.path: there is no folder '.*nowhere'"):
        load(name="mnist", path=str(tmp_path / "nowhere"))


def test_mnist_without_its_files(tmp_path):
    with pytest.raises(Error, match="has no file 'train-images-idx3-ubyte'"):
        load(name="mnist", path=str(tmp_path))


def test_mnist_with_a_truncated_file(mnist):
    path = sorted(mnist.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Error, match=r"data\.path: .*t10k-images"):
        load(name="mnist", path=str(mnist))


def test_mnist_with_images_of_two_sizes(mnist):
    path = sorted(mnist.iterdir())[0]
    path.write_bytes(idx_bytes(np.zeros((4, 2, 2), dtype=np.uint8)))
    with pytest.raises(Error, match=r"data\.path: "):
        load(name="mnist", path=str(mnist))


# Files


def as_npy(path, x):
    np.save(path, x)


def as_npz(path, x):
    np.savez(path, first=x[:1], x=x)


def as_npz_without_x(path, x):
    np.savez(path, rows=x)


def as_csv(path, x):
    np.savetxt(path, x, delimiter=",", fmt="%.17g", header="a,b,c", comments="")


def as_bare_csv(path, x):
    np.savetxt(path, x, delimiter=",", fmt="%.17g")


def as_parquet(path, x):
    pd.DataFrame(x, columns=["a", "b", "c"]).to_parquet(path)


def as_idx(path, x):
    path.write_bytes(idx_bytes(x))


WRITERS = [
    ("t.npy", as_npy, ()),
    ("t.npz", as_npz, ()),
    ("t.npz", as_npz_without_x, ()),
    ("t.csv", as_csv, ("a", "b", "c")),
    ("t.csv", as_bare_csv, ()),
    ("t.parquet", as_parquet, ("a", "b", "c")),
    ("t-idx2-double", as_idx, ()),
    ("T.CSV", as_csv, ("a", "b", "c")),
]


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize(("name", "writer", "columns"), WRITERS)
def test_a_file_gives_its_rows(name, writer, columns, gzipped, table, tmp_path):
    path = tmp_path / name
    writer(path, table)
    if gzipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
        path = path.rename(f"{path}.gz")
    data = load(path=str(path))
    assert data.columns == columns
    assert same_rows(everything(data), table)


@pytest.mark.parametrize("dtype", IDX)
def test_idx_files_of_every_type(dtype, tmp_path):
    x = np.arange(60).reshape(20, 3).astype(dtype)
    (tmp_path / "t-idx2").write_bytes(idx_bytes(x))
    data = load(path=str(tmp_path / "t-idx2"))
    assert same_rows(everything(data), x)
    assert data.quantised


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_the_suffix_goes_before_the_word_idx_in_a_name(suffix, table, tmp_path):
    path = tmp_path / f"idx-of-patients.{suffix}"
    {"npy": as_npy, "csv": as_csv}[suffix](path, table)
    assert same_rows(everything(load(path=str(path))), table)


@pytest.mark.parametrize("dtype", [">f8", "<f8", ">f4", "float16", "int64", "bool", "uint16"])
def test_npy_files_of_many_types(dtype, tmp_path):
    x = (np.arange(60).reshape(20, 3) % 7).astype(dtype)
    np.save(tmp_path / "t.npy", x)
    assert same_rows(everything(load(path=str(tmp_path / "t.npy"))), x)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
def test_csv_with_any_line_end(end, table, put):
    lines = ["a,b,c", *(",".join(map(repr, row)) for row in table.tolist())]
    assert same_rows(everything(load(path=put("t.csv", end.join(lines)))), table)


def test_csv_with_a_byte_order_mark_spaces_and_blank_lines(put):
    rows = "\n\n".join(f" {i} , {i + 1}" for i in range(10))
    data = load(path=put("t.csv", "\ufeffa , b\n" + rows + "\n\n"))
    assert data.columns == ("a", "b")
    assert same_rows(everything(data), [(i, i + 1) for i in range(10)])


@pytest.mark.parametrize("columns", [("b",), ("c", "a")])
@pytest.mark.parametrize(("name", "writer"), [("t.csv", as_csv), ("t.parquet", as_parquet)])
def test_chosen_columns_in_the_chosen_order(name, writer, columns, table, tmp_path):
    writer(tmp_path / name, table)
    data = load(path=str(tmp_path / name), columns=columns)
    assert data.columns == columns
    assert same_rows(everything(data), table[:, ["abc".index(name) for name in columns]])


def with_words(table):
    return pd.DataFrame(table, columns=["a", "b", "c"]).assign(word="red")


def test_columns_leave_a_word_column_of_a_csv_out(table, put):
    path = put("t.csv", with_words(table).to_csv(index=False))
    assert same_rows(everything(load(path=path, columns=("a", "c"))), table[:, [0, 2]])


def test_columns_leave_a_word_column_of_a_parquet_file_out(table, tmp_path):
    with_words(table).to_parquet(tmp_path / "t.parquet")
    data = load(path=str(tmp_path / "t.parquet"), columns=("a", "c"))
    assert same_rows(everything(data), table[:, [0, 2]])


def test_columns_leave_a_word_column_of_a_frame_out(table):
    data = load(with_words(table), columns=("a", "c"))
    assert data.columns == ("a", "c")
    assert same_rows(everything(data), table[:, [0, 2]])


# Arrays, tensors, frames


@pytest.mark.parametrize(
    "wrap",
    [
        np.asarray,
        torch.as_tensor,
        lambda x: torch.as_tensor(x).requires_grad_(),
        pd.DataFrame,
        lambda x: x.tolist(),
        lambda x: x[::-1],
    ],
    ids=["array", "tensor", "tensor with gradient", "frame", "lists", "reversed view"],
)
def test_rows_from_memory(wrap, table):
    assert same_rows(everything(load(wrap(table))), table)


def test_a_frame_of_mixed_numbers(table):
    frame = pd.DataFrame({"x": table[:, 0], "count": range(20), "flag": [True, False] * 10})
    data = load(frame)
    assert data.columns == ("x", "count", "flag")
    assert same_rows(everything(data), frame.to_numpy(dtype=float))


@pytest.mark.parametrize(
    ("given", "kept"),
    [("float64", "float64"), ("float32", "float32"), ("int64", "float32"), ("uint8", "float32")],
)
def test_precision_is_kept(given, kept):
    data = load((np.arange(40).reshape(20, 2) % 9).astype(given))
    assert {data.train.x.dtype, data.test.x.dtype} == {getattr(torch, kept)}


def test_loading_leaves_the_rows_of_the_user_alone(table):
    before = table.copy()
    load(table).test.x.zero_()
    assert np.array_equal(table, before)


# The split


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.2), (0.5, 0.1), (0.01, 0.9)])
def test_every_row_is_in_one_part(seed, validation, test):
    data = load(np.arange(1000.0)[:, None], seed=seed, validation=validation, test=test)
    assert sorted(everything(data).flatten().tolist()) == list(range(1000))
    assert len(data.test) == 1000 * test
    assert len(data.validation) == round(1000 * (1 - test) * validation)


def test_the_split_is_a_function_of_the_seed():
    one, again, other = (load(np.arange(100.0)[:, None], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(everything(one), everything(again))
    assert not torch.equal(one.test.x, other.test.x)


def test_the_fingerprint_is_that_of_values_and_split(table):
    marks = [load(table), load(table, seed=1), load(table + 1e-9), load(table)]
    one, other_seed, other_values, again = (data.fingerprint for data in marks)
    assert one == again
    assert len({one, other_seed, other_values}) == 3


def test_no_validation_rows_where_the_fraction_is_0(table):
    data = load(table, validation=0.0)
    assert data.validation is None
    assert len(data.train) + len(data.test) == 20


def test_loading_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    load(transforms=[Binarize(stochastic=True)])
    assert torch.equal(torch.random.get_rng_state(), before)


# Noise


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_binarize_compares_with_a_fraction_of_the_largest(threshold):
    raw, data = load(), load(transforms=[Binarize(threshold=threshold)])
    level = threshold * raw.train.x.max()
    for part, grey in ((data.train, raw.train), (data.validation, raw.validation)):
        assert torch.equal(part.x, (grey.x > level).to(grey.x.dtype))


def test_stochastic_binarize_has_the_intensity_as_its_mean():
    """Five standard errors over 640 pixels: fails for less than one seed in 2000."""
    torch.manual_seed(0)
    raw, data = load(), load(transforms=[Binarize(stochastic=True)])
    p = raw.train.x[:10] / raw.train.x.max()
    mean = torch.stack([data.train[:10].x for _ in range(1000)]).mean(0)
    assert ((mean - p).abs() <= 5 * (p * (1 - p) / 1000).sqrt()).all()


@pytest.mark.parametrize("step", [Binarize(stochastic=True), Dequantize()])
def test_noise_in_training_rows_is_drawn_at_each_use(step):
    data = load(transforms=[step])
    assert not torch.equal(data.train[:10].x, data.train[:10].x)


@pytest.mark.parametrize("step", [Binarize(stochastic=True), Dequantize()])
def test_noise_in_validation_and_test_rows_is_fixed_by_the_seed(step):
    one = load(transforms=[step])
    torch.manual_seed(123)
    again = load(transforms=[step])
    assert torch.equal(one.test.x, again.test.x)
    assert torch.equal(one.validation.x, again.validation.x)
    assert one.fingerprint == again.fingerprint


def test_the_noise_of_the_test_rows_follows_the_seed(mnist):
    one, other = (
        load(name="mnist", path=str(mnist), transforms=[Dequantize()], seed=seed)
        for seed in (0, 1)
    )
    assert not torch.equal(one.test.x, other.test.x)
    assert torch.equal(one.test.x.floor(), other.test.x.floor())


def test_dequantize_adds_less_than_one():
    raw, data = load(), load(transforms=[Dequantize()])
    rows = slice(None)
    for noisy, x in ((data.train[rows].x, raw.train.x), (data.test.x, raw.test.x)):
        u = noisy - x
        assert (u >= 0).all()
        assert (u < 1).all()
        assert abs(u.mean() - 0.5) < 0.01
    assert not data.quantised


def test_noisy_rows_are_preprocessed_in_the_precision_asked_for():
    rows = load(transforms=[Binarize(stochastic=True)]).train
    moved = rows.to(torch.device("cpu"), torch.float32)
    assert len(moved) == len(rows)
    assert moved[:3].x.dtype == torch.float32


# Standardising


def wine():
    return load(name="wine", transforms=[Standardize()])


def test_wrap_puts_the_model_behind_the_transform():
    data = wine()
    model = data.wrap(VAE(x=data.event, z=(2,), likelihood=Normal()))
    assert isinstance(model, Transformed)
    assert model.spec()["transform"] == {"kind": "standardize"}
    assert torch.equal(data.test.x, load(name="wine").test.x)


def test_wrap_leaves_a_model_alone_where_there_is_nothing_to_invert():
    data = load(transforms=[Binarize()])
    model = Mixture(x=data.event, family=Bernoulli())
    assert data.wrap(model) is model


def test_two_wrapped_models_share_nothing():
    data = wine()
    one, other = (data.wrap(Mixture(x=data.event, components=2)) for _ in range(2))
    one.transform.loc.fill_(7.0)
    assert not other.transform.loc.any()


def test_the_density_of_raw_rows_carries_the_jacobian():
    data = wine()
    inner = Mixture(x=data.event, components=3, family=Normal())
    model = data.wrap(inner).double()
    model.start(data.train)
    mean, sd = data.train.x.mean(0), data.train.x.std(0, correction=0)
    standardized = as_batch((data.test.x - mean) / sd)
    wanted = inner.log_prob(standardized) - sd.log().sum()
    torch.testing.assert_close(model.log_prob(data.test), wanted)


def test_the_density_of_raw_rows_integrates_to_one():
    data = load(np.random.default_rng(2).normal(500, 30, size=(80, 1)), transforms=[Standardize()])
    model = data.wrap(Mixture(x=(1,), components=3, family=Normal())).double()
    model.start(data.train)
    grid = torch.linspace(0, 1000, 20001, dtype=torch.float64)[:, None]
    total = torch.trapezoid(model.log_prob(as_batch(grid)).detach().exp(), grid.flatten())
    assert math.isclose(total, 1, abs_tol=1e-6)


def test_a_constant_column_is_only_centred(table):
    table[:, 1] = 4.0
    data = load(table, transforms=[Standardize()])
    model = data.wrap(Mixture(x=(3,), components=1, family=Normal())).double()
    model.start(data.train)
    assert (model.transform(data.test.x)[:, 1] == 0).all()
    assert model.log_prob(data.test).isfinite().all()


# Refusals


def test_whole_levels_are_refused_by_a_density():
    data = load()
    with pytest.raises(Error, match=r"'digits' are whole levels.*'dequantize'"):
        data.wrap(VAE(x=data.event, z=(2,), likelihood=Normal()))


def test_dequantized_levels_are_taken_by_a_density():
    data = load(transforms=[Dequantize()])
    model = VAE(x=data.event, z=(2,), likelihood=Normal())
    assert data.wrap(model) is model


def test_binarized_levels_are_refused_by_a_density(table):
    data = load(np.abs(table), transforms=[Binarize()])
    with pytest.raises(Error, match="are whole levels"):
        data.wrap(VAE(x=data.event, z=(2,), likelihood=Normal()))


def test_standardize_is_refused_before_probabilities():
    data = load(transforms=[Binarize(), Standardize()])
    with pytest.raises(Error, match="standardize needs a density: bernoulli takes 0 or 1"):
        data.wrap(VAE(x=data.event, z=(2,), likelihood=Bernoulli()))


@pytest.mark.parametrize("noise", [Binarize(), Dequantize()])
def test_noise_comes_first(noise):
    with pytest.raises(Error, match=r"data\.transforms: noise comes before invertible transforms"):
        load(transforms=[Standardize(), noise])


def test_binarize_refuses_negative_intensities(table):
    with pytest.raises(Error, match="binarize takes intensities from 0, got -"):
        load(table, transforms=[Binarize()])


def test_dequantize_refuses_fractions():
    with pytest.raises(Error, match=r"dequantize takes whole numbers, got 0\.5"):
        load(np.full((20, 2), 0.5), transforms=[Dequantize()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, r"data\.name: unknown data set ''"),
        ({"path": ""}, r"data\.path: there is no file"),
        ({"name": "digit"}, r"data\.name: unknown data set 'digit'. Did you mean 'digits'\?"),
        ({"name": "cifar"}, "Known: breast-cancer, digits, iris, mnist, wine"),
        ({"name": "wine", "path": "x.csv"}, r"data\.path: 'wine' ships with scikit-learn"),
        ({"name": "wine", "columns": ("alchol",)}, "data.columns: .*Did you mean 'alcohol'"),
        ({"columns": ("a",)}, r"data\.columns: the columns have no names"),
        ({"path": "nowhere.csv"}, r"data\.path: there is no file 'nowhere\.csv'"),
        ({"validation": -0.1}, "validation: should be greater than or equal to 0, got -0.1"),
        ({"validation": 1.0}, "validation: should be less than 1"),
        ({"test": 0.0}, "test: should be greater than 0, got 0.0"),
        ({"seed": -1}, "seed: should be greater than or equal to 0"),
        ({"transforms": ["binarise"]}, r"transforms\.0: .*Did you mean 'binarize'\?"),
        ({"transforms": [{"kind": "binarize", "treshold": 1}]}, "Did you mean 'threshold'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(Error, match=message):
        load(**arguments)


def test_rows_and_a_name_at_once(table):
    with pytest.raises(Error, match="give rows, or a name or path, not both"):
        load(table, name="wine")


def npz_without_arrays(tmp_path):
    np.savez(tmp_path / "empty.npz")
    return (tmp_path / "empty.npz").read_bytes()


def damaged_gzip():
    """A stream whose header and length are right, and whose deflated bytes are not."""
    raw = bytearray(gzip.compress(idx_bytes(np.arange(3000.0).reshape(1000, 3))))
    raw[20:60] = bytes(40)
    return bytes(raw)


def claiming(rows):
    """An npy file that says how many rows it has, and has none."""
    header = {"descr": "<f8", "fortran_order": False, "shape": (rows, 3)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


IDX_BYTES = idx_bytes(np.arange(60.0).reshape(20, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.npy", "a,b\n1,2\n", "is not what its name says"),
        ("t.npz", "a,b\n1,2\n", "is not what its name says"),
        ("t.npz", b"PK\x03\x04 no archive", "is not what its name says"),
        ("t.parquet", "PAR1 garbage PAR1", "is not what its name says"),
        ("t.parquet", "garbage", "is not what its name says"),
        ("t.csv", b"\x93\xff\xfe\x00", "is not what its name says"),
        ("t.csv", "x" * 200_000, "is not what its name says"),
        ("t.npy", claiming(10**15), "is not what its name says"),
        ("t.npy", claiming(10), "is not what its name says"),
        ("t-idx2", "garbage in here", "does not begin as an idx file does"),
        ("t-idx2", IDX_BYTES[:-8], r"says \(20, 3\) and holds 59 values"),
        ("t-idx2", IDX_BYTES[:-3], "is not what its name says"),
        ("t-idx2", IDX_BYTES[:2], "is not what its name says"),
        ("t-idx2.gz", gzip.compress(IDX_BYTES)[:-30], "is not what its name says"),
        ("t-idx2.gz", damaged_gzip(), "is not what its name says"),
        ("t.txt", "1,2\n", r"is of no known kind. Known: \.csv, \.npy, \.npz, \.parquet, idx"),
        ("t.csv", "a,b\n1,2\n3\n", "line 3 of '.*' has 1 cells, the first has 2"),
        ("t.csv", "a,b\n\n1,2\n\n3\n", "line 5 of '.*' has 1 cells, the first has 2"),
        ("t.csv", "1,2\n1,2,3\n", "line 2 of '.*' has 3 cells, the first has 2"),
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b\n", "has no row"),
        ("t.csv", "a,b\n1,x\n", "column 'b' of 't.csv' holds 'x'"),
        ("t.csv", "1,2\n1,x\n", "column '2' of 't.csv' holds 'x'"),
        *(
            (name, "", "is not what its name says")
            for name in ("t.npy", "t.npz", "t.parquet", "t-idx2", "t-idx2.gz")
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says(name, content, message, put):
    path = put(name, content)
    with pytest.raises(Error, match=message):
        load(path=path)


def test_an_npz_file_without_arrays(put, tmp_path):
    with pytest.raises(Error, match="is not what its name says"):
        load(path=put("t.npz", npz_without_arrays(tmp_path)))


def test_an_npz_file_that_is_an_npy_file(put, tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((20, 2)))
    with pytest.raises(Error, match="is not what its name says"):
        load(path=put("t.npz", (tmp_path / "t.npy").read_bytes()))


def test_an_idx_file_of_labels(put):
    with pytest.raises(Error, match=r"should have the shape \(rows, \*x\), got \(20,\)"):
        load(path=put("labels-idx1-ubyte", idx_bytes(np.zeros(20, dtype=np.uint8))))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_word_column_is_named(suffix, table, tmp_path):
    path, frame = tmp_path / f"t.{suffix}", with_words(table)
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    with pytest.raises(Error, match=f"column 'word' of 't.{suffix}' holds 'red'"):
        load(path=str(path))


def test_a_word_column_of_a_frame_is_named(table):
    with pytest.raises(Error, match=r"data\.columns: column 'word' of 'array' holds 'red'"):
        load(with_words(table))


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_one_infinite_value_in_any_part(value, part):
    x = np.arange(100.0)[:, None]
    row = int(as_batch(getattr(load(x), part)).x[0])
    x[row] = value
    with pytest.raises(Error, match=f"1 of 100 rows of 'array' hold infinite .* row {row}"):
        load(x)


def test_an_infinite_cell_of_a_csv(put):
    with pytest.raises(Error, match=r"20 of 20 rows of 't\.csv' hold infinite values"):
        load(path=put("t.csv", "a,b\n" + "1,inf\n" * 20))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.empty((0, 3)), "has no row"),
        (np.empty((20, 0)), "has no column|no values|shape"),
        (np.zeros(20), r"should have the shape \(rows, \*x\), got \(20,\)"),
        (np.zeros((20, 2), dtype=complex), r"are not .*numbers .*complex"),
        (np.full((20, 2), "x"), r"are not .*numbers"),
        ([[1.0, 2.0], [3.0]] * 10, "shape|numbers"),
        (pd.DataFrame({"a": ["x"] * 20}), "column 'a' of 'array' holds 'x'"),
        (pd.DataFrame({"a": []}), "has no row"),
    ],
    ids=[
        "no rows",
        "no columns",
        "a vector",
        "complex",
        "words",
        "ragged lists",
        "frame of words",
        "empty frame",
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(Error, match=message):
        load(rows)


def test_no_column_chosen(table):
    with pytest.raises(Error, match="column"):
        load(pd.DataFrame(table), columns=())


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_too_few_rows_to_split(rows):
    with pytest.raises(Error, match=f"data: {rows} rows are too few"):
        load(np.zeros((rows, 2)))


def test_the_header_that_pandas_writes_by_default_is_one(tmp_path):
    pd.DataFrame(np.random.default_rng(0).normal(size=(100, 3))).to_csv(
        tmp_path / "t.csv", index=False
    )
    data = load(path=str(tmp_path / "t.csv"))
    assert data.columns == ("0", "1", "2")
    assert len(data.train) + len(data.validation) + len(data.test) == 100


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_row_is_in_the_fingerprint(part):
    x = np.random.default_rng(0).normal(size=(100, 3))
    data = load(x)
    row = np.flatnonzero((x.astype(np.float64) == getattr(data, part)[:1].x.numpy()).all(1))
    changed = x.copy()
    changed[row] += 1e-3
    assert load(changed).fingerprint != data.fingerprint
