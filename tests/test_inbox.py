"""What a service owns when it has answered 2xx: with INBOX and without, handlers that fail, hang or die."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from aevents import (
    Again,
    Dead,
    claims,
    current_event,
    dispatcher,
    emit,
    inbox,
    store,
    subscribe_to,
    tables,
    wire,
)
from aevents.answer import Answer
from aevents.event import Event
from aevents.keeper import keeper
from aevents.models import State
from aevents.receiver import receive
from aevents.store import Entry, Owed
from tests.ledger import Ledger
from tests.peers import Fleet, eventually
from tests.project.models import Note
from tests.test_store import an_event

Receive = Callable[..., Answer]


@pytest.fixture
def fleet(settings: Any, ledger: Ledger) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        yield found
        inbox.end(5.0)


def arrive(event: Event) -> Answer:
    """Let an event arrive as a WSGI server's would; return the answer."""
    return asyncio.run(receive(wire.encode(event), peer="127.0.0.1", at_home=False))


def notes(ledger: Ledger) -> list[str]:
    return sorted(Note.objects.using(ledger.alias).values_list("text", flat=True))


@pytest.fixture
def with_inbox(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, INBOX=True, SCHEDULE=[0.01] * 9)


@pytest.fixture
def without_inbox(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, SCHEDULE=[0.01] * 9, LIMITS={"ANSWER_S": 0.2})


def write(ledger: Ledger, text: str) -> None:
    Note.objects.using(ledger.alias).create(text=text)


# With INBOX


@pytest.mark.usefixtures("with_inbox")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_arrival_is_stored_answered_and_handled_once(ledger: Ledger, kind: str) -> None:
    _subscribe(kind, lambda: write(ledger, "done"))
    event = an_event()

    first, second = arrive(event), arrive(event)

    assert (first.status, first.content["status"]) == (202, "stored")
    assert (second.status, second.content["status"]) == (200, "duplicate")
    ledger.is_empty()
    assert notes(ledger) == ["done"]


def _subscribe(kind: str, work: Callable[[], None], **options: Any) -> None:
    def handle(payload: Any) -> None:
        work()

    async def handle_async(payload: Any) -> None:
        await asyncio.to_thread(work)

    subscribe_to("user-created", handle if kind == "sync" else handle_async, name="handler", **options)


@pytest.mark.usefixtures("with_inbox")
def test_copies_that_arrive_at_one_moment_have_one_effect(ledger: Ledger) -> None:
    _subscribe("sync", lambda: write(ledger, "done"))
    event = an_event()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: arrive(event), range(20)))

    assert sorted(answer.status for answer in answers) == [200] * 19 + [202]
    ledger.is_empty()
    assert notes(ledger) == ["done"]


@pytest.mark.usefixtures("with_inbox")
def test_an_event_that_nobody_handles_is_not_stored(ledger: Ledger) -> None:
    assert arrive(an_event()).content["status"] == "unhandled"
    assert ledger.rows() == []


@pytest.mark.usefixtures("with_inbox")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_fails_runs_again_alone(ledger: Ledger, kind: str) -> None:
    attempts: list[int] = []

    def fail_twice() -> None:
        attempts.append(current_event().attempt)  # type: ignore[union-attr]
        if len(attempts) < 3:
            raise ValueError("not yet")

    others: list[int] = []
    _subscribe(kind, fail_twice)
    subscribe_to("user-created", lambda payload: others.append(1), name="other")
    with ledger.relaying():
        arrive(an_event())

        ledger.is_empty()

    assert attempts == [1, 2, 3]
    assert others == [1]


@pytest.mark.usefixtures("with_inbox")
def test_what_a_failed_handler_wrote_is_undone_with_its_try(ledger: Ledger) -> None:
    runs: list[int] = []

    def handle() -> None:
        write(ledger, f"try {len(runs)}")
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("no")

    _subscribe("sync", handle)
    with ledger.relaying():
        arrive(an_event())
        ledger.is_empty()

    assert notes(ledger) == ["try 1"]


