"""CloudEvents' bindings that are not HTTP's: its headers in, those of a broker's messages out, and back.

Kafka's and AMQP's write attributes as they are, in UTF-8; HTTP's and NATS's percent-encode them.
"""

from __future__ import annotations

from collections.abc import Mapping

from aevents import wire

_READ = frozenset(wire.HEADERS)


def plain(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return HTTP's headers for a binding whose attributes begin with `prefix` and are as they are."""
    return {
        (prefix + name[3:] if name.startswith("ce-") else name): (
            (wire.unquote(value) or value) if name.startswith("ce-") else value
        )
        for name, value in headers.items()
    }


def as_http(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return what `plain` had made of HTTP's headers, or a foreign sender's of the same binding."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower() if not name.startswith(prefix) else "ce-" + name[len(prefix) :].lower()
        if name in _READ:
            found[name] = wire.quote(value) if name.startswith("ce-") else value
    return found
