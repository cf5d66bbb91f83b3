"""The process's one event loop for deliveries: its start, its end, and what a fork makes of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from aevents import Emission, aemit, emit, flush, signals
from aevents import courier as courier_module
from aevents.answer import Answer
from aevents.arrivals import Arrivals
from aevents.courier import courier
from aevents.emitter import make_event
from aevents.event import Event, Message
from aevents.shipment import Parcel, pack
from aevents.transports.base import Destination
from aevents.transports.memory import MemoryTransport
from tests.peers import HAS_UVLOOP, Fleet, Peer, answers, answers_when_released, eventually, hangs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


def couriers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aevents"]


# What every script below begins with; its arguments: the peer's URL, and LIMITS as Python.
PRELUDE = """\
import asyncio, atexit, gc, logging, os, sys, threading, time
from django.conf import settings

# Hooks run backwards: one made before aevents is imported runs after the courier's own.
last_of_all = []
atexit.register(lambda: [call() for call in last_of_all])

settings.configure(
    INSTALLED_APPS=["aevents"],
    AEVENTS={
        "SERVICE": "script",
        "UNSIGNED": "accept",
        "SERVICES": {"payments": sys.argv[1]},
        "SUBSCRIPTIONS": {"noted": ["payments"], "own": ["script"]},
        "LIMITS": eval(sys.argv[2]),
        "STORE": None,
    },
)
import django
django.setup()
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from aevents import emit, emit_many, flush, subscribe_to
from aevents.courier import courier

def hand_over(*numbers):
    async def call():
        return emit_many([("noted", {"n": n}) for n in numbers])
    logging.getLogger("aevents").disabled = True  # that there is a better way is known here
    emissions = asyncio.run(call())
    logging.getLogger("aevents").disabled = False
    return emissions

"""


def run(script: str, url: str, **limits: float) -> str:
    """Run a script in a process of its own; return what it printed. It must end well and say no more."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error::ResourceWarning"),
            *("-W", "ignore::DeprecationWarning"),  # that forking with threads is a risk is the subject
            *("-c", PRELUDE + textwrap.dedent(script), url, repr(limits)),
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    return done.stdout


# Its start


def test_nothing_starts_before_the_first_event_and_the_exit_says_nothing_of_what_is_done() -> None:
    with Peer() as peer:
        printed = run(
            """
            emit("nobody-is-subscribed", {})
            print([thread.name for thread in threading.enumerate()], flush())
            emit("noted", {})
            print([thread.name for thread in threading.enumerate()])
            """,
            peer.url,
        )

    assert printed == "['MainThread'] True\n['MainThread', 'aevents']\n"


def test_it_starts_again_after_it_was_closed(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer)
        for _ in range(2):
            assert emit("noted", {}).delivered
            assert len(couriers()) == 1
            assert courier.close(1.0) == 0
            assert couriers() == []


def test_where_no_thread_can_be_had_the_event_fails_with_that_reason(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("can't start new thread")

    with Peer() as peer:
        fleet(payments=peer)
        monkeypatch.setattr(threading.Thread, "start", fail)

        by_emit, by_aemit = emit("noted", {}), asyncio.run(aemit("noted", {}))

        monkeypatch.undo()
        fleet(payments=peer)
        for emission in (by_emit, by_aemit):
            assert [r.outcome for r in emission.results] == ["failed"]
            assert emission.results[0].error == "the courier does not run: can't start new thread"
        assert emit("noted", {}).delivered


# Its own thread


def test_a_signal_receiver_may_emit_and_does_not_wait_for_itself(fleet: Fleet) -> None:
    # Given a receiver that runs in the courier's thread
    found: list[Any] = []

    def receiver(event: Event, **_: Any) -> None:
        if event.type == "noted":
            found.append((threading.current_thread().name, emit("audited", {}).results[0].outcome, flush()))

    with Peer() as peer:
        fleet(payments=peer)
        signals.event_delivered.connect(receiver)
        try:
            assert emit("noted", {}).delivered
            assert flush()
        finally:
            signals.event_delivered.disconnect(receiver)

        assert found == [("aevents", "queued", False)]
        assert [request.event_type for request in peer.requests] == ["noted", "audited"]


# Its end


def test_a_flush_is_bounded_even_where_a_signal_receiver_blocks(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def block(**_: Any) -> None:
        may_end.wait(15)

    monkeypatch.setattr(courier_module, "_GRACE_S", 0.1)
    with Peer() as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.1})
        signals.event_delivered.connect(block)
        emit("noted", {})
        began = time.monotonic()
        try:
            assert not flush(0.1)
            assert time.monotonic() - began < 5
        finally:
            signals.event_delivered.disconnect(block)
            may_end.set()
        assert flush()


