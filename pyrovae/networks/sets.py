r"""Networks of sets, whose elements have no order.

    h = \rho(1/n \sum_i \phi(a_i))

does not change when the elements a_1 .. a_n do, and with \phi and \rho large enough every
continuous function that has this property has this form. The mean, and not the sum, keeps h at
one scale for sets of any size n.
"""

from pydantic import PositiveInt
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.networks.dense import MLP
from pyrovae.networks.network import Network


class DeepSet(Network):
    r"""A network of a set, rho(1/n \sum_i phi(a_i)), from `(elements, features)` to any shape.

    Deep Sets (Zaheer et al., 2017, https://arxiv.org/abs/1703.06114).

    Args:
        phi: from an element, shape `(features,)`, to what is averaged.
        rho: from the mean to the target.
        width: the size of what is averaged.
    """

    phi: Network = MLP()
    rho: Network = MLP()
    width: PositiveInt = 64

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        if len(source) != 2:
            raise Error(
                f"deep-set takes a set, (elements, features), got {tuple(source)}: use mlp, or "
                "conv for images"
            )
        self.phi.setup(source[1:], (self.width,))
        self.rho.setup((self.width,), target)

    def forward(self, a: Tensor) -> Tensor:
        return self.rho(self.phi(a).mean(-2))

    def start(self, output: Tensor) -> None:
        self.rho.start(output)
