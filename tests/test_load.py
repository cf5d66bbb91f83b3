"""Under load: some services hang, reset or are slow, and the others have every event at their rate.

The long version is `tox -e soak`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aevents import emit, emit_many, flush, signals
from aevents.answer import Answer
from aevents.courier import courier
from aevents.emission import Emission
from aevents.event import Message
from aevents.transports.memory import MemoryTransport
from tests.peers import (
    Behaviour,
    Exchange,
    Fleet,
    Peer,
    answers,
    answers_after,
    answers_when_released,
    closes,
    eventually,
    hangs,
)
from tests.rude_peer import resets

ROOT = Path(__file__).parent.parent
#: What an emitter may grow by, whatever its destinations do.
MOST_MIB = 50


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


class Ledger(Peer):
    """A Peer that notes the ids and no more: there are many."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self._behaviour = behaviour
        self.ids: Counter[str] = Counter()

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # it is to be fast, in development mode too
        await super()._serve()

    async def _act(self, exchange: Exchange) -> None:
        self.ids[exchange.request.id] += 1
        await self._behaviour(exchange)


@dataclass(frozen=True)
class Load:
    """What an emitter told, and what its destinations saw."""

    phases: list[dict[str, Any]]
    end: dict[str, Any]
    peers: Mapping[str, Ledger]

    def outcomes(self, service: str) -> dict[str, int]:
        """Return how often a call returned which outcome for the service."""
        found: Counter[str] = Counter()
        for phase in self.phases:
            for key, count in phase["outcomes"].items():
                name, _, outcome = key.partition(" ")
                if name == service:
                    found[outcome] += count
        return dict(found)


HEALTHY = ("well-1", "well-2")
FIVE = (*HEALTHY, "well-3", "well-4", "well-5")


