"""Kafka's transport where its broker is killed, comes back, and comes back with nothing."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiokafka", reason="needs aiokafka, the extra aevents[kafka]")

from aevents.errors import Unavailable
from aevents.transports.base import Destination, Transport, Wanted
from aevents.transports.kafka import KafkaTransport
from aevents.transports.rehearsal import Mailbox, outcome, rehearse, some_events
from tests.kafka_tools import never, number_of, partitions_of, send_at_last, taking, until
from tests.own_kafka import OwnKafka

_WANTED = Wanted("orders", ("order-placed",), ("audit-*",))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[OwnKafka]:
    found = OwnKafka(tmp_path)
    found.start()
    yield found
    found.is_safe = False
    found.kill()


def run(scenario: Callable[[Transport], Awaitable[None]], attempt_s: float = 3.0) -> None:
    assert rehearse(lambda: KafkaTransport(SESSION_S=6.0), scenario, ATTEMPT_S=attempt_s, CONNECT_S=1.0) == []


async def listen(transport: Transport, place: Destination, mailbox: Mailbox) -> None:
    """Listen as a worker does, which begins anew."""
    while True:
        assert isinstance(await outcome(transport.listen(place, _WANTED, taking(mailbox))), Unavailable)
        await asyncio.sleep(0.1)


async def fails(transport: Transport, place: Destination) -> bool:
    """Tell whether none of a batch is sent, and may be tried again."""
    found = await outcome(transport.send_batch(place, some_events(10)))
    return all(isinstance(each, Unavailable) for each in (found if isinstance(found, list) else [found]))


def test_a_publisher_notices_a_dead_broker_soon_and_finds_it_again_by_itself(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        place = Destination("bus", broker.url)
        assert await send_at_last(transport, place, some_events(10)) == 0
        broker.kill()
        for _ in range(2):
            began = time.monotonic()
            assert await fails(transport, place)
            assert time.monotonic() - began < 4
        broker.start()
        began = time.monotonic()
        assert await send_at_last(transport, place, some_events(10)) <= 1
        assert time.monotonic() - began < 4

    run(scenario)


def test_an_idle_publisher_does_not_mind_that_the_broker_was_restarted(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        place = Destination("bus", broker.url)
        assert await send_at_last(transport, place, some_events(10, key="k")) == 0
        broker.kill()
        broker.start()
        assert await send_at_last(transport, place, some_events(10, key="k")) <= 1

    run(scenario)


def test_who_listens_is_told_that_the_broker_is_lost(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        place, mailbox = Destination("bus", broker.url), Mailbox()
        listening = asyncio.ensure_future(transport.listen(place, _WANTED, taking(mailbox)))
        await send_at_last(transport, place, some_events(10))
        await mailbox.wait_for(10)
        broker.kill()
        began = time.monotonic()
        assert isinstance(await outcome(listening), Unavailable)
        assert time.monotonic() - began < 5
        assert isinstance(await outcome(transport.listen(place, _WANTED, never)), Unavailable)

    run(scenario)


def test_nothing_is_lost_and_nothing_out_of_order_while_the_broker_is_restarted_twice(
    broker: OwnKafka,
) -> None:
    async def scenario(transport: Transport) -> None:
        place, mailbox, replica = Destination("bus", broker.url), Mailbox(), KafkaTransport(SESSION_S=6.0)
        listening = asyncio.ensure_future(listen(replica, place, mailbox))
        events, failures = some_events(1500, key="k"), 0
        for at in range(0, 1500, 50):
            if at in (500, 1000):
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.start)
            failures += await send_at_last(transport, place, events[at : at + 50])
        await until(lambda: len({number_of(each) for each in mailbox.messages}) == 1500)
        firsts = list(dict.fromkeys(number_of(each) for each in mailbox.messages))
        assert firsts == list(range(1500))
        listening.cancel()
        await asyncio.wait([listening])
        await replica.close()

    run(scenario)


def test_a_broker_that_comes_back_with_nothing_is_given_all_topics_anew(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        place, mailbox, replica = Destination("bus", broker.url), Mailbox(), KafkaTransport(SESSION_S=6.0)
        listening = asyncio.ensure_future(listen(replica, place, mailbox))
        await send_at_last(transport, place, some_events(10))
        await mailbox.wait_for(10)
        broker.kill()
        shutil.rmtree(broker.folder / "data")
        broker.start()
        await send_at_last(transport, place, some_events(10))
        await send_at_last(transport, place, some_events(5, "audit-new"))
        await mailbox.wait_for(25)
        for topic in ("aevents.order-placed", "aevents.audit-new"):
            assert await partitions_of(topic, broker.url) == 6
        listening.cancel()
        await asyncio.wait([listening])
        await replica.close()

    run(scenario)


def test_a_broker_that_says_nothing_is_given_up(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            place = Destination("bus", f"kafka://127.0.0.1:{silent.getsockname()[1]}")
            for work in (
                transport.send_batch(place, some_events(2)),
                transport.listen(place, _WANTED, never),
            ):
                began = time.monotonic()
                assert isinstance(await outcome(work), Unavailable)
                assert time.monotonic() - began < 3

    run(scenario, attempt_s=1.0)


def test_a_broker_that_stops_answering_is_given_up_and_used_when_it_is_back(broker: OwnKafka) -> None:
    async def scenario(transport: Transport) -> None:
        place = Destination("bus", broker.url)
        assert await send_at_last(transport, place, some_events(10)) == 0
        broker.freeze()
        try:
            began = time.monotonic()
            assert await fails(transport, place)
            assert time.monotonic() - began < 2.5
        finally:
            broker.thaw()
        assert await send_at_last(transport, place, some_events(10)) <= 1

    run(scenario, attempt_s=1.0)
