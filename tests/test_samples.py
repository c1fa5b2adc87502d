"""Samples against data: tests of the right size, that see what is wrong, and copies found."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Mixture,
    Pair,
    Transformed,
    c2st,
    fit,
    grade_samples,
    memorisation,
    mmd,
    plots,
)
from pyrovae.evaluate import samples as module

TESTS = (mmd, c2st)


def brute_force(a, b, widths=(0.5, 1.0, 2.0)):
    """MMD^2 by its definition, one pair at a time."""
    rows = torch.cat([a, b]).double()
    distances = [(x - y).norm().item() for x in rows for y in rows]
    median = np.quantile([d for d in distances if d > 0], 0.5, method="lower")

    def mean(x, y, same):
        return np.mean(
            [
                sum(
                    math.exp(-((p - q).norm().item() ** 2) / (2 * (w * median) ** 2))
                    for w in widths
                )
                for i, p in enumerate(x)
                for j, q in enumerate(y)
                if not (same and i == j)
            ]
        )

    a, b = a.double(), b.double()
    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 11)])
def test_mmd_is_its_definition(n, m):
    a, b = torch.randn(n, 2, 2), torch.randn(m, 2, 2) + 0.5
    result = mmd(a, b, permutations=1)
    assert result.statistic == pytest.approx(brute_force(a.flatten(1), b.flatten(1)), abs=1e-12)
    assert result.name == "MMD^2"


def test_a_permutation_is_a_division_of_all_rows():
    """With 2 and 2 rows there are 3 values, of which p counts those at least as large."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [7.0]])
    result = mmd(a, b, permutations=3000)
    assert result.p_value == pytest.approx(1 / 3, abs=0.03)  # 3.5 sd: 5e-4
    values = [brute_force(a, b)]
    for x, y in (((0.0, 5.0), (1.0, 7.0)), ((0.0, 7.0), (1.0, 5.0))):
        values.append(brute_force(torch.tensor(x)[:, None], torch.tensor(y)[:, None]))
    assert result.se == pytest.approx(np.std(values), rel=0.05)


def test_mmd_is_unbiased():
    values = [
        mmd(torch.randn(20, 2), torch.randn(20, 2), permutations=1).statistic for _ in range(200)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5  # fails once in 16,000


def p_values(test, repetitions, draw):
    return np.array([test(*draw(), seed=seed).p_value for seed in range(repetitions)])


def test_mmd_has_the_right_size():
    """The p-value is uniform on 1/100, ..., 1: Kolmogorov's test at 1e-4, and the size."""
    p = p_values(
        lambda a, b, seed: mmd(a, b, permutations=99, seed=seed),
        300,
        lambda: (torch.randn(25, 3), torch.randn(35, 3)),
    )
    ecdf = np.array([(p <= level).mean() - level for level in np.unique(p)])
    assert np.abs(ecdf).max() < 2.23 / 300**0.5
    assert (p <= 0.05).mean() < 0.11


def test_the_classifier_has_at_most_the_right_size():
    """Of 40 true hypotheses 5 % are 2: more than 8 have a probability of 5e-5."""
    p = p_values(c2st, 40, lambda: (torch.randn(40, 3), torch.randn(30, 3)))
    assert (p <= 0.05).sum() <= 8
    assert p.min() > 1e-5


def five_modes(rows, modes):
    centers = torch.randn(5, 8, generator=torch.Generator().manual_seed(7)) * 2
    return centers[torch.randint(modes, (rows,))] + torch.randn(rows, 8)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda: torch.randn(300, 8), lambda: torch.randn(300, 8) + 0.4),
        (lambda: torch.randn(400, 8), lambda: 1.5 * torch.randn(400, 8)),
        (lambda: five_modes(400, 5), lambda: five_modes(400, 3)),
    ],
    ids=["shift", "scale", "dropped-mode"],
)
def test_differences_are_seen(test, a, b):
    assert test(a(), b()).p_value < 0.01


def test_correlation_alone_is_seen():
    z, noise = torch.randn(500, 1), torch.randn(500, 4)
    result = c2st((0.8**0.5) * z + (0.2**0.5) * noise, torch.randn(500, 4))
    assert result.p_value < 1e-6
    assert result.statistic > 0.7


