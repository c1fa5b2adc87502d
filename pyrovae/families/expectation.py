r"""Expectation and maximisation over a table of components, for any family.

EM raises a sum over rows of log \sum_k pi_k p(x_i | h_k) by raising

    Q(h) = \sum_ik r_ik log p(x_i | h_k),      r_ik = p(k | x_i),

of which it needs sums over rows only, so rows can come in any number of batches.

*Exponential family*, log p(x | h) = T(x) eta(h) - A(h): the sums are \sum_i r_ik T(x_i), and their
means are what the best h expects. With T in memory the densities of all components are one matrix
product, the sums another.

*Any other family*: Newton's step by the scores s_ik = d log p(x_i | h_k) / dh_k, whose covariance
stands in place of the curvature (Estimation and Inference in Nonlinear Structural Models, Berndt,
Hall, Hall & Hausman, 1974),

    F_k = \sum_i r_ik s_ik s_ik',     h_k <- F_k^-1 (F_k h_k + \sum_i r_ik s_ik) .

Both F_k and F_k h_k + \sum_i r_ik s_ik add up over rows, also where h moved in between: each batch
leaves a parabola. Where the entries of the event have parameters of their own, F_k has a block for
each. A step that promises a gain of g nats is damped, by F_k + g / d^2, so that no entry of h_k
moves by more than d, 1 + the largest of any component (An Algorithm for Least-Squares Estimation
of Nonlinear Parameters, Marquardt, 1963). It can still be too long; `inference.em` then halves it,
so Q never falls.

*A latent beside k*, such as the scale of a Student's t: a family sums what it expects of it, given
x_i and h_k as it is, see `StudentT`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from pyrovae.batch import Batch

if TYPE_CHECKING:
    from pyrovae.families.family import Family

FIRM = 1e-6
"""What is added to a curvature, relative to its diagonal, to have an inverse."""


class Prepared(NamedTuple):
    """Rows as the E-step takes them.

    Args:
        batch: the rows.
        t: their statistics T(x), shape `(rows, statistics)`, of an exponential family.
    """

    batch: Batch
    t: Tensor | None


def densities(family: "Family", h: Tensor) -> Callable[[Any], Tensor]:
    """Log p(x_i | h_k), shape `(rows, *components)`, as a function of prepared rows."""
    natural = family.natural(h)
    if natural is None:
        return lambda rows: family.table(rows.batch, h)
    if h.dtype != torch.float64:
        natural = cast(tuple[Tensor, Tensor], family.natural(h.double()))
    eta, a = natural
    return lambda rows: linear(rows.t, eta, a)


def linear(t: Tensor, eta: Tensor, a: Tensor) -> Tensor:
    """T(x_i) eta_k - A_k; in memory the rows of a component lie side by side."""
    product = torch.addmm(-a.reshape(-1, 1).to(t), eta.flatten(0, -2).to(t), t.mT)
    return product.mT.unflatten(-1, a.shape)


def expect(family: "Family", rows: Prepared, r: Tensor, h: Tensor) -> Any:
    """The sums over rows that the M-step needs, `(*components, ...)`."""
    if rows.t is not None:
        return (r.flatten(1).mT @ rows.t).unflatten(0, r.shape[1:])
    s = _blocks(family, _scores(family, rows.batch, h))
    weighted = r[..., None, None] * s
    curvature = torch.einsum("i...ep,i...eq->...epq", weighted, s)
    own = _blocks(family, h)
    return curvature, (curvature @ own[..., None])[..., 0] + weighted.sum(0)


def improve(family: "Family", n: Tensor, t: Any, h: Tensor) -> Tensor:
    """The best h, or a better one; a component that no row belongs to gets one of no meaning."""
    if isinstance(t, Tensor):
        return family.maximize(t / n[..., None])
    (curvature, pull), own = t, _blocks(family, h)
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    known = diagonal > torch.finfo(h.dtype).tiny
    firm = curvature + torch.where(known, FIRM * diagonal, 1.0).diag_embed()
    slope = pull - (curvature @ own[..., None])[..., 0]
    gain = (slope * _solve(firm, slope)).sum(-1, keepdim=True).clamp(min=0)
    reach = 1 + own.abs().amax(-3, keepdim=True)
    step = _solve(firm + (gain / reach.square()).diag_embed(), slope)
    return h + _unblocked(family, step)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, vector[..., None])[..., 0]


def _scores(family: "Family", batch: Batch, h: Tensor) -> Tensor:
    """The gradients d log p(x_i | h_k) / dh_k, shape `(rows, *components, *params)`."""
    with torch.enable_grad():
        own = h.detach().expand(len(batch), *h.shape).requires_grad_()
        spread = batch.unsqueeze(h.dim() - len(family.params))
        log_prob = family.of(own, spread).log_prob(spread.x)
        (scores,) = torch.autograd.grad(log_prob.sum(), own)
    return scores


def _entrywise(family: "Family") -> bool:
    """Whether each entry of the event has parameters of its own, along the first dimension."""
    event = tuple(family.event)
    return tuple(family.params)[-len(event) :] == event


def _blocks(family: "Family", h: Tensor) -> Tensor:
    """Parameters `(..., *params)` with those that depend on each other side by side."""
    if not _entrywise(family):
        return h.flatten(-len(family.params))[..., None, :]
    entries = h.flatten(-len(family.event))
    return entries.mT if len(family.params) > len(family.event) else entries[..., None]


def _unblocked(family: "Family", blocks: Tensor) -> Tensor:
    """The parameters `(..., *params)` that `_blocks` took apart."""
    own = blocks.mT if _entrywise(family) else blocks
    return own.reshape(*blocks.shape[:-2], *family.params)
