"""A client that is never the bottleneck: POSTs made beforehand, written and counted, little else.

Each connection writes the next one as soon as the answer to the last one is there. Of an answer no more
is read than its status and where it ends: by its `Content-Length`, or by the last chunk where there is
none, as in what uvicorn makes of Django's plain answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def request(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the bytes of a POST."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + _END + body


class Crowd:
    """So many connections to one server, kept from round to round."""

    def __init__(self, connections: list[_Connection]) -> None:
        self._connections = connections

    @classmethod
    async def connect(cls, url: str, width: int) -> Crowd:
        """Open `width` connections."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        opened = [await loop.create_connection(_Connection, parts.hostname, parts.port) for _ in range(width)]
        return cls([connection for _, connection in opened])

    async def post(self, requests: Iterator[bytes]) -> float:
        """Send them all; return how many seconds it took until the last answer was there."""
        began = time.perf_counter()
        await asyncio.gather(*(connection.work(requests) for connection in self._connections))
        return time.perf_counter() - began

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.transport.close()


class _Connection(asyncio.Protocol):
    """One request under way at a time."""

    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._buffer = b""
        self._requests: Iterator[bytes] = iter(())
        self._done: asyncio.Future[None] | None = None

    def work(self, requests: Iterator[bytes]) -> asyncio.Future[None]:
        """Take one request after the other from what all connections share, until there is none."""
        self._requests = requests
        self._done = asyncio.get_running_loop().create_future()
        self._next()
        return self._done

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(_END)
        if end < 0:
            return
        head = data[:end].lower()
        at = head.find(_LENGTH)
        if at < 0:
            is_whole = data.endswith(_LAST_CHUNK)
        else:
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
            is_whole = len(data) >= end + len(_END) + length
        if not is_whole:
            return
        self._buffer = b""
        if head.startswith(b"http/1.1 200"):
            self._next()
        else:
            self._fail(f"answered {data[:300]!r}")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection was lost: {error}")

    def _next(self) -> None:
        following = next(self._requests, None)
        if following is not None:
            self.transport.write(following)
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(why))
