"""Objectives: the bounds against closed forms and draws by hand, the gradients against each other.

Statistical comparisons are of seeded draws, at 3 standard errors where the other side is exact or
has its own error counted in: by chance one in 370 fails for another seed.
"""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import linear_vae, true_posterior
from members import ids, make, parts
from pyro import poutine
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from pyrovae import Batch, Mixture, Pair
from pyrovae.compile import backward
from pyrovae.models import Model
from pyrovae.objectives import (
    ELBO,
    IWAE,
    STL,
    DReG,
    MeanFieldELBO,
    MultiplyIWAE,
    Objective,
    PartialIWAE,
    Renyi,
    RenyiMax,
    WakeSleep,
)
from pyrovae.objectives.terms import _total_correlation
from pyrovae.place import in_mode
from pyrovae.precision import HalfPrecision
from pyrovae.schedules import Constant, Dials, Linear, Now

OBJECTIVES = [p for p in parts(Objective) if p[0] != "marginal-likelihood-0"]
ONE = torch.tensor([[0.6, -1.2, 0.3, 0.9, -0.4]], dtype=torch.float64)
SMALL = {"kind": "mlp", "hidden": (5,)}
X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) > 0.4).double()


def loss_of(objective, model, rows, dials=None):
    """The loss with its graph, summed over rows."""
    elbo = objective.build(model.enumerates, dials)
    with model.scope(), in_mode(model, True):
        return elbo.differentiable_loss(model.model, model.guide, rows)


def gradients(objective, model, rows, seed=0, dials=None):
    """The loss and the gradients of all parameters by name."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = loss_of(objective, model, rows, dials)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach()} | found


def same(found, wanted, tolerance=1e-10):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * max(value.norm(), 1e-3), name


def of_rows(objective, vae, rows=20_000, x=ONE):
    """Independent draws of the gradient in the parameters of q(z | x), `(rows, 2 * latents)`.

    The same row over and over, each with particles of its own.
    """
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    hook = vae.encoder.register_forward_hook(keep)
    loss_of(objective, vae, x.expand(rows, -1)).backward()
    hook.remove()
    vae.zero_grad()
    return seen[0].grad.flatten(1)


def bounds(objective, vae, rows, x=ONE):
    """The mean over rows that are all the same, and its standard error from 20 parts of them."""
    with torch.no_grad():
        part = x.expand(rows // 20, -1)
        found = torch.stack([-loss_of(objective, vae, part) / len(part) for _ in range(20)])
    return found.mean().item(), found.std().item() / math.sqrt(20)


def weights_by_hand(vae, draws, particles, x=ONE):
    """Log-weights of draws from q, `(draws, particles)`, by torch's distributions alone."""
    w, b = vae.decoder.output.weight.detach(), vae.decoder.output.bias.detach()
    loc, raw = vae.encoder(x).detach().squeeze(0)
    q = Normal(loc, nn.functional.softplus(raw) + 1e-9)
    z = q.sample((draws, particles))
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_p = log_p + Normal(z @ w.mT + b, 0.7).log_prob(x).sum(-1)
    return log_p - q.log_prob(z).sum(-1)


def test_kinds_read_well():
    assert sorted(Objective.members) == [
        "dreg",
        "elbo",
        "iwae",
        "marginal-likelihood",
        "mean-field-elbo",
        "multiply-iwae",
        "partial-iwae",
        "renyi",
        "renyi-max",
        "stl",
        "wake-sleep",
    ]


@pytest.mark.parametrize("objective", [ELBO(), MeanFieldELBO(), STL(particles=3)])
def test_the_evidence_lower_bound_has_its_closed_form(objective):
    vae, exact = linear_vae(guide_scale=1.3, guide_shift=0.3)
    mean, sd = true_posterior(vae, ONE)
    q = MultivariateNormal(mean[0] + 0.3 * sd, (1.3 * sd).square().diag())
    gap = torch.distributions.kl_divergence(q, MultivariateNormal(mean[0], sd.square().diag()))
    value, error = bounds(objective, vae, 40_000)
    assert abs(value - (exact.log_prob(ONE).item() - gap.item())) < 3 * error


