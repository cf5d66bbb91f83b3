"""The connections of the HTTP transport: what is an answer, whatever aiohttp, and how names are found."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import aiohttp.client_proto
import pytest

import aevents.transports
from aevents.answer import Receipt
from aevents.errors import Unavailable
from aevents.transports import connection, guard, http
from aevents.transports.http import HttpTransport
from aevents.transports.names import Door, Names
from tests.peers import Exchange, Peer, closes
from tests.rude_peer import OK
from tests.test_http_transport import send

BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"


@pytest.fixture
async def transport(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpTransport]:
    monkeypatch.setattr(http, "_KEEP_ALIVE_S", 60.0)
    monkeypatch.setattr(http, "_ANSWER_S", 60.0)
    monkeypatch.setattr(connection, "_has_warned", threading.Event())
    transport = HttpTransport()
    yield transport
    await transport.close()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# What is no answer


class AnswersTwice:
    """A behaviour: answer, and once released write one more that nobody asked for."""

    def __init__(self) -> None:
        self.has_left = threading.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.raw(OK)
        await exchange.peer.released.wait()
        await exchange.raw(OK)
        self.has_left.set()


async def test_an_answer_at_the_heels_of_another_s_body_is_none_to_the_next_request(
    transport: HttpTransport,
) -> None:
    async def answers_more_than_was_asked(exchange: Exchange) -> None:
        await exchange.raw(BODY)
        await exchange.peer.released.wait()  # the body comes in a piece of its own
        await exchange.raw(b"abc" + OK)

    with Peer(answers_more_than_was_asked, closes) as peer:
        # Given
        sending = asyncio.ensure_future(send(transport, peer.url))
        await asyncio.to_thread(peer.wait_for, 1)
        peer.release()
        assert await sending == Receipt("")

        # Then
        with pytest.raises(Unavailable):
            await send(transport, peer.url)


async def test_an_answer_that_came_while_the_loop_was_busy_is_none_to_the_next_request(
    transport: HttpTransport,
) -> None:
    behaviour = AnswersTwice()
    with Peer(behaviour, closes) as peer:
        # Given a kept connection
        assert await send(transport, peer.url) == Receipt("")

        # When something comes over it, and the loop does not get to see that
        peer.release()
        assert behaviour.has_left.wait(15)

        # Then
        with pytest.raises(Unavailable):
            await send(transport, peer.url)
        assert peer.connections == 2


# With another aiohttp


async def test_the_aiohttp_of_this_environment_has_every_private_part_that_is_relied_on(
    transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    guard.rehearse(aiohttp.TCPConnector())

    with Peer() as peer:
        for _ in range(3):
            await send(transport, peer.url)

    assert [request.connection for request in peer.requests] == [1] * 3
    assert warnings_in(caplog) == []


async def test_a_connector_that_makes_its_connections_otherwise_is_not_relied_on() -> None:
    connector = aiohttp.TCPConnector()
    guard.rehearse(connector)

    monkey: Any = connector
    monkey._factory = lambda: asyncio.Protocol()
    with pytest.raises(RuntimeError, match="_factory makes something else"):
        guard.rehearse(connector)
    del monkey._factory
    with pytest.raises(AttributeError, match="_factory"):
        guard.rehearse(connector)


def without(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """As if aiohttp called it otherwise: what the guard says to it is no longer heard."""
    return lambda monkeypatch: monkeypatch.delattr(guard.GuardedConnection, name)


def without_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aiohttp.client_proto, "ResponseHandler")
    monkeypatch.delitem(sys.modules, "aevents.transports.guard")
    monkeypatch.delattr(aevents.transports, "guard")
    monkeypatch.setattr(connection, "_guard", connection._imported_guard())


def with_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any, *, owner: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(guard.GuardedConnection, "__init__", init)


def with_connections_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "put_into", lambda connector: None)


changes = pytest.mark.parametrize(
    "change",
    [
        pytest.param(without("set_response_params"), id="set_response_params"),
        pytest.param(without("feed_data"), id="feed_data"),
        pytest.param(without("data_received"), id="data_received"),
        pytest.param(without_its_class, id="ResponseHandler"),
        pytest.param(with_another_signature, id="another signature"),
        pytest.param(with_connections_from_elsewhere, id="made elsewhere"),
    ],
)
Change = Callable[[pytest.MonkeyPatch], None]


@changes
async def test_without_a_part_of_aiohttp_events_leave_over_its_own_connections_with_one_warning(
    change: Change,
    transport: HttpTransport,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(monkeypatch)
    another = HttpTransport()
    with Peer() as peer:
        for each in (transport, transport, another, another):
            assert await send(each, peer.url) == Receipt("")
    await another.close()

    assert [request.connection for request in peer.requests] == [1, 2, 3, 4]
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"aiohttp {aiohttp.__version__} is not as this version of aevents knows it (")


@changes
async def test_without_a_part_of_aiohttp_what_was_not_asked_for_is_no_answer_either(
    change: Change, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    behaviour = AnswersTwice()
    with Peer(behaviour, closes) as peer:
        # Given a connection over which more comes than was asked for
        assert await send(transport, peer.url) == Receipt("")
        peer.release()
        assert await asyncio.to_thread(behaviour.has_left.wait, 15)

        # Then the next event does not count as delivered by it
        with pytest.raises(Unavailable):
            await send(transport, peer.url)


# Names


@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_INET])
async def test_a_name_is_looked_up_as_by_every_program_of_the_machine(family: socket.AddressFamily) -> None:
    names = Names()

    found = await names.resolve("localhost", 80, family)

    expected = socket.getaddrinfo("localhost", 80, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    assert [(f["family"], f["host"], f["port"]) for f in found] == [(e[0], *e[4][:2]) for e in expected]
    assert {f["hostname"] for f in found} == {"localhost"}
    await names.close()


async def test_an_address_of_one_link_keeps_its_scope() -> None:
    scope = socket.if_nametoindex("lo")
    names = Names()

    (found,) = await names.resolve(f"fe80::1%{scope}", 80, socket.AF_INET6)

    assert socket.getaddrinfo(found["host"], 80)[0][4] == ("fe80::1", 80, 0, scope)
    await names.close()


async def test_a_name_that_nobody_knows_is_an_error() -> None:
    names = Names()

    with pytest.raises(socket.gaierror):
        await names.resolve(".".join(["x" * 60] * 5))
    await names.close()


def test_two_threads_that_fork_at_once_keep_names_waiting_until_both_have_forked() -> None:
    door = Door()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        # Given two forks that have begun, with which the system calls before the first has ended
        one.submit(door.shut).result()
        other.submit(door.shut).result()

        # When one has ended, then the door stays shut
        one.submit(door.open).result()
        assert not door.is_open

        # And when the other has, it is open
        other.submit(door.open).result()
        assert door.is_open
        assert door.pass_through(lambda: "found") == "found"


def test_the_door_is_open_in_the_child_of_a_fork_whoever_else_forked() -> None:
    door = Door()
    with ThreadPoolExecutor(1) as other:
        door.shut()
        other.submit(door.shut).result()

    door.renew()

    assert door.pass_through(lambda: "found") == "found"
