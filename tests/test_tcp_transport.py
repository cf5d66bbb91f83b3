"""The contract on sockets, and what `tcp://` promises beyond it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aevents.answer import Answer
from aevents.transports.base import Brought, Destination, Take, Transport, Wanted
from aevents.transports.contract import TransportContract
from aevents.transports.rehearsal import Receiver
from aevents.transports.tcp import TcpTransport
from tests.brokers import free_port

WANTED = Wanted("orders")


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
