"""Checkpoints: a fit that can be stopped at any moment, and goes on as if it had not been.

    RUN/unfinished/000000512.safetensors     after 512 steps; the last two are kept

A checkpoint is one file: its tensors, and in its header JSON with all else that the next step
depends on, and what was asked for. It is written beside its place, forced to the disk and renamed,
so that a file under its own name is whole, whatever happens: a fit that is killed goes on from the
last one. Nothing in it is executed when it is read.

A fit that is asked to stop, by Ctrl-C or SIGTERM, finishes its step, writes a checkpoint and ends.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from pyrovae.errors import Error, Interrupted, brief
from pyrovae.inference import State
from pyrovae.ranks import ALONE, World
from pyrovae.versions import versions

UNFINISHED = "unfinished"
"""The folder of checkpoints within that of a run."""
KEPT = 2
TOGETHER = 16
"""After so many steps several processes ask one another whether one of them is to stop."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
logger = logging.getLogger("pyrovae")


class Checkpoints:
    """The checkpoints of one fit.

    Args:
        folder: theirs alone.
        request: what was asked for, as JSON holds it; a checkpoint of anything else is refused.
        minutes: one is written after so many.
        steps: and after so many steps, if given.
        world: of the processes that go on together, of which the first writes and reads.
    """

    def __init__(
        self,
        folder: Path,
        request: Mapping[str, Any],
        minutes: float = 5.0,
        steps: int | None = None,
        world: World = ALONE,
    ) -> None:
        self.folder, self.request = folder, json.loads(json.dumps(request))
        self.minutes, self.steps, self.world = minutes, steps, world
        self.count, self.written = 0, time.monotonic()
        self.asked: int | None = None

    def latest(self) -> State | None:
        """The newest checkpoint that can be read, if there is one.

        Raises:
            Error: something else was asked for; or there are checkpoints, all of them damaged.
        """
        count, state = self.world.shared(self._found() if self.world.first else (0, None))
        self.count = count
        return state

    def _found(self) -> tuple[int, State | None]:
        bad = []
        for path in reversed(self._files()):
            try:
                state = _read(path)
            except (OSError, SafetensorError, ValueError) as failure:
                bad.append(f"'{path}' cannot be read ({brief(failure)})")
                continue
            if changed := differences(state.values["request"], self.request):
                raise Error(another_spec(self.folder.parent, changed))
            if bad:
                logger.warning(f"{'; '.join(bad)}: the fit goes on from '{path}'.")
            if other := differences(state.values["versions"], versions()):
                logger.warning(f"The last digits may differ: {'; '.join(sorted(other))}.")
            return int(path.stem), state
        if bad:
            raise Error(f"{'; '.join(bad)}: no other checkpoint is left, begin again with --force")
        return 0, None

    def save(self, state: State) -> None:
        """Write a checkpoint, and remove those before the last two."""
        self.written = time.monotonic()
        if not self.world.first:
            return
        values = json.dumps(state.values | {"request": self.request, "versions": versions()})
        tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
        path = self.folder / f"{self.count:09}.safetensors"
        draft = path.with_suffix(".draft")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(save(tensors, {"pyrovae": values}))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            _force_to_disk(self.folder)
            for old in self._files()[:-KEPT]:
                old.unlink()
        except OSError as failure:
            raise Error(f"'{path}' cannot be written: {failure.strerror}") from None

    def stepped(self) -> bool:
        """Count a step; returns whether a checkpoint is due."""
        self.count += 1
        wanted = time.monotonic() - self.written >= 60 * self.minutes or self.asked is not None
        if self.world.size > 1:
            wanted = self.count % TOGETHER == 0 and self.world.any(wanted)
        return wanted or bool(self.steps and self.count % self.steps == 0)

    def obey(self) -> None:
        """End the fit if it was asked to stop; its checkpoint has been written.

        Raises:
            Interrupted: it was.
        """
        if asked := max(self.world.gathered(self.asked or 0)):
            raise Interrupted(f"stopped after {self.count} steps", 128 + asked)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals to stop as a wish, the first time; afterwards as before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def another_spec(folder: Path, changed: Iterable[str]) -> str:
    """The sentence for a fit that was begun with other settings."""
    return (
        f"'{folder}' was begun with another spec ({'; '.join(sorted(changed))}): "
        "undo that, or begin again with --force"
    )


def differences(old: Any, new: Any, path: str = "") -> set[str]:
    """What differs between two trees of JSON, each as `path: old is now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        below = ((key, f"{path}.{key}" if path else key) for key in old.keys() | new.keys())
        return set().union(*(differences(old.get(key), new.get(key), step) for key, step in below))
    return set() if old == new else {f"{path}: {_shown(old)} is now {_shown(new)}"}


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _read(path: Path) -> State:
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    values = json.loads(header.get("pyrovae", "{}"))
    if not isinstance(values, dict) or not values.keys() >= {"request", "versions"}:
        raise ValueError("it is no checkpoint")
    return State(load_file(path), values)


def _force_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
