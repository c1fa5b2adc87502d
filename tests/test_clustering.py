"""Clusters of latents: they are those of q(z), and everything that is said of them is true."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import tomli_w
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyrovae import (
    VAE,
    Batch,
    Clusters,
    ConditionalVAE,
    Error,
    HierarchicalVAE,
    Mixture,
    Pair,
    SemiSupervisedVAE,
    Stochastic,
    cluster_latents,
    fit,
    load,
    open_run,
)
from pyrovae.cli import main
from pyrovae.families import Normal
from pyrovae.networks import MLP

CENTRES = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])
TURN = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, -1.0]]) / 2
NOISE = 0.3


def model(x, *rest):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ TURN.to(x).mT, 1.0).to_event(1), obs=x)


def guide(x, *rest):
    """q(z | x) = N(x W, NOISE^2): of rows x ~ N(m_k, I) q(z) is a mixture that is known."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ TURN.to(x), NOISE).to_event(1))


def groups(rows=600):
    """Rows in three groups, and the group of each."""
    k = torch.arange(rows) % 3
    return CENTRES[k] + 0.5 * torch.randn(rows, 3), k


@pytest.fixture
def pair():
    return Pair(model=model, guide=guide, x=(3,))


@pytest.fixture
def data():
    x, k = groups()
    return load(x, labels=np.array(["red", "green", "blue"])[k])


@pytest.fixture
def vae():
    return VAE(x=(3,), z=(2,), likelihood="normal", encoder=MLP(hidden=(8,)))


def test_the_mixture_is_that_of_the_aggregated_posterior(pair):
    """Three normals with 2000 rows each: SE of a mean 0.01, of a variance 0.003; 6 SE allowed."""
    x, _ = groups(6000)
    mixture = cluster_latents(pair, x, components=3, draws=1, restarts=2).mixture
    p = mixture.family(mixture.h)
    order = p.mean[:, 0].argsort()
    wanted = (CENTRES @ TURN).double()
    torch.testing.assert_close(p.mean[order], wanted[[2, 1, 0]], atol=0.06, rtol=0)
    covariance = (0.25 * TURN.mT @ TURN + NOISE**2 * torch.eye(2)).double()
    torch.testing.assert_close(p.covariance_matrix, covariance.expand(3, 2, 2), atol=0.03, rtol=0)
    torch.testing.assert_close(
        mixture.logits.softmax(-1), torch.full((3,), 1 / 3).double(), atol=0.01, rtol=0
    )


def test_separated_groups_are_found(pair, data):
    clusters = cluster_latents(pair, data, components=3)
    assert clusters.ari > 0.95
    assert clusters.nmi > 0.95
    assert clusters.probabilities.shape == (len(data.test), 3)
    np.testing.assert_allclose(clusters.probabilities.sum(-1), 1)
    assert clusters.sizes.sum() == len(data.test)
    assert (clusters.sizes == np.bincount(clusters.labels)).all()


def test_a_trained_vae_finds_them_too(data):
    vae = VAE(x=(3,), z=(2,), likelihood="shared-normal")
    fit(vae, data, epochs=15, batch_size=32, learning_rate=1e-2)
    assert cluster_latents(vae, data, components=3).ari > 0.95


def test_shuffled_labels_do_not_agree(pair, data):
    """Of 3000 permutations of these 120 rows none had an ARI above 0.07; the SD is 0.012."""
    labels = data.test.labels[torch.randperm(len(data.test))]
    shuffled = replace(data, test=data.test.replace(labels=labels))
    clusters = cluster_latents(pair, shuffled, components=3)
    assert abs(clusters.ari) < 0.1
    assert clusters.nmi < 0.2


def test_shares_are_expected_responsibilities(pair):
    """By quadrature over the guide; 2000 draws have an SE of at most 0.011, and 5 are allowed."""
    x = torch.cat([groups(60)[0], (CENTRES[:1] + CENTRES[1:2]) / 2])
    clusters = cluster_latents(pair, x, components=3, draws=2000, restarts=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * 2)
    weight = torch.cartesian_prod(*[torch.tensor(weights)] * 2).prod(-1) / (2 * torch.pi)
    for row in (0, 1, 2, -1):
        z = (x[row] @ TURN).double() + NOISE * grid
        wanted = weight.numpy() @ clusters.mixture.predict_proba(z)
        np.testing.assert_allclose(clusters.probabilities[row], wanted, atol=0.05)
    assert clusters.probabilities[-1].max() < 0.9


