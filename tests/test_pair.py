"""Plain Pyro programs as models: their parameters are kept, apart, saved, and moved."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyrovae import Batch, Mixture, Pair, Transformed, compare, fit, log_likelihood, log_weights
from pyrovae.models import Model
from pyrovae.runs import open_run, save


def model(x):
    loading = pyro.param("loading", lambda: torch.randn(2, 3))
    scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z @ loading, scale).to_event(1), obs=x)


def guide(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(3, 2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ weight, 0.5).to_event(1))


def silent(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


class Net(nn.Module):
    """A model and guide as methods of a module with a buffer and dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.dropout = nn.Dropout(0.5)
        self.shift = nn.Buffer(torch.ones(3))

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            loc = self.dropout(self.layer(z)) + self.shift
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def rows(count=60):
    return torch.randn(count, 2) @ torch.tensor(
        [[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]
    ) + 0.3 * torch.randn(count, 3)


def test_parameters_survive_the_end_of_a_call_and_train():
    pair = Pair(model=model, guide=guide)
    first = fit(pair, rows(), epochs=1, batch_size=30).epochs[0].loss
    last = fit(pair, rows(), epochs=60, batch_size=30, learning_rate=0.02).epochs[-1].loss
    assert last < first - 1
    assert set(dict(pair.named_parameters())) == {"param:loading", "param:scale", "param:weight"}
    assert pair.parameter_count == 6 + 3 + 6


def test_two_pairs_of_the_same_functions_are_apart():
    a, b = (Pair(model=model, guide=guide) for _ in range(2))
    fit(a, rows(), epochs=3, batch_size=30)
    kept = log_likelihood(a, rows(5), particles=10).value
    pyro.set_rng_seed(0)
    fit(b, rows(), epochs=30, batch_size=30, learning_rate=0.1)
    assert not any((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    pyro.set_rng_seed(0)
    assert np.isfinite(kept).all()


def test_the_gradient_steps_the_unconstrained_parameter():
    pair = Pair(model=model, guide=guide)
    fit(pair, rows(), epochs=50, batch_size=30, learning_rate=0.05)
    with pair.scope():
        assert torch.equal(pyro.param("scale"), pair.get_parameter("param:scale").exp())
        assert (pyro.param("scale") != 1).all()


def test_a_pair_is_compared_with_a_mixture():
    x = rows()
    pair, mixture = Pair(model=model, guide=guide), Mixture(x=(3,), components=1)
    fit(pair, x, epochs=100, batch_size=30, learning_rate=0.02)
    fit(mixture, x)
    assert [
        entry.name for entry in compare({"p": pair, "m": mixture}, x, particles=200).entries
    ] == ["m", "p"]


def test_a_module_that_owns_the_functions_lends_its_buffers_and_its_mode(tmp_path):
    net = Net()
    pair = Pair(model=net.model, guide=net.guide)
    fit(pair, rows(), epochs=2, batch_size=30)
    assert dict(pair.named_buffers()).keys() == {"module:Net.shift"}
    assert pair.parameter_count == sum(p.numel() for p in net.parameters())
    # in evaluation there is no dropout: equal noise, equal weights
    a, b = (log_likelihood(pair, rows(5), particles=4, seed=1).value for _ in range(2))
    assert net.training
    torch.manual_seed(0)
    assert a.shape == b.shape
    pair.eval()
    torch.manual_seed(3)
    one = log_weights(pair, torch.zeros(4, 3), 2)
    torch.manual_seed(3)
    assert torch.equal(one, log_weights(pair, torch.zeros(4, 3), 2))


def test_a_pair_can_be_saved_where_its_functions_have_names(tmp_path):
    pair = Pair(model=model, guide=guide)
    x = rows()
    history = fit(pair, x, epochs=2, batch_size=30, dtype="float32")
    save(pair, tmp_path / "run", history)
    again = open_run(tmp_path / "run").model
    assert again.model.value is model
    assert (
        log_likelihood(again, x, particles=5).value == log_likelihood(pair, x, particles=5).value
    ).all()


def test_what_a_spec_cannot_name_is_refused():
    pair = Pair(model=lambda x: model(x), guide=guide)
    with pytest.raises(
        ValueError, match="is not a function at the top of a module: a spec cannot name it"
    ):
        pair.spec()
    with pytest.raises(
        ValueError, match=r"model\.guide: the module of 'nowhere:guide' has not been imported"
    ):
        Model.from_spec(
            {"kind": "pair", "model": f"{__name__}:model", "guide": "nowhere:guide"}, "model"
        )
    with pytest.raises(ValueError, match=f"model: the module '{__name__}' has no 'other'"):
        Pair(model=f"{__name__}:other", guide=guide)
    with pytest.raises(ValueError, match="model: should be a function or 'module:name', got 3"):
        Pair(model=3, guide=guide)


def test_a_pair_that_has_seen_nothing_says_so():
    with pytest.raises(ValueError, match="the pair has seen no data yet"):
        Pair(model=model, guide=guide).sample(3)


def test_a_model_without_observation_is_refused():
    with pytest.raises(
        ValueError, match="the model observes nothing: give its data to a sample statement as obs"
    ):
        fit(Pair(model=silent, guide=silent), rows())


def test_a_copy_is_apart_from_the_original():
    pair = Pair(model=model, guide=guide)
    fit(pair, rows(), epochs=1, batch_size=30)
    twin = copy.deepcopy(pair)
    fit(twin, rows(), epochs=20, batch_size=30, learning_rate=0.1)
    name = "param:loading"
    assert not torch.equal(pair.get_parameter(name), twin.get_parameter(name))
    with twin.scope():
        assert torch.equal(pyro.param("loading"), twin.get_parameter(name))


def test_context_is_the_second_argument():
    def conditional(x, context):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z + context, 1.0).to_event(1), obs=x)

    def its_guide(x, context):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - context) / 2, 0.5**0.5).to_event(1))

    c = torch.randn(6, 1)
    batch = Batch(torch.randn(6, 1), context=c)
    exact = dist.Normal(c, 2**0.5).to_event(1).log_prob(batch.x)
    pair = Pair(model=conditional, guide=its_guide)
    assert np.allclose(log_likelihood(pair, batch, particles=3).value, exact, atol=1e-5)


