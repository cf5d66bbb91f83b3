"""The contract on sockets, and what `tcp://` promises beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import trustme

from aevents import aemit, batch, signature, subscribe_to, wire
from aevents.answer import Answer, Receipt
from aevents.courier import courier
from aevents.errors import Refused, Unavailable
from aevents.event import Message
from aevents.loops import new_quickest_loop
from aevents.receiver import receive
from aevents.transports import frames, rehearsal, tls
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted
from aevents.transports.contract import TransportContract
from aevents.transports.rehearsal import Mailbox, Receiver, an_event, outcome, some_events
from aevents.transports.tcp import TcpTransport
from tests.brokers import free_port
from tests.peers import HAS_UVLOOP, black_hole, eventually, refusing

WANTED = Wanted("orders")
OFFER = {"accept-post": batch.OFFER}


def taking(receiver: Receiver) -> Take:
    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return [await receiver(each.message) for each in brought]

    return take


@asynccontextmanager
async def listening(take: Take, url: str = "", **options: Any) -> AsyncIterator[Destination]:
    """Let `take` have what is sent to the destination, from when its address answers."""
    place = Destination("place", url or f"tcp://127.0.0.1:{free_port()}")
    transport = TcpTransport(**options)
    task = asyncio.create_task(transport.listen(place, WANTED, take))
    try:
        await answers(place, task)
        yield Destination("orders", place.url)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await transport.close()


async def answers(place: Destination, task: asyncio.Task[None]) -> None:
    port = int(place.url.rpartition(":")[2])
    while not task.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.01)
    await task


@asynccontextmanager
async def sending() -> AsyncIterator[TcpTransport]:
    transport = TcpTransport()
    yield transport
    await transport.close()


@asynccontextmanager
async def peer_at(
    peer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of a server that does what `peer` does with each connection, until that returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        # On Python 3.11 a task of streams that ends by its cancellation is told to the loop as a failure.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await peer(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # transports end in the turn after


class TestTcp(TransportContract):
    good_urls = ("tcp://h:7000", "TCP://h:1", "tcps://payments.internal:7000/", "tcp://[::1]:65535")
    bad_urls = (
        "tcp://",
        "tcp://h",
        "tcp://:7000",
        "tcp://h:0",
        "tcp://h:7000/events",
        "tcp://h:7000?a=b",
        "tcp://user:s3cret@h:7000",
        "tcp://h:s3cret",
        "tcp://user:s3cret@[",
        "tcp://ho st:7000",
        "http://h:7000",
    )
    can_send_batches = True

    def make_transport(self) -> Transport:
        return TcpTransport()

    @asynccontextmanager
    async def serving(self, receiver: Receiver) -> AsyncIterator[Destination]:
        async with listening(taking(receiver)) as destination:
            yield destination


@pytest.mark.skipif(not HAS_UVLOOP or sys.version_info < (3, 12), reason="needs uvloop and loop_factory")
class TestTcpOnUvloop(TestTcp):
    @pytest.fixture(autouse=True)
    def _uvloop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = functools.partial(asyncio.run, loop_factory=new_quickest_loop)
        monkeypatch.setattr(rehearsal, "asyncio", SimpleNamespace(**{**vars(asyncio), "run": run}))


# The frame, by hand, as the docs have it


class Hand:
    """A client that knows nothing but the docs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, place: Destination, preface: bytes = b"AEVENTS\x01") -> Hand:
        found = cls(*await asyncio.open_connection("127.0.0.1", int(place.url.rpartition(":")[2])))
        found.writer.write(preface)
        return found

    async def __aenter__(self) -> Hand:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def request(self, id: int, headers: Any, body: bytes = b"{}") -> None:
        self.writer.write(framed(id, 0, json.dumps(headers).encode(), body))

    async def answer(self) -> tuple[int, int, dict[str, str], Any]:
        length, id, status, headers_length = struct.unpack(">IIHH", await self.reader.readexactly(12))
        rest = await self.reader.readexactly(length - 8)
        headers, body = rest[:headers_length], rest[headers_length:]
        return id, status, json.loads(headers or b"{}"), json.loads(body)

    async def hears_the_end(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read(1) == b""
        return True


def framed(id: int, status: int, headers: bytes, body: bytes) -> bytes:
    return struct.pack(">IIHH", 8 + len(headers) + len(body), id, status, len(headers)) + headers + body


HEADERS = {"content-type": "application/json", "webhook-id": "a", "webhook-timestamp": "1"}


async def test_who_knows_the_documented_frame_alone_is_understood() -> None:
    said = Answer(202, {"status": "stored"}, {"retry-after": "3", "accept-post": batch.OFFER, "x": "y"})
    mailbox = Mailbox(said)
    async with listening(taking(mailbox)) as place, await Hand.connect(place) as hand:
        hand.writer.write(bytes.fromhex("00000021 00000007 0000 0013") + b'{"webhook-id":"ab"}' + b"{null}")

        assert await hand.answer() == (
            7,
            202,
            {"retry-after": "3", "accept-post": batch.OFFER},
            {"status": "stored"},
        )
        assert mailbox.messages == [Message({"webhook-id": "ab"}, b"{null}")]


async def test_what_we_write_is_the_documented_frame_and_nothing_else() -> None:
    written: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        preface, head = await reader.readexactly(8), await reader.readexactly(12)
        rest = await reader.readexactly(struct.unpack(">I", head[:4])[0] - 8)
        written.set_result(preface + head + rest)
        writer.write(framed(struct.unpack(">I", head[4:8])[0], 200, b"", b'{"status":"handled"}'))
        await reader.read()
        writer.close()

    message = an_event(key="k 7")
    key = b"k" * 32
    async with peer_at(peer) as url, sending() as transport:
        receipt = await transport.send(Destination("orders", url, keys=(key,)), message)

    assert receipt == Receipt("handled")
    sent = await written
    length, id, status, headers_length = struct.unpack(">IIHH", sent[8:20])
    headers, body = json.loads(sent[20 : 20 + headers_length]), sent[20 + headers_length :]
    assert (sent[:8], id, status, length) == (b"AEVENTS\x01", 1, 0, len(sent) - 12)
    assert body == message.body
    assert headers.keys() == {*message.headers, "webhook-timestamp", "webhook-signature"}
    assert headers.items() >= dict(message.headers).items()
    assert signature.verify(Message(headers, body), [("orders", key)]) == "orders"


async def test_frames_may_come_in_any_pieces() -> None:
    mailbox = Mailbox()
    sent = b"".join([framed(n, 0, json.dumps(HEADERS).encode(), b"%d" % n) for n in range(1, 6)])
    async with listening(taking(mailbox)) as place, await Hand.connect(place, b"") as hand:
        for byte in b"AEVENTS\x01" + sent:
            hand.writer.write(bytes([byte]))
            await hand.writer.drain()
            await asyncio.sleep(0)
        assert [(await hand.answer())[0] for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [message.body for message in mailbox.messages] == [b"1", b"2", b"3", b"4", b"5"]


def test_however_a_stream_is_cut_its_frames_are_the_same_and_no_more_is_kept_than_one() -> None:
    random = Random(11)
    for _ in range(300):
        sizes = [random.choice((0, 1, 50, 900, 3000)) for _ in range(random.randrange(1, 12))]
        stream = b"".join([framed(n + 1, n, b"h" * (size % 7), b"b" * size) for n, size in enumerate(sizes)])
        reader, found, place = frames.Reader(), [], 0
        while place < len(stream):
            piece = stream[place : place + random.choice((1, 5, 200, 5000))]
            found += reader.feed(piece, 1000)
            assert reader.kept_bytes <= 1000 + 5000
            place += len(piece)
        assert not reader.is_within_a_frame
        assert [frame[:2] for frame in found] == [(n + 1, n) for n in range(len(sizes))]
        bodies = [None if size == 3000 else b"b" * size for size in sizes]
        assert [frame.body for frame in found] == bodies


async def test_headers_that_are_not_read_do_not_arrive() -> None:
    mailbox = Mailbox()
    async with listening(taking(mailbox)) as place, await Hand.connect(place) as hand:
        hand.request(1, {**HEADERS, "authorization": "x", "Webhook-Id": "b"})
        assert (await hand.answer())[:2] == (1, 200)
    assert mailbox.messages[0].headers == HEADERS


async def test_who_has_no_more_to_ask_still_gets_its_answers() -> None:
    gate = asyncio.Event()

    async def held(message: Message) -> Answer:
        await gate.wait()
        return Answer(200, {})

    async with listening(taking(held)) as place, await Hand.connect(place) as hand:
        hand.request(1, HEADERS)
        hand.writer.write_eof()
        hand.writer.transport.pause_reading()
        await asyncio.sleep(0.05)
        gate.set()
        hand.writer.transport.resume_reading()
        assert (await hand.answer())[:2] == (1, 200)
        assert await hand.hears_the_end()


# What is no request


async def test_http_by_mistake_is_told_so_in_http() -> None:
    async with listening(taking(Mailbox())) as place:
        url = place.url.replace("tcp://", "http://")
        async with aiohttp.ClientSession() as http, http.post(url, data=b"x" * 500_000) as response:
            assert response.status == 400
            assert "tcp://" in (await response.json())["detail"]


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"AEVENTS\x02", 505, "Version 1"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "does not begin"),
        (b"aevents\x01", 400, "does not begin"),
        (b"AEVENTS\x01" + struct.pack(">IIHH", 7, 1, 0, 0), 400, "no frame"),
        (b"AEVENTS\x01" + struct.pack(">IIHH", 18, 1, 0, 11), 400, "no frame"),
        (b"AEVENTS\x01" + struct.pack(">IIHH", 99_999, 1, 0, 32_769), 400, "no frame"),
        (b"AEVENTS\x01" + framed(0, 0, b"{}", b"{}"), 400, "no frame"),
    ],
)
async def test_what_is_not_this_protocol_is_told_so_and_the_connection_ends(
    sent: bytes, status: int, said: str
) -> None:
    mailbox = Mailbox()
    async with listening(taking(mailbox)) as place, await Hand.connect(place, sent) as hand:
        hand.writer.write(b"\0" * 100_000)  # what is still under way takes nothing from it
        found = await hand.answer()
        assert found[:2] == (0, status)
        assert said in found[3]["detail"]
        assert await hand.hears_the_end()
    assert not mailbox.messages


