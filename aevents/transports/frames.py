"""The frames of `tcp`: bytes of a stream in, frames out, and back. Both ends of a connection use them.

A client begins with the eight bytes of `PREFACE`: `AEVENTS` and the version, 1. After that both sides send
frames and nothing else, all numbers big-endian:

    bytes 0 to 3     u32   how many bytes follow in this frame: 8, the headers and the body
    bytes 4 to 7     u32   the request's id: its client's choice, not 0, and none that waits for its answer
    bytes 8 and 9    u16   the status of an answer, as in HTTP; 0 in a request
    bytes 10 and 11  u16   the length of the headers, at most 32,768
    then             the headers: a JSON object of strings by lower-case names, or nothing at all
    then             the body, whatever is left

Answers come in any order. One with the id 0 is about the whole connection: nothing more may be sent over it,
and it is what became of each request that stays without an answer of its own.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from aevents.answer import ANSWER_BYTES, Answer
from aevents.errors import MalformedMessage
from aevents.event import Message
from aevents.settings import conf
from aevents.wire import HEADERS

PREFACE = b"AEVENTS\x01"
HEADERS_BYTES = 32 * 1024
#: The headers of an answer that are read; everything else is ignored.
ANSWER_HEADERS = ("retry-after", "accept-post")
_HEAD = struct.Struct(">IIHH")
_COUNTED = 8  # bytes of the head that its length counts
_READ = frozenset(HEADERS)
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a dead peer is known in a minute


class Garbage(Exception):
    """What came is no frame; nothing that follows can be one."""


class Frame(NamedTuple):
    """One frame. `body` is None where it was larger than is taken: it was skipped, and its headers too."""

    id: int
    status: int
    headers: bytes
    body: bytes | None
    size: int


def pack(id: int, status: int, headers: bytes, body: bytes) -> bytes:
    """Return the bytes of a frame; raises `ValueError` where its headers are more than a frame holds."""
    if len(headers) > HEADERS_BYTES:
        raise ValueError(f"the headers have more than {HEADERS_BYTES} bytes")
    head = _HEAD.pack(_COUNTED + len(headers) + len(body), id, status, len(headers))
    return b"".join((head, headers, body))


def pack_answer(id: int, answer: Answer) -> bytes:
    """Return the frame of an answer. One that nobody would read whole becomes a 503, lest it be misread."""
    headers = [(name, answer.headers[name]) for name in ANSWER_HEADERS if name in answer.headers]
    frame = pack(id, answer.status, _written(*headers) if headers else b"", answer.body)
    if len(frame) > ANSWER_BYTES:
        return pack_answer(id, Answer(503, {"detail": f"The answer has more than {ANSWER_BYTES} bytes."}))
    return frame


@functools.lru_cache(256)  # those of most answers are the same
def _written(*headers: tuple[str, str]) -> bytes:
    return orjson.dumps(dict(headers))


def largest(body_bytes: int) -> int:
    """Return the size of the largest frame whose body has so many bytes."""
    return _HEAD.size + HEADERS_BYTES + body_bytes


def message_of(frame: Frame) -> Message:
    """Return the message of a request; raises `MalformedMessage` with the answer to give."""
    if frame.body is None:
        most = int(conf().LIMITS.BODY_BYTES)
        if frame.size > largest(most):
            raise MalformedMessage(413, f"The body is larger than {most} bytes.")
        raise MalformedMessage(503, "Too much is under way here.")
    try:
        found = orjson.loads(frame.headers) if frame.headers else {}
    except ValueError:
        found = None
    if type(found) is not dict or not set(map(type, found.values())) <= {str}:
        raise MalformedMessage(400, "The headers are no JSON object of strings.")
    if not found.keys() <= _READ:
        found = {name: found[name] for name in found if name in _READ}
    return Message(found, frame.body)


def refusal_of(error: MalformedMessage) -> Answer:
    """Return the answer to what is no message, or none for now."""
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return Answer(error.status, {"detail": error.detail}, headers)


@functools.lru_cache(256)
def hints_of(headers: bytes) -> tuple[str | None, str | None]:
    """Return `retry-after` and `accept-post` of an answer, None where it has none that can be read."""
    try:
        found = orjson.loads(headers) if headers else {}
    except ValueError:
        found = {}
    values: Mapping[str, Any] = found if isinstance(found, dict) else {}
    retry_after, accept_post = (values.get(name) for name in ANSWER_HEADERS)
    return (
        retry_after if isinstance(retry_after, str) else None,
        accept_post if isinstance(accept_post, str) else None,
    )


class Reader:
    """Cuts what comes over one connection into frames. Keeps no more than one that is not whole yet."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._needed = 0
        self._skipped = 0

    @property
    def kept_bytes(self) -> int:
        """How much is kept of a frame that is not whole yet."""
        return len(self._begun)

    @property
    def is_within_a_frame(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return bool(self._begun) or self._skipped > 0

    def feed(self, data: bytes, at_most: int) -> list[Frame]:
        """Return the frames that have come to their end, and those of more than `at_most` bytes at once.

        Raises `Garbage`.
        """
        if self._skipped:
            skipped = min(self._skipped, len(data))
            self._skipped -= skipped
            data = data[skipped:]
        if self._begun:
            self._begun += data
            if len(self._begun) < self._needed:  # or each byte of a slow sender would cost a copy of all
                return []
            data = bytes(self._begun)
            self._begun.clear()
        return self._cut(data, at_most)

    def _cut(self, data: bytes, at_most: int) -> list[Frame]:
        found = []
        place, ends, needed = 0, len(data), _HEAD.size
        while place + _HEAD.size <= ends:
            length, id, status, headers_length = _HEAD.unpack_from(data, place)
            if length < _COUNTED + headers_length or headers_length > HEADERS_BYTES:
                raise Garbage
            size = length + _HEAD.size - _COUNTED
            stops = place + size
            if size > at_most:
                found.append(Frame(id, status, b"", None, size))
                self._skipped = max(0, stops - ends)
            elif stops > ends:
                needed = size
                break
            else:
                begins = place + _HEAD.size
                body = begins + headers_length
                found.append(Frame(id, status, data[begins:body], data[body:stops], size))
            place = stops
        if place < ends:
            self._begun += data[place:] if place else data
            self._needed = needed
        return found


def keep_alive(transport: Any) -> None:
    """Have the system find out when the other side is gone without a word."""
    found = transport.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # as Linux has them
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
