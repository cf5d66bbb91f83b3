"""What an event type is called in a broker, and back: topics, subjects, routing keys and streams alike.

The rule: the prefix, then the type in UTF-8, in which ASCII letters, digits and `-` stand for themselves and
every other byte is written `_XX`, in upper-case hexadecimal; but a `_` that is not followed by two such
digits stays as it is. `user-created` is `aevents.user-created`, `user_created` is `aevents.user_created`,
`order.placed` is `aevents.order_2Eplaced`.
"""

from __future__ import annotations

import functools
import re

from aevents.errors import Refused

PREFIX = "aevents."
#: What Kafka allows, the shortest of all; RabbitMQ's routing keys have 255 bytes.
MAX_LENGTH = 249

_OTHERS = re.compile(rb"[^A-Za-z0-9_-]|_(?=[0-9A-F]{2})")
_WRITTEN = re.compile(rb"_([0-9A-F]{2})")
_PREFIX = re.compile(r"(?:[A-Za-z0-9-]+\.)*")


def mistake_in_prefix(prefix: object) -> str | None:
    """Say what is wrong with a `PREFIX` of `TRANSPORTS`, or None."""
    if isinstance(prefix, str) and _PREFIX.fullmatch(prefix) and len(prefix) <= 40:
        return None
    return "PREFIX must be at most 40 letters, digits and -, in words that each end with a dot"


@functools.lru_cache(4096)
def word_of(text: str) -> str:
    """Return any text as one word of letters, digits, `-` and `_`; `text_of` is the way back."""
    return _OTHERS.sub(lambda found: b"_%02X" % found[0][0], text.encode("utf-8", "surrogatepass")).decode()


def text_of(word: str) -> str:
    """Return the text that a word stands for; raises `ValueError` where it stands for none."""
    found = _WRITTEN.sub(lambda digits: bytes([int(digits[1], 16)]), word.encode())
    text = found.decode("utf-8", "surrogatepass")
    if word_of(text) != word:
        raise ValueError(f"{word!r:.80} stands for no event type")
    return text


@functools.lru_cache(4096)
def topic_of(event_type: str, prefix: str = PREFIX) -> str:
    """Return the name of the place where events of this type are; raises `Refused` where it is too long."""
    topic = prefix + word_of(event_type)
    if len(topic) > MAX_LENGTH:
        raise Refused(
            f"the event type {event_type!r:.60}... makes a name of {len(topic)} bytes in a broker,"
            f" which allows {MAX_LENGTH}: give it a shorter one"
        )
    return topic


def type_of(topic: str, prefix: str = PREFIX) -> str | None:
    """Return the event type of a place, or None where it is none of ours."""
    if not topic.startswith(prefix):
        return None
    try:
        return text_of(topic.removeprefix(prefix))
    except ValueError:
        return None
