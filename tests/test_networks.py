"""Networks against their formulas, over shapes, and inside a VAE."""

import importlib
import sys
import time
import tomllib

import pytest
import tomli_w
import torch
from members import NETWORKS, ids, make
from sklearn.datasets import load_digits
from torch import nn

from pyrovae import VAE, Batch, Error, fit, log_likelihood, log_weights, open_run, save
from pyrovae.models import Model
from pyrovae.networks import MLP, Conv, DeepSet, Linear, Module, Network, ResNet
from pyrovae.specs import parse

SIZES = [(1, 1), (1, 4), (2, 3), (5, 7), (8, 8), (13, 6), (28, 28)]
MY_NETS = """
from math import prod
from torch import nn

class Encoder(nn.Module):
    def __init__(self, source, target, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(prod(source), width), nn.Tanh(), nn.Linear(width, prod(target))
        )

    def forward(self, x):
        return self.layers(x.flatten(1))

class Fixed(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layer = nn.Linear(*sizes)

    def forward(self, x):
        return self.layer(x)

class Two(Fixed):
    def forward(self, x):
        return self.layer(x), self.layer(x)

class Lookup(nn.Module):
    def forward(self, x):
        return {}["x"]

class Silent(nn.Module):
    def forward(self, x):
        raise RuntimeError

class Outer(nn.Module):
    class Inner(nn.Linear):
        pass

def function(x):
    return x
"""


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    """A user's module of networks, imported."""
    (tmp_path / "my_nets.py").write_text(MY_NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_nets")
    sys.modules.pop("my_nets", None)


@pytest.fixture(scope="module")
def digits():
    """Digits, black or white, `(1797, 1, 8, 8)`."""
    return torch.tensor(load_digits().images[:, None] > 8).float()


def assembled(network, source, target):
    network.setup(source, target)
    return network.double()


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


class TestMLP:
    def test_is_the_composition_of_its_layers(self):
        network = assembled(MLP(hidden=(4, 6), activation="tanh"), (2, 3), (5,))
        (f, _), (g, _) = network.layers
        a = random(7, 2, 3)
        hidden = torch.tanh(g(torch.tanh(f(a.flatten(1)))))
        assert torch.allclose(network(a), hidden @ network.output.weight.T + network.output.bias)

    def test_residual_adds_to_its_input_or_to_a_projection_of_it(self):
        network = assembled(MLP(hidden=(4, 4), blocks="residual", activation="tanh"), (3,), (2,))
        first, second = network.layers
        a = random(7, 3)
        w, c = first.f[0].weight, first.f[0].bias
        hidden = a @ first.skip.weight.T + torch.tanh(a @ w.T + c)
        w, c = second.f[0].weight, second.f[0].bias
        hidden = hidden + torch.tanh(hidden @ w.T + c)
        assert torch.allclose(network(a), network.output(hidden))

    def test_gated_is_one_map_times_the_sigmoid_of_another(self):
        network = assembled(MLP(hidden=(4,), blocks="gated"), (3,), (2,))
        ((affine, _),) = network.layers
        a = random(7, 3)
        v, u = affine.weight.split(4)
        c, d = affine.bias.split(4)
        hidden = (a @ v.T + c) / (1 + (-(a @ u.T + d)).exp())
        assert torch.allclose(network(a), network.output(hidden))

    def test_layer_norm_takes_away_the_scale_of_a_row(self):
        network = MLP(hidden=(16,), layer_norm=True)
        network = assembled(network, (3,), (2,))
        network.layers[0][0].bias.data.zero_()
        a = random(7, 3)
        assert torch.allclose(network(a), network(100 * a), atol=1e-3)

    def test_drops_hidden_units_in_training_only(self):
        network = assembled(MLP(hidden=(64,), dropout=0.25), (3,), (2,))
        a = random(1, 3).expand(500, 3)
        whole = network.eval()(a)
        assert (whole == whole[0]).all()
        assert torch.equal(network.output(network.layers[0][:2](a)), whole)
        dropped = network.train()(a)
        hidden = network.layers(a)
        assert dropped.std(0).min() > 0
        assert (hidden == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
        error = 5 * dropped.std(0) / 500**0.5  # fails by chance once in 10^6
        assert ((dropped.mean(0) - whole[0]).abs() < error).all()

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            ({"dropout": 1.0}, "dropout: should be less than 1, got 1"),
            ({"blocks": "dense"}, "blocks: should be 'plain', 'residual' or 'gated'"),
        ],
    )
    def test_refuses_fields_out_of_range(self, field, message):
        with pytest.raises(Error, match=message):
            MLP(**field)


