"""Parts: declared once, checked, refused with a sentence."""

import copy
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pydantic import PositiveInt
from torch import nn

from pyrovae import VAE, Error, fit, load, priors
from pyrovae.families import Bernoulli, Family, Normal
from pyrovae.models import Model
from pyrovae.networks import MLP, Network
from pyrovae.part import Part, json_schema
from pyrovae.priors import GaussianMixture, Prior, StandardNormal, Vamp


def test_python_and_table_build_the_same_object():
    python = VAE(x=(3,), z=(2,), prior=Vamp(components=50), likelihood=Normal())
    table = {
        "kind": "vae",
        "x": [3],
        "z": [2],
        "prior": {"kind": "vamp", "components": 50},
        "likelihood": "normal",
    }
    assert repr(python) == repr(Model.from_spec(table))
    assert python.spec() == Model.from_spec(python.spec()).spec()


def test_a_default_part_is_a_new_one_each_time():
    assert VAE(x=(3,), z=(2,)).prior is not VAE(x=(3,), z=(2,)).prior


def test_models_can_be_copied_and_pickled():
    vae = VAE(x=(3,), z=(2,), prior="vamp")
    for other in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert repr(other) == repr(vae)
        assert all(
            (a == b).all() for a, b in zip(vae.parameters(), other.parameters(), strict=True)
        )


def test_numpy_numbers_and_lists_are_taken():
    assert VAE(x=[np.int64(3)], z=torch.Size((2,))).x == (3,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"prior": "vmap"},
            r"model\.prior: unknown prior 'vmap'\. Did you mean 'vamp'\? Known: categorical",
        ),
        (
            {"prior": {"kind": "vamp", "componets": 3}},
            r"model\.prior: unknown field 'componets'\. Did you mean 'components'",
        ),
        (
            {"prior": {"kind": "vamp", "components": -3}},
            r"model\.prior\.components: should be greater than 0, got -3",
        ),
        (
            {"prior": {"kind": "vamp", "components": 2.5}},
            r"model\.prior\.components: should be a valid integer, got 2\.5",
        ),
        (
            {"prior": {"kind": "vamp", "components": True}},
            r"model\.prior\.components: should be a valid integer, got True",
        ),
        ({"prior": {"components": 3}}, r"model\.prior: the table has no 'kind'\. Known: "),
        ({"prior": 3}, r"model\.prior: should be a prior: a part, a kind or a table, got 3"),
        ({"prior": {"kind": ["vamp"]}}, r"model\.prior: unknown prior"),
        ({"z": [0]}, r"model\.z\.0: should be greater than 0, got 0"),
        ({"z": []}, r"model\.z: list should have at least 1 item"),
        ({"z": "two"}, r"model\.z: should be a valid list, such as \[2\], got 'two'"),
        (
            {"posterior": "bernoulli"},
            r"model\.posterior: bernoulli has no reparameterised samples: use normal or ",
        ),
        (
            {"likelihood": {"kind": "normal", "floor": float("nan")}},
            r"model\.likelihood\.floor: should be a finite number",
        ),
        (
            {"encoder": {"kind": "mlp", "activation": "rel"}},
            r"model\.encoder\.activation: should be 'elu', 'gelu'",
        ),
        ({"likelihood": Vamp()}, r"model\.likelihood: should be a family"),
        ({"zz": 1}, r"model: unknown field 'zz'"),
        ({"prior": Vamp}, r"model\.prior: should be a prior: .*, got the class Vamp"),
    ],
)
def test_a_wrong_spec_is_refused_with_path_and_remedy(spec, message):
    with pytest.raises(Error, match=message):
        Model.from_spec({"kind": "vae", "x": [3], "z": [2]} | spec, "model")


def test_a_missing_field_is_named():
    with pytest.raises(Error, match=r"^model\.z: is required$"):
        Model.from_spec({"kind": "vae", "x": [3]}, "model")


def test_python_arguments_are_checked_as_tables_are():
    with pytest.raises(Error, match="components: should be greater than 0, got 0"):
        Vamp(components=0)
    with pytest.raises(Error, match=r"unknown field 'epoch'\. Did you mean 'epochs'"):
        fit(VAE(x=(3,), z=(2,)), torch.zeros(4, 3), epoch=3)
    with pytest.raises(Error, match="test: should be less than 1"):
        load("iris", test=1.5)
    with pytest.raises(Error, match="batch_size: should be greater than 0"):
        fit(VAE(x=(3,), z=(2,)), torch.zeros(4, 3), batch_size=0)


