"""The far end of the wire, scripted: a raw HTTP/1.1 server in a thread that does as it is told.

    with Peer(answers(503), answers(503), answers(200)) as peer:   # the last one stays
        ...AEVENTS = {"SERVICES": {"payments": peer.url}, ...}
        assert [request.payload for request in peer.requests] == [...]

Raw, because the tests want what no proper server does: hang, cut an answer short, close a kept
connection. Nothing here sleeps to synchronise: `wait_for` returns when it is so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from aevents import calls
from aevents.courier import courier
from aevents.threads import HandlerThreads

HAS_UVLOOP = find_spec("uvloop") is not None  # in the environments with the extra of that name
DEADLINE_S = 15.0  # generous: it ends a test that is broken, it times none that works


def eventually(is_so: Callable[[], Any], *, within_s: float = DEADLINE_S, what: str = "") -> Any:
    """Return what `is_so` returns as soon as that is true; fail after `within_s`."""
    ends = time.monotonic() + within_s
    while True:
        value = is_so()
        if value:
            return value
        if time.monotonic() >= ends:
            raise AssertionError(f"not within {within_s} s: {what or is_so}")
        time.sleep(0.005)


@dataclass(frozen=True)
class Request:
    """One request as it came: header names in lower case, `connection` counts from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float = field(default_factory=time.monotonic)

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    @property
    def event_type(self) -> Any:
        return self.content["event_type"]

    @property
    def payload(self) -> Any:
        return self.content["payload"]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Exchange:
    """One request and the way back."""

    peer: Peer
    request: Request
    writer: asyncio.StreamWriter

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        lines = [
            f"HTTP/1.1 {status} Whatever",
            f"content-length: {len(body)}",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Behaviour = Callable[[Exchange], Awaitable[None]]


def answers(status: int = 200, content: Any = None, /, **headers: str) -> Behaviour:
    """Answer at once; `content` becomes the JSON body."""
    body = b"" if content is None else json.dumps(content).encode()

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(status, body, content_type="application/json", **headers)

    return behave


def answers_raw(data: bytes) -> Behaviour:
    """Write exactly these bytes and close the connection."""

    async def behave(exchange: Exchange) -> None:
        await exchange.raw(data)
        exchange.writer.close()

    return behave


def answers_when_released(status: int = 200, content: Any = None, /) -> Behaviour:
    """Hold the request until `peer.release()`, then answer."""
    behave_then = answers(status, content)

    async def behave(exchange: Exchange) -> None:
        await exchange.peer.released.wait()
        await behave_then(exchange)

    return behave


def answers_after(seconds: float, status: int = 200) -> Behaviour:
    """Think for some time, then answer."""
    behave_then = answers(status)

    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await behave_then(exchange)

    return behave


async def hangs(exchange: Exchange) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def closes(exchange: Exchange) -> None:
    """Close the connection in place of an answer."""
    exchange.writer.transport.abort()


def answers_and_closes(status: int = 200) -> Behaviour:
    """Answer as if the connection were kept, and close it at the next request without a word.

    What a client meets that reuses a connection in the moment the server lets go of it.
    """

    async def behave(exchange: Exchange) -> None:
        exchange.peer.closing.add(exchange.request.connection)
        await answers(status)(exchange)

    return behave


class Peer:
    """A server on a free loopback port. Use it as a context manager; any thread may ask it."""

    def __init__(self, *script: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self._script = list(script) or [answers(200)]
        self._tls = tls
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._sockets: list[socket.socket] = []
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.most_at_once = 0
        self.closing: set[int] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/events/"

    @property
    def requests(self) -> list[Request]:
        """Every request whose last byte has arrived, in that order."""
        with self._changed:
            return list(self._requests)

    @property
    def payloads(self) -> list[Any]:
        return [request.payload for request in self.requests]

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return len(self._sockets)

    def wait_for(self, count: int = 1, *, within_s: float = DEADLINE_S) -> list[Request]:
        """Return the requests once there are `count` of them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, within_s):
                raise AssertionError(f"{len(self._requests)} of {count} requests in {within_s} s")
            return list(self._requests)

    def behave(self, *script: Behaviour) -> None:
        """From the next request on, this."""
        with self._changed:
            self._script = list(script)

    def release(self) -> None:
        """Let go of all that is held by `answers_when_released`, now and later."""
        self._loop.call_soon_threadsafe(self.released.set)

    def __enter__(self) -> Peer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="peer")
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.released = asyncio.Event()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._ready.set()
        await self._stop.wait()
        self._loop.remove_reader(self._listener)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports end in the turn after
        for each in (*self._sockets, self._listener):
            each.close()

    def _accept(self) -> None:
        # By hand: asyncio's own server can lose a connection that comes while it closes.
        with contextlib.suppress(BlockingIOError):
            accepted, _ = self._listener.accept()
            self._sockets.append(accepted)
            task = self._loop.create_task(self._talk(accepted, len(self._sockets)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _talk(self, accepted: socket.socket, number: int) -> None:
        accepted.setblocking(False)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, accepted, ssl=self._tls)
        except OSError:  # a handshake that failed is the client's affair
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while not writer.is_closing():
                    request = await _read(reader, number)
                    if number in self.closing:
                        return
                    await self._act(Exchange(self, request, writer))
        finally:
            if not writer.is_closing():  # closing already: what was written still goes out
                transport.abort()

    async def _act(self, exchange: Exchange) -> None:
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            with self._changed:
                behave = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                self._requests.append(exchange.request)
                self._changed.notify_all()
            await behave(exchange)
        finally:
            self._under_way -= 1


async def _read(reader: asyncio.StreamReader, connection: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body, connection)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A URL whose host is up and whose port refuses: bound, so nobody else gets it, never listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/events/"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A URL that swallows packets: it listens, its backlog is full, and nobody ever accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        with socket.socket() as probe:
            probe.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                probe.connect(address)
                raise AssertionError("the backlog is not full")
        yield f"http://127.0.0.1:{address[1]}/events/"


class Fleet:
    """Who is told of what: writes `settings.AEVENTS`, and gives each test threads of its own.

    `fleet(payments=peer, orders="http://...")` sends every event to these services. What differs
    from the defaults is given in capitals: `LIMITS={...}`, `SUBSCRIPTIONS={...}`, `STRICT=True`.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def __call__(self, **given: Any) -> None:
        services = {name: given[name] for name in given if not name.isupper()}
        urls = {name: getattr(service, "url", service) for name, service in services.items()}
        self._settings.AEVENTS = {
            "SERVICE": "tests",
            "UNSIGNED": "accept",
            "ENABLED": True,
            "STORE": None,
            # A name that leads nowhere is no loopback address.
            "SERVICES": {name: {"URL": url, "PLAIN": True} for name, url in urls.items()},
            "SUBSCRIPTIONS": {"*": list(urls)},
            **{key: given[key] for key in given if key.isupper()},
        }

    def __enter__(self) -> Fleet:
        self._threads, calls._threads = calls._threads, HandlerThreads()
        return self

    def __exit__(self, *_: object) -> None:
        courier.close(0.0)
        calls._threads.close()
        calls._threads = self._threads
