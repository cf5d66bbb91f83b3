"""`manage.py aevents worker` with `LISTEN`, as a process: what a broker brings, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from aevents.answer import Receipt
from aevents.models import Delivery, State, StoredEvent
from aevents.signature import key_of, new_secret
from aevents.transports.base import Destination, Transport
from aevents.transports.rehearsal import an_event
from tests import brokers
from tests.peers import eventually
from tests.process_project.running import unwanted_in
from tests.workers import WITHIN_S, Worker, is_empty, rows

pytest.importorskip("redis", reason="needs redis-py, the extra aevents[redis]")

from redis import Redis

from aevents.transports.redis import RedisTransport

pytestmark = pytest.mark.parametrize("store", ["postgresql"], indirect=True)
SECRET = new_secret()


@pytest.fixture(autouse=True)
def _closed(store: str) -> Iterator[None]:
    yield
    connections[store].close()


@pytest.fixture
def prefix() -> Iterator[str]:
    found = f"t{uuid.uuid4().hex[:10]}."
    yield found
    with Redis.from_url(brokers.address("redis")) as redis:
        for key in redis.scan_iter(match=f"{found}*"):
            redis.delete(key)


@pytest.fixture
def worker(store: str, tmp_path: Path, prefix: str) -> Iterator[Worker]:
    found = Worker(store, tmp_path, PEER_URL="http://127.0.0.1:9/")
    tell(found, prefix)
    yield found
    found.kill()


def tell(worker: Worker, prefix: str, **aevents: Any) -> None:
    """Let the worker listen to Redis; `aevents` are more of its settings."""
    settings = {
        "BROKERS": {"bus": brokers.address("redis")},
        "LISTEN": ["bus"],
        "TRANSPORTS": {"redis": {"PREFIX": prefix, "IDLE_S": 2}},
        **aevents,
    }
    worker.env["AEVENTS"] = json.dumps(settings)


def send(prefix: str, *messages: Any, keys: tuple[bytes, ...] = ()) -> None:
    """Send messages by a transport of this process's own."""

    async def sending(transport: Transport) -> None:
        bus = Destination("bus", brokers.address("redis"), keys)
        for message in messages:
            assert await transport.send(bus, message) == Receipt()
        await transport.close()

    asyncio.run(sending(RedisTransport(PREFIX=prefix)))


def quick(n: int, **fields: Any) -> Any:
    return an_event("quick", b'{"n": %d}' % n, **fields)


@pytest.mark.parametrize("inbox", [False, True])
def test_what_was_sent_before_and_after_its_start_is_handled_once(
    store: str, worker: Worker, prefix: str, inbox: bool
) -> None:
    tell(worker, prefix, INBOX=inbox)
    send(prefix, quick(1))
    worker.start()
    worker.wrote("quick 1")
    send(prefix, quick(2))
    worker.wrote("quick 2")
    worker.send()
    assert worker.ends() == 0
    worker.start()
    send(prefix, quick(3))
    worker.wrote("quick 3")
    worker.send()
    assert worker.ends() == 0
    assert worker.lines == ["quick 1", "quick 2", "quick 3"]
    assert is_empty(store)
    assert "Listening to bus as shop, for 5 event types" in worker.printed
    assert unwanted_in(worker.printed) == []


def test_a_second_copy_is_dropped_by_the_inbox(store: str, worker: Worker, prefix: str) -> None:
    tell(worker, prefix, INBOX=True)
    twice = quick(1)
    send(prefix, twice, twice, quick(2))
    worker.start()
    worker.wrote("quick 2")
    eventually(lambda: is_empty(store))
    assert worker.lines.count("quick 1") == 1


def test_a_handler_that_fails_leaves_nothing_in_the_broker_and_its_event_in_the_store(
    store: str, worker: Worker, prefix: str
) -> None:
    send(prefix, an_event("bad"), quick(1))
    worker.start()
    worker.wrote("quick 1")
    worker.wrote("bad")
    eventually(lambda: [(row.target, row.attempts > 0) for row in rows(store)] == [("bad", True)])