def test_a_part_belongs_to_one_model():
    shared = MLP()
    with pytest.raises(
        Error, match="this mlp is already part of a model: give each place a part of its own"
    ):
        VAE(x=(3,), z=(2,), encoder=shared, decoder=shared)


def test_a_role_is_abstract_and_a_member_final():
    with pytest.raises(TypeError, match="abstract"):
        Prior()
    with pytest.raises(TypeError, match="Vamp is final: wrap it instead of subclassing it"):

        class Other(Vamp):
            pass


def test_a_kind_is_taken_once():
    with pytest.raises(
        TypeError, match=r"the kind 'vamp' is taken by pyrovae\.priors\.mixtures\.Vamp"
    ):
        type(
            "Vamp",
            (Prior,),
            {"__module__": "elsewhere", "setup": lambda *a: None, "forward": lambda *a: None},
        )


def test_a_users_member_is_declared_by_its_class_alone():
    class Shifted(Prior):
        """A normal around a learned point."""

        points: PositiveInt = 1

        def setup(self, z, seen):
            self.loc = nn.Parameter(torch.zeros(z))

        def forward(self, q, context=None):
            return StandardNormal.forward(self, q, context)

    try:
        vae = VAE(x=(3,), z=(2,), prior="shifted")
        assert vae.spec()["prior"] == {"kind": "shifted", "points": 1}
        assert json_schema(Shifted.fields)["properties"]["points"]["exclusiveMinimum"] == 0
    finally:
        del Prior.members["shifted"]


def test_kinds_are_the_class_names_in_kebab_case():
    assert GaussianMixture.kind == "gaussian-mixture"
    assert MLP.kind == "mlp"
    assert VAE.kind == "vae"
    assert set(Family.members) >= {"bernoulli", "shared-normal"}
    assert priors.Prior.members["vamp"] is Vamp


def test_fields_do_not_hide_submodules():
    vae = VAE(x=(3,), z=(2,), likelihood=Bernoulli(floor=0.1))
    assert dict(vae.named_children())["likelihood"] is vae.likelihood
    assert vae.likelihood.floor == 0.1
    assert not hasattr(VAE, "prior")
    assert issubclass(VAE, Part)


def test_parts_that_do_not_fit_together_are_refused_when_assembled():
    class Scattered(Prior):
        """A prior without to_event."""

        def setup(self, z, seen):
            self.loc = nn.Buffer(torch.zeros(z))

        def forward(self, q, context=None):
            return dist.Normal(self.loc, 1.0)

    class Narrow(Network):
        """A network that forgets the shape it was given."""

        def setup(self, source, target):
            self.layer = nn.Linear(3, 2)

        def forward(self, a):
            return self.layer(a)

    try:
        with pytest.raises(Error, match=r"prior: forward is over \(\), not \(2,\): end"):
            VAE(x=(3,), z=(2,), prior="scattered")
        with pytest.raises(Error, match=r"encoder: gives \(2,\) for \(3,\), not \(2, 2\)"):
            VAE(x=(3,), z=(2,), encoder="narrow")
    finally:
        del Prior.members["scattered"], Network.members["narrow"]


def declared(role, name, **body):
    """A member of a role, which the caller removes."""
    return type(name, (role,), {"__module__": __name__, "__doc__": "A test.", **body})


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, h: None, "forward gives None, not a distribution"),
        (
            lambda self, h: dist.Exponential(h.exp()).to_event(1),
            "over .*support = Real",
        ),
        (lambda self, h: dist.Normal(h, 1.0), r"is over \(\), not \(3,\): end in \.to_event\(1\)"),
    ],
)
def test_a_family_is_what_it_says_it_is(forward, message):
    declared(Family, "Odd", forward=forward)
    try:
        with pytest.raises(Error, match=f"^likelihood: .*{message}"):
            VAE(x=(3,), z=(2,), likelihood="odd")
    finally:
        del Family.members["odd"]


def test_a_member_has_no_init_and_no_plain_tensor():
    with pytest.raises(TypeError, match="Mine has an __init__: declare its fields by annotations"):
        declared(Prior, "Mine", __init__=lambda self: None)

    def setup(self, z, seen):
        self.loc = torch.zeros(z)

    declared(Prior, "Loose", setup=setup, forward=lambda self, q, context=None: None)
    try:
        with pytest.raises(Error, match=r"loose\.loc should be an nn\.Parameter or nn\.Buffer"):
            VAE(x=(3,), z=(2,), prior="loose")
    finally:
        del Prior.members["loose"]
