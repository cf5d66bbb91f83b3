"""The receiving half: what each message gets, what runs, and what is remembered of it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone, translation

from aevents import current_event, letters, receiver, signals, subscribe_to
from aevents.answer import Answer
from aevents.event import Message, new_id
from aevents.receiver import receive
from aevents.transports.base import Brought
from aevents.transports.rehearsal import an_event
from tests.project.clients import JSON, THROUGH_DJANGO, WAYS, ask, ask_asgi

# No store: what these handlers do is kept in the test, and no thread of a handler opens a database.
AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
BODY = b'{"event_type":"user-created","payload":{"user_id":7}}'


@pytest.fixture(autouse=True)
def _no_store(settings: Any) -> None:
    settings.AEVENTS = AEVENTS


@pytest.fixture
def event_id() -> str:
    """An id of this test's own: what was handled is remembered for as long as the process lives."""
    return new_id()


def message(event_id: str | None = None, body: bytes = BODY) -> Message:
    return Message({**JSON, "webhook-id": event_id or new_id()}, body)


async def received(event_id: str | None = None, body: bytes = BODY) -> Answer:
    return await receive(message(event_id, body), peer="192.0.2.7", at_home=True)


# --- the verdicts ---


async def test_an_event_is_handled_by_all_its_handlers_sync_and_async(event_id: str) -> None:
    # Given four handlers of one event, of both kinds
    calls: list[tuple[str, Any]] = []

    async def first(payload: Any) -> None:
        calls.append(("first", payload))

    def second(payload: Any) -> None:
        calls.append(("second", payload))

    class Third:
        async def __call__(self, payload: Any) -> None:
            calls.append(("third", payload))

    async def fourth(payload: Any) -> None:
        calls.append(("fourth", payload))

    for name, handler in (("1", first), ("2", second), ("3", Third()), ("4", lambda p: fourth(p))):
        subscribe_to("user-created", handler, name=name)
    # When the event arrives
    answer = await received(event_id)
    # Then each has run once, and the answer says so
    assert (answer.status, answer.content) == (200, {"id": event_id, "status": "handled"})
    assert sorted(calls) == [(name, {"user_id": 7}) for name in ("first", "fourth", "second", "third")]


async def test_an_event_that_nobody_handles_is_taken_and_told_so(event_id: str) -> None:
    answer = await received(event_id)
    assert (answer.status, answer.content) == (200, {"id": event_id, "status": "unhandled"})


async def test_a_handler_knows_its_event(event_id: str) -> None:
    seen: list[Any] = []

    async def handler(payload: Any) -> None:
        seen.append(current_event())

    subscribe_to("user-created", handler, name="handler")
    headers = {**JSON, "ce-source": "/accounts", "ce-id": event_id, "ce-partitionkey": "k", "ce-hops": "2"}
    await receive(Message(headers, BODY), peer="", at_home=True)
    [event] = seen
    assert (event.id, event.type, event.source, event.key, event.hops) == (
        event_id,
        "user-created",
        "accounts",
        "k",
        2,
    )
    assert current_event() is None


async def test_each_handler_gets_a_payload_of_its_own() -> None:
    seen: list[Any] = []

    def greedy(payload: Any) -> None:
        seen.append(payload.pop("user_id"))

    subscribe_to("user-created", greedy, name="a")
    subscribe_to("user-created", lambda p: greedy(p), name="b")
    assert (await received()).status == 200
    assert seen == [7, 7]