# The choice of the number of components


def test_the_number_is_chosen_on_validation_rows(pair, data):
    clusters = cluster_latents(pair, data, components=[1, 2, 3])
    assert clusters.mixture.components == 3 == max(clusters.tried, key=clusters.tried.get)
    assert clusters.probabilities.shape[1] == 3
    assert "3 components chosen by log q(z) on the validation rows (1: " in str(clusters)


def test_and_on_no_others(pair, data):
    between = Batch(CENTRES.mean(0).expand(20, 3))
    clusters = cluster_latents(pair, replace(data, validation=between), components=[1, 3])
    assert clusters.mixture.components == 1


def test_the_mixture_is_of_training_rows(pair, data):
    here = cluster_latents(pair, data, components=2)
    there = cluster_latents(pair, replace(data, test=Batch(data.test.x + 9)), components=2)
    assert torch.equal(here.mixture.h, there.mixture.h)


def test_one_number_needs_no_validation_rows(pair):
    x, k = groups()
    data = load(x, labels=k, validation=0.0)
    assert cluster_latents(pair, data, components=[3]).tried == {}
    with pytest.raises(Error, match=r"components: several are a choice on validation rows"):
        cluster_latents(pair, data, components=[2, 3])
    with pytest.raises(Error, match=r"components: several are a choice on validation rows"):
        cluster_latents(pair, x, components=[2, 3])


# What is left as it was


