"""What the transport of RabbitMQ does as its broker dies, comes back, takes nothing, or grows impatient."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("aio_pika", reason="needs aio-pika, the extra aevents[rabbitmq]")

import trustme

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Unavailable
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted
from aevents.transports.rabbitmq import RabbitTransport
from aevents.transports.rehearsal import Mailbox, an_event, outcome, rehearse, some_events
from tests.brokers import free_port
from tests.own_rabbitmq import OwnRabbit

WANTED = Wanted("orders", ("order-placed",))


class Own(OwnRabbit):
    """A broker that also speaks TLS."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca, self.tls_port = folder / "ca.pem", free_port()
        self.authority.cert_pem.write_to_path(str(self.ca))
        certificate = self.authority.issue_cert("127.0.0.1")
        pair = folder / "pair.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(pair))
        super().__init__(
            folder / "broker",
            settings=(
                f"listeners.ssl.own = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {self.ca}",
                f"ssl_options.certfile = {pair}",
                f"ssl_options.keyfile = {pair}",
            ),
        )

    @property
    def destination(self) -> Destination:
        return Destination("bus", self.url)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    own = Own(tmp_path_factory.mktemp("rabbit"))
    own.start()
    try:
        asyncio.run(make_the_queue(own.destination))
        # 3.10 writes half a second later which queue is in which folder: killed before, it loses a new queue.
        time.sleep(2)
        yield own
    finally:
        own.kill()


@pytest.fixture
def broker(running: Own) -> Own:
    """The broker with an empty queue: what a kill left unacknowledged would come in the next test."""
    running.control("purge_queue", "aevents.orders")
    return running


async def make_the_queue(place: Destination) -> None:
    transport = RabbitTransport()
    source = await transport.open(place, WANTED)
    await source.close()
    await transport.close()


@asynccontextmanager
async def listening(place: Destination, take: Take) -> AsyncIterator[asyncio.Task[None]]:
    """Listen as a worker does, beginning anew whenever the broker is lost."""
    transport = RabbitTransport()

    async def for_ever() -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await transport.listen(place, WANTED, take)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(for_ever())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await transport.close()


async def send_until_taken(transport: Transport, place: Destination) -> str:
    """Send one event until it is confirmed, and return its id."""
    message = an_event()
    async with asyncio.timeout(20):
        # There is nothing to wait for: the broker tells nobody that it is back.
        while isinstance(await outcome(transport.send(place, message)), Unavailable):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return message.headers["webhook-id"]


def test_what_was_confirmed_outlasts_a_kill_and_both_sides_come_back_by_themselves(broker: Own) -> None:
    async def scenario(transport: Transport) -> None:
        mailbox, is_down = Mailbox(), asyncio.Event()

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            if not is_down.is_set():
                return [Answer(503, {}) for _ in brought]
            return [await mailbox(each.message) for each in brought]

        async with listening(broker.destination, take):
            sent = {await send_until_taken(transport, broker.destination)}
            events = some_events(200)
            assert await transport.send_batch(broker.destination, events) == [Receipt()] * 200
            sent |= {event.id for event in events}
            broker.kill()
            is_down.set()
            assert isinstance(await outcome(transport.send(broker.destination, an_event())), Unavailable)
            await asyncio.to_thread(broker.start)
            sent.add(await send_until_taken(transport, broker.destination))
            while not sent <= {wire.decode(each).id for each in mailbox.messages}:
                await mailbox.wait_for(len(mailbox.messages) + 1)

    assert rehearse(RabbitTransport, scenario, ATTEMPT_S=5.0, CONNECT_S=2.0) == []


def test_a_kill_while_much_is_sent_loses_nothing_that_was_confirmed(broker: Own) -> None:
    async def scenario(transport: Transport) -> None:
        mailbox, sent = Mailbox(), set()

        async def send(count: int) -> None:
            for _ in range(count):
                events = some_events(64)
                found = await outcome(transport.send_batch(broker.destination, events))
                if isinstance(found, list):
                    sent.update(
                        e.id for e, each in zip(events, found, strict=True) if isinstance(each, Receipt)
                    )

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        async with listening(broker.destination, take):
            await send_until_taken(transport, broker.destination)
            sending = [asyncio.create_task(send(40)) for _ in range(2)]
            await mailbox.wait_for(300)
            broker.kill()
            await asyncio.wait(sending)
            assert len(sent) < 2 * 40 * 64, "it was killed in the midst of it"
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(20):
                while not sent <= {each.headers["webhook-id"] for each in mailbox.messages}:
                    await mailbox.wait_for(len(mailbox.messages) + 1)

    assert rehearse(RabbitTransport, scenario, ATTEMPT_S=5.0, CONNECT_S=2.0) == []