def test_what_is_under_way_when_it_closes_is_given_up_by_name(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(hangs) as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.1, "IN_FLIGHT": 2})
        for n in range(3):
            emit("noted", {"n": n})
        peer.wait_for(2)

        assert courier.close(0.0) == 3

    lost = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lost) == 3
    assert all(text.startswith("Lost noted ") and text.endswith(": the process ended") for text in lost)


def test_what_was_handed_over_leaves_before_the_process_ends() -> None:
    # By name, which is the harder case: the interpreter that ends starts no thread to look it up in
    with Peer() as peer:
        printed = run(
            """
            print([emission.results[0].outcome for emission in hand_over(*range(30))])
            """,
            peer.url.replace("127.0.0.1", "localhost"),
        )

        assert printed == f"{['queued'] * 30}\n"
        assert sorted(payload["n"] for payload in peer.payloads) == list(range(30))


def test_an_exit_with_a_service_that_hangs_is_bounded_and_says_what_it_gave_up() -> None:
    with Peer(hangs) as peer:
        began = time.monotonic()
        printed = run("hand_over(*range(20))", peer.url, EXIT_S=0.3)

        assert time.monotonic() - began < 10  # a try's time alone would be that
    lines = printed.splitlines()
    assert lines[-1] == "ERROR The process ended with 20 deliveries undone"
    assert len([line for line in lines if line.endswith(": the process ended")]) == 20


def test_what_is_owed_to_ones_own_handlers_is_done_before_the_process_ends() -> None:
    printed = run(
        """
        def sync_handler(payload):
            sys.stdout.write(f"sync {payload['n']}\\n")
        async def async_handler(payload):
            sys.stdout.write(f"async {payload['n']}\\n")
        subscribe_to("own", sync_handler)
        subscribe_to("own", async_handler)
        async def call():
            emit("own", {"n": 1})
        logging.disable()
        asyncio.run(call())
        """,
        "http://127.0.0.1:1/",
    )

    assert sorted(printed.splitlines()) == ["async 1", "sync 1"]


def test_events_of_exit_hooks_are_delivered_even_after_the_courier_s_own() -> None:
    with Peer() as peer:
        printed = run(
            """
            last_of_all.append(lambda: print("last", emit("noted", {"n": "last"}).results[0].outcome))
            emit("noted", {"n": "first"})
            atexit.register(lambda: print("early", emit("noted", {"n": "early"}).results[0].outcome))
            """,
            peer.url,
        )

        assert printed == "early delivered\nlast delivered\n"
        assert [payload["n"] for payload in peer.payloads] == ["first", "early", "last"]