BY_HAND = {
    "iwae": (IWAE(particles=5), 5, lambda w: w.logsumexp(-1) - math.log(5)),
    "dreg": (DReG(particles=4), 4, lambda w: w.logsumexp(-1) - math.log(4)),
    "wake-sleep": (WakeSleep(particles=3), 3, lambda w: w.logsumexp(-1) - math.log(3)),
    "multiply-iwae": (
        MultiplyIWAE(groups=2, particles=3),
        6,
        lambda w: (w.unflatten(-1, (2, 3)).logsumexp(-1) - math.log(3)).mean(-1),
    ),
    "partial-iwae": (
        PartialIWAE(groups=2, particles=3),
        6,
        lambda w: w.logsumexp(-1) - math.log(6),
    ),
    "renyi": (
        Renyi(alpha=0.5, particles=5),
        5,
        lambda w: 2 * ((0.5 * w).logsumexp(-1) - math.log(5)),
    ),
    "renyi, negative": (
        Renyi(alpha=-1.0, particles=2),
        2,
        lambda w: 0.5 * ((2 * w).logsumexp(-1) - math.log(2)),
    ),
    "renyi-max": (RenyiMax(particles=5), 5, lambda w: w.amax(-1)),
}


def test_every_bound_with_weights_is_checked_by_hand():
    known = {"elbo", "mean-field-elbo", "stl", "marginal-likelihood"}
    assert {name.split(",")[0] for name in BY_HAND} == Objective.members.keys() - known


