r"""How large the training likelihood can be at all, for any prior and any decoder.

Whatever its prior and its decoder, a model of rows that come from a family p(x | h) is a mixture,
f_G(x) = \int p(x | h) dG(h). So its likelihood on N rows is at most the nonparametric maximum

    sup_G 1/N \sum_i log f_G(x_i) ,

which a G with at most N atoms attains (Nonparametric Maximum Likelihood Estimation of a Mixing
Distribution, Laird, 1978; Leveraging the Exact Likelihood of Deep Latent Variable Models, Mattei &
Frellsen, 2018, https://arxiv.org/abs/1802.04826). Of any G, with

    D(h) = 1/N \sum_i p(x_i | h) / f_G(x_i) ,

its value is below the supremum, and its value + log max_h D(h) above: by Jensen's inequality, as
the mean over rows of f_G* / f_G is the mean of D over G* (The Geometry of Mixture Likelihoods,
Lindsay, 1983). At the supremum D <= 1, and = 1 at the atoms.

The same D drives the ascent. An M-step with the responsibilities r_i ~ p(x_i | h) / f_G(x_i) moves
h uphill on it: taken by the atoms it is EM, taken from anywhere else a search for atoms that are
missing. With h given the likelihood is concave in the weights, and EM is no more than w <- w D.

The maximum of D is searched from the rows, so in general the upper value is approximate. It is
proven in two cases. Where h is one number of an exponential family, p(x_i | h) rises up to its
mode and falls thereafter, so between neighbours on a grid that holds all modes it is at most what
it is at one of them, and D at most the sum of these; a grid is as fine as it takes for up to 4096
rows that differ. And no probabilities do better than the frequencies of the rows, of which the
mean is 1/N \sum_i log (n_i / N) with n_i rows equal to x_i.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils import _pytree as pytree

from pyrovae import families
from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.evaluate.likelihood import LogLikelihood
from pyrovae.families import Family
from pyrovae.models import Model, Transformed
from pyrovae.models.model import require_model
from pyrovae.part import validated
from pyrovae.place import destination, seeded, unchecked
from pyrovae.transforms import spread

FREE = (
    families.Bernoulli,
    families.Binomial,
    families.Categorical,
    families.Multinomial,
    families.NegativeBinomial,
    families.OneHot,
    families.ZeroInflatedNegativeBinomial,
)
"""Families whose floor holds in the M-step only: a decoder can go below."""
LEAST = 1e-10
"""That floor here."""
SWEEPS, CLIMBS, UPDATES = 10, (10, 100), 5000
"""Steps at most: of EM, of a climb before and after doubles are dropped, of weights."""
SHORT = 1e-3
"""A step of a climb that is this part of a full one is the last."""
AT_ONCE = 2**24
"""Rows times atoms that are looked at together."""


@dataclass(frozen=True)
class MixtureBound:
    """The largest mean log p(x) that a family allows on some rows, in nats, on the raw scale.

    Args:
        value: what a mixture reaches, below the supremum.
        upper: what none exceeds.
        proven: whether it is; otherwise up to atoms that a search from many rows did not find.
        atoms: of the mixture.
        rows: how many.
        family: the kind of the observation family.
        given: what the rows are conditioned on, empty for log p(x) itself.
    """

    value: float
    upper: float
    proven: bool
    atoms: int
    rows: int
    family: str
    given: str = ""

    @property
    def gap(self) -> float:
        """How far above the value the supremum can be."""
        return self.upper - self.value

    def left(self, result: LogLikelihood) -> str:
        """How far below the supremum a model is, in a sentence.

        Args:
            result: the log-likelihood of the same rows under the model.
        """
        if len(result.value) != self.rows:
            raise Error(f"the bound is of {self.rows} rows, this of {len(result.value)}", "result")
        low, high = max(self.value - result.mean, 0.0), self.upper - result.mean
        return f"{low:.2f} to {high:.2f} nats per row are left on the table"

    def __str__(self) -> str:
        given = f" | {self.given}" if self.given else ""
        kind = "proven" if self.proven else "approximate"
        return (
            f"mean log p(x{given}) <= {self.upper:.2f} nats for any prior and decoder of "
            f"{self.family} ({kind}, {self.rows} rows); {self.atoms} atoms reach {self.value:.2f}"
        )


@validated
def mixture_bound(
    model: Model,
    data: Any,
    *,
    atoms: PositiveInt = 2000,
    tolerance: PositiveFloat = 0.01,
    iterations: PositiveInt = 30,
    seed: NonNegativeInt = 0,
) -> MixtureBound:
    """The largest mean log p(x) of rows under any model with the same observation family.

    What the family has learned itself, such as a shared scale, is held as it is in the model; a
    scale keeps its floor, without which there would be no bound. Time and memory grow with rows
    times atoms.

    Args:
        model: a fitted model whose rows come from a family; it is as it was, to the bit,
            afterwards.
        data: the training rows, shape `(rows, *x)`, raw, complete and without a context.
        atoms: the most that the mixture has, and the most rows that a search begins at. With
            fewer than rows the value can be far below the supremum.
        tolerance: the gap at which to stop, in nats per row.
        iterations: how often at most atoms are added.
        seed: of the rows to begin at, where there are more of them than atoms.

    Raises:
        Error: a model without a family; rows that it cannot have generated, incomplete ones, or
            with a context, by which each could have a mixture of its own.

    Example:
        >>> from pyrovae import Mixture
        >>> model = Mixture(x=(1,), components=2, family="fixed-normal")
        >>> result = mixture_bound(model, torch.tensor([[-3.0], [3.0]]))
        >>> round(result.value, 2), round(result.upper, 2), result.proven
        (-1.61, -1.61, True)
    """
    require_model(model)
    with torch.no_grad(), seeded(seed), unchecked():
        family, batch, log_det = _inside(model, _accepted(model, as_batch(data)))
        rows = _Rows(family, batch, atoms, tolerance)
        best = rows.fitted(rows.starts())
        found, top = rows.search(best)
        for _ in range(iterations):
            if top < tolerance / 2:
                break
            better = rows.fitted(torch.cat([best.h, found]))
            if better.value <= best.value:
                break
            best, (found, top) = better, rows.search(better)
        upper, proven = rows.above(best, top)
    return MixtureBound(
        value=best.value + log_det,
        upper=upper + log_det,
        proven=proven,
        atoms=len(best.h),
        rows=len(batch),
        family=family.kind,
        given=model.tag.given,
    )


def _accepted(model: Model, batch: Batch) -> Batch:
    """The rows, where the model is; what there is no bound for is refused."""
    if batch.incomplete:
        raise Error("rows hold NaN, missing entries, and the bound takes complete ones: drop them")
    batch = batch.to(*destination(model))
    model.check(batch)
    if batch.context is not None:
        raise Error("there is no such bound given a context: each row could have its own mixture")
    return batch


def _inside(model: Model, batch: Batch) -> tuple[Family, Batch, float]:
    """A copy of the family, the rows that are its own, and their mean log-Jacobian."""
    if isinstance(model, Transformed):
        own, rows, log_det = _inside(model.base, model.inside(batch))
        return own, rows, log_det + model.log_jacobian(batch.x).double().mean().item()
    if not isinstance(getattr(model, "observation", None), Family):
        raise Error(f"'{model.kind}' has no observation family, as VAE and Mixture have", "model")
    family: Any = copy.deepcopy(model.observation).double().eval()
    for part in family.modules():
        if isinstance(part, FREE):
            part.floor = LEAST
    return family, batch.to(batch.x.device, torch.float64), 0.0


class _Atoms(NamedTuple):
    """A mixture: the h of its atoms, their weights, log f_G of the rows, and the mean of it."""

    h: Tensor
    w: Tensor
    log_f: Tensor
    value: float


class _Rows:
    """The distinct rows of a data set, with the share that each has, and mixtures on them.

    Args:
        family: p(x | h); its own parameters are held as they are.
        batch: all rows.
        most: atoms at most.
        tolerance: in nats per row.
    """

    def __init__(self, family: Any, batch: Batch, most: int, tolerance: float) -> None:
        offset = batch.x.new_ones(len(batch)) if batch.offset is None else batch.offset
        table = torch.cat([batch.x.flatten(1), offset[:, None]], -1)
        distinct, counts = table.unique(dim=0, return_counts=True)
        self.family, self.most, self.tolerance = family, most, tolerance
        self.batch = Batch(
            distinct[:, :-1].unflatten(1, family.event),
            offset=None if batch.offset is None else distinct[:, -1],
        )
        self.share = counts / counts.sum().to(table)
        self.own = {name: p.clone() for name, p in family.named_parameters()}

    def parts(self, h: Tensor) -> Iterator[tuple[slice, Any]]:
        """The rows, prepared, as many at a time as keep their tables of atoms in cache."""
        numbers = h[0].numel() if self.family.natural(h[:1]) is None else 1
        size = max(1, min(4096, 2**22 // (len(h) * numbers)))
        for first in range(0, len(self.batch), size):
            some = slice(first, first + size)
            yield some, self.family.prepare(self.batch[some])

    def table(self, h: Tensor) -> Tensor:
        """Log p(x_i | h_k), shape `(rows, atoms)`."""
        densities = self.family.densities(h)
        return torch.cat([densities(part) for _, part in self.parts(h)])

    def ratio(self, h: Tensor, log_f: Tensor) -> Tensor:
        """The terms of D: the logarithms of p(x_i | h_k) / f_G(x_i), times the rows' share."""
        return self.table(h) + (self.share.log() - log_f)[:, None]

    def improved(self, h: Tensor, r: Tensor) -> Tensor:
        """The M-step, with responsibilities `(rows, atoms)` that sum to 1 over the rows."""
        sums = (self.family.expect(part, r[some], h) for some, part in self.parts(h))
        t = reduce(partial(pytree.tree_map, torch.add), sums)
        better: Tensor = self.family.improve(torch.ones_like(r[0]), t, h)
        for name, parameter in self.family.named_parameters():
            parameter.copy_(self.own[name])
        finite = better.isfinite().flatten(1).all(-1)
        return torch.where(finite.view(-1, *[1] * (h.dim() - 1)), better, h)

    def climbed(self, h: Tensor, log_f: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each h further uphill, log D there, and the row that has the largest part in it."""
        h, ratio = h.clone(), self.ratio(h, log_f)
        log_d, row = ratio.logsumexp(0), ratio.argmax(0)
        moving, size = torch.arange(len(h), device=h.device), torch.ones_like(log_d)
        for _ in range(steps):
            step = self.improved(h[moving], ratio.softmax(0)) - h[moving]
            new = h[moving] + size.view(-1, *[1] * (h.dim() - 1)) * step
            there = self.ratio(new, log_f)
            gain = there.logsumexp(0) - log_d[moving]
            up = gain >= 0
            ratio = torch.where(up, there, ratio)
            higher = moving[up]
            h[higher], log_d[higher] = new[up], log_d[higher] + gain[up]
            row[higher] = there[:, up].argmax(0)
            size = torch.where(up, (2 * size).clamp(max=1), 0.25 * size)
            on = torch.where(up, gain > 1e-3 * self.tolerance * size, size > SHORT)
            moving, size, ratio = moving[on], size[on], ratio[:, on]
            if not len(moving):
                break
        return h, log_d, row

    def starts(self) -> Tensor:
        """Atoms of single rows, and of neighbourhoods of more and more of them."""
        found, many = [], min(self.most, len(self.batch))
        while many:
            found.append(self.cells(torch.randperm(len(self.batch))[:many]))
            many //= 4
        return torch.cat(found).unique(dim=0)

    def cells(self, chosen: Tensor) -> Tensor:
        """The h, one for each chosen row, of the rows that are nearest to it."""
        y = (self.batch.x / spread(self.batch.x)).flatten(1)
        nearest = torch.cdist(y, y[chosen]).argmin(-1)
        nearest[chosen] = torch.arange(len(chosen), device=y.device)
        r = one_hot(nearest, len(chosen)) * self.share[:, None]
        r = r / r.sum(0)
        if self.family.has_m_step:
            return self.improved(y.new_zeros(len(chosen), *self.family.params), r)
        own = [self.family.marginal(self.batch[nearest == k]) for k in range(len(chosen))]
        h = torch.stack([y.new_zeros(self.family.params) if h is None else h for h in own])
        for _ in range(5):
            new = self.improved(h, r)
            gain = torch.where(r > 0, r * (self.table(new) - self.table(h)), 0.0).sum(0)
            h = torch.where((gain > 0).view(-1, *[1] * (h.dim() - 1)), new, h)
        return h

    def weighed(self, h: Tensor) -> _Atoms:
        """The mixture with the best weights, without atoms whose weight is next to none."""
        table = self.table(h)
        w = _weights(table, self.share, 0.1 * self.tolerance)
        some = int((w > 1e-2 * self.tolerance * self.share.min()).sum())
        keep = w.argsort(descending=True)[: min(self.most, some)]
        w = w[keep] / w[keep].sum()
        log_f = (table[:, keep] + w.log()).logsumexp(1)
        return _Atoms(h[keep], w, log_f, float(self.share @ log_f))

    def fitted(self, h: Tensor) -> _Atoms:
        """The mixture of these atoms after some iterations of EM, if they raise its likelihood."""
        first = self.weighed(h)
        h, w, log_f, value = first
        for _ in range(SWEEPS):
            ratio = self.ratio(h, log_f)
            h, w = self.improved(h, ratio.softmax(0)), w * ratio.logsumexp(0).exp()
            log_f = (self.table(h) + w.log()).logsumexp(1)
            before, value = value, float(self.share @ log_f)
            if not value > before + 1e-3 * self.tolerance:
                break
        if not value > first.value + 1e-3 * self.tolerance:
            return first
        return max(first, self.weighed(h), key=lambda atoms: atoms.value)

    def search(self, best: _Atoms) -> tuple[Tensor, float]:
        """Atoms at which D is above 1, and the largest log D found."""
        h = torch.cat([best.h, self.starts()])
        for steps in CLIMBS:
            groups = h.split(max(1, AT_ONCE // len(self.batch)))
            climbs = [self.climbed(group, best.log_f, steps) for group in groups]
            h, log_d, row = (torch.cat(column) for column in zip(*climbs, strict=True))
            order = log_d.argsort()
            highest = dict(zip(row[order].tolist(), order.tolist(), strict=True))
            h, log_d = h[[*highest.values()]], log_d[[*highest.values()]]
        return h[log_d > 0.1 * self.tolerance], max(float(log_d.max()), 0.0)

    def above(self, best: _Atoms, top: float) -> tuple[float, bool]:
        """What no mixture exceeds, and whether that is proven."""
        upper, proven = best.value + top, False
        single = self.family.has_m_step and self.family.params.numel() == 1
        if single and len(self.batch) ** 2 <= AT_ONCE:
            upper, proven = best.value + self.line(best.log_f, self.tolerance / 2), True
        if self.family.measure == "counting" and not self.family.conditions:
            frequencies = float(self.share @ self.share.log())
            if frequencies <= upper + self.tolerance:
                upper, proven = frequencies, True
        return max(upper, best.value), proven

    def line(self, log_f: Tensor, slack: float) -> float:
        """What log D does not exceed for any number h, at most `slack` above its maximum.

        Cells of the line are halved where D may be higher than what it is known to reach.
        """
        modes = self.family.maximize(self.family.prepare(self.batch).t).flatten().unique()
        a, b = modes, torch.cat([modes[1:], modes[-1:]])
        below = top = -torch.inf
        while True:
            ends = [self.ratio(h.view(-1, *self.family.params), log_f) for h in (a, b)]
            top = max(top, *(float(end.logsumexp(0).max()) for end in ends))
            log_d = torch.maximum(*ends).logsumexp(0)
            high = log_d > top + slack
            below = max(below, float(torch.where(high, -torch.inf, log_d).max()))
            if not 0 < len(self.batch) * int(high.sum()) < AT_ONCE:
                return max(below, float(log_d.max()))
            a, b = a[high], b[high]
            a, b = torch.cat([a, (a + b) / 2]), torch.cat([(a + b) / 2, b])


def _weights(table: Tensor, share: Tensor, slack: float) -> Tensor:
    r"""The w at which \sum_i share_i log \sum_k w_k p_ik is largest, up to `slack`, by EM.

    Args:
        table: log p_ik, shape `(rows, atoms)`.
        share: of the rows, shape `(rows,)`.
        slack: how much log D may be above 0, and so how much there may be to gain.
    """
    p = (table - table.amax(1, keepdim=True)).exp()
    w = torch.full_like(p[0], 1 / p.shape[1])
    for _ in range(UPDATES):
        d = (share / (p @ w)) @ p
        if d.max() < 1 + slack:
            break
        w = w * d
    return w
