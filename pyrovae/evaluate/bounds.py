r"""log p(x) between two bounds, where it can be: whether to trust annealing with a model.

Annealing bounds log p(x) from below: E[w] = p(x) for the weight w of a chain that leads from p_0
to the posterior (see `AIS`). From an exact draw of the posterior the same chain runs backwards,
and E[1 / w] = 1 / p(x): then -log (1/K) \sum_k 1/w_k is an upper bound. Such a draw exists for
rows that the model simulates, where z is known, so there log p(x) is caught between two bounds
(Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani & Adams,
2015, https://arxiv.org/abs/1511.02543; On the Quantitative Analysis of Decoder-Based Generative
Models, Wu, Burda, Salakhutdinov & Grosse, 2017, https://arxiv.org/abs/1611.04273). For real rows
there is no such draw: the upper bound is not to be had.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.estimators import AIS
from pyrovae.evaluate.estimators.annealing import anneal
from pyrovae.evaluate.paired import standard_error
from pyrovae.evaluate.weights import BLOCK, Array, evaluating, reduce
from pyrovae.models import Model
from pyrovae.models.model import observed
from pyrovae.part import validated
from pyrovae.place import destination
from pyrovae.report import uncertain
from pyrovae.traces import sites


@dataclass(frozen=True, eq=False)
class Sandwich:
    """log p(x) of simulated rows between two bounds. Every array has the shape `(rows,)`.

    Args:
        lower: the bound from below, by annealing from the start.
        upper: the bound from above, by annealing backwards from the posterior.
        lower_mcse: the Monte-Carlo standard error of the lower bound.
        upper_mcse: that of the upper bound.
        tolerance: the mean gap in nats up to which annealing is trusted.
        temperatures: of the annealing.
    """

    lower: Array
    upper: Array
    lower_mcse: Array
    upper_mcse: Array
    tolerance: float
    temperatures: int

    @property
    def gap(self) -> float:
        """The mean of upper minus lower: how far either is from log p(x), at most."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_se(self) -> float:
        """The standard error of the gap over rows and draws."""
        return standard_error(self.upper - self.lower)

    @property
    def trusted(self) -> bool:
        """Whether the gap is below the tolerance by two standard errors."""
        return self.gap + 2 * self.gap_se < self.tolerance

    @property
    def verdict(self) -> str:
        """Whether annealing can be trusted, in a sentence."""
        what = f"annealing with {self.temperatures} temperatures"
        if self.trusted:
            within = max(self.gap, 0.0) + 2 * self.gap_se
            return f"{what} finds log p(x) of simulated rows to within {within:.2f} nats"
        return (
            f"{what} may be off by {self.gap:.2f} nats even on simulated rows: use more "
            "temperatures"
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "lower": float(self.lower.mean()),
            "upper": float(self.upper.mean()),
            "gap": self.gap,
            "gap_se": self.gap_se,
            "temperatures": self.temperatures,
            "rows": len(self.lower),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        return (
            f"{self.lower.mean():.3f} < mean log p(x) < {self.upper.mean():.3f} nats, gap "
            f"{uncertain(self.gap, self.gap_se, 3)} ({len(self.lower)} simulated rows): "
            f"{self.verdict}. For real rows there is no upper bound."
        )


@validated
def sandwich(
    model: Model,
    rows: Any = 50,
    *,
    particles: PositiveInt = 16,
    method: AIS | None = None,
    tolerance: PositiveFloat = 0.5,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> Sandwich:
    """Lower and upper bounds on log p(x) of rows that the model simulates.

    Their gap says whether annealing can be trusted for this model. The upper bound starts from the
    z that a row was simulated with, which real rows do not have.

    Args:
        model: a fitted model with continuous latents.
        rows: how many to simulate; or a batch, whose contexts and size factors they are given.
        particles: chains of each row in each direction.
        method: the annealing.
        tolerance: the mean gap in nats up to which it is trusted.
        seed: of the draws.
        device: where to compute; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: a discrete latent, or one without coordinates.
    """
    ais = method or AIS()
    lower, upper = [], []
    with evaluating(model, seed, device, dtype):
        batch, z = _simulated(model, rows)
        for index in torch.arange(len(batch), device=batch.x.device).split(
            BLOCK // particles or 1
        ):
            at = Coordinates(model, batch[index], "annealing")
            path = ais.path(at)
            schedule = ais.schedule(at, path)
            known = at.u({name: value[:, index] for name, value in z.items()})
            known = known.expand(particles, *known.shape[1:])
            up = anneal(path, ais.draw(at, particles), schedule, ais.leapfrogs)
            down = anneal(path, known, schedule.flip(), ais.leapfrogs)
            lower.append(reduce(up.cpu().numpy()))
            upper.append(reduce(-down.cpu().numpy()))
    below, above = (
        [np.concatenate([part[name] for part in parts]) for name in ("value", "mcse")]
        for parts in (lower, upper)
    )
    return Sandwich(
        below[0], -above[0], below[1], above[1], tolerance=tolerance, temperatures=ais.temperatures
    )


def _simulated(model: Model, rows: Any) -> tuple[Batch, dict[str, Tensor]]:
    """Rows that the model simulates, and their latents by site, `(1, rows, *event)`."""
    given = rows if isinstance(rows, int) else as_batch(rows).to(*destination(model))
    trace = model.draw(given)
    x = observed(trace)[-1]["value"]
    batch = (model.blank(x) if isinstance(given, int) else given).replace(x=x)
    there = {id(site) for site in observed(trace)}
    latents = {name: site["value"] for name, site in sites(trace) if id(site) not in there}
    return batch, {name: value[None] for name, value in latents.items()}
