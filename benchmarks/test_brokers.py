"""What does aevents cost beside the bare client of each broker, doing the same work?

Publishing: 64 emitters, each awaiting the broker's word for its own event; `aemit` beside the client's own
call, whose message is encoded and signed by hand. Consuming: a service that takes all that is there, as the
worker does, beside a loop written by hand; both read batches, verify, decode, call a handler that does
nothing, and acknowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aevents import subscribe_to, subscriptions
from aevents.courier import courier
from aevents.listening import _take_of_broker
from aevents.transports import scheme_of, transport_class
from aevents.transports.base import Destination, Wanted
from aevents.transports.rehearsal import some_events
from benchmarks import bare_brokers, clients
from benchmarks.duel import duel
from benchmarks.rig import contest
from tests import brokers
from tests.test_broker_crash import own_broker

ROUNDS = 7
PUBLISHED, CONSUMED = 3_200, 10_000
WIDTH = 64
KINDS = ("redis", "rabbitmq", "nats", "kafka")
BARE: dict[str, Callable[[str], bare_brokers.Bare]] = {
    "redis": bare_brokers.BareRedis,
    "rabbitmq": bare_brokers.BareRabbit,
    "nats": bare_brokers.BareNats,
    "kafka": bare_brokers.BareKafka,
}
Loop = asyncio.AbstractEventLoop


class Bus:
    """A broker, and the names that this test has in it."""

    def __init__(self, kind: str, url: str, loop: Loop) -> None:
        self.kind = kind
        self.url = url
        self.loop = loop
        self.prefix = f"b{uuid.uuid4().hex[:10]}."
        self.place = f"{self.prefix}user-created"
        self.destination = Destination("bus", url, (clients.KEY,))
        self.bare = BARE[kind](url)

    def settings(self) -> dict[str, Any]:
        return {
            "SERVICE": "benchmarks",
            "ENABLED": True,
            "SECRETS": [clients.SECRET],
            "STORE": None,
            "BROKERS": {"bus": self.url},
            "SUBSCRIPTIONS": {"*": ["bus"]},
            "TRANSPORTS": {scheme_of(self.url): {"PREFIX": self.prefix}},
        }

    def transport(self) -> Any:
        return transport_class(scheme_of(self.url))(PREFIX=self.prefix)

    async def listen(self, group: str, count: int, take: Any) -> None:
        """Listen as this group, until so many messages were taken."""
        transport, taken, all_taken = self.transport(), 0, asyncio.Event()

        async def counting(brought: Any) -> Any:
            nonlocal taken
            answers = await take(brought)
            taken += len(brought)
            if taken >= count:
                all_taken.set()
            return answers

        wanted = Wanted(group, ("user-created",))
        listening = asyncio.ensure_future(transport.listen(self.destination, wanted, counting))
        waiting = asyncio.ensure_future(all_taken.wait())
        await asyncio.wait([listening, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        await transport.close()

    async def exist(self, group: str) -> None:
        """Let the group be there, so that what is sent from now on is kept for it."""
        transport = self.transport()
        source = await transport.open(self.destination, Wanted(group, ("user-created",)))
        await source.close()
        await transport.close()

    async def fill(self, count: int) -> None:
        """Send so many events."""
        transport = self.transport()
        for _ in range(0, count, 250):
            events = some_events(250, "user-created")
            await transport.send_batch(self.destination, events)
        await transport.close()

    async def forget(self) -> None:
        """Remove what this test has left in a broker that it shares."""
        if self.kind == "redis":
            import redis.asyncio

            async with redis.asyncio.Redis.from_url(self.url) as client:
                async for key in client.scan_iter(match=f"{self.prefix}*"):
                    await client.delete(key)
        elif self.kind == "nats":
            import nats

            server = await nats.connect(self.url)
            await server.jetstream().delete_stream(self.prefix.rstrip("."))
            await server.close()
        elif self.kind == "rabbitmq":
            import aio_pika

            async with await aio_pika.connect(self.url) as connection:
                channel = await connection.channel()
                for group in ("benchmarks", "ours", "theirs"):
                    await channel.queue_delete(f"{self.prefix}{group}")
                await channel.exchange_delete(self.prefix.rstrip("."))


@pytest.fixture(params=KINDS)
def bus(request: pytest.FixtureRequest, loop: Loop, tmp_path: Path, settings: Any) -> Iterator[Bus]:
    pytest.importorskip({"rabbitmq": "aio_pika", "kafka": "aiokafka"}.get(request.param, request.param))
    with contextlib.ExitStack() as stack:
        if request.param == "kafka":
            own = pytest.importorskip("tests.own_kafka").OwnKafka(tmp_path / "kafka")
            own.start()
            stack.callback(own.kill)
            url = own.url
        else:
            url = brokers.address(request.param)
        bus = Bus(request.param, url, loop)
        settings.AEVENTS = bus.settings()
        before = subscriptions.unsubscribe_all()
        subscribe_to("user-created", bare_brokers.handler, name="handler")
        yield bus
        subscriptions.restore(before)
        courier.close(5.0)
        loop.run_until_complete(bus.forget())


def test_publishing_beside_the_bare_client(benchmark: Any, bus: Bus) -> None:
    bus.loop.run_until_complete(bus.exist("benchmarks"))
    bus.loop.run_until_complete(bus.fill(250))
    stack = contextlib.AsyncExitStack()
    publish = bus.loop.run_until_complete(stack.enter_async_context(bus.bare.publishing(bus.place)))

    async def once() -> None:
        await publish(*clients.by_hand())

    duel(
        benchmark,
        lambda: _at_a_time(bus.loop, clients.emit),
        lambda: _at_a_time(bus.loop, once),
        what=f"aemit to {bus.kind} : its bare client, {WIDTH} awaiting the broker's word",
        goal="at least 0.7 (rate)",
        rounds=ROUNDS,
        is_rate=True,
    )
    bus.loop.run_until_complete(stack.aclose())


def test_consuming_beside_the_bare_client(benchmark: Any, bus: Bus) -> None:
    take = functools.partial(_take_of_broker, "bus")
    if not transport_class(scheme_of(bus.url)).can_replay:
        for group in ("ours", "theirs"):
            bus.loop.run_until_complete(bus.exist(group))

    theirs_is = f"{bus.prefix}theirs" if bus.kind == "rabbitmq" else "theirs"

    def ours() -> float:
        bus.loop.run_until_complete(bus.listen("ours", CONSUMED, take))
        return bare_brokers.seconds_an_event(CONSUMED)

    def theirs() -> float:
        # For both, and new ones each time: what a process has handled it knows, and does not handle again.
        bus.loop.run_until_complete(bus.fill(CONSUMED))
        bus.loop.run_until_complete(bus.bare.consume(bus.place, theirs_is, CONSUMED))
        return bare_brokers.seconds_an_event(CONSUMED)

    contest(
        benchmark,
        ours,
        theirs,
        what=f"a worker that takes from {bus.kind} : a loop by hand over its bare client",
        goal="at least 0.6 (rate)",
        rounds=ROUNDS,
        is_rate=True,
    )


def _at_a_time(loop: Loop, once: Callable[[], Awaitable[Any]]) -> None:
    loop.run_until_complete(clients.at_a_time(WIDTH, PUBLISHED, once))


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_what_it_costs_that_a_broker_writes_to_disk_before_it_confirms(
    benchmark: Any, kind: str, loop: Loop, tmp_path: Path, settings: Any
) -> None:
    """`appendfsync always` beside `everysec`, and `sync_interval: always` beside two minutes."""
    with contextlib.ExitStack() as stack:
        urls = []
        for is_safe in (True, False):
            own = own_broker(kind, tmp_path / str(is_safe), is_safe=is_safe)
            own.start()
            stack.callback(own.kill)
            urls.append(own.url)

        def publish(url: str) -> None:
            settings.AEVENTS = Bus(kind, url, loop).settings()
            courier.close(5.0)
            _at_a_time(loop, clients.emit)

        duel(
            benchmark,
            lambda: publish(urls[0]),
            lambda: publish(urls[1]),
            what=f"aemit to {kind} that writes to disk first : {kind} as it comes",
            goal="for comparison",
            rounds=ROUNDS,
            is_rate=True,
        )
        courier.close(5.0)
