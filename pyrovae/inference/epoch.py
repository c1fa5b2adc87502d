"""What all ways of fitting share: epochs, the order of rows, copies of weights.

The order of an epoch comes from one random number, with which any part of it can be gone through
again: a fit that is taken up in the middle of an epoch leaves out the batches that are done.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.batch import Batch, Rows, streamed
from pyrovae.models import Model


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Args:
        index: counted from 0.
        loss: the mean over rows of minus the bound, in nats, as met in training; for EM before its
            M-step.
        validation: the mean bound on the validation rows, NaN without any.
        seconds: since the fit began.
        figures: what else is known by name: the parts of the bound, scheduled numbers.
    """

    index: int
    loss: float
    validation: float = float("nan")
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


def unheard(rows: int) -> None:
    """Nobody wants to know how many rows are done."""


def weights(model: Model) -> dict[str, Tensor]:
    """A copy of the parameters and buffers, for `load_state_dict`."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def new_order() -> int:
    """The number that an epoch's order comes from, drawn from torch's generator."""
    return int(torch.randint(2**62, ()))


def ordered(rows: Rows, batch_size: int, order: int, done: int = 0) -> Iterator[Batch]:
    """The batches of an epoch, without those that are done.

    Args:
        rows: of all epochs.
        batch_size: rows in a batch; the last one can be smaller.
        order: what `new_order` gave.
        done: how many batches are left out.
    """
    generator = torch.Generator().manual_seed(order)
    if streamed(rows):
        return rows.shuffled(batch_size, generator, done)
    places = torch.randperm(len(rows), generator=generator).split(batch_size)[done:]
    return (rows[index].replace(index=index) for index in places)