@pytest.mark.parametrize(
    "headers",
    [b"[]", b"{", b'"x"', b"null", b'{"webhook-id":1}', b'{"webhook-id":null}', b"\xff", b"7" * 999],
)
async def test_headers_that_are_none_are_refused_and_the_next_request_is_taken(headers: bytes) -> None:
    async with listening(taking(Mailbox())) as place, await Hand.connect(place) as hand:
        hand.writer.write(framed(1, 0, headers, b"{}") + framed(2, 0, b"", b"{}"))
        assert {(await hand.answer())[:2], (await hand.answer())[:2]} == {(1, 400), (2, 200)}


async def test_a_frame_that_is_too_large_is_refused_at_its_head_and_harms_no_other(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"BODY_BYTES": 1000}}
    mailbox = Mailbox()
    size = 3_000_000
    async with listening(taking(mailbox)) as place, await Hand.connect(place) as hand:
        hand.request(1, HEADERS)
        hand.writer.write(struct.pack(">IIHH", 8 + size, 2, 0, 0))
        answers = [await hand.answer(), await hand.answer()]  # long before the rest of it
        assert {found[:2] for found in answers} == {(1, 200), (2, 413)}
        hand.writer.write(b"x" * size)
        hand.request(3, HEADERS)
        assert (await hand.answer())[:2] == (3, 200)
    assert len(mailbox.messages) == 2


