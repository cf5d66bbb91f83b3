"""The one listener that writes the `aevents` logger: facts in, one line each out.

Levels: delivered and handled DEBUG; retried, parked and deferred INFO; a destination that is down WARNING; a
failed handler (with its traceback), a dead letter and a lost event ERROR. Every record carries
`event_id`, `event_type` and what else is known (`service`, `handler`, `target`, `outcome`, `attempts`,
`elapsed_s`), so that one event can be followed through the logs of both services. Never the payload.
"""

from __future__ import annotations

import logging
from typing import Any

from aevents import signals
from aevents.event import Event

logger = logging.getLogger("aevents")
_AGAIN = (
    logging.INFO,
    "Not delivered %(event)s to %(service)s at try %(attempts)s (%(outcome)s): %(error)s",
)
#: How a call's tries end; any other outcome is a try that is followed by another.
_ENDS = {
    "failed": (
        logging.ERROR,
        "Lost %(event)s: not delivered to %(service)s after %(attempts)s tries: %(error)s",
    ),
    "parked": (
        logging.INFO,
        "Parked %(event)s for %(service)s after %(attempts)s tries, to be tried again: %(error)s",
    ),
}


def connect() -> None:
    """Start listening; called again, it changes nothing."""
    logger.handle = _handle  # type: ignore[method-assign]  # whoever else made the logger before us
    for signal, listener in (
        (signals.event_emitted, _emitted),
        (signals.event_delivered, _delivered),
        (signals.delivery_failed, _not_delivered),
        (signals.delivery_dead, _dead),
        (signals.event_received, _received),
        (signals.event_duplicate, _duplicate),
        (signals.handler_succeeded, _handled),
        (signals.handler_failed, _not_handled),
        (signals.handler_deferred, _deferred),
        (signals.destination_down, _down),
        (signals.destination_up, _up),
    ):
        signal.connect(listener, dispatch_uid="aevents.log")


def _emitted(event: Event, services: tuple[str, ...], **_: Any) -> None:
    _write(logging.DEBUG, "Emitted %(event)s to %(to)s", event, to=", ".join(services) or "nobody")


def _delivered(event: Event, service: str, attempts: int, elapsed_s: float, verdict: str, **_: Any) -> None:
    message = "Delivered %(event)s to %(service)s"
    if verdict == "unhandled":
        message += ", which has no handler for it"
    _write(
        logging.DEBUG,
        message,
        event,
        service=service,
        outcome="delivered",
        attempts=attempts,
        elapsed_s=elapsed_s,
        verdict=verdict,
    )


def _not_delivered(
    event: Event, service: str, attempts: int, elapsed_s: float, error: str, outcome: str, **_: Any
) -> None:
    level, message = _ENDS.get(outcome, _AGAIN)
    _write(
        level,
        message,
        event,
        service=service,
        outcome=outcome,
        attempts=attempts,
        elapsed_s=elapsed_s,
        error=error,
    )


def _dead(event: Event, target: str, attempts: int, error: str, **_: Any) -> None:
    _write(
        logging.ERROR,
        "Dead letter %(event)s for %(target)s after %(attempts)s tries, kept and can be replayed: %(error)s",
        event,
        target=target,
        outcome="dead",
        attempts=attempts,
        error=error,
    )


def _received(event: Event, handlers: tuple[str, ...], **_: Any) -> None:
    message = "Received %(event)s from %(source)s"
    if not handlers:
        message += ", for which there is no handler"
    _write(
        logging.DEBUG,
        message,
        event,
        source=event.source or "an unnamed service",
        handlers=handlers,
    )


def _duplicate(event: Event, **_: Any) -> None:
    _write(logging.DEBUG, "Dropped a duplicate of %(event)s", event, outcome="duplicate")


def _handled(event: Event, handler: str, elapsed_s: float, **_: Any) -> None:
    _write(
        logging.DEBUG,
        "Handled %(event)s in %(handler)s",
        event,
        handler=handler,
        outcome="handled",
        attempts=event.attempt,
        elapsed_s=elapsed_s,
    )


def _not_handled(event: Event, handler: str, elapsed_s: float, error: BaseException, **_: Any) -> None:
    _write(
        logging.ERROR,
        "The handler %(handler)s failed for %(event)s at try %(attempts)s",
        event,
        exc_info=(type(error), error, error.__traceback__),
        handler=handler,
        outcome="failed",
        attempts=event.attempt,
        elapsed_s=elapsed_s,
    )


def _deferred(event: Event, handler: str, elapsed_s: float, in_s: float, **_: Any) -> None:
    _write(
        logging.INFO,
        "The handler %(handler)s wants %(event)s again in %(in_s)s s",
        event,
        handler=handler,
        outcome="deferred",
        attempts=event.attempt,
        elapsed_s=elapsed_s,
        in_s=in_s,
    )


def _down(service: str, failures: int, pause_s: float, error: str, **_: Any) -> None:
    logger.warning(
        "%s is down: %d failures in a row, no try for %.1f s. Last: %s",
        service,
        failures,
        pause_s,
        safe(error),
        extra={"service": service},
    )


def _up(service: str, **_: Any) -> None:
    logger.info("%s is up again", service, extra={"service": service})


def _write(level: int, message: str, event: Event, *, exc_info: Any = None, **facts: Any) -> None:
    if not logger.isEnabledFor(level):
        return
    extra = {key: safe(value) if isinstance(value, str) else value for key, value in facts.items()}
    extra.update(event_id=safe(event.id), event_type=safe(event.type))
    shown = {**extra, "event": f"{extra['event_type']} {extra['event_id']}"}
    logger.log(level, message, shown, exc_info=exc_info, extra=extra)


_told_by = logging.Handler()


def _handle(record: logging.LogRecord) -> None:
    """Pass a record on. A handler of the project that raises is told on stderr, and stops no event."""
    try:
        type(logger).handle(logger, record)
    except Exception:
        _told_by.handleError(record)  # as the standard library's own handlers do


def safe(text: str) -> str:
    """Return `text` fit for a log line: what is not printable (line ends, terminal codes) escaped."""
    return text if text.isprintable() else ascii(text)