def test_nothing_is_changed_and_seeds_reproduce(vae, data):
    vae.train()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    random = torch.get_rng_state()
    found = [cluster_latents(vae, data, components=2, seed=seed) for seed in (1, 2)]
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(1)
    found.append(cluster_latents(vae, data, components=2, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert all(module.training for module in vae.modules())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    first, other, again = (clusters.probabilities for clusters in found)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dropout_is_off(data):
    noisy = VAE(x=(3,), z=(2,), likelihood="normal", encoder=MLP(hidden=(8,), dropout=0.9))
    found = [cluster_latents(noisy.train(mode), data, components=2) for mode in (True, False)]
    assert np.array_equal(*(clusters.probabilities for clusters in found))


def test_a_family_of_ones_own_is_left_for_others(vae, data):
    family = Normal()
    for _ in range(2):
        clusters = cluster_latents(vae, data, components=2, family=family)
    assert not family.assembled
    assert clusters.mixture.family.kind == "normal"


# Models and rows


def test_latents_of_any_shape_are_flattened(data):
    vae = VAE(x=(3,), z=(2, 3), likelihood="normal")
    assert cluster_latents(vae, data, components=2).mixture.event == (6,)


@pytest.mark.parametrize("site", ["z1", "z2"])
def test_one_latent_of_several_is_named(site, data):
    deep = HierarchicalVAE(x=(3,), z=(2,), layers=(Stochastic(z=(4,)),), likelihood="normal")
    clusters = cluster_latents(deep, data, components=2, site=site)
    assert clusters.mixture.event == {"z1": (4,), "z2": (2,)}[site]
    assert f"A mixture of latents {site} ~ q({site} | x)" in str(clusters)


def test_rows_keep_their_context():
    """The guide sees the context only, so it decides the cluster."""
    x, k = groups(90)
    context = CENTRES[k]
    given = ConditionalVAE(x=(3,), z=(2,), context=(3,), likelihood="normal")
    with torch.no_grad():
        for parameter in given.encoder.parameters():
            parameter.mul_(3)
    rows = Batch(0 * x, context)
    assert cluster_latents(given, rows, components=3, labels=k).ari > 0.5


def test_noise_in_training_rows_is_drawn():
    data = load("digits", transforms=[{"kind": "binarize", "stochastic": True}])
    vae = VAE(x=data.event, z=(2,), likelihood="bernoulli")
    assert len(cluster_latents(vae, data, components=2, draws=1).labels) == len(data.test)


@pytest.mark.parametrize("components", [1, 2])
def test_few_rows(components, vae):
    clusters = cluster_latents(vae, torch.randn(components, 3), components=components, draws=1)
    assert np.isfinite(clusters.probabilities).all()


def test_a_discrete_latent_is_refused(data):
    classes = VAE(x=(3,), z=(4,), prior="categorical", posterior="one-hot", likelihood="normal")
    with pytest.raises(Error, match="'z' is discrete and its states are the clusters already"):
        cluster_latents(classes, data)
    halves = SemiSupervisedVAE(x=(3,), z=(2,), classes=3, likelihood="normal")
    with pytest.raises(Error, match="'y' is discrete"):
        cluster_latents(halves, data, site="y")
    assert cluster_latents(halves, data, components=2, site="z").mixture.event == (2,)


def nothing(x):
    """No latent."""


def outside(x):
    pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("wrong", "options", "match"),
    [
        (Mixture(x=(3,)), {}, r"a mixture of rows has no continuous latents: its own predict"),
        (Pair(model=model, guide=nothing, x=(3,)), {}, "latents of the model 'pair': none"),
        (Pair(model=model, guide=outside, x=(3,)), {}, "'z' is not in a plate of the rows"),
        (HierarchicalVAE(x=(3,), z=(2,), layers=(Stochastic(z=(4,)),)), {}, "'hier.*': z2, z1$"),
        (None, {"site": "w"}, "unknown latent 'w'. Known: z"),
        (None, {"components": 0}, "components: should be a whole number from 1, or a list"),
        (None, {"components": []}, "components: should be a whole number from 1, or a list"),
        (None, {"components": [2, "3"]}, "components: should be a whole number from 1"),
        (None, {"components": 7}, "7 components need at least as many rows, got 6"),
        (None, {"family": "norml"}, "family: unknown family 'norml'. Did you mean 'normal'"),
        (None, {"family": "poisson"}, "poisson takes whole numbers"),
        (None, {"labels": [0, 1]}, r"labels: should have the shape \(6,\), .* got \(2,\)"),
        (None, {"labels": "target"}, r"labels: should have the shape \(6,\), .* got \(\)"),
        ("vae", {}, "model: should be a model"),
    ],
)
def test_what_cannot_be_clustered_is_refused(wrong, options, match, vae):
    rows = torch.zeros(6, 3)
    with pytest.raises(Error, match=match):
        cluster_latents(wrong or vae, rows, **{"components": 2, "draws": 1} | options)


def test_rows_of_another_shape_are_refused(vae):
    with pytest.raises(Error, match="rows of the data have the shape"):
        cluster_latents(vae, torch.zeros(6, 2))


# Labels


def test_only_rows_of_known_class_count(pair):
    x, k = groups(60)
    whole = cluster_latents(pair, x, components=2, labels=k)
    some = k.double().where(torch.arange(60) < 40, torch.nan)
    words = [f"class {int(c)}" if c == c else "" for c in some]
    holes = torch.where(some.isnan(), -1, some).long()
    for labels in (some, words, holes, some.numpy()):
        clusters = cluster_latents(pair, x, components=2, labels=labels)
        assert (clusters.labels == whole.labels).all()
        assert clusters.ari == adjusted_rand_score(k[:40], clusters.labels[:40])
        assert clusters.nmi == normalized_mutual_info_score(k[:40], clusters.labels[:40])
        assert "with the known classes of 40 of 60 rows" in str(clusters)
    assert "class 1 " not in str(whole)
    rows = cluster_latents(pair, Batch(x), components=2)
    assert np.isnan([rows.ari, rows.nmi]).all()


def test_labels_of_a_batch_are_taken(vae):
    x, k = groups(60)
    clusters = cluster_latents(vae, Batch(x, labels=k - 1), components=2)
    assert clusters.classes == ("0", "1")
    assert (clusters.known >= 0).sum() == 40


def test_the_table(pair, data):
    clusters = cluster_latents(pair, data, components=3)
    text = str(clusters)
    flat = " ".join(text.split())
    assert "A mixture of latents z ~ q(z | x), not of rows x" in flat
    assert "its log-density is of z and is not comparable with log p(x)" in flat
    assert f"ARI {clusters.ari:.3f}, NMI {clusters.nmi:.3f} with the known classes" in flat
    assert all(f"{name} 100%" in text for name in data.classes)
    bare = str(cluster_latents(pair, data.test.x, components=3))
    assert "ARI" not in bare
    assert "mostly" not in bare
    assert "nan" not in bare


def test_the_table_of_clusters_without_rows_or_classes():
    shares = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])
    known = np.array([1, 1, -1, 0])
    mixture = Mixture(x=(1,), components=3)
    clusters = Clusters(mixture, "z", shares, known, ("cat", "dog"), {})
    assert clusters.sizes.tolist() == [3, 1, 0]
    rows = [line.split() for line in str(clusters).splitlines()[2:5]]
    assert rows == [
        ["0", "0.333", "3", "0.83", "dog", "67%"],
        ["1", "0.333", "1", "0.80", "-"],
        ["2", "0.333", "0", "-", "-"],
    ]
    assert clusters.ari == adjusted_rand_score([1, 1, 0], [0, 0, 0])
    assert clusters.table().rows == [(0, 0, 0.9), (1, 0, 0.6), (2, 1, 0.8), (3, 0, 1.0)]