async def test_what_would_be_too_much_for_the_memory_is_put_off_and_what_was_held_is_let_go(
    settings: Any,
) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"WAITING_BYTES": 100_000}}
    gate = asyncio.Event()

    async def held(message: Message) -> Answer:
        await gate.wait()
        return Answer(200, {})

    async with listening(taking(held)) as place, await Hand.connect(place) as hand:
        hand.request(1, HEADERS, b"x" * 60_000)
        async with await Hand.connect(place) as other:
            other.writer.write(struct.pack(">IIHH", 50_000, 1, 0, 0) + b"x" * 30_000)
            await asyncio.sleep(0.1)
            hand.request(2, HEADERS, b"x" * 60_000)
            assert (await hand.answer())[:3] == (2, 503, {"retry-after": "1"})
        gate.set()
        assert (await hand.answer())[:2] == (1, 200)
        hand.request(3, HEADERS, b"x" * 90_000)
        assert (await hand.answer())[:2] == (3, 200)


@pytest.mark.parametrize(
    "sent", [b"", b"AEV", b"AEVENTS\x01\0", b"AEVENTS\x01" + framed(1, 0, b"{}", b"xx")[:-1]]
)
async def test_a_frame_that_does_not_come_to_its_end_in_time_ends_its_connection(
    sent: bytes, settings: Any
) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"ATTEMPT_S": 0.3}}
    mailbox = Mailbox()
    async with (
        listening(taking(mailbox)) as place,
        await Hand.connect(place, sent) as hand,
        await Hand.connect(place) as idle,
    ):
        assert (await hand.answer())[:2] == (0, 408)
        assert await hand.hears_the_end()
        idle.request(1, HEADERS)  # a pause between two frames is none within one
        assert (await idle.answer())[:2] == (1, 200)


