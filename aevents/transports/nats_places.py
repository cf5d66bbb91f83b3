"""What has to be in JetStream: one stream for a prefix, one consumer for each type and pattern of a group.

What is missing is made; what is there stays as its operator has it, as long as it can serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.transports import topics
from aevents.transports.base import Wanted
from aevents.transports.nats_connection import Connection
from aevents.transports.sources import is_wanted

_GIVEN_OUT = 10_000  # messages of one consumer that all replicas may have at a time
_NO_CONSUMER, _TOO_LARGE, _NAME_IN_USE, _NO_STREAM = (
    10014,
    10054,
    10058,
    10059,
)  # JetStream's numbers for errors
_NANOSECONDS = 1_000_000_000


def stream_of(prefix: str) -> str:
    """Return the name of a prefix's stream: no dot may stand in it."""
    return prefix.removesuffix(".").replace(".", "_")


def consumer_of(group: str, wanted: str, *, is_pattern: bool = False) -> str:
    """Return the name of a group's consumer for a type or a pattern: legible, and its alone."""
    digest = hashlib.blake2b(repr((group, wanted, is_pattern)).encode(), digest_size=5).hexdigest()
    return f"{topics.word_of(group)[:80]}-{topics.word_of(wanted)[:80]}-{digest}"


async def require_stream(connection: Connection, prefix: str, options: Mapping[str, Any]) -> None:
    """Make the stream unless it is there; raises `Unavailable` where it does not take all of `prefix`."""
    name = stream_of(prefix)
    (found,) = await connection.api((f"STREAM.INFO.{name}", None))
    if number_of(found) == _NO_STREAM:
        (found,) = await connection.api((f"STREAM.CREATE.{name}", _stream(name, prefix, options)))
    if number_of(found) == _NAME_IN_USE:  # somebody was quicker
        (found,) = await connection.api((f"STREAM.INFO.{name}", None))
    if "error" in found:
        raise objection(f"the stream {name!r} cannot be made", found)
    if not any(_covers(each, f"{prefix}>") for each in found["config"].get("subjects") or ()):
        raise Unavailable(
            f"the stream {name!r} is there, but does not take the subjects {prefix}>", slowly=True
        )


async def require_consumers(
    connection: Connection,
    stream: str,
    filters: Mapping[str, str],
    patterns: Mapping[str, str],
    ack_wait_s: float,
) -> float:
    """Make those that are missing, each at the oldest message. `patterns`: whose consumers some of them are.

    Returns after how long the quickest of them gives what is not acknowledged to another.
    """
    infos = await connection.api(*((f"CONSUMER.INFO.{stream}.{name}", None) for name in filters))
    found = dict(zip(filters, infos, strict=True))
    missing = [name for name, info in found.items() if number_of(info) == _NO_CONSUMER]
    made = await connection.api(
        *(
            (
                f"CONSUMER.DURABLE.CREATE.{stream}.{name}",
                {
                    "stream_name": stream,
                    "config": _consumer(name, filters[name], patterns.get(name, ""), ack_wait_s),
                },
            )
            for name in missing
        )
    )
    found.update(zip(missing, made, strict=True))
    return min([ack_wait_s, *(_ack_wait_s(name, filters[name], info) for name, info in found.items())])


async def from_before(
    connection: Connection, stream: str, prefix: str, wanted: Wanted
) -> tuple[set[str], set[str]]:
    """Return types that a pattern stands for now and that the group has consumers of their own for; and the
    patterns of another version of it, where something waits.

    What waits there was acknowledged, unseen, at the consumer of a pattern that is wanted.
    """
    types: set[str] = set()
    patterns: set[str] = set()
    offset, total = 0, 1
    while offset < total:
        (page,) = await connection.api((f"CONSUMER.LIST.{stream}", {"offset": offset}))
        if "error" in page:
            raise objection("the consumers cannot be listed", page)
        infos = page.get("consumers") or []
        for info in infos:
            event_type = topics.type_of(info["config"].get("filter_subject", ""), prefix)
            if (
                event_type is not None
                and info["name"] == consumer_of(wanted.group, event_type)
                and is_wanted(event_type, wanted)
            ):
                types.add(event_type)
            pattern = info["config"].get("description") or ""
            if info["name"] == consumer_of(wanted.group, pattern, is_pattern=True) and (
                info.get("num_pending") or info.get("num_ack_pending")
            ):
                patterns.add(pattern)
        offset, total = offset + len(infos), page.get("total", 0) if infos else 0
    return types, patterns


def objection(what: str, said: Mapping[str, Any]) -> DeliveryError:
    """Return the error that JetStream's answer means."""
    error = said.get("error") or {}
    text = f"{what}: {error.get('description', 'no reason given')!s:.200} ({error.get('err_code', 0)})"
    if error.get("err_code") == _TOO_LARGE:
        return Refused(text)
    return Unavailable(text, slowly=400 <= error.get("code", 0) < 500)


def number_of(said: Mapping[str, Any]) -> int:
    """Return the number of the error in JetStream's answer, 0 where there is none."""
    return int((said.get("error") or {}).get("err_code", 0))


def _stream(name: str, prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    keep_s = 3600 * float(options.get("KEEP_HOURS", 168.0))
    window_s = min(keep_s, float(options.get("DUPLICATES_S", 120.0)))
    return {
        "name": name,
        "subjects": [f"{prefix}>"],
        "storage": "file",
        "retention": "limits",
        "max_age": int(keep_s * _NANOSECONDS),
        "duplicate_window": int(window_s * _NANOSECONDS),
        "num_replicas": int(options.get("REPLICAS", 1)),
    }


def _consumer(name: str, filter_subject: str, pattern: str, ack_wait_s: float) -> dict[str, Any]:
    return {
        "durable_name": name,
        "description": pattern,
        "filter_subject": filter_subject,
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * _NANOSECONDS),
        "max_deliver": -1,  # or it would drop, unseen, what has failed so often
        "max_ack_pending": _GIVEN_OUT,
    }


def _ack_wait_s(name: str, filter_subject: str, info: Mapping[str, Any]) -> float:
    """Return the time that a consumer has in fact; raises `Unavailable` where it cannot serve."""
    if "error" in info:
        raise objection(f"the consumer {name!r} cannot be made", info)
    config = info["config"]
    is_ours = config.get("filter_subject") == filter_subject and config.get("ack_policy") == "explicit"
    if not is_ours or config.get("deliver_subject"):
        raise Unavailable(
            f"the consumer {name!r} was changed: it must be one to pull from, acknowledge explicitly and have"
            f" the filter {filter_subject}",
            slowly=True,
        )
    return float(config["ack_wait"]) / _NANOSECONDS


def _covers(pattern: str, wanted: str) -> bool:
    """Tell whether all subjects of `wanted` are among those of `pattern`."""
    has, wants = pattern.split("."), wanted.split(".")
    for place, word in enumerate(has):
        if word == ">":
            return place < len(wants)
        if place >= len(wants) or wants[place] == ">" or word not in ("*", wants[place]):
            return False
    return len(has) == len(wants)