def test_what_is_held_for_too_long_is_brought_again(broker: Own) -> None:
    def set_to(setting: str) -> None:  # new channels have it
        broker.control("eval", f"application:set_env(rabbit, {setting}).")

    async def scenario(transport: Transport) -> None:
        seen: list[bool] = []
        is_again = asyncio.Event()

        async def slow_at_first(brought: Sequence[Brought]) -> Sequence[Answer]:
            seen.extend(each.is_again for each in brought)
            if len(seen) == 1:
                await asyncio.sleep(6)
            else:
                is_again.set()
            return [Answer(200, {}) for _ in brought]

        async with listening(broker.destination, slow_at_first):
            await send_until_taken(transport, broker.destination)
            await is_again.wait()
        assert seen == [False, True]

    set_to("channel_tick_interval, 1000")
    set_to("consumer_timeout, 2000")
    try:
        assert rehearse(RabbitTransport, scenario) == []
    finally:
        set_to("consumer_timeout, 1800000")


def test_a_broker_that_takes_nothing_is_unavailable_until_it_does(broker: Own) -> None:
    async def scenario(transport: Transport) -> None:
        mailbox = Mailbox()

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        async with listening(broker.destination, take):
            await send_until_taken(transport, broker.destination)
            await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "absolute", "1MB")
            for _ in range(2):
                error = await outcome(transport.send(broker.destination, an_event()))
                assert isinstance(error, Unavailable)
                assert error.timed_out
            await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "0.4")
            sent = await send_until_taken(transport, broker.destination)
            while sent not in {each.headers["webhook-id"] for each in mailbox.messages}:
                await mailbox.wait_for(len(mailbox.messages) + 1)

    assert rehearse(RabbitTransport, scenario, ATTEMPT_S=1.0) == []


def test_a_full_queue_is_unavailable_and_drops_nothing(broker: Own) -> None:
    async def scenario(transport: Transport) -> None:
        has_come = asyncio.Event()

        async def hold(brought: Sequence[Brought]) -> Sequence[Answer]:
            has_come.set()
            return [Answer(503, {}) for _ in brought]

        async with listening(broker.destination, hold):
            sent = {await send_until_taken(transport, broker.destination)}
        limit = ("set_policy", "bounded", ".*", '{"max-length": 5}', "--apply-to", "queues")
        await asyncio.to_thread(broker.control, *limit)
        errors: list[Unavailable] = []
        async with asyncio.timeout(20):
            while not errors:
                event = an_event()
                found = await outcome(transport.send(broker.destination, event))
                if isinstance(found, Unavailable):
                    errors.append(found)
                else:
                    sent.add(event.headers["webhook-id"])
        assert "full" in str(errors[0])
        await asyncio.to_thread(broker.control, "clear_policy", "bounded")
        mailbox = Mailbox()

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        async with listening(broker.destination, take):
            await mailbox.wait_for(len(sent))
        assert sent <= {each.headers["webhook-id"] for each in mailbox.messages}

    assert rehearse(RabbitTransport, scenario) == []


def test_tls_is_spoken_with_whom_the_ca_vouches_for_and_nobody_else(broker: Own) -> None:
    async def scenario(transport: Transport) -> None:
        url = f"amqps://guest:guest@127.0.0.1:{broker.tls_port}/"
        place = Destination("bus", url, ca=str(broker.ca))
        mailbox = Mailbox()

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        async with listening(place, take):
            await send_until_taken(transport, place)
            await mailbox.wait_for(1)
        error = await outcome(transport.send(Destination("bus", url), an_event()))
        assert isinstance(error, Unavailable)
        assert error.slowly
        assert ssl.SSLCertVerificationError.__name__ in str(error) or "certificate" in str(error).lower()

    assert rehearse(RabbitTransport, scenario) == []


def test_who_sends_needs_to_write_and_who_listens_its_own_queue(broker: Own) -> None:
    rights = {
        "emitter": ("^$", "^aevents$", "^$"),
        "worker": (r"^aevents(\.orders)?$", r"^aevents\.orders$", r"^aevents(\.orders)?$"),
    }
    for user, (configure, write, read) in rights.items():
        broker.control("add_user", user, "s3cret")
        broker.control("set_permissions", user, configure, write, read)

    def place(user: str) -> Destination:
        return Destination("bus", broker.url.replace("guest:guest", f"{user}:s3cret"))

    async def scenario(transport: Transport) -> None:
        mailbox = Mailbox()

        async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
            return [await mailbox(each.message) for each in brought]

        async with listening(place("worker"), take):
            assert await transport.send(place("emitter"), an_event()) == Receipt()
            await mailbox.wait_for(1)
        error = await outcome(transport.send(place("worker"), an_event()))
        assert isinstance(error, Unavailable)
        assert error.slowly
        assert "ACCESS_REFUSED" in str(error)

    assert rehearse(RabbitTransport, scenario) == []
