"""`emit` inside `atomic()`: nothing before the commit, nothing after a rollback, nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from aevents import aemit, calls, emit, emit_many, flush, subscribe_to, suppressed, tables
from tests.peers import Fleet, Peer, hangs
from tests.project.models import Note

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class RollBack(Exception):
    """Raised by these tests, to leave a block the other way."""


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
def peer(fleet: Fleet) -> Iterator[Peer]:
    with Peer() as peer:
        fleet(payments=peer)
        yield peer


def sent(peer: Peer) -> list[Any]:
    """Return the payloads that left, when nothing more is on its way."""
    assert flush()
    return [request.payload["n"] for request in peer.requests]


def close_connection() -> None:
    """Close what Django keeps open for ever: this thread's connection to the in-memory database."""
    BaseDatabaseWrapper.close(connections["default"])


@contextlib.contextmanager
def rolled_back(using: str = "default") -> Iterator[None]:
    """A block that ends in a rollback, which it keeps to itself."""
    with contextlib.suppress(RollBack), transaction.atomic(using=using):
        yield
        raise RollBack


# One database


def test_nothing_leaves_before_the_commit(peer: Peer) -> None:
    with transaction.atomic():
        emission = emit("noted", {"n": 1})
        Note.objects.create(text="1")

        assert emission.ok
        assert [r.outcome for r in emission.results] == ["queued"]
        assert sent(peer) == []

    assert sent(peer) == [1]
    assert peer.requests[0].id == emission.id


def test_nothing_leaves_after_a_rollback(peer: Peer) -> None:
    with rolled_back():
        emission = emit("noted", {"n": 1})
        emit_many([("noted", {"n": 2}), ("noted", {"n": 3})])

    assert emission.ok
    assert sent(peer) == []


def test_the_payload_of_the_call_is_sent_and_not_that_of_the_commit(peer: Peer) -> None:
    payload = {"n": 1}
    with transaction.atomic():
        emit("noted", payload)
        payload["n"] = 2

    assert sent(peer) == [1]


def test_a_savepoint_rolled_back_takes_only_its_own_events_along(peer: Peer) -> None:
    with transaction.atomic():
        emit("noted", {"n": 1})
        with rolled_back():
            emit("noted", {"n": 2})
            with transaction.atomic():
                emit("noted", {"n": 3})
        with transaction.atomic():
            emit("noted", {"n": 4})
            with rolled_back():
                emit("noted", {"n": 5})
        emit("noted", {"n": 6})
        assert sent(peer) == []

    assert sorted(sent(peer)) == [1, 4, 6]


def test_a_committed_savepoint_inside_a_rollback_sends_nothing(peer: Peer) -> None:
    with rolled_back(), transaction.atomic():
        emit("noted", {"n": 1})

    assert sent(peer) == []


def test_a_block_without_savepoint_that_fails_takes_the_whole_transaction_along(peer: Peer) -> None:
    with transaction.atomic():
        emit("noted", {"n": 1})
        with contextlib.suppress(RollBack), transaction.atomic(savepoint=False):
            emit("noted", {"n": 2})
            raise RollBack

        # Then the transaction is broken: every query raises, emit does not
        broken = emit("noted", {"n": 3})
        with pytest.raises(transaction.TransactionManagementError):
            Note.objects.count()

    assert broken.ok
    assert sent(peer) == []


def test_a_transaction_marked_for_rollback_raises_nothing_and_sends_nothing(peer: Peer) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        assert emit("noted", {"n": 1}).results[0].outcome == "queued"

    assert sent(peer) == []


def test_outside_of_a_block_an_event_leaves_at_once(peer: Peer) -> None:
    with transaction.atomic():
        Note.objects.create(text="1")

    assert emit("noted", {"n": 1}).delivered


def test_with_autocommit_switched_off_there_is_no_block_and_an_event_leaves_at_once(peer: Peer) -> None:
    # Given a transaction of the caller's own making
    transaction.set_autocommit(False)
    try:
        Note.objects.create(text="1")

        # When it emits, the event leaves
        assert emit("noted", {"n": 1}).delivered
        assert sent(peer) == [1]
        # And a rollback does not take it back
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert not Note.objects.exists()
    assert sent(peer) == [1]


def test_many_events_of_one_transaction_all_leave(peer: Peer) -> None:
    with transaction.atomic():
        for n in range(50):
            emit("noted", {"n": n})

    assert sorted(sent(peer)) == list(range(50))


def test_events_leave_in_the_order_of_the_calls_whatever_block_they_were_made_in(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer, LIMITS={"IN_FLIGHT": 1})
        with transaction.atomic():
            emit("noted", {"n": 1})
            with transaction.atomic():
                emit("noted", {"n": 2})
            emit_many([("noted", {"n": 3}), ("noted", {"n": 4})])

        assert sent(peer) == [1, 2, 3, 4]


