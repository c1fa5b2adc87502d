"""Batches: rows with what they are conditioned on."""

import numpy as np
import pandas
import pytest
import torch
from torch.utils import _pytree as pytree

from pyrovae import Batch
from pyrovae.batch import as_batch


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