def test_the_accuracy_is_that_of_the_best_classifier_and_its_error_binomial():
    """N(0, 1) against N(2, 1) in equal parts: at best Phi(1) = 84 %; sets differ in size."""
    result = c2st(torch.randn(2000, 1), torch.randn(1000, 1) + 2)
    assert result.statistic == pytest.approx(0.841, abs=0.05)
    hits = result.statistic
    assert result.se == pytest.approx(
        0.5 * (hits * (1 - hits) * (1 / 1000 + 1 / 500)) ** 0.5, rel=0.05
    )


def test_the_smaller_set_counts_as_much():
    """N(0, 1) against N(1.5, 1): at best Phi(0.75) = 77 % in both sets."""
    result = c2st(torch.randn(1800, 1), torch.randn(200, 1) + 1.5)
    assert result.statistic == pytest.approx(0.77, abs=0.09)


def test_a_classifier_of_few_rows_has_fishers_p_value():
    from scipy.stats import fisher_exact

    a, b = torch.zeros(40, 1), torch.ones(40, 1)
    result = c2st(a, b)
    assert result.statistic == 1
    assert result.p_value == pytest.approx(fisher_exact([[20, 0], [0, 20]], "greater").pvalue)


@pytest.mark.parametrize("test", TESTS)
def test_equal_rows_do_not_differ(test):
    result = test(torch.full((10, 3), 4.7), torch.full((12, 3), 4.7))
    assert result.p_value == 1
    assert result.statistic == result.expected


def test_duplicates_and_far_rows_leave_the_kernel_a_width():
    a = torch.cat([torch.zeros(90, 2), torch.randn(10, 2)]) + 1e6
    b = torch.cat([torch.zeros(50, 2), torch.randn(50, 2)]) + 1e6
    assert mmd(a, b).p_value < 0.01
    assert mmd(a, a + 1e9).p_value < 0.01


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            torch.randn(1, 2),
            torch.randn(9, 2),
            "two sets of at least . rows are needed, got 1 and 9",
        ),
        (torch.randn(9, 2), torch.randn(9, 3), r"differ in shape, \(2,\) and \(3,\)"),
        (
            torch.randn(9, 2),
            torch.full((9, 2), torch.nan),
            "row 0 of the second set holds entries that are not",
        ),
    ],
)
def test_rows_that_cannot_be_tested_are_refused(test, a, b, message):
    with pytest.raises(ValueError, match=message):
        test(a, b)


def test_nothing_is_left_behind():
    model = Mixture(x=(2,), family="fixed-normal")
    a, b = torch.randn(50, 2), torch.zeros(50, 2)
    state = torch.random.get_rng_state()
    assert mmd(a, b, seed=1) == mmd(a, b, seed=1)
    assert c2st(a, b, seed=1) == c2st(a, b, seed=1)
    grade_samples(model, a, b)
    assert torch.equal(state, torch.random.get_rng_state())


def test_memorisation_is_its_definition():
    samples, train, test = torch.randn(9, 2), torch.randn(12, 2), torch.randn(7, 2)
    result = memorisation(samples, train, test)
    d = torch.cdist(samples, train).amin(1)
    test_d = torch.cdist(test, train).amin(1)
    assert np.allclose(result.distances, d, atol=1e-6)
    assert np.allclose(result.test_distances, test_d, atol=1e-6)
    nearer = d < torch.cdist(samples, test).amin(1)
    assert result.nearest.statistic == pytest.approx(nearer.double().mean().item())
    assert result.nearest.expected == pytest.approx(12 / 19)
    assert result.closer.statistic == pytest.approx((d[:, None] < test_d).double().mean().item())
    gap = torch.cdist(train, train).fill_diagonal_(torch.inf).amin(1)
    within = d < gap[torch.cdist(samples, train).argmin(1)]
    assert result.within == pytest.approx(within.double().mean().item())


@pytest.mark.parametrize("spread", [1.0, 0.3], ids=["right", "too-narrow"])
def test_what_has_not_seen_the_training_rows_copies_none(spread):
    """Whatever the model: of 200 true hypotheses 10 are below 5 %, above 20 once in 1,000."""
    found = [
        memorisation(
            spread * torch.randn(40, 2),
            torch.randn(80, 2),
            torch.randn(30, 2),
            permutations=99,
            seed=seed,
        )
        for seed in range(200)
    ]
    assert (np.array([each.nearest.p_value for each in found]) <= 0.05).sum() <= 20
    closer = (np.array([each.closer.p_value for each in found]) <= 0.05).sum()
    assert closer <= 20 if spread == 1.0 else closer > 100


