"""The one optimiser: the steps of torch's own, recorded or not, and taken up again to the bit."""

import math

import pyro
import pytest
import torch
from members import ids, make, parts
from torch import nn

from pyrovae import VAE, Batch, Error
from pyrovae.graphs import PATIENCE
from pyrovae.inference import SVI
from pyrovae.objectives import ELBO
from pyrovae.optim import Optim, refuse_rates
from pyrovae.optimizers import SGD, Adam, AdamW, Optimizer
from pyrovae.schedules import Dials, Linear, Now

STEPS = PATIENCE + 15
LONG = 40
"""When steps with all gradients are recorded, some without in between."""
OPTIMIZERS = parts(Optimizer)
MORE = [
    *(make(parameter) for parameter in OPTIMIZERS),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    AdamW(amsgrad=True, betas=(0.5, 0.9), eps=1e-4),
    Optimizer.from_spec({"kind": "rmsprop", "momentum": 0.5, "centered": True}),
    Optimizer.from_spec({"kind": "clipped-adam", "clip_norm": 0.5, "centered_variance": True}),
]
EXTRAS = {"clip": 0.7, "rates": {"encoder": 0.5, "encoder.bias": 3.0}, "average": 0.9}
STOCK = {"average", "averaged"}


def model():
    """Three parameters: `encoder.weight`, `encoder.bias`, `decoder`."""
    module = nn.Module()
    module.encoder = nn.Linear(3, 2)
    module.decoder = nn.Parameter(torch.ones(4))
    for p in module.parameters():
        p.data.fill_(1.0)
    return module


def set_gradients(module, step, without=()):
    generator = torch.Generator().manual_seed(step)
    for name, p in module.named_parameters():
        p.grad = None if name in without else torch.randn(p.shape, generator=generator)


def optim_of(module, optimizer, rate=0.1, **extras):
    return Optim(optimizer, rate, names=module.named_parameters, **extras)


def without(step):
    """Few gradients now and then, and for a while those of the encoder alone."""
    if step < 2 or LONG < step < LONG + STEPS:
        return ("decoder",)
    return ("encoder.bias",) if step % 19 == 3 else ()


def moved(module, optim, steps, rate=None):
    """All that there is after steps: parameters and the optimiser's state."""
    for step in steps:
        set_gradients(module, step, without(step))
        if rate is not None:
            rate.fill_(0.1 / (1 + step))
        optim(list(module.parameters()))
    return {**dict(module.named_parameters()), **optim.state()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", MORE, ids=lambda o: o.kind)
def test_its_steps_are_those_of_torch(optimizer):
    mine, theirs = model(), model()
    optim = optim_of(mine, optimizer)
    stock = optimizer.build([{"params": list(theirs.parameters()), "lr": 0.1}])
    for step in range(LONG + STEPS + 5):
        for module in (mine, theirs):
            set_gradients(module, step, without(step))
        optim(list(mine.parameters()))
        stock.step()
        assert all(map(torch.equal, mine.parameters(), theirs.parameters())), step
    recorded = optimizer.kind in ("adam", "adam-w", "sgd")
    assert len(optim.graphs) == 2 * recorded


def test_the_defaults_are_adam_as_it_was_and_fused():
    mine, theirs = model(), model()
    optim = optim_of(mine, Adam(), 1e-3)
    stock = torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True)
    moved(mine, optim, range(1))
    set_gradients(theirs, 0, without(0))
    stock.step()
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    (group,) = optim.optimizer.param_groups
    assert {**group, "params": 0} == {**stock.param_groups[0], "params": 0}


def test_steps_without_momentum_are_those_without_a_buffer():
    """Torch makes the buffers at the first step; here they are zeros before it."""
    mine, theirs = model(), model()
    optim = optim_of(mine, SGD(momentum=0.9, nesterov=True))
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(5):
        for module in (mine, theirs):
            set_gradients(module, step)
        optim(list(mine.parameters()))
        stock.step()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6)


@pytest.mark.parametrize("optimizer", MORE, ids=lambda o: o.kind)
@pytest.mark.parametrize(
    ("when", "scheduled"), [(3, False), (LONG, True), (LONG + STEPS - 5, False)]
)
def test_it_is_taken_up_again_to_the_bit(optimizer, when, scheduled):
    ends = []
    for stopped in (False, True):
        module, rate = model(), torch.tensor(0.1).double() if scheduled else None
        optim = optim_of(module, optimizer, rate if scheduled else 0.1, **EXTRAS)
        moved(module, optim, range(when), rate)
        if stopped:
            again, state = model(), optim.state()
            again.load_state_dict(module.state_dict())
            module, optim = again, optim_of(again, optimizer, rate if scheduled else 0.1, **EXTRAS)
            optim.load(state)
            assert same(optim.state(), state)
            assert same(optim.averages(), optim_averages(state))
        ends.append(moved(module, optim, range(when, when + 12), rate))
    assert same(*ends)
    assert {"average/decoder", "averaged"} < ends[0].keys()


