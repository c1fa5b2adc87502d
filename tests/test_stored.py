"""Rows that stay bytes, rows that stay in their file, and what a fit sees of them."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyrovae import VAE, Mixture, fit, load, log_likelihood, sources, stored
from pyrovae.batch import Batch, as_batch, beginning, gathered
from pyrovae.errors import Error
from pyrovae.evaluate.weights import bound
from pyrovae.families import Bernoulli, Normal
from pyrovae.inference.epoch import ordered
from pyrovae.stored import CPU, Raw, ahead
from pyrovae.transforms import Binarize, Dequantize, Standardize, _levels

ROWS = 1000


@pytest.fixture
def pixels():
    """All bytes, so that both ends of the scale are among the training rows."""
    return np.random.default_rng(0).integers(0, 256, size=(200, 1, 4, 4), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch):
    """Blocks of 10 rows of 3 numbers in float32, and a buffer of 80."""
    monkeypatch.setattr(stored, "BLOCK", 120)
    monkeypatch.setattr(stored, "BUFFER", 960)


@pytest.fixture
def on_disk(tmp_path):
    """The map of a file of these rows."""

    def write(x):
        np.save(tmp_path / "rows.npy", x)
        return np.load(tmp_path / "rows.npy", mmap_mode="r")

    return write


@pytest.fixture
def table():
    """Rows that say which they are."""
    x = np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)
    x[:, 0] = np.arange(ROWS)
    return x


# Bytes


@pytest.mark.parametrize("steps", [(), (Binarize(),), (Dequantize(),)], ids=len)
def test_bytes_stay_bytes_and_give_the_numbers_of_floats(steps, pixels):
    kept, wide = load(pixels, transforms=steps), load(pixels.astype("f4"), transforms=steps)
    assert kept.train.source.x.dtype == torch.uint8
    assert kept.fingerprint == wide.fingerprint
    for dtype in (torch.float32, torch.float64):
        parts = []
        for data in (kept, wide):
            torch.manual_seed(0)
            parts.append(data.train.to(CPU, dtype)[5:25].x)
        assert parts[0].dtype == dtype
        assert torch.equal(*parts)


def test_a_fit_of_bytes_is_the_fit_of_floats(pixels):
    losses = []
    for x in (pixels, pixels.astype("f4")):
        torch.manual_seed(0)
        model = VAE(x=(1, 4, 4), z=(2,), likelihood=Normal())
        data = load(x, transforms=[Dequantize()])
        losses.append(fit(model, data, epochs=2, batch_size=30, progress=False).epochs[-1].loss)
    assert losses[0] == losses[1]


def test_labels_stay_with_rows_of_bytes(pixels):
    data = load(pixels, labels=np.arange(200) % 10, offset=np.arange(1.0, 201.0))
    row = int(data.train[7:8].offset) - 1
    assert np.array_equal(data.train[7:8].x[0].numpy(), pixels[row])
    assert data.train.labels[7] == row % 10


def test_levels_are_equally_likely():
    """255 counts within 5 standard errors: fails for less than one seed in 6000."""
    torch.manual_seed(0)
    counts = torch.bincount(_levels(2_000_001).long(), minlength=256)
    assert counts.sum() == 2_000_001
    assert counts[255] == 0
    mean = 2_000_001 / 255
    assert ((counts[:255] - mean).abs() < 5 * mean**0.5).all()


def test_a_byte_is_a_one_with_its_intensity_as_probability(pixels):
    """5 standard errors over 3,200 pixels: fails for less than one seed in 500."""
    torch.manual_seed(0)
    data = load(np.concatenate([pixels, pixels]), transforms=[Binarize(stochastic=True)])
    raw = data.train.source.x
    p = raw.double() / 255
    ones = torch.stack([data.train[:].x for _ in range(400)]).double().mean(0)
    assert (ones[raw == 0] == 0).all()
    assert (ones[raw == 255] == 1).all()
    assert ((ones - p).abs() <= 5 * (p * (1 - p) / 400).sqrt()).all()


def test_noise_of_bytes_follows_the_seed(pixels):
    rows = load(pixels, transforms=[Binarize(stochastic=True)]).train
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(rows[:].x)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Files


def test_a_file_is_split_as_an_array_is(on_disk, table, small):
    labels = np.arange(ROWS) % 7
    there, here = (load(x, labels=labels) for x in (on_disk(table), table))
    assert there.event == here.event
    assert not there.quantised
    for name in ("train", "validation", "test"):
        part, wanted = getattr(there, name), as_batch(getattr(here, name))
        assert part.streamed
        order = wanted.x[:, 0].argsort()
        assert torch.equal(part[:].x, wanted.x[order])
        assert torch.equal(part[:].labels, wanted.labels[order])


@pytest.mark.parametrize("dtype", [">f8", "f2", "u1", "i8"])
def test_files_of_other_types(dtype, on_disk):
    x = (np.arange(60).reshape(20, 3) % 7).astype(dtype)
    data = load(on_disk(np.asfortranarray(x)))
    assert data.quantised
    found = torch.cat([getattr(data, part)[:].x for part in ("train", "validation", "test")])
    assert found.dtype == (torch.float64 if dtype == ">f8" else torch.float32)
    assert sorted(found.tolist()) == sorted(x.astype(float).tolist())


def test_only_large_plain_npy_files_stay_on_disk(table, tmp_path, monkeypatch):
    np.save(tmp_path / "t.npy", table)
    (tmp_path / "t.npy.gz").write_bytes(gzip.compress((tmp_path / "t.npy").read_bytes()))
    assert isinstance(load(tmp_path / "t.npy").test, Batch)
    monkeypatch.setattr(sources, "MAPPED", table.nbytes)
    assert load(tmp_path / "t.npy").test.streamed
    assert isinstance(load(tmp_path / "t.npy.gz").test, Batch)


def test_the_fingerprint_of_a_file(on_disk, table):
    one, again, seed = (load(on_disk(table), seed=seed).fingerprint for seed in (0, 0, 1))
    table[500, 2] += 1e-3
    assert one == again
    assert len({one, seed, load(on_disk(table)).fingerprint}) == 3


def test_an_epoch_visits_each_row_once(on_disk, table, small):
    rows = load(on_disk(table)).train
    epochs = []
    for seed in (0, 0, 1):
        batches = list(ordered(rows, 32, seed))
        assert {len(batch) for batch in batches[:-1]} == {32}
        for batch in batches:
            assert torch.equal(batch.x, rows[batch.index].x)
        epochs.append(torch.cat([batch.index for batch in batches]))
        assert epochs[-1].sort().values.tolist() == list(range(len(rows)))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    left = torch.cat([batch.index for batch in ordered(rows, 32, 0, done=3)])
    assert torch.equal(left, epochs[0][3 * 32 :])


def test_a_batch_comes_from_all_over_the_file(on_disk, table, small):
    """A buffer holds 8 of 68 blocks: in a file in order, neighbours in a batch are far apart."""
    for batch in list(ordered(load(on_disk(table)).train, 16, 0))[:-1]:
        assert len((batch.index // 10).unique()) >= 4
        assert batch.index.diff().abs().double().mean() > 50


def test_only_a_buffer_of_rows_is_read_at_a_time(on_disk, table, small, monkeypatch):
    read, sizes = stored._read, []

    def watched(file, index):
        sizes.append(len(index))
        return read(file, index)

    monkeypatch.setattr(stored, "_read", watched)
    data = load(on_disk(table))
    model = data.wrap(VAE(x=(3,), z=(1,), likelihood=Normal()))
    fit(model, data, epochs=1, batch_size=16, progress=False, compile=False)
    log_likelihood(model, data.test, particles=2, rows=20)
    assert sum(sizes) > 2.5 * ROWS
    assert max(sizes) == 80


PEAK = """
import resource, numpy as np
from pyrovae import VAE, fit, load, stored
from pyrovae.networks import MLP
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
def fitted(x):
    model = VAE(x=x.shape[1:], z=(1,), encoder=MLP(hidden=(4,)), decoder=MLP(hidden=(4,)))
    fit(model, load(x), epochs=1, batch_size=1000, progress=False, compile=False)
