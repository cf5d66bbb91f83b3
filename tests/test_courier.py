"""The process's one event loop for deliveries: its start, its end, and what a fork makes of it."""

from __future__ import annotations

import asyncio
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

from aevents import aemit, emit, flush, signals
from aevents import courier as courier_module
from aevents.courier import courier
from aevents.event import Event
from tests.peers import Fleet, Peer, answers_when_released, hangs

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


# Forks


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