async def test_a_failing_handler_stops_no_other_and_only_it_runs_again(event_id: str) -> None:
    # Given a handler that fails at its first try, between others that do not
    calls: list[tuple[str, int]] = []

    def note(name: str, fails_until: int = 0) -> Callable[[Any], None]:
        def handler(payload: Any) -> None:
            event = current_event()
            assert event is not None
            calls.append((name, event.attempt))
            if event.attempt <= fails_until:
                raise ValueError("not yet")

        return handler

    async def bad(payload: Any) -> None:
        note("bad", fails_until=2)(payload)

    subscribe_to("user-created", note("good"), name="good")
    subscribe_to("user-created", bad, name="bad")
    subscribe_to("user-created", note("also good"), name="also good")
    # When the event comes, and comes again until it is taken
    answers = [await received(event_id) for _ in range(4)]
    # Then the answer is 503 and names the handler, never its error
    assert [answer.status for answer in answers] == [503, 503, 200, 200]
    assert answers[0].content == {
        "id": event_id,
        "status": "failed",
        "detail": "These handlers failed: bad",
    }
    assert answers[2].content["status"] == "handled"
    assert answers[3].content["status"] == "duplicate"
    # And the good ones have run once, the bad one until it succeeded
    assert sorted(calls) == [("also good", 1), ("bad", 1), ("bad", 2), ("bad", 3), ("good", 1)]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        RuntimeError("line\nbreak \x1b[31m"),
        SystemExit(1),
        asyncio.CancelledError(),
        GeneratorExit(),
        TimeoutError(),
        StopIteration(),
        StopAsyncIteration(),
        RecursionError(),
        MemoryError(),
        BaseExceptionGroup("two", [ValueError(), KeyError()]),
        type("Unprintable", (Exception,), {"__str__": lambda self: 1 / 0})(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_whatever_a_handler_raises_is_its_own_failure(
    error: BaseException, is_async: bool, event_id: str
) -> None:
    calls: list[str] = []

    async def raises_async(payload: Any) -> None:
        raise error

    def raises(payload: Any) -> None:
        raise error

    async def other(payload: Any) -> None:
        calls.append("other")

    subscribe_to("user-created", raises_async if is_async else raises, name="bad")
    subscribe_to("user-created", other, name="good")
    answer = await received(event_id)
    assert answer.status == 503
    assert answer.content["detail"] == "These handlers failed: bad"
    assert calls == ["other"]
    # And it is not taken for done
    assert (await received(event_id)).status == 503
    assert calls == ["other"]


async def test_events_without_an_id_are_never_taken_for_each_other() -> None:
    calls: list[Any] = []
    subscribe_to("user-created", calls.append, name="handler")
    for _ in range(2):
        answer = await receive(Message(JSON, BODY), peer="", at_home=True)
        assert answer.content["status"] == "handled"
    assert len(calls) == 2


async def test_a_duplicate_is_announced_and_runs_nothing(event_id: str) -> None:
    calls: list[Any] = []
    facts: list[str] = []
    subscribe_to("user-created", calls.append, name="handler")

    def on_duplicate(event: Any, **_: Any) -> None:
        facts.append(event.id)

    signals.event_duplicate.connect(on_duplicate)
    try:
        answers = [await received(event_id) for _ in range(3)]
    finally:
        signals.event_duplicate.disconnect(on_duplicate)
    assert [answer.content["status"] for answer in answers] == ["handled", "duplicate", "duplicate"]
    assert len(calls) == 1
    assert facts == [event_id, event_id]


async def test_a_handler_that_is_new_since_the_first_try_runs_at_the_second(event_id: str) -> None:
    calls: list[str] = []
    subscribe_to("user-created", lambda p: calls.append("old"), name="old")
    await received(event_id)
    subscribe_to("user-created", lambda p: calls.append("new"), name="new")
    assert (await received(event_id)).content["status"] == "handled"
    assert calls == ["old", "new"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_copy_that_arrives_meanwhile_joins_the_running_handler(is_async: bool, event_id: str) -> None:
    # Given a handler that runs until it is let go
    calls: list[str] = []
    has_begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def begin(payload: Any) -> None:
        calls.append("begun")
        loop.call_soon_threadsafe(has_begun.set)
        assert may_end.wait(15)

    async def begin_async(payload: Any) -> None:
        calls.append("begun")
        has_begun.set()
        await asyncio.to_thread(may_end.wait, 15)

    subscribe_to("user-created", begin_async if is_async else begin, name="slow")
    # When the event arrives three times before it ends
    first = asyncio.create_task(received(event_id))
    await has_begun.wait()
    others = [asyncio.create_task(received(event_id)) for _ in range(2)]
    done, _ = await asyncio.wait(others, timeout=0.05)
    # Then the copies wait for the one run, and all have its answer
    assert not done
    may_end.set()
    answers = await asyncio.gather(first, *others)
    assert [answer.content["status"] for answer in answers] == ["handled"] * 3
    assert calls == ["begun"]


async def test_a_copy_that_joined_shares_the_failure(event_id: str) -> None:
    calls: list[str] = []
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(payload: Any) -> None:
        calls.append("begun")
        has_begun.set()
        await may_end.wait()
        raise ValueError("bad")

    subscribe_to("user-created", slow, name="slow")
    first = asyncio.create_task(received(event_id))
    await has_begun.wait()
    second = asyncio.create_task(received(event_id))
    for _ in range(20):  # turns of the loop, more than the second one needs to get there
        await asyncio.sleep(0)
    may_end.set()
    assert [answer.status for answer in await asyncio.gather(first, second)] == [503, 503]
    assert calls == ["begun"]


def test_copies_in_several_threads_run_the_handler_once() -> None:
    # Given a WSGI server's threads
    calls: list[str] = []
    may_end = threading.Event()
    has_begun = threading.Event()

    def slow(payload: Any) -> None:
        calls.append("begun")
        has_begun.set()
        assert may_end.wait(15)

    subscribe_to("user-created", slow, name="slow")
    headers = {**JSON, "webhook-id": new_id()}
    # When three of them get the same event
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(ask, "wsgi", BODY, headers) for _ in range(3)]
        assert has_begun.wait(15)
        may_end.set()
        replies = [future.result(15) for future in waiting]
    # Then it runs once
    assert [reply.status for reply in replies] == [200] * 3
    assert {reply.content["status"] for reply in replies} <= {"handled", "duplicate"}
    assert calls == ["begun"]


async def test_a_receiver_that_is_cancelled_lets_the_handlers_end(event_id: str) -> None:
    has_begun, may_end, has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    runs = 0

    async def slow(payload: Any) -> None:
        nonlocal runs
        runs += 1
        has_begun.set()
        await may_end.wait()
        has_ended.set()

    subscribe_to("user-created", slow, name="slow")
    task = asyncio.create_task(received(event_id))
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    await asyncio.wait_for(has_ended.wait(), 15)
    # One that comes before that is noted waits for it.
    assert (await received(event_id)).content["status"] in ("handled", "duplicate")
    assert (await received(event_id)).content["status"] == "duplicate"
    assert runs == 1


def test_where_no_loop_can_be_had_the_emitter_is_told_to_come_again() -> None:
    # Given uWSGI without threads, by the module that it puts into its processes
    program = """
import sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(opt={})
import django
django.setup()
from aevents import subscribe_to
from tests.project.clients import ask
async def handler(payload): ...
subscribe_to("user-created", handler, name="handler")
reply = ask("wsgi", '{"event_type":"user-created","payload":1}')
print(reply.status, reply.content["status"], reply.content["detail"])
"""
    # When an event arrives for an async handler
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Then it is refused for now, as JSON, and the log says why
    assert done.stdout == "503 failed The event could not be handled here; the log says why.\n", done.stderr
    assert "enable-threads" in done.stderr


# --- where it came from ---


@pytest.mark.parametrize("way", THROUGH_DJANGO)  # the short way passes middleware by, and answers in English
def test_handlers_see_the_settings_language_and_zone_and_leave_the_request_its_own(way: str) -> None:
    # Given a request in German, and handlers that change what is chosen
    seen: list[tuple[str | None, str]] = []

    def handler(payload: Any) -> None:
        seen.append((translation.get_language(), timezone.get_current_timezone_name()))
        translation.activate("fr")
        timezone.activate("Asia/Tokyo")

    async def async_handler(payload: Any) -> None:
        handler(payload)

    for n in range(2):
        subscribe_to("user-created", lambda p: handler(p), name=f"sync {n}")
        subscribe_to("user-created", async_handler, name=f"async {n}")
    with override_settings(MIDDLEWARE=["django.middleware.locale.LocaleMiddleware"]):
        reply = ask(way, BODY, {**JSON, "accept-language": "de"})
    # Then each handler begins as the settings say, and the answer is in German still
    assert reply.status == 200
    assert seen == [("en-us", "UTC")] * 4
    assert reply.headers["content-language"] == "de"


@pytest.mark.parametrize("way", WAYS)
def test_async_handlers_run_on_one_loop_that_lives_on(way: str) -> None:
    # Under WSGI each request has a loop of its own, which ends with it: no place for a kept client.
    loops: list[asyncio.AbstractEventLoop] = []

    async def handler(payload: Any) -> None:
        loops.append(asyncio.get_running_loop())

    subscribe_to("user-created", handler, name="handler")
    for _ in range(2):
        assert ask(way, BODY).status == 200
    if way == "wsgi":
        assert loops[0] is loops[1]
        assert loops[0].is_running()
    else:
        assert not any(loop.is_running() for loop in loops)  # the test's server has stopped, twice


def test_under_asgi_handlers_run_on_the_server_s_loop_behind_sync_middleware_too() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def handler(payload: Any) -> None:
        loops.append(asyncio.get_running_loop())

    async def serve() -> None:
        headers = {**JSON, "content-length": str(len(BODY))}
        assert (await ask_asgi(BODY, headers)).status == 200
        loops.append(asyncio.get_running_loop())

    subscribe_to("user-created", handler, name="handler")
    with override_settings(
        MIDDLEWARE=["tests.project.middleware.in_a_thread", "tests.project.middleware.on_the_loop"]
    ):
        asyncio.run(serve())
    assert loops[0] is loops[1]


# --- the unsigned wire ---


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "aevents"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "aevents"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("rule", "debug", "status"),
    [
        (None, True, 200),
        (None, False, 401),
        ("accept", True, 200),
        ("accept", False, 200),
        ("warn", True, 200),
        ("warn", False, 200),
        ("refuse", True, 401),
        ("refuse", False, 401),
        ("anything else", True, 401),
    ],
)
def test_unsigned_events_fare_as_the_setting_says(
    way: str, rule: str | None, debug: bool, status: int
) -> None:
    calls: list[Any] = []
    subscribe_to("user-created", calls.append, name="handler")
    with override_settings(AEVENTS={**AEVENTS, "UNSIGNED": rule}, DEBUG=debug):
        reply = ask(way, BODY)
    assert reply.status == status
    assert len(calls) == (1 if status == 200 else 0)
    if status == 401:
        assert set(reply.content) == {"detail"}
        assert "AEVENTS['UNSIGNED']" in reply.content["detail"]


