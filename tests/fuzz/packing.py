"""A message as bytes that a fuzzer can change: bytes in, any message out, and back.

One byte of orders, then a line for each header (a letter for its name, then its value), an empty line, and
the body. Every sequence of bytes is some message.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aevents import signature, wire
from aevents.event import Message

#: The orders, bits of the first byte; signing has a time of now, or nothing would come past the verifier.
SIGN, OF_A_PEER, FLIP = 1, 2, 4

_FIRST_LETTER = ord("a")
_FIRST_ORDERS = ord("@")


@dataclass(frozen=True)
class Parcel:
    """A message that arrives, and whether its sender signed just this."""

    message: Message
    is_signed: bool


def pack(headers: Mapping[str, str], body: bytes, orders: int = 0) -> bytes:
    """Return the bytes of which `unpack` makes this message; headers that nobody reads are left out."""
    lines = [
        b"%c%b\n" % (_FIRST_LETTER + wire.HEADERS.index(name), value.encode("latin-1"))
        for name, value in headers.items()
        if name in wire.HEADERS
    ]
    return b"%c%b\n%b" % (_FIRST_ORDERS + orders, b"".join(lines), body)


def unpack(data: bytes, keys: Sequence[bytes]) -> Parcel:
    """Return the message in `data`, signed with one of the two `keys` where its orders say so."""
    orders = data[0] if data else 0
    headers: dict[str, str] = {}
    place = 1
    while place < len(data):
        end = data.find(b"\n", place)
        line = data[place : end if end >= 0 else len(data)]
        place += len(line) + 1
        if not line:
            break
        name = wire.HEADERS[(line[0] - _FIRST_LETTER) % len(wire.HEADERS)]
        text = line[1:].decode("latin-1")  # as every server reads them
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    body = data[place:]
    if not (orders & SIGN and headers.get("webhook-id")):
        return Parcel(Message(headers, body), is_signed=False)
    now = int(time.time())
    headers["webhook-timestamp"] = str(now)
    key = keys[bool(orders & OF_A_PEER)]
    headers["webhook-signature"] = signature.sign([key], headers["webhook-id"], now, body)
    if orders & FLIP:
        body = bytes([body[0] ^ 1]) + body[1:] if body else b" "
    return Parcel(Message(headers, body), is_signed=not orders & FLIP)
