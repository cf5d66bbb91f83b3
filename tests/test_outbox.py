"""With OUTBOX: event and data commit together or not at all, and what is committed arrives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from aevents import aemit, aemit_many, claims, emit, emit_many
from aevents.models import State, StoredEvent
from tests.ledger import Ledger
from tests.peers import Fleet, Peer, answers, answers_when_released, eventually, refusing
from tests.project.models import Note


@pytest.fixture
def fleet(settings: Any, ledger: Ledger) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        yield found


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as found:
        yield found


def test_what_is_committed_arrives(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    with transaction.atomic(using=ledger.alias):
        emission = emit("user-created", {"n": 1})
        assert peer.requests == []
        assert StoredEvent.objects.using(ledger.alias).count() == 1

    assert [r.outcome for r in emission.results] == ["queued"]
    assert peer.wait_for(1)[0].id == emission.id
    ledger.is_empty()


def test_what_is_rolled_back_is_neither_stored_nor_sent(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    with ledger.rolled_back():
        emit("user-created", {"n": 1})
    with transaction.atomic(using=ledger.alias):
        with ledger.rolled_back():  # a savepoint
            emit("user-created", {"n": 2})
        emit("user-created", {"n": 3})

    assert [request.payload for request in peer.wait_for(1)] == [{"n": 3}]
    ledger.is_empty()
    assert len(peer.requests) == 1


def test_what_is_committed_survives_the_process_that_emitted_it(
    fleet: Fleet, ledger: Ledger, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aevents.courier import courier

    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)
    monkeypatch.setattr(courier, "ship", lambda *_: None)  # the process ends after its commit
    with transaction.atomic(using=ledger.alias):
        emit("user-created", {"n": 1})
    monkeypatch.undo()
    assert ledger.row().lease != ""

    with ledger.relaying():
        threading.Event().wait(0.1)
        assert peer.requests == []  # the lease lasts
        ledger.make_due()
        peer.wait_for(1)
        ledger.is_empty()


@pytest.mark.parametrize("services", [1, 30])
def test_it_costs_one_or_two_statements_whatever_the_number_of_services(
    fleet: Fleet, ledger: Ledger, peer: Peer, services: int
) -> None:
    fleet(**{f"s{n}": peer for n in range(services)}, STORE=ledger.alias, OUTBOX=True)

    atomic, capture = transaction.atomic(using=ledger.alias), CaptureQueriesContext(connections[ledger.alias])
    with atomic, capture as queries:
        emit("user-created", {"n": 1})

    assert len(queries) == (1 if ledger.alias == "postgresql" else 2)
    peer.wait_for(services)
    ledger.is_empty()


def test_many_events_cost_two_statements(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(a=peer, b=peer, STORE=ledger.alias, OUTBOX=True)

    atomic, capture = transaction.atomic(using=ledger.alias), CaptureQueriesContext(connections[ledger.alias])
    with atomic, capture as queries:
        emissions = emit_many([("user-created", {"n": n}) for n in range(20)])

    assert len(queries) == 2
    assert len(peer.wait_for(40)) == 40
    assert {request.id for request in peer.requests} == {emission.id for emission in emissions}
    ledger.is_empty()


def test_only_the_types_that_it_names_go_by_the_outbox(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers_when_released(200)) as held:
        fleet(a=held, STORE=ledger.alias, OUTBOX=["order-*", "paid"], LIMITS={"CALL_S": 30})
        with transaction.atomic(using=ledger.alias):
            emit_many([("order-placed", {}), ("user-created", {}), ("paid", {})])
            assert sorted(row.event.type for row in ledger.rows()) == ["order-placed", "paid"]
        assert len(held.wait_for(3)) == 3
        held.release()
        ledger.is_empty()


def test_outside_of_a_transaction_it_is_stored_and_handed_over(
    fleet: Fleet, ledger: Ledger, peer: Peer
) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    (result,) = emit("user-created", {"n": 1}).results

    assert result.outcome == "queued"
    peer.wait_for(1)
    ledger.is_empty()


async def test_aemit_commits_its_own_row_and_then_returns(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers_when_released(200)) as held:
        fleet(payments=held, STORE=ledger.alias, OUTBOX=True)

        emissions = await aemit_many([("user-created", {"n": n}) for n in range(3)])

        assert {r.outcome for e in emissions for r in e.results} == {"queued"}
        assert len(await sync_to_async(ledger.rows)()) == 3
        held.release()
        await sync_to_async(ledger.is_empty)()


async def test_many_aemits_at_once_all_arrive(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    emissions = await asyncio.gather(*(aemit("user-created", {"n": n}) for n in range(200)))

    assert all(e.ok for e in emissions)
    await sync_to_async(peer.wait_for)(200)
    assert {request.id for request in peer.requests} == {e.id for e in emissions}
    await sync_to_async(ledger.is_empty)()


def test_a_service_that_is_down_is_tried_once_and_then_by_the_schedule(fleet: Fleet, ledger: Ledger) -> None:
    with refusing() as nobody:
        fleet(payments=nobody, STORE=ledger.alias, OUTBOX=True)
        emit("user-created", {"n": 1})

        eventually(lambda: ledger.row().attempts == 1)
    row = ledger.row()
    assert (row.state, row.lease) == (State.OWED, "")
    assert "Cannot connect" in row.error


def test_after_the_last_try_it_is_dead_and_kept(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers(500)) as peer:
        fleet(payments=peer, STORE=ledger.alias, OUTBOX=True, SCHEDULE=[0.01, 0.01])
        with ledger.relaying():
            emit("user-created", {"n": 1})
            eventually(lambda: ledger.row().state == State.DEAD)

    assert len(peer.requests) == 3
    assert ledger.row().attempts == 3


@pytest.mark.parametrize(
    ("status", "state", "refusals"), [(404, State.OWED, 1), (401, State.OWED, 0), (410, State.DEAD, 0)]
)
def test_what_only_a_person_can_heal_waits_for_minutes(
    fleet: Fleet, ledger: Ledger, status: int, state: State, refusals: int
) -> None:
    with Peer(answers(status)) as peer:
        fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)
        emit("user-created", {"n": 1})
        eventually(lambda: ledger.row().attempts == 1)

    row = ledger.row()
    assert (row.state, row.refusals) == (state, refusals)
    if state == State.OWED:
        assert row.due_ms - row.changed_ms >= 60_000


def test_what_has_the_same_key_arrives_in_its_order(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers(200), answers(503), answers(200)) as peer:
        fleet(payments=peer, STORE=ledger.alias, OUTBOX=True, SCHEDULE=[0.01] * 9)
        with ledger.relaying():
            for n in range(12):
                with transaction.atomic(using=ledger.alias):
                    emit("user-changed", {"n": n}, key="user-7")
            ledger.look()
            peer.wait_for(13)
            ledger.is_empty()

    arrived = [request.payload["n"] for request in peer.requests]
    assert arrived[1] == arrived[2] == 1  # the one that failed was tried again before the next
    assert list(dict.fromkeys(arrived)) == list(range(12))


def test_a_database_error_of_the_callers_transaction_passes(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    with pytest.raises(TransactionManagementError):
        _emit_in_a_broken_transaction(ledger.alias)

    assert ledger.rows() == []
    assert peer.requests == []


def _emit_in_a_broken_transaction(alias: str) -> None:
    with transaction.atomic(using=alias):
        try:
            with transaction.atomic(using=alias, savepoint=False):
                Note.objects.using(alias).create(pk=1, text="x")
                Note.objects.using(alias).create(pk=1, text="y")
        except DatabaseError:
            pass
        emit("user-created", {"n": 1})


def test_a_wrong_call_leaves_the_transaction_usable(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)

    with transaction.atomic(using=ledger.alias):
        assert not emit("user-created", {"n": object()}).ok
        assert not emit("x" * 300, {}).ok
        emit("user-created", {"n": 2})

    assert [request.payload for request in peer.wait_for(1)] == [{"n": 2}]


def test_a_transaction_that_outlives_the_lease_hands_nothing_over_from_memory(
    fleet: Fleet, ledger: Ledger, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aevents import store

    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)
    monkeypatch.setattr(store, "lease_s", lambda: 0.0)
    with transaction.atomic(using=ledger.alias):
        emit("user-created", {"n": 1})
    monkeypatch.undo()
    threading.Event().wait(0.1)
    assert peer.requests == []

    with ledger.relaying():
        peer.wait_for(1)
        ledger.is_empty()
    assert len(peer.requests) == 1


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_with_the_database_down_and_no_transaction_open_it_is_sent_directly(
    fleet: Fleet, ledger: Ledger, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)
    wrong = {**connections.settings[ledger.alias], "PORT": "1"}
    monkeypatch.setitem(connections.settings, ledger.alias, wrong)

    (result,) = emit("user-created", {"n": 1}).results

    assert result.outcome == "delivered"
    assert len(peer.requests) == 1


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_with_database_and_service_down_it_is_not_lost_while_the_process_lives(
    fleet: Fleet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing() as nobody:
        fleet(payments=nobody, STORE=ledger.alias, OUTBOX=True, LIMITS={"CALL_S": 2})
        wrong = {**connections.settings[ledger.alias], "PORT": "1"}
        with monkeypatch.context() as patch:
            patch.setitem(connections.settings, ledger.alias, wrong)
            (result,) = emit("user-created", {"n": 1}).results
            assert result.outcome == "queued"
        _forget_connections(ledger.alias)
        ledger.has(1)


def _forget_connections(alias: str) -> None:
    """Let the store's thread see the settings anew: its connection object has the old ones."""
    from aevents.keeper import keeper

    keeper.put(lambda items: [delattr_safely(alias)] * len(items), None)


