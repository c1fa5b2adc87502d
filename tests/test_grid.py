"""Every prior with every likelihood with every guide: what is legal works, all else is refused.

The whole grid runs under `pytest -m grid`; by default a sample of it in which every legal pair of
members meets at least once.
"""

import itertools

import pytest
import torch
from members import FAMILIES, PRIORS, events, make

from pyrovae import VAE, Batch, ConditionalVAE, Error, fit, log_likelihood
from pyrovae.models import Model
from pyrovae.models.seams import few_states
from pyrovae.runs import open_run, save

SMALL = {"kind": "mlp", "hidden": [8]}
LATENT = {"PowerSpherical": (3,), "OneHot": (4,)}
ROWS = 100


def guide_shape(parameter):
    """The event shape of a latent that a family can be the guide of, `None` if it cannot."""
    family, z = make(parameter), LATENT.get(parameter[1].__name__, (2,))
    try:
        family.setup(z)
    except Error:
        return None
    p = family(torch.zeros(1, *family.params))
    return z if p.has_rsample or few_states(family) else None


GUIDES = [parameter for parameter in FAMILIES if guide_shape(parameter)]


def legal(prior, guide):
    """Whether both are over the same values."""
    supports = make(prior).support, make(guide).support
    return supports[0] is None or type(supports[0]) is type(supports[1])


LEGAL = [
    triple for triple in itertools.product(PRIORS, FAMILIES, GUIDES) if legal(triple[0], triple[2])
]
ILLEGAL = [pair for pair in itertools.product(PRIORS, GUIDES) if not legal(*pair)]


def pairs(triple):
    """The three pairs of names in a triple, each with the places of its members."""
    names = [(place, name) for place, (name, *_) in enumerate(triple)]
    return set(itertools.combinations(names, 2))


def covering(triples):
    """Few triples in which every pair that occurs in any of them occurs."""
    missing, chosen = set().union(*map(pairs, triples)), []
    for least in (3, 2, 1):
        for triple in triples:
            if len(pairs(triple) & missing) >= least:
                chosen.append(triple)
                missing -= pairs(triple)
    return chosen


def name(triple):
    return "/".join(part for part, *_ in triple)


def rows(parameter):
    """Rows drawn from a family itself, `(ROWS, *event)`."""
    family = make(parameter)
    family.setup(events(family)[0])
    with torch.no_grad():
        return family(0.5 * torch.randn(ROWS, *family.params)).sample()


def table(prior, likelihood, guide):
    """The spec of a model of small networks."""
    spec = {
        "kind": "vae",
        "x": list(events(make(likelihood))[0]),
        "z": list(guide_shape(guide)),
        "prior": make(prior).spec(),
        "likelihood": make(likelihood).spec(),
        "posterior": make(guide).spec(),
        "encoder": SMALL,
        "decoder": SMALL,
    }
    if prior[1].__name__ == "Conditional":
        spec |= {"kind": "conditional-vae", "context": [2]}
    return spec


def works(triple, folder):
    """Train on 200 rows, evaluate, sample, and go through a spec, a file and a run folder.

    In four long steps: a failure is one of a row or of a parameter that has moved.
    """
    spec = table(*triple)
    model = Model.from_spec(spec)
    whole = model.spec()
    assert all(whole[part] == spec[part] for part in ("prior", "likelihood", "posterior"))
    batch = Batch(rows(triple[1]))
    if isinstance(model, ConditionalVAE):
        batch = batch.replace(context=torch.randn(ROWS, 2))
    history = fit(model, batch, epochs=2, batch_size=ROWS // 2, learning_rate=2.5e-3)
    assert all(torch.isfinite(torch.tensor([epoch.loss for epoch in history.epochs])))
    assert all(tensor.isfinite().all() for tensor in model.parameters())
    some = batch[:4]
    result = log_likelihood(model, some, particles=20, seed=1)
    assert torch.isfinite(torch.tensor(result.value)).all()
    drawn = model.sample(some, seed=2)
    assert drawn.shape == some.x.shape
    assert model.support.check(drawn).all()
    save(model, folder / "run", history)
    again = open_run(folder / "run").model  # from the spec as TOML
    assert again.spec() == whole
    assert (log_likelihood(again, some, particles=20, seed=1).value == result.value).all()


@pytest.mark.parametrize("triple", covering(LEGAL), ids=name)
def test_every_pair_of_members_works(triple, tmp_path):
    works(triple, tmp_path)


def pytest_generate_tests(metafunc):
    """The whole grid where it is not ruled out: thousands of tests take seconds to collect."""
    if metafunc.function is test_every_triple_of_members_works:
        left_out = "not grid" in metafunc.config.getoption("markexpr")
        metafunc.parametrize("triple", [] if left_out else LEGAL, ids=name)


@pytest.mark.grid
def test_every_triple_of_members_works(triple, tmp_path):
    works(triple, tmp_path)


@pytest.mark.parametrize("pair", ILLEGAL, ids=name)
def test_a_guide_over_other_values_is_refused_with_a_legal_partner(pair):
    """The guide that the sentence names is one that works."""
    prior, guide = pair
    normal = next(parameter for parameter in FAMILIES if parameter[0] == "normal-0")
    spec = table(prior, normal, guide)
    legal_kinds = {other[1].kind for other in GUIDES if legal(prior, other)}
    with pytest.raises(Error, match="use ") as failure:
        Model.from_spec(spec)
    named = str(failure.value).rsplit("use ", 1)[1].split(" or ")
    assert set(named) <= legal_kinds


def test_the_grid_is_what_its_size_says():
    """The sample has every pair of the grid, and the grid every prior, likelihood and guide."""
    sample = covering(LEGAL)
    assert set().union(*map(pairs, sample)) == set().union(*map(pairs, LEGAL))
    assert {triple[0][0] for triple in LEGAL} == {parameter[0] for parameter in PRIORS}
    assert {triple[1][0] for triple in LEGAL} == {parameter[0] for parameter in FAMILIES}
    assert isinstance(Model.from_spec(table(*LEGAL[0])), VAE)
