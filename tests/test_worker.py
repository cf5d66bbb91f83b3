"""`manage.py aevents worker` as a real process: what it does with what is owed, and with each signal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from aevents import tables
from aevents.models import Delivery, State, StoredEvent
from aevents.tables import IN, OUT
from tests.peers import Peer, answers, eventually
from tests.process_project.running import unwanted_in
from tests.test_store import an_event, store_one
from tests.workers import WITHIN_S, Worker, is_empty, owe, rows

pytestmark = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def _closed(store: str) -> Iterator[None]:
    yield
    connections[store].close()


@pytest.fixture
def worker(store: str, tmp_path: Path, peer: Peer) -> Iterator[Worker]:
    found = Worker(store, tmp_path, PEER_URL=peer.url)
    yield found
    found.kill()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as found:
        yield found


def test_it_delivers_and_handles_what_is_owed_and_sigterm_ends_it_with_0(
    store: str, worker: Worker, peer: Peer
) -> None:
    owe("quick", n=1)
    owe("told", OUT, "peer", n=2)

    worker.start()

    worker.wrote("quick 1")
    assert peer.wait_for(1, within_s=WITHIN_S)[0].payload == {"n": 2}
    owe("quick", n=3)
    worker.wrote("quick 3")
    eventually(lambda: is_empty(store))
    worker.send()
    assert worker.ends() == 0
    assert worker.printed.splitlines() == ["The worker of shop begins", "The worker of shop has ended"]


@pytest.mark.parametrize("event_type", ["slow", "slow-async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_at_the_signal_comes_to_its_end_and_nothing_new_begins(
    store: str, worker: Worker, event_type: str, number: signal.Signals
) -> None:
    owe(event_type, s=2)
    worker.start()
    worker.wrote("slow begins")

    worker.send(number)
    time.sleep(0.2)  # it has seen the signal by then, or this shows less
    owe("quick", n=1)

    assert worker.ends() == 0
    assert worker.lines == ["slow begins", "slow ends"]
    assert [(row.target, row.lease) for row in rows(store)] == [("quick", "")]
    assert unwanted_in(worker.printed) == []


def test_what_is_under_way_to_a_service_arrives_before_the_end(
    store: str, worker: Worker, peer: Peer
) -> None:
    from tests.peers import answers_after

    peer.behave(answers_after(1.5))
    owe("told", OUT, "peer")
    worker.start()
    peer.wait_for(1, within_s=WITHIN_S)

    worker.send()

    assert worker.ends() == 0
    assert is_empty(store)
    assert len(peer.requests) == 1


@pytest.mark.parametrize("event_type", ["slow", "slow-async"])
def test_what_does_not_end_within_the_bound_is_given_back(
    store: str, worker: Worker, event_type: str
) -> None:
    worker.env["LIMITS"] = json.dumps({"DRAIN_S": 0.5, "EXIT_S": 0.5})
    owe(event_type, s=30)
    worker.start()
    worker.wrote("slow begins")

    began = time.monotonic()
    worker.send()

    assert worker.ends() == 0
    assert time.monotonic() - began < 10
    assert [(row.state, row.lease, row.attempts) for row in rows(store)] == [(State.OWED, "", 0)]


def test_a_second_signal_stops_at_once_with_1(store: str, worker: Worker) -> None:
    owe("slow", s=30)
    worker.start()
    worker.wrote("slow begins")

    began = time.monotonic()
    worker.send()
    time.sleep(0.5)
    assert worker.process.poll() is None
    worker.send(signal.SIGINT)

    assert worker.ends() == 1
    assert time.monotonic() - began < 10
    assert "Stopped. What ran is tried again when its lease ends" in worker.printed
    assert [row.lease != "" for row in rows(store)] == [True]


def test_what_a_killed_worker_held_is_tried_by_the_next_one_when_the_lease_has_ended(
    store: str, worker: Worker
) -> None:
    owe("slow", s=30)
    worker.start()
    worker.wrote("slow begins")
    worker.process.kill()
    worker.ends()
    (row,) = rows(store)
    assert row.lease
    assert row.due_ms - tables_now() > (tables.LEASE_S - WITHIN_S) * 1000
    # When the lease ends; the event is harmless now
    Delivery.objects.using(store).update(due_ms=0)
    StoredEvent.objects.using(store).update(payload=b'{"s": 0}')

    worker.start("--once")

    assert worker.ends() == 0
    assert worker.lines == ["slow begins", "slow begins", "slow ends"]
    assert is_empty(store)


def tables_now() -> int:
    return int(time.time() * 1000)


def test_two_workers_do_everything_once(store: str, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Worker(store, tmp_path / "other", DIARY=str(worker.diary), PEER_URL=worker.env["PEER_URL"])
    for n in range(200):
        owe("quick", n=n)

    worker.start()
    other.start()
    try:
        eventually(lambda: is_empty(store), within_s=WITHIN_S)
        assert sorted(worker.lines) == sorted(f"quick {n}" for n in range(200))
        for each in (worker, other):
            eventually(lambda: "begins" in each.printed, within_s=WITHIN_S)  # noqa: B023
            each.send()
            assert each.ends() == 0, each.printed
    finally:
        other.process.kill()
        other.process.wait()


# Once


def test_once_tries_all_that_is_due_and_ends_with_0(store: str, worker: Worker, peer: Peer) -> None:
    for n in range(300):
        owe("quick", n=n)
        owe("told", OUT, "peer", n=n)
    owe("bad")
    owe("unknown")
    store_one("quick", direction=IN, event=an_event("quick"), due_in_s=600)

    assert worker.start("--once").ends() == 0

    lines = [line for line in worker.lines if line != "bad"]  # that may be due again before the end
    assert sorted(lines) == sorted(f"quick {n}" for n in range(300))
    assert len(peer.requests) == 300
    left = [(row.target, row.attempts > 0, row.lease) for row in rows(store)]
    assert left == [("bad", True, ""), ("unknown", False, ""), ("quick", False, "")]
    assert re.search(r"300 delivered, 300 handled, \d failed; failing: bad\.", worker.printed)


def test_once_ends_where_a_service_is_down_and_a_key_is_blocked(
    store: str, worker: Worker, peer: Peer
) -> None:
    peer.behave(answers(503))
    for _ in range(3):
        store_one("peer", event=an_event("told", key="k"))
    for _ in range(50):
        owe("told", OUT, "peer")

    assert worker.start("--once").ends() == 0

    assert len(rows(store)) == 53
    assert all(row.lease == "" for row in rows(store))
    assert len(peer.requests) <= 53


def test_once_with_nothing_due_ends_at_once(worker: Worker) -> None:
    began = time.monotonic()
    assert worker.start("--once").ends() == 0
    assert time.monotonic() - began < 20


# On a terminal


def test_on_a_terminal_one_line_is_kept_up_to_date(store: str, worker: Worker) -> None:
    terminal, inner = pty.openpty()
    owe("quick", n=1)
    owe("bad")
    try:
        worker.start(stdout=inner)
        os.close(inner)
        shown = ""

        def has_shown(text: str) -> bool:
            nonlocal shown
            while select.select([terminal], [], [], 0.05)[0]:
                shown += os.read(terminal, 4096).decode()
            return text in shown

        eventually(lambda: has_shown("1 handled, "), within_s=WITHIN_S, what="handled")
        eventually(lambda: has_shown("1 owed (oldest "), within_s=WITHIN_S, what="owed")
        eventually(lambda: has_shown("failing: bad"), within_s=WITHIN_S, what="failing")
        assert "\n" not in shown
        worker.send(signal.SIGINT)
        eventually(lambda: has_shown("failing: bad.\r\n"), within_s=WITHIN_S, what="the end")
        assert worker.ends() == 0
    finally:
        os.close(terminal)
