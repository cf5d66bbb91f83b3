"""`amqp://` and `amqps://`: RabbitMQ, one topic exchange for all events, one quorum queue for each service.

An event goes to the exchange that is called as the prefix (`aevents`), with its topic as the routing key
(`aevents.order-placed`), and is confirmed when each queue that is bound to it has it on disk. A message is
CloudEvents' AMQP binding in the properties and headers of AMQP 0.9.1: `cloudEvents:id`, ... without
percent-encoding, `webhook-*` under their own names, the event's id as `message_id`. Queues and bindings are
made by who listens (`rabbitmq_queue.py`); who publishes needs no other right than to write. What no queue is
bound to is kept by nobody: the sender keeps it, and tries again.

The client is aiormq, the part of aio-pika that speaks AMQP: it never reconnects by itself, so that a loss is
noticed, and does not hide that the queue is not what it was.
Options (`TRANSPORTS["amqp"]`): `PREFIX`; `UNBIND`, types that this service wanted once and must not get now.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika  # the extra's name: where it is missing, it is this that is said to be
import aiormq
import aiormq.exceptions as errors
from pamqp.commands import Basic

from aevents import retry
from aevents.errors import DeliveryError, Unavailable
from aevents.settings import conf
from aevents.transports.base import Destination, Wanted
from aevents.transports.bindings import plain
from aevents.transports.broker import BrokerTransport, Outgoing, text_of
from aevents.transports.rabbitmq_queue import ATTRIBUTES, ME, RabbitSource, close, ends_as_errors
from aevents.transports.sources import Source
from aevents.transports.tls import Contexts

_HEARTBEAT_S = 10  # silence is noticed after three of them
_NOBODY = "no service has a queue for it yet: a worker that listens for it makes one"
_NOBODY_S = 10.0
_NOT_LET_IN = "RabbitMQ knows no such virtual host, or does not let this user in"
_NOT_TAKEN = "RabbitMQ did not take it: a queue is full, or has lost the majority of its nodes"


class RabbitTransport(BrokerTransport):
    """Publishes `mandatory` and confirmed; brings what is in the queue of a group.

    It cannot replay: a queue holds what was sent since it was bound. Nor has it wildcards: a type is one word
    to a topic exchange, so that only `#` would bring a part of it, and a service with a pattern would have
    each event of all services written to its queue, on each of the queue's nodes, to throw most of it away.
    """

    schemes = ("amqp", "amqps")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self._mistake and (not self.prefix or self.prefix.startswith("amq.")):
            self._mistake = "PREFIX names the exchange in RabbitMQ: it must not be empty, nor begin with amq."
        self._lines: dict[tuple[object, ...], _Line] = {}
        self._tls = Contexts()

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - parsed when asked for
        except ValueError:
            return "it is no URL (what is special in a password must be percent-encoded)"
        if parts.scheme.lower() not in cls.schemes:
            return "it must begin with amqp:// or amqps://"
        if not parts.hostname:
            return "it has no host"
        if "/" in parts.path[1:]:
            return "after the host there may only be the virtual host, in which / is written %2F"
        if parts.query or parts.fragment:
            return "nothing may follow the virtual host (certificates are 'CA' and 'CERT')"
        return None

    def error_of(self, error: Exception) -> DeliveryError:
        if isinstance(error, _FOR_A_PERSON) or isinstance(error.__cause__, ssl.SSLError):
            return Unavailable(text_of(error), slowly=True)
        if isinstance(error, errors.InvalidFrameError) and "OpenOk" in str(error):  # the client tells no more
            return Unavailable(_NOT_LET_IN, slowly=True)
        return retry.unreachable(text_of(error), timed_out=isinstance(error, TimeoutError))

    async def publish(
        self, destination: Destination, messages: Sequence[Outgoing]
    ) -> Sequence[DeliveryError | None]:
        line = await self._line(destination)
        if len(messages) == 1:
            return [await self._publish_one(line, messages[0])]
        last = len(messages) - 1  # only this one waits until the socket has taken it, and all before it
        return await asyncio.gather(
            *(self._publish_one(line, each, waits=place == last) for place, each in enumerate(messages))
        )

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        connection = await self._connect(place)
        try:
            with ends_as_errors():
                channel = await connection.channel(publisher_confirms=False)
                source = RabbitSource(connection, channel, self.prefix, wanted)
                await source.begin(self.options.get("UNBIND", ()))
        except BaseException:
            await close(connection)
            raise
        return source

    async def close(self) -> None:
        lines = list(self._lines.values())
        self._lines.clear()
        await asyncio.gather(*(close(line.connection) for line in lines if line.connection is not None))
        self._tls.close()

    async def _publish_one(self, line: _Line, message: Outgoing, waits: bool = True) -> DeliveryError | None:
        if message.id in line.under_way:  # one that is given back is told from others by its id alone
            return Unavailable("the same event is on its way already")
        line.under_way.add(message.id)
        try:
            with ends_as_errors():
                await line.publishing.basic_publish(
                    message.body,
                    exchange=self.prefix.rstrip("."),
                    routing_key=message.topic,
                    properties=_properties(message),
                    mandatory=True,
                    wait=waits,
                )
        except (errors.PublishError, errors.ChannelNotFoundEntity):  # no queue, or not even an exchange
            # The broker itself is well, and a call need not wait for a worker to be started.
            return Unavailable(_NOBODY, retry_after_s=_NOBODY_S, answered=True)
        except errors.DeliveryError:
            return Unavailable(_NOT_TAKEN)
        except Exception as error:
            return self.error_of(error)
        finally:
            line.under_way.discard(message.id)
        return None

    async def _line(self, destination: Destination) -> _Line:
        key = (destination.url, destination.ca, destination.cert)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        if not line.is_open:
            async with line.lock:
                await self._mend(line, destination)
        assert line.connection is not None  # noqa: S101 - mended
        # Not while it takes nothing, short of memory or of disk: what is written then would pile up here.
        await line.connection.ready()
        return line

    async def _mend(self, line: _Line, destination: Destination) -> None:
        if line.is_open:  # another has
            return
        if line.connection is not None and not line.connection.is_opened:
            await close(line.connection)
            line.connection = None
        if line.connection is None:
            line.connection = await self._connect(destination)
        with ends_as_errors():
            found = await line.connection.channel(publisher_confirms=True, on_return_raises=True)
            line.channel = cast(aiormq.Channel, found)

    async def _connect(self, destination: Destination) -> aiormq.Connection:
        context = None
        if destination.ca or destination.cert:
            context = await self._tls.of(destination)
            context.set_alpn_protocols([])  # they are for HTTP
        connection = aiormq.Connection(
            f"{destination.url}?heartbeat={_HEARTBEAT_S}",
            context=context,
            client_properties={"connection_name": f"aevents {ME}"},
        )
        with ends_as_errors():
            async with asyncio.timeout(conf().LIMITS.CONNECT_S):
                await connection.connect()
        return connection


class _Line:
    """A connection and a channel on it to publish on. Once lost, the next who needs it makes it anew."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.connection: aiormq.Connection | None = None
        self.channel: aiormq.Channel | None = None
        self.under_way: set[str] = set()

    @property
    def is_open(self) -> bool:
        channel, connection = self.channel, self.connection
        return bool(channel and not channel.is_closed and connection and connection.is_opened)

    @property
    def publishing(self) -> aiormq.Channel:
        """The channel, which is lost meanwhile, or not."""
        if self.channel is None:
            raise ConnectionError("the connection was lost")
        return self.channel


_FOR_A_PERSON = (
    errors.AuthenticationError,
    errors.ProbableAuthenticationError,
    errors.ConnectionNotAllowed,
    errors.ChannelAccessRefused,
    errors.ChannelPreconditionFailed,
)


def _properties(message: Outgoing) -> Basic.Properties:
    headers: dict[str, Any] = {**plain(message.headers, ATTRIBUTES)}
    return Basic.Properties(
        content_type=headers.pop("content-type", None),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers=headers,
        message_id=message.id if len(message.id.encode()) < 256 else None,  # as long as AMQP allows
    )
