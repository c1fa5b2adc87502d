"""Bad input to the catalogue: fields out of range, members and rows that do not fit."""

import json

import pytest
import torch

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Error,
    SemiSupervisedVAE,
    fit,
    impute,
    latents,
    reconstruct,
)
from pyrovae.catalogue import roles
from pyrovae.models import Model
from pyrovae.part import json_schema

MEMBERS = [(role, kind) for role in sorted(roles()) for kind in sorted(roles()[role].members)]
SMALL = {"kind": "mlp", "hidden": [4]}


def wrong(rule):
    """Values that a field with this JSON schema does not take."""
    yield object()
    for option in rule.get("anyOf", [rule]):
        if "exclusiveMinimum" in option:
            yield option["exclusiveMinimum"]
            yield -1
        if "minimum" in option:
            yield option["minimum"] - 1
        if "exclusiveMaximum" in option:
            yield option["exclusiveMaximum"]
        if "maximum" in option:
            yield option["maximum"] + 1
        if option.get("type") == "number":
            yield from (float("nan"), float("inf"), "many")
        if option.get("type") == "integer":
            yield from (2.5, True, "many")
        if option.get("type") == "boolean":
            yield from ("maybe", 3)
        if "enum" in option:
            yield "none of these"
        if "items" in option and "minItems" in option:
            yield ()


@pytest.mark.parametrize(("role", "kind"), MEMBERS, ids=lambda value: value)
def test_every_field_out_of_range_is_refused_by_its_name(role, kind):
    member = roles()[role].members[kind]
    whole = next(iter(member.examples())).spec()
    for name, rule in json_schema(member.fields).get("properties", {}).items():
        for value in wrong(rule):
            if any(value is allowed for allowed in _anything(rule)):
                continue
            with pytest.raises(Error, match=rf"^here\.{name}") as failure:
                roles()[role].from_spec(whole | {name: value}, "here")
            assert "\n" not in str(failure.value)


def _anything(rule):
    """Whether a field takes values of any type, which no schema can refuse."""
    return [] if set(rule) - {"title", "default", "description"} else [object()]


@pytest.mark.parametrize(("role", "kind"), MEMBERS, ids=lambda value: value)
def test_an_unknown_field_is_refused_with_those_that_there_are(role, kind):
    whole = next(iter(roles()[role].members[kind].examples())).spec()
    with pytest.raises(Error, match=r"^here: unknown field 'colour'\."):
        roles()[role].from_spec(whole | {"colour": "red"}, "here")


def vae(likelihood, **fields):
    spec = {"kind": "vae", "x": [3], "z": [2], "encoder": SMALL, "decoder": SMALL}
    return Model.from_spec(spec | {"likelihood": likelihood} | fields, "model")


