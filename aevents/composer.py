"""Makes events: a type and a payload in, an Event out, which inherits from the one being handled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aevents import payload as _payload
from aevents import scope
from aevents.errors import InvalidEvent
from aevents.event import MAX_TYPE_LENGTH, Event, is_event_type, new_id
from aevents.settings import conf

MAX_HOPS = 16


def make_event(event_type: str, payload: Any, key: str | None) -> Event:
    """Return a new event, caused by the one whose handler runs; raises `InvalidEvent`."""
    if not is_event_type(event_type):
        raise InvalidEvent(
            f"the event type must be a printable string of 1 to {MAX_TYPE_LENGTH} characters,"
            f" not {event_type!a:.60}"
        )
    if key is not None and not is_event_type(key):
        raise InvalidEvent(f"the key of {event_type!r} must be a printable string of 1 to 200 characters")
    data = _encoded(event_type, payload)
    source, now, parent = conf().SERVICE, datetime.now(UTC), scope.current()
    if parent is None:
        return Event(new_id(), event_type, data, source, now, key)
    cause = parent.event
    if cause.hops >= MAX_HOPS:
        raise InvalidEvent(
            f"{event_type!r} is the end of a chain of {MAX_HOPS} events, each emitted by a handler of the"
            f" one before (the first was {cause.correlation}): do services answer each other in a circle?"
        )
    return Event(
        parent.next_id(event_type),
        event_type,
        data,
        source,
        now,
        key,
        cause=cause.id,
        correlation=cause.correlation or cause.id,
        hops=cause.hops + 1,
        trace=cause.trace,
    )


def _encoded(event_type: str, value: Any) -> bytes:
    limits = conf().LIMITS
    if not isinstance(value, dict):
        raise InvalidEvent(f"the payload of {event_type!r} must be a dict, not {type(value).__name__}")
    try:
        data = _payload.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"the payload of {event_type!r} is not JSON: {error!s:.200}") from error
    if len(data) > limits.EVENT_BYTES:
        raise InvalidEvent(
            f"the payload of {event_type!r} has {len(data)} bytes, more than {limits.EVENT_BYTES}:"
            " send a reference, or raise AEVENTS['LIMITS']['EVENT_BYTES']"
        )
    if _payload.nests_deeper_than(limits.NESTING, data):
        raise InvalidEvent(f"the payload of {event_type!r} nests deeper than {limits.NESTING} levels")
    return data
