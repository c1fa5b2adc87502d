"""Networks: the functions that map x towards q(z | x) and z towards p(x | z).

A network is given both shapes by the model, so its user types hidden sizes only. It takes any
number of leading dimensions: `(rows, *source)` from the encoder's side and
`(particles, rows, *source)` from the decoder's. Without hidden layers the VAE with normal
distributions is linear, and its exact answers are those of factor analysis.
"""

from abc import abstractmethod
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pyrovae.part import Part

ACTIVATIONS = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Network(Part):
    """The role of a map between shapes. A member has `setup` and `forward`, such as `MLP`."""

    @abstractmethod
    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        """Make the layers between the event shapes `source` and `target`."""

    @abstractmethod
    def forward(self, a: Tensor) -> Tensor:
        """Map `(..., *source)` to `(..., *target)`."""

    def start(self, output: Tensor) -> None:
        """Begin at an output, shape `target`, by the last bias. Nothing where there is none."""


class MLP(Network):
    """A multilayer perceptron; without hidden layers an affine map.

    Args:
        hidden: the sizes of the hidden layers.
        activation: what follows each hidden layer.
        layer_norm: normalise each hidden layer before its activation (Layer Normalization, Ba,
            Kiros & Hinton, 2016).
    """

    hidden: tuple[PositiveInt, ...] = (256,)
    activation: Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"] = "silu"
    layer_norm: bool = False

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.source, self.target = source, target
        layers: list[nn.Module] = []
        for size, following in pairwise((prod(source), *self.hidden)):
            norm = [nn.LayerNorm(following)] if self.layer_norm else []
            layers += [nn.Linear(size, following), *norm, ACTIVATIONS[self.activation]()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear((prod(source), *self.hidden)[-1], prod(target))

    def forward(self, a: Tensor) -> Tensor:
        hidden = self.layers(a.flatten(-len(self.source)))
        return self.output(hidden).unflatten(-1, self.target)

    @torch.no_grad()
    def start(self, output: Tensor) -> None:
        self.output.bias.copy_(output.flatten())
