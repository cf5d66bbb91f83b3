"""`redis://` and `rediss://`: Redis Streams, one stream for each event type, one consumer group for each service.

An entry has plain fields, as other languages read them: `ce_id`, `ce_type`, ... without percent-encoding,
`webhook-id`, `webhook-timestamp`, `webhook-signature`, `content-type`, and `data`, the body. Redis has no binding
in CloudEvents' specification: the names are those of the Kafka one. What Redis has answered to XADD is as durable
as its `appendfsync` says.

Options (`TRANSPORTS["redis"]`): `PREFIX`; `KEEP_HOURS` (24): for how long entries are kept that all groups have;
`IDLE_S` (30): after which what a replica has not acknowledged goes to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio as client
import redis.exceptions as errors

from aevents.errors import DeliveryError, Unavailable
from aevents.event import Message
from aevents.settings import conf
from aevents.transports import topics
from aevents.transports.base import Destination, Wanted
from aevents.transports.broker import BrokerTransport, Held, Outgoing, Source, as_http, is_wanted, plain, text_of

_BLOCK_S = 1.0
_CONNECTIONS = 4
_LOST_S = 10.0  # for any answer, those after a wait included
_TIDY_EVERY_S = 60.0
_RENEW_EVERY_S = 60.0  # the entry of a type in the set of all types, lest a flushed server miss it
_STALE_S = 3600.0
_FOR_EVERYBODY_MS = 10 * 24 * 3_600_000  # how long ago a replica that ends says it touched an entry last
_ATTRIBUTES = "ce_"


class RedisTransport(BrokerTransport):
    """XADD to the stream of the type; XREADGROUP of those that are wanted, and XAUTOCLAIM of what lies too long."""

    schemes = ("redis", "rediss")
    can_replay = True
    has_wildcards = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._clients: dict[Destination, client.Redis] = {}
        self._announced: dict[tuple[str, str], float] = {}

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - parsed when asked for
        except ValueError:
            return "it is no URL (what is special in a password must be percent-encoded)"
        if parts.scheme.lower() not in cls.schemes:
            return "it must begin with redis:// or rediss://"
        if not parts.hostname:
            return "it has no host"
        if not re.fullmatch(r"/?[0-9]{0,6}", parts.path):
            return "after the host there may only be the number of a database"
        return None

    async def publish(
        self, destination: Destination, messages: Sequence[Outgoing]
    ) -> Sequence[DeliveryError | None]:
        async with self._client(destination).pipeline(transaction=False) as pipeline:
            places = []
            for message in messages:
                if self._is_to_be_announced(destination, message.topic):
                    pipeline.sadd(self._all_types, message.topic)
                    places.append(-1)
                pipeline.execute_command("XADD", message.topic, "*", *_fields(message))
                places.append(0)
            replies = await pipeline.execute(raise_on_error=False)
        for place, reply in zip(places, replies, strict=True):
            if place < 0 and isinstance(reply, Exception):
                self._announced.clear()  # nobody has learnt of it
        entries = [reply for place, reply in zip(places, replies, strict=True) if place == 0]
        return [_said(reply) for reply in entries]

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        source = RedisSource(self, _connect(place), wanted)
        try:
            await source.look_for_streams()
        except BaseException:
            await source.close()
            raise
        return source

    async def close(self) -> None:
        for each in self._clients.values():
            await each.aclose()
        self._clients.clear()

    @property
    def _all_types(self) -> str:
        return f"{self.prefix}_types"  # no type is called so: its `_` would be followed by digits or be `_5F`

    def _is_to_be_announced(self, destination: Destination, topic: str) -> bool:
        """Tell whether the set of all types has to be told of this one: who wants patterns looks there."""
        now = time.monotonic()
        if now - self._announced.get((destination.name, topic), -_RENEW_EVERY_S) < _RENEW_EVERY_S:
            return False
        if len(self._announced) >= 10_000:
            self._announced.clear()
        self._announced[destination.name, topic] = now
        return True

    def _client(self, destination: Destination) -> client.Redis:
        found = self._clients.get(destination)
        if found is None:
            found = self._clients[destination] = _connect(destination)
        return found


class RedisSource(Source):
    """The streams that one group wants. A second connection does what must not wait for the first, which blocks."""

    can_fetch_ahead = False  # what waits here would lie idle, and seem to be abandoned

    def __init__(self, transport: RedisTransport, redis: client.Redis, wanted: Wanted) -> None:
        self._redis = redis
        self._transport = transport
        self._wanted = wanted
        self._group = topics.word_of(wanted.group)
        self._me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._streams: list[str] = []
        self._idle_ms = int(1000 * float(transport.options.get("IDLE_S", 30.0)))
        self._keep_ms = int(3_600_000 * float(transport.options.get("KEEP_HOURS", 24.0)))
        self.keep_every_s = self._idle_ms / 3000
        self._claims_at = self._looks_at = 0.0
        self._tidies_at = time.monotonic() + _TIDY_EVERY_S

    async def look_for_streams(self) -> None:
        """Make the group of each stream that is wanted, at its oldest entry; nothing where it is there."""
        self._looks_at = time.monotonic() + 1.0
        found = [topics.topic_of(each, self._transport.prefix) for each in self._wanted.types]
        if self._wanted.patterns:
            for member in await self._redis.smembers(self._transport._all_types):
                topic = member.decode()
                event_type = topics.type_of(topic, self._transport.prefix)
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
                pipeline.xclaim(stream, self._group, self._me, 0, ids, idle=idle_ms, justid=True)
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
            found += [_held(stream.encode(), entry_id, fields, is_again=True) for entry_id, fields in _flat(reply[1])]
            if len(found) >= at_most:
                break
        return found

    async def _tidy(self) -> None:
        """Forget replicas that have left nothing behind, and entries that are old and that all groups have."""
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


def _connect(destination: Destination) -> client.Redis:
    limits = conf().LIMITS
    tls: dict[str, Any] = {}
    if destination.url.lower().startswith("rediss:"):
        if destination.ca:
            tls["ssl_ca_certs"] = destination.ca
        if destination.cert:
            tls.update(ssl_certfile=destination.cert[0], ssl_keyfile=destination.cert[-1])
    # A lane has two requests under way, so that more connections than these were of no use.
    pool = client.BlockingConnectionPool.from_url(
        destination.url,
        max_connections=_CONNECTIONS,
        timeout=limits.ATTEMPT_S,
        socket_connect_timeout=limits.CONNECT_S,
        socket_timeout=max(_LOST_S, limits.ATTEMPT_S),
        socket_keepalive=True,
        health_check_interval=0,
        client_name="aevents",
        **tls,
    )
    return client.Redis.from_pool(pool)


def _fields(message: Outgoing) -> list[str | bytes]:
    fields: list[str | bytes] = []
    for name, value in plain(message.headers, _ATTRIBUTES).items():
        fields += (name, value)
    fields += (b"data", message.body)
    return fields


def _said(reply: Any) -> DeliveryError | None:
    """Return what an answer to XADD means: its entry's id, or an error for this one alone."""
    if not isinstance(reply, Exception):
        return None
    return Unavailable(text_of(reply))  # OOM, READONLY, NOPERM, WRONGTYPE: all of it is mended there


def _held(stream: bytes, entry_id: bytes, fields: Any, *, is_again: bool = False) -> Held:
    named = {key.decode("utf-8", "replace"): value for key, value in (fields or {}).items()}
    body = named.pop("data", b"")
    headers = {name: value.decode("utf-8", "replace") for name, value in named.items()}
    return Held(Message(as_http(headers, _ATTRIBUTES), body), (stream, entry_id), is_again)


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
