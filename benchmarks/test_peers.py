"""How fast are events delivered to a handler, beside the ways that others have for it?

64 emitters with one event at a time each, 200 bytes, a handler that does nothing in a process of its own. The
clock stops when the handler was called for every event of the round. Ours is signed and verified, and goes
into the short way or into the adrf view; what each peer is, and what it promises, says the README.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from aevents.event import new_id
from benchmarks import clients
from benchmarks.peers import SENDERS, WIDTH, Loop, Receiver
from benchmarks.rig import contest

PEER_ROUNDS = 7
OURS = 6_400  # events a round; whoever is quicker needs more of them to be timed well
REDIS, RABBITMQ, NATS = 6379, 5672, 4222


@dataclass(frozen=True)
class Peer:
    """One way of others: the least ratio, if it has one, how many events a round it gets, what it needs."""

    way: str
    what: str
    least: int
    count: int
    modules: tuple[str, ...]
    port: int = 0


PEERS = [
    Peer("faststream", "FastStream + Redis Streams", 30, 960, ("faststream", "redis"), REDIS),
    Peer("faststream_plain", "FastStream, a plain stream", 0, 1_920, ("faststream", "redis"), REDIS),
    Peer("faststream_batch", "FastStream at its best", 3, 6_400, ("faststream", "redis"), REDIS),
    Peer("celery", "Celery + Redis", 80, 256, ("celery", "redis"), REDIS),
    Peer("aio_pika", "aio-pika with confirms", 15, 960, ("aio_pika",), RABBITMQ),
    Peer("nats", "NATS JetStream", 4, 3_200, ("nats",), NATS),
    Peer("requests", "a requests.Session each into DRF", 150, 256, ("requests", "gunicorn")),
]


@pytest.mark.parametrize(("path", "into"), [("events", "the short way"), ("through-django", "the adrf view")])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.way)
def test_beside_a_peer(
    benchmark: Any,
    loop: Loop,
    signed_receiver: str,
    routed: Callable[..., None],
    peer: Peer,
    path: str,
    into: str,
) -> None:
    _need(peer)
    routed(f"{signed_receiver}/{path}/")
    with _ready(peer, loop) as deliver:
        contest(
            benchmark,
            lambda: _seconds_an_event(OURS, lambda count: _emit_all(loop, count)),
            lambda: _seconds_an_event(peer.count, deliver),
            what=f"aemit into {into} : {peer.what}, {WIDTH} emitters",
            # The goals are the short way's.
            goal=f"at least {peer.least} (rate)" if peer.least and path == "events" else "for comparison",
            rounds=PEER_ROUNDS,
            is_rate=True,
        )


@contextlib.contextmanager
def _ready(peer: Peer, loop: Loop) -> Iterator[Callable[[int], None]]:
    """Both sides of the peer: a function that brings so many events to its handler."""
    name = f"aevents-benchmarks-{new_id()}"
    with SENDERS[peer.way](loop, name) as send, contextlib.ExitStack() as stack:
        if peer.way == "requests":  # as with ours, the answer says that it was handled
            yield send
            return
        receiver = Receiver(peer.way, name)
        stack.callback(receiver.end)

        def deliver(count: int) -> None:
            receiver.expect(count)
            send(count)
            receiver.wait_for_all()

        yield deliver


def _need(peer: Peer) -> None:
    """Skip the test where the peer is not installed, or its server does not listen."""
    for module in peer.modules:
        pytest.importorskip(module)
    if peer.port:
        try:
            socket.create_connection(("127.0.0.1", peer.port), timeout=2).close()
        except OSError as error:
            pytest.skip(f"nothing listens at 127.0.0.1:{peer.port}: {error}")


def _emit_all(loop: Loop, count: int) -> None:
    loop.run_until_complete(clients.at_a_time(WIDTH, count, clients.emit))


def _seconds_an_event(count: int, deliver: Callable[[int], None]) -> float:
    began = time.perf_counter()
    deliver(count)
    return (time.perf_counter() - began) / count
