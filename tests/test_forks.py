"""Processes that are no servers, forks, and every sort of loop and thread that an event may come from."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from aevents import Emission, aemit, emit, flush
from aevents.loops import why_no_threads
from tests.peers import Exchange, Fleet, Peer
from tests.process_project.running import Done, run


@pytest.fixture
def peer(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """Gets every event; each test has a courier of its own."""
    monkeypatch.setattr("aevents.transports.http._KEEP_ALIVE_S", 60.0)  # however slow the machine is
    with Peer() as peer, Fleet(settings) as fleet:
        fleet(payments=peer)
        yield peer


# Commands


def manage(peer: Peer, *arguments: str) -> Done:
    return run("tests.process_project.manage", *arguments, url=peer.url, EXIT_S=20)


def test_a_management_command_sends_what_it_emits_also_at_its_last_line() -> None:
    with Peer() as peer:
        done = manage(peer, "tell")

        assert (done.errors, done.printed) == ([], ["delivered queued"])
        assert [r.event_type for r in peer.requests] == ["told-waited", "told-queued"]


def test_manage_py_shell_sends_what_it_emits() -> None:
    code = (
        "import asyncio; from aevents import aemit, emit;"
        "print(emit('told-sync', {}).results[0].outcome);"
        "print(asyncio.run(aemit('told-async', {})).results[0].outcome)"
    )
    with Peer() as peer:
        done = manage(peer, "shell", "--verbosity=0", "-c", code)

        assert (done.errors, done.printed) == ([], ["delivered", "delivered"])
        assert [r.event_type for r in peer.requests] == ["told-sync", "told-async"]


# Forks


def test_workers_of_a_prefork_pool_that_flush_before_they_leave_lose_nothing() -> None:
    # Given a parent that has emitted before it forks, as a preloading server has
    with Peer() as peer:
        done = run("tests.process_project.forking", "prefork", url=peer.url)

        # Then what each has emitted arrives once: nobody sent what another one had queued
        assert (done.errors, done.printed) == ([], ["[0, 0, 0] delivered"])
        assert sorted(p["n"] for p in peer.payloads) == [0, 1, 2, 3, 11, 12, 13, 21, 22, 23, 100]
        assert len({r.payload["pid"] for r in peer.requests}) == 4


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.soak)])
def test_children_of_multiprocessing_send_what_they_emit_without_a_flush(method: str) -> None:
    # By fork and forkserver they leave by os._exit, and no atexit callback is called; by spawn it is
    last = [1, 24, 25]  # what is handed over right before a child leaves
    refused: list[str] = []

    async def wants_the_last_in_a_second(exchange: Exchange) -> None:
        request = exchange.request
        if request.payload["n"] in last and request.id not in refused:
            refused.append(request.id)
            await exchange.answer(503, retry_after="1")
        else:
            await exchange.answer(200)

    with Peer(wants_the_last_in_a_second) as peer:
        done = run("tests.process_project.forking", method, url=peer.url, EXIT_S=20)

        # Then the children have waited for that, and everything else has arrived once
        assert (done.errors, done.printed) == ([], ["0 ['delivered']"])
        assert len(refused) == 3
        of_the_parent = [0] if method == "fork" else []
        of_the_children = [1, *range(10, 16), *range(20, 26)]
        arrived = Counter(request.id for request in peer.requests)
        assert arrived == Counter({**dict.fromkeys(arrived, 1), **dict.fromkeys(refused, 2)})
        numbers = sorted(p["n"] for p in peer.payloads)
        assert numbers == sorted(of_the_parent + of_the_children + last)


def test_a_fork_waits_until_no_name_is_looked_up() -> None:
    with Peer() as peer:
        done = run("tests.process_project.forking", "while_a_name_is_looked_up", url=peer.url, EXIT_S=20)

        assert (done.errors, done.printed) == ([], ["0"])
        assert len(peer.requests) == 1


# Loops


def test_asyncio_run_again_and_again_uses_one_courier_and_one_connection(peer: Peer) -> None:
    for n in range(50):
        assert asyncio.run(aemit("noted", {"n": n})).delivered

    assert [p["n"] for p in peer.payloads] == list(range(50))
    assert peer.connections == 1


def test_many_loops_at_once_get_each_their_own_answers(peer: Peer) -> None:
    async def emit_all(loop: int) -> list[Emission]:
        return await asyncio.gather(*(aemit("noted", {"loop": loop, "n": n}) for n in range(20)))

    with ThreadPoolExecutor(8) as threads:
        emissions = list(threads.map(lambda loop: asyncio.run(emit_all(loop)), range(8)))

    assert all(emission.delivered for of_a_loop in emissions for emission in of_a_loop)
    sent = {request.id: request.payload["loop"] for request in peer.requests}
    assert len(sent) == 160
    for loop, of_a_loop in enumerate(emissions):
        assert {sent[emission.id] for emission in of_a_loop} == {loop}


def test_a_notebook_may_await_aemit_and_may_call_emit_which_waits_for_nobody(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a loop that runs all the time and is given one cell after the other
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()

    async def awaiting_cell() -> Emission:
        return await aemit("noted", {"cell": 1})

    async def calling_cell() -> Emission:
        return emit("noted", {"cell": 2})

    # When the cells are run
    awaited, called = (
        asyncio.run_coroutine_threadsafe(cell(), loop).result(20) for cell in (awaiting_cell, calling_cell)
    )

    # Then one has its answer and the other is on its way
    assert (awaited.results[0].outcome, called.results[0].outcome) == ("delivered", "queued")
    assert flush(20)
    assert [p["cell"] for p in peer.payloads] == [1, 2]
    loop.call_soon_threadsafe(loop.stop)
    running.join()
    loop.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.django_db(transaction=True)
def test_aemit_through_async_to_sync_joins_no_transaction(peer: Peer) -> None:
    # Given an open transaction
    with transaction.atomic():
        # When aemit is called in it
        emission = async_to_sync(aemit)("noted", {"by": "aemit"})
        waiting = emit("noted", {"by": "emit"})
        # Then it has sent, while emit waits for the commit
        assert (emission.delivered, waiting.results[0].outcome) == (True, "queued")
        assert [p["by"] for p in peer.payloads] == ["aemit"]
        transaction.set_rollback(True)

    # And a rollback takes back only what waited
    assert flush()
    assert [p["by"] for p in peer.payloads] == ["aemit"]


@pytest.mark.django_db(transaction=True)
def test_emit_in_a_transaction_that_async_code_opened_in_a_thread_waits_for_its_commit(peer: Peer) -> None:
    def write() -> Emission:
        with transaction.atomic():
            emission = emit("noted", {})
            assert peer.requests == []
            return emission

    async def view() -> Emission:
        return await sync_to_async(write)()

    assert async_to_sync(view)().results[0].outcome == "queued"
    assert flush()
    assert len(peer.requests) == 1


# Threads


def test_threads_that_end_leave_nothing_behind(peer: Peer) -> None:
    emissions: list[Emission] = []
    before = set(threading.enumerate())
    for n in range(40):
        thread = threading.Thread(target=lambda n=n: emissions.append(emit("noted", {"n": n})))
        thread.start()
        thread.join()

    assert all(emission.delivered for emission in emissions)
    assert [p["n"] for p in peer.payloads] == list(range(40))
    assert {t.name for t in set(threading.enumerate()) - before} == {"aevents"}
    assert peer.connections == 1


def test_a_thread_that_ends_with_what_it_handed_over_under_way_loses_nothing(peer: Peer) -> None:
    async def hand_over() -> None:
        for n in range(5):
            emit("noted", {"n": n})

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(asyncio.run, hand_over())

    assert flush()
    assert Counter(p["n"] for p in peer.payloads) == Counter(dict.fromkeys(range(5), 4))


def test_where_gevent_has_patched_the_threads_everything_says_so_and_nothing_hangs() -> None:
    with Peer() as peer:
        done = run("tests.process_project.patched", url=peer.url, options=("-W", "default"))

        why = "the courier does not run: gevent has patched the threads of this process"
        assert done.printed == [
            f"emit failed {why}",
            f"aemit failed {why}",
            "flush True",
            "check ['aevents.W003']",
            "received 503",
        ]
        assert done.returncode == 0
        assert peer.requests == []
        lost = [line for line in done.errors if line.startswith("Lost")]
        assert [line.split()[1] for line in lost] == ["told-sync", "told-async"]


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({}, False),
        ({b"enable-threads": b"false"}, False),
        ({"enable-threads": "0"}, False),
        ({b"enable-threads": True}, True),
        ({b"enable-threads": b"true"}, True),
        ({b"threads": b"2"}, True),
    ],
)
def test_uwsgi_must_be_told_to_run_threads(
    options: dict[Any, Any], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given uWSGI's own module, which is there only in its processes
    uwsgi = ModuleType("uwsgi")
    monkeypatch.setattr(uwsgi, "opt", options, raising=False)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)

    assert why_no_threads() == (None if runs else "uWSGI runs without threads: set enable-threads = true")


def test_eventlet_is_known_by_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = ModuleType("eventlet.patcher")
    monkeypatch.setattr(patcher, "is_monkey_patched", lambda name: name == "thread", raising=False)
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)

    assert why_no_threads() == "eventlet has patched the threads of this process"
