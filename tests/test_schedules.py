"""Numbers that change while a model is fitted: their values, and tensors that hold them."""

import json
import math
import tomllib

import pytest
import tomli_w
import torch
from members import ids, make, parts
from pydantic import TypeAdapter, ValidationError

from pyrovae import VAE, Error
from pyrovae.families import RelaxedBernoulli
from pyrovae.graphs import record
from pyrovae.networks import Squashed
from pyrovae.priors import RelaxedBernoulli as Prior
from pyrovae.schedules import (
    Constant,
    Cosine,
    Cyclical,
    Dials,
    Linear,
    Now,
    Plateau,
    Quantity,
    Rate,
    Schedule,
    Steps,
)

SCHEDULES = parts(Schedule)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(value=0.3), {0: 0.3, 0.5: 0.3, 1e6: 0.3}),
        (Linear(), {0: 0, 2.5: 0.25, 10: 1, 11: 1}),
        (
            Linear(initial=2, final=0.5, begin=4, end=6),
            {0: 2, 4: 2, 4.5: 1.625, 5: 1.25, 6: 0.5, 1e9: 0.5},
        ),
        (Cosine(), {0: 0, 2.5: (1 - 0.5**0.5) / 2, 5: 0.5, 10: 1, 20: 1}),
        (Cosine(initial=1, final=0, begin=1, end=4), {0: 1, 1: 1, 2: 0.75, 3: 0.25, 4: 0, 9: 0}),
        (Cyclical(), {0: 0, 2.5: 0.5, 5: 1, 9.9: 1, 10: 0, 12.5: 0.5, 107.5: 1}),
        (
            Cyclical(initial=1, final=3, period=4, share=0.25, end=6),
            {0: 1, 0.5: 2, 1: 3, 3.9: 3, 4: 1, 4.5: 2, 5.9: 3, 6: 3, 8: 3, 8.5: 3},
        ),
        (Cyclical(period=2, share=1.0), {0: 0, 1: 0.5, 1.5: 0.75, 2: 0}),
        (Steps(values=(3, 2, 0), epochs=(1, 2.5)), {0: 3, 0.99: 3, 1: 2, 2.4: 2, 2.5: 0, 9: 0}),
        (Steps(values=(0.1,), epochs=()), {0: 0.1, 5: 0.1}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_numbers_by_hand(schedule, values):
    for epoch, value in values.items():
        assert schedule(Now(epoch)) == pytest.approx(value, abs=1e-12), epoch
    assert schedule.least == min(values.values())


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("bounds", "value"),
    [
        ((), 1.0),
        ((-5.0, -4.0, -3.0, -2.0), 1.0),
        ((-5.0, -6.0), 1.0),
        ((-5.0, -6.0, -5.0), 0.5),
        ((-5.0, -6.0, -6.0, -5.0), 0.5),
        ((-5.0, -6.0, -6.0, -6.0, -6.0), 0.25),
        ((-5.0, -6.0, -4.0, -6.0), 1.0),
        ((-5.0, -6.0, -6.0, -4.0, -6.0, -6.0), 0.25),
        ((-5.0, *[-6.0] * 20), 0.2),
        ((NAN, NAN), 0.5),
        ((NAN, -5.0, NAN), 1.0),
        ((-5.0, NAN, NAN), 0.5),
        ((-INF, -INF), 0.5),
        ((-INF, -5.0, -6.0), 1.0),
        ((INF, 1.0, 2.0), 0.5),
    ],
)
def test_a_plateau_by_hand(bounds, value):
    assert Plateau(initial=1.0, patience=2, lowest=0.2)(Now(7.5, bounds)) == pytest.approx(value)


def test_only_a_plateau_looks_at_validation_rows():
    assert {s.kind for _, s, _ in SCHEDULES if s.judges} == {"plateau"}
    assert (Plateau().least, Plateau(lowest=1e-5).least) == (0, 1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"kind": "linear", "begin": 10.0},
            "^end: ends at epoch 10, before it begins at epoch 10",
        ),
        ({"kind": "cosine", "begin": 5, "end": 2}, "^end: ends at epoch 2, before .* epoch 5$"),
        ({"kind": "cyclical", "end": 0.0}, "^end: should be greater than 0"),
        ({"kind": "cyclical", "share": 0.0}, "^share: should be greater than 0"),
        ({"kind": "cyclical", "period": -1.0}, "^period: should be greater than 0"),
        ({"kind": "linear", "initial": -1.0}, "^initial: should be greater than or equal to 0"),
        ({"kind": "linear", "final": math.inf}, "^final: should be a finite number"),
        ({"kind": "steps", "values": [1.0]}, "^epochs: is required"),
        (
            {"kind": "steps", "values": [1.0, 2.0], "epochs": []},
            "^epochs: 2 values change at 1 epochs, got 0",
        ),
        ({"kind": "steps", "values": [], "epochs": []}, "^values: .*at least 1 item"),
        (
            {"kind": "steps", "values": [1.0, 2.0, 3.0], "epochs": [4.0, 4.0]},
            r"^epochs: should rise, got \[4.0, 4.0\]",
        ),
        ({"kind": "plateau", "lowest": 1.0}, "^lowest: 1 is above initial, 0.001"),
        ({"kind": "plateau", "factor": 1.0}, "^factor: should be less than 1"),
        ({"kind": "liner"}, "unknown schedule 'liner'. Did you mean 'linear'?"),
    ],
)
def test_what_makes_no_schedule_is_refused(spec, message):
    with pytest.raises(Error, match=message):
        Schedule.from_spec(spec)


