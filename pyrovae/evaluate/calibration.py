r"""Whether the guide is the posterior, under the model: simulation-based calibration.

A latent z* ~ p(z), a row x* ~ p(x | z*) made from it, and draws z_1, ..., z_L ~ q(z | x*): were
q the posterior, z* and the draws would all be from p(z | x*). So for any function f(z, x) the rank
of f(z*, x*) among the f(z_l, x*) is uniform (Validating Bayesian Inference Algorithms with
Simulation-Based Calibration, Talts, Betancourt, Simpson, Vehtari & Gelman, 2018,
https://arxiv.org/abs/1804.06788); the test is that of `pyrovae.evaluate.uniformity`. Here f is

    z_j         each entry of each continuous latent,
    log p(x, z) which sees a q that ignores x: averaged over x* the posterior is the prior, so that
                the z_j of such a q are ranked uniformly, but they do not go with x*,
    |z|         the norm of all entries together.

Where the decoder ignores z_j too, q = p is the posterior: calibrated, and of no use. So beside its
ranks stands the *activity* of z_j, the part of its variance that E_q[z_j | x] has over rows x*,
without the variance that a mean of L draws has by itself. What a context explains of z_j counts.

All this is about rows that the model makes: of rows unlike them it says nothing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from pydantic import NonNegativeInt, PositiveInt
from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.distributions import base
from pyrovae.errors import Error
from pyrovae.evaluate.uniformity import Uniformity, listed, pit, refuse_few
from pyrovae.evaluate.weights import BLOCK, Array, evaluating, paired_traces
from pyrovae.models import Model
from pyrovae.models.model import observed
from pyrovae.part import validated
from pyrovae.place import Place, unchecked
from pyrovae.report import Table, entries
from pyrovae.traces import log_density, sites

INACTIVE = 0.01
"""The activity below which q makes no use of x for an entry."""
ROUNDING = 64
"""The machine epsilons by which a log density can be off."""
SAME = 1e-4
"""The relative difference up to which all norms are the same, as on a sphere."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of latents among draws of their guide, for rows that the model made.

    Args:
        test: the ranks, of each entry of z, of log p(x, z) and of |z|.
        activity: of each entry of z, from 0 to 1, NaN for the other quantities.
        left_out: what was not ranked, and why, a sentence each.
    """

    test: Uniformity
    activity: Array
    left_out: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether all ranks pass for uniform."""
        return not any(self.test.findings)

    @property
    def trivial(self) -> tuple[str, ...]:
        """The entries of z that pass because q makes no use of x for them."""
        noise = math.sqrt(2 / len(self.test.pit)) / self.test.draws
        of_all = zip(self.test.names, self.test.findings, self.activity, strict=True)
        least = max(INACTIVE, 3 * noise)
        return tuple(name for name, finding, a in of_all if not finding and a < least)

    @property
    def verdict(self) -> str:
        """What the ranks say of the guide."""
        told = f"{len(self.test.pit)} simulated rows, {self.test.draws} draws each"
        if self.calibrated:
            least = self.test.adjusted.min()
            verdict = f"q is calibrated under the model (smallest p = {least:.2g}; {told})."
        else:
            verdict = f"q is not the posterior: its draws are {self.test.sentence()} ({told})."
        if self.trivial:
            are = "is" if len(self.trivial) == 1 else "are"
            verdict += (
                f" {listed(self.trivial)} {are} calibrated only because q does not use x there."
            )
        return verdict

    def summary(self) -> dict[str, float]:
        """The figures of all quantities together."""
        return {**self.test.summary(), "trivial": len(self.trivial)}

    def table(self, most: int = 20) -> Table:
        """One line a quantity, from the one that deviates most clearly.

        Args:
            most: how many lines.
        """
        activity = ["" if math.isnan(a) else f"{a:.2f}" for a in self.activity]
        return self.test.table("q's", self.left_out, most, activity=activity)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict}"


