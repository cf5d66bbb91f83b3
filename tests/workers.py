"""`manage.py aevents worker` as a process of the project `worker_project`, and what is owed to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aevents.models import Delivery, StoredEvent
from aevents.tables import IN
from tests import databases
from tests.peers import eventually
from tests.process_project.running import ROOT
from tests.test_store import an_event, store_one

WITHIN_S = 60.0  # generous: it ends a test that is broken


class Worker:
    """A worker of the project `worker_project`, and what its handlers have written."""

    def __init__(self, store: str, folder: Path, **env: str) -> None:
        self.log = folder / "worker.log"
        self.diary = folder / "diary"
        self.env = {
            **os.environ,
            **databases.environment(store),
            "PYTHONPATH": str(ROOT),
            "PYTHONDEVMODE": "1",
            "DJANGO_SETTINGS_MODULE": "tests.worker_project.settings",
            "DIARY": str(self.diary),
            **env,
        }

    def start(self, *words: str, stdout: int | None = None) -> Worker:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker_project.manage", "aevents", "worker", *words],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
            )
        return self

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def said(self, text: str) -> None:
        """Wait until it has printed this; fail where it ends first, or never does, with what it printed."""

        def is_said_or_ended() -> bool:
            return text in self.printed or self.process.poll() is not None

        with contextlib.suppress(AssertionError):
            eventually(is_said_or_ended, within_s=WITHIN_S)
        assert text in self.printed, self.printed

    def wrote(self, line: str) -> None:
        """Wait until a handler has written this."""
        eventually(
            lambda: line in self.lines or self.process.poll() is not None, within_s=WITHIN_S, what=line
        )
        assert line in self.lines, self.printed

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(WITHIN_S)

    def kill(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()


def owe(event_type: str, direction: int = IN, target: str = "", **payload: Any) -> None:
    event = an_event(event_type, data=json.dumps(payload).encode())
    store_one(target or event_type, direction=direction, event=event)


def rows(store: str) -> list[Delivery]:
    return list(Delivery.objects.using(store).order_by("pk"))


def is_empty(store: str) -> bool:
    return not rows(store) and not StoredEvent.objects.using(store).exists()
