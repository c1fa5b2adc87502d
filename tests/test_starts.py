"""Where EM begins, and where it begins again: starts, and components that lost their rows."""

from itertools import pairwise

import adapter
import pytest
import torch

from pyrovae import Mixture, Transformed, fit
from pyrovae.models.starts import GivenMeans, KMeansPlusPlus, RandomResponsibilities


def three(rows=90):
    """Clusters around (0, 0), (8, 0) and (0, 8), in turn."""
    means = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]]).double()
    return means.repeat(rows // 3, 1) + 0.5 * torch.randn(rows, 2, dtype=torch.float64)


@pytest.mark.parametrize("many", [(3,), (4, 3)])
@pytest.mark.parametrize(
    "start",
    [KMeansPlusPlus(), RandomResponsibilities(), GivenMeans(means=((0, 0), (8, 0), (0, 8)))],
    ids=lambda start: start.kind,
)
def test_every_row_is_given_away_once(start, many):
    x = three()
    r = start(x, torch.Size(many))(x)
    assert r.shape == (90, *many)
    assert torch.allclose(r.sum(-1), torch.ones(90, *many[:-1]).double())
    if start.kind == "given-means":
        k = torch.arange(90) % 3
        assert (r.argmax(-1) == (k if many == (3,) else k[:, None])).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kmeans_plus_plus_draws_no_duplicate_as_long_as_there_is_another_row(dtype):
    x = (1e4 + torch.randn(4, 3)).to(dtype).repeat(10, 1)
    r = KMeansPlusPlus()(x, torch.Size((500, 4)))(x)
    assert (r.sum(0) == 10).all()


def test_kmeans_plus_plus_draws_by_the_squared_distance():
    """Of 0, 1 and 3 the pair is 0 and 1 with probability 0.1; one of 10^5 right ones fails."""
    x = torch.tensor([[0.0], [1.0], [3.0]]).double()
    r = KMeansPlusPlus()(x, torch.Size((4000, 2)))(x)
    share = (r[1] == r[2]).all(-1).double().mean().item()
    assert share == pytest.approx(1 / 3 * (1 / 10 + 1 / 5), abs=4.4 * (0.09 / 4000) ** 0.5)


LOST = GivenMeans(means=((0, 0), (8, 0), (900, 900)))


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("family", [*adapter.FAMILIES.values(), "student-t", "laplace"])
def test_a_component_without_rows_begins_again_where_it_is_missing(family, restarts, monkeypatch):
    x, fits = three(), []
    for repairs in (False, True):
        model = Mixture(x=(2,), components=3, family=family, initial=LOST)
        if not repairs:
            monkeypatch.setattr(Mixture, "repair", lambda *_: False)
        history = fit(model, x, epochs=300, restarts=restarts, tolerance=1e-4)
        monkeypatch.undo()
        losses = [epoch.loss for epoch in history.epochs]
        assert all(b <= a + 1e-10 for a, b in pairwise(losses))
        fits.append((model.logits.softmax(-1)[2].item(), -losses[-1]))
    (lost, low), (back, high) = fits
    assert lost < 1e-12
    assert back == pytest.approx(1 / 3, abs=0.02)
    assert high > low + 0.5


def test_behind_a_transform_and_of_counts():
    x = three()
    means = ((-0.7, -0.7), (1.4, -0.7), (90, 90))
    inside = Mixture(x=(2,), components=3, family="normal", initial=GivenMeans(means=means))
    model = Transformed(base=inside, transform="standardize")
    fit(model, x)
    assert inside.logits.softmax(-1).min() > 0.3
    counts = torch.poisson(three().clamp(min=0) * 10)
    model = Mixture(x=(2,), components=3, family="poisson", initial=LOST)
    fit(model, counts)
    assert model.logits.softmax(-1).min() > 0.3
