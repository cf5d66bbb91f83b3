"""What waits travels together, to those who offered to take it, and each event has its own end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from aevents import batch, emit, emit_many, flush, store, wire
from aevents.backlog import Backlog, Load
from aevents.convoy import Convoy
from aevents.courier import courier
from aevents.emission import Emission
from aevents.event import Event, Message, new_id
from aevents.shipment import pack
from aevents.store import Entry, Owed
from aevents.tables import OUT
from aevents.transports.base import Destination
from aevents.transports.memory import MemoryTransport
from tests.ledger import Ledger
from tests.peers import Behaviour, Exchange, Fleet, Peer, Request, closes, eventually, hangs


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


def hand_over(*numbers: int) -> None:
    async def call() -> None:
        emit_many([("noted", {"n": n}) for n in numbers])

    asyncio.run(call())


def emit_all(*numbers: int) -> list[Emission]:
    return emit_many([("noted", {"n": n}) for n in numbers])


def events_of(request: Request) -> list[Event]:
    message = Message(request.headers, request.body)
    if not batch.is_one(request.headers):
        return [wire.decode(message)]
    found = batch.decode(message)
    assert all(isinstance(each, Event) for each in found)
    return found  # type: ignore[return-value]  # they are


def numbers_of(request: Request) -> list[int]:
    return [event.payload["n"] for event in events_of(request)]


def says(**verdicts: tuple[int, int]) -> Behaviour:
    """Take everything but what is named: `n3=(503, 0)` answers so of the event whose number is 3."""

    async def behave(exchange: Exchange) -> None:
        listed = [
            {"id": event.id, "status": status, "detail": "not now", "retry_after_s": wait_s}
            for event in events_of(exchange.request)
            for status, wait_s in [verdicts.get(f"n{event.payload['n']}", (200, 0))]
            if status != 200
        ]
        await exchange.answer(200, orjson.dumps({"events": listed}), accept_post=batch.OFFER)

    return behave


takes = says()


async def takes_when_released(exchange: Exchange) -> None:
    await exchange.peer.released.wait()
    await takes(exchange)


def only_singly(status: int) -> Behaviour:
    """Offer batches, and refuse them."""

    async def behave(exchange: Exchange) -> None:
        is_batch = batch.is_one(exchange.request.headers)
        await exchange.answer(status if is_batch else 200, accept_post=batch.OFFER)

    return behave


def in_batches(behave: Behaviour) -> Behaviour:
    """Do so with batches, and take single events."""

    async def behave_so(exchange: Exchange) -> None:
        await (behave if batch.is_one(exchange.request.headers) else takes)(exchange)

    return behave_so


# What travels together


def test_an_idle_lane_sends_single_events_whatever_was_offered(fleet: Fleet) -> None:
    with Peer(takes) as peer:
        fleet(payments=peer)
        for n in range(5):
            assert emit("noted", {"n": n}).delivered
        assert [request.body for request in peer.requests] == [
            b'{"event_type":"noted","payload":{"n":%d}}' % n for n in range(5)
        ]


def test_what_waits_while_two_requests_are_under_way_goes_in_the_next_in_order(fleet: Fleet) -> None:
    with Peer(takes, takes_when_released) as peer:
        # Given a service that offered, and two requests under way
        fleet(payments=peer)
        emit("noted", {"n": 0})
        hand_over(1)
        peer.wait_for(2)
        hand_over(2)
        peer.wait_for(3)
        # When more come, one by one
        for n in range(3, 60):
            hand_over(n)
        assert not flush(0.05)
        assert len(peer.requests) == 3
        # Then all of them leave together as soon as one has been answered
        peer.release()
        assert flush()
        assert [numbers_of(request) for request in peer.requests] == [[0], [1], [2], list(range(3, 60))]
        assert peer.most_at_once == 2


def test_who_did_not_offer_gets_every_event_alone(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})
        assert all(emission.delivered for emission in emit_all(*range(1, 50)))
        assert [len(numbers_of(request)) for request in peer.requests] == [1] * 50


def test_who_offers_no_longer_gets_every_event_alone_again(fleet: Fleet) -> None:
    async def offers_no_longer(exchange: Exchange) -> None:
        await exchange.answer(200)

    with Peer(takes, takes, offers_no_longer) as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})
        for numbers in ([1, 2, 3], [4, 5], [6, 7, 8]):
            assert all(emission.delivered for emission in emit_all(*numbers))
        assert [len(numbers_of(r)) for r in peer.requests] == [1, 3, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("limits", "size"),
    [({"BATCH": 10}, 10), ({"BATCH": 1}, 1), ({"BODY_BYTES": 20_000}, 24), ({"BODY_BYTES": 100}, 1)],
)
def test_a_batch_is_bounded_in_number_and_bytes(limits: dict[str, int], size: int, fleet: Fleet) -> None:
    with Peer(takes) as peer:
        fleet(payments=peer, LIMITS=limits)
        emit("noted", {"n": 0})

        assert all(emission.delivered for emission in emit_all(*range(1, 61)))

        sent = sorted(map(numbers_of, peer.requests))  # two are under way: either may come first
        assert max(map(len, sent)) == size
        assert [n for numbers in sent for n in numbers] == list(range(61))


# Each its own end


def test_each_event_has_its_own_verdict(fleet: Fleet) -> None:
    with Peer(takes, says(n2=(410, 0), n3=(401, 0))) as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})

        emissions = emit_all(1, 2, 3, 4)

        assert [e.results[0].outcome for e in emissions] == ["delivered", "failed", "failed", "delivered"]
        assert [e.results[0].attempts for e in emissions] == [1, 1, 1, 1]
        assert "answered 410: 'not now'" in str(emissions[1].results[0].error)
        assert [numbers_of(request) for request in peer.requests] == [[0], [1, 2, 3, 4]]


def test_what_failed_in_a_batch_is_tried_again_alone_within_its_call(fleet: Fleet) -> None:
    with Peer(takes, says(n2=(503, 0)), takes) as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})

        emissions = emit_all(1, 2, 3)

        assert [e.results[0].outcome for e in emissions] == ["delivered"] * 3
        assert [e.results[0].attempts for e in emissions] == [1, 2, 1]
        assert [numbers_of(request) for request in peer.requests] == [[0], [1, 2, 3], [2]]
        assert peer.requests[2].id == events_of(peer.requests[1])[1].id


@pytest.mark.parametrize("status", [400, 404, 413, 415])
def test_a_batch_that_is_refused_as_one_is_sent_again_singly_and_spends_no_attempt(
    status: int, fleet: Fleet
) -> None:
    with Peer(only_singly(status)) as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})

        emissions = [*emit_all(*range(1, 40)), *emit_all(40, 41)]

        assert [e.results[0].outcome for e in emissions] == ["delivered"] * 41
        assert [e.results[0].attempts for e in emissions] == [1] * 41
        batches = [request for request in peer.requests if batch.is_one(request.headers)]
        assert len(batches) == 1
        assert len(peer.requests) == 1 + 1 + 41


@pytest.mark.parametrize("behave", [closes, in_batches(closes)])
def test_a_batch_that_fails_is_an_attempt_for_each_and_one_failure_of_the_service(
    behave: Behaviour, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(takes) as peer:
        fleet(payments=peer, LIMITS={"TRIES": 1})
        emit("noted", {"n": 0})
        peer.behave(behave)

        for _ in range(2):
            emissions = emit_all(*range(20))
            assert [e.results[0].attempts for e in emissions] == [1] * 20
            assert not any(e.ok for e in emissions)

        # Each batch is sent once more at once where its connection was an old one: that is no try
        assert "is down" not in caplog.text


def test_a_batch_without_an_answer_is_given_up_and_its_events_go_on_alone(fleet: Fleet) -> None:
    with Peer(in_batches(hangs)) as peer:
        fleet(payments=peer, LIMITS={"ATTEMPT_S": 0.3})
        emit("noted", {"n": 0})

        emissions = emit_all(1, 2, 3)

        assert [(e.results[0].outcome, e.results[0].attempts) for e in emissions] == [("delivered", 2)] * 3


def test_an_answer_that_cannot_be_read_is_no_receipt(fleet: Fleet) -> None:
    async def babbles(exchange: Exchange) -> None:
        await exchange.answer(200, b'{"events":[{"id":', accept_post=batch.OFFER)

    async def cuts_it_short(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        exchange.writer.close()

    for behave in (babbles, cuts_it_short):
        with Peer(in_batches(behave)) as peer:
            fleet(payments=peer)
            emit("noted", {"n": 0})
            emissions = emit_all(1, 2)
            assert [(e.results[0].outcome, e.results[0].attempts) for e in emissions] == [
                ("delivered", 2),
                ("delivered", 2),
            ]


def test_the_end_of_the_process_ends_each_event_of_a_batch(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(in_batches(hangs)) as peer:
        fleet(payments=peer)
        emit("noted", {"n": 0})
        hand_over(1, 2, 3)
        peer.wait_for(2)

        assert courier.close(0.0) == 3

        lost = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert len([text for text in lost if "the process ended" in text]) == 3


# What is stored


def stored(*numbers: int) -> None:
    now = datetime.now(UTC)
    store.add(
        [
            Entry(OUT, Event(new_id(), "noted", b'{"n":%d}' % n, "tests", now), (Owed("payments"),))
            for n in numbers
        ]
    )


def relayed(ledger: Ledger, settings: Any, peer: Peer, is_done: Callable[[], bool]) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "ENABLED": True, "SERVICES": {"payments": peer.url}}
    with ledger.relaying():
        eventually(is_done)


def test_what_is_owed_is_claimed_and_sent_together(ledger: Ledger, settings: Any) -> None:
    with Peer(takes) as peer:
        stored(*range(600))

        relayed(ledger, settings, peer, lambda: not ledger.rows())

        ledger.is_empty()
        sent = [n for request in peer.requests for n in numbers_of(request)]
        assert sorted(sent) == list(range(600))
        # Single ones until the first answer, then few requests
        assert len(peer.requests) < 100


def test_a_stored_delivery_that_fails_in_a_batch_waits_for_its_own_next_try(
    ledger: Ledger, settings: Any
) -> None:
    with Peer(says(n50=(503, 0), n51=(410, 0))) as peer:
        stored(*range(100))

        relayed(ledger, settings, peer, lambda: [row.lease for row in ledger.rows()] == ["", ""])

        again, dead = sorted(ledger.rows(), key=lambda row: row.state)
        assert (again.attempts, again.error, again.lease) == (1, "answered 503: 'not now'", "")
        assert (dead.attempts, dead.error) == (1, "answered 410: 'not now'")
        sent = [n for request in peer.requests for n in numbers_of(request)]
        assert sorted(sent) == list(range(100))


# How many


def test_the_limit_halves_at_a_failure_and_grows_by_one(settings: Any) -> None:
    settings.AEVENTS = {"LIMITS": {"BATCH": 8}}
    destination, transport = Destination("payments", "memory://payments"), MemoryTransport()
    convoy = Convoy(destination, transport)
    assert convoy.limit == 1
    transport._offers.note(destination, batch.OFFER)
    limits = [convoy.limit]
    for change in (convoy.grow, convoy.shrink, convoy.grow, convoy.shrink, convoy.shrink, convoy.shrink):
        change()
        limits.append(convoy.limit)
    assert limits == [8, 8, 4, 5, 2, 1, 1]


def test_a_probe_goes_alone(settings: Any) -> None:
    destination, transport = Destination("payments", "memory://payments"), MemoryTransport()
    transport._offers.note(destination, batch.OFFER)
    convoy, waiting = Convoy(destination, transport), Backlog(Load())
    event = Event(new_id(), "noted", b"{}", "tests", datetime.now(UTC))
    for parcel in pack([(event, [destination])] * 5, None)[1]:
        waiting.put(parcel)
    assert len(convoy.take(waiting, is_probe=True)) == 1
    taken = convoy.take(waiting, is_probe=False)
    assert len(taken) == 4
    waiting.put_back(taken)
    assert [waiting.take() for _ in range(4)] == taken
