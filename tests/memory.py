"""The memory that a piece of code takes, in a process of its own."""

import subprocess
import sys

PEAK = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def peak(code):
    """The largest resident size in GiB."""
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 2**20
