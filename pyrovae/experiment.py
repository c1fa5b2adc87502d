"""Experiments: from a spec to fitted, evaluated, compared and saved models.

Everything that can be refused is refused before the first step: data are loaded, every model and
every candidate of a choice is built and shown the data, and folders are looked at. Only then is
anything fitted.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from pyrovae.batch import Batch, as_batch
from pyrovae.data import Data, load
from pyrovae.errors import Error
from pyrovae.evaluate import Comparison, LogLikelihood, log_likelihood, select
from pyrovae.evaluate.comparison import ranked, refuse_incomparable, refuse_shared
from pyrovae.files import json_text, write
from pyrovae.fitting import FitError, History, check_rows, fit, refuse
from pyrovae.models import Model
from pyrovae.part import check, keywords
from pyrovae.place import destination, seeded
from pyrovae.proposal import propose, settled
from pyrovae.runs import (
    Run,
    is_run,
    open_run,
    refuse_existing,
    refuse_uncreatable,
    save,
    write_samples,
)
from pyrovae.specs import Spec, build, candidates

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """A model of a spec, ready to be fitted.

    Args:
        name: in the spec.
        table: all that the fit depends on.
        models: the candidates with what was decided for each; one where there is no choice.
        data: to fit and to judge.
    """

    name: str
    table: dict[str, Any]
    models: list[tuple[str, Model]]
    data: Data

    def fit(self, folder: Path, force: bool = False) -> Run:
        """Fit all candidates, choose on the validation rows, save.

        Raises:
            FitError: a fit failed; the last good weights are saved, with `failed` in results.json.
        """
        histories = []
        for _, model in self.models:
            try:
                train, validation = self.data.train, self.data.validation
                histories.append(fit(model, train, validation, **self.table["train"]))
            except FitError as error:
                if error.history.epochs and not folder.exists():
                    self._save(folder, model, error.history, {"failed": str(error)}, force)
                    raise FitError(f"{error}, saved in '{folder}'", error.history) from None
                raise
        best, tried = 0, []
        if len(self.models) > 1:
            options = {
                k: v for k, v in self.table["evaluate"].items() if k in ("particles", "seed")
            }
            models = [model for _, model in self.models]
            best, means = select(models, self.data.validation, **options)
            labels = (label for label, _ in self.models)
            tried = [{"choice": c, "validation": v} for c, v in zip(labels, means, strict=True)]
        results = {
            "seconds": sum(history.seconds for history in histories),
            "chosen": self.models[best][0],
            "tried": tried,
        }
        return self._save(folder, self.models[best][1], histories[best], results, force)

    def _save(
        self, folder: Path, model: Model, history: History, results: dict[str, Any], force: bool
    ) -> Run:
        spec = {key: value for key, value in self.table.items() if key != "model"}
        whole = {
            "seed": self.table["train"].get("seed", 0),
            "request": self.request(),
            "fingerprint": self.data.fingerprint,
            "parameters": model.parameter_count,
            "epochs": len(history.epochs),
            "best": history.best,
            "stopped": history.stopped,
        }
        return save(model, folder, history, spec, whole | results, force)

    def request(self) -> dict[str, Any]:
        """What the fit depends on; the evaluation does not belong to it."""
        return {key: value for key, value in self.table.items() if key != "evaluate"}


def plan(spec: Spec, data: Data) -> dict[str, Plan]:
    """Every model of a spec, built and shown the data.

    Raises:
        Error: a model that cannot be built, data that it cannot have generated, a choice without
            validation rows, models that cannot be compared.
    """
    built = {name: _candidates(spec, name, data) for name in spec.models}
    refuse_incomparable(_named(built))
    plans = {}
    for name, models in built.items():
        if len(models) > 1 and data.validation is None:
            raise Error("a choice is made on validation rows: data.validation is 0", _path(name))
        accepted = [(label, _accepted(spec, name, model, data)) for label, model in models]
        plans[name] = Plan(name, spec.table(name), accepted, data)
    ready = _named({name: item.models for name, item in plans.items()})
    refuse_incomparable(ready)
    refuse_shared(ready)
    return plans


def _settled(spec: Spec, data: Data, say: Say) -> Spec:
    """The spec with the families of all columns decided; what is proposed for them is said."""

    @functools.cache
    def proposed() -> dict[str, Any]:
        proposal = propose(data)
        say(str(proposal))
        return proposal.columns

    models = {
        name: settled(table, data.columns, proposed, _path(name))
        for name, table in spec.models.items()
    }
    return replace(spec, models=models)


def _named(models: dict[str, list[tuple[str, Model]]]) -> dict[str, Model]:
    return {f"{name} {label}".strip(): m for name, list_ in models.items() for label, m in list_}


def _path(name: str) -> str:
    return name if name == "model" else f"models.{name}"


def _candidates(spec: Spec, name: str, data: Data) -> list[tuple[str, Model]]:
    """The models that a table declares, each with what was decided for it."""
    models = []
    for label, table in candidates(spec.models[name], _path(name)):
        with seeded(spec.train[name].get("seed", 0)):
            models.append((label, build(table, data.declares, _path(name))))
    return models


def _accepted(spec: Spec, name: str, model: Model, data: Data) -> Model:
    """The model on the raw scale, after all that could be refused has been looked at."""
    settings = check(keywords(fit), spec.train[name], "train")
    try:
        with seeded(settings["seed"]):
            destination(model, settings["device"])
            model, train = data.wrap(model), as_batch(data.train)
            method, size = settings["method"] or model.method, settings["batch_size"]
            refuse(model, train, data.validation, method, size, settings["patience"])
            check_rows(model, data.test, "test")
    except Error as error:
        raise error.under(_path(name)) from None
    return model


def fit_spec(spec: Spec, folder: Path, force: bool, say: Say) -> Run:
    """Fit the one model of a spec."""
    if "model" not in spec.models:
        raise Error(
            f"'{spec.name}' has several models: use pyrovae compare, or keep one as [model]"
        )
    refuse_existing(folder, force)
    data = spec.load()
    run = plan(_settled(spec, data, say), data)["model"].fit(folder, force)
    say(
        f"{spec.models['model']['kind']}: {run.results['stopped']} "
        f"after {run.results['epochs']} epochs, {run.results['seconds']:.1f} s"
    )
    return run


def evaluate_run(
    run: Run, data: Data | None = None, settings: dict[str, Any] | None = None
) -> LogLikelihood:
    """Log p(x) of a run's test rows, which is added to its results.json.

    Args:
        run: the run.
        data: its data, where they are already loaded.
        settings: instead of the run's own [evaluate].
    """
    if "failed" in run.results:
        raise Error(f"the fit in '{run.folder}' failed: {run.results['failed']}")
    data = data or _data_of(run)
    table = run.spec.get("evaluate", {}) if settings is None else settings
    settings = check(keywords(log_likelihood), table, "evaluate")
    check_rows(run.model, data.test, "test")
    result = log_likelihood(run.model, data.test, **settings)
    how = {"data": run.spec.get("data", {}), "evaluate": table}
    run.record(log_likelihood=result.summary(), evaluated=how)
    return result


def _data_of(run: Run) -> Data:
    """The data that a run was fitted to."""
    data = load(**check(keywords(load), run.spec.get("data", {}), "data"))
    if data.fingerprint != run.results.get("fingerprint", data.fingerprint):
        raise Error(f"the data of '{run.folder}' are not those that it was fitted to", "data")
    return data


def sample_run(run: Run, rows: int, seed: int, path: Path, force: bool, say: Say) -> None:
    """Draw rows from the model of a run into a file.

    Where the data of the run have a context or size factors, new rows are drawn given those of its
    test rows, in order and, where more are asked for than there are, over again.
    """
    chosen: int | Batch = rows
    given = [name for name in ("context", "offset") if name in run.spec.get("data", {})]
    if given:
        test = _data_of(run).test
        chosen = test[torch.arange(rows) % len(test)]
    write_samples(run, chosen, seed, path, force)
    say(f"{rows} rows in {path}" + (f", given the {given[0]} of the test rows" if given else ""))


def compare_spec(spec: Spec, folder: Path, force: bool, say: Say) -> Comparison:
    """Compare the models of a spec on the test rows; finished runs of the same spec are reused."""
    _comparison_folder(folder)
    data = spec.load()
    spec = _settled(spec, data, say)
    plans = plan(spec, data)
    finished = {name: _finished(item, folder / name, force) for name, item in plans.items()}
    runs = {}
    for name, item in plans.items():
        runs[name] = finished[name] or item.fit(folder / name, force=True)
        verb = (
            "reused, its spec is unchanged"
            if finished[name]
            else f"fitted in {runs[name].results['seconds']:.1f} s"
        )
        say(f"{name}: {verb} ({folder / name})")
    results = {name: evaluate_run(run, data, spec.evaluate) for name, run in runs.items()}
    comparison = ranked(
        {name: run.model for name, run in runs.items()},
        results,
        {name: run.results["seconds"] for name, run in runs.items()},
        {name: text for name, run in runs.items() if (text := _choice(run))},
    )
    models = {name: spec.models[name] | {"train": spec.train[name]} for name in runs}
    tree = {"import": list(spec.imports), "data": spec.data, "evaluate": spec.evaluate}
    write(folder / "results.json", json_text(comparison.summary()))
    write(folder / "spec.toml", tomli_w.dumps(tree | {"models": models}))
    return comparison


def _comparison_folder(folder: Path) -> None:
    """Refuse a folder for a comparison that holds anything else."""
    if is_run(folder):
        raise Error(f"'{folder}' is the run of one model: name another folder with --out")
    refuse_uncreatable(folder)
    if not folder.exists():
        return
    written = {"results.json"} | ({"spec.toml"} if (folder / "results.json").exists() else set())
    if others := [p for p in sorted(folder.iterdir()) if p.name not in written and not is_run(p)]:
        raise Error(f"'{folder}' holds '{others[0].name}', no run: name another folder with --out")


def _choice(run: Run) -> str:
    tried = ", ".join(f"{t['choice']}: {t['validation']:.2f}" for t in run.results["tried"])
    return (
        f"{run.results['chosen']} chosen by log p(x) on the validation rows ({tried})"
        if tried
        else ""
    )


def _finished(item: Plan, folder: Path, force: bool) -> Run | None:
    """The run of an unchanged plan, if there is one.

    Raises:
        Error: a run of something else is in the way.
    """
    if force or not folder.exists():
        return None
    run = open_run(folder)
    if "failed" in run.results:
        return None
    changed = sorted(_differences(run.results.get("request"), item.request()))
    if run.results.get("fingerprint") != item.data.fingerprint:
        changed.append("the data themselves")
    if changed:
        raise Error(
            f"'{folder}' was fitted with another spec ({'; '.join(changed)}): "
            "fit again with --force, or name another folder with --out"
        )
    return run


def _differences(old: Any, new: Any, path: str = "") -> set[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        below = ((key, f"{path}.{key}" if path else key) for key in old.keys() | new.keys())
        return set().union(
            *(_differences(old.get(key), new.get(key), step) for key, step in below)
        )
    return set() if old == new else {f"{path}: {_shown(old)} is now {_shown(new)}"}


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
