"""The sending sides of the peers: each a context that yields a function which sends so many events.

The function returns when all emitters know what they are told; what was handled by then is the receiver's to
say (`peers_receiver.py`). Names of streams and queues are new for each test, and gone after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from benchmarks.clients import PAYLOAD, at_a_time
from benchmarks.peers_receiver import NATS, RABBITMQ, REDIS, celery_app
from benchmarks.rig import serving

Loop = asyncio.AbstractEventLoop
Send = Callable[[int], None]
WIDTH = 64  # emitters
PIPELINED, PIPELINES = 128, 2  # events in a pipeline; pipelines at a time, as more are no quicker
_HERE = Path(__file__).parent.parent


class Receiver:
    """A process of `peers_receiver.py`."""

    def __init__(self, peer: str, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers_receiver", peer, name],
            cwd=_HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expected = self.wait()

    def expect(self, more: int) -> None:
        """Say how many more events are coming."""
        assert self._process.stdin is not None
        self._expected += more
        self._process.stdin.write(f"{self._expected}\n")
        self._process.stdin.flush()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until the handler was called for what was expected; return how often it was in all."""
        assert self._process.stdout is not None
        is_there, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if is_there else ""
        if not line:
            self.end()
            raise RuntimeError("the receiver ended, or did not get all events; its stderr says why")
        return int(line)

    def wait_for_all(self) -> None:
        """Wait until the handler was called for each event that was expected, and for each once."""
        assert self.wait() == self._expected

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def faststream(loop: Loop, name: str) -> Iterator[Send]:
    """Each emitter awaits one `publish` at a time."""
    from faststream.redis import RedisBroker

    broker = RedisBroker(REDIS, logger=None)
    redis = loop.run_until_complete(broker.connect())

    async def publish() -> None:
        await broker.publish(PAYLOAD, stream=name)

    try:
        yield lambda count: loop.run_until_complete(at_a_time(WIDTH, count, publish))
    finally:
        loop.run_until_complete(redis.delete(name))
        loop.run_until_complete(broker.stop())


@contextlib.contextmanager
def faststream_batch(loop: Loop, name: str) -> Iterator[Send]:
    """Pipelines of many events each: an emitter awaits its pipeline, not its event."""
    from faststream.redis import RedisBroker

    broker = RedisBroker(REDIS, logger=None, apply_types=False)
    redis = loop.run_until_complete(broker.connect())

    async def publish_many() -> None:
        async with redis.pipeline(transaction=False) as pipeline:
            for _ in range(PIPELINED):
                await broker.publish(PAYLOAD, stream=name, pipeline=pipeline)
            await pipeline.execute()

    try:
        yield lambda count: loop.run_until_complete(at_a_time(PIPELINES, count // PIPELINED, publish_many))
    finally:
        loop.run_until_complete(redis.delete(name))
        loop.run_until_complete(broker.stop())


@contextlib.contextmanager
def aio_pika(loop: Loop, name: str) -> Iterator[Send]:
    """Each emitter awaits the broker's confirmation of its persistent message."""
    import aio_pika

    connection = loop.run_until_complete(aio_pika.connect_robust(RABBITMQ))
    channel = loop.run_until_complete(_confirming(connection, name))

    async def publish() -> None:
        message = aio_pika.Message(orjson.dumps(PAYLOAD), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=name)

    try:
        yield lambda count: loop.run_until_complete(at_a_time(WIDTH, count, publish))
    finally:
        loop.run_until_complete(channel.queue_delete(name))
        loop.run_until_complete(connection.close())


async def _confirming(connection: Any, name: str) -> Any:
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue(name, durable=True)
    return channel


@contextlib.contextmanager
def nats(loop: Loop, name: str) -> Iterator[Send]:
    """Each emitter awaits the acknowledgement of a stream on disk."""
    import nats

    client = loop.run_until_complete(nats.connect(NATS))
    stream = client.jetstream()
    loop.run_until_complete(stream.add_stream(name=name, subjects=[name]))

    async def publish() -> None:
        await stream.publish(name, orjson.dumps(PAYLOAD))

    try:
        yield lambda count: loop.run_until_complete(at_a_time(WIDTH, count, publish))
    finally:
        loop.run_until_complete(stream.delete_stream(name))
        loop.run_until_complete(client.close())


@contextlib.contextmanager
def celery(loop: Loop, name: str) -> Iterator[Send]:
    """Each emitter is a thread."""
    import redis

    app = celery_app(name)
    try:
        with _threads() as at_once:
            yield lambda count: at_once(count, lambda: app.tasks["handle"].delay(PAYLOAD))
    finally:
        app.close()
        with redis.Redis.from_url(REDIS) as client:
            for key in client.scan_iter(f"{name}:*"):
                client.delete(key)


@contextlib.contextmanager
def requests(loop: Loop, name: str) -> Iterator[Send]:
    """Each emitter is a thread, and each event a session; the answer says that it was handled."""
    import requests

    view = ("gunicorn", "benchmarks.peers_view:wsgi", "-b", "127.0.0.1:{port}", "--log-level", "warning")
    with serving(*view, "-k", "gthread", "--threads", "8") as url, _threads() as at_once:

        def post() -> None:
            with requests.Session() as session:
                answer = session.post(f"{url}/events/", json={"payload": PAYLOAD}, timeout=10)
            answer.raise_for_status()

        yield lambda count: at_once(count, post)


@contextlib.contextmanager
def _threads() -> Iterator[Callable[[int, Callable[[], Any]], None]]:
    """A function that calls another one so many times, by as many threads as there are emitters."""

    def some(count: int, once: Callable[[], Any]) -> None:
        for _ in range(count):
            once()

    def at_once(count: int, once: Callable[[], Any]) -> None:
        for done in [pool.submit(some, count // WIDTH, once) for _ in range(WIDTH)]:
            done.result()

    with ThreadPoolExecutor(WIDTH) as pool:
        yield at_once


SENDERS: dict[str, Callable[[Loop, str], contextlib.AbstractContextManager[Send]]] = {
    "faststream": faststream,
    "faststream_plain": faststream,
    "faststream_batch": faststream_batch,
    "celery": celery,
    "aio_pika": aio_pika,
    "nats": nats,
    "requests": requests,
}