@pytest.mark.parametrize(
    ("draws", "rows"),
    [(50_000, 8_000), pytest.param(1_000_000, 400_000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("case", BY_HAND)
def test_bounds_are_those_of_draws_by_hand(case, draws, rows):
    vae, _ = linear_vae(guide_scale=1.3, guide_shift=0.3)
    objective, particles, reduce = BY_HAND[case]
    wanted = reduce(weights_by_hand(vae, draws, particles))
    value, error = bounds(objective, vae, rows)
    assert abs(value - wanted.mean()) < 3 * math.hypot(error, wanted.std() / math.sqrt(draws))


def test_the_bound_rises_with_the_particles_up_to_log_p():
    vae, exact = linear_vae(guide_scale=1.4, guide_shift=0.5)
    values, errors = zip(*(bounds(IWAE(particles=k), vae, 6000) for k in (1, 5, 50)), strict=True)
    for low, high, error in zip(
        values, (*values[1:], exact.log_prob(ONE).item()), errors, strict=True
    ):
        assert low + 5 * error < high + 0.002
    assert values[0] + 0.1 < values[1]


@pytest.mark.parametrize("parameter", OBJECTIVES, ids=ids(OBJECTIVES))
def test_every_bound_is_log_p_with_the_posterior_as_guide(parameter):
    vae, exact = linear_vae()
    with torch.no_grad():
        value = -loss_of(make(parameter), vae, ONE).item()
    if parameter[0].startswith("mean-field"):
        value = bounds(make(parameter), vae, 40_000)[0]
    tolerance = 0.02 if parameter[0].startswith("mean-field") else 1e-6
    assert value == pytest.approx(exact.log_prob(ONE).item(), abs=tolerance)


@pytest.mark.parametrize("objective", [STL(particles=3), DReG(particles=7)])
def test_the_encoder_rests_where_the_guide_is_the_posterior(objective):
    vae, _ = linear_vae()
    found = gradients(objective, vae, 2 * torch.randn(50, 5).double())
    assert max(v.abs().max() for n, v in found.items() if n.startswith("encoder")) < 1e-10
    assert found["decoder.output.weight"].norm() > 1
    assert gradients(ELBO(), vae, ONE)["encoder.output.weight"].norm() > 0.1


def signal_to_noise(objective, vae, rows):
    """The length of the mean gradient over the root of its total variance."""
    found = of_rows(objective, vae, rows)
    return (found.mean(0).norm() / found.var(0).sum().sqrt()).item()


@pytest.mark.parametrize(("member", "drowns"), [(IWAE, True), (DReG, False)])
def test_the_encoders_signal_drowns_in_noise_but_for_dreg(member, drowns):
    vae, _ = linear_vae(guide_shift=0.3)
    one = signal_to_noise(member(particles=1), vae, 8000)
    ratio = signal_to_noise(member(particles=100), vae, 1500) / one
    assert ratio < 0.5 if drowns else ratio > 0.7


@pytest.mark.parametrize(
    ("objective", "same_as"),
    [
        (STL(particles=2), ELBO(particles=2)),
        (DReG(particles=3), IWAE(particles=3)),
        (PartialIWAE(groups=2, particles=3), MultiplyIWAE(groups=2, particles=3)),
    ],
)
def test_the_encoders_gradient_has_the_mean_of_the_plain_one(objective, same_as):
    vae, _ = linear_vae(guide_scale=1.3, guide_shift=0.3)
    found, wanted = of_rows(objective, vae), of_rows(same_as, vae)
    error = ((found.var(0) + wanted.var(0)) / len(found)).sqrt()
    assert ((found.mean(0) - wanted.mean(0)).abs() < 4 * error).all()
    assert (wanted.mean(0).abs() > 5 * error).all()


@pytest.mark.parametrize(
    ("objective", "same_as"),
    [
        (DReG(particles=6), IWAE(particles=6)),
        (PartialIWAE(groups=2, particles=3), IWAE(particles=6)),
        (WakeSleep(particles=6, encoder="wake"), IWAE(particles=6)),
        (STL(particles=6), ELBO(particles=6)),
    ],
)
def test_the_decoders_gradient_is_the_plain_one_from_the_same_draws(objective, same_as):
    vae, _ = linear_vae(guide_scale=1.3, guide_shift=0.3)
    found, wanted = (gradients(o, vae, ONE.expand(9, -1)) for o in (objective, same_as))
    for name in ("loss", "decoder.output.weight", "decoder.output.bias"):
        assert torch.allclose(found[name], wanted[name], rtol=1e-10), name


def test_groups_of_all_or_of_one_particle_are_the_simpler_bounds():
    vae, _ = linear_vae(guide_scale=1.3)
    rows = ONE.expand(4, -1)
    whole = gradients(IWAE(particles=6), vae, rows)
    same(gradients(MultiplyIWAE(groups=1, particles=6), vae, rows), whole)
    same(gradients(PartialIWAE(groups=1, particles=6), vae, rows), whole)
    same(gradients(Renyi(alpha=0.0, particles=6), vae, rows), whole)
    single = gradients(ELBO(particles=6), vae, rows)
    same(gradients(MultiplyIWAE(groups=6, particles=1), vae, rows), single)
    same(gradients(Renyi(alpha=1 - 1e-9, particles=6), vae, rows), single, 1e-6)
    most = gradients(Renyi(alpha=-1e6, particles=6), vae, rows)
    same(gradients(RenyiMax(particles=6), vae, rows), most, 1e-5)


def vae_of(**fields):
    base = {"kind": "vae", "x": (6,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
    return Model.from_spec(base | fields).double()


def hierarchy():
    layers = ({"kind": "stochastic", "z": (3,)}, {"kind": "stochastic", "z": (2,)})
    fields = {"x": (6,), "z": (2,), "layers": layers, "encoder": SMALL, "decoder": SMALL}
    return Model.from_spec({"kind": "hierarchical-vae"} | fields).double()


@pytest.mark.parametrize(
    ("make_model", "guides"),
    [
        (hierarchy, ("encoder.", "parts.0.encoder.", "parts.1.encoder.")),
        (lambda: vae_of(prior={"kind": "vamp", "components": 3}), ("encoder.",)),
    ],
)
def test_the_path_is_that_of_a_guide_run_again_with_parameters_held(make_model, guides):
    """Also where the prior is made of the guide: p(z) has a gradient in its parameters then."""
    model = make_model()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    held = copy.deepcopy(model)
    found = gradients(STL(particles=4), model, X)
    torch.manual_seed(0)
    batch, plate = Batch(X), pyro.plate("particles", 4, dim=-2)
    with model.scope(), plate:
        drawn = poutine.trace(model.guide).get_trace(batch)
        joint = poutine.trace(poutine.replay(model.model, trace=drawn)).get_trace(batch)
    with held.scope(), plate:
        again = poutine.trace(poutine.replay(held.guide, trace=drawn)).get_trace(batch)
    (-(joint.log_prob_sum() - again.log_prob_sum()) / 4).backward()
    assert found["loss"] == pytest.approx(
        -(joint.log_prob_sum() - drawn.log_prob_sum()).item() / 4
    )
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert (found[name] - p.grad).norm() <= 1e-10 * p.grad.norm(), name
    assert all(any(n.startswith(g) for n in found) for g in guides)


def test_the_sleep_phase_is_the_likelihood_of_dreams():
    model = vae_of(likelihood="normal", z=(3,))
    found = gradients(WakeSleep(particles=2), model, X)
    torch.manual_seed(0)
    wake = WakeSleep(particles=2, encoder="wake")
    with torch.no_grad(), model.scope():
        loss = loss_of(wake, model, X)
        dream = poutine.trace(poutine.uncondition(model.model)).get_trace(Batch(X)).nodes
    log_q = model.q(dream["x"]["value"]).log_prob(dream["z"]["value"])
    (-log_q.sum()).backward()
    for name, p in model.encoder.named_parameters():
        assert torch.allclose(found[f"encoder.{name}"], p.grad, rtol=1e-10)
    assert found["loss"] == pytest.approx(loss.item())
    both = gradients(WakeSleep(particles=2, encoder="both"), model, X)
    awake = gradients(wake, model, X)
    for name in found:
        mean = 0.5 * (found[name] + awake[name]) if name.startswith("encoder") else found[name]
        assert torch.allclose(both[name], mean, rtol=1e-9, atol=1e-12), name


def test_dreams_miss_what_the_rows_miss_and_have_no_labels():
    holes = torch.where(torch.arange(144).reshape(24, 6) % 5 == 0, torch.nan, X)
    model = vae_of(missing=True)
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = gradients(WakeSleep(), model, holes)
    assert torch.equal(seen[0][:, 6:], seen[1][:, 6:])
    assert not torch.equal(seen[0][:, :6], seen[1][:, :6])
    assert all(value.isfinite().all() for value in found.values())
    rows = Batch(X, labels=torch.arange(24) % 4 - 1)
    model = vae_of(kind="semi-supervised-vae", classes=3)
    found = gradients(WakeSleep(), model, rows)
    assert found["classifier.output.weight"].norm() > 0


@pytest.mark.parametrize("objective", [WakeSleep(), WakeSleep(particles=50, encoder="wake")])
def test_a_guide_of_coins_goes_to_the_posterior(objective):
    """Of two states under three coins: there the mean gradient is 0, elsewhere it leads there."""
    logits = torch.tensor([[-1.5, 0.5, 1.0], [2.0, -1.0, 0.0]])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            return pyro.sample("x", dist.Bernoulli(logits=logits[z.long()]).to_event(1), obs=x)

    weight = nn.Parameter(logits[1] - logits[0])
    total = nn.functional.softplus(logits).sum(-1)
    bias = nn.Parameter(math.log(0.3 / 0.7) + total[0] - total[1])

    def guide(x):
        w, b = pyro.param("weight", weight), pyro.param("bias", bias)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=x @ w + b))

    def slopes(rows):
        with pyro.get_param_store().scope():
            loss = objective.build().differentiable_loss(model, guide, rows) / len(rows)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))])

    rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).repeat(250, 1)
    found = torch.stack([slopes(rows) for _ in range(20)])
    assert (found.mean(0).abs() < 4.5 * found.std(0) / 20**0.5).all()
    away = torch.tensor([1.0, -1.0, 0.5, 0.7])
    with torch.no_grad():
        weight += away[:3]
        bias += away[3]
    assert slopes(rows) @ away > 0.02


