"""CloudEvents 1.0: an Event in, a structured one out, and back; and the binary ones of foreign senders in.

https://github.com/cloudevents/spec, `spec.md`, `formats/json-format.md`, `bindings/http-protocol-binding.md`.
In the structured form `data` is the payload and everything stands in the body, so all of it is signed. In the
binary form the type is a header, which nobody signs: it is for those who take unsigned events.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from aevents import payload, wire
from aevents.errors import MalformedMessage
from aevents.event import MAX_TYPE_LENGTH, Event, Message, is_event_type
from aevents.settings import conf

STRUCTURED = "application/cloudevents+json"
FORMAT = "cloudevents"  # in the settings

_UTC_WITH_Z = orjson.OPT_UTC_Z
_JSON_TYPE = re.compile(r"[a-z]+/([!-.0-~]+\+)?json\s*(;.*)?", re.IGNORECASE)
_SOURCE = re.compile(rb'"source":"([^"\\]{1,3074})"')  # as `dump` writes it
_HEAD_BYTES = 4096
_A_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# Out


def encode(event: Event) -> Message:
    """Return the message that carries `event` in structured form; `wire.stamp` makes it one try's message."""
    return Message({"content-type": STRUCTURED, "webhook-id": event.id}, dump(event))


def dump(event: Event) -> bytes:
    """Return the event as JSON, its payload's exact bytes last, behind their number."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": wire.reference_to(event.source),
        "type": event.type,
        "time": event.time,
        "datacontenttype": wire.JSON,
    }
    if event.key is not None:
        attributes["partitionkey"] = event.key
    if event.cause is not None:
        attributes["causationid"] = event.cause
        attributes["correlationid"] = event.correlation or event.cause
        attributes["hops"] = event.hops
    if event.trace is not None:
        attributes["traceparent"] = event.trace
    attributes["datalength"] = len(event.data)
    return b'%b,"data":%b}' % (orjson.dumps(attributes, None, _UTC_WITH_Z)[:-1], event.data)


# In


def is_structured(headers: Mapping[str, str]) -> bool:
    """Tell whether a message says that it is one event in structured form."""
    return wire.media_type(headers) == STRUCTURED


def decode(message: Message) -> Event:
    """Return the event of a structured message; raises `MalformedMessage` with the answer to give."""
    wire.require_media_type(message.headers, STRUCTURED)
    wire.require_size(message.body)
    return event_of(wire.parse(message.body), None)


def source_hint(body: bytes) -> str:
    """Return the service that a body names which `dump` has begun; unread as yet, it decides nothing."""
    found = _SOURCE.search(body, 0, _HEAD_BYTES)
    return wire.service_of(found[1].decode("utf-8", "replace")) if found else ""


def is_binary(message: Message) -> bool:
    """Tell whether it is an event whose type is a header, and whose body is the payload."""
    headers = message.headers
    if not ("ce-specversion" in headers and "ce-type" in headers) or wire.is_ours(message.body):
        return False
    if not message.body:  # an event without data; one of ours has lost its body
        return "webhook-id" not in headers
    if wire.media_type(headers) != wire.JSON:
        return False
    try:
        value = payload.decode(message.body)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(value, dict) and "event_type" in value)


def decode_binary(message: Message) -> Event:
    """Return the event of a message that `is_binary`; raises `MalformedMessage` with the answer to give."""
    if message.body:
        wire.require_media_type(message.headers, wire.JSON)
        wire.require_size(message.body)
    attributes: dict[str, Any] = {
        name.removeprefix("ce-"): wire.unquote(value)
        for name, value in message.headers.items()
        if name.startswith("ce-")
    }
    # The event's own trace, where it has one, is where it began; the other header is this request's.
    attributes["traceparent"] = attributes.get("traceparent") or message.headers.get("traceparent")
    return event_of(attributes, message.body or b"null")


def event_of(attributes: Any, data: bytes | None) -> Event:
    """Return the event that these attributes make, with the payload's bytes if they are known already."""
    if not isinstance(attributes, dict):
        raise MalformedMessage(400, "Each event must be a JSON object.")
    if attributes.get("specversion") != "1.0":
        raise MalformedMessage(400, "specversion must be '1.0'.")
    id, event_type = attributes.get("id"), attributes.get("type")
    if not (isinstance(id, str) and is_event_type(id)):
        raise MalformedMessage(400, f"id must be a printable string of 1 to {MAX_TYPE_LENGTH} characters.")
    if not (isinstance(event_type, str) and is_event_type(event_type)):
        raise MalformedMessage(400, f"type must be a printable string of 1 to {MAX_TYPE_LENGTH} characters.")
    media_type = attributes.get("datacontenttype")
    if not (media_type is None or media_type == wire.JSON) and not (
        isinstance(media_type, str) and _JSON_TYPE.fullmatch(media_type)
    ):
        raise MalformedMessage(400, "datacontenttype must be JSON.")
    if data is None:
        data = _data_of(attributes)
    nesting = conf().LIMITS.NESTING
    if payload.nests_deeper_than(nesting, data):
        raise MalformedMessage(400, f"The payload nests deeper than {nesting} levels.")
    source, cause = attributes.get("source"), _hint(attributes.get("causationid"))
    return Event(
        id,
        event_type,
        data,
        wire.service_of(source),
        wire.time_of(_hint(attributes.get("time"))),
        _hint(attributes.get("partitionkey")),
        cause,
        _hint(attributes.get("correlationid")) or cause,
        _hops(attributes["hops"]) if "hops" in attributes else 0,
        wire.trace_of(_hint(attributes.get("traceparent"))),
        id_scope="" if _A_UUID.fullmatch(id) else _scope(source),
    )


def _scope(source: object) -> str:
    """Say in what an id is unique that is no UUID: ours everywhere, another's (`1`) within its `source`."""
    if not isinstance(source, str):
        return ""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _data_of(attributes: dict[str, Any]) -> bytes:
    """Return the payload; what has none is an event all the same, and its payload is null."""
    try:
        if attributes.get("data_base64") is None:
            return payload.encode_anew(attributes.get("data"))
        if "data" in attributes:
            raise MalformedMessage(400, "The event has both 'data' and 'data_base64'.")
        data = base64.b64decode(attributes["data_base64"], validate=True)
        return payload.encode_anew(payload.decode(data))
    except (TypeError, ValueError, binascii.Error, RecursionError):
        raise MalformedMessage(400, "The payload nests too deep, or is not JSON.") from None


def _hint(value: object) -> str | None:
    if value is None:
        return None
    is_text = isinstance(value, str) and 0 < len(value) <= wire.MAX_HINT_LENGTH and value.isprintable()
    return value if is_text else None  # type: ignore[return-value]  # it is one


def _hops(value: object) -> int:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
