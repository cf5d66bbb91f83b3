"""The processes of a test: each a fork of one launcher, started, asked, killed and waited for.

with Launcher(folder, STORE_URL=url) as launcher:
    worker = launcher.start("worker", {"SERVICE": "shop", ...})
    worker.wait_until_ready()
    worker.kill(signal.SIGSTOP)
    assert worker.stop() == 0
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.peers import DEADLINE_S

ROOT = Path(__file__).parents[2]
_STARTS_WITHIN_S = 60.0


class Process:
    """One child: what it is, what it has said, how it ended."""

    def __init__(self, launcher: Launcher, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        self.ready_at: float | None = None
        self.code: int | None = None  # negative: the signal that ended it
        self.said: list[dict[str, Any]] = []
        self._launcher = launcher

    @property
    def is_over(self) -> bool:
        return self.code is not None

    def wait_until_ready(self) -> Process:
        self.wait_for(lambda: self.ready_at is not None or self.is_over, "ready")
        assert self.ready_at is not None, f"{self.name} ended with {self.code}:\n{self.printed()}"
        return self

    def wait_for(self, is_so: Callable[[], Any], what: str, within_s: float = 4 * DEADLINE_S) -> None:
        """Wait until something is so that changes when a process says something or ends."""
        with self._launcher.changed:
            if not self._launcher.changed.wait_for(is_so, within_s):
                raise AssertionError(f"{self.name}, not within {within_s} s: {what}\n{self.printed()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        self.wait_for(lambda: self.pid, "its start")
        with self._launcher.changed:  # the launcher has not told of its end, so its pid is no other's
            if not self.is_over:
                try:
                    os.kill(self.pid, number)
                except ProcessLookupError:
                    return

    @property
    def is_stopped(self) -> bool:
        """Whether it stands still, by SIGSTOP."""
        if not self.pid or self.is_over:
            return False
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def wait(self, within_s: float = 4 * DEADLINE_S) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        self.wait_for(lambda: self.is_over, "its end", within_s)
        assert self.code is not None
        return self.code

    def stop(self) -> int:
        """Ask it to end by SIGTERM; return its exit code."""
        self.kill(signal.SIGTERM)
        return self.wait()

    def printed(self) -> str:
        return self.log.read_text(errors="replace")[-10_000:] if self.log.exists() else ""


class Launcher:
    """Starts processes that see the databases of these environment variables."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = environment
        self._names = itertools.count(1)
        self._by_name: dict[str, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._is_up = False
        self.changed = threading.Condition(threading.RLock())

    def start(
        self,
        role: str,
        aevents: Mapping[str, Any],
        /,
        *,
        lease_s: float | None = None,
        log: str | None = None,
        **arguments: Any,
    ) -> Process:
        """Start a process of that role, one of `roles.ROLES`; it is there a moment later."""
        name = f"{role}-{next(self._names)}"
        process = Process(self, name, self._folder / f"{log or name}.log")
        order = {
            "name": name,
            "role": role,
            "log": str(process.log),
            "aevents": aevents,
            "lease_s": lease_s,
            "arguments": arguments,
        }
        with self.changed:
            self._by_name[name] = process
            assert self._popen.stdin is not None
            self._popen.stdin.write(json.dumps(order).encode() + b"\n")
            self._popen.stdin.flush()
        return process

    def end_all(self) -> None:
        """Kill all that still runs, and forget what there was."""
        with self.changed:
            for process in self._by_name.values():
                process.kill(signal.SIGKILL)
            self.changed.wait_for(lambda: all(p.is_over for p in self._by_name.values()), DEADLINE_S)
            self._by_name.clear()

    def __enter__(self) -> Launcher:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = (self._folder / "launcher.log").open("wb")
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.crash_project.launcher"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DJANGO_SETTINGS_MODULE": "tests.crash_project.settings",
                **self._environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._reader = threading.Thread(target=self._read, name="launcher", daemon=True)
        self._reader.start()
        with self.changed:
            is_up = self.changed.wait_for(lambda: self._is_up or self._popen.poll() is not None, 60.0)
        if not is_up or not self._is_up:
            self.__exit__(None, None, None)
            raise AssertionError((self._folder / "launcher.log").read_text())
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        for process in list(self._by_pid.values()):
            process.kill(signal.SIGKILL)
        self._popen.stdin.close()
        try:
            self._popen.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reader.join(DEADLINE_S)
        self._popen.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self.changed:
                self._note(json.loads(line))
                self.changed.notify_all()

    def _note(self, fact: dict[str, Any]) -> None:
        if "launcher" in fact:
            self._is_up = True
        elif "ended" in fact:
            self._by_pid.pop(fact["ended"]).code = fact["code"]
        else:
            process = self._by_name[fact["name"]]
            if "pid" in fact:
                process.pid = fact["pid"]
                self._by_pid[process.pid] = process
            elif "ready" in fact:
                process.ready_at = time.monotonic()
            else:
                process.said.append(fact)