def kl_by_hand(vae, x):
    """KL(q || p) of each row, `(rows,)`, for normals."""
    q = vae.q(x)
    loc, variance = q.mean, q.variance
    return 0.5 * (loc.square() + variance - 1 - variance.log()).sum(-1)


def test_beta_weighs_the_kl_of_every_estimator_and_starts_from_0():
    vae = vae_of()
    kl = kl_by_hand(vae, X).sum()
    for beta in (0.0, 0.3, 4.0):
        for objective in (MeanFieldELBO, ELBO, STL):
            found = gradients(objective(beta=beta), vae, X)
            plain = gradients(objective(), vae, X)
            extra = (found["loss"] - plain["loss"]) / (beta - 1)
            assert extra == pytest.approx(kl.item(), rel=1e-9 if objective is MeanFieldELBO else 2)
    grads = torch.autograd.grad(kl, list(vae.encoder.parameters()))
    for (name, _), wanted in zip(vae.encoder.named_parameters(), grads, strict=True):
        found = gradients(MeanFieldELBO(beta=3.0), vae, X)[f"encoder.{name}"]
        plain = gradients(MeanFieldELBO(), vae, X)[f"encoder.{name}"]
        assert torch.allclose(found, plain + 2 * wanted, rtol=1e-9, atol=1e-12)


