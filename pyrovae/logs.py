"""Logs: where the figures of a fit go, epoch by epoch, beside its own history.

A log is told three things: that a fit begins, with its settings; the figures of each epoch; and
how the fit ended. A fit that is taken up again from a checkpoint goes on in the same log: what
names the log is kept in the run's folder, and it is told all epochs from the first one on, as the
last ones may not have been written; each is there once. `Logs` is several of them, none of which
can stop a fit.

Nothing needs a network: TensorBoard writes files, Weights & Biases stores them to be sent later,
and MLflow has a database in a file.
"""

import importlib
import logging
import math
import re
import secrets
import textwrap
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyrovae.errors import Error, brief
from pyrovae.files import json_text, write
from pyrovae.inference import Epoch
from pyrovae.part import Part

logger = logging.getLogger("pyrovae")

LOGS = "logs"
"""The folder of logs within that of a run."""
BATCH = 100
"""The settings that MLflow takes at a time, at most."""
MANY, PAUSE = 1000, 2.0
"""The figures that MLflow takes at a time, at most, and seconds between two times."""
LONGEST = 6000
"""The characters of a setting that MLflow keeps."""


class Log(Part):
    """The role of a place where the figures of a fit go. `Wandb` is the member to read."""

    package: ClassVar[str] = ""
    """What has to be installed, as it is imported; it is the extra of the log's kind."""

    def setup(self) -> None:
        """Nothing to make: a log has no tensors."""

    def require(self) -> None:
        """Refuse a log whose package is not installed."""
        try:
            importlib.import_module(self.package or "pyrovae")
        except ImportError:
            raise Error(
                f"the log '{self.kind}' needs a package that is not installed: "
                f"pip install 'pyrovae[{self.kind}]'",
                "logs",
            ) from None

    @abstractmethod
    def begin(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        """A fit begins, or goes on.

        Args:
            folder: of the logs of the run, which is there; without one the log goes where its
                package puts it.
            settings: a table, as the spec has it.
        """

    @abstractmethod
    def record(self, epoch: int, figures: Mapping[str, float]) -> None:
        """An epoch is over; told again of a fit that is taken up, it is there once.

        Args:
            epoch: counted from 0.
            figures: by name; NaN where there is none.
        """

    @abstractmethod
    def end(self, figures: Mapping[str, Any]) -> None:
        """The fit is over, or interrupted.

        Args:
            figures: what there is to say of the fit as a whole.
        """


class Tensorboard(Log):
    """TensorBoard's event files, in `tensorboard/` of the run's logs; else in `./runs`."""

    package = "torch.utils.tensorboard"

    def begin(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder and folder / "tensorboard", settings
        self.writer: Any = None

    def record(self, epoch: int, figures: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:  # what an earlier writer said from this epoch on is void
            self.writer = SummaryWriter(self.folder, purge_step=epoch)
            self.writer.add_text("settings", _block(self.settings), epoch)
        for name, figure in figures.items():
            self.writer.add_scalar(name, figure, epoch)
        self.writer.flush()

    def end(self, figures: Mapping[str, Any]) -> None:
        if self.writer is not None:
            self.writer.add_text("results", _block(figures))
            self.writer.close()


class Wandb(Log):
    """A run of Weights & Biases, in `wandb/` of the run's logs; else in `./wandb`.

    Args:
        project: its name.
        mode: `offline` keeps the run in the folder, until `wandb sync` sends it; `online` sends
            it while the fit runs, which needs an account.
    """

    project: str = "pyrovae"
    mode: Literal["online", "offline", "disabled"] = "offline"

    package = "wandb"

    def begin(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=self.project,
            mode=self.mode,
            dir=folder,
            id=_kept(folder, "wandb-id") or _keep(folder, "wandb-id", secrets.token_hex(4)),
            resume="allow" if self.mode == "online" else None,
            config=dict(settings),
            settings=wandb.Settings(
                reinit="create_new", console="off", quiet=True, save_code=False
            ),
        )

    def record(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=epoch, commit=True)

    def end(self, figures: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(figures))
        self.run.finish()


class Mlflow(Log):
    """A run of MLflow, in a database in the run's logs; else where MLflow is told to put it.

    Args:
        experiment: the name of the experiment that the run belongs to.
        uri: of a server or of a database, such as `sqlite:///mlflow.db`, for several runs to
            share; unless given, that of the run's logs.
    """

    experiment: str = "pyrovae"
    uri: str | None = None

    package = "mlflow"

    def begin(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        own = folder and f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.client, self.known = MlflowClient(self.uri or own), set[int]()
        self.waiting, self.written = list[Metric](), -math.inf
        if run := _kept(folder, "mlflow-id"):
            self.run, self.known = run, self._recorded(run)
            self.client.update_run(run, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        place = found.experiment_id if found else self.client.create_experiment(self.experiment)
        self.run = _keep(folder, "mlflow-id", self.client.create_run(place).info.run_id)
        params = [Param(_word(name), str(value)[:LONGEST]) for name, value in _flat(settings)]
        for first in range(0, len(params), BATCH):
            self.client.log_batch(self.run, params=params[first : first + BATCH])

    def _recorded(self, run: str) -> set[int]:
        """The epochs that the run has."""
        names = self.client.get_run(run).data.metrics
        return {m.step for name in names for m in self.client.get_metric_history(run, name)}

    def record(self, epoch: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if epoch not in self.known:
            now = int(1000 * time.time())
            self.waiting += [Metric(_word(name), f, now, epoch) for name, f in figures.items()]
        if time.monotonic() - self.written > PAUSE:
            self._write()

    def _write(self) -> None:
        """Write what waits: a transaction takes as long for many epochs as for one."""
        for first in range(0, len(self.waiting), MANY):
            self.client.log_batch(self.run, metrics=self.waiting[first : first + MANY])
        self.waiting, self.written = [], time.monotonic()

    def end(self, figures: Mapping[str, Any]) -> None:
        self._write()
        for name, value in _flat(figures):
            self.client.set_tag(self.run, _word(name), str(value))
        self.client.set_terminated(self.run)


class Logs:
    """Several logs, none of which can stop a fit that has begun.

    A log that fails after that is told once, and left out from then on.

    Args:
        logs: in any number.
    """

    def __init__(self, logs: Iterable[Log] = ()) -> None:
        self.open = list(logs)

    def require(self) -> None:
        """Refuse logs whose package is not installed; before anything else is done.

        Raises:
            Error: with what to install.
        """
        for log in self.open:
            log.require()

    def begin(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        """Begin all of them, or none; before anything is trained.

        Raises:
            Error: a log that cannot begin.
        """
        self.require()
        waiting, self.open = self.open, []
        for log in waiting:
            try:
                if folder:
                    folder.mkdir(parents=True, exist_ok=True)
                log.begin(folder, settings)
            except Exception as failure:
                self.end({})
                why = f"the log '{log.kind}' cannot begin: {brief(failure)}"
                raise Error(why, "logs") from failure
            self.open.append(log)

    def hear(self, epoch: Epoch) -> None:
        """An epoch is over, and judged."""
        known = {"loss": epoch.loss, "validation": epoch.validation, "seconds": epoch.seconds}
        self.record(epoch.index, known | dict(epoch.figures))

    def record(self, epoch: int, figures: Mapping[str, float]) -> None:
        """An epoch is over, with these figures."""
        self._tell(f"after epoch {epoch}", lambda log: log.record(epoch, figures))

    def end(self, figures: Mapping[str, Any]) -> None:
        """The fit is over, or interrupted."""
        self._tell("at the end", lambda log: log.end(figures))

    def _tell(self, when: str, what: Callable[[Log], None]) -> None:
        for log in tuple(self.open):
            try:
                what(log)
            except Exception as failure:
                self.open.remove(log)
                logger.warning(
                    "the log '%s' failed %s and is left out, the fit goes on: %s",
                    log.kind,
                    when,
                    brief(failure),
                )


def _kept(folder: Path | None, name: str) -> str:
    """What an earlier part of the fit kept in the folder under a name, empty without one."""
    path = folder and folder / name
    return path.read_text() if path and path.is_file() else ""


def _keep(folder: Path | None, name: str, value: str) -> str:
    if folder:
        write(folder / name, value)
    return value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested tables by dotted names."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _word(name: str) -> str:
    """A name of the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _block(table: Mapping[str, Any]) -> str:
    """A table as a block of Markdown."""
    return textwrap.indent(json_text(dict(table)), "    ")