async def test_random_bytes_harm_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    random = Random(7)
    mailbox = Mailbox()
    async with listening(taking(mailbox)) as place, await Hand.connect(place) as well:
        for n in range(300):
            preface = b"AEVENTS\x01" * (n % 3 > 0)
            requests = [framed(n, 0, json.dumps(HEADERS).encode(), b"{}") for n in range(1, 9)]
            sent = bytearray(b"".join(requests) if n % 2 else random.randbytes(random.randrange(200)))
            for _ in range(n % 5):
                if sent:
                    sent[random.randrange(len(sent))] = random.randrange(256)
            async with await Hand.connect(place, preface) as hand:
                with contextlib.suppress(OSError):
                    hand.writer.write(bytes(sent[: random.randrange(len(sent) + 1)]))
                    await hand.writer.drain()
                    if n % 4 == 0:
                        hand.writer.write_eof()
                        await hand.reader.read()
        well.request(1, HEADERS)
        assert (await well.answer())[:2] == (1, 200)
    assert not caplog.records


# What is much, slow or many


async def test_many_are_under_way_over_one_connection_and_each_gets_its_own_answer() -> None:
    peers, most = set(), 0
    under_way = 0

    async def shuffled(message: Message) -> Answer:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        number = wire.decode(message).payload["n"]
        await asyncio.sleep((number * 7 % 13) / 1000)
        under_way -= 1
        return Answer(200, {"status": f"took {number}"})

    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return await asyncio.gather(*(shuffled(each.message) for each in brought))

    async with listening(take) as destination, sending() as transport:
        sends = [transport.send(destination, an_event("many", b'{"n":%d}' % n)) for n in range(3000)]
        receipts = await asyncio.gather(*sends)
        peers = {connection for line in transport._lines.values() for connection in line._open}

    assert [receipt.verdict for receipt in receipts] == [f"took {n}" for n in range(3000)]
    assert len(peers) == 1
    assert 16 < most <= 16 * 16


async def test_a_slow_take_stops_the_reading(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"IN_FLIGHT": 2}}
    gate, taken = asyncio.Event(), 0

    async def held(brought: Sequence[Brought]) -> Sequence[Answer]:
        nonlocal taken
        taken += len(brought)
        await gate.wait()
        return [Answer(200, {})] * len(brought)

    count, size = 4000, 5000
    async with listening(held) as place, await Hand.connect(place) as hand:
        for n in range(count):
            hand.request(n + 1, HEADERS, b"x" * size)
        left = -1
        while left != (left := hand.writer.transport.get_write_buffer_size()) or not taken:  # noqa: ASYNC110
            await asyncio.sleep(0.3)
        assert taken == 32
        assert left > count * size // 3, "what is not taken is not read"
        gate.set()
        assert {(await hand.answer())[:2] for _ in range(count)} == {(n + 1, 200) for n in range(count)}


async def asks_for_ever(hand: Hand) -> None:
    for n in itertools.count(1):
        hand.request(n, HEADERS, b"x" * 100)
        await hand.writer.drain()
        if n % 100 == 0:
            await asyncio.sleep(0.01)


async def test_who_does_not_read_its_answers_is_let_go(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"ATTEMPT_S": 0.5}}
    answered = 0

    async def talkative(message: Message) -> Answer:
        nonlocal answered
        answered += 1
        return Answer(200, {"x": "y" * 50_000})

    async with listening(taking(talkative)) as place, await Hand.connect(place) as hand:
        hand.writer.transport.pause_reading()
        with pytest.raises(ConnectionError):
            await asks_for_ever(hand)
        assert answered < 2000


