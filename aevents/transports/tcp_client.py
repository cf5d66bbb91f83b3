"""The sending end of `tcp`: requests in, answers out, all of one destination over one connection.

What is asked in one turn of the loop leaves in one write. The connection is made when it is needed, and made
anew after it was lost or has said that it takes no more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from typing import Any, NamedTuple

from aevents.answer import ANSWER_BYTES
from aevents.settings import conf
from aevents.transports.frames import PREFACE, Frame, Garbage, Reader, hints_of, keep_alive, pack
from aevents.transports.names import Names

_AT_ONCE_S = 1.0  # a kept connection that is lost later than that had not been idle
_LASTS_S = 300.0  # then a new one: names change, and replicas come that want their share
_LAST_ID = 2**32 - 1
_CLOSING_S = 1.0


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    retry_after: str | None
    accept_post: str | None


class Lost(Exception):
    """The connection has ended before the answer.

    `was_idle`: it may have ended before the request. `is_misplaced`: something else is at this address.
    `reply`: what was said of all that have none.
    """

    def __init__(
        self, text: str, *, was_idle: bool = False, is_misplaced: bool = False, reply: Reply | None = None
    ) -> None:
        super().__init__(text)
        self.was_idle = was_idle
        self.is_misplaced = is_misplaced
        self.reply = reply


class Address(NamedTuple):
    """Where a destination is; its connection is encrypted where `is_tls`."""

    host: str
    port: int
    is_tls: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Connection(asyncio.Protocol):
    """One connection: any number of requests under way, answered in any order."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._transport: Any = None
        self._reader = Reader()
        self._requests: dict[int, tuple[asyncio.Future[Reply], float, float]] = {}
        self._outgoing: dict[int, bytes] = {}
        self._last_id = 0
        self._is_full = False
        self._is_retired = False
        self._watch: asyncio.TimerHandle | None = None
        self._farewell: Reply | None = None
        self._garbage = ""
        self._began_at = self._woke_at = time.monotonic()
        self._answered_at = 0.0
        self.has_ended: asyncio.Future[None] = self._loop.create_future()

    def is_good_for(self, context: ssl.SSLContext | None) -> bool:
        """Tell whether requests may still be sent, as who `context` says."""
        if self._is_retired or self._transport.is_closing():
            return False
        if context is not self._context or time.monotonic() - self._began_at > _LASTS_S:
            self._retire()
            return False
        return True

    async def ask(self, headers: bytes, body: bytes, ends_at: float) -> Reply:
        """Return the answer; raises `Lost`, and `TimeoutError` where there is none at `ends_at`."""
        if self._transport.is_closing():  # since it was made
            raise self._loss(None)
        id = self._free_id()
        frame = pack(id, 0, headers, body)
        now = time.monotonic()
        if not self._requests:
            self._woke_at = now
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._requests[id] = answer, now, ends_at
        if not (self._outgoing or self._is_full):
            self._loop.call_soon(self._flush)
        self._outgoing[id] = frame
        if self._watch is None:
            self._watch = self._loop.call_later(ends_at - now, self._look)
        try:
            return await answer
        finally:
            self._requests.pop(id, None)
            self._outgoing.pop(id, None)
            if self._is_retired and not self._requests:
                self._transport.abort()

    async def close(self) -> None:
        """End it, with whatever is under way."""
        self._transport.abort()
        await asyncio.wait([self.has_ended], timeout=_CLOSING_S)

    # What comes

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        keep_alive(transport)
        transport.write(PREFACE)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data, ANSWER_BYTES)
        except Garbage:
            frames = None
        if frames is None or any(frame.body is None for frame in frames):
            speaks = "HTTP" if data.startswith(b"HTTP/") else "something else"
            self._garbage = f"it does not speak aevents over TCP but {speaks}"
            self._transport.abort()
            return
        if frames:
            self._answered_at = time.monotonic()
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        reply = Reply(frame.status, frame.body or b"", *hints_of(frame.headers))
        if frame.id == 0:
            self._farewell = reply
            self._retire()
            return
        answer, *_ = self._requests.pop(frame.id, (None,))
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_retired = True
        if self._watch is not None:
            self._watch.cancel()
        for answer, *_ in self._requests.values():
            if not answer.done():
                answer.set_exception(self._loss(error))
        self._requests.clear()
        self._outgoing.clear()
        if not self.has_ended.done():
            self.has_ended.set_result(None)

    def _loss(self, error: Exception | None) -> Lost:
        has_served = self._answered_at > 0.0
        was_idle = has_served and (
            self._farewell is not None
            or (self._answered_at < self._woke_at and time.monotonic() - self._woke_at < _AT_ONCE_S)
        )
        lost = Lost(
            self._garbage or "the connection was lost before the answer",
            was_idle=was_idle and not self._garbage,
            is_misplaced=bool(self._garbage),
            reply=self._farewell,
        )
        lost.__cause__ = error
        return lost

    # What goes

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._flush()

    def _flush(self) -> None:
        if self._outgoing and not self._is_full:
            frames = b"".join(self._outgoing.values())
            self._outgoing.clear()
            self._transport.write(frames)

    def _free_id(self) -> int:
        while True:
            self._last_id = self._last_id % _LAST_ID + 1
            if self._last_id not in self._requests:
                return self._last_id

    def _look(self) -> None:
        """Give up what has waited for too long. A connection that said nothing meanwhile is used no more."""
        self._watch = None
        now = time.monotonic()
        next_at = 0.0
        for answer, asked_at, ends_at in self._requests.values():
            if now < ends_at:
                next_at = min(next_at or ends_at, ends_at)
            elif not answer.done():
                answer.set_exception(TimeoutError("no answer in time"))
                if self._answered_at < asked_at:
                    self._is_retired = True
        if next_at:
            self._watch = self._loop.call_later(next_at - now, self._look)

    def _retire(self) -> None:
        """Use it no more; it ends with the last answer."""
        self._is_retired = True
        if not self._requests:
            self._transport.abort()


