"""Where the fuzzers begin: messages of every kind as we and others send them, and the tricky ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from aevents import batch, cloudevents, signature, wire
from aevents.event import Event
from tests.fuzz.packing import FLIP, OF_A_PEER, SIGN, pack
from tests.fuzz.targets import KEYS
from tests.test_wire import BAD_BODIES

MIB = 1024 * 1024
JSON = {"content-type": wire.JSON}
STRUCTURED = {"content-type": cloudevents.STRUCTURED}
BATCH = {"content-type": wire.BATCH}
BINARY = {**JSON, "ce-specversion": "1.0", "ce-type": "a", "ce-id": "1"}
_ID = "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6"
_EVENTS = [
    Event(_ID, "user-created", b'{"user_id":7}', "accounts", datetime(2026, 11, 23, 12, tzinfo=UTC)),
    Event(
        *(_ID, 'grüße, "welt" 50%', b'{"n":[1.5,null,123456789012345678901]}', "my service"),
        datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC),
        key="user 7",
        cause="the-cause",
        correlation="the-first",
        hops=3,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    Event(_ID, "from-peer", b"null", "peer", datetime(2026, 11, 23, 12, tzinfo=UTC)),
]
_ATTRIBUTES = (
    *("id", "type", "source", "time", "hops", "partitionkey", "traceparent"),
    *("data", "data_base64", "datacontenttype"),
)
#: What the readers look for, and what has been hard to read.
WORDS = (
    *(b'{"event_type":"', b'","payload":', b',"datalength":', b',"data":', b'"data_base64":"bnVsbA=="'),
    *(b'"specversion":"1.0"', b'"id":', b'"type":', b'"source":', b'"time":', b'"hops":', b'"traceparent":'),
    *(b'"datacontenttype":', b'"partitionkey":', wire.JSON.encode(), wire.BATCH.encode(), b"; charset="),
    *(cloudevents.STRUCTURED.encode(), b"utf-8", b"gzip", b"v1,", b"v1a,", b"\\u0000", b"\\ud800", b"%00"),
    *(b"1e999", b"12345678901234567890", b"[[[[[[[[", b"]]]]]]]]", b"\xef\xbb\xbf", b"\xc3\xbc", b"%C3%BC"),
    *(
        b"\na" + wire.JSON.encode(),
        b"\na" + wire.BATCH.encode(),
        b"\nc1",
        b"\ng1.0",
        b"\nia",
        b"\ne",
        b"\n\n",
    ),
)


def small() -> Iterator[bytes]:
    """Yield the messages of up to 4 KiB."""
    yield b""
    for event in _EVENTS:
        for message in (wire.encode(event), cloudevents.encode(event), batch.encode([event, event])):
            for orders in (0, SIGN, SIGN | OF_A_PEER, SIGN | FLIP):
                yield pack(message.headers, message.body, orders)
            yield pack(wire.stamp(message, KEYS), message.body)
    for body in BAD_BODIES.values():
        if len(body) < 4000:
            yield pack(JSON, body)
            yield pack(BINARY, body)
            yield pack(STRUCTURED, _with_data(body))
            yield pack(BATCH, b"[" + _with_data(body) + b"]")
    for headers in _headers():
        yield pack({**JSON, **headers}, b'{"event_type":"a","payload":{}}')
        yield pack({**BINARY, **headers}, b"{}")
    for attributes in _attributes():
        yield pack(STRUCTURED, json.dumps(attributes).encode())


def large() -> Iterator[bytes]:
    """Yield the messages of up to 1 MiB and one byte: those that take long, or much memory."""
    at_most = MIB - 40
    pieces = {
        "lists": b"[]",
        "objects": b"{}",
        "numbers": b"1",
        "nulls": b"null",
        "long numbers": b"12345678901234567890",
        "4300 digits": b"9" * 300,
        "floats": b"1.5",
        "short texts": b'"a"',
        "escapes": b'"' + b"\\u00fc" * 100 + b'"',
        "nested": b"[" * 62 + b"]" * 62,
    }
    for piece in pieces.values():
        values = b"[" + b",".join([piece] * ((at_most - 3) // (len(piece) + 1))) + b"]"
        yield pack(JSON, b'{"event_type":"a","payload":' + values + b"}")
        yield pack(JSON, b'{"event_type": "a", "payload":' + values + b"}")
        yield pack(BATCH, values)
    mixed = b"[12345678901234567890," + b"1," * (at_most // 2 - 20) + b"null]"
    yield pack(JSON, b'{"event_type": "a", "payload":' + mixed + b"}")
    keys = b"{" + b",".join(b'"%06d":0' % n for n in range(at_most // 11 - 1)) + b"}"
    yield pack(JSON, b'{"event_type":"a","payload":' + keys + b"}")
    yield pack(JSON, b'{"event_type":"a","payload":"' + b"x" * (MIB - 31) + b'"}')
    yield pack(JSON, b'{"event_type":"a","payload":"' + b"x" * (MIB - 30) + b'"}')  # a byte too many
    yield pack(JSON, b'{"event_type":"' + b"a" * at_most + b'","payload":1}')
    yield pack(JSON, b'"' + b"[" * at_most + b'"')
    yield pack(JSON, b"[" * at_most)
    yield pack(JSON, b'{"a":' * (at_most // 5))
    yield pack(JSON, b" " * MIB)
    events = [_EVENTS[1]] * 257
    yield pack(batch.encode(events).headers, batch.encode(events).body)
    yield pack(batch.encode(events[:-1]).headers, batch.encode(events[:-1]).body, SIGN)
    bulk = Event(_ID, "bulk", b'{"text":"' + b"x" * 3900 + b'"}', "accounts", _EVENTS[0].time)
    whole = batch.encode([bulk] * 250)
    yield pack(whole.headers, whole.body, SIGN)
    yield pack(whole.headers, whole.body[:-1] + b" ]", SIGN)  # which is not as we write it
    for value in ("v1,x " * 10_000, "%41" * 20_000, '"' + "\\x" * 30_000 + '"', "9" * 60_000, "," * 60_000):
        for name in ("webhook-signature", "ce-source", "ce-type", "webhook-id", "ce-id", "content-type"):
            yield pack({**JSON, "webhook-id": "1", "webhook-timestamp": _now(), name: value}, b"{}")


def _with_data(body: bytes) -> bytes:
    return b'{"specversion":"1.0","id":"1","type":"a","datalength":%d,"data":%b}' % (len(body), body)


def _headers() -> Iterator[Mapping[str, str]]:
    for value in ("", " ", "v1", "v1,", "v1,@", "a,b,c", "\xff", "v1a,AAAA", "v1,A" * 9, "v1,A v1,B"):
        yield {"webhook-id": "1", "webhook-timestamp": _now(), "webhook-signature": value}
    signed = signature.sign(KEYS[:1], "1", int(_now()), b'{"event_type":"a","payload":{}}')
    for value in (signed, signed[:-1], signed[:10], f"{signed},{signed}", f"v1,A {signed}"):
        yield {"webhook-id": "1", "webhook-timestamp": _now(), "webhook-signature": value}
    for apart_s in (-301, -299, 299, 301, 3600):
        moment = int(_now()) + apart_s
        signed = signature.sign(KEYS[1:], "1", moment, b"{}")
        yield {"webhook-id": "1", "webhook-timestamp": str(moment), "webhook-signature": signed}
    for value in ("0", "-1", "1.5", " 17 ", "1_7", "\xb2", "NaN", "9" * 12, "9" * 13, "+1"):
        yield {"webhook-id": "1", "webhook-timestamp": value, "webhook-signature": "v1,A"}
    for value in ("gzip", "identity", "br, gzip", "\x00"):
        yield {"content-encoding": value}
    for value in (
        "",
        "text/plain",
        f"{wire.JSON}; charset=utf-16",
        'APPLICATION/JSON;charset="utf8"',
        ";=\xff",
    ):
        yield {"content-type": value}
    for value in ("a", "b", "%61", '"a"', '"\\a"', "%", "%ff", "%0d%0a", "<script>", "\x1b[31m", "a" * 201):
        said = dict.fromkeys(("ce-type", "ce-id", "ce-source", "webhook-id"), value)
        yield {"ce-specversion": "1.0", **said}
    for value in (
        "2026-11-23T12:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31t23:59:59-23:59",
        "20261123",
    ):
        yield dict.fromkeys(("ce-time", "ce-hops", "traceparent", "ce-partitionkey"), value)


def _attributes() -> Iterator[object]:
    plain = {"specversion": "1.0", "id": "1", "type": "a"}
    yield from ([], "x", None, plain, {**plain, "specversion": 1.0}, {**plain, "data_base64": "bnVsbA=="})
    values: list[Any] = [None, 0, 10**30, -1, True, 1.5, "", "1", "a" * 300, [], {}, "\x00", "ü"]
    for name in _ATTRIBUTES:
        for value in values:
            yield {**plain, name: value}


def _now() -> str:
    return str(int(time.time()))
