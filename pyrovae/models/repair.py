r"""Components that EM left without rows, and where they are missing.

For a further component p(x | h) with a small weight e the likelihood changes by e N (D - 1),

    D(h) = 1/N \sum_i p(x_i | h) / p(x_i),

so one with D > 1 raises it (The Geometry of Mixture Likelihoods, Lindsay, 1983). A component that
has less than one row is taken away from where it is and tried at the row that is explained worst,
with the spread of the rows around it; the weight that is best is found by EM for it alone,

    e <- 1/N \sum_i e p(x_i | h) / (e p(x_i | h) + (1 - e) p(x_i)) .
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.models.model import Statistics
from pyrovae.transforms import spread


@torch.no_grad()
def repair(mixture: Any, batch: Batch, statistics: Statistics) -> bool:
    """Move components with less than a row to where they raise the likelihood, if they do."""
    collapsed = torch.nonzero(statistics.n.view(-1, mixture.components) < 1).tolist()
    return sum(_move(mixture, batch, run, k) for run, k in collapsed) > 0


def _move(mixture: Any, batch: Batch, run: int, k: int) -> bool:
    """Whether component k of a run was moved."""
    table = torch.cat([mixture.joint(part) for part in batch.split(4096)])
    others = table.view(len(batch), -1, mixture.components)[:, run].clone()
    others[:, k] = -torch.inf
    log_p = others.logsumexp(-1)
    scout = _scout(mixture, batch, run, batch.x[log_p.argmin()])
    gain = (scout.family.table(batch, scout.h)[:, 0] - log_p).double()
    if gain.logsumexp(0) <= math.log(len(batch)):
        return False
    e = torch.tensor(1 / mixture.components).to(gain)
    for _ in range(50):
        e = (gain + e.logit()).sigmoid().mean()
    logits = mixture.logits.view(-1, mixture.components)[run]
    h = mixture.h.view(-1, mixture.components, *mixture.family.params)[run]
    logits[k] = -torch.inf
    logits.copy_(logits.log_softmax(-1) + (1 - e).log())
    logits[k], h[k] = e.log(), scout.h[0]
    return True


def _scout(mixture: Any, batch: Batch, run: int, row: Tensor) -> Any:
    """A single component of the rows nearest to one, as many as a component has on average."""
    scout = copy.deepcopy(mixture)
    if mixture.logits.dim() > 1:
        for parameter in scout.parameters():
            parameter.data = parameter.data[run]
    shared = {name: p.clone() for name, p in scout.family.named_parameters()}
    scout.logits.data, scout.h.data = scout.logits.data[:1], scout.h.data[:1]
    distance = ((batch.x - row) / spread(batch.x)).flatten(1).square().sum(-1)
    near = batch[distance.argsort()[: max(2, len(batch) // mixture.components)]]
    scout.begin(near, lambda rows: rows.new_ones(len(rows), 1))
    for name, parameter in scout.family.named_parameters():
        parameter.copy_(shared[name])
    return scout
