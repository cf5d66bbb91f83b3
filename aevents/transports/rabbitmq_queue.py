"""The queue of a service in RabbitMQ: made and bound as the service wants, then brought and acknowledged.

Part of `rabbitmq.py`, which publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage

from aevents import wire
from aevents.errors import Refused
from aevents.event import Message
from aevents.settings import conf
from aevents.transports import topics
from aevents.transports.base import Wanted
from aevents.transports.bindings import as_http
from aevents.transports.broker import text_of
from aevents.transports.sources import Held, Source

ATTRIBUTES = "cloudEvents:"
#: What a connection is called there.
ME = f"{socket.gethostname()}-{os.getpid()}"

_QUEUE: Mapping[str, str | int] = {
    "x-queue-type": "quorum",
    # RabbitMQ 4 drops or dead-letters by itself after 20 deliveries, but poison is to end in our own dead
    # letters. Not -1: 3.x takes it for less than one. With a limit, what is given back also keeps its place.
    "x-delivery-limit": 2**31 - 1,
    # Where a policy bounds the queue the sender is told so; else the oldest would be dropped.
    "x-overflow": "reject-publish",
}
_WAIT_S = 1.0
_GRACE_S = 5.0  # for goodbyes
_BIND_EVERY_S = 60.0  # lest somebody deleted the exchange or a binding, of which no consumer is told
_PASS_ON_AFTER_S = 0.1
_PASSES = 150  # among all replicas, until it is certain that none wants it: one new among ten old ones has it
_logger = logging.getLogger("aevents")


class RabbitSource(Source):
    """What one group was sent. What is given out and not acknowledged goes to others when the channel closes.

    RabbitMQ closes a channel on which something is held for longer than its `consumer_timeout`, half an hour;
    then it is brought again, with `is_again`.
    """

    def __init__(
        self, connection: aiormq.Connection, channel: AbstractChannel, prefix: str, wanted: Wanted
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._prefix = prefix
        self._exchange = prefix.rstrip(".")
        self._queue = prefix + topics.word_of(wanted.group)
        self._topics = frozenset(topics.topic_of(each, prefix) for each in wanted.types)
        self._arrived: deque[Held] = deque()
        self._has_come = asyncio.Event()
        self._given: dict[int, None] = {}  # the delivery tags that are not acknowledged yet, in order
        self._is_cancelled = False
        self._binds_at = 0.0

    async def begin(self, unwanted: Iterable[str]) -> None:
        """Make what is not there yet, unbind the types in `unwanted`, and have messages brought."""
        if len(self._queue) > topics.MAX_LENGTH:
            raise Refused(
                f"a queue would have a name of {len(self._queue)} bytes: give the service a shorter one"
            )
        channel = self._channel
        channel.closing.add_done_callback(lambda _: self._has_come.set())
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        # As many as are taken at once, and as many ahead.
        await channel.basic_qos(prefetch_count=2 * int(conf().LIMITS.BATCH))
        await channel.queue_declare(self._queue, durable=True, arguments={**_QUEUE})
        await self._bind()
        for each in unwanted:
            topic = topics.topic_of(each, self._prefix)
            if topic not in self._topics:
                await channel.queue_unbind(self._queue, self._exchange, topic)
        await channel.basic_consume(
            self._queue, self._on_message, consumer_tag=f"{ME}-{secrets.token_hex(4)}"
        )

    async def fetch(self, at_most: int) -> Sequence[Held]:
        self._require_life()
        if time.monotonic() >= self._binds_at:
            with ends_as_errors():
                await self._bind()
        if not self._arrived:
            self._has_come.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await self._has_come.wait()
            self._require_life()
        return [self._arrived.popleft() for _ in range(min(at_most, len(self._arrived)))]

    async def acknowledge(self, held: Sequence[Held]) -> None:
        owned = {each.handle for each in held}
        all_until = 0
        for tag in self._given:
            if tag not in owned:
                break
            all_until = tag
        singly = sorted(tag for tag in owned if tag > all_until)
        with ends_as_errors():
            if all_until:
                await self._channel.basic_ack(all_until, multiple=True, wait=not singly)
            for tag in singly:
                await self._channel.basic_ack(tag, wait=tag == singly[-1])
        for tag in owned:
            del self._given[tag]

    async def close(self) -> None:
        await close(self._connection)

    async def _bind(self) -> None:
        # AMQP cannot list what was bound earlier: it stays, until it is named in `UNBIND`.
        self._binds_at = time.monotonic() + _BIND_EVERY_S
        await self._channel.exchange_declare(self._exchange, exchange_type="topic", durable=True)
        for topic in self._topics:
            await self._channel.queue_bind(self._queue, self._exchange, topic)

    def _require_life(self) -> None:
        if self._is_cancelled:
            raise ConnectionError(
                f"RabbitMQ brings nothing of the queue {self._queue} any more: was it deleted?"
            )
        if self._channel.is_closed or not self._connection.is_opened:
            raise ConnectionError(
                f"the channel of the queue {self._queue} was closed{_reason(self._channel)}"
            )

    def _on_cancel(self, _: object) -> None:
        self._is_cancelled = True
        self._has_come.set()

    async def _on_message(self, message: DeliveredMessage) -> None:
        tag = message.delivery_tag or 0
        self._given[tag] = None
        deliveries = _deliveries(message)
        if message.exchange == self._exchange and message.routing_key not in self._topics:
            await self._pass_on(tag, message.routing_key, deliveries)
            return
        self._arrived.append(Held(_message(message), tag, bool(message.redelivered or deliveries)))
        self._has_come.set()

    async def _pass_on(self, tag: int, topic: str | None, deliveries: int) -> None:
        """Give back what only another version of this service wants, as while a new one is rolled out."""
        if deliveries < _PASSES:
            await asyncio.sleep(_PASS_ON_AFTER_S)
            await self._channel.basic_nack(tag, requeue=True, wait=False)
        else:
            _logger.warning(
                "The queue %s is bound to %s, which no replica wants: an event is rejected (see UNBIND).",
                self._queue,
                topic,
            )
            await self._channel.basic_nack(tag, requeue=False, wait=False)
        del self._given[tag]


@contextlib.contextmanager
def ends_as_errors() -> Iterator[None]:
    """Raise an error where the client, which has lost the connection, raises `CancelledError`."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from None


