"""The contract on a real RabbitMQ, and what this transport promises beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("aio_pika", reason="needs aio-pika, the extra aevents[rabbitmq]")

import aio_pika
import aiormq
import aiormq.exceptions as errors
import orjson

from aevents import cloudevents, wire
from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Event
from aevents.transports import rabbitmq_queue, topics
from aevents.transports.base import Brought, Destination, Transport, Wanted
from aevents.transports.contract_of_brokers import BrokerContract, never
from aevents.transports.rabbitmq import RabbitTransport
from aevents.transports.rehearsal import Mailbox, an_event, outcome, some_events, taking, until
from tests import brokers


class TestRabbit(BrokerContract):
    good_urls = ("amqp://h", "amqp://u:p@h:5672/", "amqps://h/orders", "amqp://[::1]:5672/%2Fa")
    bad_urls = (
        "amqp://user:s3cret@[",
        "amqp://",
        "redis://h",
        "amqp://h/a/b",
        "amqp://u:s3cret@h:x/0",
        "amqp://u:s3cret#@h",
        "amqps://h/?no_verify_ssl=1",
    )

    @property
    def url(self) -> str:  # type: ignore[override]
        return brokers.address("rabbitmq")

    def make_transport(self, **options: Any) -> Transport:
        return RabbitTransport(PREFIX=self.prefix, **options)

    @pytest.fixture(autouse=True)
    def _consumers(self, _prefix: None) -> None:
        self.consumers: Counter[str] = Counter()

    @asynccontextmanager
    async def listening(
        self, take: Any, group: str = "orders", *args: Any, **named: Any
    ) -> AsyncIterator[Any]:
        queue = (named.get("transport") or self.make_transport()).options["PREFIX"] + group
        self.consumers[queue] += 1
        try:
            async with super().listening(take, group, *args, **named) as task:
                yield task
        finally:
            self.consumers[queue] -= 1

    async def is_listening(self, transport: Transport, wanted: Wanted) -> None:
        """Return when the queue has as many consumers as there are replicas."""
        queue = transport.options["PREFIX"] + topics.word_of(wanted.group)
        async with aiormq.connect(self.url) as connection:
            while True:
                channel = await connection.channel()
                with contextlib.suppress(errors.ChannelNotFoundEntity):
                    found = await channel.queue_declare(queue, passive=True)
                    if (found.consumer_count or 0) >= self.consumers[queue]:
                        return
                    await channel.close()
                await asyncio.sleep(0.02)

    async def clean_up(self) -> None:
        async with self.foreign() as channel:
            for queue in self.consumers:
                await channel.queue_delete(queue)
                await channel.exchange_delete(queue.rpartition(".")[0])

    @asynccontextmanager
    async def foreign(self) -> AsyncIterator[Any]:
        """A channel of somebody else's."""
        async with await aio_pika.connect(self.url) as connection, connection.channel() as channel:
            yield channel

    @property
    def exchange(self) -> str:
        return self.prefix.rstrip(".")

    # Others read it, and are read

    def test_another_client_reads_it_by_the_binding_of_cloudevents(self) -> None:
        async def scenario(transport: Transport) -> None:
            event = some_events(1, "größe", key="k ü")[0]
            async with self.listening(taking(Mailbox())), self.foreign() as channel:
                queue = await channel.declare_queue(exclusive=True)
                await queue.bind(self.exchange, f"{self.prefix}*")
                await transport.send(self.destination, wire.encode(event))
                async with queue.iterator(timeout=10) as messages:
                    found = await anext(messages)
                    await found.ack()
            assert found.routing_key == topics.topic_of("größe", self.prefix)
            assert found.body == wire.encode(event).body
            assert (found.content_type, found.message_id) == ("application/json", event.id)
            assert found.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            stamp = found.headers.pop("webhook-timestamp")
            assert abs(int(stamp) - datetime.now(UTC).timestamp()) < 60
            assert found.headers == {
                "webhook-id": event.id,
                "cloudEvents:specversion": "1.0",
                "cloudEvents:id": event.id,
                "cloudEvents:type": "größe",
                "cloudEvents:source": "/accounts",
                "cloudEvents:time": event.time.isoformat().replace("+00:00", "Z"),
                "cloudEvents:partitionkey": "k ü",
            }

        self.run(scenario)

    @pytest.mark.parametrize("separator", [":", "_"])
    def test_what_another_client_sends_by_the_binding_is_read(self, separator: str) -> None:
        async def scenario(_: Transport) -> None:
            mailbox, now = Mailbox(), datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
            values = {"id": "7", "type": "order-placed", "source": "/ö", "time": now, "specversion": "1.0"}
            async with self.listening(taking(mailbox)):
                await self.put(
                    b'{"event_type":"order-placed","payload":[1]}',
                    headers={f"cloudEvents{separator}{name}": value for name, value in values.items()},
                    content_type="application/json",
                )
                (message,) = await mailbox.wait_for(1)
            assert wire.decode(message) == Event("7", "order-placed", b"[1]", "ö", now)

        self.run(scenario)

    def test_a_structured_message_of_another_client_comes_as_it_is(self) -> None:
        async def scenario(_: Transport) -> None:
            mailbox = Mailbox()
            body = orjson.dumps(
                {"specversion": "1.0", "id": "7", "source": "/x", "type": "order-placed", "data": 1}
            )
            async with self.listening(taking(mailbox)):
                await self.put(body, content_type="application/cloudevents+json", message_id="another")
                (message,) = await mailbox.wait_for(1)
            assert message.headers == {"content-type": "application/cloudevents+json"}
            assert cloudevents.decode(message).id == "7"

        self.run(scenario)

    def test_a_bare_message_is_known_by_its_message_id_each_time_it_comes(self) -> None:
        async def scenario(_: Transport) -> None:
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)):
                body = b'{"event_type":"order-placed","payload":1}'
                await self.put(body, content_type="application/json", message_id="m-1")
                (message,) = await mailbox.wait_for(1)
            assert wire.decode(message).id == "m-1"

        self.run(scenario)

    async def put(self, body: bytes, event_type: str = "order-placed", **properties: Any) -> None:
        async with self.foreign() as channel:
            exchange = await channel.get_exchange(self.exchange)
            await exchange.publish(
                aio_pika.Message(body, **properties), topics.topic_of(event_type, self.prefix)
            )

    # What nobody has a queue for

    def test_what_no_queue_is_bound_to_is_unavailable_and_says_so(self) -> None:
        async def scenario(transport: Transport) -> None:
            before = await outcome(transport.send(self.destination, an_event()))
            mailbox, events = Mailbox(), [*some_events(3), *some_events(3, "nobody's"), *some_events(3)]
            async with self.listening(taking(mailbox)):
                found = await transport.send_batch(self.destination, events)
                messages = await mailbox.wait_for(6)
            assert [isinstance(each, Receipt) for each in found] == [True] * 3 + [False] * 3 + [True] * 3
            assert {wire.decode(each).type for each in messages} == {"order-placed"}
            for error in (before, *found[3:6]):
                assert isinstance(error, Unavailable)
                assert error.retry_after_s == 10.0
                assert "no service has a queue" in str(error)

        self.run(scenario)

    def test_an_event_that_is_on_its_way_is_not_sent_beside_itself(self) -> None:
        async def scenario(transport: Transport) -> None:
            event = some_events(1, "nobody's")[0]
            async with self.listening(taking(Mailbox())):
                found = await transport.send_batch(self.destination, [event, event])
            assert all(isinstance(each, Unavailable) for each in found), "neither is reported as sent"

        self.run(scenario)

    # The queue and its bindings

    def test_a_deleted_queue_is_noticed_and_made_again(self) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.listening(never) as task:
                async with self.foreign() as channel:
                    await channel.queue_delete(f"{self.prefix}orders")
                async with asyncio.timeout(5):
                    assert isinstance(await outcome(task), Unavailable)
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)):
                await transport.send(self.destination, an_event())
                await mailbox.wait_for(1)

        self.run(scenario)

    def test_a_deleted_exchange_is_made_again_while_listening(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rabbitmq_queue, "_BIND_EVERY_S", 0.0)

        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)):
                async with self.foreign() as channel:
                    await channel.exchange_delete(self.exchange)
                error: object = Unavailable("")
                async with asyncio.timeout(10):
                    while isinstance(error, Unavailable):
                        error = await outcome(transport.send(self.destination, an_event()))
                        await asyncio.sleep(0.1)
                await mailbox.wait_for(1)

        self.run(scenario)

    def test_what_a_new_version_wants_is_not_forgotten_by_the_old_one(self) -> None:
        async def scenario(transport: Transport) -> None:
            old, new = Mailbox(), Mailbox()
            async with (
                self.listening(taking(old)),
                self.listening(taking(new), types=("order-placed", "new")),
            ):
                await transport.send_batch(self.destination, some_events(100, "new"))
                await new.wait_for(100)
            assert not old.messages

        self.run(scenario)

    def test_what_no_replica_wants_any_more_is_forgotten_and_holds_up_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(rabbitmq_queue, "_PASSES", 3)

        async def scenario(transport: Transport) -> None:
            async with self.listening(never, types=("order-placed", "old")):
                pass
            mailbox = Mailbox()
            await transport.send_batch(self.destination, some_events(5, "old"))
            with caplog.at_level(logging.WARNING, "aevents"):
                async with self.listening(taking(mailbox)):
                    await transport.send(self.destination, an_event())
                    await mailbox.wait_for(1)
                    await until(lambda: caplog.text.count("no replica wants") == 5)
            async with self.foreign() as channel:
                queue = await channel.get_queue(f"{self.prefix}orders")
                assert queue.declaration_result.message_count == 0

        self.run(scenario)

    def test_what_no_replica_wants_goes_where_the_queue_dead_letters(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rabbitmq_queue, "_PASSES", 3)
        where = {"x-dead-letter-exchange": f"{self.prefix}dead"}  # as a policy would say
        monkeypatch.setattr(rabbitmq_queue, "_QUEUE", {**rabbitmq_queue._QUEUE, **where})

        async def scenario(transport: Transport) -> None:
            async with self.foreign() as channel:
                exchange = await channel.declare_exchange(f"{self.prefix}dead", "fanout", auto_delete=True)
                dead = await channel.declare_queue(exclusive=True)
                await dead.bind(exchange)
                async with self.listening(never, types=("order-placed", "old")):
                    pass
                await transport.send_batch(self.destination, some_events(5, "old"))
                kept: list[Any] = []

                async def keep(message: Any) -> None:
                    kept.append(message)

                await dead.consume(keep, no_ack=True)
                async with self.listening(taking(Mailbox())):
                    await until(lambda: len(kept) == 5)

        self.run(scenario)

    def test_a_type_in_unbind_does_not_come_any_more(self) -> None:
        async def scenario(transport: Transport) -> None:
            async with self.listening(never, types=("order-placed", "old")):
                pass
            other = self.make_transport(UNBIND=["old", "order-placed"])
            async with self.listening(taking(Mailbox()), transport=other):
                error = await outcome(transport.send(self.destination, an_event("old")))
                assert isinstance(error, Unavailable)
                assert await transport.send(self.destination, an_event()) == Receipt(), (
                    "it is wanted after all"
                )

        self.run(scenario)

    def test_poison_is_brought_again_as_often_as_it_takes(self) -> None:
        async def scenario(transport: Transport) -> None:
            seen: list[bool] = []

            async def ends(brought: Sequence[Brought]) -> Sequence[Answer]:
                seen.extend(each.is_again for each in brought)
                return [Answer(503, {}) for _ in brought]

            for nth in range(25):  # more than RabbitMQ 4 would allow by itself
                async with self.listening(ends):
                    if not nth:
                        await transport.send(self.destination, an_event())
                    await until(lambda nth=nth: len(seen) > nth)
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)):
                await mailbox.wait_for(1)
            assert not seen[0]
            assert all(seen[1:])

        self.run(scenario)

    # Mistakes

    @pytest.mark.parametrize("prefix", ["", "amq."])
    def test_a_prefix_that_names_no_exchange_is_refused(self, prefix: str) -> None:
        async def scenario(_: Transport) -> None:
            error = await outcome(RabbitTransport(PREFIX=prefix).send(self.destination, an_event()))
            assert isinstance(error, Refused)
            assert "PREFIX" in str(error)

        self.run(scenario)

    @pytest.mark.parametrize(("old", "new"), [("guest@", "s3cret@"), ("5672/", "5672/nowhere")])
    def test_what_a_person_must_mend_is_said_without_the_password(self, old: str, new: str) -> None:
        async def scenario(transport: Transport) -> None:
            place = Destination("bus", self.url.replace(old, new))
            for doing in (
                transport.send(place, an_event()),
                transport.listen(place, Wanted("orders"), never),
            ):
                error = await outcome(doing)
                assert isinstance(error, Unavailable)
                assert error.slowly
                assert "s3cret" not in str(error)

        self.run(scenario)

    def test_a_queue_that_is_of_another_kind_is_said_to_be(self) -> None:
        async def scenario(transport: Transport) -> None:
            self.consumers[f"{self.prefix}orders"] = 0  # for the cleaning up
            async with self.foreign() as channel:
                await channel.declare_queue(f"{self.prefix}orders", durable=True)
            error = await outcome(transport.listen(self.destination, Wanted("orders"), never))
            assert isinstance(error, Unavailable)
            assert error.slowly
            assert "inequivalent arg" in str(error)

        self.run(scenario)

    def test_a_server_that_says_nothing_is_given_up(self) -> None:
        async def scenario(transport: Transport) -> None:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                place = Destination("silent", f"amqp://127.0.0.1:{silent.getsockname()[1]}")
                error = await outcome(transport.send(place, an_event()))
            assert isinstance(error, Unavailable)
            assert error.timed_out

        self.run(scenario, CONNECT_S=0.3)
