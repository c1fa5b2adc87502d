"""Experiments: from a spec to fitted, evaluated, compared and saved models.

Everything that can be refused is refused before the first step: data are loaded, every model and
every candidate of a choice is built and shown the data, and folders are looked at. Only then is
anything fitted. Finished runs of the same spec are reused, so that a comparison that was stopped
goes on with what is missing.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import tomli_w
import torch

from pyrovae.assessment import Assessment, Depth, assess
from pyrovae.batch import Batch
from pyrovae.clustering import Clusters, class_names, cluster_latents
from pyrovae.data import Data, load
from pyrovae.errors import Error
from pyrovae.evaluate import Comparison, LogLikelihood, log_likelihood, select
from pyrovae.evaluate.comparison import ranked
from pyrovae.files import write
from pyrovae.fits import PLACES, Say, carried_out, runs_of
from pyrovae.models import Model
from pyrovae.part import check, keywords
from pyrovae.plans import Plan, planned, plans_of, refuse_plans
from pyrovae.proposal import propose, settled
from pyrovae.ranks import joined
from pyrovae.ranks import refuse as refuse_ranks
from pyrovae.refusals import check_rows
from pyrovae.report import FILES, write_report
from pyrovae.runs import (
    Run,
    begun,
    is_run,
    is_unfinished,
    open_run,
    refuse_existing,
    refuse_uncreatable,
    start_over,
    write_samples,
)
from pyrovae.search import Trials, best, searched, table, verdict
from pyrovae.specs import SEARCH, Spec, parse


def _settling(data: Data, say: Say) -> Callable[[Spec], Spec]:
    """Decides the families of all columns of a spec; what is proposed for them is said once."""

    @functools.cache
    def proposed() -> dict[str, Any]:
        proposal = propose(data)
        say(str(proposal))
        return proposal.columns

    def settle(spec: Spec) -> Spec:
        models = {
            name: settled(table, data.columns, proposed, spec.paths[name])
            for name, table in spec.models.items()
        }
        return replace(spec, models=models)

    return settle


def fit_spec(spec: Spec, folder: Path, force: bool, say: Say) -> Run:
    """Fit the one model of a spec."""
    refuse_existing(folder, force)
    return _fit(spec, folder, force, say)


def resume(folder: Path, spec: Spec | None, say: Say) -> Run:
    """Go on with a fit that was stopped; one that is finished stays as it is.

    Args:
        folder: of the run.
        spec: what was asked for, if it is to be compared, or may have to be begun.
        say: told what happens.

    Raises:
        Error: there is nothing to go on with; the spec is not the one that was begun with.
    """
    if is_run(folder) and not is_unfinished(folder):
        say(f"'{folder}' is finished")
        return open_run(folder)
    return _fit(spec or spec_of(folder), folder, False, say)


def spec_of(folder: Path) -> Spec:
    """The spec of a fit that is not finished.

    Raises:
        Error: there is none.
    """
    if not is_unfinished(folder):
        raise Error(f"'{folder}' holds no fit to go on with")
    asked = begun(folder)
    modules = Path(asked["modules"]) if asked["modules"] else None
    return parse(asked["table"], folder.name, (), modules)


def refuse_processes(spec: Spec, processes: int) -> None:
    """Refuse more processes than there are rows for, before any of them is begun."""
    for train in spec.train.values():
        refuse_ranks(processes, len(spec.load().train), train.get("batch_size", 128))


def _fit(spec: Spec, folder: Path, force: bool, say: Say) -> Run:
    if "model" not in spec.models or spec.seeds > 1:
        what = "several seeds" if "model" in spec.models else "several models"
        raise Error(f"'{spec.name}' has {what}: use pyrovae compare, or keep one as [model]")
    if spec.search:
        raise Error(f"'{spec.name}' has a [search]: use pyrovae compare, or leave it out")
    with joined(spec.train["model"].get("device")) as world:
        heard = say if world.first else _unheard
        data = spec.load()
        spec = _settling(data, heard)(spec)
        plan = Plan("model", "model", spec.table("model"), folder, data, spec.folder)
        refuse_plans({"model": [plan]})
        if force and world.first:
            start_over(folder)
        run = plan.fit(force, world)
        heard(
            f"{spec.models['model']['kind']}: {run.results['stopped']} "
            f"after {run.results['epochs']} epochs, {run.results['seconds']:.1f} s"
        )
        heard(f"saved in {run.folder}")
    return run


def _unheard(sentence: str) -> None:
    """The first of several processes speaks for all."""


def evaluate_run(
    run: Run, data: Data | None = None, settings: dict[str, Any] | None = None
) -> LogLikelihood:
    """Log p(x) of a run's test rows, which is added to its results.json.

    Args:
        run: the run.
        data: its data, where they are already loaded.
        settings: instead of the run's own [evaluate].
    """
    _refuse_failed(run)
    data = data or data_of(run)
    table = run.spec.get("evaluate", {}) if settings is None else settings
    settings = check(keywords(log_likelihood), table, "evaluate")
    check_rows(run.model, data.test, "test")
    result = log_likelihood(run.model, data.test, **settings)
    _record(run, result, table)
    return result


def _record(run: Run, result: LogLikelihood, settings: dict[str, Any]) -> None:
    how = {"data": run.spec.get("data", {}), "evaluate": settings}
    run.record(log_likelihood=result.summary(), evaluated=how)


def assess_run(run: Run, depth: Depth, say: Say) -> Assessment:
    """All that a depth asks of a run, on its test rows; written to the folder of the run.

    Args:
        run: the run.
        depth: how deeply.
        say: told how long it will take.
    """
    _refuse_failed(run)
    data, table = data_of(run), run.spec.get("evaluate", {})
    settings = check(keywords(log_likelihood), table, "evaluate")
    check_rows(run.model, data.test, "test")
    found = assess(
        run.model,
        data.test,
        data.train,
        depth=depth,
        settings=settings,
        title=str(run.folder),
        say=say,
    )
    _record(run, found.log_likelihood, table)
    if depth != "likelihood":
        found.write(run.folder)
        run.record(evaluation=found.summary())
    return found


def cluster_run(run: Run, labels: str | None = None, **settings: Any) -> Clusters:
    """Clusters of the latents of a run's test rows, written to clusters.csv and results.json.

    Args:
        run: the run.
        labels: the column of the classes to compare with; the labels of the run unless given.
        settings: of `cluster_latents`.
    """
    _refuse_failed(run)
    data, known = data_of(run), None
    if labels is not None:
        table = run.spec.get("data", {}) | {"labels": labels}
        other = load(**check(keywords(load), table, "data"))
        known = class_names(other.test, other.classes)
    clusters = cluster_latents(run.model, data, labels=known, **settings)
    write(run.folder / "clusters.csv", clusters.table().csv())
    asked = {"settings": settings | {"labels": labels}}
    run.record(clusters_of_latents=clusters.summary() | asked)
    return clusters


def _refuse_failed(run: Run) -> None:
    if "failed" in run.results:
        raise Error(f"the fit in '{run.folder}' failed: {run.results['failed']}")


def data_of(run: Run) -> Data:
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
        test = data_of(run).test
        chosen = test[torch.arange(rows) % len(test)]
    write_samples(run, chosen, seed, path, force)
    say(f"{rows} rows in {path}" + (f", given the {given[0]} of the test rows" if given else ""))


def compare_spec(
    spec: Spec,
    folder: Path,
    force: bool,
    say: Say,
    processes: int = 1,
    on: str = "processes",
) -> Comparison:
    """Compare the models of a spec on the test rows; finished runs of the same spec are reused.

    Args:
        spec: of one or several models.
        folder: for the comparison, with a folder for each run.
        force: fit again what is finished.
        say: told what happens.
        processes: how many fits at a time, each in a process of its own unless it is one.
        on: where fits run, one of `PLACES`; "optuna" is "processes" for a spec with a search.

    Raises:
        Error: nothing was fitted, if something can be refused; or all was that can be.
    """
    _comparison_folder(folder)
    if on == "optuna" and not spec.search:
        raise Error(f"'{spec.name}' has no [search] for Optuna: add one, or leave --on out")
    data = spec.load()
    settle = _settling(data, say)
    if spec.search and data.validation is None:
        raise Error("a search is judged by validation rows: data.validation is 0", "search")
    planned(settle(spec.at(spec.probes())), data, folder)
    with ExitStack() as stack:
        begun = PLACES[on](min(processes, spec.width), spec.folder)
        fits = carried_out(functools.cache(lambda: stack.enter_context(begun)), force, say)

        def trial_runs(points: Spec) -> dict[str, Run | Error]:
            plans = plans_of(replace(settle(points), seeds=1), data, folder)
            found = fits([plan for (plan,) in plans.values()])
            return {name: found[plan.folder] for name, (plan,) in plans.items()}

        judge = functools.partial(_validated, data=data, settings=spec.evaluate)
        trials = searched(spec, trial_runs, judge, say) if spec.search else {}
        decided = spec.at({name: [best(tried).point] for name, tried in trials.items()})
        plans = plans_of(settle(decided), data, folder)
        runs = runs_of(fits([plan for of_seeds in plans.values() for plan in of_seeds]), plans)
    comparison = ranked(
        {name: [run.model for run in fits] for name, fits in runs.items()},
        {
            name: [evaluate_run(run, data, _asked(run.model, spec.evaluate)) for run in fits]
            for name, fits in runs.items()
        },
        {name: fmean(run.results["seconds"] for run in fits) for name, fits in runs.items()},
        _chosen(runs, trials),
    )
    write_report(comparison, folder)
    if trials:
        write(folder / SEARCH, table(trials).csv())
    write(folder / "spec.toml", tomli_w.dumps(settle(spec).whole))
    return comparison


def _validated(run: Run, data: Data, settings: dict[str, Any]) -> float:
    """The mean log p(x) of the validation rows, which is added to the results of the run."""
    if tried := run.results["tried"]:
        return max(candidate["validation"] for candidate in tried)
    options = {k: v for k, v in settings.items() if k in ("particles", "method", "seed")}
    known = run.results.get("validated", {})
    if known.get("evaluate") != options:
        _, (mean,) = select([run.model], data.validation, **options)
        run.record(validated=(known := {"mean": mean, "evaluate": options}))
    return float(known["mean"])


def _chosen(runs: Mapping[str, Sequence[Run]], trials: Trials) -> dict[str, str]:
    """What was searched and what was tried, and what of it was taken, in words."""
    found = {best(tried).name: verdict(tried) for tried in trials.values()}
    texts = {name: (found.get(name, ""), _choice(fits)) for name, fits in runs.items()}
    return {name: "; ".join(filter(None, text)) for name, text in texts.items() if any(text)}


def _asked(model: Model, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation, without an estimator for a model that needs none."""
    return {k: v for k, v in settings.items() if k != "method"} if model.exact else settings


