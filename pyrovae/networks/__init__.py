"""Networks: the functions that map x towards q(z | x) and z towards p(x | z).

A network is given both shapes by the model, so its user types hidden sizes only. It takes any
number of leading dimensions, `(rows, *source)` from the encoder's side and
`(particles, rows, *source)` from the decoder's, and a row alone gives what it gives among others.
What it is made of is an assumption about x: `MLP` makes none, `Conv` and `ResNet` say that
neighbouring pixels belong together wherever they are, `DeepSet` that the order does not matter.
"""

from pyrovae.networks.dense import MLP, Linear, Squashed
from pyrovae.networks.images import Conv, ResNet
from pyrovae.networks.modules import Module
from pyrovae.networks.network import Network
from pyrovae.networks.sets import DeepSet

__all__ = ["MLP", "Conv", "DeepSet", "Linear", "Module", "Network", "ResNet", "Squashed"]
