"""The shape of the code: imports point downwards, files are short, nothing heavy comes early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyrovae"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    ("errors", "files", "formulas", "place", "plots", "products", "progress", "versions"),
    ("part", "batch", "named", "distributions", "traces"),
    ("transforms", "stored", "networks", "refinements", "schedules"),
    ("families",),
    ("priors",),
    ("models",),
    ("columns", "sources", "conditions"),
    ("data", "proposal"),
    ("graphs", "optimizers", "ranks"),
    ("launch",),
    ("objectives", "optim", "precision"),
    ("compile",),
    ("evaluate", "report", "arviz"),
    ("inference",),
    ("checkpoints", "history", "logs", "refusals"),
    ("fitting",),
    ("runs", "catalogue", "refitting", "clustering"),
    ("variants", "assessment"),
    ("spaces",),
    ("specs",),
    ("plans", "schema"),
    ("parallel",),
    ("remote",),
    ("fits",),
    ("search",),
    ("experiment",),
    ("cli",),
    ("__main__",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """The layers that a file imports at its top or inside functions, types aside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyrovae."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "pyrovae":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("pyrovae."))


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name != "__init__.py"], ids=lambda p: p.stem
)
def test_imports_point_downwards(path):
    own = layer(path)
    for other in imported(path):
        assert other == own or LEVEL[other] <= LEVEL[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_open_with_their_theory(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


LOADED = """
import sys
{code}
heavy = {{"torch", "sklearn", "matplotlib", "arviz_stats", "pandas", "xarray", "zuko"}}
heavy |= {{"tensorboard", "wandb", "mlflow"}}
print(*sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import pyrovae, pyrovae.cli", set()),
        (
            "import pyrovae; pyrovae.VAE, pyrovae.fit, pyrovae.compare, pyrovae.load\n"
            "import pyrovae.experiment",
            {"torch"},
        ),
    ],
)
def test_nothing_heavy_is_imported_early(code, allowed):
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(code=code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= allowed