def test_beta_weighs_states_that_are_summed_over():
    """The KL of the label and, for each label, that of the style, weighed by q(y | x)."""
    model = vae_of(kind="semi-supervised-vae", classes=3)
    found, plain = (gradients(ELBO(beta=b), model, X)["loss"] for b in (2.5, 1.0))
    zero = gradients(ELBO(beta=0.0), model, X)["loss"]
    assert found - zero == pytest.approx(2.5 * (plain - zero).item(), rel=1e-9)


def test_numbers_that_change_nothing_leave_pyros_own_estimators():
    for objective in (ELBO(), ELBO(beta=1.0, free_bits=0.0, total_correlation=0.0)):
        assert type(objective.build()) is pyro.infer.Trace_ELBO
        assert type(objective.build(enumerates=True)) is pyro.infer.TraceEnum_ELBO
    assert isinstance(MeanFieldELBO().build(), pyro.infer.TraceMeanField_ELBO)
    assert type(ELBO(beta=Constant()).build()) is not pyro.infer.Trace_ELBO


@pytest.mark.parametrize("member", [ELBO, MeanFieldELBO])
def test_the_terms_add_up_to_the_bound(member):
    """With free bits that bind nowhere and no weight, on a hierarchy of several particles."""
    for model in (hierarchy(), vae_of(missing=True)):
        rows = X if model.kind == "vae" else X[:7]
        terms = gradients(member(particles=3, free_bits=1e-12), model, rows)
        same(terms, gradients(member(particles=3), model, rows))
        for beta in (0.0, 2.0):
            terms = gradients(member(particles=3, free_bits=1e-12, beta=beta), model, rows)
            same(terms, gradients(member(particles=3, beta=beta), model, rows))


def test_free_bits_hold_each_site_at_its_floor():
    vae = vae_of()
    plain = gradients(MeanFieldELBO(), vae, X)
    kl = kl_by_hand(vae, X)
    floor = 2 * kl.mean().item()
    found = gradients(MeanFieldELBO(free_bits=floor, beta=3.0), vae, X)
    wanted = plain["loss"] - kl.sum() + 3 * floor * len(X)
    assert found["loss"] == pytest.approx(wanted.item(), rel=1e-12)
    free = gradients(MeanFieldELBO(beta=0.0), vae, X)
    same(
        {n: v for n, v in found.items() if n != "loss"},
        free | {"loss": None} and {n: v for n, v in free.items() if n != "loss"},
    )
    below = gradients(MeanFieldELBO(free_bits=0.5 * kl.mean().item()), vae, X)
    same(below, plain)


