r"""Where EM begins: to which component each row belongs before there are any components.

EM climbs to the nearest maximum, so where it starts decides where it ends; several restarts, of
which the best is kept, are the usual cure. Distances are between rows whose columns have been
scaled to variance 1. From the responsibilities that a start gives, an M-step makes the components.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Size, Tensor
from torch.nn.functional import one_hot

from pyrovae.errors import Error
from pyrovae.part import Part
from pyrovae.transforms import spread

Assign = Callable[[Tensor], Tensor]


class Start(Part):
    """The role of a start of EM. `RandomResponsibilities` is the shortest member."""

    def setup(self) -> None:
        """Nothing to make: a start has no tensors."""

    def refuse_misfit(self, components: int, columns: int) -> None:
        """Refuse a start of other components. Nothing by default."""

    @abstractmethod
    def forward(self, x: Tensor, many: Size) -> Assign:
        """A function from rows to their responsibilities, `(rows, *many)`.

        Args:
            x: all training rows, shape `(rows, columns)`.
            many: `(components,)`, or `(runs, components)` for several runs side by side.
        """


class KMeansPlusPlus(Start):
    """Each row to the nearest of centres that k-means++ draws, far from each other.

    k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007).
    """

    def forward(self, x: Tensor, many: Size) -> Assign:
        y = (x - x.mean(0)) / spread(x)
        square = y.square().sum(-1)
        runs, components = many[:-1].numel(), many[-1]
        chosen = [torch.randint(len(y), (runs,), device=y.device)]
        distance = torch.full((runs, len(y)), torch.inf).to(y)
        for _ in range(1, components):
            centre = y[chosen[-1]]
            new = square - 2 * centre @ y.mT + centre.square().sum(-1, keepdim=True)
            new = torch.where(new > 1e-12 * square, new, 0.0)
            distance = torch.minimum(distance, new)
            weights = torch.where(distance.any(-1, keepdim=True), distance, 1.0).cumsum(-1)
            level = torch.rand(runs, 1).to(y) * weights[:, -1:]
            drawn = torch.searchsorted(weights, level, right=True)[:, 0]
            chosen.append(drawn.clamp(max=len(y) - 1))
        return _nearest(x, x[torch.stack(chosen, -1)], many)


class RandomResponsibilities(Start):
    """Each row to all components, in random shares."""

    def forward(self, x: Tensor, many: Size) -> Assign:
        def assign(rows: Tensor) -> Tensor:
            shares = torch.rand(len(rows), *many).to(rows)
            return shares / shares.sum(-1, keepdim=True)

        return assign


class GivenMeans(Start):
    """Each row to the nearest of given points.

    Args:
        means: one point for each component, its entries in the order of a row's; behind a
            transform, in the transformed units.
    """

    means: Annotated[tuple[tuple[float, ...], ...], Field(min_length=1)]

    def refuse_misfit(self, components: int, columns: int) -> None:
        if len(self.means) != components or {len(mean) for mean in self.means} != {columns}:
            raise Error(
                f"should be {components} points of {columns} numbers, one for each component",
                "means",
            )

    def forward(self, x: Tensor, many: Size) -> Assign:
        means = x.new_tensor(self.means)
        return _nearest(x, means.expand(many[:-1].numel(), *means.shape), many)

    @classmethod
    def examples(cls) -> Iterable["GivenMeans"]:
        return (cls(means=((0.0, 0.0), (1.0, 1.0))),)


def _nearest(x: Tensor, centres: Tensor, many: Size) -> Assign:
    """Each row to the nearest of the centres, `(runs, components, columns)`."""
    shift, scale = x.mean(0), spread(x)
    scaled = (centres - shift) / scale

    def assign(rows: Tensor) -> Tensor:
        k = torch.cdist((rows - shift) / scale, scaled).argmin(-1).mT
        return one_hot(k, many[-1]).to(rows).view(len(rows), *many)

    return assign
