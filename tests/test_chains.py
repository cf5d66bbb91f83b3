"""Events emitted by handlers: where they come from, what they are called, and where they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from aevents import (
    Emission,
    InvalidEvent,
    aemit,
    aemit_many,
    current_event,
    emit,
    emit_many,
    flush,
    subscribe_to,
    suppressed,
)
from aevents.event import derived_id
from aevents.testing import adeliver
from tests import servers
from tests.peers import Fleet, Peer, Request, eventually, hangs


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
def peer(fleet: Fleet) -> Iterator[Peer]:
    """Gets `noted` and `answered`; `begun` and `continued` are this service's own."""
    with Peer() as peer:
        own, others = ["tests"], ["payments"]
        fleet(
            payments=peer,
            SUBSCRIPTIONS={"begun": own, "continued": own, "noted": others, "answered": others},
        )
        yield peer


def sync_handler(event_type: str, work: Callable[[Any], Any], name: str = "handler") -> None:
    def handler(payload: Any) -> None:
        work(payload)

    subscribe_to(event_type, handler, name=name, atomic=False)


def async_handler(event_type: str, work: Callable[[Any], Any], name: str = "handler") -> None:
    async def handler(payload: Any) -> None:
        work(payload)

    subscribe_to(event_type, handler, name=name)


BOTH_KINDS = pytest.mark.parametrize("subscribe", [sync_handler, async_handler])


def all_of(peer: Peer) -> list[Request]:
    assert flush()
    return peer.requests


# Where they come from


@BOTH_KINDS
def test_an_event_of_a_handler_carries_cause_correlation_and_hops(subscribe: Any, peer: Peer) -> None:
    subscribe("begun", lambda payload: emit("continued", payload), "first")
    subscribe("continued", lambda payload: emit("noted", payload), "second")

    root = emit("begun", {"n": 1})

    (request,) = all_of(peer)
    continued = derived_id(root.id, "first", "continued", 0)
    assert request.headers["ce-causationid"] == continued
    assert request.headers["ce-correlationid"] == root.id
    assert request.headers["ce-hops"] == "2"
    assert request.id == derived_id(continued, "second", "noted", 0)
    assert request.headers["ce-source"] == "/tests"


def test_an_event_of_no_handler_has_none_of_that(peer: Peer) -> None:
    emit("noted", {})

    assert not {"ce-causationid", "ce-correlationid", "ce-hops"} & set(peer.requests[0].headers)


@BOTH_KINDS
def test_the_event_is_known_inside_its_handler_and_nowhere_else(subscribe: Any, peer: Peer) -> None:
    seen: list[Any] = []
    subscribe("begun", lambda payload: seen.append(current_event()))

    root = emit("begun", {"n": 1}, key="k")

    (event,) = seen
    assert (event.id, event.type, event.payload, event.source) == (root.id, "begun", {"n": 1}, "tests")
    assert (event.key, event.cause, event.hops, event.attempt) == ("k", None, 0, 1)
    assert current_event() is None


Way = Callable[[], Awaitable[Any]]


async def by_task() -> None:
    await asyncio.create_task(aemit("noted", {}))


async def by_sync_to_async() -> None:
    await sync_to_async(emit)("noted", {})


async def by_thread() -> None:
    await asyncio.to_thread(emit, "noted", {})


async def by_emit() -> None:
    emit("noted", {})


async def by_emit_many() -> None:
    emit_many([("noted", {})])


async def by_aemit_many() -> None:
    await aemit_many([("noted", {})])


@pytest.mark.parametrize("way", [by_task, by_sync_to_async, by_thread, by_emit, by_emit_many, by_aemit_many])
def test_whatever_way_a_handler_emits_the_event_is_its_child(way: Way, peer: Peer) -> None:
    async def handler(payload: Any) -> None:
        await way()

    subscribe_to("begun", handler, name="handler")

    root = emit("begun", {})

    (request,) = all_of(peer)
    assert request.id == derived_id(root.id, "handler", "noted", 0)
    assert request.headers["ce-causationid"] == root.id


def test_a_thread_of_its_own_begins_a_family_of_its_own(peer: Peer) -> None:
    def handler(payload: Any) -> None:
        thread = threading.Thread(target=emit, args=("noted", {}))
        thread.start()
        thread.join()

    sync_handler("begun", handler)
    emit("begun", {})

    assert "ce-causationid" not in all_of(peer)[0].headers


# What they are called