class Line:
    """The way to one destination: its connection of this moment. Used on one event loop."""

    def __init__(self, address: Address, names: Names) -> None:
        self.address = address
        self._names = names
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection | Exception] | None = None
        self._open: set[Connection] = set()

    def kept(self, context: ssl.SSLContext | None) -> Connection | None:
        """Return the connection that was made earlier, unless it is of no more use."""
        connection = self._connection
        return connection if connection is not None and connection.is_good_for(context) else None

    async def connect(self, context: ssl.SSLContext | None, ends_at: float) -> Connection:
        """Return a new connection, the same for all who wait for one. Raises whatever stands in the way."""
        task = self._connecting
        if task is None:
            task = self._connecting = asyncio.ensure_future(self._connected(context))
        await asyncio.wait([task], timeout=max(0.0, ends_at - time.monotonic()))
        if not task.done():
            raise TimeoutError("no connection in time")
        found = task.result()
        if isinstance(found, Exception):
            raise found
        return found

    async def close(self) -> None:
        """End all connections."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for connection in list(self._open):
            await connection.close()

    async def _connected(self, context: ssl.SSLContext | None) -> Connection | Exception:
        try:
            connection = self._connection = await self._made(context)
        except Exception as error:
            return error
        else:
            self._open.add(connection)
            connection.has_ended.add_done_callback(lambda _: self._open.discard(connection))
            return connection
        finally:
            self._connecting = None

    async def _made(self, context: ssl.SSLContext | None) -> Connection:
        limit_s = conf().LIMITS.CONNECT_S
        hosts = await hosts_of(self.address, self._names)
        for host in hosts[:-1]:
            try:  # one that swallows packets is not to take the others' time
                return await self._made_to(host, context, limit_s / len(hosts))
            except OSError:
                continue
        return await self._made_to(hosts[-1], context, limit_s)

    async def _made_to(self, host: str, context: ssl.SSLContext | None, limit_s: float) -> Connection:
        name = self.address.host if context is not None else None
        async with asyncio.timeout(limit_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(context), host, self.address.port, ssl=context, server_hostname=name
            )
        return connection


async def hosts_of(address: Address, names: Names) -> list[str]:
    """Return the numbers of a host, in the order that the system prefers."""
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        found = await names.resolve(address.host, address.port, socket.AF_UNSPEC)
        return list(dict.fromkeys(each["host"] for each in found))
    return [address.host]