def test_linear_is_an_mlp_without_hidden_layers():
    linear = assembled(Linear(), (2, 3), (4, 1))
    mlp = assembled(MLP(hidden=()), (2, 3), (4, 1))
    mlp.load_state_dict(linear.state_dict())
    a = random(5, 2, 3)
    assert torch.equal(linear(a), mlp(a))


class TestImages:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Conv(),
            lambda: Conv(channels=(4,), kernel=5),
            lambda: Conv(channels=(4, 5, 6), kernel=7),
            lambda: ResNet(channels=(4, 6), blocks=1),
        ],
        ids=["conv", "kernel-5", "kernel-7", "res-net"],
    )
    def test_every_pixel_of_any_size_is_read_and_written(self, make, size):
        for source, target in (
            ((3, *size), (2, 5)),
            ((6,), (3, *size)),
            ((2, 3), (2, 3, *size)),
            *(((2, *size), (3, *other)) for other in SIZES),
        ):
            network = assembled(make(), source, target)
            a = random(6, *source).requires_grad_()
            y = network(a)
            assert y.shape == (6, *target)
            (y**2).sum().backward()
            assert (a.grad != 0).all()
            assert (y.std(0) > 0).all()

    def test_halves_and_doubles(self):
        def sizes(source, target, **fields):
            network = Conv(channels=(4, 8), **fields)
            network.setup(source, target)
            seen = []
            for layer in network.pyramid.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    layer.register_forward_hook(lambda _, a, y: seen.append(tuple(y.shape[1:])))
            network(torch.zeros(1, *source))
            return seen

        assert sizes((1, 28, 28), (2,)) == [(4, 14, 14), (8, 7, 7)]
        assert sizes((2,), (1, 28, 28)) == [(4, 14, 14), (1, 28, 28)]
        assert sizes((2,), (1, 5, 7), kernel=5) == [(4, 3, 4), (1, 5, 7)]
        assert sizes((1, 28, 28), (3, 7, 7)) == [(4, 14, 14), (8, 7, 7), (3, 7, 7)]
        assert sizes((3, 7, 7), (1, 28, 28)) == [(8, 7, 7), (4, 14, 14), (1, 28, 28)]
        assert sizes((3, 9, 4), (1, 9, 4)) == [(4, 9, 4), (8, 9, 4), (1, 9, 4)]
        assert sizes((1, 30, 10), (3, 3, 4)) == [(4, 9, 6), (8, 3, 4), (3, 3, 4)]

    @pytest.mark.parametrize(
        "make", [Conv, lambda: ResNet(channels=(4,), blocks=1, layer_norm=False)]
    )
    def test_moves_with_the_image(self, make):
        network = assembled(make(), (1, 20, 20), (2, 20, 20))
        a = torch.zeros(2, 1, 20, 20).double()
        a[0, 0, 8:11, 8:11] = random(3, 3)
        a[1] = a[0].roll((2, 1), (1, 2))
        y = network(a)
        inner = slice(6, -6)
        moved = y[0].roll((2, 1), (1, 2))[:, inner, inner]
        assert torch.allclose(y[1][:, inner, inner], moved)
        assert not torch.allclose(y[0][:, inner, inner], moved)

    def test_conv_is_its_formula(self):
        network = assembled(Conv(channels=(4,), activation="tanh"), (3,), (2, 5, 6))
        (affine, _), (_, last) = network.pyramid.layers
        a = random(7, 3)
        hidden = affine(a).reshape(7, 4, 3, 3).tanh()
        image = nn.functional.conv_transpose2d(
            hidden, last.weight, stride=2, padding=1, output_padding=(0, 1)
        )
        assert torch.allclose(network(a), image + network.pyramid.bias)

    def test_res_net_is_its_formula(self):
        network = assembled(
            ResNet(channels=(4,), layer_norm=False, activation="tanh"), (2, 5, 6), (3,)
        )
        first, (blocks, (_, last)) = network.pyramid.layers
        a = random(7, 2, 5, 6)
        y = nn.functional.conv2d(a, first.weight, first.bias, stride=2, padding=1)
        for block in blocks[:2]:
            v, w = block.f[1], block.f[3]
            inner = nn.functional.conv2d(y.tanh(), v.weight, v.bias, padding=1)
            y = y + nn.functional.conv2d(inner.tanh(), w.weight, w.bias, padding=1)
        expected = y.tanh().flatten(1) @ last.weight.T + network.pyramid.bias
        assert torch.allclose(network(a), expected)

    @pytest.mark.parametrize("make", [Conv, ResNet])
    def test_refuses_two_vectors(self, make):
        with pytest.raises(
            Error,
            match=r"^encoder: convolutions need an image, \(channels, height, width\), and neither"
            r" \(64,\) nor \(2, 3\) is one: use mlp$",
        ):
            VAE(x=(64,), z=(3,), encoder=make())

    @pytest.mark.parametrize(("source", "target"), [((1, 28, 28), (2, 20)), ((20,), (1, 28, 28))])
    def test_is_fast(self, source, target):
        network = Conv()
        network.setup(source, target)
        a, seconds = torch.randn(128, *source), []
        with torch.no_grad():
            for _ in range(5):
                began = time.thread_time()
                network(a)
                seconds.append(time.thread_time() - began)
        assert min(seconds) < 0.05


