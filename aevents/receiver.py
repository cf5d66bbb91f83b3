"""The receiving half: a Message in, its handlers run, an Answer out. The same for every way in.

A batch's answer is 200, and lists what was not simply taken.

2xx means that this service owns the event: it is handled, or stored for its handlers. Where there is no
store it is 503 when a handler has failed, so that the emitter tries again and only the rest runs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Sequence

from django.conf import settings as django_settings

from aevents import (
    batch,
    cloudevents,
    dispatcher,
    inbox,
    intake,
    log,
    replies,
    routes,
    signals,
    signature,
    wire,
)
from aevents.answer import Answer
from aevents.errors import MalformedMessage
from aevents.event import Event, Message
from aevents.keeper import keeper
from aevents.loops import start_task
from aevents.settings import conf, is_recording
from aevents.subscriptions import handlers_of
from aevents.transports.base import Brought
from aevents.transports.local import LocalTransport

#: Of a body that is refused for its size, so many bytes are read on and forgotten: see `aevents.views`.
DRAINED_BYTES = 8 * 1024 * 1024
_WARN_EVERY_S = 60.0
_NOT_HANDLED = "The event could not be handled here; the log says why."
_FAILED = Answer(503, {"status": "failed", "detail": _NOT_HANDLED})
_MAX_PEERS = 1000
_logger = logging.getLogger("aevents")
_warned_at: dict[str, float] = {}
log.connect()


async def receive(message: Message, *, peer: str, at_home: bool) -> Answer:
    """Take one message; return the answer. Whatever arrives, no exception but a cancellation leaves.

    `peer`: where it came from, for the log. `at_home`: see `dispatcher.on_handlers_loop`.
    """
    try:
        signer = _signer(message, peer)
        if batch.is_one(message.headers):
            return await _handle_all(_allowed(batch.decode(message), signer), peer, at_home=at_home)
        event = _decode(message, signer)
        _require_sender(event, signer)
    except MalformedMessage as error:
        return _refused(peer, error)
    return await _handle(event, at_home=at_home)


async def receive_all(brought: Sequence[Brought], *, peer: str) -> list[Answer]:
    """Take what a broker has brought, where it may have waited for days; return the answers, in order.

    Each message is one event. What must be in its place, and what may have ended a process before, is stored
    before its handlers run, as if with `INBOX`. Whatever comes, no exception but a cancellation leaves.
    """
    found = [_found(each.message, peer, of_any_time=True) for each in brought]
    is_first = [
        each.is_again or event.key is not None
        for each, event in zip(brought, found, strict=True)
        if isinstance(event, Event)
    ]
    return await _answers(found, peer, is_first, at_home=False)


async def receive_together(messages: Sequence[Message], *, peer: str) -> list[Answer]:
    """Take messages that have come at once, and whose senders wait: each as `receive` would, on this loop."""
    is_batch = [batch.is_one(message.headers) for message in messages]
    found = [_found(message, peer) for message, many in zip(messages, is_batch, strict=True) if not many]
    if len(found) == len(messages):  # the rule
        return await _answers(found, peer, (), at_home=True)
    batches = [message for message, many in zip(messages, is_batch, strict=True) if many]
    singles = start_task(_answers(found, peer, (), at_home=True))
    others = await asyncio.gather(*[receive(each, peer=peer, at_home=True) for each in batches])
    left = {True: iter(others), False: iter(await singles)}
    return [next(left[many]) for many in is_batch]


def _found(message: Message, peer: str, *, of_any_time: bool = False) -> Event | tuple[str, MalformedMessage]:
    try:
        signer = _signer(message, peer, of_any_time=of_any_time)
        event = _decode(message, signer)
        _require_sender(event, signer)
    except MalformedMessage as error:
        return message.headers.get("webhook-id", ""), error
    except Exception:  # it must not hold up what comes with it, nor come again for ever
        _logger.exception("A message could not be read")
        unread = MalformedMessage(400, "The message could not be read here; the log says why.")
        return message.headers.get("webhook-id", ""), unread
    return event


def refusal_of_length(length: str) -> Answer | None:
    """Return the answer to a `Content-Length` that is enough to refuse the message, "" being none."""
    if not length:
        return None
    if not (length.isascii() and length.isdigit()):
        return Answer(400, {"detail": "Content-Length must be a number."})
    most = conf().LIMITS.BODY_BYTES
    if len(length) > 18 or int(length) > most:
        return Answer(413, {"detail": f"The body is larger than {most} bytes."})
    return None


def _decode(message: Message, signer: str | None) -> Event:
    if cloudevents.is_structured(message.headers):
        return cloudevents.decode(message)
    if signer is None and cloudevents.is_binary(message):  # its type is a header, which nobody signs
        return cloudevents.decode_binary(message)
    return wire.decode(message)


def _allowed(
    found: Sequence[Event | tuple[str, MalformedMessage]], signer: str | None
) -> Sequence[Event | tuple[str, MalformedMessage]]:
    if not routes.are_senders_limited():
        return found
    judged: list[Event | tuple[str, MalformedMessage]] = []
    for each in found:
        try:
            if isinstance(each, Event):
                _require_sender(each, signer)
            judged.append(each)
        except MalformedMessage as error:
            judged.append((each.id if isinstance(each, Event) else each[0], error))
    return judged


async def _handle(event: Event, *, at_home: bool) -> Answer:
    _tell_of(event)
    try:
        if is_recording():  # in a user's tests handlers run in the test's own thread
            return replies.of_handlers(event, await dispatcher.run_here(event))
        return await dispatcher.on_handlers_loop(inbox.take_in(event), at_home=at_home)
    except Exception:  # no threads to be had, say: the emitter keeps the event and comes again
        _logger.exception("An event could not be handled", extra={"event_id": event.id})
        return Answer(503, {"id": event.id, "status": "failed", "detail": _NOT_HANDLED})


async def _handle_all(
    found: Sequence[Event | tuple[str, MalformedMessage]], peer: str, *, at_home: bool
) -> Answer:
    answers = await _answers(found, peer, (), at_home=at_home)
    if answers and all(answer is _FAILED for answer in answers):
        return _FAILED
    ids = [each.id if isinstance(each, Event) else each[0] for each in found]
    return batch.answer([batch.verdict(id, answer) for id, answer in zip(ids, answers, strict=True)])


async def _answers(
    found: Sequence[Event | tuple[str, MalformedMessage]],
    peer: str,
    is_first: Sequence[bool],
    *,
    at_home: bool,
) -> list[Answer]:
    """Return what becomes of each. `is_first`: see `intake.take_in_all`."""
    events = [each for each in found if isinstance(each, Event)]
    _tell_of(*events)
    taken: Iterator[Answer]
    try:
        if is_recording():
            taken = iter([replies.of_handlers(event, await dispatcher.run_here(event)) for event in events])
        else:
            taking = intake.take_in_all(events, is_first)
            taken = iter(await dispatcher.on_handlers_loop(taking, at_home=at_home))
    except Exception:
        _logger.exception("A batch could not be handled")
        taken = itertools.repeat(_FAILED)
    return [next(taken) if isinstance(each, Event) else _refused(peer, each[1]) for each in found]


def _tell_of(*events: Event) -> None:
    for event in events if signals.is_heard(signals.event_received) else ():
        names = tuple(subscription.name for subscription in handlers_of(event.type))
        signals.announce(signals.event_received, event=event, handlers=names)
    keeper.begin()


def _refused(peer: str, error: MalformedMessage) -> Answer:
    _warn(peer, "Refused an event from %s: %d, %s", log.safe(peer), error.status, error.detail)
    return Answer(error.status, {"detail": error.detail})


def _require_sender(event: Event, signer: str | None) -> None:
    if not routes.may_send(event.type, signer):
        who = f"{signer!r} is" if signer else "Whoever this is, no secret of its own says so: it is"
        raise MalformedMessage(
            403,
            f"{who} not among those from whom AEVENTS['SENDERS'] of this service takes events of this type.",
        )


def _signer(message: Message, peer: str, *, of_any_time: bool = False) -> str | None:
    """Return which service's secret signed it, or "" for the fleet's; None where unsigned is taken."""
    try:
        mistakes = routes.mistakes()
    except Exception as error:  # SERVICES or SUBSCRIPTIONS is no mapping, or cannot be imported
        mistakes = (f"AEVENTS cannot be read ({type(error).__name__}): manage.py check says why",)
    if mistakes:
        _warn("settings", "No event is taken in before this is mended: %s", "; ".join(mistakes))
        raise MalformedMessage(503, "This service's settings are wrong; its log says where.")
    ring = routes.keys()
    if ring and message.headers.get("webhook-signature"):
        hint = wire.source_in(message.headers) or cloudevents.source_hint(message.body)
        return signature.verify(message, ring.verifying(hint), of_any_time=of_any_time)
    rule = conf().UNSIGNED
    if rule is None:
        rule = "accept" if django_settings.DEBUG or is_recording() else "refuse"
    if rule == "accept":
        return None
    if rule == "warn":
        _warn(peer, "An unsigned event came from %s", log.safe(peer))
        return None
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
