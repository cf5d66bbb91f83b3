"""The contract, run by every transport that ships, and what each one promises beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any, ClassVar

import orjson
import pytest
from aiohttp import web
from django.test import override_settings

from aevents import wire
from aevents.answer import Receipt
from aevents.courier import Courier
from aevents.errors import Refused, Unavailable
from aevents.event import Event, Message, new_id
from aevents.shipment import pack
from aevents.transports import scheme_of, transport_class
from aevents.transports.base import Destination, Transport
from aevents.transports.contract import TransportContract
from aevents.transports.http import HttpTransport
from aevents.transports.local import LocalTransport
from aevents.transports.memory import MemoryTransport
from aevents.transports.rehearsal import Mailbox, Receiver, outcome


class TestMemory(TransportContract):
    can_send_batches = True
    good_urls = ("memory://orders", "memory://orders/x")
    bad_urls = ("memory://user:s3cret@[", "memory://", "orders")

    _names = count()

    def make_transport(self) -> Transport:
        return MemoryTransport()

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        name = f"service-{next(self._names)}"
        MemoryTransport.serve(name, receiver)
        yield Destination(name, f"memory://{name}")
        MemoryTransport.stop(name)


class TestLocal(TransportContract):
    good_urls = ("local://",)
    bad_urls = ("local://user:s3cret@[", "local://orders", "orders")
    has_many_destinations = False
    gives_up_on_silence = False  # handlers of this very process: giving up would change nothing

    def make_transport(self) -> Transport:
        return LocalTransport()

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        LocalTransport.serve("self", receiver)
        yield Destination("tests", "local://")
        LocalTransport.stop("self")

    @pytest.fixture(autouse=True)
    def _put_back(self) -> Iterator[None]:
        own = LocalTransport.receivers["self"]
        yield
        LocalTransport.serve("self", own)


class TestHttp(TransportContract):
    can_send_batches = True
    good_urls = (
        "http://orders.internal/events/",
        "https://orders.internal:8443/events/?a=b",
        "HTTP://127.0.0.1:8000",
        "http://[::1]:8000/events/",
        "http://user:s3cret@orders/events/",
    )
    bad_urls = (
        "orders.internal/events/",
        "//orders/events/",
        "ftp://user:s3cret@orders/",
        "http://",
        "http:///events/",
        "http://user:s3cret@/",
        "http://user:s3cret@[::1/",
        "http://user:s3cret@orders:port/",
        "http://user:s3cret/with-a-slash@orders/",
        "http://orders:99999/",
        "http://two words/",
        "",
    )

    def make_transport(self) -> Transport:
        return HttpTransport()

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        async def post(request: web.Request) -> web.Response:
            headers = {name.lower(): value for name, value in request.headers.items()}
            answer = await receiver(Message(headers, await request.read()))
            return web.Response(
                status=answer.status,
                body=None if answer.status == 204 else answer.body,
                content_type="application/json",
                headers=dict(answer.headers),
            )

        application = web.Application()
        application.router.add_post("/events/", post)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield Destination("orders", f"http://127.0.0.1:{port}/events/")
        finally:
            await runner.cleanup()


class BrokerTransport(Transport):
    """Keeps what is sent in a queue, read or not: what the contract's flags are for."""

    queues: ClassVar[dict[str, asyncio.Queue[Message]]] = {}

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        return None if url.startswith("broker://") else "it must begin with broker://"

    async def send(self, destination: Destination, message: Message) -> Receipt:
        if self.mistake_in(destination.url):
            raise Refused("it is no broker")
        queue = self.queues.setdefault(destination.url, asyncio.Queue())
        await queue.put(Message(wire.stamp(message), message.body))
        return Receipt()


class TestBroker(TransportContract):
    good_urls = ("broker://bus",)
    bad_urls = ("bus",)
    does_the_answer_come_back = False
    gives_up_on_silence = False

    _names = count()

    def make_transport(self) -> Transport:
        return BrokerTransport()

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        url = f"broker://bus-{next(self._names)}"
        queue = BrokerTransport.queues.setdefault(url, asyncio.Queue())

        async def consume() -> None:
            while True:
                await outcome(receiver(await queue.get()))
                queue.task_done()

        consumer = asyncio.create_task(consume())
        yield Destination("bus", url)
        await queue.join()
        consumer.cancel()
        await asyncio.wait([consumer])


class Forgetful(MemoryTransport):
    """Drops a header."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        headers = {k: v for k, v in message.headers.items() if k != "ce-partitionkey"}
        return await super().send(destination, Message(headers, message.body))


class Embellishing(MemoryTransport):
    """Encodes the body anew."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        body = orjson.dumps(orjson.loads(message.body))
        return await super().send(destination, Message(message.headers, body))


