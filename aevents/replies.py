"""What an emitter is answered: how its event fared here in, an Answer out."""

from __future__ import annotations

from collections.abc import Sequence

from aevents import outage, signals
from aevents.answer import Answer
from aevents.dispatcher import Handled
from aevents.errors import Again
from aevents.event import Event


def of_handlers(event: Event, handled: Sequence[Handled]) -> Answer:
    """Return the answer where all handlers have ended and nothing is stored."""
    is_again = bool(handled)
    has_failed = False
    for entry in handled:
        is_again = is_again and entry.again
        has_failed = has_failed or entry.error is not None
    if has_failed:
        failed = [entry for entry in handled if entry.error is not None]
        detail = f"These handlers failed: {', '.join(entry.handler for entry in failed)}"
        waits = [entry.exception.in_s for entry in failed if isinstance(entry.exception, Again)]
        headers = {"retry-after": str(round(max(waits)))} if waits else {}
        return Answer(503, {"id": event.id, "status": "failed", "detail": detail}, headers)
    if not handled:
        return Answer(200, {"id": event.id, "status": "unhandled"})
    if is_again:
        signals.announce(signals.event_duplicate, event=event)
        return Answer(200, {"id": event.id, "status": "duplicate"})
    return Answer(200, {"id": event.id, "status": "handled"})


def not_stored(event: Event, error: BaseException) -> Answer:
    """Return the answer where the database fails."""
    outage.tell("Events that arrive cannot be stored", error)
    detail = "The event could not be stored here; the log says why."
    return Answer(503, {"id": event.id, "status": "unavailable", "detail": detail}, {"retry-after": "1"})


def given_back(event: Event, why: str) -> Answer:
    """Return the answer to an event of a batch that is to come again."""
    return Answer(503, {"id": event.id, "status": "unavailable", "detail": why}, {"retry-after": "1"})
