"""A caller that is cancelled stops waiting, and nothing else changes: what was shipped is delivered, once.

Nothing is left of the call: no task, future, place in a lane or connection.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aevents import aemit, aemit_many, emit, flush, retry, subscribe_to
from aevents.courier import courier
from aevents.lane import Lane
from aevents.returns import Returns
from aevents.transports.http import HttpTransport
from tests.peers import Exchange, Fleet, Peer, answers, answers_when_released, closes, eventually
from tests.process_project.running import ROOT, serving, unwanted_in


@pytest.fixture
def fleet(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(retry, "_BASE_S", 0.02)  # what is waited between two tries is not the subject
    monkeypatch.setattr("aevents.transports.http._KEEP_ALIVE_S", 60.0)  # however slow the machine is
    with Fleet(settings) as fleet:
        yield fleet


# What must not be left behind


def lanes() -> list[Lane]:
    return list(courier._lanes.values())


async def _tasks() -> list[str]:
    return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def connections_under_way() -> int:
    transports = [t for t in courier._transports.values() if isinstance(t, HttpTransport)]
    return sum(len(t._session.connector._acquired) for t in transports if t._session and t._session.connector)


def assert_nothing_is_left() -> None:
    assert flush(15)
    assert courier.owed == 0
    assert (courier._load.deliveries, courier._load.waiting_bytes) == (0, 0)
    # A runner's task ends in the turn after its last delivery.
    eventually(lambda: courier._thread.submit(_tasks()).result() == [], what="no task on the courier's loop")
    for lane in lanes():
        assert (lane.owed, lane._runners, lane._tasks, lane._waiting._bytes) == (0, 0, set(), 0)
    assert connections_under_way() == 0
    assert not courier._arrived
    # The callers' loops are gone, and with the next one comes their last trace.
    asyncio.run(_come_and_go())
    gc.collect()
    assert len(Returns._of) == 0
    assert len(courier._arrived.wakers) == 0


async def _come_and_go() -> None:
    Returns.to(asyncio.get_running_loop())


# How long a call waits


async def test_each_call_is_waited_for_as_long_as_it_was_told_whoever_came_before() -> None:
    loop = asyncio.get_running_loop()
    returns = Returns(loop)
    ended: list[str] = []

    async def wait(name: str, timeout_s: float) -> None:
        await returns.within(timeout_s, loop.create_future())
        ended.append(name)

    # Shorter than those before, as after a change of the settings; and one that is cancelled in between.
    left = asyncio.create_task(wait("left", 0.02))
    waits = [asyncio.create_task(wait(name, s)) for name, s in (("b", 0.1), ("c", 0.15), ("a", 0.05))]
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait_for(asyncio.gather(*waits), 10)
    assert ended == ["a", "b", "c"]
    assert not returns._waiting


# A client that hangs up

SETTINGS = """
from tests.process_project.settings import *

ROOT_URLCONF = "urls_of_the_site"
"""
URLS = """
import asyncio, os
from pathlib import Path

from django.urls import path

from aevents import aemit
from tests.process_project.urls import urlpatterns

async def tells(request):
    try:
        await aemit("told-async", {"n": 1})
    except asyncio.CancelledError:
        Path(os.environ["CANCELLED"]).touch()
        raise

