"""The least that a stage can cost: each by the call that does its work and nothing beside, in µs an event.

In come the number of events that travel together and the bytes that do; each floor is the least of several
timings, CPU time of this thread.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import httptools
import orjson

from aevents import batch
from aevents.composer import make_event
from aevents.event import new_id
from aevents.loops import new_quickest_loop
from benchmarks import clients, wire_client

_TIMES = 7


def least_us(work: Callable[[], Any], events: int, rounds: int = 200) -> float:
    """Return the CPU time of `work`, which does so many events' work, in µs an event."""
    best = float("inf")
    for _ in range(_TIMES):
        began = time.thread_time()
        for _ in range(rounds):
            work()
        best = min(best, time.thread_time() - began)
    return best / rounds / events * 1e6


class Floors:
    """The floors where so many events travel together. Wants settings and a `SERVICE`."""

    def __init__(self, together: int) -> None:
        self.together = max(1, together)
        self.events = [make_event("user-created", clients.PAYLOAD, None) for _ in range(self.together)]
        self.body = batch.encode(self.events).body

    def wake(self) -> float:
        """A future of a waiting task done by its own loop, in bulk: no thread, no event."""
        loop = new_quickest_loop()

        async def main() -> float:
            waiting: list[asyncio.Future[None]] = []

            async def waiter() -> None:
                for _ in range(rounds):
                    waiting.append(future := loop.create_future())
                    await future

            rounds = 500
            began = time.thread_time()
            tasks = [asyncio.create_task(waiter()) for _ in range(self.together)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                for future in waiting:
                    future.set_result(None)
                waiting.clear()
            return (time.thread_time() - began) / rounds / self.together * 1e6

        with closing(loop):
            return min(loop.run_until_complete(main()) for _ in range(_TIMES))

    def compose(self) -> float:
        """An id, the time, and the payload encoded."""
        return least_us(lambda: (new_id(), datetime.now(UTC), orjson.dumps(clients.PAYLOAD)), 1, 5000)

    def pack(self) -> float:
        """One look into a dict, and one object with what is known of the event."""
        routes = {"user-created": ("service",)}
        return least_us(lambda: _Slotted(routes["user-created"], 1, 2, 3, 4, 5), 1, 5000)

    def cross(self) -> float:
        """Into a deque and out of it, and one wake of a loop for all."""
        queue: deque[int] = deque()
        loop = new_quickest_loop()

        def work() -> None:
            for number in range(self.together):
                queue.append(number)
            loop.call_soon_threadsafe(queue.clear)
            while queue:
                queue.popleft()
            loop.run_until_complete(_nothing())

        with closing(loop):
            return least_us(work, self.together)

    def write(self) -> float:
        """Their attributes and payloads as JSON."""
        values = [{"id": e.id, "source": "/a", "type": e.type, "time": e.time, "n": 1} for e in self.events]
        payloads = [event.data for event in self.events]

        def work() -> bytes:
            parts = [orjson.dumps(v) + d for v, d in zip(values, payloads, strict=True)]
            return b"[%b]" % b",".join(parts)

        return least_us(work, self.together)

    def sign(self) -> float:
        """One HMAC of the body."""
        return least_us(lambda: hmac.digest(clients.KEY, self.body, "sha256"), self.together)

    def send(self) -> float:
        """The request's bytes through a socket of TCP's, into it and out of it."""
        request = wire_client.request("http://127.0.0.1/events/", {}, self.body)
        with socket.create_server(("127.0.0.1", 0)) as door:
            ours = socket.create_connection(door.getsockname())
            theirs, _ = door.accept()
        with closing(ours), closing(theirs):

            def work() -> None:
                ours.sendall(request)  # fewer bytes than the kernel holds for a receiver that is late
                theirs.recv(len(request), socket.MSG_WAITALL)

            return least_us(work, self.together)

    def serve(self) -> float:
        """The same, and the request parsed by httptools."""
        request = wire_client.request("http://127.0.0.1/events/", {}, self.body)
        parse = least_us(lambda: httptools.HttpRequestParser(_Sink()).feed_data(request), self.together)
        return parse + self.send()

    def read(self) -> float:
        """The body as one JSON value."""
        return least_us(lambda: orjson.loads(self.body), self.together)

    def handle(self) -> float:
        """The payload as JSON, and the handler awaited."""
        payloads = [event.data for event in self.events]

        async def work() -> None:
            for data in payloads:
                await _handler(orjson.loads(data))

        def run() -> None:
            try:
                work().send(None)
            except StopIteration:
                return

        return least_us(run, self.together)

    def insert(self, connection: Any) -> float:
        """One row an event, all in one INSERT of psycopg's, removed by one DELETE, in one transaction."""
        payloads = [event.data for event in self.events]
        connection.execute("CREATE TEMP TABLE floor (id bigserial PRIMARY KEY, event_id text, data bytea)")
        places = ",".join(["(%s,%s)"] * len(payloads))
        values = [each for event in self.events for each in (event.id, event.data)]

        def work() -> None:
            with connection.transaction():
                found = connection.execute(
                    f"INSERT INTO floor (event_id, data) VALUES {places} RETURNING id",  # noqa: S608
                    values,
                )
                ids = [row[0] for row in found]
                connection.execute("DELETE FROM floor WHERE id = ANY(%s)", [ids])

        return least_us(work, self.together, 20)

    def savepoint(self, connection: Any) -> float:
        """A savepoint for each, set and released in one round trip."""

        def work() -> None:
            with connection.transaction():
                for _ in self.events:
                    connection.execute("SAVEPOINT floor; RELEASE SAVEPOINT floor")

        return least_us(work, self.together, 20)


class _Slotted:
    __slots__ = ("a", "b", "c", "d", "e", "f")

    def __init__(self, a: Any, b: int, c: int, d: int, e: int, f: int) -> None:
        self.a, self.b, self.c, self.d, self.e, self.f = a, b, c, d, e, f


class _Sink:
    """Takes what httptools finds."""

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_body(self, body: bytes) -> None: ...


async def _nothing() -> None: ...


async def _handler(payload: Any) -> None: ...