@validated
def calibrate(
    model: Model,
    rows: Any = 500,
    *,
    draws: PositiveInt = 99,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> Calibration:
    """Simulation-based calibration of a guide.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        rows: how many to simulate; or rows, for a new one in place of each, given the same
            context, size factor and total, and with the same entries missing.
        draws: of the guide for each row, L; ranks have L + 1 values.
        seed: of rows and draws.
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: fewer than 20 rows; a model without latents, or with one that is not local.

    Example:
        >>> from pyrovae import FactorAnalysis
        >>> calibrate(FactorAnalysis(x=(4,), factors=2), 100).calibrated
        True
    """
    with evaluating(model, seed, device, dtype) as place:
        batch = _rows(model, rows, place)
        at_once = max(1, BLOCK // (draws + 1))
        simulated = [_simulate(model, part, draws) for part in batch.split(at_once)]
    names, left_out = simulated[0].names, simulated[0].left_out
    u, z, mean, variance = (
        np.concatenate([getattr(part, field) for part in simulated])
        for field in ("pit", "z", "mean", "variance")
    )
    if len(bad := np.argwhere(np.isnan(u))):
        row, quantity = bad[0]
        raise Error(f"{names[quantity]} is not a number in row {row} of those simulated")
    norm = np.linalg.norm(z, axis=1)
    if np.ptp(norm) <= SAME * norm.max():
        names, u = names[:-1], u[:, :-1]
        left_out += ("|z| is the same for all z.",) if z.size else ()
    activity = np.full(len(names), np.nan)
    activity[: z.shape[1]] = _activity(z, mean, variance / draws)
    return Calibration(Uniformity(names, u, draws), activity, left_out)


class _Simulated(NamedTuple):
    """Some simulated rows.

    Args:
        names: of the quantities: the entries of z, log p(x, z) and |z|.
        left_out: what was not ranked, and why.
        pit: the PIT values, shape `(rows, quantities)`.
        z: the true entries, shape `(rows, entries)`.
        mean: over the draws of each row, shape `(rows, entries)`.
        variance: likewise.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    pit: Array
    z: Array
    mean: Array
    variance: Array


def _rows(model: Model, rows: Any, place: Place) -> Batch:
    """Rows to simulate in place of."""
    if isinstance(rows, int):
        refuse_few(rows)
        device, dtype = place
        return model.blank(torch.zeros(rows, *model.event, device=device, dtype=dtype))
    batch = as_batch(rows).to(*place)
    model.check(batch)
    refuse_few(len(batch))
    return batch


def _simulate(model: Model, batch: Batch, draws: int) -> _Simulated:
    """A new row in place of each, and where its latents are among draws of the guide."""
    free = model.draw(batch)
    made = observed(free)
    if len(made) > 1:
        several = " and ".join(f"'{site['name']}'" for site in made)
        raise Error(f"the model observes {several}: calibration is of models that observe one x")
    batch = batch.replace(x=torch.where(batch.x.isnan(), torch.nan, made[0]["value"]))
    guide, joint = paired_traces(model, batch, pyro.plate("particles", draws, dim=-2))
    with model.scope(), unchecked():
        truth = poutine.trace(poutine.replay(model.model, trace=free)).get_trace(batch)
    _refuse_own_size(model, free, truth, batch)
    latents = {name: site["fn"] for name, site in sites(joint) if name in guide}
    if not latents:
        raise Error(f"the model '{model.kind}' has no latents, and so no guide to calibrate")
    discrete = [name for name, p in latents.items() if base(p.support).is_discrete]
    events = {name: p.event_shape for name, p in latents.items() if name not in discrete}
    names = [place for name, event in events.items() for place in entries(name, event)]
    log_p = log_density(joint, draws, len(batch))[0, ..., None]
    log_p_true = log_density(truth, 1, len(batch))[0, 0, :, None]
    z, z_true = _flat(joint, events, log_p), _flat(truth, events, log_p_true)
    rounding = ROUNDING * torch.finfo(log_p.dtype).eps
    norm, norm_true = (t.norm(dim=-1, keepdim=True) for t in (z, z_true))
    u = [pit(z_true, z), pit(log_p_true, log_p, rounding), pit(norm_true, norm)]
    mean = z.mean(0)
    moments = (t.double().cpu().numpy() for t in (z_true, mean, (z - mean).square().mean(0)))
    return _Simulated(
        (*names, "log p(x, z)", "|z|"),
        tuple(f"{name} is discrete: only log p(x, z) sees it." for name in discrete),
        np.concatenate(u, 1),
        *moments,
    )


def _flat(trace: poutine.Trace, events: dict[str, torch.Size], log_p: Tensor) -> Tensor:
    """All entries of z side by side, `(..., entries)`, beside log p of the shape `(..., 1)`."""
    leading = log_p.shape[:-1]
    values = [
        trace.nodes[name]["value"].expand(*leading, *event).reshape(*leading, -1)
        for name, event in events.items()
    ]
    return torch.cat([log_p[..., :0], *values], -1)


def _refuse_own_size(
    model: Model, free: poutine.Trace, truth: poutine.Trace, batch: Batch
) -> None:
    """Refuse p(x | z) that a new row changes: given what was taken from the row itself."""
    name = observed(free)[0]["name"]
    before, after = (trace.nodes[name]["fn"].log_prob(batch.x) for trace in (free, truth))
    rounding = ROUNDING * torch.finfo(before.dtype).eps * before.abs()
    if ((before - after).abs() - rounding).median() > 1e-3:
        raise Error(
            f"p(x | z) of '{model.kind}' is given {model.tag.given or 'what it takes from x'}, "
            "which new rows do not keep: only with size factors of their own, exposure = "
            "'offset', can they be simulated"
        )


def _activity(z: Array, mean: Array, noise: Array) -> Array:
    """The activity of each entry, from the moments of the draws of each row.

    The variance of z is told by the distance of its 16 % and 84 % quantiles, which heavy tails
    have too.
    """
    low, high = np.quantile(z, [0.16, 0.84], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        activity: Array = (mean.var(0) - noise.mean(0)) / ((high - low) / 2) ** 2
    return activity.clip(0, 1)