@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.3])
def test_jittered_training_rows_are_caught(jitter):
    train, test = torch.randn(300, 5), torch.randn(200, 5)
    samples = train[torch.randint(300, (200,))] + jitter * torch.randn(200, 5)
    result = memorisation(samples, train, test)
    assert result.found
    assert result.nearest.statistic > 0.9
    assert result.copies == (200 if jitter == 0 else 0)
    assert result.test_copies == 0
    if jitter < 0.1:
        assert result.closer.p_value < 1e-6
        assert result.within > 0.95 > result.test_within


def test_equal_rows_in_training_and_test_are_no_copies_of_training_rows():
    """Of 8 possible rows each is in both sets: there is nothing to find."""
    rows = [torch.bernoulli(torch.full((n, 3), 0.5)) for n in (200, 300, 100)]
    result = memorisation(*rows)
    assert not result.found
    assert result.copies == 200
    assert result.test_copies == 100
    assert result.nearest.statistic == pytest.approx(result.nearest.expected, abs=0.05)
    assert result.closer.statistic == 0.5
    assert result.closer.p_value >= 0.5


def at_rows(rows, scale):
    """A mixture with a component at each row: where narrow, a model that only remembers."""
    model = Mixture(
        x=(rows.shape[1],),
        components=len(rows),
        family={"kind": "fixed-normal", "scale": scale},
    )
    model.h.data.copy_(rows)
    return model


TRUTH = at_rows(torch.zeros(1, 4), 1.0)


def test_the_true_model_passes():
    """Five tests at 1 %, of which this seed is one draw."""
    train, test = TRUTH.sample(400, seed=1), TRUTH.sample(300, seed=2)
    grade = grade_samples(TRUTH, test, train)
    assert not grade.differ
    assert not grade.memorisation.found
    assert grade.rows == 300
    assert len(grade.memorisation.distances) == 1000
    assert grade.verdict.startswith("samples cannot be told from 300 test rows (MMD p = 0.")
    assert "; no sign of memorisation: to " in grade.verdict
    assert grade_samples(TRUTH, test).memorisation is None


def test_a_model_of_training_rows_is_caught_though_nothing_else_is_wrong():
    train, test = TRUTH.sample(2000, seed=1), TRUTH.sample(300, seed=2)
    grade = grade_samples(at_rows(train, 0.05), test, train)
    assert not grade.differ
    assert grade.memorisation.found
    assert grade.memorisation.nearest.statistic > 0.99
    assert "; memorisation: to " in grade.verdict


def test_a_narrow_model_is_not_called_memorisation():
    train, test = TRUTH.sample(400, seed=1), TRUTH.sample(300, seed=2)
    grade = grade_samples(at_rows(torch.zeros(1, 4), 0.3), test, train)
    assert grade.differ
    assert not grade.memorisation.found
    assert "; samples vary too little, and memorise nothing: to " in grade.verdict


def test_an_overfitted_model_leans_towards_training_rows():
    train, test = TRUTH.sample(200, seed=1), TRUTH.sample(200, seed=2)
    model = Mixture(x=(4,), components=10)
    fit(model, train)
    result = grade_samples(model, test, train).memorisation
    assert not result.found
    assert 0.1 < result.excess < 0.5
    assert result.verdict.startswith("samples lean towards training rows, as of an overfitted")


def test_a_shifted_model_is_told_apart():
    grade = grade_samples(TRUTH, TRUTH.sample(300, seed=2) + 0.7)
    assert grade.mmd.p_value < 0.01
    assert grade.classifier.p_value < 0.01
    assert grade.verdict.startswith("samples can be told from 300 test rows (MMD p = 0.005, ")


def test_units_do_not_matter():
    units = torch.tensor([1e-6, 1.0, 1e4, 1.0], dtype=torch.float64)
    x = torch.randn(600, 4, dtype=torch.float64)
    model = Transformed(base=Mixture(x=(4,)), transform="standardize").double()
    fit(model, x * units + 3)
    assert not grade_samples(model, (x * units + 3)[:300]).differ
    wrong = x * torch.tensor([2.0, 1.0, 1.0, 1.0]) * units + 3
    assert grade_samples(model, wrong[:300]).mmd.p_value < 0.01


