r"""The mixture model: a VAE whose latent is finite, k ~ Categorical(pi), x | k ~ p(x | h_k).

The decoder is a table, one row h_k per component, and the sum over k can be done, so log p(x) is
known and the guide is the exact posterior:

    r_ik = pi_k p(x_i | h_k) / \sum_j pi_j p(x_i | h_j)                    (E-step)
    N_k = \sum_i r_ik,   pi_k = N_k / N,
    h_k = the h with E[T(x) | h] = \sum_i r_ik T(x_i) / N_k                (M-step)

With the exact posterior as guide the bound is tight, and each EM iteration raises log p(x) until
it stands still. All that the M-step needs of the data is `Statistics`, and these add up over rows.

By SVI the gradient flows through the model only. Fisher's identity,

    d log p(x) = E_r[d log p(x, k)],

says that the term through the guide is zero in expectation; leaving it out takes its noise away.
"""

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, MultivariateNormal
from pyrovae.models.model import Model, Statistics
from pyrovae.models.seams import under
from pyrovae.part import Shape
from pyrovae.transforms import spread


class Mixture(Model):
    """A mixture of `components` members of one family, fitted by EM or by SVI.

    Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977).

    Args:
        x: the event shape of the data.
        components: how many.
        family: p(x | k); its name says the covariance: multivariate-normal has a full one.

    Example:
        >>> mixture = Mixture(x=(2,), components=3, family="normal")
        >>> mixture.log_prob(Batch(torch.zeros(4, 2))).shape
        torch.Size([4])
    """

    x: Shape
    components: PositiveInt = 10
    family: Family = MultivariateNormal()

    def setup(self) -> None:
        under("family", lambda: self.family.setup(self.x))
        with torch.no_grad():
            under("family", lambda: self.family.refuse_misfit(self.x))
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.h = nn.Parameter(torch.randn(self.components, *self.family.params))

    def joint(self, x: Tensor) -> Tensor:
        """Log p(x, k), shape `(rows, components)`."""
        return self.logits.log_softmax(-1) + self.family.table(x, self.h)

    def log_prob(self, batch: Batch) -> Tensor:
        return torch.cat([self.joint(part.x).logsumexp(-1) for part in self._split(batch)])

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("mixture", self)
        with pyro.plate("data", len(batch), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            return pyro.sample("x", self.family.given(self.h[k], batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        with torch.no_grad():
            posterior = dist.Categorical(logits=self.joint(batch.x))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("k", posterior)

    def require(self, batch: Batch) -> None:
        super().require(batch)
        if batch.offset is not None:
            raise Error("the model 'mixture' takes no size factors: leave the offset out")

    @torch.no_grad()
    def expect(self, batch: Batch) -> Statistics:
        """The E-step over all rows of the batch."""
        return self._gather(batch, self._posterior)

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """The M-step. A component that no row belongs to keeps its h."""
        n = statistics.n
        if not statistics.t.isfinite().all():
            raise Error("sums over the rows overflow: scale the data, or use dtype = 'float64'")
        mine = n > 1e-6
        self.h[mine] = self.family.maximize(statistics.t[mine] / n[mine, None])
        self.logits.copy_(n.clamp(min=torch.finfo(n.dtype).tiny).log() - n.sum().log())

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Components from the rows nearest to centres of k-means++, columns scaled to variance 1.

        k-means++: The Advantages of Careful Seeding (Arthur & Vassilvitskii, 2007). A family
        without a closed-form M-step starts at random.
        """
        self.family.start(batch.x)
        if not self.family.has_m_step:
            return
        shift, scale = batch.x.mean(0), spread(batch.x)
        centres = _plusplus(((batch.x - shift) / scale).flatten(1), self.components)

        def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
            k = torch.cdist(((x - shift) / scale).flatten(1), centres).argmin(-1)
            return nn.functional.one_hot(k, self.components).to(x), x.new_zeros(())

        self.maximize(self._gather(batch, nearest))

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The responsibilities, shape `(rows, components)`, and the sum of log p(x)."""
        joint = self.joint(x)
        log_prob = joint.logsumexp(-1, keepdim=True)
        return (joint - log_prob).exp(), log_prob.sum()

    def _gather(
        self, batch: Batch, assign: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Statistics:
        """The statistics of rows of which `assign` says to which component they belong."""
        parts = []
        for part in self._split(batch):
            r, log_prob = assign(part.x)
            parts.append(Statistics(r.sum(0), r.mT @ self.family.statistics(part.x), log_prob))
        return sum(parts[1:], start=parts[0])

    def _split(self, batch: Batch) -> Iterator[Batch]:
        """Parts whose tables of components or of products of columns stay in cache."""
        columns = prod(self.x)
        return batch.split(max(1, 2**20 // (columns * max(columns, self.components))))

    @classmethod
    def examples(cls) -> Iterable["Mixture"]:
        return cls(x=(2,), components=3), cls(x=(3,), components=2, family=Bernoulli())

    @property
    def method(self) -> Literal["svi", "em"]:
        return "em"

    @property
    def exact(self) -> bool:
        return True

    @property
    def observation(self) -> Family:
        return self.family

    @property
    def least_rows(self) -> int:
        return self.components


def _plusplus(x: Tensor, centres: int) -> Tensor:
    """Rows of x as centres, each drawn in proportion to its squared distance to the others."""
    chosen = [int(torch.randint(len(x), ()).item())]
    distance = (x - x[chosen[0]]).square().sum(-1)
    for _ in range(1, centres):
        weights = distance if distance.any() else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1).item()))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(-1))
    return x[torch.tensor(chosen, device=x.device)]
