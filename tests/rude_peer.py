"""Bad manners for `tests.peers.Peer`: what a broken, overloaded or hostile server does to its clients.

with Peer(resets(after=b"HTTP/1.1 200")) as peer: ...
with RudePeer(at_the_door=hangs_up) as peer: ...       # before any request is read
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.peers import Behaviour, Exchange, Peer

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

# Behaviours, once a request has been read


def resets(after: bytes = b"") -> Behaviour:
    """Write these bytes and reset the connection."""

    async def behave(exchange: Exchange) -> None:
        await exchange.raw(after)
        _will_reset(exchange.writer.get_extra_info("socket"))
        exchange.writer.transport.abort()

    return behave


def trickles(data: bytes, *, every_s: float = 0.03, at_once: bytes = b"") -> Behaviour:
    """Write `data` one byte at a time, `at_once` before it, and then wait."""

    async def behave(exchange: Exchange) -> None:
        await exchange.raw(at_once)
        for n in range(len(data)):
            await exchange.raw(data[n : n + 1])
            await asyncio.sleep(every_s)
        await asyncio.Event().wait()

    return behave


def answers_and_resets(status: int = 200) -> Behaviour:
    """Answer as if the connection were kept, and reset it at the next request."""

    async def behave(exchange: Exchange) -> None:
        exchange.peer.closing.add(exchange.request.connection)
        _will_reset(exchange.writer.get_extra_info("socket"))
        await exchange.answer(status)

    return behave


class Floods:
    """A behaviour: write `head`, then `piece` until nobody takes it any more, and count."""

    def __init__(self, piece: bytes, *, head: bytes = b"") -> None:
        self._head = head
        self._piece = piece
        self.sent_bytes = 0
        self.floods = 0
        self._has_ended = threading.Event()

    async def __call__(self, exchange: Exchange) -> None:
        self.floods += 1
        # Small buffers on this side, so that what was sent was nearly all taken.
        exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        exchange.writer.transport.set_write_buffer_limits(0)
        try:
            await exchange.raw(self._head)
            while True:
                await exchange.raw(self._piece)
                self.sent_bytes += len(self._piece)
                await asyncio.sleep(0)
        finally:
            self._has_ended.set()

    def wait_for_the_end(self) -> None:
        """Return once a client has hung up on it."""
        assert self._has_ended.wait(15), "the client still reads"


# Before any request is read

AtTheDoor = Callable[[socket.socket], Awaitable[None]]


async def hangs_up(accepted: socket.socket) -> None:
    """Close at once."""
    accepted.close()


async def slams_the_door(accepted: socket.socket) -> None:
    """Reset at once."""
    _will_reset(accepted)
    accepted.close()


async def stares(accepted: socket.socket) -> None:
    """Accept, and neither read nor write."""
    await asyncio.Event().wait()


def greets(data: bytes) -> AtTheDoor:
    """Speak first, as mail servers do; then read, and say no more."""

    async def door(accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(accepted, data)
        while await loop.sock_recv(accepted, 65536):
            pass

    return door


class RudePeer(Peer):
    """A Peer that does `at_the_door` to each connection in place of reading requests."""

    def __init__(self, *script: Behaviour, at_the_door: AtTheDoor | None = None) -> None:
        super().__init__(*script)
        self.at_the_door = at_the_door

    async def _talk(self, accepted: socket.socket, number: int) -> None:
        if self.at_the_door is None:
            await super()._talk(accepted, number)
            return
        accepted.setblocking(False)
        with contextlib.suppress(ConnectionError):
            await self.at_the_door(accepted)


def _will_reset(sock: Any) -> None:
    # A socket that lingers for no time says RST in place of FIN when it is closed.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# Addresses


@contextlib.contextmanager
def nowhere() -> Iterator[str]:
    """A URL whose host no resolver knows. The name is too long for any, so none is even asked."""
    yield f"http://{'.'.join(['x' * 60] * 5)}/events/"


# TLS. A certificate for 127.0.0.1, signed by nobody, valid until the year 2126, and the key to it.

_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUdzRgOzYJJ+h5cSIrspjbsl9L/ygwCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJMTI3LjAu
MC4xMCAXDTI2MTEyMzE5MzIwMloYDzIxMjYxMDMwMTkzMjAyWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcq
hkjOPQIBBggqhkjOPQMBBwNCAAQYEkQmygb4KkUwcSh3r/w66jxqaOUL2/i0h1E/KF7oaQc2MT4SapVVS0WMw9wo
hldx04DKYkyTSoNpR7a4aHq/o2QwYjAdBgNVHQ4EFgQUAPNd5RNuMT3OebqtqkRL7FRscN0wHwYDVR0jBBgwFoAU
APNd5RNuMT3OebqtqkRL7FRscN0wDwYDVR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMC
A0gAMEUCIHmET7ZQcfAvpUXo9RZ8rQ84vUXCnSWW+AbPupd+4czPAiEA7/frRPT2q8bsbVwup/SYpcffWBdf48XI
TbRLbQjUwMQ=
-----END CERTIFICATE-----
"""
_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgS+qhJnw2f9hyZAXeK5pePayMLH9vV0d2Sk++z9rS
N/+hRANCAAQYEkQmygb4KkUwcSh3r/w66jxqaOUL2/i0h1E/KF7oaQc2MT4SapVVS0WMw9wohldx04DKYkyTSoNp
R7a4aHq/
-----END PRIVATE KEY-----
"""


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return the context of a server whose certificate nobody signed; `folder` is for its file."""
    path = folder / "self-signed.pem"
    path.write_text(_KEY + _CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