async def test_one_connection_too_many_takes_the_place_of_the_most_idle_or_is_turned_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = asyncio.Event()

    async def held(message: Message) -> Answer:
        await gate.wait()
        return Answer(200, {})

    async with listening(taking(held), CONNECTIONS=3) as place, contextlib.AsyncExitStack() as stack:
        hands = [await stack.enter_async_context(await Hand.connect(place)) for _ in range(3)]
        for hand in hands[1:]:
            hand.request(1, HEADERS)
        await asyncio.sleep(0.1)
        hands.append(await stack.enter_async_context(await Hand.connect(place)))
        assert await hands[0].hears_the_end()
        hands[3].request(1, HEADERS)
        await asyncio.sleep(0.1)
        async with sending() as transport:
            assert isinstance(await outcome(transport.send(place, an_event())), Unavailable)
        gate.set()
        assert [(await hand.answer())[:2] for hand in hands[1:]] == [(1, 200)] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_take_that_fails_is_answered_503_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(brought: Sequence[Brought]) -> Sequence[Answer]:
        if brought[0].message.headers["webhook-id"] == "a":
            raise ValueError("a bug")
        return []

    async with listening(broken) as place, await Hand.connect(place) as hand:
        for n, id in enumerate("ab"):
            hand.request(n + 1, {**HEADERS, "webhook-id": id})
            assert (await hand.answer())[:2] == (n + 1, 503)
    assert len(caplog.records) == 2


async def test_an_answer_that_nobody_would_read_whole_is_none() -> None:
    answer = Answer(200, {"events": [{"id": "x" * 100_000, "status": 410}]})
    async with listening(taking(Mailbox(answer))) as destination, sending() as transport:
        error = await outcome(transport.send_batch(destination, some_events(2)))
        assert isinstance(error, Unavailable)
        assert not error.slowly


# The end of a listener, and of a connection


async def test_when_a_listener_ends_what_is_being_taken_is_answered_and_clients_go_elsewhere() -> None:
    gate, has_come = asyncio.Event(), asyncio.Event()

    async def held(message: Message) -> Answer:
        has_come.set()
        await gate.wait()
        return Answer(200, {"status": "handled"})

    place = Destination("place", f"tcp://127.0.0.1:{free_port()}")
    async with sending() as transport, sending() as server:
        ending = asyncio.create_task(server.listen(place, WANTED, taking(held)))
        await answers(place, ending)
        first = asyncio.create_task(transport.send(place, an_event()))
        await has_come.wait()
        ending.cancel()
        await asyncio.sleep(0.05)
        error = await outcome(transport.send(place, an_event()))
        assert isinstance(error, Unavailable)
        assert "refused" in str(error)
        # Another process has the address by now
        async with listening(taking(Mailbox(Answer(200, {"status": "elsewhere"}))), place.url):
            assert await transport.send(place, an_event()) == Receipt("elsewhere")
        assert not ending.done()
        gate.set()
        assert await first == Receipt("handled")
        with pytest.raises(asyncio.CancelledError):
            await ending


async def test_a_listener_does_not_wait_for_ever_for_who_does_not_leave() -> None:
    async def never(message: Message) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    place = Destination("place", f"tcp://127.0.0.1:{free_port()}")
    async with sending() as server:
        ending = asyncio.create_task(server.listen(place, WANTED, taking(never)))
        await answers(place, ending)
        async with await Hand.connect(place) as idle, await Hand.connect(place) as busy:
            busy.request(1, HEADERS)
            await asyncio.sleep(0.1)
            ending.cancel()
            began = time.monotonic()
            assert (await idle.answer())[:2] == (0, 503)
            assert (await busy.answer())[:2] == (0, 503)
            assert await idle.hears_the_end()
            assert time.monotonic() - began < 4
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert await busy.hears_the_end()
            assert time.monotonic() - began < 10


async def test_an_address_in_use_is_unavailable_and_one_may_be_shared() -> None:
    async with listening(taking(Mailbox()), REUSE_PORT=True) as place, sending() as other:
        error = await outcome(other.listen(place, WANTED, taking(Mailbox())))
        assert isinstance(error, Unavailable)
        assert "in use" in str(error)
        async with listening(taking(Mailbox()), place.url, REUSE_PORT=True):
            pass