async def close(connection: aiormq.Connection) -> None:
    """Close it, in some seconds, whatever state it is in."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_GRACE_S):
            await connection.close()


def _reason(channel: AbstractChannel) -> str:
    error = (
        channel.closing.exception() if channel.closing.done() and not channel.closing.cancelled() else None
    )
    return f" ({text_of(error)})" if isinstance(error, Exception) else ""


def _message(message: DeliveredMessage) -> Message:
    properties = message.header.properties
    named = {_name(name): _text(value) for name, value in (properties.headers or {}).items()}
    if properties.content_type:
        named["content-type"] = properties.content_type
    if properties.content_encoding:
        named["content-encoding"] = properties.content_encoding
    headers = as_http(named.items(), ATTRIBUTES)
    is_bare = headers.get("content-type") == wire.JSON and not headers.keys() & {"webhook-id", "ce-id"}
    if is_bare and properties.message_id:  # or it were another event each time it comes
        headers["webhook-id"] = properties.message_id
    return Message(headers, message.body)


def _name(name: str) -> str:
    # The binding allows either, as not every client can write a colon.
    return ATTRIBUTES + name[len(ATTRIBUTES) :] if name.startswith("cloudEvents_") else name


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _deliveries(message: DeliveredMessage) -> int:
    headers: Mapping[str, Any] = message.header.properties.headers or {}
    counts = (
        headers.get(name) for name in ("x-delivery-count", "x-acquired-count")
    )  # the latter from 4.x on
    return max((count for count in counts if isinstance(count, int)), default=0)
