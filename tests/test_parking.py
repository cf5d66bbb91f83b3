"""With both switches off: what could not be delivered is stored, and tried again until it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aevents import aemit, emit, emit_many
from aevents.models import State
from tests.ledger import Ledger
from tests.peers import Fleet, Peer, answers, answers_when_released, eventually, refusing

FAST = {"ATTEMPT_S": 5, "CONNECT_S": 1}


@pytest.fixture
def fleet(settings: Any, ledger: Ledger) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        yield found


async def test_what_a_service_that_is_down_misses_is_parked(fleet: Fleet, ledger: Ledger) -> None:
    with refusing() as nobody:
        fleet(payments=nobody, STORE=ledger.alias)

        emission = await aemit("user-created", {"n": 1})

    (result,) = emission.results
    assert (result.outcome, result.attempts) == ("parked", 3)
    assert emission.ok
    assert not emission.delivered


def test_what_is_parked_says_why_and_when_it_is_tried_again(fleet: Fleet, ledger: Ledger) -> None:
    with refusing() as nobody:
        fleet(payments=nobody, STORE=ledger.alias)

        emission = emit("user-created", {"n": 1})

    row = ledger.row()
    assert row.event.event_id == emission.id
    assert bytes(row.event.payload or b"") == b'{"n":1}'
    assert (row.target, row.state, row.attempts, row.lease) == ("payments", State.OWED, 1, "")
    assert "Cannot connect" in row.error
    assert row.error == emission.results[0].error


def test_what_is_parked_arrives_when_the_service_is_back_with_the_same_id(
    fleet: Fleet, ledger: Ledger
) -> None:
    with Peer(answers(503)) as peer:
        fleet(payments=peer, STORE=ledger.alias, LIMITS={"TRIES": 1})
        emission = emit("user-created", {"n": 1}, key="k")
        assert emission.results[0].outcome == "parked"
        peer.behave(answers(200))
        ledger.make_due()

        with ledger.relaying():
            peer.wait_for(2)
            ledger.is_empty()

    assert {request.id for request in peer.requests} == {emission.id}
    assert peer.requests[0].body == peer.requests[1].body
    assert {r.headers["ce-partitionkey"] for r in peer.requests} == {"k"}


def test_what_is_refused_for_good_is_kept_as_a_dead_letter(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers(410)) as peer:
        fleet(payments=peer, STORE=ledger.alias)

        emission = emit("user-created", {"n": 1})

    (result,) = emission.results
    assert result.outcome == "failed"
    assert "kept as a dead letter" in str(result.error)
    assert ledger.row().state == State.DEAD


def test_each_service_that_fails_is_owed_by_itself(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers(200)) as well, refusing() as nobody:
        fleet(payments=nobody, orders=well, mails=nobody, STORE=ledger.alias)

        emission = emit("user-created", {"n": 1})

    assert [r.outcome for r in emission.results] == ["parked", "delivered", "parked"]
    assert sorted(row.target for row in ledger.rows()) == ["mails", "payments"]


def test_what_takes_longer_than_a_call_is_stored_meanwhile_and_its_success_removes_it(
    fleet: Fleet, ledger: Ledger
) -> None:
    with Peer(answers_when_released(200)) as peer:
        fleet(payments=peer, STORE=ledger.alias, LIMITS={"CALL_S": 0.5, **FAST})

        emit("user-created", {"n": 1})

        ledger.has(1)
        assert ledger.row().lease != ""
        peer.release()
        ledger.is_empty()
    assert len(peer.requests) == 1


def test_what_takes_longer_than_a_call_and_then_fails_is_owed(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers_when_released(500)) as peer:
        fleet(payments=peer, STORE=ledger.alias, LIMITS={"CALL_S": 0.5, "TRIES": 1, **FAST})
        emit("user-created", {"n": 1})
        ledger.has(1)

        peer.release()

        eventually(lambda: ledger.row().lease == "")
    row = ledger.row()
    assert (row.attempts, row.state) == (1, State.OWED)
    assert "500" in row.error


def test_what_waits_longer_than_a_call_is_parked_and_leaves_the_memory(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers_when_released(200)) as peer:
        fleet(payments=peer, STORE=ledger.alias, LIMITS={"CALL_S": 0.5, "IN_FLIGHT": 2, **FAST})

        emit_many([("user-created", {"n": n}) for n in range(20)])

        ledger.has(20)
        assert len(ledger.rows(lease="")) == 18
        peer.release()
        with ledger.relaying():
            ledger.is_empty()
    assert sorted(request.payload["n"] for request in peer.requests) == list(range(20))


def test_what_is_over_the_bound_is_parked(fleet: Fleet, ledger: Ledger) -> None:
    with Peer(answers_when_released(200)) as peer:
        fleet(payments=peer, STORE=ledger.alias, LIMITS={"IN_FLIGHT": 1, "WAITING": 2, "CALL_S": 1.0, **FAST})
        threads = [threading.Thread(target=emit, args=("user-created", {"n": n})) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ledger.has(10)
        peer.release()
        ledger.make_due(lease="")
        with ledger.relaying():
            ledger.make_due(lease="")
            eventually(lambda: len(peer.requests) >= 10 or ledger.make_due(lease=""))
            ledger.is_empty()
    assert sorted({request.payload["n"] for request in peer.requests}) == list(range(10))


def test_a_name_the_settings_do_not_know_yet_is_parked_and_left_alone(fleet: Fleet, ledger: Ledger) -> None:
    fleet(SUBSCRIPTIONS={"*": ["nobody"]}, STORE=ledger.alias)

    (result,) = emit("user-created", {"n": 1}).results

    assert result.outcome == "parked"
    ledger.make_due()
    with ledger.relaying():
        threading.Event().wait(0.3)
    assert (ledger.row().target, ledger.row().attempts, ledger.row().lease) == ("nobody", 0, "")


def test_the_end_of_the_process_parks_what_is_under_way(fleet: Fleet, ledger: Ledger) -> None:
    from aevents.courier import courier

    with Peer(answers_when_released(200)) as peer:
        fleet(
            payments=peer, STORE=ledger.alias, LIMITS={"IN_FLIGHT": 1, "CALL_S": 0.2, "EXIT_S": 0.2, **FAST}
        )
        emit_many([("user-created", {"n": n}) for n in range(3)])

        courier.end()

        ledger.has(3)
        assert ledger.rows(lease="") == ledger.rows()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_without_tables_it_is_failed_with_the_mend(fleet: Fleet, ledger: Ledger, caplog: Any) -> None:
    from django.db import connections

    with connections[ledger.alias].cursor() as cursor:
        cursor.execute("ALTER TABLE aevents_storedevent RENAME TO hidden")
    try:
        with refusing() as nobody:
            fleet(payments=nobody, STORE=ledger.alias)
            (result,) = emit("user-created", {"n": 1}).results
    finally:
        with connections[ledger.alias].cursor() as cursor:
            cursor.execute("ALTER TABLE hidden RENAME TO aevents_storedevent")
    assert result.outcome == "failed"
    assert "manage.py migrate aevents" in str(result.error)
    assert any("manage.py migrate" in record.getMessage() for record in caplog.records)