def test_a_connection_that_the_server_had_closed_while_idle_costs_no_attempt() -> None:
    """As `tests.peers.answers_and_closes`: it meets the request in the moment of its use."""
    requests = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        for n in range(2):
            head = await reader.readexactly(12)
            await reader.readexactly(struct.unpack(">I", head[:4])[0] - 8)
            requests.append(n)
            if n == 1:
                break
            writer.write(framed(struct.unpack(">I", head[4:8])[0], 200, b"", b"{}"))
        writer.transport.abort()

    async def scenario(transport: Transport) -> None:
        async with peer_at(peer) as url:
            for _ in range(4):
                assert await transport.send(Destination("orders", url), an_event()) == Receipt("")

    assert rehearsal.rehearse(TcpTransport, scenario) == []
    assert requests == [0, 1, 0, 1, 0, 1, 0]


async def test_a_server_that_ends_every_connection_is_asked_once() -> None:
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readexactly(20)
        writer.transport.abort()

    async with peer_at(peer) as url, sending() as transport:
        error = await outcome(transport.send(Destination("orders", url), an_event()))
        assert isinstance(error, Unavailable)
        assert "lost" in str(error)
        assert connections == 1


async def test_a_connection_that_has_fallen_silent_is_not_used_again(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"ATTEMPT_S": 0.2}}
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await reader.readexactly(20)
            writer.write(framed(1, 200, b"", b"{}"))
        await reader.read()
        writer.close()

    async with peer_at(peer) as url, sending() as transport:
        error = await outcome(transport.send(Destination("orders", url), an_event()))
        assert isinstance(error, Unavailable)
        assert error.timed_out
        assert await transport.send(Destination("orders", url), an_event()) == Receipt("")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"220 mail.example ESMTP\r\n", "something else"),
        (struct.pack(">IIHH", 100_000, 1, 200, 0), "something else"),
    ],
)
async def test_who_speaks_something_else_heals_slowly(said: bytes, text: str) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(20)
        writer.write(said)
        await reader.read()
        writer.close()

    async with peer_at(peer) as url, sending() as transport:
        error = await outcome(transport.send(Destination("orders", url), an_event()))
        assert isinstance(error, Unavailable)
        assert error.slowly
        assert text in str(error)


async def test_answers_that_nobody_waits_for_are_ignored() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(20)
        for id, headers in ((7, b""), (2**32 - 1, b"["), (1, b'{"retry-after":7,"accept-post":[]}')):
            writer.write(framed(id, 429, headers, b"{"))
        await reader.read()
        writer.close()

    async with peer_at(peer) as url, sending() as transport:
        error = await outcome(transport.send(Destination("orders", url), an_event()))
        assert isinstance(error, Unavailable)
        assert error.retry_after_s is None


async def test_what_cannot_be_connected_is_unavailable_within_its_time(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "LIMITS": {"CONNECT_S": 0.3}}
    with black_hole() as swallows, refusing() as refuses:
        ports = [url.rpartition(":")[2].partition("/")[0] for url in (swallows, refuses)]
        async with sending() as transport:
            for host in (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", f"{'x' * 60}.invalid:7000"):
                sends = [transport.send(Destination("orders", f"tcp://{host}"), an_event()) for _ in range(3)]
                for error in await asyncio.gather(*sends, return_exceptions=True):
                    assert isinstance(error, Unavailable), host
                    assert not error.slowly


async def test_a_host_name_is_looked_up_and_all_its_addresses_are_tried() -> None:
    async with listening(taking(Mailbox())) as place, sending() as transport:
        await transport.send(Destination("orders", place.url.replace("127.0.0.1", "localhost")), an_event())


async def test_a_header_that_cannot_be_written_is_refused() -> None:
    async with listening(taking(Mailbox())) as place, sending() as transport:
        for value in ("\ud800", "x" * 40_000):
            message = an_event()
            broken = Message({**message.headers, "ce-type": value}, message.body)
            assert isinstance(await outcome(transport.send(place, broken)), Refused)


def test_what_others_on_the_way_can_read() -> None:
    for url, is_open in {
        "tcp://payments:7000": True,
        "tcp://10.0.0.1:7000": True,
        "tcp://localhost:7000": False,
        "tcp://127.0.0.1:7000": False,
        "tcp://[::1]:7000": False,
        "tcps://payments:7000": False,
    }.items():
        assert TcpTransport.is_open_to_others(url) is is_open, url


# A process that is killed

SERVER = """
import asyncio, sys
from django.conf import settings
settings.configure(AEVENTS={})
from aevents.answer import Answer
from aevents.transports.base import Destination, Wanted
from aevents.transports.tcp import TcpTransport

async def take(brought):
    if any(b"slow" in each.message.body for each in brought):
        await asyncio.sleep(60)
    return [Answer(200, {"status": "handled"})] * len(brought)

asyncio.run(TcpTransport().listen(Destination("place", sys.argv[1]), Wanted("x"), take))
"""


@contextlib.contextmanager
def server(url: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, url], cwd=Path(__file__).parent.parent)
    try:
        port = int(url.rpartition(":")[2])
        eventually(lambda: is_listening(port))
        yield process
    finally:
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1.0).close()
        return True
    return False