def test_a_pair_behind_a_transform_trains_and_reports_raw_densities():
    x = rows() * torch.tensor([100.0, 1.0, 0.01]) + 7
    pair = Pair(model=model, guide=guide, x=(3,))
    inside = Transformed(base=pair, transform="standardize")
    before = fit(inside, x, epochs=1, batch_size=30).epochs[0].loss
    start = {name: p.clone() for name, p in pair.named_parameters()}
    after = fit(inside, x, epochs=60, batch_size=30, learning_rate=0.02).epochs[-1].loss
    assert after < before - 0.5
    assert all((p != start[name]).any() for name, p in pair.named_parameters())
    y = inside.transform(x)
    scale = inside.transform.scale.log().sum().item()
    raw, standard = (log_likelihood(m, d, particles=50) for m, d in ((inside, x), (pair, y)))
    assert np.allclose(raw.value, standard.value - scale, atol=1e-4)


def more_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        loc = torch.stack([u, z[..., 0], z[..., 1]], -1)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_latents_that_only_one_program_has_are_refused():
    pair = Pair(model=more_latents, guide=guide)
    with pytest.raises(ValueError, match=r"the latents of model and guide differ \(u\)"):
        log_likelihood(pair, rows(5))


def copies_its_data(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        loading = pyro.param("loading", lambda: torch.randn(2, 3))
        pyro.deterministic("mean", z @ loading)
        pyro.sample("x", dist.Normal(z @ loading, 1.0).to_event(1), obs=x * 1.0)
        pyro.factor("nothing", torch.zeros(len(x)))


def test_a_transform_that_would_be_lost_is_refused():
    pair = Transformed(
        base=Pair(model=copies_its_data, guide=guide, x=(3,)), transform="standardize"
    )
    with pytest.raises(ValueError, match="0 sites observe the rows as they are given"):
        fit(pair, rows())


def test_deterministic_sites_and_factors_are_no_data():
    pair = Pair(model=copies_its_data, guide=guide)
    fit(pair, rows(), epochs=1)
    assert pair.sample(4).shape == (4, 3)
    assert pair.tag.measure == "lebesgue"
    assert np.isfinite(log_likelihood(pair, rows(5), particles=5).value).all()


def test_tensors_that_start_a_parameter_are_not_trained_themselves():
    start = torch.ones(3)

    def shifted(x):
        shift = pyro.param("shift", start)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(shift, 1.0).to_event(1), obs=x)

    def nothing(x):
        pass

    a, b = (Pair(model=shifted, guide=nothing) for _ in range(2))
    fit(a, rows(), epochs=5, learning_rate=0.1)
    fit(b, rows(), epochs=5, learning_rate=0.1)
    assert (start == 1).all()
    assert a.get_parameter("param:shift") is not b.get_parameter("param:shift")


NET = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))


def with_a_global_net(x):
    pyro.module("net", NET)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(NET(z), 1.0).to_event(1), obs=x)


def test_modules_that_a_function_refers_to_are_the_pairs():
    pair = Pair(model=with_a_global_net, guide=guide)
    fit(pair, rows(), epochs=2)
    assert "module:NET.0.weight" in dict(pair.named_parameters())
    kept = [module.training for module in NET]
    pair.eval()
    assert not any(module.training for module in NET)
    pair.train(kept[0])


def test_a_pair_behind_a_transform_is_saved_and_opened(tmp_path):
    x = rows()
    inside = Transformed(base=Pair(model=model, guide=guide, x=(3,)), transform="standardize")
    save(inside, tmp_path / "run", fit(inside, x, epochs=2))
    again = open_run(tmp_path / "run").model
    a, b = (log_likelihood(m, x, particles=5).value for m in (inside, again))
    assert (a == b).all()


def test_pairs_of_one_network_are_not_compared():
    pairs = {name: Pair(model=with_a_global_net, guide=guide) for name in "ab"}
    for pair in pairs.values():
        fit(pair, rows(), epochs=1)
    with pytest.raises(ValueError, match="'a' and 'b' share parameters"):
        compare(pairs, rows())


def of_another_size(x):
    with pyro.plate("data", 100, subsample=x, dim=-1):
        pyro.sample("x", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)


def test_a_plate_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"density of the rows is scaled: .* the size len\(x\)"):
        fit(Pair(model=of_another_size, guide=lambda x: None), rows())
