"""The wire format, only here: an Event in, a Message out, and back.

The body is `{"event_type": ..., "payload": ...}` and nothing else; all the rest travels in headers:
Standard Webhooks' `webhook-id` and `webhook-timestamp`, CloudEvents 1.0's `ce-*` (HTTP binding,
section 3.1: percent-encoded where not printable ASCII) and W3C's `traceparent`. Headers are hints:
what is dispatched is what the body says.
"""

from __future__ import annotations

import functools
import re
import time
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from aevents import payload
from aevents.errors import MalformedMessage
from aevents.event import MAX_TYPE_LENGTH, Event, Message, is_event_type, new_id
from aevents.settings import conf

JSON = "application/json"
#: The headers that are read; everything else is ignored.
HEADERS = (
    "content-type",
    "content-encoding",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "ce-specversion",
    "ce-id",
    "ce-type",
    "ce-source",
    "ce-time",
    "ce-partitionkey",
    "ce-causationid",
    "ce-correlationid",
    "ce-hops",
    "traceparent",
)
_MAX_HINT_LENGTH = 256

# The body as we write it ourselves: the type in front, without an escape, then one value.
_OURS = re.compile(rb'\{"event_type":"([^"\\]+)","payload":')
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')


def encode(event: Event) -> Message:
    """Return the message of `event`; `stamp` makes it one try's message."""
    body = b'{"event_type":%b,"payload":%b}' % (orjson.dumps(event.type), event.data)
    headers = {
        "content-type": JSON,
        "webhook-id": event.id,
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": _quote(event.type),
        "ce-source": _quote(f"/{event.source}"),
        "ce-time": event.time.isoformat().replace("+00:00", "Z"),
    }
    if event.key is not None:
        headers["ce-partitionkey"] = _quote(event.key)
    if event.cause is not None:
        headers["ce-causationid"] = _quote(event.cause)
        headers["ce-correlationid"] = _quote(event.correlation or event.cause)
        headers["ce-hops"] = str(event.hops)
    if event.trace is not None:
        headers["traceparent"] = event.trace
    return Message(headers, body)


def stamp(message: Message) -> dict[str, str]:
    """Return the headers of one try: those of `message` with the time of this attempt."""
    return {**message.headers, "webhook-timestamp": str(int(time.time()))}


def decode(message: Message) -> Event:
    """Return the event that `message` holds; raises `MalformedMessage` with the answer to give."""
    headers = message.headers
    _require_json(headers)
    limits = conf().LIMITS
    if len(message.body) > limits.BODY_BYTES:
        raise MalformedMessage(413, f"The body is larger than {limits.BODY_BYTES} bytes.")
    event_type, data = _read_body(message.body)
    if not is_event_type(event_type):
        raise MalformedMessage(
            400, f"event_type must be a printable string of 1 to {MAX_TYPE_LENGTH} characters."
        )
    if payload.nests_deeper_than(limits.NESTING, data):
        raise MalformedMessage(400, f"The payload nests deeper than {limits.NESTING} levels.")
    _require_agreement(headers, event_type)
    cause = _hint(headers, "ce-causationid")
    return Event(
        id=_id(headers),
        type=event_type,
        data=data,
        source=(_hint(headers, "ce-source") or "").removeprefix("/"),
        time=_time(headers.get("ce-time")),
        key=_hint(headers, "ce-partitionkey"),
        cause=cause,
        correlation=_hint(headers, "ce-correlationid") or cause,
        hops=_hops(headers.get("ce-hops")),
        trace=_trace(headers.get("traceparent")),
    )


def _require_json(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise MalformedMessage(415, "Compressed bodies are not taken: send it without Content-Encoding.")
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != JSON:
        raise MalformedMessage(415, f"Content-Type must be {JSON}.")
    charset = parameters.lower().partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in ("", "utf-8", "utf8"):
        raise MalformedMessage(415, "The charset must be utf-8.")


def _read_body(body: bytes) -> tuple[Any, bytes]:
    """Return the event type and the payload's bytes, the payload known to be JSON."""
    ours = _OURS.match(body)
    if ours is not None and body.endswith(b"}"):
        data = body[ours.end() : -1]
        try:
            payload.decode(data)  # one value and no more, so the body is an object of just these two
            return ours[1].decode(), data
        except (ValueError, RecursionError):
            pass  # more members, or broken: the whole body decides
    if not body.strip():
        raise MalformedMessage(400, "The body is empty.")
    try:
        value = payload.decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(400, f"The body is not JSON in UTF-8: {error!s:.200}") from None
    if not isinstance(value, dict):
        raise MalformedMessage(400, "The body must be a JSON object.")
    for member in ("event_type", "payload"):
        if member not in value:
            raise MalformedMessage(400, f"The body has no {member!r}.")
    try:
        return value["event_type"], payload.encode(value["payload"])
    except (TypeError, RecursionError):
        raise MalformedMessage(400, "The payload nests too deep.") from None


def _require_agreement(headers: Mapping[str, str], event_type: str) -> None:
    # Only the body and webhook-id will be signed: a header that says otherwise is a forgery.
    if "ce-type" in headers and _unquote(headers["ce-type"]) != event_type:
        raise MalformedMessage(400, "ce-type differs from the body's event_type.")
    ids = headers.get("ce-id"), headers.get("webhook-id")
    if None not in ids and ids[0] != ids[1]:
        raise MalformedMessage(400, "ce-id differs from webhook-id.")


def _id(headers: Mapping[str, str]) -> str:
    value = headers.get("webhook-id") or headers.get("ce-id")
    if not value:
        return new_id()  # an emitter that knows only the body: each arrival is an event of its own
    if len(value) > MAX_TYPE_LENGTH or not value.isprintable():
        raise MalformedMessage(400, f"webhook-id must have at most {MAX_TYPE_LENGTH} printable characters.")
    return value


def _hint(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if not value:
        return None
    text = _unquote(value)
    return text if text and text.isprintable() and len(text) <= _MAX_HINT_LENGTH else None


def _time(text: str | None) -> datetime:
    try:
        value = datetime.fromisoformat(text or "")
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return datetime.now(UTC)


def _hops(text: str | None) -> int:
    return int(text) if text and len(text) <= 3 and text.isascii() and text.isdigit() else 0


def _trace(text: str | None) -> str | None:
    return text if text and _TRACEPARENT.fullmatch(text) else None


@functools.lru_cache(1024)
def _quote(text: str) -> str:
    return text if text.isascii() and text.isalnum() else urllib.parse.quote(text, safe=_SAFE)


def _unquote(text: str) -> str | None:
    """Return the text, or None where it is not percent-encoded UTF-8."""
    if "%" not in text:
        return text
    try:
        return urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None