@BOTH_KINDS
def test_a_handler_that_runs_again_emits_the_same_ids(subscribe: Any, peer: Peer) -> None:
    # Given a handler that emits three times and then fails, at first
    attempts = []

    def work(payload: Any) -> None:
        event = current_event()
        assert event is not None
        attempts.append(event.attempt)
        emit("noted", {"n": 0})
        emit_many([("noted", {"n": 1}), ("answered", {"n": 2})])
        if event.attempt == 1:
            raise ValueError("not yet")

    subscribe("begun", work)

    root = emit("begun", {})

    # Then both runs gave the same names to what they emitted, and different ones within a run
    assert root.delivered
    assert attempts == [1, 2]
    requests = sorted(all_of(peer), key=lambda r: r.payload["n"])
    ids = [r.id for r in requests]
    assert ids[0::2] == ids[1::2]
    assert ids[0::2] == [
        derived_id(root.id, "handler", "noted", 0),
        derived_id(root.id, "handler", "noted", 1),
        derived_id(root.id, "handler", "answered", 0),
    ]
    assert len(set(ids)) == 3


def test_two_handlers_of_one_event_give_different_names(peer: Peer) -> None:
    for name in ("one", "two"):
        sync_handler("begun", lambda payload: emit("noted", {}), name)

    root = emit("begun", {})

    assert sorted(r.id for r in all_of(peer)) == sorted(
        derived_id(root.id, name, "noted", 0) for name in ("one", "two")
    )


def test_a_wrong_call_and_a_suppressed_one_take_no_number(peer: Peer) -> None:
    def work(payload: Any) -> None:
        emit("noted", object())
        with suppressed("a test"):
            emit("noted", {"n": 0})
        emit("noted", {"n": 1})

    sync_handler("begun", work)

    root = emit("begun", {})

    (request,) = all_of(peer)
    assert request.id == derived_id(root.id, "handler", "noted", 0)


def test_derived_ids_are_uuids_and_keep_their_parts_apart() -> None:
    ids = {
        derived_id("ab", "c", "d", 0),
        derived_id("a", "bc", "d", 0),
        derived_id("a", "b", "cd", 0),
        derived_id("a", "b", "c", 0),
        derived_id("a", "b", "c", 1),
    }

    assert len(ids) == 5
    assert all(len(found) == 36 and found[14] == "8" and found[19] in "89ab" for found in ids)
    assert derived_id("a", "b", "c", 0) == derived_id("a", "b", "c", 0)


def test_followers_drop_what_a_second_run_emits_again(peer: Peer) -> None:
    # Given a follower in this service, of a handler that fails once after it emitted
    runs: list[Any] = []
    failed: list[bool] = []

    def work(payload: Any) -> None:
        emit("continued", payload)
        eventually(lambda: runs)
        if not failed:
            failed.append(True)
            raise ValueError("once")

    sync_handler("begun", work, "first")
    sync_handler("continued", runs.append, "follower")

    assert emit("begun", {"n": 1}).delivered

    assert flush()
    assert runs == [{"n": 1}]


# They are handed over


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_waits_for_nobody(kind: str, fleet: Fleet) -> None:
    emissions: list[Emission] = []

    async def with_aemit(payload: Any) -> None:
        emissions.append(await aemit("noted", {}))
        emissions.extend(await aemit_many([("noted", {})]))

    def with_emit(payload: Any) -> None:
        emissions.append(emit("noted", {}))
        emissions.extend(emit_many([("noted", {})]))

    with Peer(hangs) as peer:
        fleet(payments=peer, SUBSCRIPTIONS={"begun": ["tests"], "noted": ["payments"]})
        if kind == "sync":
            subscribe_to("begun", with_emit, name="handler", atomic=False)
        else:
            subscribe_to("begun", with_aemit, name="handler")

        # A service that hangs would cost a call's 5 s
        began = time.monotonic()
        assert emit("begun", {}).delivered

        assert time.monotonic() - began < 4
        assert [e.results[0].outcome for e in emissions] == ["queued", "queued"]
        peer.wait_for(2)


@BOTH_KINDS
def test_a_service_may_emit_to_itself_from_as_many_handlers_as_it_has_threads(
    subscribe: Any, peer: Peer
) -> None:
    # Given more events at once than threads, each of which needs a thread for its own follower
    done: list[Any] = []
    subscribe("begun", lambda payload: emit("continued", payload), "first")
    subscribe("continued", done.append, "second")

    emissions = emit_many([("begun", {"n": n}) for n in range(60)])

    assert all(e.delivered for e in emissions)
    assert flush()
    assert sorted(payload["n"] for payload in done) == list(range(60))


# Where they end


