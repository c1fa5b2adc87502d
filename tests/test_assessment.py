"""All questions at once: answered, or left out with a reason; written, and nothing changed."""

import json
import re
from functools import cache
from typing import get_args

import pyro
import pytest
import torch
import xarray
from linear_gaussian import linear_vae

from pyrovae import Mixture, SemiSupervisedVAE, assess, assessment, fit
from pyrovae.assessment import EFFORTS, Annealed, Depth
from pyrovae.experiment import assess_run, fit_spec
from pyrovae.specs import parse

pytestmark = pytest.mark.usefixtures("little")
QUESTIONS = {
    "likelihood",
    "annealing",
    "sandwich",
    "guide",
    "latent",
    "calibration",
    "prediction",
    "samples",
}


@cache
def assessed():
    """The answers to all questions, and what was said."""
    vae, exact = linear_vae(1.3, 0.3)
    said = []
    return assess(vae, exact.sample((50,)), exact.sample((100,)), say=said.append), said


def test_every_depth_but_the_first_declares_its_effort():
    assert set(get_args(Depth)) == {"likelihood", *EFFORTS}
    efforts = [vars(EFFORTS[depth]) for depth in ("standard", "thorough")]
    assert all(efforts[0][name] < efforts[1][name] for name in efforts[0])


def test_a_page_answers_every_question_and_ends_with_the_figure():
    found, said = assessed()
    assert set(found.found) == QUESTIONS
    assert not found.left_out
    page = str(found)
    assert page.splitlines()[0] == "vae: quick evaluation"
    assert page.splitlines()[-1].startswith("log p(x) = ")
    assert "bounds: " in page
    assert "nan" not in page
    for name in QUESTIONS:
        assert found.titles[name] in page
    assert said[0].startswith("quick evaluation: about ")
    assert json.dumps(found.summary()["guide"]["verdict"]) in json.dumps(found.summary())


def test_the_first_depth_asks_for_log_p_alone():
    vae, exact = linear_vae()
    said = []
    found = assess(vae, exact.sample((50,)), depth="likelihood", say=said.append)
    assert set(found.found) == {"likelihood"}
    assert not said
    assert len(str(found).splitlines()) == 2


def test_settings_of_log_p_are_used_and_its_seed_everywhere():
    vae, exact = linear_vae(1.3, 0.3)
    x = exact.sample((50,))
    options = {"particles": 30, "rows": 7, "seed": 3}
    one, two = (assess(vae, x, settings=options) for _ in range(2))
    assert one.log_likelihood.value.shape == (7,)
    assert (one.log_likelihood.particles == 30).all()
    assert str(one) == str(two)
    assert str(assess(vae, x, settings=options | {"seed": 4})) != str(one)


def test_what_cannot_be_asked_is_left_out_with_the_reason():
    mixture = Mixture(x=(2,), components=2)
    x = torch.randn(80, 2)
    fit(mixture, x)
    found = assess(mixture, x)
    for name in ("annealing", "sandwich", "guide"):
        assert "of this model are known" in found.left_out[name]
    assert found.titles["guide"] in str(found)
    assert "left out: log p(x) and p(z | x) of this model are known" in str(found)
    assert {"likelihood", "prediction", "samples"} <= set(found.found)
    half = SemiSupervisedVAE(x=(2,), z=(1,), classes=2, likelihood="shared-normal")
    found = assess(half, x)
    assert "the latent 'y' is discrete" in found.left_out["annealing"]
    assert "latent" in found.found


def test_too_few_rows_leave_out_what_needs_more():
    vae, exact = linear_vae()
    found = assess(vae, exact.sample((1,)))
    assert "prediction" in found.left_out
    assert found.log_likelihood.value.shape == (1,)


def test_rows_that_cannot_be_are_refused_at_once():
    vae, _ = linear_vae()
    with pytest.raises(ValueError, match="rows of the data have the shape"):
        assess(vae, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="depth: unknown depth 'deep'"):
        assess(vae, torch.zeros(5, 5), depth="deep")
    with pytest.raises(ValueError, match="model: should be a model"):
        assess("vae", torch.zeros(5, 5))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, "annealing finds 1.00 ± 0.00 nats more for the same 50 rows: the bound is too low"),
        (0.0, "annealing finds the same for the same 50 rows, a difference of 0.00 ± 0.00"),
        (1.0, "annealing finds 1.00 ± 0.00 nats less for the same 50 rows: it has too few temper"),
    ],
)
def test_annealing_beside_the_bound_is_put_in_words(value, words):
    vae, exact = linear_vae()
    result = assess(vae, exact.sample((50,)), depth="likelihood").log_likelihood
    assert re.match(words, Annealed(result, result.value + value).verdict)


def test_an_assessment_is_written_whole(tmp_path):
    found, _ = assessed()
    found.write(tmp_path)
    assert (tmp_path / "evaluation.txt").read_text() == f"{found}\n"
    plots = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert plots == set(assessment.PLOTS)
    with xarray.open_datatree(tmp_path / "results.nc", engine="h5netcdf") as tree:
        assert {"posterior", "variational", "pointwise", "observed_data"} <= set(tree.children)


def test_a_model_is_as_it_was():
    vae, exact = linear_vae(1.3, 0.3)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    torch.manual_seed(5)
    x, expected = exact.sample((50,)), torch.rand(3)
    torch.manual_seed(5)
    exact.sample((50,))
    assess(vae, x)
    assert torch.equal(torch.rand(3), expected)
    assert vae.training
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert len(pyro.get_param_store()) == 0


SPEC = {
    "data": {"name": "iris", "transforms": ["standardize"]},
    "train": {"epochs": 2},
    "evaluate": {"particles": 20},
    "model": {"kind": "vae", "z": [2], "likelihood": "shared-normal"},
}


def test_a_run_keeps_what_was_found(tmp_path):
    run = fit_spec(parse(SPEC, "iris"), tmp_path / "run", force=False, say=str)
    found = assess_run(run, "quick", str)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["depth"] == "quick"
    assert set(results["evaluation"]) == QUESTIONS | {"depth"}
    assert results["log_likelihood"]["particles"] == 20
    assert results["log_likelihood"]["mean"] == pytest.approx(found.log_likelihood.mean)
    assert f"{tmp_path / 'run'}: quick evaluation" in str(found)
    assert (tmp_path / "run" / "results.nc").stat().st_size > 1000


def test_without_training_rows_there_is_no_plot_of_copies(tmp_path):
    vae, exact = linear_vae(1.3, 0.3)
    assess(vae, exact.sample((50,))).write(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {*assessment.PLOTS} - {
        "samples"
    }
