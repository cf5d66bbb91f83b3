"""What Redis Streams hold for one consumer group: entries in, and their acknowledgements out.

What a replica was given and has neither acknowledged nor kept goes to another after `IDLE_S`. Old entries are
trimmed once all groups have them; nothing else is ever removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis.asyncio as client
import redis.exceptions as errors

from aevents.event import Message
from aevents.transports import topics
from aevents.transports.base import Wanted
from aevents.transports.bindings import as_http
from aevents.transports.sources import Held, Source, is_wanted

ATTRIBUTES = "ce_"
_BLOCK_S = 1.0
_TIDY_EVERY_S = 60.0
_STALE_S = 3600.0
_FOR_EVERYBODY_MS = 10 * 24 * 3_600_000  # how long ago a replica that ends says it touched an entry last


class RedisSource(Source):
    """The streams that one group wants."""

    can_fetch_ahead = False  # what waits here would lie idle, and seem to be abandoned

    def __init__(
        self,
        redis: client.Redis,
        wanted: Wanted,
        prefix: str,
        all_types: str,
        options: Mapping[str, Any],
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._all_types = all_types
        self._wanted = wanted
        self._group = topics.word_of(wanted.group)
        self._me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._streams: list[str] = []
        self._idle_ms = int(1000 * float(options.get("IDLE_S", 30.0)))
        self._keep_ms = int(3_600_000 * float(options.get("KEEP_HOURS", 24.0)))
        self.keep_every_s = self._idle_ms / 3000
        self._claims_at = self._looks_at = 0.0
        self._tidies_at = time.monotonic() + _TIDY_EVERY_S

    async def look_for_streams(self) -> None:
        """Make the group of each stream that is wanted, at its oldest entry; nothing where it is there."""
        self._looks_at = time.monotonic() + 1.0
        found = [topics.topic_of(each, self._prefix) for each in self._wanted.types]
        if self._wanted.patterns:
            members: Any = await self._redis.smembers(self._all_types)
            for member in members:
                topic = member.decode()
                event_type = topics.type_of(topic, self._prefix)
                if event_type is not None and is_wanted(event_type, self._wanted):
                    found.append(topic)
        for stream in dict.fromkeys(found):
            if stream in self._streams:
                continue
            try:
                await self._redis.xgroup_create(stream, self._group, id="0", mkstream=True)
            except errors.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            self._streams.append(stream)

    async def fetch(self, at_most: int) -> Sequence[Held]:
        now = time.monotonic()
        if now >= self._tidies_at:
            self._tidies_at = now + _TIDY_EVERY_S
            await self._tidy()
        if self._wanted.patterns and now >= self._looks_at:
            await self.look_for_streams()
        if now >= self._claims_at:
            self._claims_at = now + self._idle_ms / 2000
            abandoned = await self._claim(at_most)
            if abandoned:
                self._claims_at = 0.0  # there may be more
                return abandoned
        if not self._streams:
            await asyncio.sleep(_BLOCK_S)
            return []
        count = max(1, at_most // len(self._streams))
        try:
            reply: Any = await self._redis.xreadgroup(
                self._group, self._me, dict.fromkeys(self._streams, ">"), count, int(1000 * _BLOCK_S)
            )
        except errors.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._streams.clear()  # the server has lost them, or somebody flushed it
            await self.look_for_streams()
            return []
        return [
            _held(stream, entry_id, fields)
            for stream, entries in (reply.items() if isinstance(reply, dict) else reply or ())
            for entry_id, fields in _flat(entries)
        ]

    async def acknowledge(self, held: Sequence[Held]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for stream, ids in _by_stream(held).items():
                pipeline.xack(stream, self._group, *ids)
            await pipeline.execute()

    async def keep(self, held: Sequence[Held]) -> None:
        await self._claim_these(held, 0)

    async def release(self, held: Sequence[Held]) -> None:
        await self._claim_these(held, _FOR_EVERYBODY_MS)

    async def close(self) -> None:
        with contextlib.suppress(errors.RedisError, OSError):
            for stream in self._streams:
                await self._forget(stream, self._me)
        await self._redis.aclose()

    async def _claim_these(self, held: Sequence[Held], idle_ms: int) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for stream, ids in _by_stream(held).items():
                pipeline.xclaim(stream, self._group, self._me, 0, [*ids], idle=idle_ms, justid=True)
            await pipeline.execute()

    async def _claim(self, at_most: int) -> list[Held]:
        """Take over what others were given and have neither acknowledged nor kept."""
        found: list[Held] = []
        for stream in self._streams:
            try:
                reply: Any = await self._redis.xautoclaim(
                    stream, self._group, self._me, self._idle_ms, "0-0", count=at_most
                )
            except errors.ResponseError as error:
                if "NOGROUP" in str(error):
                    continue  # reading will find it out
                raise
            found += [
                _held(stream.encode(), entry_id, fields, is_again=True)
                for entry_id, fields in _flat(reply[1])
            ]
            if len(found) >= at_most:
                break
        return found

    async def _tidy(self) -> None:
        """Forget replicas that have left nothing behind, and old entries that all groups have."""
        for stream in self._streams:
            with contextlib.suppress(errors.ResponseError):
                for replica in await self._redis.xinfo_consumers(stream, self._group):
                    if not replica["pending"] and replica["idle"] > 1000 * _STALE_S:
                        await self._forget(stream, replica["name"])
                await self._trim(stream)

    async def _trim(self, stream: str) -> None:
        # Never by MAXLEN, which takes what nobody has read yet.
        oldest = (int(time.time() * 1000) - self._keep_ms, 0)
        for group in await self._redis.xinfo_groups(stream):
            reached = _parts(group["last-delivered-id"])
            if group["pending"]:
                pending: Any = await self._redis.xpending(stream, group["name"])
                if pending["min"]:
                    reached = min(reached, _parts(pending["min"]))
            oldest = min(oldest, reached)
        if oldest[0] > 0:
            await self._redis.xtrim(stream, minid=f"{oldest[0]}-{oldest[1]}", approximate=True)

    async def _forget(self, stream: str, replica: str | bytes) -> None:
        # Both at once on the server, or an entry that is given to it in between would be lost with it.
        await self._redis.eval(_FORGET, 1, stream, self._group, replica)


_FORGET = """
for _, entry in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local found = {}
    for n = 1, #entry, 2 do found[entry[n]] = entry[n + 1] end
    if found['name'] == ARGV[2] and found['pending'] == 0 then
        return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    end
end
return 0
"""


def _held(stream: bytes, entry_id: bytes, fields: Any, *, is_again: bool = False) -> Held:
    named = dict(fields or {})
    body = named.pop(b"data", b"")
    texts = [(name, value.decode("utf-8", "replace")) for name, value in named.items()]
    return Held(Message(as_http(texts, ATTRIBUTES), body), (stream, entry_id), is_again)


def _flat(entries: Any) -> Iterable[tuple[bytes, Any]]:
    """Yield the entries of one stream, in either shape that the client gives them; None is a deleted one."""
    for entry in entries:
        if isinstance(entry, list) and entry and isinstance(entry[0], (list, tuple)):
            yield from _flat(entry)
        elif entry and entry[0] is not None:
            yield entry[0], entry[1]


def _by_stream(held: Sequence[Held]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for each in held:
        stream, entry_id = each.handle
        found.setdefault(stream, []).append(entry_id)
    return found


def _parts(entry_id: str | bytes) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)