COUNTS = torch.tensor([[0.0, 1.0, 5.0]] * 8)


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        ({"kind": "categorical", "classes": 5}, COUNTS, r"value 5\.0: categorical takes"),
        ({"kind": "ordered-logistic", "classes": 5}, COUNTS, r"value 5\.0: ordered-logistic"),
        ({"kind": "binomial", "total": 4}, COUNTS, r"value 5\.0: binomial takes"),
        ({"kind": "beta-binomial", "total": 4}, COUNTS, r"value 5\.0: beta-binomial takes"),
        ("bernoulli", COUNTS, r"value 5\.0: bernoulli takes 0 or 1"),
        ("poisson", -COUNTS, r"value -1\.0: poisson takes whole numbers from 0"),
        ("negative-binomial", COUNTS + 0.5, r"value 0\.5: negative-binomial takes"),
        ("zero-inflated-poisson", -COUNTS, r"value -1\.0: zero-inflated-poisson"),
        ("zero-inflated-negative-binomial", -COUNTS, r"value -1\.0: zero-inflated-neg"),
        ("multinomial", -COUNTS, r"value -1\.0: multinomial takes"),
        ("dirichlet-multinomial", COUNTS + 0.5, r"value 0\.5: dirichlet-multinomial"),
        ("discretized-logistic", COUNTS + 300, r"value 300\.0: discretized-logistic"),
        ("gamma", -COUNTS, r"value -?0\.0: gamma takes positive numbers"),
        ("log-normal", -COUNTS, r"value -?0\.0: log-normal takes positive numbers"),
        ("beta", COUNTS, "beta takes numbers above 0 and below 1"),
        ("logit-normal", COUNTS, "logit-normal takes numbers above 0 and below 1"),
        ("continuous-bernoulli", COUNTS, "continuous-bernoulli takes numbers between 0 and 1"),
        ("von-mises", COUNTS, "von-mises takes angles in radians"),
        ("power-spherical", COUNTS, "power-spherical takes vectors of length 1"),
        ("one-hot", COUNTS, "one-hot takes one-hot vectors"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_rows_outside_the_support_are_refused_in_words(likelihood, x, message):
    with pytest.raises(Error, match=message):
        fit(vae(likelihood), x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prior": "uniform-sphere"},
            r"^model\.posterior: normal .*: use power-spherical$",
        ),
        ({"prior": "categorical"}, r"^model\.posterior: normal .*: use one-hot$"),
        ({"posterior": "poisson"}, r"^model\.posterior: poisson has no reparameterised samples"),
        ({"posterior": "gamma"}, r"^model\.posterior: gamma is over positive numbers"),
        ({"prior": "conditional"}, r"^model\.prior: .*conditional-vae"),
        ({"encoder": "conv"}, r"^model\.encoder: "),
        (
            {"encoder": {"kind": "module", "path": "nowhere:Encoder"}},
            r"^model\.encoder.*'nowhere:Encoder' has not been imported",
        ),
        (
            {"encoder": {"kind": "module", "path": "torch.nn:Nothing"}},
            r"^model\.encoder.*has no 'Nothing'",
        ),
        (
            {
                "encoder": {
                    "kind": "module",
                    "path": "torch.nn:Linear",
                    "options": {"in_features": 3, "out_features": 7},
                }
            },
            r"^model\.encoder: torch\.nn:Linear gives \(2, 7\) for rows \(2, 3\), not \(2, 2, 2\)",
        ),
        (
            {"missing": True, "likelihood": "multinomial"},
            r"^model\.likelihood: multinomial cannot",
        ),
        (
            {"z": [1, 2], "posterior": "power-spherical", "prior": "uniform-sphere"},
            r"^model\.posterior",
        ),
        ({"likelihood": {"kind": "columns", "columns": {"a": "normal"}}}, r"^model\.likelihood"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_members_that_do_not_fit_together_are_refused_in_one_sentence(fields, message):
    with pytest.raises(Error, match=message) as failure:
        vae(fields.pop("likelihood", "normal"), **fields)
    assert "\n" not in str(failure.value)


def test_a_size_factor_that_nothing_uses_is_refused():
    with pytest.raises(Error, match="offset"):
        fit(vae("poisson"), Batch(COUNTS, offset=torch.ones(8)))
    with pytest.raises(Error, match="offset"):
        fit(vae("normal"), Batch(torch.randn(8, 3), offset=torch.ones(8)))
    with pytest.raises(Error, match="size factors"):
        fit(vae({"kind": "poisson", "exposure": "offset"}), COUNTS)


def test_a_context_of_the_wrong_length_is_refused():
    model = ConditionalVAE(x=(3,), z=(2,), context=(2,), likelihood="poisson")
    with pytest.raises(Error, match=r"should have the shape \(8, 2\), got \(8, 3\)"):
        fit(model, Batch(COUNTS, context=torch.zeros(8, 3)))
    with pytest.raises(Error, match=r"should have the shape \(8, 2\), got \(7, 2\)"):
        fit(model, Batch(COUNTS, context=torch.zeros(7, 2)))
    assert isinstance(vae("poisson"), VAE)


@pytest.mark.parametrize("function", [latents, reconstruct])
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            torch.zeros(4, 5),
            {},
            r"rows of the data have the shape \(5,\), the model's x has \(3,\)",
        ),
        (torch.full((4, 3), torch.nan), {}, "4 of 4 rows hold NaN"),
        (COUNTS, {"particles": 0}, r"^particles: should be a whole number from 1, got 0"),
        (COUNTS, {"particles": 2.5}, r"^particles: should be a whole number from 1, got 2\.5"),
    ],
    ids=["shape", "gaps", "none", "half"],
)
def test_the_guide_is_not_asked_about_rows_that_are_none(function, rows, settings, message):
    with pytest.raises(Error, match=message) as failure:
        function(vae("poisson"), rows, **settings)
    assert "\n" not in str(failure.value)


def test_no_class_is_predicted_for_rows_with_gaps():
    model = SemiSupervisedVAE(x=(3,), z=(2,), classes=2, likelihood="poisson")
    with pytest.raises(Error, match="1 of 2 rows hold NaN"):
        model.predict(torch.tensor([[0.0, 1.0, 5.0], [torch.nan, 1.0, 5.0]]))


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", COUNTS])
def test_a_number_of_draws_that_is_none_is_refused(count):
    model = vae("poisson", missing=True)
    for draw in (model.sample, lambda n: impute(model, COUNTS, draws=n)):
        with pytest.raises(Error, match=r": should be a whole number from 1, got ") as failure:
            draw(count)
        assert "\n" not in str(failure.value)


def test_a_context_for_new_rows_is_an_array_for_one_or_for_all():
    model = ConditionalVAE(x=(3,), z=(2,), context=(2,), likelihood="poisson")
    assert model.sample(3, seed=0, context=[[0.0, 1.0]]).shape == (3, 3)
    with pytest.raises(Error, match=r"should have the shape \(3, 2\), got \(2, 2\)"):
        model.sample(3, context=torch.zeros(2, 2))