def test_free_bits_are_of_each_site_on_its_own():
    """Two latents in plain Pyro: N(a, 1) and N(b, 1) with KL a^2 / 2 and b^2 / 2."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            for name in "ab":
                pyro.sample(name, dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(x.new_zeros(2), 1.0).to_event(1), obs=x)

    def guide(x):
        a, b = pyro.param("a_", torch.ones(())), pyro.param("b_", 2 * torch.ones(()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(a, 1.0))
            pyro.sample("b", dist.Normal(b, 1.0))

    pair = Pair(model=model, guide=guide, x=(2,))
    x = torch.zeros(10, 2).double()
    pair.start(Batch(x))
    value = gradients(MeanFieldELBO(free_bits=1.5), pair, Batch(x))["loss"].item() / 10
    assert value == pytest.approx(math.log(2 * math.pi) + 1.5 + 2.0)


def test_total_correlation_is_its_formula():
    """Against loops over pairs of rows, with torch's own distributions."""
    vae = vae_of(z=(3,))
    for p in vae.parameters():
        p.data += 0.3 * torch.randn_like(p)
    found = gradients(ELBO(total_correlation=2.0), vae, X)
    torch.manual_seed(0)
    with torch.no_grad():
        q = vae.q(X)
        z = q.rsample((1,))[0]
    total = 0.0
    for i in range(len(X)):
        pairs = Normal(q.mean, q.stddev).log_prob(z[i])
        joint = (pairs.sum(-1).logsumexp(0) - math.log(len(X))).item()
        apart = (pairs.logsumexp(0) - math.log(len(X))).sum().item()
        total += joint - apart
    assert found["loss"] - gradients(ELBO(), vae, X)["loss"] == pytest.approx(2 * total, rel=1e-9)
    assert abs(total) > 0.01
    more = gradients(MeanFieldELBO(particles=4, total_correlation=2.0), vae, X)
    assert all(value.isfinite().all() for value in more.values())


def test_total_correlation_of_dimensions_that_are_copies_is_found():
    """q(z) = N(0, [[1, r], [r, 1]]) has TC = -log(1 - r^2) / 2; with many rows it is met."""
    n, r = 1000, 0.9
    common = torch.randn(n, 1).double()
    loc = math.sqrt(r) * common.expand(-1, 2)
    site = {"fn": dist.Normal(loc, math.sqrt(1 - r)).to_event(1), "name": "z"}
    site["value"] = site["fn"].sample()
    found = _total_correlation(site, "elbo").mean().item()
    assert found == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.1)


def test_schedules_are_read_at_every_step():
    vae, dials = vae_of(), Dials()
    line = Linear(initial=0.0, final=2.0, end=4)
    objective = MeanFieldELBO(beta=line, free_bits=Linear(final=0.2), total_correlation=line)
    elbo = objective.build(dials=dials)
    assert dials.held.keys() == {"beta", "free_bits", "total_correlation"}
    for epoch in (0, 1, 3):
        dials.turn(Now(epoch))
        torch.manual_seed(0)
        with vae.scope(), torch.no_grad():
            found = elbo.differentiable_loss(vae.model, vae.guide, X)
        fixed = MeanFieldELBO(
            beta=epoch / 2, free_bits=0.02 * epoch + 1e-300, total_correlation=epoch / 2
        )
        assert found == pytest.approx(gradients(fixed, vae, X)["loss"].item(), rel=1e-12)
        assert found.dtype == torch.float64
    assert gradients(objective, vae.float(), X.float())["loss"].dtype == torch.float32


