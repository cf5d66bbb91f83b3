"""Many events in one body: `application/cloudevents-batch+json`, events in, one Message out, and back.

Each event is a structured CloudEvent 1.0 whose `data` is the payload. The payload's bytes are the same
as in the single form: written as they are, and cut out of what this module wrote by their
`datalength`, which stands right before them. What others wrote is parsed and its payloads are encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aevents import cloudevents, payload, retry, wire
from aevents.answer import Answer, Receipt
from aevents.errors import DeliveryError, MalformedMessage, NotTogether, Unavailable
from aevents.event import Event, Message, new_id
from aevents.settings import conf

#: What a receiver says of itself in each answer's `Accept-Post`.
OFFER = f"{wire.BATCH}, {wire.JSON}"
#: About what an event takes beside its payload.
BYTES_BESIDE_THE_PAYLOAD = 400

# No string in JSON holds this, as it would hold quotes: what stands before it is whole members, or broken.
_DATA = re.compile(rb',"datalength":([1-9]\d{0,8}),"data":')
_DATA_MEMBERS = {"data", "data_base64"}  # of which an event has one
_COMMA, _CLOSE = ord(","), ord("}")
_NOT_TAKEN = frozenset({400, 404, 413, 415})  # said of the batch as a whole
_DETAIL_LENGTH = 100  # of each event, so that the answer to a full batch is read whole
_ANSWER_BYTES = 48 * 1024
_TAKEN = Receipt()


# Out


def encode(events: Sequence[Event]) -> Message:
    """Return the message that carries `events`; `wire.stamp` makes it one try's message."""
    body = b"[%b]" % b",".join([cloudevents.dump(event) for event in events])
    return Message({"content-type": wire.BATCH, "webhook-id": new_id()}, body)


def judge(
    status: int, body: bytes | None, retry_after: str | None, ids: Sequence[str]
) -> list[Receipt | DeliveryError]:
    """Return what an answer says of each event; raises what it says of all, `NotTogether` included.

    `body` is None where it did not come whole: then nobody knows which of them were taken.
    """
    if status in _NOT_TAKEN:
        raise NotTogether(f"a batch was answered {status}")
    if not 200 <= status < 300:
        retry.judge(status, body or b"", retry_after)
    verdicts = _verdicts(body)
    if verdicts is None:
        raise Unavailable("the answer to a batch cannot be read")
    return [_outcome(verdicts.get(id)) for id in ids] if verdicts else [_TAKEN] * len(ids)


def _verdicts(body: bytes | None) -> dict[str, dict[str, Any]] | None:
    if not body:
        return None if body is None else {}
    try:
        content = orjson.loads(body)
    except ValueError:
        return None
    listed = content.get("events", []) if isinstance(content, dict) else []
    if not isinstance(listed, list):
        return None
    return {
        entry["id"]: entry
        for entry in listed
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and type(entry.get("status")) is int
    }


def _outcome(verdict: dict[str, Any] | None) -> Receipt | DeliveryError:
    if verdict is None or 200 <= verdict["status"] < 300:
        return _TAKEN
    wait_s = verdict.get("retry_after_s")
    if isinstance(wait_s, bool) or not isinstance(wait_s, (int, float)) or wait_s < 0:
        wait_s = None
    else:
        wait_s = min(float(wait_s), retry.MAX_RETRY_AFTER_S)
    # It answered, so it is well: what it said is of this event alone.
    return retry.failure(verdict["status"], verdict.get("detail"), wait_s, answered=True)


# In


def is_one(headers: Mapping[str, str]) -> bool:
    """Tell whether a message says that it is a batch."""
    return wire.media_type(headers) == wire.BATCH


def decode(message: Message) -> list[Event | tuple[str, MalformedMessage]]:
    """Return the events, and in place of one that is none its id and the answer to give.

    Raises `MalformedMessage` for a batch that is none.
    """
    wire.require_media_type(message.headers, wire.BATCH)
    wire.require_size(message.body)
    found = _cut(message.body)
    if found is None:
        found = _parse(message.body)
    _require_number(found)
    events: list[Event | tuple[str, MalformedMessage]] = []
    for attributes, data in found:
        try:
            events.append(cloudevents.event_of(attributes, data))
        except MalformedMessage as error:
            id = attributes.get("id") if isinstance(attributes, dict) else None
            events.append((id if isinstance(id, str) else "", error))
    return events


def _cut(body: bytes) -> list[tuple[Any, bytes | None]] | None:
    """Return attributes and payload of each event as `encode` writes them, or None where it did not.

    Each piece is known to be one JSON value, so the whole is what a parser takes it for.
    """
    if body == b"[]":
        return []
    if not (body.startswith(b"[") and body.endswith(b"]")):
        return None
    found: list[tuple[Any, bytes | None]] = []
    place, ends = 1, len(body) - 1  # at its last bracket
    while True:
        match = _DATA.search(body, place)
        if match is None:
            return None
        begins = match.end()
        stops = begins + int(match[1])
        if stops >= ends or body[stops] != _CLOSE:
            return None
        data = body[begins:stops]
        try:
            attributes = orjson.loads(body[place : match.start()] + b"}")
            payload.decode(data)
        except (ValueError, RecursionError):
            return None
        if not (isinstance(attributes, dict) and attributes) or attributes.keys() & _DATA_MEMBERS:
            return None
        found.append((attributes, data))
        if stops + 1 == ends:
            return found
        if body[stops + 1] != _COMMA:
            return None
        place = stops + 2


def _parse(body: bytes) -> list[tuple[Any, bytes | None]]:
    values = wire.parse(body)
    if not isinstance(values, list):
        raise MalformedMessage(400, "The body must be a JSON array.")
    _require_number(values)  # before there is a tuple for each of half a million
    return [(value, None) for value in values]


def _require_number(found: Sequence[Any]) -> None:
    most = conf().LIMITS.BATCH
    if len(found) > most:
        raise MalformedMessage(413, f"The batch has more than {most} events.")


def verdict(id: str, answer: Answer) -> dict[str, Any] | None:
    """Return what the answer to a batch says of an event, or None where that was simply taken."""
    if 200 <= answer.status < 300:
        return None
    said: dict[str, Any] = {"id": id, "status": answer.status}
    detail = answer.content.get("detail")
    if isinstance(detail, str):
        said["detail"] = detail[:_DETAIL_LENGTH]
    wait_s = retry.seconds_of(answer.headers.get("retry-after"))
    if wait_s is not None:
        said["retry_after_s"] = wait_s
    return said


def answer(verdicts: Sequence[dict[str, Any] | None]) -> Answer:
    """Return the answer to a batch: only what was not simply taken is listed."""
    listed = [each for each in verdicts if each is not None]
    found = Answer(200, {"events": listed})
    if len(listed) > 1 and len(found.body) > _ANSWER_BYTES:  # whoever reads it stops somewhere
        for each in listed:
            each.pop("detail", None)
    return found
