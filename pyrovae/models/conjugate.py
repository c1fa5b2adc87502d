r"""Priors on the parameters of a mixture's components, of which EM finds the posterior mode.

Counted in units of the data, y = (x - m) / u with m and u the columns' means and standard
deviations, a conjugate prior adds to the sums of an M-step what imaginary rows would,

    mu, S ~ normal-inverse-Wishart:    log p = -1/2 (nu + D + 2) log |S| - 1/2 tr(Psi S^-1)
                                               - kappa/2 mu' S^-1 mu,

so with n rows of sum t_1 and sum of products t_2 the mode is

    mu = t_1 / (n + kappa),   S = (t_2 + Psi - (n + kappa) mu mu') / (n + nu + D + 2) .

A component without rows is at the prior's mode, and none can shrink onto a single row.
"""

from abc import abstractmethod
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.families import Family, MultivariateNormal, Normal, SphericalNormal
from pyrovae.part import Part


class ComponentPrior(Part):
    """The role of a prior on each component's parameters. `NormalInverseWishart` is its member."""

    def setup(self) -> None:
        """Nothing to make: what it needs to know of the data, the family knows."""

    @abstractmethod
    def refuse_misfit(self, family: Family) -> None:
        """Refuse a family that it is no prior of."""

    @abstractmethod
    def maximize(self, family: Any, n: Tensor, t: Tensor) -> Tensor:
        """The M-step: the posterior's mode, h of the shape `(*components, *params)`."""

    @abstractmethod
    def log_prob(self, family: Any, h: Tensor) -> Tensor:
        """The log density of the mean and the covariance in h, up to a constant."""


class NormalInverseWishart(ComponentPrior):
    """The conjugate prior of a normal's mean and covariance; for variances, of each of them.

    With the defaults it is weak, and expects clusters narrower than the data. Bayesian
    Regularization for Normal Mixture Estimation and Model-Based Clustering (Fraley & Raftery,
    2007, https://doi.org/10.1007/s00357-007-0004-5).

    Args:
        mean_rows: kappa, the imaginary rows at the data's mean.
        covariance_rows: nu - D, the imaginary rows of the covariance, beyond its dimension.
        width: the standard deviation of these rows, as a fraction of the data's.
    """

    mean_rows: PositiveFloat = 0.01
    covariance_rows: PositiveFloat = 2.0
    width: PositiveFloat = 0.3

    def refuse_misfit(self, family: Family) -> None:
        if not isinstance(family, (MultivariateNormal, Normal, SphericalNormal)):
            raise Error(
                f"{self.kind} is a prior of multivariate-normal, normal and spherical-normal, "
                f"not of {family.kind}"
            )

    def _imaginary(self, family: Any) -> tuple[float, Tensor]:
        """Nu + D + 2, and Psi in the place of the products."""
        d = family.event.numel()
        units = torch.cat([torch.eye(d), -torch.eye(d)]).to(family.center)
        rows = family.center + family.unit * units.unflatten(-1, family.event)
        products = family.statistics(rows)[:, d:].sum(0) / 2
        return self.covariance_rows + 2 * d + 2, self.covariance_rows * self.width**2 * products

    def maximize(self, family: Any, n: Tensor, t: Tensor) -> Tensor:
        d, n = family.event.numel(), n[..., None]
        imaginary, psi = self._imaginary(family)
        mean = t[..., :d] / (n + self.mean_rows)
        squares = self._products(family, mean)
        covariance = (t[..., d:] + psi - (n + self.mean_rows) * squares) / (n + imaginary)
        h: Tensor = family.maximize(torch.cat([mean, covariance + squares], -1))
        return h

    def log_prob(self, family: Any, h: Tensor) -> Tensor:
        eta, a = family.natural(h)
        d = family.event.numel()
        imaginary, psi = self._imaginary(family)
        mean = ((family(h).mean - family.center) / family.unit).flatten(-len(family.event))
        square = (self._products(family, mean) * eta[..., d:]).sum(-1)  # -1/2 mu' S^-1 mu
        log_det = -2 * (a + square)  # -log |S|, up to a constant
        return 0.5 * imaginary * log_det + (psi * eta[..., d:]).sum(-1) + self.mean_rows * square

    def _products(self, family: Any, mean: Tensor) -> Tensor:
        """The products of means `(..., D)` as the family's statistics hold them."""
        rows = family.center + family.unit * mean.unflatten(-1, family.event)
        t: Tensor = family.statistics(rows.flatten(0, -1 - len(family.event)))
        return t[:, mean.shape[-1] :].unflatten(0, mean.shape[:-1])