TABLE = {
    "columns": {"age": "normal", "city": {"kind": "categorical", "classes": 4}, "n": "poisson"}
}


def table(rows, tied):
    """An age, a city, a number of visits, which may depend on the city."""
    city = torch.randint(4, (rows,))
    visits = torch.poisson((4.0 * (city % 2) + 1) if tied else torch.full((rows,), 3.0))
    return torch.stack([40 + 10 * torch.randn(rows), city.float(), visits], -1)


def test_classes_and_counts_of_a_table_are_compared():
    model = Mixture(x=(3,), components=4, family={"kind": "columns", **TABLE})
    x = table(1500, tied=True)
    fit(model, x[:900], restarts=3)
    grade = grade_samples(model, x[900:], x[:900])
    assert not grade.memorisation.found
    assert grade.classifier.statistic < 0.57
    single = Mixture(x=(3,), components=1, family={"kind": "columns", **TABLE})
    fit(single, x[:900])
    assert grade_samples(single, x[900:]).classifier.p_value < 1e-3


def test_classes_are_one_hot_whatever_an_embedding_learned():
    model = VAE(x=(3,), z=(1,), likelihood={"kind": "columns", "embedding": 1, **TABLE})
    x = torch.tensor([[30.0, 2.0, 0.0], [30.0, 3.0, 1.0]])
    rows = module._seen(model, x, x)
    assert rows.shape == (2, 6)
    assert torch.equal(rows[:, 1:5], torch.eye(4)[[2, 3]])
    assert torch.allclose(rows[:, 5], torch.tensor([0.0, math.log(2)]))


def test_rare_ones_do_not_outweigh_the_rest():
    x = torch.zeros(1000, 2)
    x[0, 0] = 1
    x[:, 1] = torch.randn(1000)
    rows = module._standard(x, x)
    assert rows[:, 0].std() < 0.1
    assert rows[:, 1].std().item() == pytest.approx(1, abs=1e-3)
    image = torch.rand(100, 1, 3, 3) * torch.arange(9.0).view(1, 3, 3)
    assert module._standard(image, image).var(0).mean().item() == pytest.approx(1, abs=0.02)
    constant = module._standard(torch.tensor([[5.0], [5.5], [math.inf]]), torch.full((9, 1), 5.0))
    assert constant.flatten().tolist() == [0.0, 0.5, module.FAR]


def test_the_units_are_those_of_both_sets():
    """Of 300 true hypotheses 15 are below 5 %, above 35 with a probability of 1e-6.

    By the units of the test rows alone more than 60 are.
    """
    found = 0
    for seed in range(300):
        a, b = torch.randn(20, 200), torch.randn(20, 200)
        units = module._reference(b, a)
        a, b = (module._standard(rows, units) for rows in (a, b))
        found += mmd(a, b, permutations=99, seed=seed).p_value <= 0.05
    assert found <= 35


def test_samples_out_of_range_do_not_set_the_units():
    own, drawn = torch.randn(100, 1), torch.full((100, 1), math.inf)
    reference = module._reference(own, drawn)
    assert reference.max() == 2 * own.max() - own.min()
    assert module._standard(drawn, reference).isfinite().all()


def linear(x, context):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(2 * context, 1.0).to_event(1), obs=x)


def deaf(x, context):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(torch.zeros_like(x), 5**0.5).to_event(1), obs=x)


@pytest.mark.parametrize(("program", "differ"), [(linear, False), (deaf, True)])
def test_what_rows_are_given_is_part_of_what_is_compared(program, differ):
    """Both have the same p(x) = N(0, 5), and one of them the right p(x | c)."""
    c = torch.randn(800, 1)
    rows = Batch(2 * c + torch.randn(800, 1), c)
    grade = grade_samples(Pair(model=program, guide=lambda x, c: None), rows)
    assert grade.rows == 400
    assert grade.differ == differ
    assert "given the context (MMD" in grade.verdict