class TestDeepSet:
    def test_is_its_formula(self):
        network = assembled(DeepSet(phi=MLP(hidden=(5,)), width=4), (6, 3), (2, 2))
        a = random(7, 6, 3)
        mean = sum(network.phi(a[:, i]) for i in range(6)) / 6
        assert torch.allclose(network(a), network.rho(mean))

    def test_does_not_know_the_order_of_the_elements(self):
        network = assembled(DeepSet(), (9, 3), (2,))
        a = random(7, 9, 3)
        assert torch.allclose(network(a), network(a[:, torch.randperm(9)]))
        assert not torch.allclose(network(a), network(a[:, :, [1, 2, 0]]))

    @pytest.mark.parametrize(("shapes", "name"), [((3,), "mlp"), ((1, 8, 8), "conv for images")])
    def test_refuses_what_is_no_set(self, shapes, name):
        with pytest.raises(
            Error, match=rf"^encoder: deep-set takes a set, \(elements, features\), .*{name}"
        ):
            VAE(x=shapes, z=(2,), encoder=DeepSet())

    def test_encodes_a_set_in_a_vae(self):
        vae = VAE(x=(9, 3), z=(2,), likelihood="normal", encoder="deep-set")
        x = torch.randn(50, 1, 1) + torch.randn(50, 9, 3)
        history = fit(vae, x, epochs=5, batch_size=25)
        assert history.epochs[-1].loss < history.epochs[0].loss


@pytest.mark.usefixtures("my_nets")
class TestModule:
    def test_is_the_module_with_options_and_shapes(self):
        network = assembled(Module(path="my_nets:Encoder", options={"width": 5}), (2, 3), (2, 4))
        a = random(4, 7, 2, 3)
        assert network.module.layers[0].out_features == 5
        assert torch.equal(network(a)[3], network.module(a[3]).reshape(7, 2, 4))
        fixed = assembled(Module(path="my_nets:Fixed", options={"sizes": [3, 4]}), (2, 3), (2, 4))
        assert torch.equal(fixed(a), fixed.module(a))

    def test_refuses_the_right_number_of_entries_in_another_shape(self):
        options = {"dim": 1, "unflattened_size": [4, 2]}
        network = assembled(Module(path=nn.Unflatten, options=options), (8,), (2, 4))
        with pytest.raises(Error, match=r"gives \(3, 4, 2\) for rows \(3, 8\), not \(3, 2, 4\)"):
            network(random(3, 8))

    def test_a_class_and_its_path_are_the_same(self, my_nets):
        part = Module(path=my_nets.Encoder)
        assert part.spec() == {"kind": "module", "path": "my_nets:Encoder", "options": {}}
        assert repr(part) == repr(Module(path="my_nets:Encoder")) == repr(Module(path=part.path))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"path": "nowhere:Net"},
                r"\.path: the module of 'nowhere:Net' has not been imported",
            ),
            ({"path": "my_nets:Missing"}, r"\.path: the module 'my_nets' has no 'Missing'"),
            ({"path": "my_nets"}, r"\.path: the module 'my_nets' has no ''"),
            (
                {"path": "my_nets:function"},
                r"\.path: should be an nn\.Module class or its 'module",
            ),
            ({"path": 3}, r"\.path: should be an nn\.Module class or its 'module:name', got 3"),
            ({"path": "pyrovae.networks:MLP"}, r"\.path: 'MLP' is a part: name it by its kind"),
            ({}, r"\.path: is required"),
            (
                {"path": "my_nets:Encoder", "options": {"widht": 3}},
                ": my_nets:Encoder cannot be made with these options: .*argument 'widht'",
            ),
            (
                {"path": "my_nets:Fixed"},
                ": my_nets:Fixed cannot be made with .* missing a required argument: 'sizes'",
            ),
            (
                {"path": "my_nets:Fixed", "options": {"sizes": [6, 5]}},
                r": my_nets:Fixed gives \(2, 5\) for rows \(2, 6\), not \(2, 2, 2\)",
            ),
            (
                {"path": "my_nets:Fixed", "options": {"sizes": [7, 4]}},
                r": cannot take rows of the shape \(6,\): RuntimeError: mat1 and mat2",
            ),
            (
                {"path": "my_nets:Encoder", "options": {"width": "wide"}},
                r": my_nets:Encoder cannot be made: TypeError: ",
            ),
            (
                {"path": "my_nets:Lookup"},
                r": cannot take rows of the shape \(6,\): KeyError: 'x'$",
            ),
            (
                {"path": "my_nets:Silent"},
                r": cannot take rows of the shape \(6,\): RuntimeError$",
            ),
            (
                {"path": "my_nets:Two", "options": {"sizes": [6, 4]}},
                r": my_nets:Two gives tuple for rows \(2, 6\)",
            ),
            (
                {"path": "my_nets:Encoder", "options": {"width": [None]}},
                r"\.options: should hold numbers, strings, lists and tables only, got None",
            ),
        ],
    )
    def test_a_misfit_is_refused(self, fields, message):
        with pytest.raises(Error, match=f"^encoder{message}"):
            VAE(x=(6,), z=(2,), encoder={"kind": "module", **fields})

    def test_a_class_that_a_spec_cannot_name_is_refused_when_saved(self, my_nets, tmp_path):
        vae = VAE(
            x=(6,),
            z=(2,),
            encoder=Module(
                path=my_nets.Outer.Inner, options={"in_features": 6, "out_features": 4}
            ),
        )
        with pytest.raises(
            Error, match=r"'my_nets:Outer\.Inner' is not a class at the top of a mod"
        ):
            save(vae, tmp_path / "run")

    def test_a_run_is_opened_after_its_import(self, tmp_path):
        tree = {
            "import": ["my_nets"],
            "data": {"name": "iris"},
            "model": {
                "kind": "vae",
                "z": [2],
                "likelihood": "normal",
                "encoder": {"kind": "module", "path": "my_nets:Encoder", "options": {"width": 5}},
            },
        }
        spec = parse(tomllib.loads(tomli_w.dumps(tree)), "mine")
        vae = Model.from_spec({"x": [4]} | spec.models["model"])
        x = torch.randn(40, 4)
        save(vae, tmp_path / "run", fit(vae, x, epochs=2, batch_size=20), spec=tree)
        again = open_run(tmp_path / "run").model
        assert repr(again) == repr(vae)
        a, b = (log_likelihood(model, x, particles=20, seed=3).value for model in (vae, again))
        assert (a == b).all()
        del sys.modules["my_nets"]
        with pytest.raises(
            Error, match="'my_nets:Encoder' has not been imported: name it in 'imp"
        ):
            open_run(tmp_path / "run")


