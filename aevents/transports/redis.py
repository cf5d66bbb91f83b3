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
import redis.exceptions as errors

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
        commands: list[Sequence[bytes]] = []
        places = []
        for message in messages:
            if self._is_to_be_announced(destination, message.topic):
                commands.append((b"SADD", self.all_types.encode(), message.topic.encode()))
            places.append(len(commands))
            commands.append(_xadd(message))
        replies = await _talk(self._client(destination).connection_pool, commands)
        if len(replies) > len(places) and any(isinstance(reply, Exception) for reply in replies):
            self._announced.clear()  # nobody has learnt of it, perhaps
        return [_said(replies[place]) for place in places]

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        source = RedisSource(
            _connect(place, max(_LOST_S, conf().LIMITS.ATTEMPT_S)),
            wanted,
            self.prefix,
            self.all_types,
            self.options,
        )
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


def _connect(destination: Destination, lost_s: float | None = None) -> client.Redis:
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
        socket_timeout=lost_s,
        socket_keepalive=True,
        health_check_interval=0,
        client_name="aevents",
        **tls,
    )
    return client.Redis.from_pool(pool)


async def _talk(pool: Any, commands: Sequence[Sequence[bytes]]) -> list[Any]:
    """Send all commands at once; return the answers, errors among them.

    The client's own pipelines take most of their time for packing and timeouts: here the whole is bounded.
    """
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(b"".join(map(_packed, commands)), check_health=False)
        answers = [await _answer(connection) for _ in commands]
        if any(isinstance(answer, errors.ReadOnlyError) for answer in answers):
            # It was demoted, and its connections stay: behind its name there may be another by now.
            await connection.disconnect(nowait=True)
        return answers
    except BaseException:  # a cancellation too: whoever used it next would read what was meant for us
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except errors.ResponseError as error:
        return error


def _packed(command: Sequence[bytes]) -> bytes:
    """Return a command as an array of bulk strings (the protocol's specification, RESP)."""
    return b"*%d\r\n%b" % (len(command), b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in command]))


def _xadd(message: Outgoing) -> list[bytes]:
    command = [b"XADD", message.topic.encode(), b"*"]
    for name, value in plain(message.headers, ATTRIBUTES).items():
        command += (name.encode(), value.encode("utf-8", "surrogatepass"))
    command += (b"data", message.body)
    return command


def _said(reply: Any) -> DeliveryError | None:
    """Return what an answer to XADD means: its entry's id, or an error for this one alone."""
    if not isinstance(reply, Exception):
        return None
    return Unavailable(text_of(reply))  # OOM, READONLY, NOPERM, WRONGTYPE: all of it is mended there
