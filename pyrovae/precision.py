"""Networks in half precision: products in bfloat16, everything else as it is.

bfloat16 has the range of float32 and 8 bits of precision, and processors multiply its matrices
several times faster. A layer's product of inputs and weights stands it: its errors are those of
rounding each factor by 2^-9, sums are taken in float32. Densities do not: log p(x | z) adds up
hundreds of terms of which the last digits matter. So the layers of networks alone are rounded, on
the way forward and back, and give float32 again; weights, their steps and all densities are what
they were. Mixed Precision Training (Micikevicius et al., 2018, https://arxiv.org/abs/1710.03740).
"""

from typing import Any

import pyro.infer
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LAYERS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}


class HalfPrecision(pyro.infer.ELBO):
    """An estimator whose networks multiply in bfloat16.

    Args:
        elbo: any of Pyro's.
    """

    def __init__(self, elbo: pyro.infer.ELBO) -> None:
        super().__init__(elbo.num_particles)
        self.elbo = elbo

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, to be differentiated."""
        with _Layers():
            return self.elbo.differentiable_loss(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with _Layers():
            return self.elbo._get_trace(model, guide, args, kwargs)


class _Layers(TorchFunctionMode):
    """Layers take what they are given in bfloat16, and return what they were given."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in LAYERS:
            return func(*args, **(kwargs or {}))
        half = [_half(value) for value in args]
        named = {name: _half(value) for name, value in (kwargs or {}).items()}
        return func(*half, **named).to(args[0].dtype)


def _half(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value
