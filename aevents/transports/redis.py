"""`redis://` and `rediss://`: Redis Streams, a stream for each event type, a consumer group for each service.

An entry has plain fields, as other languages read them: `ce_id`, `ce_type`, ... without percent-encoding,
`webhook-id`, `webhook-timestamp`, `webhook-signature`, `content-type`, and `data`, the body. Redis has no
binding in CloudEvents' specification: the names are those of the Kafka one. What Redis has answered to XADD
is as durable as its `appendfsync` says.

Options (`TRANSPORTS["redis"]`): `PREFIX`; `KEEP_HOURS` (24): for how long entries are kept that all groups
have; `IDLE_S` (30): after which what a replica has not acknowledged goes to another.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio as client

from aevents.errors import DeliveryError, Unavailable
from aevents.settings import conf
from aevents.transports.base import Destination, Wanted
from aevents.transports.bindings import plain
from aevents.transports.broker import BrokerTransport, Outgoing, text_of
from aevents.transports.redis_streams import ATTRIBUTES, RedisSource
from aevents.transports.sources import Source

_CONNECTIONS = 4
_LOST_S = 10.0  # for any answer, those after a wait included
_RENEW_EVERY_S = 60.0  # the entry of a type in the set of all types, lest a flushed server miss it


class RedisTransport(BrokerTransport):
    """XADD to the stream of a type; XREADGROUP of what is wanted, and XAUTOCLAIM of what lies too long."""

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
                    pipeline.sadd(self.all_types, message.topic)
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
        source = RedisSource(_connect(place), wanted, self.prefix, self.all_types, self.options)
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
    def all_types(self) -> str:
        """The key of the set of all types that were ever sent."""
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
    for name, value in plain(message.headers, ATTRIBUTES).items():
        fields += (name, value)
    fields += (b"data", message.body)
    return fields


def _said(reply: Any) -> DeliveryError | None:
    """Return what an answer to XADD means: its entry's id, or an error for this one alone."""
    if not isinstance(reply, Exception):
        return None
    return Unavailable(text_of(reply))  # OOM, READONLY, NOPERM, WRONGTYPE: all of it is mended there
