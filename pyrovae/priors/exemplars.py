r"""The data themselves as the prior: a mixture of the guide's posteriors at every training row.

    p(z) = 1/N \sum_n q(z | x_n)

It *is* the aggregated posterior, so nothing is left of KL(q(z) || p(z)). But the row that a bound
is of has a component of its own, and a model could learn to say no more than which row it is. So
in training that component is left out, and what is bounded is the leave-one-out density,

    log p(z | all rows but i) = log 1/(N-1) \sum_{n != i} q(z | x_n)
                             >= log 1/(N-1) \sum_{n in nearest(z)} q(z | x_n),

where the sum over the nearest rows, which carry nearly all of it, costs a training step k encoder
passes a row in place of N. Terms left out are positive, so the bound remains one whichever rows
are taken for the nearest: their places in the latent space can be a few steps old.
"""

import math
from functools import reduce
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Size, Tensor, nn
from torch.distributions.constraints import Constraint

from pyrovae.errors import Error
from pyrovae.priors.prior import Guide, Prior

ENTRIES = 2**22
"""How many numbers, latents times exemplars times the size of z, are held at a time."""


class Exemplar(Prior):
    r"""The guide averaged over all training rows, p(z) = 1/N \sum_n q(z | x_n).

    The training rows are part of the prior: WHOEVER IS GIVEN THE SAVED WEIGHTS IS GIVEN THE
    TRAINING ROWS, as the encoder sees them. In training the row itself is left out and its nearest
    neighbours stand for the rest, a lower bound; evaluation sums over all rows.

    Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation
    (Norouzi, Fleet & Norouzi, 2020, https://arxiv.org/abs/2004.04795).

    Args:
        neighbours: how many rows a training step sums over for each latent, k.
    """

    neighbours: PositiveInt = 10
    support: ClassVar[None] = None

    def setup(self, z: tuple[int, ...], seen: tuple[int, ...]) -> None:
        self.z = Size(z)
        self.rows: Tensor = nn.Buffer(torch.rand(self.neighbours + 1, *seen))
        self.places: Tensor = nn.Buffer(torch.zeros(0, *z), persistent=False)

    def forward(self, q: Guide, context: Tensor | None = None) -> dist.Distribution:
        if not self.training or q.index is None:
            return Exemplars(q, self.rows, self.z)
        own = q.index.to(self.rows.device)
        self._locate(q, own)
        return Neighbours(q, self.rows, self.places, own, self.neighbours)

    @torch.no_grad()
    def _locate(self, q: Guide, own: Tensor) -> None:
        """Find the latent places of the rows at hand, of all rows where none is known yet."""
        if own.max() >= len(self.rows):
            raise Error("exemplar has to start at its training rows: pass start = True")
        if len(self.places) != len(self.rows):
            self.places = self.rows.new_zeros(len(self.rows), *self.z)
            own = torch.arange(len(self.rows), device=own.device)
        for index in own.split(4096):
            self.places[index] = _place(q(self.rows[index]))

    def start(self, seen: Tensor) -> None:
        if len(seen) < 2:
            raise Error("exemplar needs at least 2 training rows, got 1: one is left out")
        self.rows, self.places = seen.detach().clone(), self.places[:0]

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        """Make room for as many training rows as were saved."""
        saved = state.get(f"{prefix}rows", self.rows)
        if saved.shape[1:] == self.rows.shape[1:] and len(saved) != len(self.rows):
            self.rows = self.rows.new_empty(saved.shape)
        self.places = self.places[:0]
        super()._load_from_state_dict(state, prefix, *args)


