"""The command line: each command is a thin layer over a function, imported when it is needed."""

import functools
import sys
from collections.abc import Callable
from enum import StrEnum
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pyrovae.errors import Error, Interrupted

app = typer.Typer(
    help="Variational autoencoders as probabilistic models: fit, evaluate, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SpecFile = Annotated[
    Path, typer.Argument(metavar="SPEC", help="A spec file, TOML.", show_default=False)
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change an entry of the spec; can be repeated."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run folder; runs/NAME unless given."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace runs that exist; compare fits all models."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import a module with parts of your own."),
]

Depth = Literal["likelihood", "quick", "standard", "thorough"]
On = Literal["processes", "ray", "optuna"]
Form = StrEnum("Form", ["table", "markdown", "latex", "csv", "json"])
FORMS: dict[Form, Callable[[Any], str]] = {
    Form.table: str,
    Form.markdown: methodcaller("to_markdown"),
    Form.latex: methodcaller("to_latex"),
    Form.csv: methodcaller("to_csv"),
    Form.json: methodcaller("to_json"),
}


@app.command()
def fit(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="A spec file, TOML.")
    ] = None,
    changes: Changes = None,
    out: Out = None,
    force: Force = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the fit in this folder, if it is begun."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many take the steps of the fit together.")
    ] = 1,
) -> None:
    """Fit the model of a spec and save the run; a fit that was stopped goes on with --resume."""
    from pyrovae import experiment
    from pyrovae.specs import read_spec

    asked = read_spec(spec, changes or ()) if spec else None
    if processes > 1 and (ours := asked or (experiment.spec_of(resume) if resume else None)):
        from pyrovae.launch import launch

        experiment.refuse_processes(ours, processes)
        sys.exit(launch(_without(sys.argv[1:], "--processes"), processes))
    if resume:
        if out or force or (changes and not spec):
            raise Error("--resume goes on in its own folder with its own spec: name no other")
        experiment.resume(resume, asked, typer.echo)
    elif asked:
        experiment.fit_spec(asked, out or Path("runs") / asked.name, force, typer.echo)
    else:
        raise Error("name a spec file, or a folder to go on with: pyrovae fit --resume RUN")


@app.command()
def evaluate(
    run: RunFolder,
    depth: Annotated[
        Depth, typer.Option(help="How much is asked: log p(x) alone, or all there is.")
    ] = "quick",
    changes: Changes = None,
    imports: Imports = None,
) -> None:
    """Ask how good a run is, on its test rows; the last line has log p(x)."""
    from pyrovae.experiment import assess_run
    from pyrovae.runs import open_run
    from pyrovae.specs import changed, import_modules

    import_modules(imports or (), Path())
    found = changed(open_run(run), changes or ())
    typer.echo(str(assess_run(found, depth, functools.partial(typer.echo, err=True))))


@app.command()
def compare(
    spec: SpecFile,
    changes: Changes = None,
    out: Out = None,
    force: Force = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How often to fit each model, as in the spec.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many fits at a time.")] = 1,
    on: Annotated[
        On,
        typer.Option(help="Here, or on a Ray cluster; optuna insists on a [search]."),
    ] = "processes",
    form: Annotated[
        Form,
        typer.Option("--format", help="What to print; other than the table, it stands alone."),
    ] = Form.table,
) -> None:
    """Fit the models of a spec, reusing finished runs, and compare them on the test rows."""
    from pyrovae.experiment import compare_spec
    from pyrovae.specs import read_spec

    asked = read_spec(spec, [*(changes or ()), *([f"seeds={seeds}"] if seeds else [])])
    folder = out or Path("runs") / spec.stem
    say = functools.partial(typer.echo, err=form is not Form.table)
    comparison = compare_spec(asked, folder, force, say, processes, on)
    typer.echo(FORMS[form](comparison).rstrip("\n"))
    say(f"saved in {folder}")


@app.command()
def sample(
    run: RunFolder,
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="npy, csv, or png for images; RUN/samples.npy unless given.",
        ),
    ] = None,
    force: Force = False,
    imports: Imports = None,
) -> None:
    """Draw new rows from the model of a run, given what its test rows are, if anything."""
    from pyrovae.experiment import sample_run
    from pyrovae.runs import open_run
    from pyrovae.specs import import_modules

    import_modules(imports or (), Path())
    path = out or run / "samples.npy"
    sample_run(open_run(run), rows, seed, path, force, typer.echo)


@app.command()
def cluster(
    run: RunFolder,
    components: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="How many, 10 unless given; repeated, the validation rows choose."
        ),
    ] = None,
    family: Annotated[str, typer.Option(help="Of the clusters.")] = "multivariate-normal",
    site: Annotated[str | None, typer.Option(help="The latent, where there are several.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Classes to compare with; those of the run's data."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and of EM.")] = 0,
    changes: Changes = None,
    imports: Imports = None,
) -> None:
    """Cluster the test rows of a run by their latents: a mixture of z, not of rows."""
    from pyrovae.experiment import cluster_run
    from pyrovae.runs import open_run
    from pyrovae.specs import changed, import_modules

    import_modules(imports or (), Path())
    found = changed(open_run(run), changes or ())
    clusters = cluster_run(
        found, labels, components=components or [10], family=family, site=site, seed=seed
    )
    typer.echo(f"{clusters}\nsaved in {run / 'clusters.csv'}")


@app.command(name="list")
def list_members(
    role: Annotated[str | None, typer.Argument(metavar="[ROLE]", help="One role only.")] = None,
) -> None:
    """List the members of each role: summary, fields, defaults."""
    from rich.console import Console

    from pyrovae.catalogue import catalogue

    Console(width=None if sys.stdout.isatty() else 120).print(catalogue(role))


@app.command()
def schema() -> None:
    """Print the JSON schema of spec files, for editors."""
    import json

    from pyrovae import schema

    typer.echo(json.dumps(schema.schema(), indent=2))


def _without(words: list[str], option: str) -> list[str]:
    """The words of a command line without an option and its value."""
    kept = iter(word for word in words if not word.startswith(f"{option}="))
    return [word for word in kept if word != option or next(kept, None) is None]


def main() -> None:
    """The entry point: mistakes of the user end in one sentence and exit code 2."""
    try:
        app()
    except Error as error:
        typer.echo(f"pyrovae: {error}", err=True)
        sys.exit(2)
    except Interrupted as stop:
        typer.echo(f"pyrovae: {stop}", err=True)
        sys.exit(stop.code)