def optim_averages(state):
    return {
        key.removeprefix("average/"): tensor
        for key, tensor in state.items()
        if key.startswith("average/")
    }


def test_it_goes_back_to_a_state_and_to_none():
    module = model()
    optim = optim_of(module, Adam(), **EXTRAS)
    moved(module, optim, range(STEPS))
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    state, kept = optim.state(), optim.get_state()
    assert same(state, kept)
    ends = []
    for _ in range(2):
        module.load_state_dict(weights)
        optim.set_state(state)
        ends.append({name: t.clone() for name, t in moved(module, optim, range(30, 40)).items()})
        assert same(state, kept)
    assert same(*ends)
    optim.load({})
    assert not optim.state()
    assert not optim.averages()
    fresh = optim_of(module, Adam(), **EXTRAS)
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    first = {name: t.clone() for name, t in moved(module, optim, range(5)).items()}
    module.load_state_dict(weights)
    assert same(first, moved(module, fresh, range(5)))


@pytest.mark.parametrize("optimizer", MORE[:1] + MORE[-4:], ids=lambda o: o.kind)
def test_the_gradient_is_clipped_as_torch_does(optimizer):
    mine, theirs = model(), model()
    optim = optim_of(mine, optimizer, clip=0.7)
    stock = optimizer.build([{"params": list(theirs.parameters()), "lr": 0.1}])
    for step in range(STEPS):
        for module in (mine, theirs):
            set_gradients(module, step)
        if step % 2:
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                p.grad, q.grad = p.grad * 1e-3, q.grad * 1e-3
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
        torch.nn.utils.clip_grad_norm_(sorted_parameters(theirs), 0.7)
        assert (norm < 0.7) == bool(step % 2)
        optim(list(mine.parameters()))
        stock.step()
        assert all(map(torch.equal, mine.parameters(), theirs.parameters())), step


def sorted_parameters(module):
    return [p for _, p in sorted(module.named_parameters())]


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("kind", ["adam", "radam", "clipped-adam"])
def test_rates_are_those_of_parts(kind, scheduled):
    mine, theirs = model(), model()
    optimizer, rate = Optimizer.from_spec(kind), torch.tensor(0.1).double()
    rates = {"encoder": 0.5, "encoder.bias": 3.0, "dec": 7.0}
    optim = optim_of(mine, optimizer, rate if scheduled else 0.1, rates=rates)
    encoder = theirs.encoder
    groups = [([encoder.bias], 3.0), ([encoder.weight], 0.5), ([theirs.decoder], 1.0)]
    stock = optimizer.build([{"params": ps, "lr": 0.1 * factor} for ps, factor in groups])
    for step in range(STEPS):
        if scheduled and step % 4 == 0:
            rate.fill_(0.1 / (1 + step))
            for group, (_, factor) in zip(stock.param_groups, groups, strict=True):
                group["lr"] = rate.item() * factor
        for module in (mine, theirs):
            set_gradients(module, step)
        optim(list(mine.parameters()))
        stock.step()
        assert all(map(torch.equal, mine.parameters(), theirs.parameters())), step
    assert len(optim.graphs) == (kind == "adam")


def test_a_dial_turns_the_rate_of_a_recorded_step():
    module, dials = model(), Dials()
    rate = dials("learning_rate", Linear(initial=0.0, final=0.5, end=10.0))
    optim = optim_of(module, SGD(), rate)
    for _ in range(STEPS):
        set_gradients(module, 0)
        optim(list(module.parameters()))
    (graph,) = optim.graphs.values()
    assert (module.decoder == 1).all()
    for epoch in (2.0, 7.0):
        dials.turn(Now(epoch))
        before = module.decoder.detach().clone()
        set_gradients(module, 0)
        gradient = module.decoder.grad.clone()
        optim(list(module.parameters()))
        assert torch.allclose(before - module.decoder, 0.05 * epoch * gradient)
    assert list(optim.graphs.values()) == [graph]


@pytest.mark.parametrize("optimizer", [SGD(), Optimizer.from_spec("adamax")], ids=lambda o: o.kind)
def test_the_mean_of_the_weights_is_weighted_as_it_says(optimizer):
    module, decay = model(), 0.8
    optim = optim_of(module, optimizer, average=decay)
    path = []
    for step in range(STEPS):
        moved(module, optim, [step])
        path.append(module.encoder.weight.detach().clone())
        weights = torch.tensor([decay ** (step - s) for s in range(step + 1)])
        mean = torch.einsum("s,sij->ij", weights / weights.sum(), torch.stack(path))
        found = optim.averages()
        assert torch.allclose(found["encoder.weight"], mean, rtol=1e-5, atol=1e-6), step
        assert step or torch.equal(found["encoder.weight"], path[0])
    assert found.keys() == dict(module.named_parameters()).keys()


