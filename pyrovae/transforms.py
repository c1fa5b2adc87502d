r"""Preprocessing: steps that are drawn, and steps that are inverted.

*Noise* makes what is modelled out of what was measured, and belongs to the data: `Binarize` turns
grey values into zeros and ones, `Dequantize` spreads a whole number over the unit interval above
it. For the latter, by Jensen's inequality,

    E_u log p(x + u) <= log \int p(x + u) du = log P(x),

so a density of dequantised values bounds the probability of the whole numbers from below, on
average over u.

An *invertible* step is a `torch.distributions` transform T and belongs to the model, see
`Transformed`: the log-Jacobian brings the density back to the raw scale.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform
from torch.distributions.transforms import Transform as Bijection

from pyrovae.errors import Error
from pyrovae.part import Part


class Transform(Part):
    """The role of a preprocessing step. A member has `forward`; `Dequantize` is the shortest.

    `invertible` members give `bijection`; all others are noise.
    """

    invertible: ClassVar[bool] = False

    @property
    def random(self) -> bool:
        """Whether two calls with the same rows differ."""
        return False

    def setup(self, event: tuple[int, ...]) -> None:
        """Make the tensors for rows of the shape `event`."""

    def start(self, x: Tensor) -> None:
        """Take from all training rows, complete, `(rows, *event)`, what the step needs to know.

        Noise is shown rows that are kept as bytes or in a file block by block, one call for each.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The rows after the step, shape `(..., *event)`; noise is drawn anew at each call."""

    def of_bytes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows after the step, from rows of bytes; a member can know a faster way."""
        after: Tensor = self(x.to(dtype))
        return after

    def bijection(self) -> Bijection:
        """The step as an invertible map with a log-Jacobian."""
        raise Error(f"{self.kind} cannot be inverted")


class Standardize(Transform):
    """Columns with mean 0 and standard deviation 1 on the training rows."""

    invertible: ClassVar[bool] = True

    def setup(self, event: tuple[int, ...]) -> None:
        self.loc, self.scale = nn.Buffer(torch.zeros(event)), nn.Buffer(torch.ones(event))

    def start(self, x: Tensor) -> None:
        self.loc.copy_(x.mean(0))
        self.scale.copy_(spread(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.bijection()(x)

    def bijection(self) -> Bijection:
        return _Affine(-self.loc / self.scale, 1 / self.scale)


class _Affine(AffineTransform):
    """An affine map whose log-Jacobian leaves missing entries, NaN, out."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x.isnan(), 0.0, super().log_abs_det_jacobian(x, y))  # type: ignore[no-untyped-call]


class Binarize(Transform):
    """Zeros and ones out of intensities, values from 0 to the largest of the training rows.

    On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008).

    Args:
        stochastic: a one with probability intensity / largest, drawn anew at every use in
            training, and once, by the seed, for validation and test rows.
        threshold: without `stochastic`, a one where the intensity exceeds this fraction of the
            largest.
    """

    stochastic: bool = False
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @property
    def random(self) -> bool:
        return self.stochastic

    def setup(self, event: tuple[int, ...]) -> None:
        self.largest = nn.Buffer(torch.zeros(()))

    def start(self, x: Tensor) -> None:
        if x.min() < 0:
            raise Error(f"binarize takes intensities from 0, got {x.min():g}")
        self.largest.copy_(torch.maximum(self.largest, x.max()))

    def forward(self, x: Tensor) -> Tensor:
        level = torch.rand_like(x) if self.stochastic else self.threshold
        largest = torch.where(self.largest > 0, self.largest, 1.0)
        return torch.where(x.isnan(), x, (x > level * largest).to(x.dtype))

    def of_bytes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.stochastic and x.device.type == "cpu" and self.largest == 255:
            return (x > _levels(x.numel()).view(x.shape)).view(torch.uint8).to(dtype)
        return super().of_bytes(x, dtype)


def _levels(count: int) -> Tensor:
    """Bytes from 0 to 254, all equally likely: k exceeds one with the probability k / 255.

    Random bits come by the word, and a byte of 255 is drawn again.
    """
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.uint8)[:count]
    if len(again := np.flatnonzero(levels.numpy() == 255)):
        levels.numpy()[again] = _levels(len(again)).numpy()
    return levels


class Dequantize(Transform):
    """Whole numbers spread over the interval above, x + u, u uniform, drawn as for `Binarize`.

    A Note on the Evaluation of Generative Models (Theis, van den Oord & Bethge, 2016,
    https://arxiv.org/abs/1511.01844).
    """

    @property
    def random(self) -> bool:
        return True

    def start(self, x: Tensor) -> None:
        if len(bad := torch.nonzero(x != x.round())):
            raise Error(f"dequantize takes whole numbers, got {x[tuple(bad[0])]:g}")

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x + torch.rand_like(x), torch.nextafter(x + 1, x))


def spread(x: Tensor) -> Tensor:
    """The standard deviation of each column of `(rows, *event)`, 1 where a column is constant."""
    sd = x.std(0, correction=0)
    return torch.where(sd > 0, sd, 1.0)
