"""README, docs and examples run as they stand, only shorter; the tables of members are current."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyro
import pytest

from pyrovae import catalogue, cli
from pyrovae.catalogue import roles
from pyrovae.fitting import fit
from pyrovae.part import check, keywords
from pyrovae.schedules import Now
from pyrovae.specs import build, parse, read_spec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))
PAPERS = [p for p in EXAMPLES if p.parent.name == "papers" and not p.stem.endswith("-quick")]
pytestmark = pytest.mark.usefixtures("little")
SHORT = ["--set", "train.epochs=2", "--set", "evaluate.particles=30"]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def execute(text, name):
    """Run the Python of a document, in one piece, with few epochs and few draws."""
    code = re.sub(r"\bepochs=\d+", "epochs=2", "\n".join(blocks("python", text)))
    code = re.sub(r"\bparticles=\d+", "particles=20", code)
    code = re.sub(r"\b(temperatures|draws)=\d+", r"\1=5", code)
    exec(compile(code, name, "exec"), {"__name__": name})


@pytest.fixture
def no_new_members():
    """The members of every role are afterwards the ones that they were."""
    kept = {role: dict(role.members) for role in roles().values()}
    yield
    sys.modules.pop("custom_prior", None)
    for role, members in kept.items():
        role.members.clear()
        role.members.update(members)


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pyrovae", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


@pytest.mark.usefixtures("no_new_members")
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    execute(README, "readme")
    printed = capsys.readouterr().out
    for piece in ("vamp prior", "exact", "lower bound", "Wide(scale=3.0)", "log p(x) ="):
        assert piece in printed


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.stem)
@pytest.mark.usefixtures("no_new_members")
def test_the_python_of_the_docs_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(path.read_text("utf-8"), path.stem.replace("-", "_"))


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.stem)
def test_the_specs_of_the_docs_are_valid(path):
    for table in map(tomllib.loads, blocks("toml", path.read_text("utf-8"))):
        assert "import" in table or parse(table, path.stem).models


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [p for p in DOCS if p.stem != "own-parts"], ids=lambda p: p.stem)
def test_the_tables_of_the_docs_name_members_that_there_are(path):
    known = {kind for role in roles().values() for kind in role.members}
    for row in re.findall(r"^\|.*?\|(.*?)\|", path.read_text("utf-8"), re.MULTILINE):
        assert set(re.findall(r"`([a-z-]+)`", row)) <= known


def test_the_table_of_members_is_up_to_date():
    assert catalogue.filled(README) == README, "README.md is out of date: run make docs"


def own_members():
    return [
        member
        for _, role in sorted(roles().items())
        for _, member in sorted(role.members.items())
        if member.__module__.startswith("pyrovae.")
    ]


@pytest.mark.parametrize("member", own_members(), ids=lambda m: m.kind)
def test_references_are_in_the_form_that_the_table_reads(member):
    assert not catalogue.malformed(member.__doc__)


def test_a_reference_is_read_and_what_is_none_is_not():
    doc = """A thing, p(x | h).

    It starts somewhere. Deep Things, Again: A Note (Aa, Bö &
    de Cc, 2016, https://arxiv.org/abs/1611.02648). More words (of 2048 units).

    Args:
        floor: small. Floors (Dd et al., 2001).
    """
    (paper,) = catalogue.references(doc)
    assert (paper.title, paper.authors) == ("Deep Things, Again: A Note", "Aa, Bö & de Cc")
    assert (paper.year, paper.url) == ("2016", "https://arxiv.org/abs/1611.02648")
    assert not catalogue.malformed(doc)
    for wrong in (
        "see elsewhere (Deep Things, Aa & Bb, 2016).",
        "as in Deep Things (Aa & Bb, 2016).",
        "Deep Things (Aa & Bb, 2016, arXiv:1611.02648).",
        "Deep Things (Aa & Bb, 2016), among others.",
    ):
        assert catalogue.malformed(wrong) == [wrong]
        assert not catalogue.references(wrong)


COUNTED = """
import importlib, pkgutil
import pyrovae
from pyrovae.catalogue import roles
from pyrovae.evaluate import freed

def members():
    return {(name, kind) for name, role in roles().items() for kind in role.members}

known = members()
for module in pkgutil.walk_packages(pyrovae.__path__, "pyrovae."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert members() == known, members() - known
"""


def test_the_catalogue_knows_the_members_of_all_modules():
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    (spec,) = blocks("toml")
    monkeypatch.chdir(tmp_path)
    Path("wines.toml").write_text(spec)
    (lines,) = blocks("sh")
    for line in lines.strip().splitlines():
        words = line.split("#")[0].split()
        assert words[0] == "pyrovae"
        command(monkeypatch, *words[1:], *(SHORT if words[1] == "compare" else ()))
    printed = capsys.readouterr().out
    assert "vae-vamp" in printed
    assert (tmp_path / "runs/wines/vae/samples.npy").exists()


def test_the_readme_names_the_files_that_there_are():
    layout = README.split("## How the code is laid out")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+(?:\.py|/))`", layout))
    files = {p.name for p in (ROOT / "pyrovae").glob("*.py") if not p.name.startswith("__")}
    folders = {f"{p.parent.name}/" for p in (ROOT / "pyrovae").glob("*/__init__.py")}
    assert named == files | folders


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
@pytest.mark.usefixtures("no_new_members")
def test_every_example_spec_is_valid(path):
    spec = read_spec(path)
    assert spec.models
    assert parse(tomllib.loads(path.read_text()), path.stem, folder=path.parent)
    if spec.data.get("name") == "mnist":
        for name, table in spec.models.items():
            assert build(table, {"x": (1, 28, 28)}, name).parameter_count


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_the_quick_form_of_a_paper_fits_the_same_models_to_the_same_data(path):
    quick_path = path.with_name(f"{path.stem}-quick.toml")
    whole, quick = read_spec(path), read_spec(quick_path)
    assert quick.data == whole.data
    assert quick.models.items() <= whole.models.items()
    for name, train in quick.train.items():
        assert train["epochs"] < whole.train[name]["epochs"]
        assert train["batch_size"] > whole.train[name]["batch_size"]
    assert "# Truncated: " in quick_path.read_text()


def test_the_learning_rates_of_iwae_2016_are_those_of_the_paper():
    spec = read_spec(ROOT / "examples/papers/iwae-2016.toml")
    for train in spec.train.values():
        rate = check(keywords(fit), train, "train")["learning_rate"]
        begins = 0
        for i in range(8):
            for moment in (begins, begins + 3**i - 1e-9):
                assert rate(Now(moment)) == pytest.approx(1e-3 * 10 ** (-i / 7), rel=1e-6)
            begins += 3**i
        assert train["epochs"] == begins == 3280


@pytest.mark.parametrize("name", ["digits", "wine", "custom_prior"])
@pytest.mark.usefixtures("no_new_members")
def test_the_example_comparisons_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    sys.modules.pop("custom_prior", None)
    command(monkeypatch, "compare", f"examples/{name}.toml", *SHORT)
    assert "from the best" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["custom_prior", "plain_pyro"])
@pytest.mark.usefixtures("no_new_members")
def test_the_example_scripts_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "examples" / f"{name}.py").read_text()
    Path("script.py").write_text(re.sub(r"epochs=\d+", "epochs=2", code))
    with pyro.get_param_store().scope():
        runpy.run_path("script.py", run_name="__main__")
    assert "from the best" in capsys.readouterr().out


def test_a_users_prior_takes_fifteen_lines_at_most():
    code = (ROOT / "examples/custom_prior.py").read_text()
    body = code.split("class CorrelatedNormal(Prior):")[1].split("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) + 1 <= 15
