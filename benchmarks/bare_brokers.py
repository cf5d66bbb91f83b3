"""What stands beside aevents in `test_brokers.py`: each broker's own client, by hand, as its docs show it.

`publish` sends one message and awaits the broker's word for it. `consume` brings so many messages to a
handler: read in batches, verified, decoded, handled, acknowledged; as whom,
says `group`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from aevents import signature
from aevents.event import Message
from benchmarks.clients import KEY

BATCH = 256
Headers = Mapping[str, str]
Publish = Callable[[Headers, bytes], Awaitable[None]]


class Bare(Protocol):
    """A broker by its own client; `place` is where aevents puts events of the benchmarks' type."""

    def publishing(self, place: str) -> contextlib.AbstractAsyncContextManager[Publish]: ...

    async def consume(self, place: str, group: str, count: int) -> None: ...


#: When each event of a round was handled, by either side.
handled_at: list[float] = []


async def handler(payload: Any) -> None:
    """Do nothing but note when."""
    handled_at.append(time.perf_counter())


def seconds_an_event(count: int) -> float:
    """Return what each took, from the first to the last: not how long a group takes to be joined."""
    assert len(handled_at) == count
    took_s = handled_at[-1] - handled_at[0]
    handled_at.clear()
    return took_s / count


async def _handle(headers: Headers, body: bytes) -> None:
    signature.verify(Message(headers, body), [("", KEY)], of_any_time=True)
    await handler(orjson.loads(body)["payload"])


class BareRedis:
    """redis-py: a connection for each who publishes at a time; XREADGROUP and XACK."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextlib.asynccontextmanager
    async def publishing(self, place: str) -> AsyncIterator[Publish]:
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(self._url) as client:

            async def publish(headers: Headers, body: bytes) -> None:
                await client.xadd(place, {**headers, "data": body})  # type: ignore[dict-item]

            yield publish

    async def consume(self, place: str, group: str, count: int) -> None:
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(self._url) as client:
            with contextlib.suppress(redis.exceptions.ResponseError):  # it is there
                await client.xgroup_create(place, group, id="0", mkstream=True)
            while count > 0:
                reply: Any = await client.xreadgroup(group, "me", {place: ">"}, BATCH, 1000)
                entries = [entry for _, found in _pairs(reply) for entry in _flat(found)]
                for _, fields in entries:
                    headers = {
                        name.decode(): value.decode() for name, value in fields.items() if name != b"data"
                    }
                    await _handle(headers, fields[b"data"])
                await client.xack(place, group, *[entry_id for entry_id, _ in entries])
                count -= len(entries)


def _pairs(reply: Any) -> Sequence[Any]:
    return list(reply.items()) if isinstance(reply, dict) else reply or []


def _flat(entries: Any) -> list[Any]:
    return entries[0] if entries and isinstance(entries[0][0], (list, tuple)) else entries


class BareRabbit:
    """aio-pika: one channel with confirms; a consumer with prefetch, acknowledged one by one."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextlib.asynccontextmanager
    async def publishing(self, place: str) -> AsyncIterator[Publish]:
        import aio_pika

        exchange_name, _, _ = place.partition(".")
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            exchange = await channel.get_exchange(exchange_name)

            async def publish(headers: Headers, body: bytes) -> None:
                message = aio_pika.Message(
                    body, headers=dict(headers), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                )
                await exchange.publish(message, routing_key=place)

            yield publish

    async def consume(self, place: str, group: str, count: int) -> None:
        import aio_pika

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=BATCH)
            queue = await channel.get_queue(group)
            async with queue.iterator() as messages:
                async for message in messages:
                    headers = {name: str(value) for name, value in message.headers.items()}
                    await _handle(headers, message.body)
                    await message.ack()
                    count -= 1
                    if count == 0:
                        return


class BareNats:
    """nats-py: JetStream's publish, awaited; a durable pull consumer, each message acknowledged."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextlib.asynccontextmanager
    async def publishing(self, place: str) -> AsyncIterator[Publish]:
        import nats

        client = await nats.connect(self._url)
        stream = client.jetstream()

        async def publish(headers: Headers, body: bytes) -> None:
            named = {**headers, "Nats-Msg-Id": headers["webhook-id"]}
            await stream.publish(place, body, headers=named)

        try:
            yield publish
        finally:
            await client.close()

    async def consume(self, place: str, group: str, count: int) -> None:
        import nats

        client = await nats.connect(self._url)
        subscription = await client.jetstream().pull_subscribe(place, durable=group)
        while count > 0:
            for message in await subscription.fetch(BATCH, timeout=5):
                await _handle(message.headers or {}, message.data)
                await message.ack()
                count -= 1
        await client.close()


class BareKafka:
    """aiokafka: an idempotent producer with acks=all; `getmany`, and a commit for each batch."""

    def __init__(self, url: str) -> None:
        self._servers = url.removeprefix("kafka://")

    @contextlib.asynccontextmanager
    async def publishing(self, place: str) -> AsyncIterator[Publish]:
        import aiokafka

        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", enable_idempotence=True
        )
        await producer.start()

        async def publish(headers: Headers, body: bytes) -> None:
            listed = [(name, value.encode()) for name, value in headers.items()]
            await producer.send_and_wait(place, body, headers=listed)

        try:
            yield publish
        finally:
            await producer.stop()

    async def consume(self, place: str, group: str, count: int) -> None:
        import aiokafka

        consumer = aiokafka.AIOKafkaConsumer(
            place,
            bootstrap_servers=self._servers,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        while count > 0:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=BATCH)).values():
                for record in records:
                    headers = {name: value.decode() for name, value in record.headers}
                    await _handle(headers, record.value)
                count -= len(records)
            await consumer.commit()
        await consumer.stop()