def test_the_averages_and_the_state_are_copies():
    module = model()
    optim = optim_of(module, Adam(), **EXTRAS)
    moved(module, optim, range(STEPS))
    first = optim.state(), optim.averages()
    kept = [{name: t.clone() for name, t in found.items()} for found in first]
    moved(module, optim, range(STEPS, STEPS + 2))
    assert all(map(same, first, kept))
    for tensor in (*optim.state().values(), *optim.averages().values()):
        tensor.fill_(1)
    assert not (optim.averages()["decoder"] == 1).all()


def test_only_a_fused_step_is_recorded_and_after_a_while():
    module = model()
    optim, slow = optim_of(module, Adam()), optim_of(module, Optimizer.from_spec("nadam"))
    for step in range(STEPS):
        for one in (optim, slow):
            set_gradients(module, step)
            one(list(module.parameters()))
        assert len(optim.graphs) == (step >= PATIENCE)
    assert not slow.graphs


def test_parameters_that_appear_later_join_with_what_the_others_have():
    module, twin = model(), model()
    optim, stock = optim_of(module, Adam()), torch.optim.Adam(twin.parameters(), 0.1, fused=True)
    for step in range(2 * STEPS):
        for one in (module, twin):
            set_gradients(one, step, ("encoder.bias",) if step < STEPS else ())
        first = [module.decoder, module.encoder.weight]
        optim(first if step < STEPS else module.parameters())
        stock.step()
        assert all(map(torch.equal, module.parameters(), twin.parameters()))
    assert len(optim.graphs) == 1


def test_a_factor_for_no_parameter_is_refused_with_the_nearest_name():
    names = [name for name, _ in VAE(x=(3,), z=(2,)).named_parameters()]
    refuse_rates({"encoder": 0.5, "decoder": 2.0, names[0]: 1.0}, names)
    refuse_rates({}, names)
    with pytest.raises(
        Error, match=r"^rates: .*'encode'. Did you mean 'encoder'\? Names: decoder"
    ):
        refuse_rates({"encode": 0.5}, names)
    with pytest.raises(Error, match=r"begins with 'encoder'. Did you mean 'base.encoder'\?"):
        refuse_rates({"encoder": 0.5}, [f"base.{name}" for name in names])
    with pytest.raises(Error, match=r"begins with 'prior'. Names: decoder, encoder"):
        refuse_rates({"prior": 0.5}, names)


def test_what_a_method_does_not_take_is_refused():
    with pytest.raises(Error, match="nesterov: needs a momentum"):
        SGD(nesterov=True)
    with pytest.raises(Error, match=r"betas\.1: should be less than 1"):
        Adam(betas=(0.9, 1.0))
    with pytest.raises(Error, match="unknown field 'lr'"):
        Optimizer.from_spec({"kind": "adam", "lr": 0.1})
    with pytest.raises(Error, match=r"a parameter of the shape \(4,\) has no name"):
        Optim(Adam(), 0.1)([model().decoder])


def test_it_serves_pyros_own_svi_and_ours_alike():
    ends, x = [], (torch.rand(12, 3) > 0.5).float()
    for engine, rate in ((SVI, 0.1), (pyro.infer.SVI, 0.1 / 12)):
        torch.manual_seed(0)
        vae, optim = VAE(x=(3,), z=(2,)), Optim(SGD(momentum=0.5), rate)
        with vae.scope():
            svi = engine(vae.model, vae.guide, optim, ELBO().build())
            for _ in range(STEPS):
                svi.step(Batch(x))
        assert len(optim.graphs) == 1
        assert {name.partition("/")[2].partition("$$$")[0] for name in optim.state()} == {"vae"}
        ends.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.allclose(*ends, atol=1e-5)


@pytest.mark.parametrize("parameter", OPTIMIZERS, ids=ids(OPTIMIZERS))
def test_every_method_finds_a_minimum(parameter):
    """Of (theta - 3)^2, from 1, with gradients that are noisy."""
    module = model()
    optim = optim_of(module, make(parameter), 0.05)
    for step in range(300):
        set_gradients(module, step)
        for p in module.parameters():
            p.grad = 2 * (p.detach() - 3) + 0.1 * p.grad
        optim(list(module.parameters()))
    assert all(math.isclose(v, 3, abs_tol=0.2) for v in module.decoder.tolist())