def under_load(*phases: tuple[str, float], **limits: float) -> Load:
    """Emit from 64 threads and 256 tasks in a process of its own: `well` to the healthy, `all` to those
    and to three others, `five` to five that are healthy.
    """
    behaviours = {
        **{name: answers() for name in FIVE},
        "hangs": hangs,
        "resets": resets(),
        "slow": answers_after(1.0),
    }
    with contextlib.ExitStack() as stack:
        peers = {name: Ledger(behaviour) for name, behaviour in behaviours.items()}
        for peer in peers.values():
            stack.enter_context(peer)
        given = {
            "AEVENTS": {
                "SERVICE": "emitter",
                "SERVICES": {name: peer.url for name, peer in peers.items()},
                "SUBSCRIPTIONS": {
                    "well": HEALTHY,
                    "five": FIVE,
                    "all": [*HEALTHY, "hangs", "resets", "slow"],
                },
                "LIMITS": {"EXIT_S": 0.1, **limits},
            },
            "threads": 64,
            "tasks": 256,
            "payload_bytes": 300,
            "phases": phases,
            "healthy": HEALTHY,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.load_emitter", json.dumps(given)],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=sum(seconds for _, seconds in phases) + 60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    *told, end = [json.loads(line) for line in done.stdout.splitlines()]
    return Load(told, end, peers)


def assert_it_was_borne(load: Load) -> None:
    calls = load.end["calls"]
    # The healthy services have every event, once, and no call was told otherwise
    for name in HEALTHY:
        assert load.outcomes(name).get("failed", 0) == 0
        assert load.end["arrived"][name] == calls
        assert len(load.peers[name].ids) == calls
        assert set(load.peers[name].ids.values()) == {1}
    # What could not be delivered is failed, and each said so in the log
    for name in ("hangs", "resets", "slow"):
        failed = load.outcomes(name)["failed"]
        assert 0 < failed <= load.end["lost"][name]
    assert set(load.end["lost"]) == {"hangs", "resets", "slow"}
    # And the emitter has not grown
    warm = load.phases[0]["most_mib"]
    assert max(phase["most_mib"] for phase in load.phases) - warm < MOST_MIB


def test_healthy_services_keep_their_rate_beside_those_that_hang_reset_and_dawdle() -> None:
    load = under_load(
        ("well", 1.5),
        ("five", 1.5),
        ("all", 2.0),  # until it is known who is slow: a call's time
        ("all", 2.0),
        ("five", 1.5),
        ("well", 1.0),
        CALL_S=1.5,
        ATTEMPT_S=3.0,
        WAITING=400,  # more than there are callers, so that the healthy have room
    )

    assert_it_was_borne(load)
    alone, before, _, beside, after, afterwards = [phase["calls_a_second"] for phase in load.phases]
    # Three that are ill cost no more than twice what three more healthy ones do; a call that waited for them
    # would be at 1/50. Before and after, as other work on the machine may begin or end meanwhile.
    assert beside >= 0.5 * min(before, after)
    assert afterwards > alone / 5


@pytest.mark.soak
def test_healthy_services_keep_their_rate_for_long_and_within_the_default_limits() -> None:
    seconds = float(os.environ.get("AEVENTS_SOAK_S", "60"))
    load = under_load(("well", 5.0), ("five", 5.0), ("all", 15.0), ("all", seconds), ("well", 5.0))

    print(json.dumps({"phases": load.phases, **load.end}, indent=1))
    assert_it_was_borne(load)
    alone, five, _, beside, afterwards = [phase["calls_a_second"] for phase in load.phases]
    assert beside >= 0.5 * five
    assert afterwards > alone / 4


# The parts of it


def hand_over(event_type: str, numbers: range, **payload: Any) -> list[Emission]:
    """Emit all at once without waiting: what a caller in a running loop gets."""

    async def call() -> list[Emission]:
        return emit_many([(event_type, {"n": n, **payload}) for n in numbers])

    return asyncio.run(call())


def _failures(service: str) -> tuple[list[str], Any]:
    failed: list[str] = []

    def note(event: Any, outcome: str, error: str, **facts: Any) -> None:
        if outcome == "failed" and facts["service"] == service:
            failed.append(error)

    return failed, note


MEMORY = """
import asyncio, logging, os, sys
from django.conf import settings
services = {f"service-{n}": sys.argv[1] + str(n) for n in range(int(sys.argv[2]))}
settings.configure(
    INSTALLED_APPS=["aevents"],
    AEVENTS={
        "SERVICE": "emitter", "SERVICES": services,
        "SUBSCRIPTIONS": {name: [name] for name in services},
        "LIMITS": {"EXIT_S": 0.01, "ATTEMPT_S": 100},
        "STORE": None,
    },
)
import django
django.setup()
logging.disable()
from aevents import emit_many, signals
from aevents.courier import courier
from tests.load_emitter import resident_mib

lost = []
signals.delivery_failed.connect(note := lambda error, **_: lost.append(error))
payload = {"text": "x" * int(sys.argv[3])}

async def fill(rounds):
    for _ in range(rounds):
        for name in services:
            emit_many([(name, payload)] * 25)
        while courier._arrived:
            await asyncio.sleep(0.001)

asyncio.run(fill(2))
before = resident_mib()
while len(lost) < 500:
    asyncio.run(fill(1))
print(resident_mib() - before)
lost.clear()
"""


@pytest.mark.parametrize(
    ("services", "payload_bytes"),
    [
        pytest.param(8, 10, id="small events for 8 services"),
        pytest.param(5, 20_000, id="large events for 5 services"),
    ],
)
def test_what_waits_for_services_that_hang_is_bounded_in_memory(services: int, payload_bytes: int) -> None:
    with Ledger(hangs) as peer:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, peer.url, str(services), str(payload_bytes)],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < MOST_MIB


def test_a_service_that_hoards_leaves_room_to_wait_to_the_others(fleet: Fleet) -> None:
    with Peer(hangs) as hoarder, Peer(answers_when_released()) as busy:
        # Given a service that hangs and has taken as much room as it may
        fleet(
            hoarder=hoarder,
            busy=busy,
            LIMITS={"IN_FLIGHT": 1, "WAITING_BYTES": 200_000},
            SUBSCRIPTIONS={"hoarded": ["hoarder"], "noted": ["busy"]},
        )
        hand_over("hoarded", range(1))
        hoarder.wait_for(1)
        hand_over("hoarded", range(200), text="x" * 1000)
        eventually(lambda: not courier._arrived, what="all in its queue, or refused there")
        refused = emit("hoarded", {"text": "x" * 2000})
        assert refused.results[0].outcome == "failed"
        assert "bytes are waiting in this process already" in str(refused.results[0].error)

        # When another has more to do than it can at once
        hand_over("noted", range(10), text="x" * 1000)
        busy.wait_for(1)
        busy.release()

        # Then it gets all of it
        assert [request.payload["n"] for request in busy.wait_for(10)] == list(range(10))


