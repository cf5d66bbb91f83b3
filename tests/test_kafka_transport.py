"""The contract on a broker of Kafka's protocol, and what this transport promises beyond it."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

pytest.importorskip("aiokafka", reason="needs aiokafka, the extra aevents[kafka]")

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.cluster import ClusterMetadata
from aiokafka.partitioner import DefaultPartitioner

from aevents.answer import Answer, Receipt
from aevents.errors import Refused, Unavailable
from aevents.event import Event
from aevents.transports import kafka_source, topics
from aevents.transports.base import Brought, Destination, Transport, Wanted
from aevents.transports.contract_of_brokers import BrokerContract
from aevents.transports.kafka import KafkaTransport
from aevents.transports.kafka_reader import Reader
from aevents.transports.kafka_source import KafkaSource, pattern_of
from aevents.transports.rehearsal import Mailbox, an_event, outcome, some_events
from aevents.transports.sources import Held, is_wanted
from tests.kafka_tools import (
    address_in,
    admin_at,
    encrypted,
    expel,
    never,
    number_of,
    partitions_of,
    producer_at,
    send_at_last,
    start_replica,
    taking,
    unreadable,
    until,
)
from tests.own_kafka import OwnKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    broker = OwnKafka(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.kill()


def _key(event: Event) -> bytes:
    return (event.key or "").encode()


class TestKafka(BrokerContract):
    good_urls = (
        "kafka://h",
        "kafka://u:p%40@h:9092,h2:9093,h3",
        "kafkas://h/",
        "kafka://[::1]:9092,127.0.0.1:1",
    )
    bad_urls = (
        "kafka://user:s3cret@[",
        "kafka://",
        "amqp://h",
        "kafka://u:s3cret@h:x",
        "kafka://h,,g",
        "kafka://h/topic",
        "kafka://h:70000",
    )
    keeps_order = True
    can_replay = True
    has_wildcards = True
    shares_unevenly = True
    takes_over_within_s = 10.0
    outlasts_s = 7.0  # a broker allows no session shorter than 6 s

    @pytest.fixture(autouse=True)
    def _broker(self, kafka: OwnKafka) -> None:
        self.url = kafka.url

    def make_transport(self) -> Transport:
        return KafkaTransport(PREFIX=self.prefix, SESSION_S=6.0, METADATA_S=1.0)

    # The messages

    def test_another_client_reads_a_cloudevent_of_kafkas_binding(self) -> None:
        async def scenario(transport: Transport) -> None:
            message = an_event("order größe ✓", b'{"n": 7}', key="k/7 é")
            await transport.send(Destination("bus", self.url, (b"0123456789abcdef",)), message)
            topic = topics.topic_of("order größe ✓", self.prefix)
            async with AIOKafkaConsumer(
                topic, bootstrap_servers=address_in(self.url), auto_offset_reset="earliest"
            ) as consumer:
                record = await consumer.getone()
            headers = {name: value.decode() for name, value in record.headers}
            assert record.key.decode() == "k/7 é"
            assert record.value == message.body
            assert headers["content-type"] == "application/json"
            assert headers["ce_specversion"] == "1.0"
            assert headers["ce_type"] == "order größe ✓"
            assert headers["ce_partitionkey"] == "k/7 é"
            assert headers["ce_id"] == headers["webhook-id"] == message.headers["webhook-id"]
            assert headers["webhook-signature"].startswith("v1,")
            assert headers["webhook-timestamp"].isdigit()

        self.run(scenario)

    def test_what_another_client_has_written_is_brought_with_its_key(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox, topic = Mailbox(), topics.topic_of("order-placed", self.prefix)
            named = {"ce_id": "1", "ce_type": "größe", "ce_source": "/x", "content-type": "application/json"}
            headers = [(name, value.encode()) for name, value in named.items()]
            async with self.serving(mailbox), producer_at(self.url) as producer:
                await transport.send(self.destination, an_event("order-placed"))  # the topic is there
                await producer.send_and_wait(topic, b"{}", key="ö".encode(), headers=headers)
                await producer.send_and_wait(topic, None, key=b"\xff")
                found = [(each.headers, each.body) for each in await mailbox.wait_for(3)]
            expected = {
                "content-type": "application/json",
                "ce-id": "1",
                "ce-type": "gr%C3%B6%C3%9Fe",
                "ce-source": "/x",
                "ce-partitionkey": "%C3%B6",
            }
            assert (expected, b"{}") in found
            assert ({}, b"") in found

        self.run(scenario)

    def test_calls_at_once_keep_the_order_of_each_key(self) -> None:
        async def scenario(transport: Transport) -> None:
            filler, mailbox = b"x" * 2000, Mailbox()
            events = [
                dataclasses.replace(each, key=f"k{n % 24}", data=b'{"n":%d,"x":"%b"}' % (n, filler))
                for n, each in enumerate(some_events(6 * 256))
            ]
            async with self.serving(mailbox) as destination:
                calls = [
                    asyncio.ensure_future(transport.send_batch(destination, events[at : at + 256]))
                    for at in range(0, len(events), 256)
                ]
                for found in await asyncio.gather(*calls):
                    assert found == [Receipt()] * 256
                come: dict[str, list[int]] = {}
                for message in await mailbox.wait_for(len(events)):
                    come.setdefault(message.headers["ce-partitionkey"], []).append(number_of(message))
            assert len(come) == 24
            assert [each for each in come.values() if each != sorted(each)] == []

        self.run(scenario)

    def test_a_partition_that_nobody_leads_holds_up_only_what_belongs_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        led = ClusterMetadata.available_partitions_for_topic
        monkeypatch.setattr(
            ClusterMetadata, "available_partitions_for_topic", lambda *given: led(*given) - {0, 3}
        )

        async def scenario(transport: Transport) -> None:
            events = [dataclasses.replace(each, key=f"k{n}") for n, each in enumerate(some_events(60))]
            async with self.serving(Mailbox()) as destination:
                found = await transport.send_batch(destination, [*events, *some_events(5)])
            refused = [each for each in found if isinstance(each, Unavailable)]
            assert 0 < len(refused) < 60
            assert {str(each) for each in refused} == {
                f"nobody leads the partition of {topics.topic_of('order-placed', self.prefix)} now"
            }
            assert [each for each in found if each not in refused] == [Receipt()] * (65 - len(refused))
            assert found[60:] == [Receipt()] * 5

        self.run(scenario)

    def test_what_cannot_be_read_holds_up_nothing_but_its_partition(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(transport: Transport) -> None:
            events = [dataclasses.replace(each, key=f"k{n}") for n, each in enumerate(some_events(60))]
            topic, mailbox, every = topics.topic_of("order-placed", self.prefix), Mailbox(), list(range(6))
            await transport.send_batch(self.destination, events)
            async with producer_at(self.url) as producer:
                await unreadable(producer, topic, 0)
            await transport.send_batch(self.destination, events)
            # What comes after it in its own partition waits, and nothing else does
            expected = Counter(
                {each.id: 2 if DefaultPartitioner()(_key(each), every, every) else 1 for each in events}
            )
            assert 60 < expected.total() < 120
            async with self.serving(mailbox):
                come = await mailbox.wait_for(expected.total())
                await until(lambda: "held back" in caplog.text)
            assert Counter(message.headers["webhook-id"] for message in come) == expected
            (told,) = [record.getMessage() for record in caplog.records if "held back" in record.message]
            assert told.startswith(f"Partition 0 of {topic} is held back, nothing of it is lost: ")

        self.run(scenario)

    def test_what_the_broker_objects_to_is_told_after_what_others_have_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Reader.read

        async def objecting(reader: Reader, at_most: int) -> AsyncIterator[tuple[Any, Any]]:
            is_any = False
            async for each in read(reader, at_most):
                is_any = True
                yield each
            if is_any:
                raise errors.TopicAuthorizationFailedError("another")

        async def scenario(transport: Transport) -> None:
            assert isinstance(transport, KafkaTransport)
            await transport.send_batch(self.destination, some_events(5))
            source = await transport.open(self.destination, Wanted("orders", ("order-placed",)))
            monkeypatch.setattr(Reader, "read", objecting)
            held: list[Held] = []
            while not held:
                held += await source.fetch(10)
            assert len(held) == 5
            for _ in range(2):
                with pytest.raises(errors.TopicAuthorizationFailedError):
                    await source.fetch(10)
            await source.close()

        self.run(scenario)

    def test_what_the_group_objects_to_is_told_though_no_partition_is_ours(self) -> None:
        async def scenario(transport: Transport) -> None:
            assert isinstance(transport, KafkaTransport)
            source = await transport.open(self.destination, Wanted("orders", ("nothing-is-there",)))
            assert isinstance(source, KafkaSource)
            source._consumer.unsubscribe()
            assert await source.fetch(1) == []
            source._consumer._coordinator._pending_exception = errors.GroupAuthorizationFailedError("orders")
            source._consumer._coordinator._error_consumed_fut = asyncio.get_running_loop().create_future()
            with pytest.raises(errors.GroupAuthorizationFailedError):
                await source.fetch(1)
            await source.close()

        self.run(scenario)

    @pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
    def test_what_another_client_has_compressed_is_read(self, codec: str) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            async with self.serving(mailbox):
                await transport.send(self.destination, an_event("order-placed"))  # the topic is there
                async with AIOKafkaProducer(
                    bootstrap_servers=address_in(self.url), compression_type=codec
                ) as producer:
                    await producer.send_and_wait(topics.topic_of("order-placed", self.prefix), b"x" * 1000)
                assert b"x" * 1000 in [each.body for each in await mailbox.wait_for(2)]

        self.run(scenario)

    def test_what_is_too_large_for_the_broker_is_refused_and_nothing_else_is(self) -> None:
        async def scenario(transport: Transport) -> None:
            large = dataclasses.replace(some_events(1)[0], data=b'"%b"' % (b"x" * 3_000_000))
            events, mailbox = [*some_events(5), large, *some_events(5)], Mailbox()
            async with self.serving(mailbox) as destination:
                found = await transport.send_batch(destination, events)
                assert isinstance(found[5], Refused)
                left = [
                    each for each, said in zip(events, found, strict=True) if isinstance(said, Unavailable)
                ]
                assert await transport.send_batch(destination, left) == [Receipt()] * len(left)
                await mailbox.wait_for(10)

        self.run(scenario)

    # Topics

    def test_topics_are_made_with_the_partitions_that_are_wanted(self) -> None:
        async def scenario(transport: Transport) -> None:
            wanted = KafkaTransport(PREFIX=self.prefix, PARTITIONS=3)
            await wanted.send(self.destination, an_event("three"))
            await wanted.close()
            await transport.send(self.destination, an_event("six"))
            await transport.send(self.destination, an_event("three"))
            assert await self.partitions("three") == 3
            assert await self.partitions("six") == 6

        self.run(scenario)

    def test_a_topic_that_cannot_be_made_is_unavailable_and_says_why(self) -> None:
        async def scenario(transport: Transport) -> None:
            greedy = KafkaTransport(PREFIX=self.prefix, REPLICATION=3)
            for found in (
                await outcome(greedy.send(self.destination, an_event())),
                await outcome(greedy.listen(self.destination, Wanted("orders", ("order-placed",)), never)),
            ):
                assert isinstance(found, Unavailable)
                assert found.slowly
                assert "replication" in str(found)
            await greedy.close()

        self.run(scenario)

    def test_a_topic_that_is_deleted_is_noticed_and_made_again(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            async with self.listening(taking(mailbox)) as listening:
                await transport.send(self.destination, an_event())
                await mailbox.wait_for(1)
                async with admin_at(self.url) as admin:
                    await admin.delete_topics([topics.topic_of("order-placed", self.prefix)])
                assert isinstance(await outcome(listening), Unavailable)
            async with self.listening(taking(mailbox)):
                await send_at_last(transport, self.destination, some_events(1))
                await mailbox.wait_for(2)
            assert await self.partitions("order-placed") == 6

        self.run(scenario, ATTEMPT_S=3.0)

    @pytest.mark.parametrize("text", ["audit-*", "*", "a_*", "*_41", "größe*", "a*b*c", "_*", "*5F*", "a.*"])
    def test_a_pattern_is_of_the_topics_of_the_types_that_match_it_and_no_others(self, text: str) -> None:
        found = re.compile(pattern_of(Wanted("orders", ("exact_41",), (text,)), self.prefix))
        types = (
            "audit- audit-1 audit a_ a_41 a_b a_4 x_41 _41 größe größer a.b a*b*c axbyc abc _ _5F 5F a_5Fb é"
        )
        for each in [*types.split(), "exact_41", "exact_A", "exact 41"]:
            is_match = found.match(topics.topic_of(each, self.prefix)) is not None
            assert is_match == is_wanted(each, Wanted("orders", ("exact_41",), (text,))), each

    # Who is given what

    def test_only_what_is_owned_without_a_gap_is_committed(self) -> None:
        async def scenario(transport: Transport) -> None:
            has_come, later = asyncio.Event(), Mailbox()

            async def all_but_third(brought: Sequence[Brought]) -> Sequence[Answer]:
                numbers = [number_of(each.message) for each in brought]
                if 9 in numbers:
                    has_come.set()
                return [Answer(503 if n == 3 else 200, {}) for n in numbers]

            async with self.listening(all_but_third):
                assert (
                    await transport.send_batch(self.destination, some_events(10, key="k")) == [Receipt()] * 10
                )
                await has_come.wait()
            async with self.listening(taking(later)):
                await later.wait_for(7)
            assert list(map(number_of, later.messages)) == [3, 4, 5, 6, 7, 8, 9]

        self.run(scenario)

    def test_the_first_of_a_partition_may_have_ended_another_and_the_others_not(self) -> None:
        async def scenario(transport: Transport) -> None:
            again: list[bool] = []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                again.extend(each.is_again for each in brought)
                return [Answer(200, {}) for _ in brought]

            async with self.listening(take):
                await transport.send_batch(self.destination, some_events(30, key="k"))
                await until(lambda: len(again) == 30)
            assert again == [True] * 20 + [False] * 10

        self.run(scenario, BATCH=10)

    def test_a_new_owner_is_brought_what_is_still_being_taken_and_nobody_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kafka_source, "_HAND_OVER_S", 0.1)

        async def scenario(transport: Transport) -> None:
            has_come, may_end, other = asyncio.Event(), asyncio.Event(), Mailbox()

            async def held_up(brought: Sequence[Brought]) -> Sequence[Answer]:
                has_come.set()
                await may_end.wait()
                return [Answer(200, {}) for _ in brought]

            events = [each for key in "abcdefgh" for each in some_events(1, key=key)]
            async with self.listening(held_up) as first:
                await transport.send_batch(self.destination, events)
                await has_come.wait()
                async with self.listening(taking(other)) as second:
                    await other.wait_for(1)
                    may_end.set()
                    await transport.send_batch(self.destination, some_events(20))
                    await asyncio.sleep(2.0)
                    assert not first.done()
                    assert not second.done()

        self.run(scenario)

    def test_what_a_replica_had_that_was_killed_goes_to_another(self) -> None:
        async def scenario(transport: Transport) -> None:
            replica = await start_replica(self.prefix, self.url)
            assert replica.stdout is not None
            await transport.send_batch(self.destination, some_events(20, key="k"))
            assert await replica.stdout.readline() == b"has come\n"
            replica.kill()
            await replica.wait()
            await expel(f"{self.prefix}orders", self.url)
            mailbox, again = Mailbox(), []

            async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
                again.extend(each.is_again for each in brought)
                return [await mailbox(each.message) for each in brought]

            async with self.listening(take):
                await mailbox.wait_for(20)
            assert list(map(number_of, mailbox.messages)) == list(range(20))
            assert all(again)

        self.run(scenario)

    # The way there

    def test_a_user_in_the_url_is_who_it_is(self) -> None:
        async def scenario(transport: Transport) -> None:
            mailbox = Mailbox()
            self.url = self.url.replace("://", "://user:p%40ss@")
            async with self.serving(mailbox) as destination:
                await transport.send(destination, an_event())
                await mailbox.wait_for(1)
            scram = KafkaTransport(
                PREFIX=self.prefix, SASL="SCRAM-SHA-256"
            )  # which this broker does not know
            other = KafkaTransport(PREFIX=self.prefix, SASL="NONE")
            found = await outcome(scram.send(self.destination, an_event()))
            assert isinstance(found, Unavailable)
            assert "p@ss" not in str(found)
            assert isinstance(await outcome(other.send(self.destination, an_event())), Refused)
            await scram.close()
            await other.close()

        self.run(scenario)

    def test_kafkas_is_encrypted_and_knows_its_broker_by_its_certificate(self, tmp_path: Path) -> None:
        authority, files = trustme.CA(), tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(files))
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(theirs)

        async def scenario(transport: Transport) -> None:
            async with encrypted(self.url, theirs) as url:
                found = await outcome(transport.send(Destination("stranger", url), an_event()))
                assert isinstance(found, Unavailable)
                place, mailbox = Destination("bus", url, ca=str(files)), Mailbox()
                await transport.send(place, an_event())
                other = self.make_transport()
                wanted = Wanted("orders", ("order-placed",))
                listening = asyncio.ensure_future(other.listen(place, wanted, taking(mailbox)))
                await mailbox.wait_for(1)
                listening.cancel()
                await asyncio.wait([listening])
                await other.close()
                await transport.close()

        self.run(scenario)

    async def partitions(self, event_type: str) -> int:
        return await partitions_of(topics.topic_of(event_type, self.prefix), self.url)
