"""Handlers that the processes subscribe by name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from aevents.settings import conf
from tests.crash_project.models import Effect
from tests.project.models import Note


def first(payload: dict[str, Any]) -> None:
    _record("first", payload)


def second(payload: dict[str, Any]) -> None:
    _record("second", payload)


def _record(handler: str, payload: dict[str, Any]) -> None:
    Effect.objects.using(conf().STORE).create(handler=handler, **payload)


# What they do, they write as a `Note`: "<handler> <n>".


def note(payload: dict[str, Any]) -> None:
    _note("note", payload)


def slow(payload: dict[str, Any]) -> None:
    _note("slow", payload)
    time.sleep(0.04)


def deadly(payload: dict[str, Any]) -> None:
    """End the process where the number is 666."""
    _note("deadly", payload)
    if payload["n"] == 666:
        os.kill(os.getpid(), signal.SIGKILL)


def stands_still(payload: dict[str, Any]) -> None:
    """Stop the process, in the midst of the transaction."""
    _note("stands_still", payload)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1.0)  # the signal may reach another thread first, and this one a moment later


def _note(handler: str, payload: dict[str, Any]) -> None:
    Note.objects.using(conf().STORE).create(text=f"{handler} {payload['n']}")