def test_a_wrong_call_inside_a_transaction_is_no_event(peer: Peer) -> None:
    with transaction.atomic():
        emit_many([("noted", {"n": 1}), ("noted", object()), ("noted", {"n": 2})])

    assert sorted(sent(peer)) == [1, 2]


# Commit hooks


def test_a_hook_of_the_commit_may_emit(peer: Peer) -> None:
    emissions = []
    with transaction.atomic():
        transaction.on_commit(lambda: emissions.append(emit("noted", {"n": 1})))
        assert sent(peer) == []

    # A hook runs after the commit, so this is an emit like any other
    assert emissions[0].delivered


def test_a_hook_that_raises_does_not_stop_an_event_emitted_before_it(peer: Peer) -> None:
    def fail() -> None:
        raise RollBack

    with contextlib.suppress(RollBack), transaction.atomic():
        emit("noted", {"n": 1})
        transaction.on_commit(fail)

    assert sent(peer) == [1]


def test_a_robust_hook_that_raises_stops_no_event(peer: Peer) -> None:
    def fail() -> None:
        raise RollBack

    with transaction.atomic():
        transaction.on_commit(fail, robust=True)
        emit("noted", {"n": 1})

    assert sent(peer) == [1]


def test_the_commit_waits_for_nobody(fleet: Fleet) -> None:
    with Peer(hangs) as peer:
        fleet(payments=peer)
        began = time.monotonic()

        with transaction.atomic():
            for n in range(20):
                emit("noted", {"n": n})

        assert time.monotonic() - began < 3  # a call's time would be 5 s
        assert peer.wait_for(16)


def test_events_that_cannot_be_handed_over_at_the_commit_break_nothing(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a process that can start no thread any more
    def fail(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)

    with transaction.atomic():
        emit("noted", {"n": 1})
        Note.objects.create(text="1")

    assert Note.objects.count() == 1
    assert "the courier does not run: can't start new thread" in caplog.text


def test_what_is_suppressed_at_the_commit_only_is_not_suppressed_nor_are_its_followers(fleet: Fleet) -> None:
    async def handler(payload: Any) -> None:
        await aemit("noted", payload)

    subscribe_to("asked", handler, name="handler")
    with Peer() as peer:
        fleet(payments=peer, SUBSCRIPTIONS={"asked": ["tests"], "noted": ["payments"]})
        block = transaction.atomic()
        block.__enter__()
        emit("noted", {"n": 1})
        emit("asked", {"n": 2})
        with suppressed("import"):
            emit("noted", {"n": 3})
            block.__exit__(None, None, None)

        assert sorted(sent(peer)) == [1, 2]


# Two databases


BOTH_ORDERS = pytest.mark.parametrize(("outer", "inner"), [("default", "other"), ("other", "default")])


@BOTH_ORDERS
@pytest.mark.parametrize(("ends_well", "inner_ends_well"), list(itertools.product([True, False], repeat=2)))
def test_an_event_waits_for_every_database_and_leaves_only_when_all_committed(
    outer: str, inner: str, ends_well: bool, inner_ends_well: bool, peer: Peer
) -> None:
    def block(well: bool, using: str) -> contextlib.AbstractContextManager[None]:
        return transaction.atomic(using=using) if well else rolled_back(using)

    with block(ends_well, outer):
        with block(inner_ends_well, inner):
            emission = emit("noted", {"n": 1})
        assert sent(peer) == []
        # Emitted after the inner block: waits for the outer alone
        emit("noted", {"n": 2})

    assert emission.results[0].outcome == "queued"
    expected = ([1] if ends_well and inner_ends_well else []) + ([2] if ends_well else [])
    assert sorted(sent(peer)) == expected


@BOTH_ORDERS
def test_a_savepoint_of_one_of_two_databases_takes_the_event_along(
    outer: str, inner: str, peer: Peer
) -> None:
    with transaction.atomic(using=outer), transaction.atomic(using=inner):
        with rolled_back(outer):
            emit("noted", {"n": 1})
        with rolled_back(inner):
            emit("noted", {"n": 2})
        emit("noted", {"n": 3})

    assert sent(peer) == [3]


def test_blocks_that_end_in_the_order_they_began_count_the_same(peer: Peer) -> None:
    # Given two blocks that are not nested but overlap
    first, second = transaction.atomic(using="default"), transaction.atomic(using="other")
    first.__enter__()
    second.__enter__()
    emit("noted", {"n": 1})
    emit("noted", {"n": 2})

    first.__exit__(None, None, None)
    assert sent(peer) == []
    second.__exit__(None, None, None)
    assert sorted(sent(peer)) == [1, 2]


def test_a_database_in_another_threads_transaction_does_not_matter(peer: Peer) -> None:
    emissions = []
    with transaction.atomic(using="default"), transaction.atomic(using="other"):
        thread = threading.Thread(target=lambda: emissions.append(emit("noted", {"n": 1})))
        thread.start()
        thread.join()

        assert emissions[0].delivered


# Requests


def view(request: HttpRequest) -> HttpResponse:
    emission = emit("noted", {"n": int(request.GET["n"])})
    Note.objects.create(text=request.GET["n"])
    if "fails" in request.GET:
        raise RollBack
    return HttpResponse(emission.results[0].outcome)


async def async_view(request: HttpRequest) -> HttpResponse:
    """Data and event together from async code: one sync function, as the README shows it."""
    return await sync_to_async(in_one_transaction)(request)


@transaction.atomic
def in_one_transaction(request: HttpRequest) -> HttpResponse:
    return view(request)


async def aemit_view(request: HttpRequest) -> HttpResponse:
    emission = await aemit("noted", {"n": int(request.GET["n"])})
    return HttpResponse(emission.results[0].outcome)


urlpatterns = [path("sync/", view), path("async/", async_view), path("aemit/", aemit_view)]


@pytest.fixture
def client(settings: Any) -> Client:
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["testserver"]
    return Client(raise_request_exception=False)


@pytest.mark.usefixtures("peer")
def test_a_view_under_atomic_requests_sends_with_its_data_or_not_at_all(
    client: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)

    good = client.get("/sync/?n=1")
    bad = client.get("/sync/?n=2&fails")

    assert (good.status_code, good.content, bad.status_code) == (200, b"queued", 500)
    assert sent(peer) == [1]
    assert [note.text for note in Note.objects.all()] == ["1"]


def test_data_and_event_go_together_from_async_code(client: Client, peer: Peer) -> None:
    good = client.get("/async/?n=1")
    bad = client.get("/async/?n=2&fails")

    assert (good.status_code, good.content, bad.status_code) == (200, b"queued", 500)
    assert sent(peer) == [1]
    assert [note.text for note in Note.objects.all()] == ["1"]


def test_aemit_joins_no_transaction(client: Client, peer: Peer) -> None:
    # Django runs an async view in the thread that holds the transaction of its sync caller
    with transaction.atomic():
        response = client.get("/aemit/?n=1")

        assert response.content == b"delivered"
        assert sent(peer) == [1]


async def test_emit_through_sync_to_async_waits_for_that_threads_commit(peer: Peer) -> None:
    def work() -> None:
        with transaction.atomic():
            emit("noted", {"n": 1})
            assert sent(peer) == []
        close_connection()

    await sync_to_async(work)()

    assert await asyncio.to_thread(sent, peer) == [1]


@pytest.mark.parametrize("back", [False, True], ids=["on the loop", "through sync_to_async"])
def test_emit_behind_async_to_sync_knows_the_callers_transaction_only_in_the_callers_thread(
    peer: Peer, back: bool
) -> None:
    # Given async code, which async_to_sync runs on a loop in another thread
    async def work() -> None:
        if back:
            await sync_to_async(emit)("noted", {"n": 1})
        else:
            emit("noted", {"n": 1})

    # When it is called inside a transaction
    with transaction.atomic():
        async_to_sync(work)()
        # Then what is emitted in that thread leaves at once
        assert sent(peer) == ([] if back else [1])

    assert sent(peer) == [1]


# One's own handlers


def test_what_a_handler_emits_waits_for_the_handlers_own_transaction(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(payload: Any) -> None:
        Note.objects.create(text="from the handler")
        emit("answered", {"n": 1})
        if payload["fails"]:
            raise RollBack

    subscribe_to("asked", first, name="first")
    with Peer() as peer:
        fleet(
            payments=peer,
            SUBSCRIPTIONS={"asked": ["tests"], "answered": ["payments"]},
            LIMITS={"HANDLER_THREADS": 1},
            STORE="default",
        )
        # No tables here to keep what the handler still owes: its failure comes back to the emitter.
        monkeypatch.setattr(tables, "why_not", lambda: "there are no tables")

        failed = emit("asked", {"fails": True})
        assert not failed.ok
        assert sent(peer) == []
        assert Note.objects.count() == 0

        assert emit("asked", {"fails": False}).delivered
        assert sent(peer) == [1]
        assert Note.objects.count() == 1
        calls._threads.pool.submit(close_connection).result()
