r"""Draws of p(z | x) for each row, and whether they can be believed.

Of chains that mix, R-hat is near 1: above 1.01 those of a row have not told the same story, for
want of draws or because the posterior has several modes. Half of the chains start at the guide and
half at the prior, so that a mode that the guide leaves out shows. The effective sample size says
how many independent draws they are worth (Rank-Normalization, Folding, and Localization: An
Improved R-hat for Assessing Convergence of MCMC, Vehtari, Gelman, Simpson, Carpenter & Burkner,
2021, https://arxiv.org/abs/1903.08008). Both are ArviZ's.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pyrovae.evaluate.samplers import HMC, Draws, Sampler
from pyrovae.evaluate.weights import BLOCK, Array, checked, evaluating
from pyrovae.models import Model
from pyrovae.models.model import require_positive
from pyrovae.part import validated

MIXED = 1.01
"""The R-hat up to which chains are taken to have mixed."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the latents of each row.

    Args:
        z: by site, `(chains, draws, rows, *event)`.
        method: the kind of the sampler.
        rhat: the largest R-hat of the entries of z, `(rows,)`; NaN with fewer than four draws.
        ess: the smallest effective sample size, `(rows,)`: of the chains, or of the weights that
            draws of the guide were taken by.
        accepted: the share of moves that were accepted, `(rows,)`; NaN without moves.
    """

    z: Draws
    method: str
    rhat: Array
    ess: Array
    accepted: Array

    @property
    def pooled(self) -> Draws:
        """The draws of all chains, `(chains * draws, rows, *event)`."""
        return {name: value.flatten(0, 1) for name, value in self.z.items()}

    @property
    def mean(self) -> Draws:
        """The posterior mean of each row, by site, `(rows, *event)`."""
        return {name: value.mean(0) for name, value in self.pooled.items()}

    @property
    def sd(self) -> Draws:
        """The posterior standard deviation of each row, by site, `(rows, *event)`."""
        return {name: value.std(0) for name, value in self.pooled.items()}

    @property
    def unmixed(self) -> NDArray[np.intp]:
        """The rows whose chains disagree, by R-hat."""
        return np.flatnonzero(self.rhat > MIXED)

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        chains, draws, rows = next(iter(self.z.values())).shape[:3]
        return {
            "method": self.method,
            "chains": chains,
            "draws": draws,
            "rows": rows,
            "rhat": float(np.nanmax(self.rhat)) if not np.isnan(self.rhat).all() else math.nan,
            "rhat_above_1.01": float((self.rhat > MIXED).mean()),
            "ess": float(self.ess.min()),
            "accepted": float(self.accepted.mean()),
        }

    def __str__(self) -> str:
        found = self.summary()
        moves = "" if math.isnan(found["accepted"]) else f", {found['accepted']:.0%} accepted"
        return (
            f"{found['chains']} chains of {found['draws']} draws by {self.method} for "
            f"{found['rows']} rows: R-hat above {MIXED} in {found['rhat_above_1.01']:.1%} of "
            f"rows, smallest effective sample size {found['ess']:.0f}{moves}"
        )


@validated
def posterior(
    model: Model,
    data: Any,
    draws: int = 1000,
    *,
    method: Sampler | None = None,
    chains: PositiveInt = 4,
    rows: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> Posterior:
    """Draws of p(z | x) for each row.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw.
        draws: of each chain.
        method: the sampler: `hmc` unless given, `nuts`, `guide` or `resampled`.
        chains: how many, half of them from the guide and half from the prior.
        rows: the first rows only; all unless given.
        seed: of the draws.
        device: where to compute; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: rows that the model cannot have generated; latents that cannot be moved, with `hmc`
            and `nuts`.
    """
    require_positive(draws, "draws")
    sampler = method or HMC()
    with evaluating(model, seed, device, dtype) as place:
        batch = checked(model, data, place, rows)
        blocks = batch.split(max(1, BLOCK // chains))
        found = [sampler(model, some, chains, draws) for some in blocks]
    parts, known = zip(*found, strict=True)
    z = {name: torch.cat([part[name] for part in parts], 2).cpu() for name in parts[0]}
    said = {name: np.concatenate([k[name] for k in known]) for name in known[0]}
    rhat, ess = _mixing(z)
    none = np.full(len(batch), math.nan)
    return Posterior(z, sampler.kind, rhat, said.get("ess", ess), said.get("accepted", none))


def _mixing(z: Draws) -> tuple[Array, Array]:
    """The largest R-hat and the smallest effective sample size of each row, `(rows,)`."""
    from arviz_stats.base import array_stats

    flat = [value.reshape(*value.shape[:3], -1) for value in z.values()]
    entries = torch.cat([value.double() for value in flat], -1).numpy()
    if entries.shape[1] < 4:
        none = np.full(entries.shape[2], math.nan)
        return none, none
    with np.errstate(divide="ignore", invalid="ignore"):  # of states that never change
        rhat, ess = (
            of(entries, chain_axis=0, draw_axis=1) for of in (array_stats.rhat, array_stats.ess)
        )
    return np.fmax.reduce(rhat, -1), np.fmin.reduce(ess, -1)