class Optimistic(MemoryTransport):
    """Takes every answer for a good one."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        with contextlib.suppress(Unavailable, Refused):
            return await super().send(destination, message)
        return Receipt()


class Talkative(MemoryTransport):
    """Lets foreign errors through."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        try:
            return await super().send(destination, message)
        except Unavailable as error:
            raise OSError from error


class Mixed(MemoryTransport):
    """Hands out the answer of whoever comes first."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        if not hasattr(self, "_first"):
            self._first = asyncio.ensure_future(super().send(destination, message))
        return await asyncio.shield(self._first)


class Leaking(MemoryTransport):
    """Leaves a socket open."""

    async def send(self, destination: Destination, message: Message) -> Receipt:
        socket.socket()
        return await super().send(destination, message)


class Lingering(MemoryTransport):
    """Leaves a task running."""

    async def close(self) -> None:
        self._task = asyncio.create_task(asyncio.sleep(60))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (Forgetful, TransportContract.test_headers_and_body_arrive_as_they_were_sent),
        (Embellishing, TransportContract.test_headers_and_body_arrive_as_they_were_sent),
        (Optimistic, TransportContract.test_410_is_refused),
        (Optimistic, TransportContract.test_nobody_there_is_unavailable),
        (Talkative, TransportContract.test_nobody_there_is_unavailable),
        (Mixed, TransportContract.test_many_at_once_are_not_mixed_up),
        (Leaking, TransportContract.test_a_destination_that_comes_back_is_reached_again),
        (Lingering, TransportContract.test_a_transport_that_was_never_used_closes),
    ],
)
def test_the_contract_finds_a_transport_that_breaks_it(
    broken: type[Transport], rule: Callable[[TransportContract], None]
) -> None:
    class TestBroken(TestMemory):
        def make_transport(self) -> Transport:
            return broken()

    with pytest.raises(AssertionError):
        rule(TestBroken())
    rule(TestMemory())


def test_a_flag_leaves_out_the_tests_that_ask_for_it() -> None:
    assert TestLocal.test_a_destination_never_sends_it_elsewhere is None
    assert TestLocal.test_a_silent_destination_is_given_up is None
    assert TestBroker.test_a_silent_destination_is_given_up is None
    assert TestMemory.test_a_silent_destination_is_given_up is not None


# Which transport carries a scheme


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("https://orders/", "https"),
        ("HTTP://orders/", "http"),
        ("local://", "local"),
        ("orders", ""),
        ("", ""),
        ("http://[::1", ""),
    ],
)
def test_the_scheme_of_a_url(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


def test_each_scheme_that_ships_has_its_transport() -> None:
    assert {scheme: transport_class(scheme) for scheme in ("http", "https", "local", "memory")} == {
        "http": HttpTransport,
        "https": HttpTransport,
        "local": LocalTransport,
        "memory": MemoryTransport,
    }


@override_settings(AEVENTS={"TRANSPORTS": {"broker": {"BACKEND": "x.Y"}}})
def test_a_scheme_without_transport_is_refused_with_those_there_are() -> None:
    with pytest.raises(Refused, match=r"'ftp' \(there are: amqp, amqps, broker, http, .*, tcps\)"):
        transport_class("ftp")


@override_settings(AEVENTS={"TRANSPORTS": {"broker": {"BACKEND": "nowhere.BrokerTransport"}}})
def test_a_transport_that_cannot_be_imported_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match="'broker' cannot be imported: No module named 'nowhere'"):
        transport_class("broker")


@override_settings(AEVENTS={"TRANSPORTS": {"broker": {"BACKEND": "django.conf.settings"}}})
def test_what_is_no_transport_is_refused() -> None:
    with pytest.raises(Refused, match="'broker' is no subclass of Transport"):
        transport_class("broker")


class Noting(MemoryTransport):
    """Keeps what it was made with."""

    made_with: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made_with.append(options)


@override_settings(
    AEVENTS={
        "ENABLED": True,
        "TRANSPORTS": {"memory": {"BACKEND": "tests.test_transports.Noting", "POOL": 3}},
        "SERVICES": {"one": "memory://one", "two": "memory://two", "three": "memory://three"},
        "SUBSCRIPTIONS": {"order-placed": ["one", "two"]},
    }
)
def test_a_scheme_s_transport_is_made_once_with_its_options() -> None:
    # Given
    own = Courier()
    mailboxes = {name: Mailbox() for name in ("one", "two")}
    for name, mailbox in mailboxes.items():
        MemoryTransport.serve(name, mailbox)
    event = Event(new_id(), "order-placed", b"{}", "tests", datetime.now(UTC))
    try:
        # When
        destinations = [Destination(name, f"memory://{name}") for name in mailboxes]
        shipment, parcels = pack([(event, destinations)], None)
        own.ship(parcels)
        assert own.flush(10)
        # Then
        assert [result.outcome for result in shipment.results if result] == ["delivered"] * 2
        assert Noting.made_with == [{"POOL": 3}]
    finally:
        own.close(1)
        for name in mailboxes:
            MemoryTransport.stop(name)
