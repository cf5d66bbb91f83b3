"""The real brokers that the transports are tested on: where they are, and whether they must be there."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

VARIABLES = {
    "redis": "AEVENTS_TEST_REDIS",
    "rabbitmq": "AEVENTS_TEST_RABBITMQ",
    "nats": "AEVENTS_TEST_NATS",
}
ADDRESSES = {
    "redis": "redis://127.0.0.1:6379/0",
    "rabbitmq": "amqp://guest:guest@127.0.0.1:5672/",
    "nats": "nats://127.0.0.1:4222",
}


def address(kind: str) -> str:
    """Return the URL of the shared broker of this kind; one that does not answer skips, and in CI fails."""
    url = os.environ.get(VARIABLES[kind], "") or ADDRESSES[kind]
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), 5.0).close()
    except OSError as error:
        is_required = bool(os.environ.get("CI") or os.environ.get(VARIABLES[kind]))
        missing(
            f"{kind} does not answer at {parts.hostname}:{parts.port} ({VARIABLES[kind]}): {error}",
            is_required,
        )
    return url


def missing(reason: str, is_required: bool = bool(os.environ.get("CI"))) -> None:
    """Skip visibly; in CI fail."""
    (pytest.fail if is_required else pytest.skip)(reason)


class OwnBroker:
    """A broker of the test's own on a port of its own, which may be killed: one subclass for each kind.

    What it keeps stands in `folder`, and is there again after `start`. `is_safe`: it writes to disk before it
    confirms, as far as it can.
    """

    def __init__(self, folder: Path, *, is_safe: bool = True) -> None:
        self.folder = folder
        self.is_safe = is_safe
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self._restarting = threading.Lock()

    @property
    def url(self) -> str:
        """What stands in `BROKERS`."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return what starts it, in the foreground."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, also once more; return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ends = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < ends, "it does not answer"
            time.sleep(0.05)

    def answers(self) -> bool:
        """Tell whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kill it -9, with whatever it has started; nothing if it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def bury(self, group: str) -> None:
        """Take the clients of this group, which were killed, for dead; nothing where it does so by itself."""

    def restart(self, pause_s: float = 0.0, *, bury: str = "") -> None:
        """Kill it, start it again and `bury` that group; from any thread, one after another."""
        with self._restarting:
            self.kill()
            time.sleep(pause_s)
            self.start()
            if bury:
                self.bury(bury)
            self.restarts += 1


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
