r"""Networks of convolutions, from and to images `(channels, height, width)`, or vectors.

A convolution sums over a window of k x k pixels, with the same weights wherever it stands. With
stride 2 it halves an image, and its transpose doubles one,

    s -> ceil(s / 2)                    strided, with (k - 1) / 2 pixels of padding
    s -> 2 s - 1 + e,   e = 0 or 1      transposed, with e more on one side,

so halving an image again and again, and going back with the e that each step needs, ends at its
own size, also where that is odd or small. An encoder halves, and an affine map takes what is left
to the target; a decoder is its mirror image. Between two images every map is a convolution and
the sizes are in geometric progression: a latent that is an image stays one, and each of its
pixels answers for a region of x.

The weights of hidden images begin at the scale at which these are as large as the source
(Delving Deep into Rectifiers, He et al., 2015); with smaller ones a decoder is slow to hear of z.
The bias at the end has a value for each pixel, not for each channel: it can be any image.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyrovae.errors import Error
from pyrovae.networks.network import ACTIVATIONS, Activation, Network, Residual

Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Conv(Network):
    r"""A convolutional network, W * \phi(V * a + c) + b, where source or target is an image.

    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
    (Radford, Metz & Chintala, 2016, https://arxiv.org/abs/1511.06434).

    Args:
        channels: those of the hidden images, from the largest image to the smallest.
        kernel: the height and the width of a window, in pixels.
        activation: what each hidden image goes through.
    """

    channels: Channels = (32, 64)
    kernel: Literal[3, 5, 7] = 3
    activation: Activation = "silu"

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        activation = ACTIVATIONS[self.activation]
        self.pyramid = Pyramid(source, target, self.channels, self.kernel, lambda _: activation())

    def forward(self, a: Tensor) -> Tensor:
        return self.pyramid(a)

    def start(self, output: Tensor) -> None:
        self.pyramid.start(output)


class ResNet(Network):
    r"""A residual network, a + W * \phi(V * \phi(a)) at each size, where one shape is an image's.

    Deep Residual Learning for Image Recognition (He et al., 2016,
    https://arxiv.org/abs/1512.03385). Identity Mappings in Deep Residual Networks (He et al.,
    2016, https://arxiv.org/abs/1603.05027).

    Args:
        channels: those of the hidden images, from the largest image to the smallest.
        blocks: the residual blocks of each hidden image.
        activation: what precedes each convolution of a block.
        layer_norm: whether an image is normalised before each activation, over channels and
            pixels together.
    """

    channels: Channels = (32, 64)
    blocks: PositiveInt = 2
    activation: Activation = "silu"
    layer_norm: bool = True

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.pyramid = Pyramid(source, target, self.channels, 3, self._stage)

    def _stage(self, channels: int) -> nn.Module:
        """The residual blocks of a hidden image, and what precedes the next map."""
        blocks = (
            Residual(nn.Sequential(*self._half(channels), *self._half(channels)))
            for _ in range(self.blocks)
        )
        return nn.Sequential(*blocks, *self._active(channels))

    def _half(self, channels: int) -> list[nn.Module]:
        return [*self._active(channels), nn.Conv2d(channels, channels, 3, padding=1)]

    def _active(self, channels: int) -> list[nn.Module]:
        norm = [nn.GroupNorm(1, channels)] if self.layer_norm else []
        return [*norm, ACTIVATIONS[self.activation]()]

    def forward(self, a: Tensor) -> Tensor:
        return self.pyramid(a)

    def start(self, output: Tensor) -> None:
        self.pyramid.start(output)

    @classmethod
    def examples(cls) -> tuple["ResNet", ...]:
        return (cls(channels=(6, 8)), cls(channels=(8,), blocks=1, layer_norm=False))


class Image(NamedTuple):
    """The shape of an image; an event of fewer than three dimensions is a vector."""

    channels: int
    height: int
    width: int

    def halved(self, channels: int) -> "Image":
        """The shape of half its size."""
        return Image(channels, -(-self.height // 2), -(-self.width // 2))

    def towards(self, other: "Image", part: float, channels: int) -> "Image":
        """The shape that is a part of the way to another, in geometric progression."""
        height = round(self.height * (other.height / self.height) ** part)
        width = round(self.width * (other.width / self.width) ** part)
        return Image(channels, height, width)


class Pyramid(nn.Module):
    """Maps through hidden images of growing or shrinking size, with a stage at each of them.

    Args:
        source: the shape of an event.
        target: the shape of what it is mapped to.
        channels: those of the hidden images, from the largest image to the smallest.
        kernel: the height and the width of a window, in pixels.
        stage: makes what a hidden image goes through, from its number of channels.
    """

    def __init__(
        self,
        source: tuple[int, ...],
        target: tuple[int, ...],
        channels: Sequence[int],
        kernel: int,
        stage: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        images = _images(source, target, channels)
        final = images[-1] if len(target) > 2 else None
        maps = [_convolution(a, b, kernel, b is not final) for a, b in pairwise(images)]
        if len(source) > 2:
            self.entry: tuple[int, ...] = images.pop(0)
        else:
            self.entry = (prod(source),)
            affine = nn.Linear(prod(source), prod(images[0]))
            maps.insert(0, nn.Sequential(affine, nn.Unflatten(1, images[0])))
        if final is None:
            affine = nn.Linear(prod(images[-1]), prod(target), bias=False)
            maps.append(nn.Sequential(nn.Flatten(), affine))
        first, *others = maps
        steps = (nn.Sequential(stage(a.channels), f) for a, f in zip(images, others, strict=False))
        self.layers = nn.Sequential(first, *steps)
        self.bias = nn.Parameter(torch.zeros(target))
        *hidden, _ = (weight for weight in self.layers.parameters() if weight.dim() > 1)
        for weight in hidden:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, a: Tensor) -> Tensor:
        """Map `(..., *source)` to `(..., *target)`."""
        leading = a.shape[: a.dim() - len(self.source)]
        output = self.layers(a.reshape(-1, *self.entry))
        return output.reshape(*leading, *self.target) + self.bias

    @torch.no_grad()
    def start(self, output: Tensor) -> None:
        """Begin at an output, shape `target`."""
        self.bias.copy_(output)


class Resize(nn.Module):
    """An image in another size, each pixel the mean of those that it covers.

    Args:
        size: the height and the width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, a: Tensor) -> Tensor:
        """Map `(rows, channels, height, width)` to `(rows, channels, *size)`."""
        return F.interpolate(a, self.size, mode="area")


def _images(source: Sequence[int], target: Sequence[int], channels: Sequence[int]) -> list[Image]:
    """The images from source to target, with the hidden ones between; one end may be a vector."""
    ends = [Image(prod(shape[:-2]), *shape[-2:]) for shape in (source, target) if len(shape) > 2]
    if not ends:
        raise Error(
            f"convolutions need an image, (channels, height, width), and neither {tuple(source)} "
            f"nor {tuple(target)} is one: use mlp"
        )
    large, *small = sorted(ends, key=lambda image: image.height * image.width, reverse=True)
    if small:
        parts = enumerate(channels, 1)
        hidden = [large.towards(small[0], i / len(channels), count) for i, count in parts]
    else:
        hidden = list(accumulate(channels, Image.halved, initial=large))[1:]
    images = [large, *hidden, *small]
    return images if len(source) > 2 and large is ends[0] else images[::-1]


def _convolution(a: Image, b: Image, kernel: int, bias: bool) -> nn.Module:
    """The convolution from an image to another."""
    shape, around = (a.channels, b.channels, kernel), kernel // 2
    if b == a.halved(b.channels):
        return nn.Conv2d(*shape, stride=2, padding=around, bias=bias)
    if a == b.halved(a.channels):
        extra = (b.height - 2 * a.height + 1, b.width - 2 * a.width + 1)
        return nn.ConvTranspose2d(*shape, 2, around, extra, bias=bias)
    same = nn.Conv2d(*shape, padding=around, bias=bias)
    return same if a[1:] == b[1:] else nn.Sequential(Resize((b.height, b.width)), same)
