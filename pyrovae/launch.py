"""The command line in several processes of this machine, as `torchrun` would run it.

Each process is told its rank and where the others are by the same environment variables, so that
`ranks.joined` need not know who began it. It gets its share of the threads, since processes that
each use all cores make each other wait, and the first one speaks for all. They live and end
together: Ctrl-C and SIGTERM are passed on once, so that they can write down where they are, and
the second time they are killed; where one fails the others are ended, and what it said is shown;
and when this process is gone, whichever way, so are they.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import torch
import torch.distributed as group

from pyrovae.errors import Error
from pyrovae.ranks import LOST

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HERE, GRACE, PAUSE = "127.0.0.1", 5.0, 0.05
"""Where the processes meet; seconds that they get to end by themselves, and between two looks."""
COMMAND = "from pyrovae.cli import main; main()"
BEGIN = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
sys.argv[0] = "pyrovae"
from pyrovae.launch import attend
attend()
"""
ENDED = (0, LOST, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of processes that did not fail themselves."""


def launch(arguments: Sequence[str], processes: int, program: str = COMMAND) -> int:
    """Run the command line in so many processes; returns the exit code.

    Args:
        arguments: of the command line.
        processes: how many.
        program: Python to run in each instead of the command line.

    Raises:
        Error: this process is one of several itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Error(
            "this process is one of several already: leave processes to torchrun", "processes"
        )
    store = group.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)  # type: ignore
    words = [sys.executable, "-P", "-c", BEGIN + program, json.dumps(sys.path), *arguments]
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        ranks = [
            subprocess.Popen(
                words,
                env=os.environ | _environment(rank, processes, store.port),
                stdin=subprocess.PIPE,
                stdout=log if rank else None,
                stderr=log if rank else None,
                start_new_session=True,
            )
            for rank, log in enumerate(logs)
        ]
        stack.callback(_kill, ranks)
        with _passed_on(ranks):
            _wait(ranks)
        return _code([rank.returncode for rank in ranks], logs)


def attend() -> None:
    """End this process at once when the one that began it is gone."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What `torchrun` tells a process, and its share of the threads."""
    loopback = (name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HERE,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": next(loopback, ""),
        **dict.fromkeys(THREADS, str(max(1, torch.get_num_threads() // processes))),
    }


@contextmanager
def _passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the processes, and kill them the second time."""
    times = 0

    def handler(number: int, _: Any) -> None:
        nonlocal times
        times += 1
        for rank in ranks:
            rank.send_signal(number if times == 1 else signal.SIGKILL)

    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; soon after one that failed they are made to."""
    failed = False
    while None in (codes := [rank.poll() for rank in ranks]):
        if not failed and any(codes):
            failed, since = True, time.monotonic()
        if failed and time.monotonic() > since + GRACE:
            for rank in ranks:
                rank.terminate()
        if failed and time.monotonic() > since + 2 * GRACE:
            _kill(ranks)
        time.sleep(PAUSE)


def _kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.wait()
        if rank.stdin:
            rank.stdin.close()


def _code(codes: list[int], logs: Sequence[IO[bytes]]) -> int:
    """The exit code for all; of the first that failed what it said is shown, if it was not yet."""
    failed = [rank for rank, code in enumerate(codes) if code not in ENDED]
    rank = failed[0] if failed else codes.index(max(codes, key=abs))
    if rank:
        logs[rank].seek(0)
        sys.stderr.write(logs[rank].read().decode(errors="replace"))
    if codes[rank] < 0:
        print(
            f"pyrovae: process {rank} ended by {signal.Signals(-codes[rank]).name}",
            file=sys.stderr,
        )
    return codes[rank] if codes[rank] >= 0 else 128 - codes[rank]