@pytest.mark.usefixtures("with_inbox")
def test_after_the_last_try_a_delivery_is_dead(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    def fail() -> None:
        runs.append(1)
        raise ValueError("never")

    _subscribe("sync", fail)
    with ledger.relaying():
        arrive(an_event())
        eventually(lambda: ledger.row().state == State.DEAD)

    assert len(runs) == 10
    assert ledger.row().error == "ValueError: never"


@pytest.mark.usefixtures("with_inbox")
def test_dead_is_dead_at_once(ledger: Ledger) -> None:
    def handle() -> None:
        write(ledger, "undone")
        raise Dead("no such user")

    _subscribe("sync", handle)
    arrive(an_event())

    eventually(lambda: ledger.row().state == State.DEAD)
    assert "no such user" in ledger.row().error
    assert notes(ledger) == []


@pytest.mark.usefixtures("with_inbox")
def test_again_comes_when_it_says_and_is_no_failure(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[float] = []

    def wait() -> None:
        runs.append(time.monotonic())
        if len(runs) < 15:  # more often than the schedule has tries
            raise Again(0.0 if len(runs) > 1 else 0.5)

    _subscribe("sync", wait)
    with ledger.relaying():
        arrive(an_event())
        ledger.is_empty()

    assert len(runs) == 15
    assert runs[1] - runs[0] >= 0.5
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.usefixtures("with_inbox")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_takes_too_long_has_failed(ledger: Ledger, kind: str) -> None:
    async def sleep_async(payload: Any) -> None:
        await asyncio.sleep(30)

    def sleep(payload: Any) -> None:
        write(ledger, "undone")
        time.sleep(0.1)

    handler = sleep if kind == "sync" else sleep_async
    subscribe_to("user-created", handler, name="handler", timeout_s=0.05)
    arrive(an_event())

    eventually(lambda: ledger.row().attempts == 1)
    assert "TimeoutError" in ledger.row().error
    assert notes(ledger) == []


@pytest.mark.usefixtures("with_inbox")
def test_trouble_of_the_database_spends_no_attempt(ledger: Ledger) -> None:
    runs: list[int] = []

    def handle() -> None:
        runs.append(current_event().attempt)  # type: ignore[union-attr]
        if len(runs) < 3:
            raise OperationalError("database is locked") from _locked(ledger)

    _subscribe("sync", handle)
    with ledger.relaying():
        arrive(an_event())
        ledger.is_empty()

    assert runs == [1, 1, 1]


def _locked(ledger: Ledger) -> Exception:
    error: Exception = connections[ledger.alias].Database.OperationalError("database is locked")  # type: ignore[attr-defined]
    if ledger.alias == "mariadb":
        error = connections[ledger.alias].Database.OperationalError(1213, "Deadlock found")  # type: ignore[attr-defined]
    return error


@pytest.mark.usefixtures("with_inbox")
def test_whoever_lost_the_lease_does_not_even_begin(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, INBOX=True, LIMITS={"HANDLER_THREADS": 1})
    runs: list[int] = []
    begun, gate = threading.Event(), threading.Event()

    def block(payload: Any) -> None:
        begun.set()
        gate.wait(10)

    subscribe_to("blocked", block, name="blocker", atomic=False)
    _subscribe("sync", lambda: runs.append(1))
    arrive(an_event("blocked"))
    assert begun.wait(10)
    arrive(an_event())
    row = ledger.row(target="handler")
    type(row).objects.using(ledger.alias).filter(pk=row.pk).update(lease="another's")

    gate.set()

    ledger.has(1)
    inbox.end(5.0)
    assert runs == []
    assert ledger.row().lease == "another's"


@pytest.mark.usefixtures("with_inbox")
def test_what_was_claimed_and_cannot_begin_is_given_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: object) -> None:
        raise OSError(24, "Too many open files")

    done: list[int] = []
    _subscribe("sync", lambda: done.append(1))
    store.add([Entry(tables.IN, an_event(), (Owed("handler"),))])
    claimed = claims.claim(tables.IN, "handler", 10)
    with monkeypatch.context() as patch:
        patch.setattr(dispatcher._home, "loop", no_file)
        inbox.begin(claimed)

    assert inbox.running() == 0
    ledger.has(1, lease="")
    with ledger.relaying():
        ledger.is_empty()
    assert done == [1]


@pytest.mark.usefixtures("with_inbox")
def test_what_has_the_same_key_is_handled_in_its_order(ledger: Ledger) -> None:
    order: list[int] = []
    failed: list[int] = []

    def handle(payload: Any) -> None:
        if payload["n"] == 2 and not failed:
            failed.append(1)
            raise ValueError("once")
        order.append(payload["n"])

    subscribe_to("user-changed", handle, name="handler")
    with ledger.relaying():
        for n in range(6):
            arrive(an_event("user-changed", data=b'{"n":%d}' % n, key="user-7"))
            ledger.look()
        ledger.is_empty()

    assert order == list(range(6))


@pytest.mark.usefixtures("with_inbox")
def test_an_arrival_that_cannot_be_stored_is_answered_503(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aevents import store

    def down(entries: Any) -> Any:
        raise OperationalError("connection refused")

    _subscribe("sync", lambda: None)
    monkeypatch.setattr(store, "arrive", down)

    answer = arrive(an_event())

    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.content["status"] != "failed"  # which would say that only this event is to blame


def test_more_than_this_process_can_hold_is_left_to_whoever_relays(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, INBOX=True, LIMITS={"HANDLERS": 2})
    gate, runs = threading.Event(), []

    def handle(payload: Any) -> None:
        gate.wait(10)
        runs.append(1)

    subscribe_to("user-created", handle, name="handler", atomic=False)
    for _ in range(6):
        assert arrive(an_event()).status == 202

    assert len(ledger.rows(lease="")) == 4
    gate.set()
    with ledger.relaying():
        ledger.is_empty()
    assert len(runs) == 6


@pytest.mark.usefixtures("with_inbox")
def test_events_for_the_service_itself_go_by_the_inbox_too(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, INBOX=True, OUTBOX=True, SUBSCRIPTIONS={"*": ["tests"]})
    _subscribe("sync", lambda: write(ledger, "done"))

    emit("user-created", {"n": 1})

    eventually(lambda: notes(ledger) == ["done"])
    ledger.is_empty()


# Without


@pytest.mark.usefixtures("without_inbox")
def test_a_handler_that_succeeds_in_time_leaves_no_row(ledger: Ledger) -> None:
    _subscribe("sync", lambda: write(ledger, "done"))

    answer = arrive(an_event())

    assert (answer.status, answer.content["status"]) == (200, "handled")
    assert ledger.rows() == []


@pytest.mark.usefixtures("without_inbox")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_fails_is_owed_and_the_emitter_is_not_asked_again(ledger: Ledger, kind: str) -> None:
    runs: list[int] = []

    def handle() -> None:
        runs.append(current_event().attempt)  # type: ignore[union-attr]
        if len(runs) == 1:
            raise ValueError("once")

    _subscribe(kind, handle)
    answer = arrive(an_event())
    assert (answer.status, answer.content["status"]) == (202, "stored")
    assert (ledger.row().attempts, ledger.row().error) == (1, "ValueError: once")

    with ledger.relaying():
        ledger.is_empty()
    assert runs == [1, 2]


@pytest.mark.usefixtures("without_inbox")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_still_runs_is_taken_over_and_runs_once(ledger: Ledger, kind: str) -> None:
    gate, runs = threading.Event(), []

    def handle() -> None:
        runs.append(1)
        gate.wait(20)

    _subscribe(kind, handle, atomic=False)
    answer = arrive(an_event())
    assert answer.status == 202
    assert ledger.row().lease != ""

    with ledger.relaying():
        threading.Event().wait(0.1)
        gate.set()
        ledger.is_empty()
    assert runs == [1]


@pytest.mark.usefixtures("without_inbox")
def test_a_handler_that_is_taken_over_and_fails_is_owed(ledger: Ledger) -> None:
    gate = threading.Event()

    def handle() -> None:
        gate.wait(20)
        raise ValueError("late")

    _subscribe("sync", handle, atomic=False)
    assert arrive(an_event()).status == 202

    gate.set()

    eventually(lambda: ledger.row().lease == "")
    assert (ledger.row().attempts, ledger.row().error) == (1, "ValueError: late")


@pytest.mark.usefixtures("without_inbox")
def test_a_slow_handler_in_a_transaction_of_its_own_runs_once(ledger: Ledger) -> None:
    runs: list[int] = []

    def handle() -> None:
        runs.append(1)
        write(ledger, "done")
        time.sleep(0.8)  # longer than ANSWER_S; on SQLite nobody else can write meanwhile

    _subscribe("sync", handle)
    answer = arrive(an_event())

    assert answer.status in (200, 202)
    ledger.is_empty()
    assert (runs, notes(ledger)) == ([1], ["done"])


@pytest.mark.usefixtures("without_inbox")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_end_waits_for_a_row_that_is_still_on_its_way_into_the_store(ledger: Ledger) -> None:
    runs: list[int] = []

    def handle() -> None:
        time.sleep(0.4)  # longer than ANSWER_S, and the row must wait for the one writer
        runs.append(1)

    _subscribe("sync", handle, atomic=False)
    with transaction.atomic(using=ledger.alias):
        assert arrive(an_event()).status == 200

    inbox.end(5.0)
    keeper.flush(5.0)

    assert (runs, ledger.rows()) == ([1], [])


@pytest.mark.usefixtures("without_inbox")
def test_one_that_fails_beside_one_that_still_runs_are_both_owed(ledger: Ledger) -> None:
    gate = threading.Event()
    subscribe_to("user-created", lambda payload: gate.wait(20), name="slow", atomic=False)
    subscribe_to("user-created", lambda payload: 1 / 0, name="bad", atomic=False)

    assert arrive(an_event()).status == 202

    assert sorted((row.target, row.lease != "", row.attempts) for row in ledger.rows()) == [
        ("bad", False, 1),
        ("slow", True, 0),
    ]
    gate.set()
    eventually(lambda: [row.target for row in ledger.rows()] == ["bad"])


@pytest.mark.usefixtures("without_inbox")
def test_a_dead_letter_of_a_handler_is_kept(ledger: Ledger) -> None:
    def handle() -> None:
        raise Dead("no such user")

    _subscribe("sync", handle)

    assert arrive(an_event()).status == 202
    assert ledger.row().state == State.DEAD


@pytest.mark.usefixtures("without_inbox")
def test_a_target_that_this_code_does_not_know_is_left_alone(ledger: Ledger) -> None:
    from tests.test_store import store_one

    store_one("a.handler.of.another.version", direction=2)
    with ledger.relaying():
        threading.Event().wait(0.3)

    assert (ledger.row().attempts, ledger.row().state, ledger.row().lease) == (0, State.OWED, "")


@pytest.mark.usefixtures("without_inbox")
def test_what_is_replayed_runs_again_though_this_process_remembers_it(ledger: Ledger) -> None:
    from tests.test_store import store_one

    runs: list[int] = []
    _subscribe("async", lambda: runs.append(1))
    event = an_event()
    assert arrive(event).content["status"] == "handled"

    store_one("handler", direction=2, event=event)
    with ledger.relaying():
        ledger.is_empty()

    assert runs == [1, 1]


@pytest.mark.usefixtures("without_inbox")
def test_an_event_whose_payload_was_erased_is_given_to_nobody(ledger: Ledger) -> None:
    from tests.test_store import store_one

    runs: list[int] = []
    _subscribe("sync", lambda: runs.append(1))
    store_one("handler", direction=2)
    tables.events().update(payload=None)

    with ledger.relaying():
        eventually(lambda: ledger.row().state == State.DEAD)
    assert runs == []
    assert "erased" in ledger.row().error


@pytest.mark.usefixtures("fleet")
def test_what_is_stored_after_the_answer_said_no_is_given_back_at_once(
    fleet: Fleet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aevents import store

    fleet(STORE=ledger.alias, INBOX=True, LIMITS={"ANSWER_S": 0.05})
    arriving, gate, runs = store.arrive, threading.Event(), []

    def late(entries: Any) -> Any:
        gate.wait(10)
        return arriving(entries)

    _subscribe("sync", lambda: runs.append(1))
    monkeypatch.setattr(store, "arrive", late)
    assert arrive(an_event()).status == 503
    gate.set()

    with ledger.relaying():
        eventually(lambda: runs == [1])
        ledger.is_empty()