def test_what_is_shipped_while_it_closes_is_given_up_and_not_forgotten(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a call that has found the courier running, and a close in the moment before it hands over
    closing = threading.Thread(target=courier.close, args=(0.0,))
    put, stop = Arrivals.put, courier._thread.stop

    def put_late(arrivals: Arrivals, parcels: Any) -> None:
        if closing.ident is None:
            closing.start()
            closing.join(0.5)  # it comes as far as it is let
        put(arrivals, parcels)

    def stop_woken(timeout_s: float) -> None:
        courier._arrived.is_awake = True  # by yet another call, too late for the loop to look
        stop(timeout_s)

    with Peer() as peer:
        fleet(payments=peer)
        assert emit("noted", {"n": 0}).delivered
        monkeypatch.setattr(Arrivals, "put", put_late)
        monkeypatch.setattr(courier._thread, "stop", stop_woken)

        # When it hands over
        emission = emit("noted", {"n": 1})
        closing.join(10)

        # Then it is told how the event fared, and the next one is delivered
        assert emission.results[0].outcome in ("delivered", "failed")
        assert emit("noted", {"n": 2}).delivered


def test_a_wake_that_comes_too_late_for_one_loop_takes_nothing_from_the_next(fleet: Fleet) -> None:
    # Given a busy courier, so that a caller's events cross together at the end of its turn
    with Peer(hangs, hangs, answers()) as peer:
        fleet(payments=peer)
        busy = [threading.Thread(target=emit, args=("noted", {"n": n})) for n in range(2)]
        busy[0].start()
        peer.wait_for(1)

        def close_and_begin_anew() -> None:
            courier.close(0.0)
            busy[1].start()
            peer.wait_for(2)

        # When it is closed, and begins anew, between two events of one turn
        async def call() -> list[Emission]:
            before = asyncio.ensure_future(aemit("noted", {"n": 2}))
            asyncio.get_running_loop().call_soon(close_and_begin_anew)
            after = asyncio.ensure_future(aemit("noted", {"n": 3}))
            return await asyncio.gather(before, after)

        emissions = asyncio.run(call())

        # Then it is only the first that went down with the old loop
        assert [e.results[0].outcome for e in emissions] == ["failed", "delivered"]
        courier.close(0.0)
        for thread in busy:
            thread.join(10)


def test_every_call_is_told_how_its_event_fared_however_often_it_is_closed_meanwhile(fleet: Fleet) -> None:
    # Given threads and loops that emit, and thread switches at every step
    stop = threading.Event()
    unsettled: list[Any] = []
    count = itertools.count()

    def note(emission: Any) -> None:
        next(count)
        if emission.results[0].outcome not in ("delivered", "failed"):
            unsettled.append(emission)

    def emit_on() -> None:
        while not stop.is_set():
            note(emit("noted", {}))

    async def aemit_on() -> None:
        async def one() -> None:
            while not stop.is_set():
                note(await aemit("noted", {}))

        await asyncio.gather(*(one() for _ in range(4)))

    async def well(message: Message) -> Answer:
        return Answer(200, {})

    MemoryTransport.serve("well", well)
    fleet(well="memory://well", LIMITS={"CALL_S": 15})
    threads = [threading.Thread(target=emit_on) for _ in range(6)]
    threads += [threading.Thread(target=lambda: asyncio.run(aemit_on())) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        # When it is closed again and again
        for _ in range(25):
            seen = next(count)
            courier.close(0.0)
            eventually(lambda seen=seen: next(count) > seen + 20, what="calls that end")
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(30)
        MemoryTransport.stop("well")
    # Then
    assert unsettled == []
    assert courier.close(1.0) == 0


# Its way in


def test_the_bytes_that_have_yet_to_find_their_lane_are_bounded(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a courier that cannot look at what arrives
    is_held, released = threading.Event(), threading.Event()

    def hold(event: Event, **_: Any) -> None:
        if event.type == "held":
            is_held.set()
            released.wait(15)

    with Peer() as peer:
        fleet(payments=peer, LIMITS={"WAITING_BYTES": 100_000, "CALL_S": 0.1})
        signals.event_delivered.connect(hold)
        try:
            emit("held", {})
            assert is_held.wait(15)
            # When more arrives than may wait
            emissions = [emit("noted", {"text": "x" * 8_000}) for _ in range(10)]
            # Then what is over is failed at once and aloud
            assert [e.results[0].outcome for e in emissions] == ["queued"] * 6 + ["failed"] * 4
        finally:
            released.set()
            signals.event_delivered.disconnect(hold)
        # And as soon as it looks, there is room again
        assert flush()
        assert emit("noted", {"n": "last"}).ok
        assert flush()
        assert peer.payloads[-1] == {"n": "last"}
    lost = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len([text for text in lost if "bytes are waiting in this process already" in text]) >= 4
    assert all(text.endswith(" of them to be sorted") for text in lost[:4])


def test_what_services_that_hang_have_hoarded_leaves_room_on_the_way_in() -> None:
    with override_settings(AEVENTS={"LIMITS": {"WAITING_BYTES": 10_000}}):
        arrivals, (parcel,) = Arrivals(), some_parcels(1)

        assert arrivals.why_full([parcel], lanes=3, waiting_bytes=20_000) is None
        arrivals.put([parcel])
        assert arrivals.why_full([parcel], lanes=3, waiting_bytes=20_000) is None
        arrivals.put([parcel])
        assert arrivals.why_full([parcel], lanes=3, waiting_bytes=20_000) is not None
        assert arrivals.why_full([parcel], lanes=3, waiting_bytes=0) is None
        list(arrivals.take_all())
        assert arrivals.why_full([parcel], lanes=3, waiting_bytes=20_000) is None


def some_parcels(count: int) -> list[Parcel]:
    event = make_event("noted", {}, None)
    destination = Destination("payments", "memory://payments")
    return pack([(event, [destination])] * count, None)[1]


# Forks


LOCKS = {"the courier's": "courier._lock", "the way back's": "Returns._lock"}


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS.keys())
def test_the_child_of_a_fork_wants_no_lock_that_a_thread_of_its_parent_held(lock: str) -> None:
    # Given a thread that is in the midst of its first emit, when nothing has started yet
    with Peer() as peer:
        printed = run(
            f"""
            import signal
            from aevents import aemit
            from aevents.returns import Returns
            is_held, released = threading.Event(), threading.Event()
            def hold():
                with {lock}:
                    is_held.set()
                    released.wait(15)
            thread = threading.Thread(target=hold)
            thread.start()
            is_held.wait(15)
            assert not courier._thread.is_running
            # When the process forks
            pid = os.fork()
            if pid == 0:
                signal.alarm(15)  # it ends a child that hangs
                print(asyncio.run(aemit("noted", {{}})).results[0].outcome, flush=True)
                os._exit(0)
            print("child", os.waitpid(pid, 0)[1])
            released.set()
            thread.join()
            """,
            peer.url,
        )

        # Then the child emits
        assert printed == "delivered\nchild 0\n"


def test_the_child_of_a_fork_emits_on_its_own_and_harms_not_its_parent() -> None:
    with Peer() as peer:
        printed = run(
            """
            from aevents.transports import http
            http._KEEP_ALIVE_S = 60.0  # however slow the machine is
            assert emit("noted", {"n": "before"}).delivered
            for number in range(2):
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    gc.collect()
                    print("child", emit("noted", {"n": "child"}).delivered)
                    sys.exit()  # an ordinary exit: finalizers run, and nothing of theirs is the parent's
                assert os.waitpid(pid, 0)[1] == 0
                emission = emit("noted", {"n": "parent"})
                print("parent", emission.delivered, emission.results[0].attempts)
            """,
            peer.url,
        )

        assert printed == "child True\nparent True 1\n" * 2
        assert [p["n"] for p in peer.payloads] == ["before", "child", "parent", "child", "parent"]
        # The parent's connection is still the one it had
        ours = {r.connection for r in peer.requests if r.payload["n"] in ("before", "parent")}
        assert ours == {1}


def test_the_child_of_a_fork_does_not_send_what_its_parent_had_queued() -> None:
    with Peer(answers_when_released()) as peer:

        def release() -> None:
            peer.wait_for(2)  # the parent's one in flight and the child's own
            peer.release()

        releasing = threading.Thread(target=release)
        releasing.start()
        printed = run(
            """
            hand_over(0, 1, 2, 3)
            while courier._lanes == {} or not next(iter(courier._lanes.values()))._in_flight:
                time.sleep(0.001)
            pid = os.fork()
            if pid == 0:
                print("owed", courier.owed, flush(0.0))
                print("child", emit("noted", {"n": "child"}).results[0].outcome)
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0
            print("flushed", flush())
            """,
            peer.url,
            IN_FLIGHT=1,
        )
        releasing.join()

        assert printed == "owed 0 True\nchild delivered\nflushed True\n"
        assert sorted(str(p["n"]) for p in peer.payloads) == ["0", "1", "2", "3", "child"]
        assert len({r.id for r in peer.requests}) == 5


def test_a_child_that_leaves_without_hooks_can_flush() -> None:
    # As prefork pools do: multiprocessing, Celery
    with Peer() as peer:
        run(
            """
            import multiprocessing

            def work():
                hand_over(*range(10))
                assert flush()

            emit("noted", {"n": "parent"})
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join()
            assert process.exitcode == 0
            """,
            peer.url,
        )

        assert len(peer.requests) == 11


def test_a_fork_in_the_middle_of_traffic_leaves_both_sides_working() -> None:
    # Given threads that emit all the while: whatever lock one of them holds, the child must not want it
    with Peer() as peer:
        printed = run(
            """
            assert emit("noted", {}).delivered
            stop = threading.Event()
            def traffic():
                while not stop.is_set():
                    assert emit("noted", {}).delivered
            threads = [threading.Thread(target=traffic) for _ in range(3)]
            for thread in threads:
                thread.start()
            good = 0
            for number in range(10):
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if emit("noted", {}).delivered else 1)
                good += os.waitpid(pid, 0)[1] == 0
            stop.set()
            for thread in threads:
                thread.join()
            print(good, emit("noted", {}).delivered)
            """,
            peer.url,
        )

    assert printed == "10 True\n"


def test_the_courier_alone_has_a_loop_of_uvloop_where_that_is_installed() -> None:
    with Peer() as peer:
        printed = run(
            """
            loops = []
            async def note(payload): loops.append(asyncio.get_running_loop())
            subscribe_to("own", note)
            assert emit("noted", {}).delivered and emit("own", {}).delivered
            print(type(courier._thread.start()).__module__, type(loops[0]).__module__)
            """,
            peer.url,
        )

    assert printed.split() == ["uvloop" if HAS_UVLOOP else "asyncio.unix_events", "asyncio.unix_events"]