@BOTH_KINDS
def test_a_circle_ends_after_sixteen_hops_with_an_error(
    subscribe: Any, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    hops: list[int] = []
    ends: list[Emission] = []

    def work(payload: Any) -> None:
        event = current_event()
        assert event is not None
        hops.append(event.hops)
        emission = emit("begun", payload)
        if not emission.ok:
            ends.append(emission)

    subscribe("begun", work)

    root = emit("begun", {})

    assert flush()
    assert hops == list(range(17))
    (end,) = ends
    assert "the end of a chain of 16 events" in str(end.error)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "do services answer each other in a circle?" in record.getMessage()
    assert root.id in record.getMessage()


def test_the_end_of_a_circle_raises_where_strict_is_on(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet(STRICT=True, LIMITS={"TRIES": 1}, SUBSCRIPTIONS={"begun": ["tests"]})
    sync_handler("begun", lambda payload: emit("begun", payload))

    emit("begun", {})

    assert flush()
    failed, lost = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert failed.exc_info is not None
    assert failed.exc_info[0] is InvalidEvent
    assert lost.getMessage().startswith("Lost begun ")


async def test_deliver_makes_the_event_the_cause_of_what_its_handlers_emit(peer: Peer) -> None:
    async_handler("begun", lambda payload: emit("noted", payload))

    await adeliver("begun", {"n": 1})

    (request,) = await asyncio.to_thread(all_of, peer)
    assert request.headers["ce-hops"] == "1"


# Real services


@pytest.fixture(scope="module")
def collector() -> Iterator[Peer]:
    """Takes `ended` in place of the test's own service."""
    with Peer() as peer:
        yield peer


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, collector: Peer
) -> Iterator[dict[str, tuple[str, Path]]]:
    """Three services as processes, by name: their URL and their log."""
    folder = tmp_path_factory.mktemp("chains")
    bind = ("--no-control-socket", "--bind=127.0.0.1:{port}", servers.WSGI)
    one_thread = ["gunicorn", "--worker-class=gthread", "--threads=1", "--workers=1", *bind]
    sync_worker = ["gunicorn", "--worker-class=sync", "--workers=1", *bind]
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setitem(servers.COMMANDS, "one-thread", one_thread)
        patch.setitem(servers.COMMANDS, "sync-worker", sync_worker)
        found = {}
        for name, server in (("one", "uvicorn"), ("two", "one-thread"), ("three", "sync-worker")):
            environment = {"CHAIN_SERVICE": name, "CHAIN_MAP": str(folder / "map.json")}
            log = folder / f"{name}.log"
            url = stack.enter_context(
                servers.running(server, settings="tests.chain_project.settings", env=environment, log=log)
            )
            found[name] = (f"{url}events/", log)
        urls = {name: url for name, (url, _) in found.items()} | {"tests": collector.url}
        (folder / "map.json").write_text(json.dumps(urls))
        yield found


def test_two_services_that_answer_each_other_stop_after_sixteen_hops(
    services: dict[str, tuple[str, Path]], fleet: Fleet
) -> None:
    (one, log_one), (two, log_two) = services["one"], services["two"]
    fleet(one=one, two=two, SUBSCRIPTIONS={"ping": ["one"]})

    root = emit("ping", {"n": 0})

    assert root.delivered
    # 16 hops after the first it is the turn of `one`, which refuses to go on and says so
    eventually(lambda: "do services answer each other in a circle?" in log_one.read_text())
    eventually(lambda: log_one.read_text().count("DEBUG Handled ping") == 9)
    # Its handler has emitted before it is told of as handled
    eventually(lambda: log_two.read_text().count("DEBUG Handled pong") == 8)
    error = next(line for line in log_one.read_text().splitlines() if line.startswith("ERROR"))
    assert f"(the first was {root.id})" in error


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_a_service_that_emits_to_itself_needs_no_second_thread_of_its_server(
    name: str, services: dict[str, tuple[str, Path]], collector: Peer, fleet: Fleet
) -> None:
    url, log = services[name]
    fleet(**{name: url}, SUBSCRIPTIONS={"asked": [name]})

    emissions = [emit("asked", {"n": n, "to": name}) for n in range(3)]

    assert all(e.delivered for e in emissions)

    def ended() -> list[Request]:
        return [r for r in collector.requests if r.payload.get("to") == name]

    requests = eventually(lambda: len(ended()) == 3 and ended(), what=log.read_text())
    assert sorted(r.payload["n"] for r in requests) == [0, 1, 2]
    assert all(r.payload["source"] == name and r.payload["hops"] == 2 for r in requests)
    assert {r.headers["ce-hops"] for r in requests} == {"3"}
    assert {r.headers["ce-correlationid"] for r in requests} == {e.id for e in emissions}


@pytest.mark.parametrize("name", ["one", "three"])
def test_a_handler_that_outlasts_the_call_runs_once_in_another_process_too(
    name: str,
    services: dict[str, tuple[str, Path]],
    collector: Peer,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # An 8 s handler and a call of 5 s, on another scale
    caplog.set_level(logging.DEBUG, "aevents")
    url, log = services[name]
    fleet(**{name: url}, LIMITS={"CALL_S": 0.3})
    before = log.read_text().count("Handled asked-slowly")

    emission = emit("asked-slowly", {"seconds": 0.6, "slow": name})

    assert emission.results[0].outcome == "queued"
    assert flush()
    assert f"Delivered asked-slowly {emission.id} to {name}" in caplog.text
    eventually(lambda: [r for r in collector.requests if r.payload.get("slow") == name])
    assert log.read_text().count("Handled asked-slowly") == before + 1
