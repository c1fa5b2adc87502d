r"""The mixture model: a VAE whose latent is finite, k ~ Categorical(pi), x | k ~ p(x | h_k).

The decoder is a table, one row h_k per component, and the sum over k can be done, so log p(x) is
known and the guide is the exact posterior:

    r_ik = pi_k p(x_i | h_k) / \sum_j pi_j p(x_i | h_j)                    (E-step)
    N_k = \sum_i r_ik,   pi_k = N_k / N,
    h_k = the h that maximises \sum_i r_ik log p(x_i | h)                  (M-step)

With the exact posterior as guide the bound is tight, and each EM iteration raises log p(x) until
it stands still. All that the M-step needs of the data is `Statistics`, and these add up over rows.
With priors on pi and h_k it is log p(x) + log p(pi, h) that rises.

By SVI the gradient flows through the model only. Fisher's identity,

    d log p(x) = E_r[d log p(x, k)],

says that the term through the guide is zero in expectation; leaving it out takes its noise away.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from math import prod
from operator import add
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pydantic import FiniteFloat, PositiveInt
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import STATES
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Family, MultivariateNormal
from pyrovae.models import surface
from pyrovae.models.conjugate import ComponentPrior
from pyrovae.models.model import Model, Statistics
from pyrovae.models.repair import repair
from pyrovae.models.seams import summed, under
from pyrovae.models.starts import Assign, KMeansPlusPlus, Start
from pyrovae.part import Shape

LEAST = 1e-6
"""Rows that a component needs to have an M-step."""
FAINT = -60.0
"""Log-responsibilities are at least that: below, numbers lose their precision and cost time."""


class Mixture(Model):
    r"""A mixture of `components` members of one family, fitted by EM or by SVI.

    Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977).
    Unsupervised Learning of Finite Mixture Models (Figueiredo & Jain, 2002).

    Args:
        x: the event shape of the data.
        components: how many.
        family: p(x | k); its name says the covariance: multivariate-normal has a full one.
        initial: where EM begins.
        concentration: c of a prior on the weights, \prod_k pi_k^(c - 1), a Dirichlet if c > 0;
            1 is maximum likelihood, and below 1 components that explain fewer than 1 - c rows are
            switched off. With p parameters in each, c from 1 - p to 1 - p / 2 keeps those that
            pay for them.
        prior: on the parameters of each component; maximum likelihood unless given.

    Example:
        >>> mixture = Mixture(x=(2,), components=3, family="normal")
        >>> mixture.log_prob(Batch(torch.zeros(4, 2))).shape
        torch.Size([4])
    """

    x: Shape
    components: PositiveInt = 10
    family: Family = MultivariateNormal()
    initial: Start = KMeansPlusPlus()
    concentration: FiniteFloat = 1.0
    prior: ComponentPrior | None = None

    predict_proba, predict = surface.predict_proba, surface.predict
    score_samples, bic, aic = surface.score_samples, surface.bic, surface.aic
    sample_with_labels = surface.sample_with_labels

    def setup(self) -> None:
        under("family", lambda: self.family.setup(self.x))
        with torch.no_grad():
            under("family", lambda: self.family.refuse_misfit(self.x))
        columns = prod(self.x)
        under("initial", lambda: self.initial.refuse_misfit(self.components, columns))
        if (prior := self.prior) is not None:
            under("prior", lambda: prior.refuse_misfit(self.family))
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.h = nn.Parameter(torch.randn(self.components, *self.family.params))

    def joint(self, batch: Batch) -> Tensor:
        """Log p(x, k), shape `(rows, components)`."""
        return self.logits.log_softmax(-1) + self.family.table(batch, self.h)

    def log_prob(self, batch: Batch) -> Tensor:
        return torch.cat([self.joint(part).logsumexp(-1) for part in self._split(batch)])

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        pyro.module("mixture", self)
        with pyro.plate("data", len(batch), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            return pyro.sample("x", self.family.given(self.h[k], batch), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        batch = as_batch(batch)
        with torch.no_grad():
            posterior = dist.Categorical(logits=self.joint(batch))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("k", posterior, infer=summed(self.enumerates))

    @torch.no_grad()
    def expect(self, batch: Batch) -> Statistics:
        """The E-step over all rows of the batch."""
        if not self.family.fits_by_em:
            raise Error(
                f"{self.family.kind} has parameters that all components share, and no M-step for "
                "them: fit the mixture with method = 'svi'"
            )

        densities, log_weights = self.family.densities(self.h), self.logits.log_softmax(-1)

        def assign(_: Batch, rows: Any) -> tuple[Tensor, Tensor]:
            joint = densities(rows).add_(log_weights)
            largest = joint.amax(-1, keepdim=True)
            # In place: memory is what takes the time here.
            r = joint.sub_(largest).clamp_(min=FAINT).exp_()
            total = r.sum(-1, keepdim=True)
            return r.div_(total), (largest + total.log()).double().sum(0)[..., 0]

        return self._gather(batch, assign)

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """The M-step. A component that no row belongs to keeps its h, or has the prior's mode."""
        n = statistics.n
        if not statistics.finite:
            raise Error("sums over the rows overflow: scale the data, or use dtype = 'float64'")
        if self.prior is None:
            h = self.family.improve(n.clamp(min=LEAST), statistics.t, self.h.double())
            mine = (n > LEAST).reshape(*n.shape, *[1] * len(self.family.params))
            self.h.copy_(torch.where(mine, h, self.h))
        else:
            self.h.copy_(self.prior.maximize(self.family, n, statistics.t))
        weights = (n + (self.concentration - 1)).clamp(min=0)
        weights = torch.where(weights.any(-1, keepdim=True), weights, n)
        share = weights / weights.sum(-1, keepdim=True)
        self.logits.copy_(share.clamp(min=torch.finfo(self.logits.dtype).tiny).log())

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Components from the rows that `initial` assigns to each."""
        self.family.start(batch.x)
        h = self.family.marginal(batch)
        self.h.copy_(torch.zeros_like(self.h) if h is None else h.expand_as(self.h))
        if self.family.fits_by_em:
            self.begin(batch, self.initial(batch.x.flatten(1), self.logits.shape))
        else:
            self.h.add_(0.5 * torch.randn_like(self.h))

    @torch.no_grad()
    def begin(self, batch: Batch, assign: Assign) -> None:
        """The components of rows that belong to them by `assign`, a function of flat rows."""
        for _ in range(1 if self.family.has_m_step else 5):
            statistics = self._gather(
                batch, lambda part, _: (assign(part.x.flatten(1)), torch.zeros(()))
            )
            self.maximize(statistics)

    def _gather(
        self, batch: Batch, assign: Callable[[Batch, Any], tuple[Tensor, Tensor]]
    ) -> Statistics:
        """The statistics of rows of which `assign` says to which component they belong.

        They are summed, and the M-step is taken, in float64 in any case.
        """

        def of(part: Batch) -> Statistics:
            rows = self.family.prepare(part)
            r, log_prob = assign(part, rows)
            t = self.family.expect(rows, r, self.h)
            return Statistics(r.sum(0).double(), pytree.tree_map(Tensor.double, t), log_prob)

        return reduce(add, map(of, self._split(batch)))

    @torch.no_grad()
    def _split(self, batch: Batch) -> Iterator[Batch]:
        """Parts whose statistics, or tables of components, stay in cache."""
        row = self.family.prepare(batch[:1])
        table = self.h if self.family.natural(self.h) is None else self.logits
        kept = (leaf.numel() for leaf in pytree.tree_leaves(row) if leaf is not None)
        width = (sum(kept) + table.numel()) * self.h.element_size()
        return batch.split(min(2**14, max(64, 2**24 // width)))

    def repair(self, batch: Batch, statistics: Statistics) -> bool:
        """Move components with less than a row, unless a prior is to switch them off."""
        return self.concentration >= 1 and repair(self, batch, statistics)

    def beside(self, runs: int) -> "Mixture":
        """As many copies in one, along a first dimension of logits and h."""
        if runs == 1:
            return self
        wide = copy.deepcopy(self)
        for name, parameter in wide.named_parameters():
            own = () if name in ("logits", "h") else (1,)
            parameter.data = parameter.data.expand(runs, *own, *parameter.shape).clone()
        return wide

    @torch.no_grad()
    def choose(self, runs: Model, index: int) -> None:
        if runs is self:
            return
        state = dict(runs.state_dict())
        for name, parameter in self.named_parameters():
            state[name] = state[name][index].view_as(parameter)
        self.load_state_dict(state)

    @property
    def on(self) -> Tensor:
        """Which components are not switched off, shape `(*components)`."""
        share = self.logits.softmax(-1)
        return share > 10 * torch.finfo(share.dtype).tiny

    @torch.no_grad()
    def log_prior(self, rows: Tensor) -> Tensor:
        log_n = rows.log()[..., None] + self.logits.log_softmax(-1)
        total = (self.concentration - 1) * torch.where(self.on, log_n, 0.0).sum(-1)
        if self.prior is not None:
            total = total + self.prior.log_prob(self.family, self.h).sum(-1)
        return total

    @property
    def exact_m_step(self) -> bool:
        return self.family.exact_m_step

    @property
    def enumerates(self) -> bool:
        return self.components <= STATES

    def refuse_training(self, method: str) -> None:
        if method == "svi" and (self.concentration != 1 or self.prior is not None):
            raise Error("SVI maximises the likelihood alone: concentration and prior need EM")

    @property
    def freedom(self) -> int:
        """The number of free parameters, for information criteria."""
        shared = sum(parameter.numel() for parameter in self.family.parameters())
        return self.components * self.family.freedom + shared + self.components - 1

    def remarks(self) -> tuple[str, ...]:
        low = int((self.family.at_floor(self.h) & self.on).sum())
        off = int((~self.on).sum())
        found = []
        if low:
            found.append(f"{low} of {self.components} components have a scale at its floor")
        if off:
            found.append(f"{off} of {self.components} components are switched off")
        return tuple(found)

    @classmethod
    def examples(cls) -> Iterable["Mixture"]:
        return cls(x=(2,), components=3), cls(x=(3,), components=2, family=Bernoulli())

    @property
    def method(self) -> Literal["svi", "em"]:
        return "em" if self.family.fits_by_em else "svi"

    @property
    def exact(self) -> bool:
        return True

    @property
    def observation(self) -> Family:
        return self.family

    @property
    def least_rows(self) -> int:
        return self.components
