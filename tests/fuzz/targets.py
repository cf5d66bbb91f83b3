"""What is fuzzed: any bytes in; an exception out only where a promise is broken.

`decoder` and `verifier` take the parts by themselves, `receiver` the whole way in. Beside "no exception but
a refusal" each holds what comes out to a second opinion: the other parser, the way out, plain HMAC.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from aevents import batch, cloudevents, routes, signature, wire
from aevents import receiver as receiving
from aevents.answer import Answer
from aevents.errors import MalformedMessage
from aevents.event import MAX_TYPE_LENGTH, Event, Message
from tests.fuzz.packing import unpack

FLEET, PEER = (signature.PREFIX + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
KEYS = [signature.key_of(FLEET), signature.key_of(PEER)]
#: Signed events are verified, and unsigned ones taken, so that most of what is made up is read.
AEVENTS = {
    "SERVICE": "tests",
    "UNSIGNED": "accept",
    "ENABLED": True,
    "STORE": None,
    "SECRETS": [FLEET],
    "SERVICES": {"peer": {"URL": "http://127.0.0.1:9", "SECRETS": [PEER]}},
    "SENDERS": {"from-peer": ["peer"]},
}
_REFUSALS = {400, 413, 415}
_COMPARED_BYTES = 64 * 1024  # longer ones are read once: reading them in two ways takes its time
_NESTED = 900  # about the most that orjson reads: a payload may be just within that, and the whole be not

Decoded = list[Event | tuple[str, MalformedMessage]]


def decoder(data: bytes) -> None:
    """Read the message in every format: each makes events that can be sent on, or refuses it."""
    message = unpack(data, KEYS).message
    for decode in (_one(wire.decode), _one(cloudevents.decode), _binary, batch.decode):
        found = _decoded(decode, message)
        if len(message.body) > _COMPARED_BYTES:
            continue
        if not isinstance(found, MalformedMessage):
            for each in found:
                _is_whole(each)
        # A blank in front, and the body is none of ours: it is parsed, and not cut.
        if message.body[:1] in (b"{", b"[") and message.body.count(b"[") < _NESTED:
            again = _decoded(decode, Message(message.headers, b" " + message.body))
            assert _essence(found, message.headers) == _essence(again, message.headers)


def verifier(data: bytes) -> None:
    """Verify the message: what passes is signed with one of the keys, and what was signed passes."""
    parcel = unpack(data, KEYS)
    id = parcel.message.headers.get("webhook-id", "")
    hint = wire.source_in(parcel.message.headers)
    name: str | None
    status = 0
    try:
        name = signature.verify(parcel.message, routes.keys().verifying(hint))
    except MalformedMessage as error:
        name, status = None, error.status
    if name is None:
        assert status == 401
        assert not parcel.is_signed or "." in id
    else:
        assert _is_vouched_for(parcel.message, KEYS[0] if name == "" else KEYS[1])


def receiver(data: bytes) -> None:
    """Take the message in: whatever it is, the answer is JSON and blames no fault on this service."""
    answer = received(unpack(data, KEYS).message)
    assert answer.status in {200, 400, 401, 403, 413, 415}
    content = json.loads(answer.body)
    assert answer.status == 200 or (set(content) == {"detail"} and content["detail"])


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (decoder, verifier, receiver)
}


def received(message: Message) -> Answer:
    """Return what the whole way in answers."""
    return _loop().run_until_complete(receiving.receive(message, peer="192.0.2.1", at_home=True))


def hang_up() -> None:
    """Close the loop on which messages were taken in."""
    if _loop.cache_info().currsize:
        _loop().close()
        _loop.cache_clear()


@functools.lru_cache(1)
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _one(decode: Callable[[Message], Event]) -> Callable[[Message], Decoded]:
    return lambda message: [decode(message)]


def _binary(message: Message) -> Decoded:
    return [cloudevents.decode_binary(message)] if cloudevents.is_binary(message) else []


def _decoded(decode: Callable[[Message], Decoded], message: Message) -> Decoded | MalformedMessage:
    try:
        found: Decoded | MalformedMessage = decode(message)
    except MalformedMessage as error:
        found = error
    refused = (
        [found] if isinstance(found, MalformedMessage) else [e[1] for e in found if isinstance(e, tuple)]
    )
    assert {error.status for error in refused} <= _REFUSALS
    return found


def _is_whole(found: Event | tuple[str, MalformedMessage]) -> None:
    """Hold an event to its promises, and to what comes back when it is sent on in each format."""
    if not isinstance(found, Event):
        return
    for name in (found.id, found.type):
        assert 0 < len(name) <= MAX_TYPE_LENGTH
        assert name.isprintable()
    assert repr(json.loads(found.data)) == repr(found.payload)
    assert found.time.utcoffset() is not None
    once = wire.encode(found)
    assert all(value.isprintable() for value in once.headers.values())
    _is_same(found, wire.decode(once))
    _is_same(found, cloudevents.decode(cloudevents.encode(found)))
    for each in batch.decode(batch.encode([found, found])):
        _is_same(found, each)
        assert isinstance(each, Event)
        assert each.data == found.data  # cut, not written anew


def _is_same(sent: Event, arrived: Event | tuple[str, MalformedMessage]) -> None:
    assert isinstance(arrived, Event), arrived
    for name in ("id", "type", "source", "time", "key", "cause", "trace"):
        if name != "trace" or sent.trace:
            assert getattr(sent, name) == getattr(arrived, name), name
    assert repr(sent.payload) == repr(arrived.payload)


def _essence(found: Decoded | MalformedMessage, headers: Mapping[str, str]) -> Any:
    """Return what must be the same however a body is read: not the ids and times that it lacks."""
    if isinstance(found, MalformedMessage):
        return found.status
    has_id = bool(headers.get("webhook-id") or wire.unquote(headers.get("ce-id", "")))
    return [
        (each.id if has_id else "", each.type, repr(each.payload), each.source, each.key, each.cause)
        if isinstance(each, Event)
        else (each[0], each[1].status)
        for each in found
    ]


def _is_vouched_for(message: Message, key: bytes) -> bool:
    """Verify anew, without a line of ours: the specification's words as they stand."""
    id, timestamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    signed = id.encode() + b"." + timestamp.encode() + b"." + message.body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    is_recent = abs(time.time() - int(timestamp)) <= 301  # five minutes, and the second that went by since
    return is_recent and expected in message.headers["webhook-signature"].split(" ")
