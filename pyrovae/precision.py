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
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LAYERS = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
}


class HalfPrecision(pyro.infer.ELBO):
    """An estimator whose networks multiply in bfloat16.

    Args:
        elbo: any of Pyro's.
    """

    def __init__(self, elbo: pyro.infer.ELBO) -> None:
        super().__init__(elbo.num_particles)
        self.elbo = elbo

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss."""
        with _Layers():
            return self.elbo.loss(*args, **kwargs)

    def differentiable_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, to be differentiated."""
        with _Layers():
            return self.elbo.differentiable_loss(*args, **kwargs)

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        """The loss, with its gradients on the parameters."""
        with _Layers():
            return self.elbo.loss_and_grads(*args, **kwargs)

    def _get_trace(self, *args: Any) -> Any:
        with _Layers():
            return self.elbo._get_trace(*args)


class _Layers(TorchFunctionMode):
    """Layers multiply in bfloat16, and return what they were given."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_layer if func in LAYERS else _as_it_is)(func, *args, **(kwargs or {}))


def _as_it_is(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _layer(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """A layer that multiplies in bfloat16, its bias added in the precision of its input."""
    product = func(x.bfloat16(), weight.bfloat16(), None, *args, **kwargs).to(x.dtype)
    return product if bias is None else product + bias.reshape(-1, *[1] * (weight.ndim - 2))