def test_a_handler_that_takes_long_is_run_once_and_holds_up_nobody(
    store: str, worker: Worker, prefix: str
) -> None:
    # Longer than what Redis is told to wait, and than a receiver does.
    send(prefix, an_event("slow", b'{"s": 6}'), an_event("slow-async", b'{"s": 6}'))
    worker.start()
    worker.wrote("slow begins")
    send(prefix, quick(1))
    worker.wrote("quick 1")
    assert "slow ends" not in worker.lines
    eventually(lambda: worker.lines.count("slow ends") == 2, within_s=WITHIN_S)
    eventually(lambda: is_empty(store))
    assert worker.lines.count("slow begins") == 2


def test_what_nobody_vouches_for_is_a_dead_letter_in_the_end_and_taken_when_the_key_is_there(
    store: str, worker: Worker, prefix: str
) -> None:
    other = new_secret()
    tell(worker, prefix, SECRETS=[SECRET], UNSIGNED="refuse")
    send(prefix, quick(1), keys=(key_of(other),))
    send(prefix, quick(2), keys=(key_of(SECRET),))
    worker.start()
    worker.wrote("quick 2")
    eventually(lambda: len(rows(store)) == 1)
    (row,) = rows(store)
    assert (row.target, row.state, row.attempts) == ("aevents.refused", State.OWED, 1)
    assert "The broker 'bus' brought what is refused here" in row.error
    assert "webhook-signature is by none" in row.error
    worker.send()
    assert worker.ends() == 0
    assert worker.lines == ["quick 2"]

    tell(worker, prefix, SECRETS=[SECRET, other], UNSIGNED="refuse")
    Delivery.objects.using(store).update(due_ms=0)
    worker.start()
    worker.wrote("quick 1")
    eventually(lambda: is_empty(store))


@pytest.mark.parametrize(
    "body",
    [b"\xff\x00", b"7 8", b'{"event_type": 7, "payload": 1}', b"[" * 100_000],
    ids=lambda body: repr(body[:40]),
)
def test_garbage_is_kept_and_holds_up_nobody(store: str, worker: Worker, prefix: str, body: bytes) -> None:
    garbage = quick(1)
    garbage = type(garbage)(garbage.headers, body)
    send(prefix, garbage, garbage, quick(2))
    worker.start()
    worker.wrote("quick 2")
    eventually(lambda: StoredEvent.objects.using(store).count() == 1, what="the same one is one letter")
    kept = StoredEvent.objects.using(store).get()
    assert kept.type == "aevents-refused"
    assert kept.source == "bus"
    assert worker.lines == ["quick 2"]


def test_it_says_what_it_cannot_listen_to(store: str, worker: Worker, prefix: str) -> None:
    tell(worker, prefix, LISTEN=["bsu", "https://peer/events/"], SERVICE="")
    worker.start()
    assert worker.ends() == 1
    assert "AEVENTS['LISTEN'] names 'bsu', which is not in BROKERS" in worker.printed
    worker.start("--skip-checks")
    assert worker.ends() == 1
    assert "'bsu' is not in AEVENTS['SERVICES'] or ['BROKERS']" in worker.printed
    assert "https:// brings nothing" in worker.printed
    assert "AEVENTS['SERVICE'] is not set" in worker.printed


def test_what_kills_its_process_is_in_the_store_when_it_has_come_again(
    store: str, worker: Worker, prefix: str
) -> None:
    send(prefix, an_event("deadly"))
    for _ in range(2):  # from the broker, then from the store
        worker.start()
        worker.process.wait(WITHIN_S)
    (row,) = rows(store)
    assert (row.target, row.event.type) == ("deadly", "deadly")
    row.delete()
    send(prefix, quick(1))
    worker.start()
    worker.wrote("quick 1")
    assert worker.lines == ["deadly", "deadly", "quick 1"], "the broker has it no more"