def _comparison_folder(folder: Path) -> None:
    """Refuse a folder for a comparison that holds anything else, drafts of files aside."""
    if is_run(folder):
        raise Error(f"'{folder}' is the run of one model: name another folder with --out")
    refuse_uncreatable(folder)
    if not folder.exists():
        return
    own = ["spec.toml", SEARCH] if (folder / "results.json").exists() else []
    written = {*FILES, *own}
    for path in sorted(folder.iterdir()):
        ours = path.name in written or is_run(path) or is_unfinished(path)
        if not (ours or path.name.startswith(".")):
            raise Error(f"'{folder}' holds '{path.name}', no run: name another folder with --out")


def _choice(runs: Sequence[Run]) -> str:
    """What was tried and taken, in words; of several seeds each makes a choice of its own."""
    tried: dict[str, list[float]] = {}
    for run in runs:
        for candidate in run.results["tried"]:
            tried.setdefault(candidate["choice"], []).append(candidate["validation"])
    if not tried:
        return ""
    means = {choice: fmean(values) for choice, values in tried.items()}
    order = sorted(means, key=lambda choice: -means[choice])
    shown = "; ".join(f"{choice}: {means[choice]:.2f}" for choice in order)
    taken = Counter(run.results["chosen"] for run in runs)
    what = " and ".join(
        choice if len(taken) == 1 else f"{choice} with {count} of {len(runs)} seeds"
        for choice, count in taken.most_common()
    )
    over = ", means over seeds" if len(runs) > 1 else ""
    return f"{what} chosen by log p(x) on the validation rows ({shown}{over})"
