"""What the tests of Kafka look at a broker with: other clients, a replica to kill, a way with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.record.util import calc_crc32c

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Unavailable
from aevents.event import Event, Message
from aevents.transports.base import Brought, Destination, Take, Transport
from aevents.transports.rehearsal import DEADLINE_S, Mailbox, outcome

_REPLICA = """
import asyncio, os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()
from aevents.transports.base import Destination, Wanted
from aevents.transports.kafka import KafkaTransport

async def hang(brought):
    print("has come", flush=True)
    await asyncio.sleep(60)

transport = KafkaTransport(PREFIX={prefix!r}, SESSION_S=6.0)
asyncio.run(transport.listen(Destination("bus", {url!r}), Wanted("orders", ("order-placed",)), hang))
"""


def address_in(url: str) -> str:
    """Return what another client calls the broker."""
    return url.rpartition("/")[2].rpartition("@")[2]


@asynccontextmanager
async def producer_at(url: str) -> AsyncIterator[AIOKafkaProducer]:
    """A client of its own, which knows nothing of ours."""
    async with AIOKafkaProducer(bootstrap_servers=address_in(url)) as found:
        yield found


@asynccontextmanager
async def admin_at(url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """One that makes and deletes topics."""
    found = AIOKafkaAdminClient(bootstrap_servers=address_in(url))
    await found.start()
    try:
        yield found
    finally:
        await found.close()


async def partitions_of(topic: str, url: str) -> int:
    """Return how many partitions the broker has made for it."""
    async with admin_at(url) as admin:
        (found,) = await admin.describe_topics([topic])
    return len(found["partitions"])


async def start_replica(prefix: str, url: str) -> asyncio.subprocess.Process:
    """Start a process that takes for the group `orders` and never answers; it says when something came."""
    script = _REPLICA.format(prefix=prefix, url=url)
    return await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)


async def expel(group: str, url: str) -> None:
    """Take all members of a group for dead, as a broker does after their session; noida-db never does."""
    async with admin_at(url) as admin:
        (described,) = await admin.describe_consumer_groups([group])
        ((_, _, _, _, _, members, *_),) = described.groups
        coordinator = await admin.find_coordinator(group)
        for member, *_ in members:
            await admin._send_request(LeaveGroupRequest(group, member), coordinator)


@asynccontextmanager
async def encrypted(url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """A way to the broker with TLS. A broker says where it is; here it says where this way begins."""
    host, _, port = address_in(url).partition(":")
    real = host.encode() + int(port).to_bytes(4)

    async def carry(source: asyncio.StreamReader, to: asyncio.StreamWriter, said: bytes) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                to.write(data.replace(real, said))
                await to.drain()
        to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begins = host.encode() + writer.get_extra_info("sockname")[1].to_bytes(4)
        their_reader, their_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, their_writer, real), carry(their_reader, writer, begins))
        for each in (writer, their_writer):
            with contextlib.suppress(OSError):
                await each.wait_closed()

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    async with server:
        yield f"kafkas://{host}:{server.sockets[0].getsockname()[1]}"


def taking(mailbox: Mailbox) -> Take:
    """Take all that comes into a mailbox."""

    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return [await mailbox(each.message) for each in brought]

    return take


async def never(brought: Sequence[Brought]) -> Sequence[Answer]:
    """Take nothing."""
    raise AssertionError("nothing can have come")


def number_of(message: Message) -> int:
    """Return the number that `some_events` has given it."""
    number: int = wire.decode(message).payload["n"]
    return number


async def unreadable(producer: AIOKafkaProducer, topic: str, partition: int) -> None:
    """Write a record with a header whose name is not UTF-8, which no client in Python can read."""
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=b"{}", headers=[("name", b"")])
    written = bytearray(batch._build())
    at = written.index(b"name")
    written[at : at + 4] = b"\xff\xfe\xfd\xfc"
    struct.pack_into(
        ">I", written, 17, calc_crc32c(bytes(written[21:]))
    )  # where Kafka has a batch's checksum
    batch._buffer = bytes(written)
    await (await producer.send_batch(batch, topic, partition=partition))


async def until(is_so: Callable[[], Any]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110 - what is waited for is of many kinds
            await asyncio.sleep(0.02)


async def send_at_last(transport: Transport, place: Destination, events: Sequence[Event]) -> int:
    """Send these as the lane does, until all are there; return how often a try failed."""
    failures, left = 0, list(events)
    while left:
        found = await outcome(transport.send_batch(place, left))
        if isinstance(found, Exception):
            assert isinstance(found, Unavailable)
        else:
            left = [each for each, said in zip(left, found, strict=True) if said != Receipt()]
        if left:
            failures += 1
            await asyncio.sleep(0.1)
    return failures