# The command


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    """Call the command line, in a folder of its own: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["pyrovae", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def write_spec(**tables):
    spec = {
        "data": {"name": "iris", "transforms": ["standardize"]},
        "train": {"epochs": 2, "batch_size": 32},
        "model": {"kind": "vae", "z": [2], "likelihood": "normal"},
    }
    Path("spec.toml").write_text(tomli_w.dumps(spec | tables))


def results():
    return json.loads(Path("runs/spec/results.json").read_text())


def test_the_command_clusters_the_test_rows_of_a_run(ask):
    write_spec()
    assert ask("fit", "spec.toml")[0] == 0
    before = results()
    code, out, err = ask("cluster", "runs/spec", "--components", 3)
    assert (code, err) == (0, "")
    assert "A mixture of latents z" in out
    assert "ARI" not in out
    assert out.endswith("saved in runs/spec/clusters.csv\n")
    after = results()
    found = after.pop("clusters_of_latents")
    assert after == before
    assert found["components"] == 3
    assert found["ari"] is None
    assert sum(found["sizes"]) == found["rows"] == 30
    with open("runs/spec/clusters.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(30))
    assert (
        np.bincount([int(row["cluster"]) for row in rows], minlength=3).tolist() == found["sizes"]
    )
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)


def test_the_command_is_the_function(ask):
    write_spec(data={"name": "iris", "transforms": ["standardize"], "labels": "target"})
    ask("fit", "spec.toml")
    words = ("--components", 2, "--components", 3, "--family", "normal", "--seed", 4)
    code, out, _ = ask("cluster", "runs/spec", *words)
    assert code == 0
    data = load("iris", transforms=["standardize"], labels="target")
    wanted = cluster_latents(
        open_run("runs/spec").model, data, components=[2, 3], family="normal", seed=4
    )
    assert out.startswith(str(wanted))
    assert results()["clusters_of_latents"]["ari"] == wanted.ari
    assert results()["clusters_of_latents"]["tried"].keys() == {"2", "3"}


def test_labels_that_the_run_did_not_declare(ask):
    write_spec()
    ask("fit", "spec.toml")
    plain = ask("cluster", "runs/spec", "--components", 3)[1]
    code, out, _ = ask("cluster", "runs/spec", "--components", 3, "--labels", "target")
    assert code == 0
    assert "with the known classes of 30 of 30 rows" in " ".join(out.split())
    assert [line.split()[:4] for line in plain.splitlines()[2:5]] == [
        line.split()[:4] for line in out.splitlines()[2:5]
    ]
    found = results()["clusters_of_latents"]
    assert found["settings"]["labels"] == "target"
    code, _, err = ask("cluster", "runs/spec", "--labels", "nope")
    assert code == 2
    assert "unknown column 'nope'" in err


def test_a_column_of_x_can_be_the_class(ask):
    """The model goes on seeing the column."""
    x, k = groups(200)
    lines = [",".join(map(str, [*row.tolist(), int(c)])) for row, c in zip(x, k, strict=True)]
    Path("rows.csv").write_text("\n".join(["a,b,c,group", *lines]))
    write_spec(data={"path": "rows.csv"})
    assert ask("fit", "spec.toml")[0] == 0
    code, out, _ = ask("cluster", "runs/spec", "--components", 2, "--labels", "group")
    assert code == 0
    assert "with the known classes of 40 of 40 rows" in " ".join(out.split())


def test_the_command_refuses_a_mixture_of_rows(ask):
    write_spec(model={"kind": "mixture", "components": 2})
    ask("fit", "spec.toml")
    code, out, err = ask("cluster", "runs/spec")
    assert (code, out) == (2, "")
    assert "a mixture of rows has no continuous latents" in err
    assert not Path("runs/spec/clusters.csv").exists()
    assert "clusters_of_latents" not in results()


def test_the_command_refuses_a_failed_run(ask):
    write_spec()
    ask("fit", "spec.toml")
    Path("runs/spec/results.json").write_text(json.dumps(results() | {"failed": "in epoch 1"}))
    code, _, err = ask("cluster", "runs/spec")
    assert code == 2
    assert "the fit in 'runs/spec' failed: in epoch 1" in err