def delattr_safely(alias: str) -> None:
    if hasattr(connections._connections, alias):  # type: ignore[attr-defined]
        delattr(connections._connections, alias)  # type: ignore[attr-defined]


def test_a_row_that_cannot_be_sent_is_dead_at_once_and_the_others_go_on(
    fleet: Fleet, ledger: Ledger, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aevents import wire
    from tests.test_store import an_event, store_one

    encode = wire.encode

    def fail_for_one(event: Any) -> Any:
        if event.type == "poison":
            raise ValueError("no wire takes that")
        return encode(event)

    fleet(payments=peer, STORE=ledger.alias)
    for event_type in ("user-created", "poison", "user-created"):
        store_one("payments", event=an_event(event_type))
    monkeypatch.setattr(wire, "encode", fail_for_one)

    with ledger.relaying():
        peer.wait_for(2)
        eventually(lambda: [row.state for row in ledger.rows()] == [State.DEAD])
    assert "no wire takes that" in ledger.row().error


def test_what_is_paused_is_held_back_from_the_first_try_on(fleet: Fleet, ledger: Ledger, peer: Peer) -> None:
    from aevents import upkeep
    from aevents.tables import OUT

    fleet(payments=peer, STORE=ledger.alias, OUTBOX=True)
    upkeep.pause(OUT, "payments")
    with ledger.relaying():
        eventually(lambda: claims.is_paused(OUT, "payments"))
        emit("user-created", {"n": 1})
        ledger.has(1, lease="")
        assert peer.requests == []

        upkeep.resume(OUT, "payments")

        peer.wait_for(1)
        ledger.is_empty()
