"""README and examples run as they stand, only shorter."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pyrovae import cli
from pyrovae.catalogue import roles
from pyrovae.specs import parse, read_spec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SHORT = ["--set", "train.epochs=2", "--set", "evaluate.particles=30"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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
    code = re.sub(r"epochs=\d+", "epochs=2", "\n".join(blocks("python")))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    for piece in ("vamp prior", "exact", "lower bound", "Wide(scale=3.0)", "log p(x) ="):
        assert piece in printed


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


def test_the_readme_names_the_files_and_examples_that_there_are():
    layout = README.split("## How the code is laid out")[1]
    assert set(re.findall(r"`(\w+)\.py`", layout)) <= {
        p.stem for p in (ROOT / "pyrovae").glob("*.py")
    }
    for name in re.findall(r"\(examples/([\w.]+)\)", README):
        assert (ROOT / "examples" / name).exists()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.stem)
@pytest.mark.usefixtures("no_new_members")
def test_every_example_spec_is_valid(path):
    assert read_spec(path).models
    assert parse(tomllib.loads(path.read_text()), path.stem, folder=path.parent)


@pytest.mark.parametrize("name", ["digits", "wine", "custom_prior"])
@pytest.mark.usefixtures("no_new_members")
def test_the_example_comparisons_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    sys.modules.pop("custom_prior", None)
    command(monkeypatch, "compare", f"examples/{name}.toml", *SHORT)
    assert "from the best" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["custom_prior", "plain_pyro"])
def test_the_example_scripts_run(name, tmp_path):
    code = (ROOT / "examples" / f"{name}.py").read_text()
    (tmp_path / "script.py").write_text(re.sub(r"epochs=\d+", "epochs=2", code))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "from the best" in done.stdout


def test_a_users_prior_takes_fifteen_lines_at_most():
    code = (ROOT / "examples/custom_prior.py").read_text()
    body = code.split("class CorrelatedNormal(Prior):")[1].split("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) + 1 <= 15
