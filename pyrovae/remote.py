"""Fits on the machines of a Ray cluster.

The cluster is that at RAY_ADDRESS, or one on this machine that lives as long as the comparison.
Its machines share no files with this one. What a fit needs travels there: the table of its plan;
the rows, once for all fits, those of a large file by the path of the file; and the user's modules,
as text. What it leaves travels back: the files of the run folder, byte by byte, which are put in
their place whole. Pickles are made of what travels there, never of what is kept.

A fit has as many threads as it asks CPUs for, those of this process divided by the number of fits
at a time, so that its weights are those that it would have here, to the bit. How many fits there
are at a time is for the cluster to decide: as many as have room.
"""

import functools
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae.errors import Error, brief
from pyrovae.launch import THREADS
from pyrovae.parallel import Fitted, failure_of, threads_of
from pyrovae.plans import Plan
from pyrovae.runs import Run, is_run, open_run, restore
from pyrovae.specs import import_modules

Answer = tuple[dict[str, bytes], str]
"""The files of a run, and what went wrong."""


@contextmanager
def on_cluster(count: int, modules: Path | None) -> Iterator[Fitted]:
    """A place where plans are carried out, until the context ends; see `parallel.in_processes`.

    Args:
        count: how many fits share the threads of a machine.
        modules: the folder in which modules that the spec imports may lie.

    Raises:
        Error: Ray is not installed, no cluster is reached, or its machines are too small.
    """
    threads, texts = threads_of(count), _texts(modules)
    with _connected(threads * count) as ray:
        _refuse_small(ray, threads)
        pending: dict[Any, Plan] = {}
        put = functools.cache(ray.put)
        task, environment = ray.remote(_carried_out), dict.fromkeys(THREADS, str(threads))

        def fitted(plans: Sequence[Plan]) -> Iterator[tuple[Plan, Run | Error]]:
            for plan in plans:
                fit = task.options(
                    num_cpus=threads,
                    num_gpus=int(str(plan.table["train"].get("device")).startswith("cuda")),
                    max_retries=0,
                    runtime_env={"env_vars": environment},
                )
                what = (plan.title, plan.path, plan.table)
                pending[fit.remote(*what, [put(plan.data)], texts)] = plan
            while pending:
                (done,), _ = ray.wait(list(pending))
                plan = pending.pop(done)
                try:
                    yield plan, _received(plan, *ray.get(done))
                except ray.exceptions.RayError as failure:
                    yield plan, Error(f"Ray could not carry it out: {brief(failure)}")

        try:
            yield fitted
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


@contextmanager
def _connected(cpus: int) -> Iterator[Any]:
    """Ray, connected; afterwards this process is as it was.

    Args:
        cpus: of a cluster on this machine.
    """
    environment, address = _environment(), os.environ.get("RAY_ADDRESS", "local")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray = _ray()
            own = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except ConnectionError as failure:
                where = f"the Ray cluster at '{address}' is not reached"
                raise Error(f"{where}: {brief(failure)}") from None
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name in _environment():
            del os.environ[name]
        os.environ.update(environment)
        if main:
            signal.signal(signal.SIGTERM, handler)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise Error("fits on a cluster need Ray: pip install 'pyrovae[ray]'") from None
    return ray


def _refuse_small(ray: Any, threads: int) -> None:
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes())
    if 0 < largest < threads:
        raise Error(
            f"a fit asks for {threads} CPUs, one for each of its threads, and no machine of the "
            f"cluster has more than {largest:.0f}: set OMP_NUM_THREADS={largest:.0f}"
        )


def _texts(folder: Path | None) -> dict[str, str]:
    """The files of the modules that were imported from a folder, by their places in it."""
    home, found = folder.resolve() if folder else None, {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        for place in (f"{name.replace('.', '/')}{end}" for end in (".py", "/__init__.py")):
            if home and file and Path(file) == home / place:
                found[place] = Path(file).read_text("utf-8")
    return found


def _carried_out(
    title: str, path: str, table: dict[str, Any], rows: Sequence[Any], texts: Mapping[str, str]
) -> Answer:
    """Carry a plan out on a machine of the cluster.

    Args:
        title: of the plan.
        path: of the plan.
        table: of the plan.
        rows: the reference to its data, whose parts may be of the user's modules.
        texts: of these modules.
    """
    with tempfile.TemporaryDirectory() as home:
        for place, text in texts.items():
            file = Path(home, "modules", place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        folder = Path(home, "run")

        def attempt() -> None:
            import_modules(table.get("import", []), Path(home, "modules"))
            (data,) = _ray().get(list(rows))
            Plan(title, path, table, folder, data).fit()

        said = failure_of(attempt)
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if is_run(folder) and file.is_file()
        }
        return files, said.removesuffix(_saved_in(folder))


def _received(plan: Plan, files: Mapping[str, bytes], said: str) -> Run | Error:
    """The run of a plan from its files; what a failed fit left is kept where nothing is."""
    if said and (not files or is_run(plan.folder)):
        return Error(said)
    try:
        restore(plan.folder, files)
        return Error(said + _saved_in(plan.folder)) if said else open_run(plan.folder)
    except Error as error:
        return error


def _saved_in(folder: Path) -> str:
    return f", saved in '{folder}'"
