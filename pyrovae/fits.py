"""The fits of a comparison: what is finished is reused, the rest is carried out where asked.

A finished run is reused if nothing that it depends on has changed: its request and the
data. So a comparison, or a search, that was stopped goes on with what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyrovae.checkpoints import differences
from pyrovae.errors import Error
from pyrovae.parallel import Fitted, in_processes
from pyrovae.plans import Plan
from pyrovae.remote import on_cluster
from pyrovae.runs import (
    Run,
    discard_unfinished,
    is_run,
    is_unfinished,
    open_run,
    refuse_other,
    start_over,
)

Say = Callable[[str], None]
PLACES = {"processes": in_processes, "optuna": in_processes, "ray": on_cluster}
"""Where fits run."""


def carried_out(
    place: Callable[[], Fitted], force: bool, say: Say
) -> Callable[[Sequence[Plan]], dict[Path, Run | Error]]:
    """Gives the run of every plan, or what went wrong, by its folder; finished ones are reused."""
    fresh: set[Path] = set()

    def fits(plans: Sequence[Plan]) -> dict[Path, Run | Error]:
        found = {plan: _finished(plan, force and plan.folder not in fresh) for plan in plans}
        outcomes: dict[Path, Run | Error] = {p.folder: run for p, run in found.items() if run}
        for plan, run in found.items():
            if run and plan.folder not in fresh:
                say(f"{plan.title}: reused, its spec is unchanged ({plan.folder})")
        missing = [plan for plan, run in found.items() if not run]
        for plan, outcome in place()(missing) if missing else ():
            outcomes[plan.folder] = outcome
            if isinstance(outcome, Error):
                say(f"{plan.title}: failed")
            else:
                took = f"{outcome.results['seconds']:.1f} s"
                say(f"{plan.title}: fitted in {took} ({plan.folder})")
        fresh.update(outcomes)
        return outcomes

    return fits


def runs_of(
    outcomes: Mapping[Path, Run | Error], plans: Mapping[str, Sequence[Plan]]
) -> dict[str, list[Run]]:
    """The runs of each model.

    Raises:
        Error: some fits failed; the others are finished.
    """
    runs: dict[str, list[Run]] = {name: [] for name in plans}
    failures = []
    for name, fits in plans.items():
        for plan in fits:
            if isinstance(outcome := outcomes[plan.folder], Error):
                failures.append(f"'{plan.title}': {outcome}")
            else:
                runs[name].append(outcome)
    if failures:
        count = sum(map(len, runs.values()))
        finished = f"; {count} of {len(outcomes)} runs are finished" if count else ""
        raise Error("; ".join(failures) + finished)
    return runs


def _finished(plan: Plan, force: bool) -> Run | None:
    """The run of an unchanged plan, if there is one.

    Raises:
        Error: a run of something else is in the way.
    """
    if force:
        start_over(plan.folder)
        return None
    if not is_run(plan.folder):
        refuse_other(plan.folder, plan.request())
        if is_unfinished(plan.folder) or not plan.folder.exists():
            return None
    run = open_run(plan.folder)
    if "failed" in run.results:
        return None
    changed = sorted(differences(run.results.get("request"), plan.request()))
    if run.results.get("fingerprint") != plan.data.fingerprint:
        changed.append("the data themselves")
    if changed and is_unfinished(plan.folder):  # by what was begun with --force
        refuse_other(plan.folder, plan.request())
        return None
    if changed:
        raise Error(
            f"'{plan.folder}' was fitted with another spec ({'; '.join(changed)}): "
            "fit again with --force, or name another folder with --out"
        )
    discard_unfinished(plan.folder)
    return run
