r"""Wake and sleep: a guide that is trained without a gradient through its draws.

    wake:   maximise  \sum_k u_k log p_theta(x, z_k) in theta,     x a row, z_k ~ q(z | x)
    sleep:  maximise  log q_phi(z' | x') in phi,                   x', z' ~ p(x, z), a dream

with the normalised weights u_k of `IWAE`, for which the first is the gradient of its bound. The
sleep phase makes KL(p(z|x) || q(z|x)) small, on rows that the model makes up. It can be had on the
rows themselves as well, with the same weights, the *wake* phase of the guide:

    maximise  \sum_k u_k log q_phi(z_k | x) in phi,

which is right as K grows. No derivative of a draw is taken, so discrete latents do. In terms of
`path`, a = u, b = 0 and c = -u.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import pyro.infer
import torch
from pydantic import PositiveInt
from pyro import poutine
from torch import Tensor

from pyrovae import traces
from pyrovae.batch import Batch, as_batch
from pyrovae.models.model import observed
from pyrovae.objectives.importance import log_mean
from pyrovae.objectives.objective import Objective
from pyrovae.objectives.path import Paths, Weights
from pyrovae.schedules import Dials


class WakeSleep(Objective):
    r"""The bound of `IWAE` for the decoder, log q(z | x) of weighed draws or dreams for the guide.

    Discrete latents are drawn, not summed over. Reweighted Wake-Sleep (Bornschein & Bengio, 2015,
    https://arxiv.org/abs/1406.2751). With one particle it is older. The Wake-Sleep Algorithm for
    Unsupervised Neural Networks (Hinton, Dayan, Frey & Neal, 1995,
    https://doi.org/10.1126/science.7761831).

    Args:
        particles: draws of z for each row, K.
        encoder: the phase in which the guide learns: `sleep`, `wake`, or `both`, half and half.
    """

    particles: PositiveInt = 5
    encoder: Literal["sleep", "wake", "both"] = "sleep"

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        asleep = {"sleep": 1.0, "wake": 0.0, "both": 0.5}[self.encoder]
        return Phases(self.kind, self.particles, asleep)


class Phases(Paths):
    """The wake phases, and a dream for each row.

    Args:
        kind: of the objective, for messages.
        particles: draws for each row.
        asleep: the weight of the sleep phase; the rest is the guide's wake phase.
    """

    pathwise: ClassVar[bool] = False

    def __init__(self, kind: str, particles: int, asleep: float) -> None:
        super().__init__(kind, particles, self._awake)
        self.asleep = asleep

    def bound(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        total = super().bound(model, guide, args, kwargs)
        if not self.asleep or not torch.is_grad_enabled():
            return total
        dreamt = self.asleep * _dreamt(model, guide, args, kwargs)
        return total + (dreamt - dreamt.detach())

    def _awake(self, log_w: Tensor) -> Weights:
        normalised = log_w.softmax(0)
        of_guide = None if self.asleep == 1 else (self.asleep - 1) * normalised
        return Weights(log_mean(log_w), normalised, score=of_guide)


def _dreamt(model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """The sum over rows of log q(z' | x'), z' and x' from the model."""
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    rows = _as_seen(as_batch(args[0]), observed(dream)[-1]["value"])
    seen = rows if isinstance(args[0], Batch) else rows.x
    told = poutine.trace(poutine.replay(guide, trace=dream)).get_trace(seen, *args[1:], **kwargs)
    dreamt = traces.latents(dream)
    return traces.log_density(told, 1, len(rows), lambda site: site["name"] in dreamt).sum()


def _as_seen(batch: Batch, x: Tensor) -> Batch:
    """Rows that were dreamt in place of those of a batch: incomplete as these, without labels."""
    x = x.to(batch.x.dtype)
    if batch.incomplete:
        x = torch.where(batch.x.isnan(), torch.nan, x)
    return replace(batch, x=x, labels=None).incomplete_as(batch)
