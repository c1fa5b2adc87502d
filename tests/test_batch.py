"""Batches: rows with what they are conditioned on."""

import numpy as np
import pandas
import pytest
import torch
from torch.utils import _pytree as pytree

from pyrovae import Batch, Pair
from pyrovae.batch import as_batch
from pyrovae.errors import Error
from pyrovae.models.pair import _factors, _factors_guide


def test_rows_are_taken_from_every_entry():
    batch = Batch(
        torch.arange(6.0).reshape(3, 2), labels=torch.tensor([0, 1, 2]), offset=torch.ones(3)
    )
    taken = batch[torch.tensor([2, 0])]
    assert len(batch) == 3
    assert taken.x.tolist() == [[4, 5], [0, 1]]
    assert taken.labels.tolist() == [2, 0]
    assert taken.context is None
    assert batch[1:].x.tolist() == [[2, 3], [4, 5]]


def test_a_batch_is_a_pytree():
    batch = Batch(torch.ones(3, 2), context=torch.zeros(3, 1))
    doubled = pytree.tree_map(lambda t: None if t is None else 2 * t, batch)
    assert isinstance(doubled, Batch)
    assert doubled.x.sum() == 12
    assert doubled.labels is None


def test_labels_stay_whole_when_the_rest_changes_precision():
    moved = Batch(torch.ones(2, 1), labels=torch.tensor([0, 1])).to(
        torch.device("cpu"), torch.float64
    )
    assert moved.x.dtype == torch.float64
    assert moved.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "data",
    [
        np.ones((3, 2)),
        torch.ones(3, 2),
        [[1, 1]] * 3,
        pandas.DataFrame({"a": [1.0] * 3, "b": [1] * 3}),
    ],
)
def test_arrays_tensors_lists_and_frames_are_rows(data):
    assert as_batch(data).x.float().sum() == 6


def test_the_entries_are_the_arguments_of_a_plain_model():
    x, offset = torch.ones(3, 2), torch.zeros(3)
    given = Batch(x, offset=offset).entries
    assert given[0] is x
    assert given[1] is offset


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"context": torch.zeros(4, 2)},
            r"the context of 5 rows should have the shape \(5, 2\), got \(4, 2\)",
        ),
        (
            {"labels": torch.zeros(6).long()},
            r"the labels of 5 rows should have the shape \(5,\), got \(6,\)",
        ),
        (
            {"offset": torch.tensor(2.0)},
            r"the offset of 5 rows should have the shape \(5,\), got \(\)",
        ),
        ({"labels": [0, 1, 0, 1, 0]}, "the labels of a batch is a tensor, got list"),
    ],
)
@pytest.mark.parametrize("use", [as_batch, Batch.check])
def test_entries_that_do_not_belong_together(entries, message, use):
    with pytest.raises(Error, match=message):
        use(Batch(torch.zeros(5, 2), **entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"context": torch.full((5, 1), torch.inf)}, "the context holds NaN or infinite values"),
        (
            {"labels": torch.zeros(5)},
            r"whole numbers of the type torch\.int64, .*got torch\.float",
        ),
        ({"labels": torch.zeros(5, 1).long()}, r"shape \(rows,\), got torch\.int64, \(5, 1\)"),
        ({"offset": torch.arange(5.0)}, "size factors, the offset, are positive, got 0 in row 0"),
        ({"offset": torch.full((5,), torch.nan)}, "are positive, got nan in row 0"),
        ({"offset": torch.ones(5, 1)}, r"the offset has the shape \(rows,\), got \(5, 1\)"),
    ],
)
def test_values_that_rows_cannot_be_given(entries, message):
    batch = Batch(torch.zeros(5, 3), **entries)
    pair = Pair(model=lambda x, c: _factors(x), guide=lambda x, c: _factors_guide(x), x=(3,))
    with pytest.raises(Error, match=message):
        pair.check(batch)


def test_a_context_too_fine_for_the_precision():
    context = 1e9 + torch.arange(5, dtype=torch.float64)[:, None]
    batch = Batch(torch.zeros(5, 1), context)
    with pytest.raises(
        Error, match=r"torch.float32 is too coarse for the entries \[0\] of context"
    ):
        batch.to(torch.device("cpu"), torch.float32)
