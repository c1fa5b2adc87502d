"""The role of a network, and the pieces that its members share.

A network maps events to events, one row at a time: nothing that it computes for a row may depend
on the other rows, or a held-out log p(x) would be a property of the batch that x came in. So
hidden layers are normalised over their features, never over the batch.

Its last step adds a bias of the target's shape. A decoder whose bias starts at the h that fits
all rows at once begins as the marginal distribution of the data, and has to learn only what z
changes about it.
"""

from abc import abstractmethod
from typing import Literal

from torch import Tensor, nn

from pyrovae.part import Part

Activation = Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Network(Part):
    """The role of a map between shapes.

    A member has `setup` and `forward`, and `start` where it ends in a bias; `Linear` is the
    shortest.
    """

    @abstractmethod
    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        """Make the layers between the event shapes `source` and `target`.

        Raises:
            Error: shapes that the network cannot map between.
        """

    @abstractmethod
    def forward(self, a: Tensor) -> Tensor:
        """Map `(..., *source)` to `(..., *target)`."""

    def start(self, output: Tensor) -> None:
        """Begin at an output, shape `target`, by the last bias. Nothing where there is none."""


class Residual(nn.Module):
    """A layer that adds to what it is given, x + f(x).

    Args:
        f: what is added.
        skip: what x goes through instead, where f changes its shape.
    """

    def __init__(self, f: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.f, self.skip = f, skip or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape that both take."""
        return self.skip(x) + self.f(x)