urlpatterns = [path("tell", tells), *urlpatterns]
"""


def test_a_view_whose_client_hangs_up_delivers_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "settings_of_the_site.py").write_text(SETTINGS)
    (tmp_path / "urls_of_the_site.py").write_text(URLS)
    cancelled = tmp_path / "cancelled"
    env = {
        "DJANGO_SETTINGS_MODULE": "settings_of_the_site",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "CANCELLED": str(cancelled),
    }
    with Peer(answers_when_released(503), answers()) as peer:
        with serving("uvicorn", peer, env=env) as service:
            # Given a view that waits for a delivery
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(b"GET /tell HTTP/1.1\r\nhost: localhost\r\n\r\n")
                peer.wait_for(1)

            # When its client has hung up, so that Django cancels it
            eventually(cancelled.exists)
            peer.release()

            # Then the delivery goes on, and even tries again
            first, second = peer.wait_for(2)
            assert first.id == second.id
            printed = service.stop()
        assert unwanted_in(printed) == []
        assert len(peer.requests) == 2


# Callers that are cancelled


def in_a_task(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(call)


@pytest.mark.parametrize("in_flight", [1, 16])
def test_a_cancelled_aemit_leaves_its_lane_whole(in_flight: int, fleet: Fleet) -> None:
    async def cancels_all() -> None:
        # Given events of which one is answered late and the others, perhaps, wait for their turn
        calls = [in_a_task(aemit("noted", {"n": n})) for n in range(5)]
        await asyncio.to_thread(peer.wait_for, 1)

        # When their callers are cancelled
        for call in calls:
            call.cancel()
        assert [type(e) for e in await asyncio.gather(*calls, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 5

    with Peer(answers_when_released()) as peer:
        fleet(payments=peer, LIMITS={"IN_FLIGHT": in_flight})
        asyncio.run(cancels_all())
        assert courier.owed == 5
        peer.release()

        # Then all are delivered, once, and the lane is as good as new
        assert_nothing_is_left()
        emission = emit("noted", {"n": 5})
        assert (emission.delivered, emission.results[0].attempts) == (True, 1)
        assert sorted(payload["n"] for payload in peer.payloads) == list(range(6))
        assert peer.connections <= in_flight  # none was thrown away


def test_a_cancelled_aemit_is_tried_again_all_the_same(fleet: Fleet) -> None:
    async def cancel() -> None:
        call = in_a_task(aemit("noted", {"n": 1}))
        await asyncio.to_thread(peer.wait_for, 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with Peer(answers_when_released(503), closes, answers()) as peer:
        fleet(payments=peer)
        asyncio.run(cancel())
        peer.release()

        assert_nothing_is_left()
        assert len(peer.requests) == 3


def _by_timeout(call: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, None]:
    async def wait() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await call

    return wait()


def _by_the_end_of_its_loop(call: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, None]:
    async def leave() -> None:
        task = in_a_task(call)
        await asyncio.sleep(0.05)
        assert not task.done()

    return leave()


def _by_a_sibling_that_fails(call: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, None]:
    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise KeyError("sibling")

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(call)
            group.create_task(fail())

    async def fail_together() -> None:
        with pytest.raises(ExceptionGroup):
            await together()

    return fail_together()


@pytest.mark.parametrize("cancelled", [_by_timeout, _by_the_end_of_its_loop, _by_a_sibling_that_fails])
def test_however_a_caller_is_cancelled_its_event_arrives(
    cancelled: Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, None]], fleet: Fleet
) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer)
        asyncio.run(cancelled(aemit("noted", {"n": 1})))
        peer.release()

        assert_nothing_is_left()
        assert peer.payloads == [{"n": 1}]


def test_a_cancelled_aemit_to_its_own_service_ends_no_handler(fleet: Fleet) -> None:
    seen: list[str] = []

    async def handler(payload: Any) -> None:
        seen.append("begun")
        await asyncio.to_thread(lambda: eventually(lambda: "cancelled" in seen))
        seen.append("ended")

    async def cancel() -> None:
        call = in_a_task(aemit("noted", {}))
        await asyncio.to_thread(lambda: eventually(lambda: seen))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        seen.append("cancelled")

    subscribe_to("noted", handler, name="handler")
    fleet(SUBSCRIPTIONS={"noted": ["tests"]})

    asyncio.run(cancel())

    assert_nothing_is_left()
    assert seen == ["begun", "cancelled", "ended"]


# A thousand of them

LOOPS = 2
CALLS = 20  # on each loop, and cancelled
EXAMPLES = 40  # about one call in five ends before it is cancelled


@dataclass(frozen=True)
class Cancelled:
    """One call: how many events it emits, to whom, and when it is cancelled."""

    events: int
    is_flaky: bool
    #: Turns of its own loop before, then milliseconds.
    turns: int
    wait_ms: int


PLANS = st.lists(
    st.builds(
        Cancelled,
        events=st.sampled_from([1, 1, 1, 3]),
        is_flaky=st.booleans(),
        turns=st.integers(0, 6),
        wait_ms=st.integers(0, 8) | st.integers(0, 60),
    ),
    min_size=LOOPS * CALLS,
    max_size=LOOPS * CALLS,
)


def thinks_a_moment(exchange: Exchange) -> Any:
    """Answer after up to 5 ms."""

    async def behave() -> None:
        await asyncio.sleep(random.uniform(0, 0.005))
        await exchange.answer(200)

    return behave()


def is_flaky(exchange: Exchange) -> Any:
    """Answer 200 or 503, or close the connection."""
    return random.choice([answers(), answers(503), closes])(exchange)


def cancel_all(plans: list[Cancelled], first: int, shipped: list[int]) -> list[str]:
    """Do as planned on a loop of its own; note what is shipped, return what became of the calls."""

    async def call(plan: Cancelled, number: int) -> None:
        for _ in range(plan.turns):
            await asyncio.sleep(0)
        numbers = [number + n for n in range(plan.events)]
        events = [("flaky" if plan.is_flaky else "noted", {"n": n}) for n in numbers]
        if not plan.is_flaky:
            shipped.extend(numbers)
        if plan.events == 1:
            await aemit(*events[0])
        else:
            await aemit_many(events)

    async def cancel(plan: Cancelled, number: int) -> str:
        task = in_a_task(call(plan, number))
        await asyncio.sleep(plan.wait_ms / 1000)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "too late"

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(cancel(plan, first + 10 * n) for n, plan in enumerate(plans)))

    return asyncio.run(all_at_once())


def test_a_thousand_cancellations_at_any_point_leave_nothing_behind(fleet: Fleet) -> None:
    with Peer(thinks_a_moment) as peer, Peer(is_flaky) as flaky, ThreadPoolExecutor(LOOPS) as threads:
        fleet(
            payments=peer,
            flaky=flaky,
            SUBSCRIPTIONS={"noted": ["payments"], "flaky": ["flaky", "payments"]},
            LIMITS={"IN_FLIGHT": 8},
        )
        shipped: list[int] = []
        fates: Counter[str] = Counter()
        first = 0

        @given(plans=PLANS)
        @hypothesis_settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate])
        def cancel(plans: list[Cancelled]) -> None:
            nonlocal first
            running = [
                threads.submit(cancel_all, plans[n * CALLS : (n + 1) * CALLS], first + n * 1000, shipped)
                for n in range(LOOPS)
            ]
            first += LOOPS * 1000
            for each in running:
                fates.update(each.result())
            assert_nothing_is_left()
            # Whatever was shipped has arrived, once
            arrived = [r.payload["n"] for r in peer.requests if r.event_type == "noted"]
            assert sorted(arrived) == sorted(shipped)

        cancel()

        assert fates["cancelled"] >= 1000
        assert emit("noted", {"n": -1}).delivered


def test_the_courier_ends_well_while_callers_are_being_cancelled(fleet: Fleet) -> None:
    async def cancels() -> None:
        calls = [in_a_task(aemit("noted", {"n": n})) for n in range(20)]
        await asyncio.to_thread(peer.wait_for, 1)
        for call in calls[::2]:
            call.cancel()
        given_up = await asyncio.to_thread(courier.close, 0.0)
        # Who was not cancelled is told
        rest = await asyncio.gather(*calls[1::2])
        assert {emission.results[0].outcome for emission in rest} == {"failed"}
        assert given_up == 20

    with Peer(answers_when_released()) as peer:
        fleet(payments=peer, LIMITS={"IN_FLIGHT": 4})
        asyncio.run(cancels())

        # And the next one starts afresh
        peer.release()
        assert emit("noted", {"n": 20}).delivered
        assert_nothing_is_left()