async def test_a_server_that_is_killed_fails_what_is_under_way_and_is_found_again() -> None:
    destination = Destination("orders", f"tcp://127.0.0.1:{free_port()}")
    async with sending() as transport:
        with server(destination.url) as process:
            assert await transport.send(destination, an_event()) == Receipt("handled")
            slow = [asyncio.create_task(transport.send(destination, an_event("slow"))) for _ in range(5)]
            await asyncio.sleep(0.1)
            quick = [transport.send(destination, an_event()) for _ in range(50)]
            assert await asyncio.gather(*quick) == [Receipt("handled")] * 50
            process.kill()
            for task in slow:
                error = await outcome(task)
                assert isinstance(error, Unavailable)
                assert not error.slowly
                assert not error.timed_out
        assert isinstance(await outcome(transport.send(destination, an_event())), Unavailable)
        with server(destination.url):
            assert await transport.send(destination, an_event()) == Receipt("handled")


# TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def save(pem: trustme.Blob, path: Path) -> str:
    pem.write_to_path(path)
    return str(path)


@pytest.fixture
def options(ca: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    own = ca.issue_cert("127.0.0.1")
    return {
        "CERT": [
            save(own.cert_chain_pems[0], tmp_path / "server.crt"),
            save(own.private_key_pem, tmp_path / "key"),
        ]
    }


def tls_place() -> str:
    return f"tcps://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, new_quickest_loop])
def test_over_tls_all_is_as_without(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
    ca: trustme.CA,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    path = save(ca.cert_pem, tmp_path / "ca.pem")

    async def scenario() -> None:
        mailbox = Mailbox()
        async with listening(taking(mailbox), tls_place(), **options) as place, sending() as transport:
            there = Destination("orders", place.url, ca=path)
            sends = [transport.send(there, an_event("e", b'"%b"' % (b"x" * 5000))) for _ in range(300)]
            assert await asyncio.gather(*sends) == [Receipt("")] * 300
            assert len(mailbox.messages) == 300
            (line,) = transport._lines.values()
            assert len(line._open) == 1

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scenario())


async def test_a_ca_that_is_not_the_server_s_sends_nothing_and_heals_slowly(
    options: dict[str, Any], tmp_path: Path
) -> None:
    other = save(trustme.CA().cert_pem, tmp_path / "other.pem")
    mailbox = Mailbox()
    async with listening(taking(mailbox), tls_place(), **options) as place, sending() as transport:
        for path in (other, ""):  # "": the system's
            error = await outcome(transport.send(Destination("orders", place.url, ca=path), an_event()))
            assert isinstance(error, Unavailable)
            assert error.slowly
            assert "certificate verify failed" in str(error)
    assert not mailbox.messages


async def test_the_system_s_certificates_vouch_where_there_is_no_ca(
    ca: trustme.CA, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", save(ca.cert_pem, tmp_path / "system.pem"))
    async with listening(taking(Mailbox()), tls_place(), **options) as place, sending() as transport:
        assert await transport.send(Destination("orders", place.url), an_event()) == Receipt("")


async def test_with_a_ca_the_server_takes_only_clients_that_show_a_certificate(
    ca: trustme.CA, options: dict[str, Any], tmp_path: Path
) -> None:
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    ours = save(ca.issue_cert("us@example").private_key_and_cert_chain_pem, tmp_path / "ours.pem")
    foreign = save(trustme.CA().issue_cert("x@example").private_key_and_cert_chain_pem, tmp_path / "x.pem")
    mailbox = Mailbox()
    async with (
        listening(taking(mailbox), tls_place(), CA=path, **options) as place,
        sending() as transport,
    ):
        for cert in ((), (foreign,)):
            there = Destination("orders", place.url, ca=path, cert=cert)
            assert isinstance(await outcome(transport.send(there, an_event())), Unavailable)
        assert not mailbox.messages
        there = Destination("orders", place.url, ca=path, cert=(ours,))
        assert await transport.send(there, an_event()) == Receipt("")


async def test_plain_and_encrypted_do_not_understand_each_other_and_say_so(
    ca: trustme.CA, options: dict[str, Any], tmp_path: Path
) -> None:
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    async with (
        listening(taking(Mailbox()), tls_place(), **options) as encrypted,
        listening(taking(Mailbox())) as plain,
        sending() as transport,
    ):
        there = Destination("orders", encrypted.url.replace("tcps", "tcp"))
        assert isinstance(await outcome(transport.send(there, an_event())), Unavailable)
        there = Destination("orders", plain.url.replace("tcp", "tcps"), ca=path)
        error = await outcome(transport.send(there, an_event()))
        assert isinstance(error, Unavailable)
        assert error.slowly
        assert await transport.send(Destination("orders", encrypted.url, ca=path), an_event()) == Receipt("")
        assert await transport.send(plain, an_event()) == Receipt("")


async def test_a_server_without_a_certificate_that_can_be_used_does_not_begin(tmp_path: Path) -> None:
    async with sending() as transport:
        error = await outcome(transport.listen(Destination("x", tls_place()), WANTED, taking(Mailbox())))
    assert isinstance(error, Refused)
    assert "'CERT'" in str(error)
    transport = TcpTransport(CERT=str(tmp_path / "nowhere"))
    error = await outcome(transport.listen(Destination("x", tls_place()), WANTED, taking(Mailbox())))
    assert isinstance(error, Unavailable)
    assert "AEVENTS['TRANSPORTS']['tcps']: 'CERT'" in str(error)
    await transport.close()


async def test_a_certificate_of_the_server_is_renewed_while_it_listens(
    ca: trustme.CA, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_EVERY_S", 0.0)
    context = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())

    async def serial_at(place: Destination) -> str:
        port = int(place.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        serial: str = writer.get_extra_info("peercert")["serialNumber"]
        writer.transport.abort()
        return serial

    async with listening(taking(Mailbox()), tls_place(), **options) as place:
        before = await serial_at(place)
        own = ca.issue_cert("127.0.0.1")
        save(own.private_key_pem, tmp_path / "key")
        save(own.cert_chain_pems[0], tmp_path / "server.crt")
        async with asyncio.timeout(15):
            while await serial_at(place) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def test_certificates_are_of_no_use_without_tls() -> None:
    assert "tcps://" in (tls.misplaced_at("tcp://h:7000") or "")
    assert tls.misplaced_at("tcps://h:7000") is None


# From an emit to a handler


async def test_events_go_from_emit_to_their_handlers_signed_and_in_batches(settings: Any) -> None:
    handled: list[int] = []
    sizes: list[int] = []

    async def handle(payload: dict[str, int]) -> None:
        handled.append(payload["n"])

    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        sizes.append(len(brought))
        found = await asyncio.gather(*(receive(each.message, peer="", at_home=True) for each in brought))
        return [Answer(each.status, each.content, {**each.headers, **OFFER}) for each in found]

    subscribe_to("order-placed", handle, name="noted")
    async with listening(take) as place:
        settings.AEVENTS = {
            **settings.AEVENTS,
            "UNSIGNED": "refuse",
            "SECRETS": [signature.new_secret()],
            "SERVICES": {"orders": place.url},
            "SUBSCRIPTIONS": {"order-placed": ["orders"]},
        }
        emissions = await asyncio.gather(*(aemit("order-placed", {"n": n}) for n in range(1000)))
        await asyncio.to_thread(courier.close, 5.0)

    assert all(emission.delivered for emission in emissions)
    assert sorted(handled) == list(range(1000))
    assert sum(sizes) < 200, "most of them went in batches"