def test_calls_do_not_wait_for_a_service_whose_queue_is_longer_than_a_call(fleet: Fleet) -> None:
    with Peer(answers_after(0.1)) as slow, Peer() as well:
        # Given a service that answers, but has more to do than it can in the time of a call
        fleet(slow=slow, well=well, LIMITS={"IN_FLIGHT": 1, "CALL_S": 0.5})
        hand_over("noted", range(60))
        slow.wait_for(7)

        # When more is emitted
        emissions = [emit("noted", {"n": n}) for n in range(60, 70)]

        # Then nobody waits for it, and the others have it at once
        outcomes = [{r.service: r.outcome for r in emission.results} for emission in emissions]
        assert outcomes == [{"slow": "queued", "well": "delivered"}] * 10
        assert len(slow.requests) < 40  # in the time of ten calls it would have answered 50


def test_a_lane_that_gives_up_thousands_leaves_the_others_their_turn(fleet: Fleet) -> None:
    failed, note = _failures("bad")
    failed_before: list[int] = []

    def emit_to_the_other(**_: Any) -> None:
        hand_over_from_the_courier()

    def hand_over_from_the_courier() -> None:
        emit("noted", {})

    def look(service: str, **_: Any) -> None:
        if service == "well":
            failed_before.append(len(failed))

    async def well(message: Message) -> Answer:
        return Answer(200, {})

    MemoryTransport.serve("well", well)
    signals.delivery_failed.connect(note)
    signals.destination_down.connect(emit_to_the_other)
    signals.event_delivered.connect(look)
    try:
        with Peer(closes) as bad:
            fleet(
                bad=bad,
                well="memory://well",
                LIMITS={"IN_FLIGHT": 1, "TRIES": 1},
                SUBSCRIPTIONS={"doomed": ["bad"], "noted": ["well"]},
            )

            # When a service goes down for which thousands wait, and at that moment another gets an event
            hand_over("doomed", range(3000))
            assert flush(15)

        # Then that does not wait until the last of them is given up
        assert len(failed) == 3000
        assert failed_before
        assert failed_before[0] < 1000
    finally:
        MemoryTransport.stop("well")
        signals.delivery_failed.disconnect(note)
        signals.destination_down.disconnect(emit_to_the_other)
        signals.event_delivered.disconnect(look)


def test_who_brings_thousands_keeps_the_courier_from_no_delivery(fleet: Fleet) -> None:
    still_to_sort: list[int] = []

    def look(**_: Any) -> None:
        still_to_sort.append(len(courier._arrived))

    async def well(message: Message) -> Answer:
        return Answer(200, {})

    MemoryTransport.serve("well", well)
    signals.event_delivered.connect(look)
    try:
        fleet(well="memory://well")
        hand_over("noted", range(5000))
        assert flush(15)
    finally:
        MemoryTransport.stop("well")
        signals.event_delivered.disconnect(look)

    # The first was delivered while most had not even found their lane
    assert len(still_to_sort) == 5000
    assert still_to_sort[0] > 2500


def test_a_burst_to_many_services_at_once_is_no_more_than_their_lanes_may_hold(fleet: Fleet) -> None:
    with Peer() as peer:
        services = {f"service-{n}": f"{peer.url}{n}" for n in range(20)}
        fleet(**services, LIMITS={"WAITING": 20, "CONNECT_S": 10})  # 320 connections on a busy machine

        for n in range(10):
            hand_over("noted", range(n, n + 1))

        assert flush(15)
        assert len(peer.requests) == 20 * 10
