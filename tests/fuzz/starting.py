"""Starts the fuzzers, each in a process of its own, as libFuzzer ends the one that it runs in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_WITHIN_S = 3600


def fuzz(target: str, folder: Path, *, inputs: int, most_bytes: int = 4096) -> int:
    """Make up as many inputs for a target; return how many they were."""
    sizes = ("--inputs", str(inputs), "--most-bytes", str(most_bytes))
    (executed,) = re.findall(r"number_of_executed_units: (\d+)", _run("fuzz", target, str(folder), *sizes))
    return int(executed)


def measure(folder: Path) -> str:
    """Return what the dearest of the inputs in a folder cost."""
    return _run("measure", str(folder))


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout
