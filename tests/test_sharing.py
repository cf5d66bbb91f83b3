"""What waits for sync handlers shares a transaction, and a failure stays alone. And batch handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from aevents import Dead, current_event, emit, inbox, subscribe_to
from aevents.answer import Answer
from aevents.errors import InvalidSubscription
from aevents.event import Event
from aevents.intake import take_in_all
from aevents.models import State
from tests.ledger import Ledger
from tests.peers import Fleet, eventually
from tests.project.models import Note
from tests.test_inbox import arrive, notes, write
from tests.test_store import an_event


@pytest.fixture
def fleet(settings: Any, ledger: Ledger) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        found(STORE=ledger.alias, INBOX=True, SCHEDULE=[0.01] * 9, LIMITS={"HANDLER_THREADS": 1})
        yield found
        inbox.end(5.0)


@pytest.fixture
def blocked(fleet: Fleet, ledger: Ledger) -> Iterator[Callable[..., None]]:
    """Let events arrive while the only thread is busy; then let it go, and wait until all is done."""
    gate, begun = threading.Event(), threading.Event()

    def block(payload: Any) -> None:
        begun.set()
        assert gate.wait(20)

    def arrive_together(*events: Event, meanwhile: Callable[[], None] = bool, leaves: int = 0) -> None:
        arrive(an_event("blocked"))
        assert begun.wait(20)
        for event in events:
            assert arrive(event).status == 202
        meanwhile()
        gate.set()
        eventually(lambda: not inbox.running())
        ledger.has(leaves)

    subscribe_to("blocked", block, name="blocker", atomic=False)
    yield arrive_together
    gate.set()


def number(n: int, event_type: str = "user-created") -> Event:
    return an_event(event_type, data=b'{"n":%d}' % n)


def attempt() -> int:
    """At which attempt the running handler is."""
    event = current_event()
    assert event is not None
    return event.attempt


def after_commit(ledger: Ledger, work: Callable[[], Any]) -> None:
    transaction.on_commit(work, using=ledger.alias)


# Shared transactions


def test_what_waits_shares_a_commit(blocked: Callable[..., None], ledger: Ledger) -> None:
    order: list[str] = []

    def handle(payload: dict[str, int]) -> None:
        write(ledger, f"{payload['n']}")
        order.append(f"run {payload['n']}")
        after_commit(ledger, lambda: order.append(f"commit {payload['n']}"))

    subscribe_to("user-created", handle, name="handler")

    blocked(number(1), number(2), number(3))

    assert order == ["run 1", "run 2", "run 3", "commit 1", "commit 2", "commit 3"]
    assert notes(ledger) == ["1", "2", "3"]


def test_a_savepoint_is_set_for_each_and_released_by_the_commit(
    blocked: Callable[..., None], ledger: Ledger
) -> None:
    said: list[str] = []

    def handle(payload: dict[str, int]) -> None:
        wrappers = connections[ledger.alias].execute_wrappers
        if payload["n"] == 1:
            wrappers.append(note)
        elif payload["n"] == 3:
            wrappers.remove(note)

    def note(execute: Any, sql: str, *rest: Any) -> Any:
        said.append(sql.split()[0])
        return execute(sql, *rest)

    subscribe_to("user-created", handle, name="handler")

    blocked(number(1), number(2), number(3))

    assert said == ["SAVEPOINT", "SAVEPOINT"]


def test_who_fails_is_undone_alone_and_tried_again_alone(
    blocked: Callable[..., None], ledger: Ledger
) -> None:
    runs: list[tuple[int, int]] = []

    def handle(payload: dict[str, int]) -> None:
        runs.append((payload["n"], attempt()))
        write(ledger, f"{payload['n']} at {attempt()}")
        if payload["n"] == 2 and attempt() == 1:
            raise ValueError(payload)

    subscribe_to("user-created", handle, name="handler")

    with ledger.relaying():
        blocked(number(1), number(2), number(3))

    assert runs == [(1, 1), (2, 1), (3, 1), (2, 2)]
    assert notes(ledger) == ["1 at 1", "2 at 2", "3 at 1"]


@pytest.mark.parametrize("is_ended", [False, True], ids=["refused", "ended by the database"])
def test_a_broken_transaction_is_undone_whole_and_each_goes_alone_at_no_cost(
    blocked: Callable[..., None], ledger: Ledger, is_ended: bool
) -> None:
    runs: list[tuple[int, int]] = []
    emitted: list[tuple[int, str]] = []

    def handle(payload: dict[str, int]) -> None:
        runs.append((payload["n"], attempt()))
        emitted.append((payload["n"], emit("copied", {}).id))
        write(ledger, f"{payload['n']}")
        if payload["n"] == 2 and runs.count((2, 1)) == 1:
            if is_ended:  # as MariaDB does with the transaction that it takes out of a deadlock
                with connections[ledger.alias].cursor() as cursor:
                    cursor.execute("ROLLBACK")
            raise OperationalError(1213, "Deadlock found")

    subscribe_to("user-created", handle, name="handler")

    blocked(number(1), number(2), number(3))

    assert {attempt for _, attempt in runs} == {1}
    assert [n for n, _ in runs] == [1, 2, 1, 2, 3]
    assert len(set(emitted)) == 3  # whose followers have seen an id drop it
    assert notes(ledger) == ["1", "2", "3"]


def test_whoever_lost_a_lease_leaves_nothing_behind_and_the_others_do(
    blocked: Callable[..., None], ledger: Ledger
) -> None:
    lost = number(2)

    def lose() -> None:
        row = ledger.row(event__event_id=lost.id)
        type(row).objects.using(ledger.alias).filter(pk=row.pk).update(lease="another's")

    subscribe_to("user-created", lambda payload: write(ledger, f"{payload['n']}"), name="handler")

    blocked(number(1), lost, number(3), meanwhile=lose, leaves=1)

    assert notes(ledger) == ["1", "3"]
    assert ledger.row().lease == "another's"


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_a_handler_wants_done_after_the_commit_is_its_own_affair(
    blocked: Callable[..., None],
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    runs: list[int] = []
    events = [number(1), number(2), number(3)]
    seen: list[str | None] = []

    def fail() -> None:
        raise error

    def look() -> None:
        event = current_event()
        seen.append(event.id if event is not None else None)

    def handle(payload: dict[str, int]) -> None:
        runs.append(payload["n"])
        write(ledger, f"{payload['n']}")
        if payload["n"] == 2:
            after_commit(ledger, fail)
        after_commit(ledger, look)

    subscribe_to("user-created", handle, name="handler")

    blocked(*events)

    # After one that raised, Django calls none of the rest: of its own handler's, that is.
    assert seen == [events[0].id, events[2].id]
    assert notes(ledger) == ["1", "2", "3"]
    assert runs == [1, 2, 3]
    assert [r.exc_info[0] for r in caplog.records if r.exc_info] == [error]


def test_what_is_emitted_in_a_shared_transaction_leaves_after_its_commit_and_has_its_cause(
    blocked: Callable[..., None], fleet: Fleet, ledger: Ledger
) -> None:
    limits = {"HANDLER_THREADS": 1}
    fleet(STORE=ledger.alias, INBOX=True, LIMITS=limits, tests="http://127.0.0.1:9/events/")
    events = [number(1), number(2), number(3)]
    emitted: dict[int, str] = {}

    def handle(payload: dict[str, int]) -> None:
        emitted[payload["n"]] = emit("copied", payload).id
        if payload["n"] == 2:
            raise Dead("not this one")

    def follow(payload: dict[str, int]) -> None:
        event = current_event()
        assert event is not None
        write(ledger, f"{payload['n']} by {event.cause}")

    subscribe_to("user-created", handle, name="handler")
    subscribe_to("copied", follow, name="follower")

    blocked(*events, leaves=1)
    eventually(lambda: len(notes(ledger)) == 2)

    assert notes(ledger) == [f"1 by {events[0].id}", f"3 by {events[2].id}"]
    assert len(set(emitted.values())) == 3


# Threads


def test_a_handler_that_takes_its_time_holds_up_nobody(fleet: Fleet, ledger: Ledger) -> None:
    fleet(STORE=ledger.alias, INBOX=True, LIMITS={"HANDLER_THREADS": 2})
    gate, done = threading.Event(), []

    def handle(payload: dict[str, int]) -> None:
        if payload["n"] == 30:
            assert gate.wait(20)
        done.append(payload["n"])

    subscribe_to("user-created", handle, name="handler", atomic=False)
    for n in range(60):
        arrive(number(n))
    eventually(lambda: len(done) == 59)
    gate.set()
    ledger.is_empty()


@pytest.mark.parametrize("atomic", [True, False])
def test_handlers_that_take_their_time_run_side_by_side(fleet: Fleet, ledger: Ledger, atomic: bool) -> None:
    if ledger.alias == "sqlite":
        atomic = False  # it lets only one transaction write
    fleet(STORE=ledger.alias, LIMITS={"HANDLER_THREADS": 4, "ANSWER_S": 20})
    together = threading.Barrier(4, timeout=20)
    quick: list[int] = []

    def handle(payload: dict[str, int]) -> None:
        if payload["n"] < 100:
            quick.append(payload["n"])
        else:
            together.wait()

    subscribe_to("user-created", handle, name="handler", atomic=atomic)
    arrived = [number(n) for n in (*range(100), *range(100, 104))]  # who seemed to be quick, and is not

    answers = asyncio.run(take_in_all(arrived))

    assert {answer.status for answer in answers} == {200}
    assert sorted(quick) == list(range(100))


# Batch handlers


def test_a_batch_handler_takes_all_that_waits(blocked: Callable[..., None], ledger: Ledger) -> None:
    calls_of: list[list[int]] = []
    events: list[Event | None] = []

    def handle_many(payloads: list[dict[str, int]]) -> None:
        calls_of.append([payload["n"] for payload in payloads])
        events.append(current_event())
        Note.objects.using(ledger.alias).bulk_create(Note(text=f"{payload['n']}") for payload in payloads)

    subscribe_to("user-created", handle_many, name="handler", batch=True)

    blocked(number(1), number(2), number(3))
    last = number(4)
    arrive(last)
    ledger.is_empty()

    assert calls_of == [[1, 2, 3], [4]]
    assert notes(ledger) == ["1", "2", "3", "4"]
    assert events[0] is None
    assert events[1] is not None
    assert events[1].id == last.id


def test_who_fails_in_a_batch_is_found_by_halves_and_keeps_nobody_from_their_effect(
    blocked: Callable[..., None], ledger: Ledger
) -> None:
    calls_of: list[list[int]] = []

    def handle_many(payloads: list[dict[str, int]]) -> None:
        calls_of.append([payload["n"] for payload in payloads])
        Note.objects.using(ledger.alias).bulk_create(Note(text=f"{payload['n']}") for payload in payloads)
        if 5 in calls_of[-1]:
            raise Dead("five is too many")

    subscribe_to("user-created", handle_many, name="handler", batch=True)

    blocked(*[number(n) for n in range(8)], leaves=1)

    assert calls_of == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
    assert notes(ledger) == [f"{n}" for n in range(8) if n != 5]
    ledger.has(1, state=State.DEAD)
    row = ledger.row()
    assert (row.attempts, bytes(row.event.payload)) == (1, b'{"n":5}')


def test_what_a_batch_handler_emits_ends_a_circle_after_sixteen_hops(
    blocked: Callable[..., None], ledger: Ledger
) -> None:
    ids: list[str] = []

    def handle_many(payloads: list[dict[str, int]]) -> None:
        ids.append(emit("copied", {}).id)

    subscribe_to("user-created", handle_many, name="handler", batch=True)

    blocked(number(1), replace(number(2), cause="c", hops=16), number(3))

    assert ids == [""]  # refused: one of them is at the end of its chain


@pytest.mark.parametrize("atomic", [True, False])
def test_a_batch_handler_takes_what_came_in_one_request_without_an_inbox(
    fleet: Fleet, ledger: Ledger, atomic: bool
) -> None:
    fleet(STORE=ledger.alias if atomic else None, LIMITS={"HANDLER_THREADS": 1})
    sizes: list[int] = []

    def handle_many(payloads: list[dict[str, int]]) -> None:
        sizes.append(len(payloads))
        if any(payload["n"] == 7 for payload in payloads):
            raise ValueError

    subscribe_to("user-created", handle_many, name="handler", batch=True, atomic=atomic)
    gate = threading.Event()
    subscribe_to("gate-closed", lambda payload: gate.wait(10.0), name="gate", atomic=atomic)

    async def while_the_thread_is_taken() -> list[Answer]:
        closed = asyncio.ensure_future(take_in_all([number(0, "gate-closed")]))
        taking = asyncio.ensure_future(take_in_all([number(n) for n in range(20)]))
        for _ in range(10):  # turns of the loop, after which all of them wait
            await asyncio.sleep(0)
        gate.set()
        await closed
        return await taking

    answers = asyncio.run(while_the_thread_is_taken())

    assert [answer.status for answer in answers].count(200) == 19
    assert answers[7].status == (202 if atomic else 503)
    assert sizes[0] == 20


def test_a_batch_handler_is_sync(fleet: Fleet) -> None:
    async def handle_many(payloads: list[Any]) -> None:
        raise NotImplementedError

    with pytest.raises(InvalidSubscription, match="is async: batch=True is for sync handlers"):
        subscribe_to("user-created", handle_many, name="handler", batch=True)


def test_a_batch_handler_that_only_looks_sync_is_told_so(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle_many(payloads: list[Any]) -> None:
        raise NotImplementedError

    fleet(STORE=None)
    subscribe_to("user-created", lambda payloads: handle_many(payloads), name="handler", batch=True)

    (answer,) = asyncio.run(take_in_all([number(1)]))

    assert answer.status == 503
    assert "batch=True is for sync handlers" in caplog.text
