"""One lane for each destination: bounded, in order, and none holds up another."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from aevents import aemit, breaker, emit, emit_many, flush, subscribe_to
from aevents.answer import Receipt
from aevents.emission import Emission
from aevents.event import Message
from aevents.transports.base import Destination, Transport
from tests.peers import (
    Fleet,
    Peer,
    answers,
    answers_when_released,
    black_hole,
    closes,
    eventually,
    hangs,
    refusing,
)


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


def hand_over(*events: tuple[str, Any]) -> list[Emission]:
    """Emit all at once without waiting: what a caller in a running loop gets."""

    async def call() -> list[Emission]:
        return emit_many(events)

    return asyncio.run(call())


def outcomes(emission: Emission) -> dict[str, str]:
    return {result.service: result.outcome for result in emission.results}


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name == "aevents"]


# None holds up another


def test_a_hanging_service_of_twenty_delays_none_of_the_others(fleet: Fleet) -> None:
    with Peer(hangs) as hanging, Peer() as well:
        # Given twenty services, one of which hangs and has more owed than fits in flight
        others = {f"service-{n}": f"{well.url}{n}" for n in range(19)}
        fleet(hanging=hanging, **others, LIMITS={"IN_FLIGHT": 4})
        hand_over(*[("noted", {"n": n}) for n in range(6)])

        # When nothing of it is answered
        hanging.wait_for(4)

        # Then all the others have all, and a call to them is answered
        assert len(well.wait_for(19 * 6)) == 19 * 6
        fleet(**others)
        assert emit("noted", {"n": 6}).delivered
        assert len(hanging.requests) == 4


def test_a_dead_host_delays_none_of_the_others(fleet: Fleet) -> None:
    with black_hole() as swallows, Peer() as well:
        fleet(dead=swallows, well=well)
        hand_over(*[("noted", {"n": n}) for n in range(30)])

        well.wait_for(30)
        fleet(well=well)
        assert emit("noted", {"n": 30}).delivered


# Bounds


@pytest.mark.parametrize("bound", [1, 3, 16])
def test_no_more_than_the_bound_is_in_flight_at_once(bound: int, fleet: Fleet) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer, LIMITS={"IN_FLIGHT": bound})

        hand_over(*[("noted", {"n": n}) for n in range(50)])

        peer.wait_for(bound)
        peer.release()
        assert flush()
        assert len(peer.requests) == 50
        assert peer.most_at_once == bound


def test_events_leave_in_the_order_they_came(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer, LIMITS={"IN_FLIGHT": 1})

        hand_over(*[("noted", {"n": n}) for n in range(40)])
        hand_over(*[("noted", {"n": n}) for n in range(40, 80)])

        assert flush()
        assert peer.payloads == [{"n": n} for n in range(80)]


def test_what_is_over_the_waiting_bound_fails_and_says_so(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(answers_when_released()) as peer:
        # Given one event in flight and two that wait
        fleet(payments=peer, LIMITS={"IN_FLIGHT": 1, "WAITING": 2})
        hand_over(("noted", {"n": 0}))
        peer.wait_for(1)
        hand_over(("noted", {"n": 1}), ("noted", {"n": 2}))
        assert not flush(0.0)  # both are in the lane by now

        # When one more comes
        emission = emit("noted", {"n": 3})

        # Then the caller is told, at once, and so is the log
        assert outcomes(emission) == {"payments": "failed"}
        assert (emission.ok, emission.results[0].attempts) == (False, 0)
        assert emission.results[0].error == "2 events are waiting for it already"
        (lost,) = messages(caplog, logging.ERROR)
        assert lost.startswith(f"Lost noted {emission.id}: not delivered to payments after 0 tries")
        # and nobody else loses his place
        peer.release()
        assert flush()
        assert peer.payloads == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_the_bytes_that_wait_are_bounded_over_all_lanes(fleet: Fleet) -> None:
    with Peer(answers_when_released()) as one, Peer(answers_when_released()) as two:
        fleet(
            one=one,
            two=two,
            LIMITS={"IN_FLIGHT": 1, "WAITING_BYTES": 1000},
            SUBSCRIPTIONS={"for-one": ["one"], "for-two": ["two"]},
        )
        large = {"text": "x" * 800}
        hand_over(("for-one", {}), ("for-two", {}))
        one.wait_for(1)
        two.wait_for(1)
        hand_over(("for-one", large))
        assert not flush(0.0)  # it is in its lane by now

        # A lane in which nothing waits may have one in waiting all the same
        hand_over(("for-two", large))
        emission = emit("for-two", {"n": 1})

        assert outcomes(emission) == {"two": "failed"}
        assert "bytes are waiting in this process already" in str(emission.results[0].error)
        # What has left waits no more
        one.release()
        two.release()
        assert flush()
        assert emit("for-two", {"n": 1}).delivered
        assert two.payloads == [{}, large, {"n": 1}]


def test_an_event_as_large_as_allowed_always_finds_room(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer, LIMITS={"WAITING_BYTES": 1000})

        assert emit("noted", {"text": "x" * 200_000}).delivered


# Slow and dead


def test_a_service_that_owes_an_answer_is_not_waited_for_again(fleet: Fleet) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.4})
        began = time.monotonic()

        emissions = [emit("noted", {"n": n}) for n in range(20)]

        # One call's wait in all; twenty would be 8 s
        assert time.monotonic() - began < 4
        assert [outcomes(e) for e in emissions] == [{"payments": "queued"}] * 20
        assert all(e.ok for e in emissions)
        # And once it answers, it is waited for as before
        peer.release()
        assert flush()
        assert len(peer.requests) == 20
        assert emit("noted", {"n": 20}).delivered


def test_a_service_that_owes_an_answer_costs_a_call_to_others_nothing(fleet: Fleet) -> None:
    with Peer(hangs) as hanging, Peer() as well:
        fleet(hanging=hanging, well=well, LIMITS={"CALL_S": 0.4})
        began = time.monotonic()

        emissions = [emit("noted", {"n": n}) for n in range(20)]

        assert time.monotonic() - began < 4
        assert [outcomes(e) for e in emissions] == [{"hanging": "queued", "well": "delivered"}] * 20


async def test_aemit_to_a_service_that_owes_an_answer_still_gives_the_others_their_turn(
    fleet: Fleet,
) -> None:
    with Peer(hangs) as hanging:
        fleet(hanging=hanging, LIMITS={"CALL_S": 0.2})
        await aemit("noted", {"n": 0})
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        for n in range(1, 20):
            await aemit("noted", {"n": n})
        other.cancel()

        assert turns >= 19


def test_twenty_emits_in_a_row_to_a_host_that_refuses_take_under_8_s(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with refusing() as dead:
        fleet(dead=dead)
        began = time.monotonic()

        emissions = [emit("noted", {"n": n}) for n in range(20)]

        assert time.monotonic() - began < 8
    assert [outcomes(e) for e in emissions] == [{"dead": "failed"}] * 20
    assert "it is down, 5 failures in a row; next try in" in str(emissions[-1].results[0].error)
    assert emissions[-1].results[0].attempts == 0
    (down,) = messages(caplog, logging.WARNING)
    assert down.startswith("dead is down: 5 failures in a row, no try for ")
    assert len(messages(caplog, logging.ERROR)) == 20  # no event is lost without a word


def test_twenty_emits_in_a_row_to_a_host_that_swallows_packets_take_under_8_s(fleet: Fleet) -> None:
    # In real time and with the defaults: the bound stands on how the breaker and the waits add up
    with black_hole() as dead:
        fleet(dead=dead)
        began = time.monotonic()

        emissions = [emit("noted", {"n": n}) for n in range(20)]

        assert time.monotonic() - began < 8
    assert [outcomes(e) for e in emissions] == [{"dead": "failed"}] * 20


def test_a_handler_that_outlasts_the_call_runs_once_and_is_delivered_at_last(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    # An 8 s handler and a call of 5 s, on another scale: the answer comes after the caller has gone
    caplog.set_level(logging.DEBUG, "aevents")
    runs, may_end = [], threading.Event()

    def handler(payload: Any) -> None:
        runs.append(payload)
        may_end.wait(15)

    subscribe_to("noted", handler, name="handler", atomic=False)
    fleet(LIMITS={"CALL_S": 0.2}, SUBSCRIPTIONS={"noted": ["tests"]})

    emission = emit("noted", {"n": 1})

    assert outcomes(emission) == {"tests": "queued"}
    assert runs == [{"n": 1}]
    may_end.set()
    assert flush()
    assert runs == [{"n": 1}]
    (delivered,) = [r for r in caplog.records if r.getMessage().startswith("Delivered")]
    assert (delivered.event_id, delivered.attempts) == (emission.id, 1)  # type: ignore[attr-defined]  # extra=
    assert delivered.elapsed_s >= 0.2  # type: ignore[attr-defined]  # extra=


def test_a_slow_answer_is_not_asked_for_twice(fleet: Fleet) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.2})

        assert outcomes(emit("noted", {"n": 1})) == {"payments": "queued"}
        peer.release()
        assert flush()

        assert peer.payloads == [{"n": 1}]


def test_an_answer_that_never_comes_is_given_up_after_a_try_s_time(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(hangs) as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.2, "ATTEMPT_S": 0.4})

        assert outcomes(emit("noted", {"n": 1})) == {"payments": "queued"}
        assert flush()

        # The call's time is over by then, so there is no second try
        (lost,) = messages(caplog, logging.ERROR)
        assert "not delivered to payments after 1 tries" in lost
        assert len(peer.requests) == 1


# The breaker at work


def test_a_service_that_comes_back_is_found_by_one_probe(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.3)
    caplog.set_level(logging.INFO, "aevents")
    with Peer(closes) as peer:
        # Given a service that is down
        fleet(payments=peer, LIMITS={"TRIES": 1})
        while "is down" not in caplog.text:
            assert not emit("noted", {"n": 0}).ok
        before = len(peer.requests)
        assert not emit("noted", {"n": 0}).ok
        assert len(peer.requests) == before

        # When it is up again, but slow
        peer.behave(answers_when_released())
        eventually(lambda: hand_over(("noted", {"n": 1})) and len(peer.requests) > before)
        refused = emit("noted", {"n": 2})

        # Then one event probes, the others are refused meanwhile
        assert outcomes(refused) == {"payments": "failed"}
        assert len(peer.requests) == before + 1
        peer.release()
        assert flush()
        assert emit("noted", {"n": 3}).delivered
        assert "payments is up again" in messages(caplog, logging.INFO)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answers(503, {"status": "failed", "detail": "A handler failed"}), id="handler"),
        pytest.param(answers(401), id="401"),
        pytest.param(answers(404), id="404"),
        pytest.param(answers(410), id="410"),
    ],
)
def test_a_service_that_is_well_but_takes_no_event_does_not_count_as_down(
    answer: Any, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(answer) as peer:
        fleet(payments=peer, LIMITS={"TRIES": 1})

        for n in range(12):
            assert outcomes(emit("noted", {"n": n})) == {"payments": "failed"}

        assert len(peer.requests) == 12
        assert "is down" not in caplog.text
        peer.behave(answers(200))
        assert emit("noted", {"n": 12}).delivered


def test_a_503_that_says_nothing_of_handlers_counts_as_down(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(answers(503)) as peer:
        fleet(payments=peer, LIMITS={"TRIES": 1})

        for n in range(12):
            assert outcomes(emit("noted", {"n": n})) == {"payments": "failed"}

        assert len(peer.requests) == 5
        assert "payments is down: 5 failures in a row" in caplog.text


# Transports of others


class Odd(Transport):
    """A transport that does not keep its promises."""

    script: ClassVar[list[BaseException]] = []

    async def send(self, destination: Destination, message: Message) -> Receipt:
        if self.script:
            raise self.script.pop(0)
        return Receipt()

    async def close(self) -> None:
        raise KeyError("close")


class Stillborn(Odd):
    def __init__(self, **options: Any) -> None:
        raise KeyError("init")


def test_an_error_no_transport_may_raise_is_logged_with_its_traceback_and_tried_again(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet(odd="odd://anywhere", TRANSPORTS={"odd": {"BACKEND": f"{__name__}.Odd"}})
    monkeypatch.setattr(Odd, "script", [KeyError("surprise")])

    emission = emit("noted", {})

    assert emission.delivered
    assert emission.results[0].attempts == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "A try to deliver to odd failed in an unknown way"
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (f"{__name__}.Stillborn", "init"),
        (f"{__name__}.Nothing", "cannot be imported"),
        ("nowhere", "cannot be imported"),
    ],
)
def test_a_transport_that_cannot_be_had_fails_the_event_and_nothing_else(
    backend: str, says: str, fleet: Fleet
) -> None:
    with Peer() as peer:
        fleet(odd="odd://anywhere", payments=peer, TRANSPORTS={"odd": {"BACKEND": backend}})

        emission = emit("noted", {})

        assert outcomes(emission) == {"odd": "failed", "payments": "delivered"}
        assert says in str(emission.results[0].error)
