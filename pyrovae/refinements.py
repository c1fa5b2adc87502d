r"""Refinements of a guide: what the encoder proposes for a row, improved for that row.

An encoder is *amortised*: one function for all rows, and for each of them a little worse than the
best member of its family. A few steps uphill on the row's own bound,

    h <- h + rate * d ELBO(h; x) / dh,     h_0 = encoder(x),

narrow that gap (Semi-Amortized Variational Autoencoders, Kim, Wiseman, Miller, Sontag & Rush,
2018, https://arxiv.org/abs/1802.02550).
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from pyrovae.part import Part

Bound = Callable[[Tensor], Tensor]
"""From parameters of q, `(..., rows, *params)`, to estimates of each row's ELBO, `(..., rows)`."""


class Refinement(Part):
    """The role of what improves the guide row by row. `SemiAmortized` is the member."""

    def setup(self) -> None:
        """Nothing to make: a refinement has no tensors."""

    @abstractmethod
    def forward(self, h: Tensor, bound: Bound) -> Tensor:
        """Better parameters of q, shape `(rows, *params)`.

        Args:
            h: those that the encoder proposes.
            bound: an estimate of each row's ELBO, with new draws at every call.
        """


class SemiAmortized(Refinement):
    """Gradient steps on each row's ELBO, starting from what the encoder proposes.

    In training the gradient of the loss goes back through the steps; in evaluation only the
    parameters of q have one. Semi-Amortized Variational Autoencoders (Kim et al., 2018,
    https://arxiv.org/abs/1802.02550).

    Args:
        steps: how many.
        learning_rate: of a step, on h.
        particles: draws that a step's gradient is averaged over. Few of them and a large step do
            harm: noise takes h away from where the encoder had it.
    """

    steps: PositiveInt = 10
    learning_rate: PositiveFloat = 0.03
    particles: PositiveInt = 8

    def forward(self, h: Tensor, bound: Bound) -> Tensor:
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            h = h if training else h.detach().requires_grad_()
            for _ in range(self.steps):
                rows = bound(h.expand(self.particles, *h.shape)).mean(0)
                (gradient,) = torch.autograd.grad(rows.sum(), h, create_graph=training)
                h = h + self.learning_rate * gradient
                h = h if training else h.detach().requires_grad_()
        return h if training else h.detach()