fitted(np.zeros((5000, 1000), "f4"))
np.lib.format.open_memmap({path!r}, "w+", "f4", (40_000, 1000))
before, stored.BUFFER = peak(), 2**23
fitted(np.load({path!r}, mmap_mode="r"))
print(peak() - before)
"""


@pytest.mark.slow
def test_the_memory_of_a_fit_is_not_that_of_the_file(tmp_path):
    """In MiB, of a file of 153."""
    code = PEAK.format(path=str(tmp_path / "rows.npy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 70


def test_em_goes_through_a_file_in_blocks(on_disk, table, small):
    fits = []
    for x in (on_disk(table), table):
        torch.manual_seed(0)
        model, rows = Mixture(x=(3,), components=2), load(x).train
        model.start(torch_rows(table))
        fit(model, rows, start=False, epochs=5, tolerance=0, progress=False)
        fits.append(model)
    for one, other in zip(*(model.parameters() for model in fits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def torch_rows(x):
    return as_batch(torch.from_numpy(x[:50]))


def test_the_bound_on_a_file_is_that_on_its_rows(on_disk, table, small):
    model = Mixture(x=(3,), components=2).double()
    rows = load(on_disk(table)).test.to(CPU, torch.float64)
    assert bound(model, rows) == pytest.approx(bound(model, rows[:]), rel=1e-12)


def test_a_model_starts_at_a_sample_of_a_file(on_disk, table, small):
    rows = load(on_disk(table)).train
    assert gathered(rows) is rows
    some = beginning(rows)
    assert len(some) == 80
    assert some.x[-1, 0] - some.x[0, 0] > 500
    assert torch.equal(some.x, beginning(rows).x)


def test_steps_start_at_all_rows_of_a_file(on_disk, small):
    x = np.zeros((ROWS, 3), dtype=np.uint8)
    row = int(load(np.arange(ROWS)[:, None]).train[:1].x)
    x[row], x[-1, 0] = 200, 1
    data = load(on_disk(x), transforms=[Binarize(stochastic=True)])
    assert data.train.steps[0].largest == 200
    assert isinstance(data.test, Batch)
    assert torch.equal(
        data.test.x, load(on_disk(x), transforms=[Binarize(stochastic=True)]).test.x
    )


def test_an_inverted_step_starts_at_the_sample(on_disk, table):
    data = load(on_disk(table), transforms=[Standardize()])
    model = data.wrap(VAE(x=(3,), z=(1,), likelihood=Normal()))
    fit(model, data, epochs=1, progress=False)
    torch.testing.assert_close(model.transform.loc, data.train.x.mean(0))


# Refusals


def row_of(table, part):
    """The place in the file of the last row of a part."""
    return int(as_batch(getattr(load(table), part)).x[:, 0].max())


def test_an_infinite_value_in_a_file(on_disk, table, small):
    table[777, 1] = np.inf
    with pytest.raises(Error, match=r"1 of 1000 rows of 'array' hold infinite .* row 777"):
        load(on_disk(table))


def test_a_column_that_is_missing_in_all_training_rows_of_a_file(on_disk, table, small):
    rows = load(table).train.x[:, 0].long().numpy()
    table[rows, 2] = np.nan
    with pytest.raises(Error, match="column '3' of 'array' is missing in every training row"):
        load(on_disk(table))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_missing_entry_in_the_last_block_is_found(part, on_disk, table, small):
    table[row_of(table, part), 1] = np.nan
    data = load(on_disk(table))
    with pytest.raises(Error, match=rf"{part}\[\d+:{len(getattr(data, part))}\]: 1 of .* NaN"):
        fit(VAE(x=(3,), z=(1,), likelihood=Normal()), data, epochs=1, progress=False)


def test_rows_of_a_file_outside_the_support(on_disk, small):
    x = np.zeros((ROWS, 3), dtype=np.uint8)
    x[row_of(np.arange(ROWS, dtype=float)[:, None], "train")] = 2
    with pytest.raises(Error, match=r"train\[.*outside the support"):
        fit(VAE(x=(3,), z=(1,), likelihood=Bernoulli()), load(on_disk(x)), progress=False)


def test_missing_entries_of_a_file_are_skipped_by_a_model_that_can(on_disk, table, small):
    table[::3, 1] = np.nan
    model = VAE(x=(3,), z=(1,), likelihood=Normal(), missing=True)
    history = fit(model, load(on_disk(table)), epochs=1, progress=False)
    assert np.isfinite(history.epochs[-1].loss)


def test_rows_of_a_file_that_float32_cannot_hold(on_disk, table, small):
    with pytest.raises(Error, match="too coarse"):
        fit(
            VAE(x=(3,), z=(1,), likelihood=Normal()),
            load(on_disk(table.astype(float) + 1e9)),
            dtype="float32",
            progress=False,
        )


# Devices


def test_batches_are_taken_one_ahead_in_order():
    taken = []

    def batches():
        for number in range(4):
            taken.append(number)
            yield Batch(torch.full((2, 1), float(number)))

    for number, batch in enumerate(ahead(batches(), CPU)):
        assert (batch.x == number).all()
        assert len(taken) == min(number + 2, 4)
    assert number == 3
    assert not list(ahead([], CPU))


def test_rows_that_do_not_fit_are_streamed(small):
    rows = Raw(Batch(torch.arange(300.0)[:, None].expand(-1, 3)), device=torch.device("meta"))
    assert rows.streamed
    drawn = torch.cat([batch.x for batch in rows._drawn(32, torch.Generator())])
    assert sorted(drawn[:, 0].tolist()) == list(range(300))
