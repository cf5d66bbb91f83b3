"""The receiving half: a Message in, its handlers run, an Answer out. The same for every way in.

2xx means that this service owns the event. Until the store exists the answer waits for the handlers:
200 when all have succeeded, 503 otherwise, so that the emitter tries again and only the rest runs.
"""

from __future__ import annotations

import logging
import time

from django.conf import settings as django_settings

from aevents import dispatcher, log, signals, wire
from aevents.answer import Answer
from aevents.errors import MalformedMessage
from aevents.event import Event, Message
from aevents.settings import conf, is_recording
from aevents.subscriptions import handlers_of
from aevents.transports.local import LocalTransport

_WARN_EVERY_S = 60.0
_MAX_PEERS = 1000
_logger = logging.getLogger("aevents")
_warned_at: dict[str, float] = {}
log.connect()


async def receive(message: Message, *, peer: str, at_home: bool) -> Answer:
    """Take one message; return the answer. Whatever arrives, no exception but a cancellation leaves.

    `peer`: where it came from, for the log. `at_home`: see `dispatcher.dispatch`.
    """
    try:
        _require_signature(message, peer)
        event = wire.decode(message)
    except MalformedMessage as error:
        _warn(peer, "Refused an event from %s: %d, %s", log.safe(peer), error.status, error.detail)
        return Answer(error.status, {"detail": error.detail})
    return await _handle(event, at_home=at_home)


async def _handle(event: Event, *, at_home: bool) -> Answer:
    names = tuple(subscription.name for subscription in handlers_of(event.type))
    if signals.is_heard(signals.event_received):
        signals.announce(signals.event_received, event=event, handlers=names)
    if not names:
        return Answer(200, {"id": event.id, "status": "unhandled"})
    try:
        handled = await dispatcher.dispatch(event, at_home=at_home)
    except Exception:  # no threads to be had, say: the emitter keeps the event and comes again
        _logger.exception("An event could not be handled", extra={"event_id": event.id})
        detail = "The event could not be handled here; the log says why."
        return Answer(503, {"id": event.id, "status": "failed", "detail": detail})
    failed = [entry.handler for entry in handled if entry.error is not None]
    if failed:
        return Answer(
            503,
            {
                "id": event.id,
                "status": "failed",
                "detail": f"These handlers failed: {', '.join(failed)}",
            },
        )
    if all(entry.again for entry in handled):
        signals.announce(signals.event_duplicate, event=event)
        return Answer(200, {"id": event.id, "status": "duplicate"})
    return Answer(200, {"id": event.id, "status": "handled"})


def _require_signature(message: Message, peer: str) -> None:
    rule = conf().UNSIGNED
    if rule is None:
        rule = "accept" if django_settings.DEBUG or is_recording() else "refuse"
    if rule == "accept":
        return
    if rule == "warn":
        _warn(peer, "An unsigned event came from %s", log.safe(peer))
        return
    raise MalformedMessage(
        401,
        "Unsigned events are refused here. AEVENTS['UNSIGNED'] = 'accept' takes them;"
        " unset, they are taken only while DEBUG is on.",
    )


def _warn(peer: str, text: str, *arguments: object) -> None:
    """Log a warning, at most one a minute for each peer."""
    now = time.monotonic()
    if now - _warned_at.get(peer, -_WARN_EVERY_S) < _WARN_EVERY_S:
        return
    if len(_warned_at) >= _MAX_PEERS:
        _warned_at.clear()
    _warned_at[peer] = now
    _logger.warning(text, *arguments, extra={"peer": log.safe(peer)})


async def _receive_own(message: Message) -> Answer:
    # From this very process: nobody else could have put it there, so no signature is asked for.
    return await _handle(wire.decode(message), at_home=False)


LocalTransport.serve("self", _receive_own)
