r"""What scikit-learn's users know a mixture by: predictions, scores and information criteria.

    BIC = -2 \sum_i log p(x_i) + p log N,     AIC = -2 \sum_i log p(x_i) + 2 p

with p free parameters; the smaller the better. Both stand in for held-out rows: where there are
validation rows, these say it directly.

Written once as functions, which models of a known log p(x) take as their methods. Arrays go in
and out, and tensors are sampled, in raw units.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.models.model import observed
from pyrovae.place import destination, in_mode


def _checked(model: Any, data: Any) -> Batch:
    batch = as_batch(data).to(*destination(model))
    model.check(batch)
    return batch


@torch.no_grad()
def predict_proba(model: Any, data: Any) -> NDArray[np.float64]:
    """The responsibilities p(k | x), shape `(rows, components)`.

    Args:
        model: the model.
        data: rows, shape `(rows, *x)`, raw.
    """
    with in_mode(model, False):
        parts = _checked(model, data).split(4096)
        r: Tensor = torch.cat([model.joint(part).softmax(-1) for part in parts])
        return r.double().cpu().numpy()


def predict(model: Any, data: Any) -> NDArray[np.int64]:
    """The most probable component of each row, shape `(rows,)`.

    Args:
        model: the model.
        data: rows, shape `(rows, *x)`, raw.
    """
    return predict_proba(model, data).argmax(-1)


@torch.no_grad()
def score_samples(model: Any, data: Any) -> NDArray[np.float64]:
    """Log p(x) of each row, in nats, shape `(rows,)`.

    Args:
        model: the model.
        data: rows, shape `(rows, *x)`, raw.
    """
    with in_mode(model, False):
        log_prob: Tensor = model.log_prob(_checked(model, data))
        return log_prob.double().cpu().numpy()


def sample_with_labels(model: Any, rows: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """New rows, shape `(rows, *x)`, and the component of each, shape `(rows,)`.

    Args:
        model: the model.
        rows: how many.
        seed: of the draws; torch's own random numbers unless given.
    """
    trace = model.draw(rows, seed)
    if "k" not in trace.nodes:
        raise Error("the model has no components to label rows with: use sample")
    return observed(trace)[-1]["value"], trace.nodes["k"]["value"]


def bic(model: Any, data: Any) -> float:
    """The Bayesian information criterion. Estimating the Dimension of a Model (Schwarz, 1978).

    Args:
        model: fitted to these rows.
        data: rows, shape `(rows, *x)`, raw.
    """
    log_prob = score_samples(model, data)
    return float(model.freedom * math.log(len(log_prob)) - 2 * log_prob.sum())


def aic(model: Any, data: Any) -> float:
    """Akaike's information criterion. A New Look at the Statistical Model Identification (1974).

    Args:
        model: fitted to these rows.
        data: rows, shape `(rows, *x)`, raw.
    """
    return float(2 * model.freedom - 2 * score_samples(model, data).sum())