def test_no_test_row_lends_what_it_is_given_and_is_compared():
    model = Pair(model=linear, guide=lambda x, c: None)
    rows = Batch(torch.arange(101.0)[:, None], torch.zeros(101, 1))
    model.start(rows)
    own, others = (set(part.x.flatten().tolist()) for part in module._divided(model, rows, 1000))
    assert len(own) == len(others) == 50
    assert not own & others


def test_a_conditional_vae_and_size_factors_are_sampled_in_place_of_test_rows():
    c = torch.randn(100, 2)
    vae = ConditionalVAE(x=(3,), z=(1,), context=(2,), likelihood="shared-normal")
    assert grade_samples(vae, Batch(torch.randn(100, 3), c), Batch(torch.randn(90, 3), c[:90]))
    counts = Mixture(x=(3,), components=1, family={"kind": "poisson", "exposure": "offset"})
    size = torch.tensor([1.0, 100.0]).repeat(150)
    rows = Batch(torch.poisson(size[:, None] * counts.h.exp().detach()), offset=size)
    grade = grade_samples(counts, rows)
    assert grade.rows == 150
    assert grade.given
    assert not grade.differ
    with pytest.raises(ValueError, match="test: 40 test rows are needed at least, got 30"):
        grade_samples(vae, Batch(torch.randn(30, 3), c[:30]))


def test_missing_entries_are_missing_in_samples_too():
    vae = VAE(x=(3,), z=(1,), likelihood={"kind": "fixed-normal"}, missing=True)
    x = vae.sample(800, seed=3)
    missing = torch.rand(800, 3) < torch.tensor([0.8, 0.0, 0.0])
    grade = grade_samples(vae, torch.where(missing, torch.nan, x)[:600], x[600:])
    assert grade.rows == 300
    assert not grade.differ
    wrong = torch.where(missing, torch.nan, x) * 3
    assert grade_samples(vae, wrong).differ


def test_the_model_is_as_it_was():
    model = VAE(x=(4,), z=(2,)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.bernoulli(torch.full((60, 4), 0.5))
    first, second = (grade_samples(model, x, x, dtype="float64", seed=3) for _ in range(2))
    assert first.summary() == second.summary()
    assert first.summary() != grade_samples(model, x, x, seed=4).summary()
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def broken(x):
    with pyro.plate("data", len(x), dim=-1):
        loc = torch.where(torch.arange(len(x)) % 10 == 0, torch.nan, 0.0)[:, None]
        return pyro.sample("x", dist.Normal(loc, 1.0).expand((len(x), 2)).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "test", "options", "message"),
    [
        (TRUTH, torch.randn(1, 4), {}, "test: 20 test rows are needed at least, got 1"),
        (TRUTH, torch.randn(30, 3), {}, r"rows of the data have the shape \(3,\)"),
        (
            TRUTH,
            torch.randn(30, 4),
            {"train": torch.randn(1, 4)},
            "at least 2 rows .* got 1 and 30",
        ),
        (TRUTH, torch.randn(30, 4), {"rows": 5}, "rows: .*20"),
        (TRUTH, torch.randn(30, 4), {"permutations": 10}, "permutations: .*100"),
        ("vae", torch.randn(30, 4), {}, "model: should be a model"),
        (
            Pair(model=broken, guide=lambda x: None, x=(2,)),
            torch.randn(30, 2),
            {},
            "model: 3 of 30 samples are not finite",
        ),
    ],
)
def test_what_cannot_be_graded_is_refused(model, test, options, message):
    with pytest.raises(ValueError, match=message):
        grade_samples(model, test, **options)


def test_the_page_and_the_figures():
    train, test = TRUTH.sample(100, seed=1), TRUTH.sample(50, seed=2)
    grade = grade_samples(TRUTH, test, train)
    assert [row[0] for row in grade.table().rows] == [
        "MMD^2",
        "classifier accuracy",
        "nearest row is a training row",
        "closer to training rows than a test row",
        "closer to a training row than others",
        "equal to a training row",
    ]
    assert " ".join(str(grade).split()).endswith(" ".join(grade.verdict.split()))
    summary = grade.summary()
    assert summary["mmd"]["p_value"] == grade.mmd.p_value
    assert summary["memorisation"]["nearest"]["expected"] == pytest.approx(100 / 150)
    ax = plots.memorisation(grade.memorisation)
    assert [line.get_label() for line in ax.lines] == ["samples", "test rows"]