MODELS = {
    "hierarchy": lambda: (hierarchy(), Batch(X)),
    "missing": lambda: (
        vae_of(missing=True),
        Batch(torch.where(torch.arange(144).reshape(24, 6) % 5 == 0, torch.nan, X)),
    ),
    "context": lambda: (
        vae_of(kind="conditional-vae", context=(2,), prior="conditional"),
        Batch(X, context=X[:, :2]),
    ),
    "transformed": lambda: (
        Model.from_spec(
            {
                "kind": "transformed",
                "base": {"kind": "vae", "x": (6,), "z": (2,), "likelihood": "normal"},
                "transform": "standardize",
            }
        ).double(),
        Batch(X + 0.1 * torch.randn(24, 6)),
    ),
    "sphere": lambda: (
        vae_of(prior="uniform-sphere", posterior="power-spherical", z=(3,)),
        Batch(X),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_every_objective_takes_every_model(case):
    """One particle and several, in eager and in half precision, to finite gradients for all."""
    model, rows = MODELS[case]()
    model.start(rows)
    for parameter in OBJECTIVES:
        found = gradients(make(parameter), model, rows)
        assert found.keys() == {"loss"} | {name for name, _ in model.named_parameters()}
        assert all(value.isfinite().all() for value in found.values()), parameter[0]
        table = {"kind": make(parameter).kind, "particles": 1}
        with model.scope():
            elbo = HalfPrecision(Objective.from_spec(table).build())
            assert math.isfinite(backward(elbo, model.model, model.guide, rows)[0])
            assert math.isfinite(elbo.loss(model.model, model.guide, rows))
        model.zero_grad()


def shared_scale(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z[..., None], scale).to_event(1), obs=x)


def shared_guide(x):
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("scale", dist.LogNormal(loc, 0.1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.mean(-1) + loc, 0.5))


@pytest.mark.parametrize(
    "objective",
    [
        *(make(p) for p in OBJECTIVES if p[1] not in (ELBO, MeanFieldELBO)),
        ELBO(free_bits=0.1),
        MeanFieldELBO(total_correlation=1.0),
    ],
    ids=lambda objective: objective.kind,
)
def test_a_latent_of_all_rows_is_refused_with_the_reason(objective):
    pair = Pair(model=shared_scale, guide=shared_guide, x=(2,))
    pair.start(Batch(X[:, :2]))
    with pytest.raises(
        ValueError,
        match=rf"objective: {objective.kind} is a bound for each row, and the site 'scale' is not "
        "in a plate of the rows at dimension -1: .* would bound their joint density; use elbo",
    ):
        loss_of(objective, pair, Batch(X[:, :2]))
    assert loss_of(ELBO(), pair, Batch(X[:, :2])).isfinite()


def test_a_plate_of_more_rows_than_it_is_given_is_refused():
    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 100, subsample_size=len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.5))

    elbo = IWAE().build()
    with pytest.raises(ValueError, match="the plate of 'z' scales them from 24 to 100 rows"):
        elbo.differentiable_loss(model, guide, X)


def coin(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z[..., None] * torch.ones(6), 1.0).to_event(1), obs=x)


def coin_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=x @ pyro.param("w", torch.ones(6))))


@pytest.mark.parametrize("parameter", OBJECTIVES, ids=ids(OBJECTIVES))
def test_draws_without_gradient_are_refused_but_where_they_do_no_harm(parameter):
    pair = Pair(model=coin, guide=coin_guide, x=(6,))
    pair.start(Batch(X))
    objective = make(parameter)
    if objective.kind in ("elbo", "wake-sleep"):
        assert gradients(objective, pair, Batch(X))["param:w"].norm() > 0
        return
    with pytest.raises(ValueError, match="has no gradient through 'z', whose draws are not repar"):
        loss_of(objective, pair, Batch(X))


def test_states_that_are_summed_over_are_refused_where_a_bound_needs_draws():
    model = Mixture(x=(6,), components=2, family="bernoulli").double()
    for parameter in OBJECTIVES:
        objective = make(parameter)
        if objective.kind in ("elbo", "wake-sleep"):
            assert loss_of(objective, model, Batch(X)).isfinite()
            continue
        with pytest.raises(ValueError, match=f"{objective.kind} cannot sum over discrete latents"):
            objective.build(enumerates=True)
    with pytest.raises(ValueError, match="objective: free_bits and total_correlation need draws"):
        ELBO(free_bits=0.1).build(enumerates=True)


def test_a_guide_that_is_no_product_has_no_total_correlation():
    model = vae_of(posterior="multivariate-normal")
    with pytest.raises(
        ValueError, match=r"needs a guide that is a product over dimensions, and th"
    ):
        loss_of(ELBO(total_correlation=1.0), model, X)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "renyi", "alpha": 1.0}, "alpha: the limit at 1 is the evidence lower bound"),
        ({"kind": "iwae", "particles": 0}, "particles: should be greater than 0"),
        ({"kind": "iwae", "beta": 2.0}, "unknown field 'beta'"),
        ({"kind": "elbo", "beta": -1.0}, "beta: should be greater than or equal to 0"),
        ({"kind": "elbo", "free_bits": "linaer"}, "Did you mean 'linear'"),
        (
            {"kind": "wake-sleep", "encoder": "doze"},
            "encoder: should be 'sleep', 'wake' or 'both'",
        ),
        ({"kind": "multiply-iwae", "groups": 1.5}, "groups: "),
    ],
)
def test_bad_fields_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Objective.from_spec(spec)