@pytest.mark.parametrize("parameter", SCHEDULES, ids=ids(SCHEDULES))
def test_it_survives_toml_and_says_numbers(parameter):
    schedule = make(parameter)
    table = schedule.spec()
    assert tomllib.loads(tomli_w.dumps(table)) == table
    again = Schedule.from_spec(json.loads(json.dumps(table)))
    for epoch in (0.0, 0.7, 3.0, 12.0):
        number = schedule(Now(epoch, (-2.0, -3.0)))
        assert isinstance(number, float)
        assert again(Now(epoch, (-2.0, -3.0))) == number >= schedule.least


def test_a_field_takes_a_number_or_a_schedule():
    quantity, rate = TypeAdapter(Quantity), TypeAdapter(Rate)
    for adapter in (quantity, rate):
        assert adapter.validate_python(0.5) == 0.5
        assert adapter.validate_python("linear").kind == "linear"
        assert adapter.validate_python({"kind": "constant", "value": 2.0})(Now()) == 2.0
        with pytest.raises(ValidationError):
            adapter.validate_python(-1.0)
    assert quantity.validate_python(0.0) == 0
    with pytest.raises(ValidationError):
        rate.validate_python(0.0)


def test_a_dial_is_read_by_what_was_recorded():
    dials = Dials()
    beta = dials("beta", Linear(end=4.0))
    assert dials("free_bits", 0.25) == 0.25
    graph = record(lambda x: ((beta * x).sum(),), torch.ones(3))
    for epoch, value in ((0.0, 0.0), (1.0, 0.25), (2.5, 0.625), (9.0, 1.0)):
        dials.turn(Now(epoch))
        assert dials.read() == {"beta": value}
        assert graph(torch.ones(3))[0].item() == pytest.approx(3 * value)
    assert beta.dtype == torch.float64


def relaxed(**fields):
    temperature = {"kind": "linear", "initial": 1.0, "final": 0.25, "end": 6.0}
    return VAE(
        x=(4,),
        z=(3,),
        prior=Prior(temperature=0.5),
        posterior={"kind": "relaxed-bernoulli", "temperature": temperature},
        decoder=Squashed(),
        **fields,
    ).double()


def test_dials_turn_the_scheduled_numbers_of_a_models_parts():
    torch.manual_seed(0)
    model, dials = relaxed(), Dials()
    dials.join(model)
    seen = torch.rand(5, 4).double()

    def draw(seen):
        torch.manual_seed(3)
        return (model.q(seen).sample(),)

    torch.manual_seed(3)
    graph = record(lambda seen: (model.q(seen).rsample(),), seen)
    first = draw(seen)[0]
    for epoch, temperature in ((0.0, 1.0), (2.0, 0.75), (8.0, 0.25)):
        dials.turn(Now(epoch))
        assert dials.read() == {"posterior.temperature": temperature}
        assert torch.allclose(draw(seen)[0], first / temperature)
        torch.manual_seed(3)
        assert torch.equal(graph(seen)[0], draw(seen)[0])
    again = relaxed()
    again.load_state_dict(model.state_dict())
    assert again.posterior.temperature_now == 0.25
    assert again.spec() == model.spec()
    assert again.prior.temperature_now == 0.5
    behind, dials = VAE(x=(4,), z=(3,)), Dials()
    dials.join(behind)
    assert not dials.read()


def test_dials_find_parts_of_parts_and_in_other_precisions():
    model = relaxed().float()
    dials = Dials()
    dials.join(torch.nn.ModuleDict({"base": model}))
    dials.turn(Now(4.0))
    assert dials.read() == {"base.posterior.temperature": 0.5}
    assert model.posterior.temperature_now.dtype == torch.float32


@pytest.mark.parametrize("member", [RelaxedBernoulli, Prior])
@pytest.mark.parametrize("schedule", ["linear", {"kind": "plateau", "initial": 1.0}])
def test_a_temperature_that_comes_to_0_is_refused(member, schedule):
    part = member(temperature=schedule)
    with pytest.raises(Error, match="temperature: should stay above 0"):
        part.setup(*[(3,), (4,)][: 1 + (member is Prior)])


def test_the_sign_of_a_relaxed_bernoulli_is_its_coin_at_every_temperature():
    h = torch.tensor([-2.0, 0.3, 4.0]).double()
    for temperature in (0.05, 0.5, 3.0):
        family = RelaxedBernoulli(temperature=temperature)
        family.setup((3,))
        y = family.double()(h).sample((40_000,))
        share = (y > 0).double().mean(0)
        error = (h.sigmoid() * (1 - h.sigmoid()) / len(y)).sqrt()
        assert ((share - h.sigmoid()).abs() < 5 * error).all()  # by chance once in 10^6
    for value in (-1e4, 1e4):
        assert family(h).log_prob(torch.full((3,), value).double()).isfinite()