def _place(q: Any) -> Tensor:
    """Where q is: its mean, and where that is not known a draw."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample()


class Exemplars(dist.TorchDistribution):
    """The average of q over rows, summed over a few of them at a time.

    Args:
        q: the guide.
        rows: what its encoder sees, shape `(n, *seen)`.
        event_shape: of z.
        batch_shape: of as many independent copies.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, q: Guide, rows: Tensor, event_shape: Size, batch_shape: Any = ()) -> None:
        self.q, self.rows = q, rows
        super().__init__(Size(batch_shape), event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return self.q(self.rows[:1]).support

    def log_prob(self, value: Tensor) -> Tensor:
        some = self.rows.split(max(1, ENTRIES // value.numel()))
        log_sum = reduce(
            torch.logaddexp, (_table(self.q(rows), value).logsumexp(-1) for rows in some)
        )
        shape = torch.broadcast_shapes(log_sum.shape, self.batch_shape)
        return (log_sum - math.log(len(self.rows))).expand(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape
        chosen = torch.randint(len(self.rows), shape, device=self.rows.device)
        return _drawn(self.q, self.rows, chosen)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        return type(self)(self.q, self.rows, self.event_shape, batch_shape)


def _table(q: Any, z: Tensor) -> Tensor:
    """The densities log q_n(z), shape `(..., n)`, of latents `(..., *z)` and n posteriors.

    For normals with a diagonal covariance these are two matrix products, several times as fast,
    and in float64, which has the digits to expand a square.
    """
    dims = len(q.event_shape)
    if not (isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)):
        return q.log_prob(z.unsqueeze(-1 - dims))
    loc, scale = (t.flatten(1).double() for t in (q.base_dist.loc, q.base_dist.scale))
    y, precision = z.flatten(-dims).double(), scale.pow(-2)
    distance = y.square() @ precision.mT - 2 * y @ (loc * precision).mT
    distance = distance + (loc.square() * precision).sum(-1)
    log_norm = scale.log().sum(-1) + loc.shape[-1] / 2 * math.log(2 * math.pi)
    return (-0.5 * distance - log_norm).to(z)


class Neighbours(dist.TorchDistribution):
    """The average of q over all rows but one's own, bounded by the nearest of them.

    Args:
        q: the guide.
        rows: what its encoder sees, shape `(n, *seen)`.
        places: where q of each of them is, shape `(n, *z)`.
        own: of each row of the batch the place among `rows`, shape `(rows,)`.
        neighbours: how many are summed over.
        batch_shape: `(rows,)`, or with more dimensions before.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(
        self,
        q: Guide,
        rows: Tensor,
        places: Tensor,
        own: Tensor,
        neighbours: int,
        batch_shape: Any = None,
    ) -> None:
        self.q, self.rows, self.places, self.own = q, rows, places, own
        self.neighbours = min(neighbours, len(rows) - 1)
        super().__init__(Size(batch_shape or own.shape), places.shape[1:], validate_args=False)

    @property
    def support(self) -> Constraint:
        return self.q(self.rows[:1]).support

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - len(self.event_shape)]
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        z = value.expand(*batch, *self.event_shape)
        nearest = self.nearest(z)
        z = z.unsqueeze(len(batch)).expand(*nearest.shape, *self.event_shape)
        terms = self.q(self.rows[nearest.flatten()]).log_prob(z.flatten(0, len(batch)))
        return terms.unflatten(0, nearest.shape).logsumexp(-1) - math.log(len(self.rows) - 1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The rows nearest to latents `(..., rows, *z)`, own ones apart, `(..., rows, k)`."""
        distance = torch.cdist(z.flatten(-len(self.event_shape)), self.places.flatten(1))
        own = self.own[:, None].expand(*distance.shape[:-1], 1)
        return distance.scatter_(-1, own, torch.inf).topk(self.neighbours, largest=False).indices

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape
        chosen = torch.randint(len(self.rows) - 1, shape, device=self.rows.device)
        return _drawn(self.q, self.rows, chosen + (chosen >= self.own))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        own, places = self.own, self.places
        return type(self)(self.q, self.rows, places, own, self.neighbours, batch_shape)


def _drawn(q: Guide, rows: Tensor, chosen: Tensor) -> Tensor:
    """A draw of q at each chosen row, shape `(*chosen, *z)`."""
    draws = q(rows[chosen.flatten()]).sample()
    return draws.reshape(*chosen.shape, *draws.shape[1:])
