"""The services as processes, with their ports, database files and logs in one folder."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aevents.demo.facts import Fact, from_line

NAMES = ("accounts", "orders", "payments")
_END_S = 8.0
_TAIL_LINES = 20


@dataclass(frozen=True)
class Program:
    """What a process of `service` runs."""

    service: str
    settings: str
    command: tuple[str, ...] = ("aevents.demo.service",)


class Fleet:
    """Starts services and ends them; what they report goes into `facts`."""

    def __init__(self, folder: Path, facts: queue.SimpleQueue[Fact]) -> None:
        self._folder = folder
        self._facts = facts
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []
        # Held until the service starts, lest anybody else is given its port meanwhile.
        self._held = {name: _hold_a_port() for name in NAMES}
        self.ports: dict[str, int] = {name: held.getsockname()[1] for name, held in self._held.items()}

    def start(self, name: str, program: Program | None = None) -> None:
        """Start a service, or that program; it reports `started` when it is ready, `ended` if it ends.

        What has ended may be started again.
        """
        program = program or Program(name, f"aevents.demo.{name}.settings")
        if held := self._held.pop(name, None):
            held.close()
        ports = {f"{other.upper()}_PORT": str(port) for other, port in self.ports.items()}
        environment = {
            **os.environ,
            **ports,
            "SERVICE": program.service,
            "PORT": str(self.ports[program.service]),
            "DATABASE": str(self.database(program.service)),
            "DJANGO_SETTINGS_MODULE": program.settings,
        }
        with self._log(name).open("ab") as log:
            process = self._processes[name] = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, "-m", *program.command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the runner's affair
            )
        reader = threading.Thread(target=self._read, args=(name, process.stdout), daemon=True)
        self._readers.append(reader)
        reader.start()

    def database(self, service: str) -> Path:
        """Return the SQLite file of a service."""
        return self._folder / f"{service}.sqlite3"

    def kill(self, name: str) -> int:
        """End a process without a word (`kill -9`); return its number."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        _close(process.stdin)
        return process.pid

    def end(self, name: str) -> int:
        """End a process as one should; return its exit code."""
        process = self._processes.pop(name)
        _close(process.stdin)
        return _end(process)

    def stop(self) -> dict[str, int]:
        """End every service that was started; return their exit codes."""
        for held in self._held.values():
            held.close()
        self._held.clear()
        for process in self._processes.values():  # all at once
            _close(process.stdin)
        codes = {name: _end(process) for name, process in self._processes.items()}
        for reader in self._readers:
            reader.join()
        return codes

    @property
    def names(self) -> list[str]:
        """The names of all that was ever started."""
        return sorted(path.stem for path in self._folder.glob("*.log"))

    def log_tail(self, name: str) -> str:
        """Return the last lines that a service wrote to stderr."""
        try:
            text = self._log(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _read(self, name: str, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                fact = from_line(line)
                if fact is not None:
                    self._facts.put(fact)
        self._facts.put(Fact(time.time(), name, "ended"))


def _hold_a_port() -> socket.socket:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _close(stdin: IO[bytes] | None) -> None:
    if stdin is not None:
        stdin.close()
