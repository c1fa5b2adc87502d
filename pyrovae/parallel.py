"""Fits side by side, each in a process of its own.

The threads of one process share every product of matrices, and wait for each other at its end.
Two processes that each use all cores make each other's threads wait, and both become many times
slower; so each of N processes gets one N-th of the threads. Threads are counted when a process
begins, from its environment, and nothing about the present process is changed.

A worker is given a plan as a line of JSON, fits it, saves the run, and answers with a line. It
ends with the process that started it, whichever way that ends: a run is saved whole or not at all.
"""

import functools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyrovae.data import Data, load
from pyrovae.errors import Error, brief
from pyrovae.launch import THREADS
from pyrovae.part import check, keywords
from pyrovae.plans import Plan
from pyrovae.runs import Run, open_run
from pyrovae.specs import import_modules

BEGIN = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pyrovae.parallel import work
work()
"""


Fitted = Callable[[Sequence[Plan]], Iterator[tuple[Plan, Run | Error]]]
"""Carries plans out; each is yielded when it is done, with its run or what went wrong."""


def alone(plans: Sequence[Plan]) -> Iterator[tuple[Plan, Run | Error]]:
    """Carry plans out in the present process."""
    for plan in plans:
        try:
            yield plan, plan.fit(force=True)
        except Error as error:
            yield plan, error


@contextmanager
def in_processes(count: int, modules: Path | None) -> Iterator[Fitted]:
    """A place where plans are carried out, until the context ends.

    Args:
        count: how many fits at a time; one is in the present process.
        modules: the folder in which modules that the spec imports may lie.
    """
    if count == 1:
        yield alone
        return
    threads, workers = threads_of(count), []
    idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
    for _ in range(count):
        idle.put(None)

    def fit(plan: Plan) -> Run | Error:
        worker = idle.get()
        try:
            if worker is None:
                workers.append(worker := Worker(threads, modules))
            return worker.fit(plan)
        except Error as error:
            return error
        finally:
            idle.put(worker if worker and worker.process.poll() is None else None)

    def fitted(plans: Sequence[Plan]) -> Iterator[tuple[Plan, Run | Error]]:
        futures = {pool.submit(fit, plan): plan for plan in plans}
        for future in as_completed(futures):
            yield futures[future], future.result()

    pool = ThreadPoolExecutor(count)
    try:
        yield fitted
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.process.kill()
        pool.shutdown()
        for worker in workers:
            worker.close()


def threads_of(fits: int) -> int:
    """The threads of each of so many fits."""
    return max(1, torch.get_num_threads() // fits)


class Worker:
    """A process that fits one plan after the other.

    It is not of the terminal's group of processes: Ctrl-C reaches the one that started it.

    Args:
        threads: for each of its products of matrices.
        modules: the folder in which modules that the spec imports may lie.
    """

    def __init__(self, threads: int, modules: Path | None) -> None:
        self.modules = modules
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", BEGIN, json.dumps(sys.path)],
            env=os.environ | dict.fromkeys(THREADS, str(threads)) | {"WORLD_SIZE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )

    def fit(self, plan: Plan) -> Run:
        """Have a plan carried out.

        Raises:
            Error: the fit failed, or the process came to an end.
        """
        task = {
            "title": plan.title,
            "path": plan.path,
            "table": plan.table,
            "folder": str(plan.folder),
            "fingerprint": plan.data.fingerprint,
            "modules": str(self.modules) if self.modules else None,
        }
        try:
            print(json.dumps(task), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()  # type: ignore[union-attr]
        except OSError:
            answer = ""
        if not answer:
            self.log.seek(0)
            code, said = self.process.wait(), self.log.read().splitlines()
            raise Error(f"its process ended with code {code}{f': {said[-1]}' if said else ''}")
        if error := json.loads(answer):
            raise Error(error)
        return open_run(plan.folder)

    def close(self) -> None:
        """Give back what belonged to the process, which has ended."""
        with self.process, self.log:
            pass


def work() -> None:
    """The life of a worker: tasks come in, a line about each goes out; without tasks it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    data = functools.cache(_data)
    while True:
        print(json.dumps(_done(json.loads(tasks.get()), data)), file=answers, flush=True)


def _listen(tasks: "queue.SimpleQueue[str]") -> None:
    """Take tasks in; when nobody can send any more, end at once, also in the middle of a fit."""
    for line in sys.stdin:
        tasks.put(line)
    os._exit(1)


def _done(task: dict[str, Any], data: Callable[[str, str | None], Data]) -> str:
    """What went wrong in carrying a task out, empty if nothing."""

    def attempt() -> None:
        table = task["table"]
        rows = data(json.dumps([table.get("import", []), table["data"]]), task["modules"])
        if rows.fingerprint != task["fingerprint"]:
            raise Error("the data have changed since they were looked at", "data")
        modules = Path(task["modules"]) if task["modules"] else None
        place = Path(task["folder"])
        Plan(task["title"], task["path"], table, place, rows, modules).fit(force=True)

    return failure_of(attempt)


def failure_of(attempt: Callable[[], object]) -> str:
    """What went wrong in an attempt in another process, empty if nothing."""
    try:
        attempt()
    except Error as error:
        return str(error)
    except Exception as failure:
        return f"{brief(failure)} (one process, --processes 1, shows where)"
    return ""


def _data(what: str, modules: str | None) -> Data:
    imports, table = json.loads(what)
    import_modules(imports, Path(modules) if modules else None)
    return load(**check(keywords(load), table, "data"))
