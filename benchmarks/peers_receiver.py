"""The receiving side of a peer in a process of its own: `python -m benchmarks.peers_receiver celery name`.

In: lines of stdin, each the number of events that the handler is to have been called for by then. Out: a line
with the number that it was called for, as soon as it is that many; the first line says that it listens.
Where stdin ends the process does too, so that none outlives its test.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from aevents.loops import new_quickest_loop

REDIS = "redis://127.0.0.1:6379/0"
RABBITMQ = "amqp://guest:guest@127.0.0.1:5672/"
NATS = "nats://127.0.0.1:4222"
PREFETCH = 128


class Tally:
    """How many events were handled; tells when they are as many as were expected."""

    def __init__(self) -> None:
        self._answers = sys.stdout
        self._count = 0
        self._expected = 0
        self._lock = threading.Lock()

    def keep_stdout(self) -> None:
        """Answer where stdout goes by now; what else is printed goes to stderr, as a worker's banner."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def add(self, count: int = 1) -> None:
        """Count what was handled."""
        with self._lock:
            self._count += count
            if self._expected and self._count >= self._expected:
                self._tell()

    def listens(self) -> None:
        """Say so, and from now on take what is expected from stdin."""
        self._tell()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            with self._lock:
                self._expected = int(line)
                if self._count >= self._expected:
                    self._tell()
        os._exit(0)

    def _tell(self) -> None:
        self._expected = 0
        print(self._count, file=self._answers, flush=True)


tally = Tally()


async def handle(payload: dict[str, Any]) -> None:
    """The work: none but to be counted."""
    tally.add()


async def faststream(name: str) -> None:
    """In a consumer group: one message at a time, acknowledged when its handler has returned."""
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(REDIS, logger=None)
    broker.subscriber(stream=StreamSub(name, group="receiver", consumer="one"))(handle)
    await broker.start()


async def faststream_plain(name: str) -> None:
    """Without a group: one message at a time, nothing to acknowledge, nothing given again.

    Read from its beginning: one that is read from now on misses what comes between two looks at it.
    """
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(REDIS, logger=None)
    broker.subscriber(stream=StreamSub(name, last_id="0"))(handle)
    await broker.start()


async def faststream_batch(name: str) -> None:
    """At its best: all that waits, up to a limit, in one call and with one acknowledgement."""
    from faststream.redis import RedisBroker, StreamSub

    async def handle_many(payloads: list[dict[str, Any]]) -> None:
        tally.add(len(payloads))

    broker = RedisBroker(REDIS, logger=None, apply_types=False)
    sub = StreamSub(name, group="receiver", consumer="one", batch=True, max_records=PREFETCH)
    broker.subscriber(stream=sub)(handle_many)
    await broker.start()


async def aio_pika(name: str) -> None:
    """Up to a limit of messages on their way, each acknowledged when its handler has returned."""
    import aio_pika
    from aio_pika.abc import AbstractIncomingMessage

    async def take(message: AbstractIncomingMessage) -> None:
        await handle(orjson.loads(message.body))
        await message.ack()

    channel = await (await aio_pika.connect_robust(RABBITMQ)).channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    await (await channel.declare_queue(name, durable=True)).consume(take)


async def nats(name: str) -> None:
    """A durable pull consumer, each message acknowledged when its handler has returned."""
    import nats
    from nats.errors import TimeoutError as NothingCame

    client = await nats.connect(NATS)
    pull = await client.jetstream().pull_subscribe(name, durable="receiver")

    async def take() -> None:
        while True:
            try:
                messages = await pull.fetch(PREFETCH, timeout=5)
            except NothingCame:
                continue
            for message in messages:
                await handle(orjson.loads(message.data))
                await message.ack()

    _tasks.append(asyncio.create_task(take()))


_tasks: list[asyncio.Task[None]] = []


def celery_app(name: str) -> Any:
    """Return the application that both sides have, its keys in Redis under a prefix of its own."""
    from celery import Celery

    app = Celery(name, broker=REDIS)
    app.conf.update(
        task_default_queue=name,
        task_ignore_result=True,
        broker_pool_limit=64,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"global_keyprefix": f"{name}:"},
        worker_prefetch_multiplier=PREFETCH,
    )

    @app.task(name="handle", shared=False)
    def handle(payload: dict[str, Any]) -> None:
        tally.add()

    return app


def celery(name: str) -> None:
    """A worker that runs the tasks itself, which is its quickest for short ones; logs no task."""
    from celery.signals import worker_ready

    worker_ready.connect(lambda **_: tally.listens(), weak=False)
    quietly = ("--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat")
    celery_app(name).worker_main(["worker", "--pool", "solo", *quietly])


ASYNC: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    "faststream": faststream,
    "faststream_plain": faststream_plain,
    "faststream_batch": faststream_batch,
    "aio_pika": aio_pika,
    "nats": nats,
}


async def _receive(peer: str, name: str) -> None:
    await ASYNC[peer](name)
    tally.listens()
    await asyncio.Event().wait()


if __name__ == "__main__":
    tally.keep_stdout()
    if sys.argv[1] == "celery":
        celery(sys.argv[2])
    with asyncio.Runner(loop_factory=new_quickest_loop) as runner:
        runner.run(_receive(*sys.argv[1:]))