@pytest.mark.parametrize("parameter", NETWORKS, ids=ids(NETWORKS))
def test_spec_to_toml_and_back(parameter):
    part = make(parameter)
    again = Network.from_spec(tomllib.loads(tomli_w.dumps(part.spec())))
    assert (again.spec(), repr(again)) == (part.spec(), repr(part))


@pytest.mark.parametrize(
    ("network", "learning_rate"),
    [({"kind": "conv"}, 0.01), ({"kind": "res-net", "channels": [16], "blocks": 1}, 0.005)],
    ids=["conv", "res-net"],
)
def test_a_vae_of_images_improves(network, learning_rate, digits):
    vae = VAE(x=(1, 8, 8), z=(4,), encoder=network, decoder=network)
    history = fit(vae, digits[:1000], epochs=6, batch_size=50, learning_rate=learning_rate)
    assert history.epochs[-1].loss < history.epochs[0].loss - 2  # nats
    assert vae.sample(5).shape == (5, 1, 8, 8)


def test_a_latent_can_be_an_image(digits):
    vae = VAE(x=(1, 8, 8), z=(2, 3, 3), encoder="conv", decoder="conv")
    history = fit(vae, digits[:500], epochs=3, batch_size=100)
    assert history.epochs[-1].loss < history.epochs[0].loss


@pytest.mark.parametrize("decoder", ["linear", "mlp", "conv", "res-net"])
def test_a_decoder_that_starts_at_the_marginal_begins_with_a_better_bound(decoder, digits):
    bounds = []
    for marginal_start in (False, True):
        torch.manual_seed(0)
        vae = VAE(x=(1, 8, 8), z=(4,), decoder=decoder, marginal_start=marginal_start)
        vae.start(Batch(digits))
        bounds.append(log_weights(vae, digits, 1).mean().item())
    p = digits.mean(0).clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    assert bounds[0] == pytest.approx(-64 * 0.693, abs=5)
    assert bounds[1] == pytest.approx(-entropy, abs=5)
    assert bounds[1] > bounds[0] + 10
