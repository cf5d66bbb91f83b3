"""The event itself: made by the emitter, carried as a Message, handed to the handlers. Knows nobody."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import time as _time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aevents import payload as _payload

MAX_TYPE_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Event:
    """One event, the same on both sides of the wire.

    `id` is a uuid as a string, the same over every try and for every service. `data` holds the
    payload's exact JSON bytes; `payload` decodes them anew at each access, so that nobody shares a
    mutable object. `time` is when it was emitted (aware, UTC). `cause` is the id of the event whose
    handler emitted this one, `correlation` the id of the first event of the family, `hops` how many
    events stand between them. `attempt` counts how often this handler was started for this event.
    """

    id: str
    type: str
    data: bytes = field(repr=False)  # logs hold reprs, and no payload
    source: str
    time: datetime
    key: str | None = None
    cause: str | None = None
    correlation: str | None = None
    hops: int = 0
    trace: str | None = None
    attempt: int = 1
    id_scope: str = ""  # in which a foreign sender's id is unique, where that is not everywhere

    @property
    def identity(self) -> str:
        """What makes it the same event as another: duplicates are known by it, and what it causes."""
        return f"{self.id_scope}\0{self.id}" if self.id_scope else self.id

    @property
    def payload(self) -> Any:
        """The payload, decoded afresh: yours to change."""
        return _payload.decode(self.data)


@dataclass(frozen=True, slots=True)
class Message:
    """What travels: lower-case headers and the exact bytes of the body."""

    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:  # neither the payload nor a signature
        return f"<Message {self.headers.get('webhook-id', '')!r:.210} of {len(self.body)} bytes>"


def is_event_type(value: object) -> bool:
    """Tell whether `value` may name a type: a printable string of 1 to 200 characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TYPE_LENGTH and value.isprintable()


@functools.lru_cache(1024)
def pattern(text: str) -> re.Pattern[str]:
    """Return the expression of a pattern of types, in which `*` stands for any run of characters."""
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7): sortable by millisecond, 74 random bits."""
    now, random = f"{_time.time_ns() // 1_000_000:012x}", _random_digits()
    return f"{now[:8]}-{now[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:]}"


def derived_id(parent_id: str, handler: str, event_type: str, nth: int) -> str:
    """Return the id (UUIDv8) of the n-th event of a type that a handler emits for a parent.

    The same handler running again for the same parent gets the same ids, so that its followers
    recognise what they have seen.
    """
    name = "\0".join((parent_id, handler, event_type, str(nth))).encode("utf-8", "surrogatepass")
    text = hashlib.sha256(name).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


# What a digit is as the variant's: two bits of it are given (RFC 9562, section 4.1).
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
# Random digits in store: asking the kernel for those of each event costs as much as encoding it.
_random: deque[str] = deque()
_random_pid = os.getpid()  # a fork in C runs no hooks (uWSGI): the child must not share its parent's store


def _random_digits() -> str:
    global _random, _random_pid
    if _random_pid != os.getpid():
        _random = deque()  # first: another thread that finds the right pid finds this
        _random_pid = os.getpid()
    while True:
        try:
            return _random.popleft()
        except IndexError:
            fresh = os.urandom(19 * 128).hex()
            _random.extend([fresh[n : n + 19] for n in range(0, len(fresh), 19)])
