"""What user code ends or interrupts is its own: no loop, no lane and no call of ours ends with it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from aevents import emit, emit_many, flush, signals, subscribe_to
from aevents.answer import Answer
from aevents.courier import courier
from aevents.event import Message
from aevents.transports.memory import MemoryTransport
from tests.peers import Fleet, Peer, answers_when_released


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


class TimeLimit(Exception):
    """As Celery's SoftTimeLimitExceeded: raised by a signal handler, wherever the main thread is."""


@contextmanager
def a_time_limit(after_s: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_receiver_that_is_cancelled_strands_nobody_behind_it(fleet: Fleet) -> None:
    # Given one lane place and a receiver that is cancelled once, not by us
    seen: list[Message] = []

    async def receive(message: Message) -> Answer:
        seen.append(message)
        if len(seen) == 1:
            raise asyncio.CancelledError
        return Answer(200, {"status": "handled"})

    MemoryTransport.serve("cancelled", receive)
    fleet(cancelled="memory://cancelled", LIMITS={"IN_FLIGHT": 1})

    # When five events go there
    emissions = emit_many([("noted", {"n": n}) for n in range(5)])

    # Then the first has an outcome and the others arrive
    MemoryTransport.stop("cancelled")
    assert len(seen) >= 5
    assert [emission.results[0].outcome for emission in emissions[1:]] == ["delivered"] * 4
    assert emissions[0].results[0].outcome in ("delivered", "failed")
    assert flush(0.0)


def test_a_signal_receiver_that_exits_ends_no_delivery(fleet: Fleet) -> None:
    def exits(**_: Any) -> None:
        sys.exit(3)

    with Peer() as peer:
        fleet(peer=peer)
        signals.event_delivered.connect(exits)
        try:
            assert emit("noted", {"n": 1}).delivered
        finally:
            signals.event_delivered.disconnect(exits)
        assert emit("noted", {"n": 2}).delivered


def test_a_task_of_a_handler_that_exits_leaves_the_handlers_their_loop(fleet: Fleet, settings: Any) -> None:
    left: list[asyncio.Task[None]] = []
    done = threading.Event()

    async def exits() -> None:
        done.set()
        sys.exit(3)

    async def leaves_a_task(payload: dict[str, Any]) -> None:
        if payload["n"] == 1:
            left.append(asyncio.create_task(exits()))

    subscribe_to("noted", leaves_a_task, name="leaves_a_task")
    fleet(SUBSCRIPTIONS={"noted": [settings.AEVENTS["SERVICE"]]})
    assert emit("noted", {"n": 1}).delivered
    assert done.wait(5)
    assert emit("noted", {"n": 2}).delivered


def test_a_time_limit_of_the_caller_passes_and_the_event_arrives(fleet: Fleet) -> None:
    with Peer(answers_when_released(200)) as peer:
        fleet(peer=peer)
        # When a job's time ends while emit waits
        with a_time_limit(0.2), pytest.raises(TimeLimit):
            emit("noted", {"n": 1})
        # Then the delivery goes on
        peer.wait_for(1)
        peer.release()
        assert flush(5.0)
        assert len(peer.requests) == 1


def test_a_wake_that_fails_leaves_the_courier_its_hearing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer() as peer:
        fleet(peer=peer)
        assert emit("noted", {"n": 1}).delivered
        loop = courier._thread.start()

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        # Given a Ctrl-C at the very moment at which the courier is woken
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", interrupted)
            with pytest.raises(KeyboardInterrupt):
                emit("noted", {"n": 2})

        # Then the next event finds it awake, and takes the interrupted one along
        assert emit("noted", {"n": 3}).delivered
        assert flush(5.0)
        assert len(peer.requests) == 3
