"""CloudEvents' bindings that are not HTTP's: its headers in, those of a broker's messages out, and back.

Kafka's and AMQP's write attributes as they are, in UTF-8; HTTP's and NATS's percent-encode them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from aevents import wire

_READ = frozenset(wire.HEADERS)
#: Which is written alike, percent-encoded or not.
_ALIKE = re.compile(r"[!#$&-~]*")


def plain(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return HTTP's headers for a binding whose attributes begin with `prefix` and are as they are."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith("ce-"):
            name = prefix + name[3:]
            if "%" in value:
                value = wire.unquote(value) or value
        found[name] = value
    return found


def as_http(headers: Iterable[tuple[str | bytes, str]], prefix: str) -> dict[str, str]:
    """Return what `plain` had made of HTTP's headers, or a foreign sender's of the same binding."""
    found: dict[str, str] = {}
    for name, value in headers:
        known, is_attribute = _http_name(name, prefix)
        if known:
            found[known] = wire.quote(value) if is_attribute and not _ALIKE.fullmatch(value) else value
    return found


@functools.lru_cache(256)
def _http_name(name: str | bytes, prefix: str) -> tuple[str, bool]:
    """Return what HTTP calls it, and whether it is an attribute; empty where nobody reads it."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    is_attribute = text.startswith(prefix)
    found = "ce-" + text[len(prefix) :].lower() if is_attribute else text.lower()
    return (found if found in _READ else "", is_attribute or found.startswith("ce-"))
