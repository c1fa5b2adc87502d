"""Mixtures of data that degenerate: a sensible fit or a clear error, and never NaN."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from pyrovae import Error, Mixture, Transformed, fit

ROWS, COMPONENTS = 30, 4


def real_rows():
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    constant, outlier = x.clone(), x.clone()
    constant[:, 1], outlier[0] = 1e8, 1e6
    return {
        "duplicates": x[:3].repeat(10, 1),
        "one value": torch.ones_like(x),
        "constant column": constant,
        "identical columns": x[:, [0, 0, 1]],
        "scales": x * torch.tensor([1e8, 1.0, 1e-8]),
        "offset": x + 1e8,
        "outlier": outlier,
        "as many rows as components": x[:COMPONENTS],
        "one row": x[:1],
    }


def counted_rows():
    x = torch.randint(0, 3, (ROWS, 3), generator=torch.Generator().manual_seed(1)).double()
    constant, huge = x.clone(), x.clone()
    constant[:, 1], huge[0] = 1, 1e6
    return {
        "duplicates": x[:3].repeat(10, 1),
        "zeros": torch.zeros_like(x),
        "constant column": constant,
        "identical columns": x[:, [0, 0, 1]],
        "outlier": huge,
        "as many rows as components": x[:COMPONENTS],
        "one row": x[:1],
    }


def fitted(family, x, dtype, components=COMPONENTS, transform=False):
    """The loss at the end, and the model, after all that has to hold was asserted."""
    model = Mixture(x=(3,), components=min(components, len(x)), family=family)
    if transform:
        model = Transformed(base=model, transform="standardize")
    history = fit(model, x, epochs=10, tolerance=0, restarts=2, dtype=dtype)
    r, log_prob = model.predict_proba(x), model.score_samples(x)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert np.isfinite(log_prob).all()
    assert np.allclose(r.sum(-1), 1)
    losses = [*(epoch.loss for epoch in history.epochs), -log_prob.mean()]
    if dtype == "float64":
        rounding = 1e-8  # that of 1e-14, times 1 / floor^2
        assert all(b <= a + rounding * max(1, abs(a)) for a, b in pairwise(losses))
    assert model.sample(5).isfinite().all()
    return losses[-1]


REAL = (
    "fixed-normal",
    "shared-normal",
    "spherical-normal",
    "normal",
    "low-rank-normal",
    "tied-normal",
    "multivariate-normal",
    "laplace",
    "student-t",
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("data", real_rows())
@pytest.mark.parametrize("family", REAL)
def test_real_rows(family, data, dtype):
    x = real_rows()[data]
    if dtype == "float32" and data == "offset":
        with pytest.raises(Error, match="float32 is too coarse for the entries"):
            fit(Mixture(x=(3,), components=4, family=family), x, dtype=dtype)
        return
    one = fitted(family, x, dtype, components=1)
    assert fitted(family, x, dtype) <= one + math.log(COMPONENTS) + 0.1


@pytest.mark.parametrize("data", ["duplicates", "constant column", "scales", "offset", "one row"])
def test_real_rows_that_are_standardised(data):
    x = real_rows()[data]
    raw = fitted("normal", x, "float64")
    assert fitted("normal", x, "float64", transform=True) == pytest.approx(raw, abs=1e-6)


COUNTED = {
    "bernoulli": "bernoulli",
    "categorical": {"kind": "categorical", "classes": 3},
    "poisson": "poisson",
    "columns": {
        "kind": "columns",
        "columns": {
            "size": "normal",
            "rank": {"kind": "categorical", "classes": 3},
            "visits": "poisson",
        },
    },
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("data", counted_rows())
@pytest.mark.parametrize("family", COUNTED)
def test_counted_rows(family, data, dtype):
    x = counted_rows()[data]
    if family == "bernoulli":
        x = x.clamp(max=1)
    elif family == "categorical":
        x = x.clamp(max=2)
    elif family == "columns":
        x[:, 1].clamp_(max=2)
    one = fitted(COUNTED[family], x, dtype, components=1)
    assert fitted(COUNTED[family], x, dtype) <= one + math.log(COMPONENTS) + 0.1


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_components_are_refused(rows):
    with pytest.raises(Error, match=f"4 components need at least as many rows, got {rows}"):
        fit(Mixture(x=(3,), components=4), torch.zeros(rows, 3))


def test_components_at_their_floor_are_told():
    x = real_rows()["duplicates"]
    model = Mixture(x=(3,), components=3)
    fit(model, x)
    assert model.remarks() == ("3 of 3 components have a scale at its floor",)
