r"""The mixture model: a VAE whose latent is finite, k ~ Categorical(pi), x | k ~ p(x | h_k).

The decoder is a table, one row h_k per component, and the sum over k can be done, so log p(x) is
known and the guide is the
exact posterior:

    r_ik = pi_k p(x_i | h_k) / \sum_j pi_j p(x_i | h_j)                    (E-step)
    N_k = \sum_i r_ik,   pi_k = N_k / N,
    h_k = the h with E[T(x) | h] = \sum_i r_ik T(x_i) / N_k                (M-step)

With the exact posterior as guide the bound is tight, and each EM iteration raises log p(x) until
it stands still. (Maximum Likelihood from Incomplete Data via the EM Algorithm, Dempster, Laird &
Rubin, 1977.) All that the M-step needs of the data is `Statistics`, and these add up over chunks
of rows.

By SVI the gradient flows through the model only: Fisher's identity, d log p(x) = E_r[d log p(x,
k)], makes the term through the guide zero in expectation, and leaving it out takes its noise away.
"""

from collections.abc import Iterable
from math import prod
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.families import Bernoulli, Family, MultivariateNormal
from pyrovae.models.model import Model, Statistics, Tag
from pyrovae.part import Shape
from pyrovae.transforms import spread


class Mixture(Model):
    """A mixture of `components` members of one family, fitted by EM or by SVI.

    Args:
        x: the event shape of the data.
        components: how many.
        family: p(x | k); its own name says the covariance, such as multivariate-normal for a full
            one.
    """

    x: Shape
    components: PositiveInt = 10
    family: Family = MultivariateNormal()

    method: ClassVar[Literal["svi", "em"]] = "em"
    exact: ClassVar[bool] = True

    def setup(self) -> None:
        self.family.setup(self.x)
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.h = nn.Parameter(torch.randn(self.components, *self.family.params))

    def joint(self, x: Tensor) -> Tensor:
        """Log p(x, k), shape `(rows, components)`."""
        return self.logits.log_softmax(-1) + self.family.table(x, self.h)

    def log_prob(self, batch: Batch) -> Tensor:
        return torch.cat(
            [self.joint(batch.x[rows]).logsumexp(-1) for rows in self._chunks(len(batch))]
        )

    def model(self, batch: Batch) -> Tensor:
        pyro.module("mixture", self)
        with pyro.plate("data", len(batch), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            return pyro.sample("x", self.family(self.h[k]), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with torch.no_grad():
            posterior = dist.Categorical(logits=self.joint(batch.x))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("k", posterior)

    @torch.no_grad()
    def expect(self, batch: Batch) -> Statistics:
        """The E-step over all rows, in chunks."""
        chunks = [self._expect(batch.x[rows]) for rows in self._chunks(len(batch))]
        return sum(chunks[1:], start=chunks[0])

    def _expect(self, x: Tensor) -> Statistics:
        joint = self.joint(x)
        log_prob = joint.logsumexp(-1, keepdim=True)
        return self._count((joint - log_prob).exp(), x, log_prob.sum())

    def _count(self, r: Tensor, x: Tensor, log_prob: Tensor) -> Statistics:
        return Statistics(r.sum(0), r.mT @ self.family.statistics(x), log_prob)

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """The M-step. A component that no row belongs to keeps its h."""
        n = statistics.n
        mine = n > 1e-6
        self.h[mine] = self.family.maximize(statistics.t[mine] / n[mine, None])
        self.logits.copy_(n.clamp(min=torch.finfo(n.dtype).tiny).log() - n.sum().log())

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Components from the rows nearest to centres of k-means++, columns scaled to variance 1.

        k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007).
        """
        self.family.start(batch.x)
        scaled = (batch.x / spread(batch.x)).flatten(1)
        nearest = torch.cdist(scaled, _plusplus(scaled, self.components)).argmin(-1)
        r = nn.functional.one_hot(nearest, self.components).to(scaled)
        self.maximize(self._count(r, batch.x, scaled.new_zeros(())))

    def _chunks(self, rows: int) -> list[slice]:
        """Slices of rows whose log densities, `(rows, components, *x)`, stay in cache."""
        size = max(1, 2**20 // (self.components * prod(self.x)))
        return [slice(first, first + size) for first in range(0, rows, size)]

    @classmethod
    def examples(cls) -> Iterable["Mixture"]:
        return cls(x=(2,), components=3), cls(x=(3,), components=2, family=Bernoulli())

    @property
    def event(self) -> tuple[int, ...]:
        return self.x

    @property
    def tag(self) -> Tag:
        return Tag(self.family.measure)

    @property
    def least_rows(self) -> int:
        return self.components

    @property
    def support(self) -> Constraint:
        return self.family.support

    @property
    def takes(self) -> str:
        return f"{self.family.kind} takes {self.family.takes}"


def _plusplus(x: Tensor, centres: int) -> Tensor:
    """Rows of x as centres, each drawn in proportion to its squared distance to the others."""
    chosen = [int(torch.randint(len(x), ()).item())]
    distance = (x - x[chosen[0]]).square().sum(-1)
    for _ in range(1, centres):
        weights = distance if distance.any() else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1).item()))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(-1))
    return x[torch.tensor(chosen, device=x.device)]
