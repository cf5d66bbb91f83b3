"""Reports what aevents does in this process: its signals in, a line on stdout for each out."""

from __future__ import annotations

import os
import time
from typing import Any

from aevents import Event, signals
from aevents.demo.facts import Fact, to_line
from aevents.settings import conf

_STDOUT = 1


def connect() -> None:
    """Start reporting."""
    signals.event_emitted.connect(_emitted)
    signals.event_delivered.connect(_delivered)
    signals.delivery_failed.connect(_not_delivered)
    signals.event_received.connect(_received)
    signals.event_duplicate.connect(_duplicate)
    signals.handler_succeeded.connect(_handled)
    signals.handler_failed.connect(_raised)


def report(
    what: str, event: str = "", who: str = "", elapsed_s: float | None = None, detail: str = ""
) -> None:
    """Write one fact."""
    ms = None if elapsed_s is None else elapsed_s * 1000
    # One write, so that the lines of several threads never mix.
    os.write(_STDOUT, to_line(Fact(time.time(), conf().SERVICE, what, event, who, ms, detail)))


def _emitted(event: Event, services: tuple[str, ...], **_: Any) -> None:
    report("emitted", event.type, ", ".join(services), detail="in a handler" if event.cause else "")


def _delivered(event: Event, service: str, attempts: int, elapsed_s: float, verdict: str, **_: Any) -> None:
    detail = "no handler there" if verdict == "unhandled" else _at_try(attempts)
    report("delivered", event.type, service, elapsed_s, detail)


def _not_delivered(event: Event, service: str, elapsed_s: float, error: str, outcome: str, **_: Any) -> None:
    if outcome in ("failed", "parked"):
        report(outcome, event.type, service, elapsed_s, error)
    else:
        report("retried", event.type, service, elapsed_s, f"{outcome}: {error}")


def _received(event: Event, handlers: tuple[str, ...], **_: Any) -> None:
    if not handlers:
        report("unhandled", event.type)


def _duplicate(event: Event, **_: Any) -> None:
    report("duplicate", event.type)


def _handled(event: Event, handler: str, elapsed_s: float, **_: Any) -> None:
    report("handled", event.type, _short(handler), elapsed_s, _at_try(event.attempt))


def _raised(event: Event, handler: str, elapsed_s: float, error: BaseException, **_: Any) -> None:
    report("raised", event.type, _short(handler), elapsed_s, f"{type(error).__name__}: {error}")


def _short(handler: str) -> str:
    """Return `app.function` of `aevents.demo.<service>.<app>.<module>.<function>`."""
    *_, app, _module, function = handler.split(".")
    return f"{app}.{function}"


def _at_try(attempt: int) -> str:
    return f"at try {attempt}" if attempt > 1 else ""