@pytest.mark.parametrize("debug", [True, False])
def test_without_any_settings_unsigned_events_are_taken_only_while_debugging(debug: bool) -> None:
    with override_settings(DEBUG=debug), override_settings(AEVENTS={"STORE": None, "ENABLED": True}):
        assert ask("wsgi", BODY).status == (200 if debug else 401)


def test_refusal_comes_before_anything_in_the_body_is_read() -> None:
    with override_settings(AEVENTS={**AEVENTS, "UNSIGNED": "refuse"}):
        assert ask("wsgi", b"not json").status == 401


async def test_an_unsigned_event_is_warned_of_once_a_minute_for_each_peer(
    warnings: Callable[[], list[str]], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a clock of our own
    clock = [1000.0]
    monkeypatch.setattr("aevents.receiver.time.monotonic", lambda: clock[0])
    settings.AEVENTS = {**AEVENTS, "UNSIGNED": "warn"}

    async def arrive(peer: str) -> None:
        assert (await receive(message(), peer=peer, at_home=True)).status == 200

    # When two peers send three events each within a minute
    for _ in range(3):
        await arrive("203.0.113.1")
        await arrive("203.0.113.2")
    clock[0] += 59
    await arrive("203.0.113.1")
    # Then each was named once
    assert warnings() == [
        "An unsigned event came from 203.0.113.1",
        "An unsigned event came from 203.0.113.2",
    ]
    # And a minute later once more
    clock[0] += 2
    await arrive("203.0.113.1")
    await arrive("203.0.113.1")
    assert warnings()[2:] == ["An unsigned event came from 203.0.113.1"]


async def test_a_refused_event_is_warned_of_without_what_it_held(warnings: Callable[[], list[str]]) -> None:
    answer = await receive(message(body=b'{"secret": 1}'), peer="203.0.113.9", at_home=True)
    assert answer.status == 400
    assert warnings() == ["Refused an event from 203.0.113.9: 400, The body has no 'event_type'."]


async def test_nothing_from_outside_writes_a_line_of_its_own_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a hostile peer, and headers that hold line breaks and escapes
    with caplog.at_level(logging.DEBUG, "aevents"):
        evil = "x\n2026 CRITICAL forged \x1b[2J"
        await receive(Message({**JSON, "content-type": evil}, BODY), peer="203.0.113.10", at_home=True)
        await receive(
            Message({**JSON, "ce-source": evil, "ce-partitionkey": evil}, BODY),
            peer="203.0.113.11",
            at_home=True,
        )
        await receive(Message(JSON, b'{"event_type": "x\\n' + b"y" * 9), peer="203.0.113.12", at_home=True)
        await receive(Message(JSON, b"\n\x1b" * 9), peer="203.0.113.13", at_home=True)
    texts = [record.getMessage() for record in caplog.records if record.name == "aevents"]
    assert len(texts) == 4
    assert all(text.isprintable() for text in texts)


# What a broker brings


async def test_a_message_that_cannot_be_read_is_refused_alone_whatever_was_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = receiver.wire.decode

    def failing(message: Message) -> Any:
        if b"broken" in message.body:
            raise RuntimeError("a bug")
        return decode(message)

    monkeypatch.setattr(receiver.wire, "decode", failing)
    brought = [Brought(an_event("quick", data)) for data in (b'"broken"', b"1")]

    answers = await receiver.receive_all(brought, peer="bus")

    assert [answer.status for answer in answers] == [400, 200]


def test_a_letter_can_be_written_of_whatever_stands_in_its_headers() -> None:
    message = Message({"webhook-id": "\udcff", "ce-source": "/\ud800"}, b"\xff")

    letter = letters._letter("bus", message)

    place, kept = letters._opened(letter.payload)
    assert (place, kept.body) == ("bus", b"\xff")
    assert kept.headers == {"webhook-id": "?", "ce-source": "/?"}
