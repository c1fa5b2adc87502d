r"""Missing entries, drawn from what the model says of them given those that are there.

    p(x_missing | x_there) = \int p(x_missing | z, x_there) p(z | x_there) dz

Draws z_k ~ q(z | x_there), each completed by x_k ~ p(x_missing | z_k, x_there), stand for this
distribution once they are weighted by how far q is from the posterior,

    w_k = p(x_there, z_k) / q(z_k | x_there),      self-normalised: w_k / \sum_j w_j

(MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, Mattei & Frellsen, 2019,
https://arxiv.org/abs/1812.02633).
"""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batch import as_batch
from pyrovae.errors import Error
from pyrovae.evaluate.weights import BLOCK, paired_traces
from pyrovae.models import Model
from pyrovae.models.model import observed, require_model, require_positive
from pyrovae.place import destination, in_mode, seeded
from pyrovae.traces import log_density


@dataclass(frozen=True, eq=False)
class Imputations:
    """Several completions of rows, each with a weight, on the raw scale.

    Args:
        values: complete rows, shape `(draws, rows, *x)`; entries that were there are as they were.
        weights: of each row's draws, shape `(draws, rows)`, they sum to 1 over the draws.
        missing: which entries were missing, shape `(rows, *x)`.
    """

    values: Tensor
    weights: Tensor
    missing: Tensor

    @property
    def ess(self) -> Tensor:
        """The effective number of draws of each row, shape `(rows,)`."""
        return 1 / self.weights.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """The expected rows, shape `(rows, *x)`."""
        return (self._weights() * self.values).sum(0)

    def quantile(self, probability: float) -> Tensor:
        """The smallest draw below which the weights reach the probability, `(rows, *x)`."""
        if not 0 <= probability <= 1:
            raise Error(f"a probability is a number from 0 to 1, got {probability}")
        values, order = self.values.sort(0)
        reached = self._weights().expand_as(values).gather(0, order).cumsum(0)
        first = (reached < probability).sum(0).clamp(max=len(values) - 1)
        return values.gather(0, first[None])[0]

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The ends of the central interval that holds an entry with this probability."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def resample(self, draws: int, seed: int = 0) -> Tensor:
        """Completions that weigh the same, drawn by their weights, shape `(draws, rows, *x)`."""
        with seeded(seed):
            chosen = torch.multinomial(self.weights.mT, draws, replacement=True).mT
        return self.values[chosen, torch.arange(self.values.shape[1], device=chosen.device)]

    def _weights(self) -> Tensor:
        return self.weights.reshape(*self.weights.shape, *[1] * (self.values.dim() - 2))


@torch.no_grad()
def impute(model: Model, data: Any, draws: int = 100, seed: int = 0) -> Imputations:
    """Multiple imputations of the missing entries of rows, with weights.

    Args:
        model: a fitted model that takes missing entries, such as `VAE(missing=True)`.
        data: rows, shape `(rows, *x)`, raw, NaN where an entry is missing.
        draws: completions of each row.
        seed: of the draws.

    Raises:
        Error: a model that takes complete rows only; rows that it cannot have generated.
    """
    require_model(model)
    require_positive(draws, "draws")
    if not model.missing:
        raise Error(f"'{model.kind}' takes complete rows: build it with missing = true", "model")
    with seeded(seed), in_mode(model, False):
        batch = as_batch(data).to(*destination(model))
        model.check(batch)
        parts = []
        for rows in batch.split(max(1, BLOCK // draws)):
            guide, joint = paired_traces(model, rows, pyro.plate("particles", draws, dim=-2))
            log_w = [log_density(trace, draws, len(rows)) for trace in (joint, guide)]
            x = _completed(joint, rows.x).expand(draws, *rows.x.shape)
            parts.append((x, (log_w[0] - log_w[1])[0].softmax(0)))
    values, weights = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return Imputations(values, weights, batch.x.isnan())


def _completed(joint: poutine.Trace, x: Tensor) -> Tensor:
    """Draws of complete rows given those with missing entries, by the observed site."""
    p: Any = observed(joint)[-1]["fn"]
    transforms: list[Any] = []
    while hasattr(p, "transforms"):
        transforms, p = [*p.transforms, *transforms], p.base_dist
    y = x
    for transform in reversed(transforms):
        y = transform.inv(y)
    y = p.complete(y) if hasattr(p, "complete") else y
    for transform in transforms:
        y = transform(y)
    return torch.where(x.isnan(), y, x)
