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
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from aevents import payload, signature
from aevents.errors import MalformedMessage
from aevents.event import MAX_TYPE_LENGTH, Event, Message, is_event_type, new_id
from aevents.settings import conf

JSON = "application/json"
BATCH = "application/cloudevents-batch+json"
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
    "ce-traceparent",
    "traceparent",
)
MAX_HINT_LENGTH = 256
_MAX_QUOTED_LENGTH = 2 + len("%F0%9F%92%A9") * MAX_HINT_LENGTH

# The body as we write it ourselves: the type in front, without an escape, then one value.
_OURS = re.compile(rb'\{"event_type":"([^"\\]+)","payload":')
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_SAFE_IN_A_PATH = "/:@!$&'()*+,;="  # besides letters, digits and _.-~ (RFC 3986, section 3.3)
_IN_QUOTES = re.compile(r'"((?:[^"\\]|\\.)*)"')


def encode(event: Event) -> Message:
    """Return the message of `event`; `stamp` makes it one try's message."""
    body = b'{"event_type":%b,"payload":%b}' % (orjson.dumps(event.type), event.data)
    headers = {
        "content-type": JSON,
        "webhook-id": event.id,
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": quote(event.type),
        "ce-source": quote(reference_to(event.source)),
        "ce-time": event.time.isoformat().replace("+00:00", "Z"),
    }
    if event.key is not None:
        headers["ce-partitionkey"] = quote(event.key)
    if event.cause is not None:
        headers["ce-causationid"] = quote(event.cause)
        headers["ce-correlationid"] = quote(event.correlation or event.cause)
        headers["ce-hops"] = str(event.hops)
    if event.trace is not None:
        headers["traceparent"] = event.trace
    return Message(headers, body)


def stamp(message: Message, keys: Sequence[bytes] = ()) -> dict[str, str]:
    """Return the headers of one try: those of `message`, the time of this attempt, and who vouches for it."""
    now = int(time.time())
    headers = {**message.headers, "webhook-timestamp": str(now)}
    if keys:
        headers["webhook-signature"] = signature.sign(keys, headers["webhook-id"], now, message.body)
    return headers


def decode(message: Message) -> Event:
    """Return the event that `message` holds; raises `MalformedMessage` with the answer to give."""
    headers = message.headers
    require_media_type(headers, JSON)
    require_size(message.body)
    event_type, data = _read_body(message.body)
    if not is_event_type(event_type):
        raise MalformedMessage(
            400, f"event_type must be a printable string of 1 to {MAX_TYPE_LENGTH} characters."
        )
    nesting = conf().LIMITS.NESTING
    if payload.nests_deeper_than(nesting, data):
        raise MalformedMessage(400, f"The payload nests deeper than {nesting} levels.")
    _require_agreement(headers, event_type)
    cause = _hint(headers, "ce-causationid")
    return Event(
        id=_id(headers),
        type=event_type,
        data=data,
        source=source_in(headers),
        time=time_of(_hint(headers, "ce-time")),
        key=_hint(headers, "ce-partitionkey"),
        cause=cause,
        correlation=_hint(headers, "ce-correlationid") or cause,
        hops=_hops(_hint(headers, "ce-hops")),
        trace=trace_of(headers.get("traceparent")),
    )


def media_type(headers: Mapping[str, str]) -> str:
    """Return the type of the body, without its parameters; empty where the headers name none."""
    content_type = headers.get("content-type", "")
    return JSON if content_type == JSON else content_type.partition(";")[0].strip().lower()


def require_media_type(headers: Mapping[str, str], wanted: str) -> None:
    """Raise `MalformedMessage` unless the body is of this type, plain and in UTF-8."""
    if headers.get("content-type") == wanted and "content-encoding" not in headers:  # the rule
        return
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise MalformedMessage(415, "Compressed bodies are not taken: send it without Content-Encoding.")
    if media_type(headers) != wanted:
        raise MalformedMessage(415, f"Content-Type must be {wanted}.")
    charset = (
        headers["content-type"]
        .partition(";")[2]
        .lower()
        .partition("charset=")[2]
        .partition(";")[0]
        .strip(' "')
    )
    if charset not in ("", "utf-8", "utf8"):
        raise MalformedMessage(415, "The charset must be utf-8.")


def require_size(body: bytes) -> None:
    """Raise `MalformedMessage` where the body is larger than allowed."""
    most = conf().LIMITS.BODY_BYTES
    if len(body) > most:
        raise MalformedMessage(413, f"The body is larger than {most} bytes.")


def is_ours(body: bytes) -> bool:
    """Tell whether a body begins as those that `encode` makes."""
    return _OURS.match(body) is not None


