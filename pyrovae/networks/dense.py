r"""Networks of affine maps, which know nothing of what the entries of a row are.

    a_0 = source,   a_l = f_l(a_{l-1}),   target = W a_L + b

Without hidden layers the decoder is x = W z + b, and the VAE with normal distributions is factor
analysis: log p(x) and the posterior are known, and an affine encoder is the posterior's mean. A
hidden layer f is one of

    plain      f(a) = \phi(V a + c)
    residual   f(a) = a + \phi(V a + c)
    gated      f(a) = (V a + c) * sigmoid(U a + d)

The second hands the gradient on as it is, the third along a linear path that the gate opens.
"""

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyrovae.networks.network import ACTIVATIONS, Activation, Network, Residual


class Linear(Network):
    """An affine map, W a + b, between any two shapes."""

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.source, self.target = source, target
        self.output = nn.Linear(prod(source), prod(target))

    def forward(self, a: Tensor) -> Tensor:
        return self.output(a.flatten(-len(self.source))).unflatten(-1, self.target)

    @torch.no_grad()
    def start(self, output: Tensor) -> None:
        self.output.bias.copy_(output.flatten())


class MLP(Network):
    r"""A multilayer perceptron, W \phi(V a + c) + b, between any two shapes.

    Layer Normalization (Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450).
    Deep Residual Learning for Image Recognition (He et al., 2016,
    https://arxiv.org/abs/1512.03385). Language Modeling with Gated Convolutional Networks
    (Dauphin et al., 2017, https://arxiv.org/abs/1612.08083). Improving neural networks by
    preventing co-adaptation of feature detectors (Hinton et al., 2012,
    https://arxiv.org/abs/1207.0580).

    Args:
        hidden: the sizes of the hidden layers; without any the map is affine.
        activation: what a hidden layer ends in, unless it is gated.
        layer_norm: whether each hidden layer is normalised before its activation or gate.
        dropout: the probability with which a hidden unit is left out in training.
        blocks: what a hidden layer is: `plain`; `residual`, which adds to its input, after a
            linear map where the sizes differ; or `gated`, one affine map times the sigmoid of
            another.
    """

    hidden: tuple[PositiveInt, ...] = (256,)
    activation: Activation = "silu"
    layer_norm: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    blocks: Literal["plain", "residual", "gated"] = "plain"

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.source, self.target = source, target
        sizes = (prod(source), *self.hidden)
        self.layers = nn.Sequential(*(self._block(*pair) for pair in pairwise(sizes)))
        self.output = nn.Linear(sizes[-1], prod(target))

    def _block(self, size: int, following: int) -> nn.Module:
        """A hidden layer from `size` to `following` units."""
        gated = self.blocks == "gated"
        width = 2 * following if gated else following
        norm = [nn.LayerNorm(width)] if self.layer_norm else []
        activation = nn.GLU() if gated else ACTIVATIONS[self.activation]()
        dropout = [nn.Dropout(self.dropout)] if self.dropout else []
        block = nn.Sequential(nn.Linear(size, width), *norm, activation, *dropout)
        if self.blocks != "residual":
            return block
        return Residual(block, None if size == following else nn.Linear(size, following, False))

    def forward(self, a: Tensor) -> Tensor:
        hidden = self.layers(a.flatten(-len(self.source)))
        return self.output(hidden).unflatten(-1, self.target)

    @torch.no_grad()
    def start(self, output: Tensor) -> None:
        self.output.bias.copy_(output.flatten())

    @classmethod
    def examples(cls) -> tuple["MLP", ...]:
        return (
            cls(),
            cls(hidden=(8, 8), blocks="residual", layer_norm=True, dropout=0.5),
            cls(hidden=(8, 6), blocks="gated", layer_norm=True),
        )


class Squashed(Network):
    """A network that sees 1 / (1 + e^-a) in place of a: numbers between 0 and 1, not log-odds.

    The decoder of `relaxed-bernoulli` latents.

    Args:
        network: what sees them.
    """

    network: Network = MLP()

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.network.setup(source, target)

    def forward(self, a: Tensor) -> Tensor:
        return self.network(a.sigmoid())

    def start(self, output: Tensor) -> None:
        self.network.start(output)
