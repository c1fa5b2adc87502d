"""Progress on the standard error stream: loss, speed, time left, in a terminal only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn


class Bar:
    """Progress with loss, speed and time left."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.task = progress.add_task(title, loss="", speed="", total=None)
        self.rows, self.total, self.began = 0, 0, time.perf_counter()

    def begin(self, total: int) -> None:
        """A fit over `total` rows, all epochs counted."""
        self.rows, self.total, self.began = 0, total, time.perf_counter()
        self.progress.reset(self.task, total=total)

    def name(self, title: str) -> None:
        """What is done now."""
        self.progress.update(self.task, description=title)

    def advance(self, rows: int) -> None:
        """So many rows more are done."""
        self.rows += rows
        self.progress.advance(self.task, rows)

    def show(self, loss: float) -> None:
        """An epoch ended, with this loss."""
        speed = self.rows / (time.perf_counter() - self.began)
        self.progress.update(self.task, loss=f"loss {loss:.2f}", speed=f"{speed:,.0f} rows/s")


@contextmanager
def progress_bar(title: str, wanted: bool) -> Iterator[Bar]:
    """A progress bar on the standard error stream, silent where that is no terminal."""
    console = Console(stderr=True)
    with Progress(
        "{task.description}",
        "{task.fields[loss]}",
        "{task.fields[speed]}",
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    ) as progress:
        yield Bar(progress, title)