def parse(body: bytes) -> Any:
    """Return the body's JSON; raises `MalformedMessage` where it is none."""
    if not body.strip():
        raise MalformedMessage(400, "The body is empty.")
    try:
        return payload.decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(400, f"The body is not JSON in UTF-8: {error!s:.200}") from None


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
    value = parse(body)
    if not isinstance(value, dict):
        raise MalformedMessage(400, "The body must be a JSON object.")
    for member in ("event_type", "payload"):
        if member not in value:
            raise MalformedMessage(400, f"The body has no {member!r}.")
    try:
        return value["event_type"], payload.encode_anew(value["payload"])
    except (TypeError, RecursionError):
        raise MalformedMessage(400, "The payload nests too deep.") from None


def _require_agreement(headers: Mapping[str, str], event_type: str) -> None:
    # Only the body and webhook-id are signed: a header that says otherwise is a forgery.
    ce_type = headers.get("ce-type", event_type)
    if ce_type != event_type and unquote(ce_type) != event_type:
        raise MalformedMessage(400, "ce-type differs from the body's event_type.")
    ce_id, id = headers.get("ce-id"), headers.get("webhook-id")
    if ce_id is not None and id is not None and id != ce_id and id != unquote(ce_id):
        raise MalformedMessage(400, "ce-id differs from webhook-id.")


def _id(headers: Mapping[str, str]) -> str:
    value = headers.get("webhook-id") or unquote(headers.get("ce-id", ""))
    if value == "":
        return new_id()  # an emitter that knows only the body: each arrival is an event of its own
    if value is None or len(value) > MAX_TYPE_LENGTH or not value.isprintable():
        raise MalformedMessage(400, f"webhook-id must have at most {MAX_TYPE_LENGTH} printable characters.")
    return value


def _hint(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if not value:
        return None
    text = unquote(value)
    return text if text and text.isprintable() and len(text) <= MAX_HINT_LENGTH else None


def time_of(text: str | None) -> datetime:
    """Return the moment that `text` tells, or now where it tells none."""
    try:
        value = datetime.fromisoformat((text or "").upper())  # RFC 3339 has its T and Z in either case
        if value.tzinfo is UTC:
            return value
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return datetime.now(UTC)


def _hops(text: str | None) -> int:
    return int(text) if text and len(text) <= 3 and text.isascii() and text.isdigit() else 0


def trace_of(text: str | None) -> str | None:
    """Return the trace context, or None where it is none."""
    return text if text and _TRACEPARENT.fullmatch(text) else None


@functools.lru_cache(1024)
def quote(text: str) -> str:
    """Return a text as a header holds it: percent-encoded where it is not printable ASCII."""
    return text if text.isascii() and text.isalnum() else urllib.parse.quote(text, safe=_SAFE)


def unquote(text: str) -> str | None:
    """Return a header's text, or None where it is not percent-encoded UTF-8, or too long to be a hint."""
    if len(text) > _MAX_QUOTED_LENGTH:
        return None
    if "%" not in text and '"' not in text:  # the rule
        return text
    if text.startswith('"'):  # nobody writes it so any more, but it must be read (section 3.1.3.2)
        in_quotes = _IN_QUOTES.fullmatch(text)
        if in_quotes is not None:
            text = re.sub(r"\\(.)", r"\1", in_quotes[1])
    return _unquote(text)


def _unquote(text: str) -> str | None:
    if "%" not in text:
        return text
    try:
        return urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None


@functools.lru_cache(1024)
def reference_to(service: str) -> str:
    """Return what `source` says of a service: a path, as CloudEvents ask for a URI-reference."""
    # Two slashes at the beginning would name a host.
    path = urllib.parse.quote(service, safe=_SAFE_IN_A_PATH)
    return f"/%2F{path[1:]}" if path.startswith("/") else f"/{path}"


def service_of(source: object) -> str:
    """Return the service that a `source` names; one that is none of ours stays as it is."""
    if not isinstance(source, str):
        return ""
    service = source
    if source.startswith("/"):
        service = source[1:]
        if "%" in service:
            service = _unquote(service) or service
    return service if service.isprintable() and len(service) <= MAX_HINT_LENGTH else ""


def source_in(headers: Mapping[str, str]) -> str:
    """Return the service that the headers name, which nobody signs."""
    source = headers.get("ce-source", "")
    return _named(source) if len(source) <= _MAX_QUOTED_LENGTH else ""


@functools.lru_cache(1024)  # asked twice of each event, and of few services
def _named(source: str) -> str:
    return service_of(unquote(source))
