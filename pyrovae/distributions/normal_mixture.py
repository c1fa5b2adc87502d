r"""Mixtures of normals whose samples carry a gradient to every parameter.

    q(z) = \sum_k pi_k N(z; mu_k, diag sigma_k^2)

A draw picks a component, which no gradient passes through. But the same law has draws that are
smooth in the parameters phi: z solves F_d(z_d | z_<d; phi) = u_d for uniform u, one entry after
another, with the distribution functions

    F_d = \sum_k w_kd Phi_kd,    w_kd = p(k | z_<d),    Phi_kd = Phi((z_d - mu_kd) / sigma_kd) .

Implicit differentiation needs z but no u, so any way of drawing z will do. With f_d the density
of z_d given z_<d, the derivative dz solves a triangular system with ones on its diagonal,

    dz_d + \sum_{j<d} L_dj dz_j = -(dF_d / dphi) / f_d,    L_dj = (dF_d / dz_j) / f_d

(Stochastic Backpropagation through Mixture Density Distributions, Graves, 2016,
https://arxiv.org/abs/1607.05690; Implicit Reparameterization Gradients, Figurnov, Mohamed & Mnih,
2018, https://arxiv.org/abs/1805.08498). A change of phi enters F_d through the normals' own
quantiles, with r_kd = p(k | z_<=d), and through the weights, with A_kd = w_kd (Phi_kd - F_d)/f_d:

    (dF_d / dphi) / f_d = \sum_k r_kd sigma_kd dzeta_kd / dphi + A_kd dlog w~_kd / dphi,
    zeta_kd = (z_d - mu_kd) / sigma_kd,    w~_kd = pi_k \prod_{j<d} N(z_j; mu_kj, sigma_kj^2) .

A shift of weight carries draws from one component to another. Those in the gap between have far to
go, so the wider a gap, the rarer and the larger their gradients.
"""

import math
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class NormalMixture(dist.TorchDistribution):
    r"""A mixture of normals with diagonal covariances, \sum_k pi_k N(mu_k, diag sigma_k^2).

    `sample` gives independent draws. Where `stratified`, `rsample` shares the n draws of a row out
    among the components: the uniform numbers that choose are one from each n-th of the unit
    interval, in random order. So each draw has the law of the mixture, component k gets n pi_k,
    less than two more or fewer, and an average varies less. The draws of a row are those of
    `sample_shape` and of dimensions that `expand` adds in front of the rows, as a plate of
    particles does. The gradient of an average over draws is exact; that of a function of several
    draws at once, as in a bound of importance weights, only where they are independent.

    Args:
        logits: log pi up to a constant, shape `(*batch, components)`.
        loc: mu, shape `(*batch, components, *event)`.
        scale: sigma, positive, shape `(*batch, components, *event)`.
        event_dim: how many of the last dimensions are the event's, at least 1.
        stratified: whether the draws of a row are shared out among the components.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        event_dim: int = 1,
        stratified: bool = True,
    ) -> None:
        split = loc.dim() - event_dim
        self.logits = logits.log_softmax(-1)
        self.loc, self.scale = loc.flatten(split), scale.flatten(split)
        self.stratified = stratified
        self.particles = 0  # how many of the batch dimensions are draws of one row
        super().__init__(loc.shape[: split - 1], loc.shape[split:], validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self._average(self.loc).unflatten(-1, self.event_shape)

    @property
    def variance(self) -> Tensor:
        apart = self.loc - self._average(self.loc).unsqueeze(-2)
        return self._average(self.scale.square() + apart.square()).unflatten(-1, self.event_shape)

    def _average(self, values: Tensor) -> Tensor:
        return (self.logits.exp().unsqueeze(-1) * values).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        _, log_normal = self._normals(value.flatten(-len(self.event_shape)))
        return (self.logits + log_normal.sum(-1)).logsumexp(-1)

    def _normals(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Zeta and log N(z_d; mu_kd, sigma_kd^2), shape `(..., components, entries)`."""
        zeta = (z.unsqueeze(-2) - self.loc) / self.scale
        return zeta, -0.5 * zeta.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        return self._draw(self._uniform(Size(sample_shape))).unflatten(-1, self.event_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        uniform = self._uniform(Size(sample_shape))
        if self.stratified:
            draws = len(sample_shape) + self.particles
            rows = uniform.reshape(uniform.shape[:draws].numel(), *uniform.shape[draws:])
            stratum = torch.rand_like(rows).argsort(0)
            uniform = ((stratum + rows) / len(rows)).reshape(uniform.shape)
        return self._with_gradient(self._draw(uniform)).unflatten(-1, self.event_shape)

    def _uniform(self, sample_shape: Size) -> Tensor:
        return torch.rand_like(self.loc[..., 0, 0].expand(sample_shape + self.batch_shape))

    @torch.no_grad()
    def _draw(self, uniform: Tensor) -> Tensor:
        """Draws of the components that uniform numbers choose, shape `(*uniform, entries)`."""
        below = self.logits.exp().cumsum(-1)[..., :-1]
        chosen = (uniform[..., None] > below).sum(-1)[..., None, None]
        wide = (p.expand(*uniform.shape, -1, -1) for p in (self.loc, self.scale))
        loc, scale = (p.take_along_dim(chosen, -2).squeeze(-2) for p in wide)
        return loc + scale * torch.randn_like(loc)

    def _with_gradient(self, z: Tensor) -> Tensor:
        """Draws, shape `(..., entries)`, with their derivative by the parameters."""
        zeta, log_normal = self._normals(z)
        before = torch.nn.functional.pad(log_normal.cumsum(-1)[..., :-1], (1, 0))
        log_w = self.logits.unsqueeze(-1) + before
        with torch.no_grad():
            log_joint = log_w + log_normal
            log_f = log_joint.logsumexp(-2, True) - log_w.logsumexp(-2, True)
            w, r = log_w.softmax(-2), log_joint.softmax(-2)
            # Phi_kd - F_d keeps its digits where it is taken from the nearer end.
            tail = torch.where((w * _phi(zeta)).sum(-2, True) > 0.5, -1.0, 1.0).to(z)
            phi = _phi(tail * zeta)
            a = tail * (phi - (w * phi).sum(-2, True)) * (log_w.log_softmax(-2) - log_f).exp()
            system = a.mT @ (-zeta / self.scale)
        moved = (r * self.scale.detach() * zeta + a * log_w).sum(-2, keepdim=True)
        solved = torch.linalg.solve_triangular(system, moved.mT, upper=False, unitriangular=True)
        solved = solved.squeeze(-1)
        return z - (solved - solved.detach())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        logits = self.logits.expand(*batch_shape, -1)
        shape = (*batch_shape, -1, *self.event_shape)
        loc, scale = (p.unflatten(-1, self.event_shape) for p in (self.loc, self.scale))
        event_dim = len(self.event_shape)
        wider = type(self)(
            logits, loc.expand(shape), scale.expand(shape), event_dim, self.stratified
        )
        added = len(batch_shape) - len(self.batch_shape) if self.batch_shape else 0
        wider.particles = self.particles + added
        return wider


def _phi(zeta: Tensor) -> Tensor:
    """The standard normal's distribution function, to the last digit in the lower tail."""
    return 0.5 * (-(0.5**0.5) * zeta).erfc()
