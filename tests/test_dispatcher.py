"""Running the handlers of an event: together, each alone with its failure, in threads that last."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.middleware.locale import LocaleMiddleware
from django.test import AsyncClient, Client
from django.utils import timezone, translation

from aevents import aemit, calls, current_event, dispatcher, emit, flush, subscribe_to
from aevents.answer import Answer
from aevents.dispatcher import Handled
from aevents.event import Event, Message, new_id
from aevents.recent import Recent
from aevents.subscriptions import handlers_of
from aevents.threads import HandlerThreads
from aevents.transports.memory import MemoryTransport
from aevents.wire import decode
from tests.peers import eventually
from tests.project.models import Note

Dispatch = Callable[..., Awaitable[list[Handled]]]
Configure = Callable[..., None]
KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def an_event(data: bytes = b'{"n":1}', **fields: Any) -> Event:
    return Event(
        **{
            "id": new_id(),
            "type": "order-placed",
            "data": data,
            "source": "shop",
            "time": datetime.now(UTC),
            **fields,
        }
    )


@pytest.fixture
def configure(settings: Any) -> Configure:
    """Set keys of `AEVENTS` beside those that this suite always sets."""

    def set_keys(**keys: Any) -> None:
        settings.AEVENTS = {**settings.AEVENTS, **keys}

    return set_keys


@pytest.fixture(autouse=True)
def _own_threads(configure: Configure) -> Iterator[None]:
    """Threads, memory and handler loop of this test's own, with no database behind them."""
    configure(STORE=None)
    before = calls._threads, dispatcher._recent
    calls._threads, dispatcher._recent = HandlerThreads(), Recent()
    dispatcher._home.forget()
    yield
    calls._threads.close()
    dispatcher._home._own.stop(10)
    dispatcher._home.forget()
    calls._threads, dispatcher._recent = before


@pytest.fixture(params=["on the server's loop", "on the handler loop"])
def dispatch(request: pytest.FixtureRequest) -> Dispatch:
    """Dispatch as under ASGI, and as under WSGI."""
    return functools.partial(dispatch_all, at_home="server" in request.param)


async def dispatch_all(event: Event, *, at_home: bool) -> list[Handled]:
    """Run every handler of the event, where the receiver runs them; return when all have ended."""

    work = dispatcher.run_all(event, handlers_of(event.type))
    return await dispatcher.on_handlers_loop(work, at_home=at_home)


_aliases = count()


@pytest.fixture
def files(tmp_path: Path, django_db_blocker: Any, configure: Configure) -> Iterator[Callable[..., str]]:
    """Make `STORE` an SQLite file with the table of notes; returns the alias."""
    made: list[str] = []

    def make(notes: Sequence[str] = (), **options: Any) -> str:
        alias = f"files_{next(_aliases)}"
        name = str(tmp_path / f"{alias}.sqlite3")
        connections.settings[alias] = {**connections.settings["default"], "NAME": name, **options}
        made.append(alias)
        with contextlib.closing(sqlite3.connect(name)) as database:
            database.execute(
                "CREATE TABLE project_note (id integer PRIMARY KEY AUTOINCREMENT, text varchar(100))"
            )
            for note in notes:
                database.execute("INSERT INTO project_note (text) VALUES (?)", [note])
            database.commit()
        configure(STORE=alias, LIMITS={"HANDLER_THREADS": 1})
        return alias

    with django_db_blocker.unblock():
        yield make
        calls._threads.close()
    calls._threads = HandlerThreads()
    for alias in made:
        del connections.settings[alias]


def notes(alias: str) -> list[str]:
    """What has been committed, seen from outside."""
    with contextlib.closing(sqlite3.connect(connections.settings[alias]["NAME"])) as database:
        return [text for (text,) in database.execute("SELECT text FROM project_note ORDER BY id")]


def outcomes(handled: list[Handled]) -> dict[str, bool]:
    return {entry.handler: entry.error is None for entry in handled}


# Together


async def test_async_handlers_run_together(dispatch: Dispatch) -> None:
    # Given two that can end only if the other runs too
    begun: dict[str, asyncio.Event] = {}

    async def meet(mine: str, other: str) -> None:
        for name in (mine, other):
            begun.setdefault(name, asyncio.Event())
        begun[mine].set()
        await begun[other].wait()

    async def left(payload: Any) -> None:
        await meet("left", "right")

    async def right(payload: Any) -> None:
        await meet("right", "left")

    subscribe_to("order-placed", left, name="left")
    subscribe_to("order-placed", right, name="right")
    # When
    handled = await asyncio.wait_for(dispatch(an_event()), 10)
    # Then
    assert outcomes(handled) == {"left": True, "right": True}


async def test_sync_handlers_run_together_and_beside_async_ones(dispatch: Dispatch) -> None:
    meeting = threading.Barrier(3, timeout=10)

    def sync_handler(payload: Any) -> None:
        meeting.wait()

    async def async_handler(payload: Any) -> None:
        await asyncio.to_thread(meeting.wait)

    subscribe_to("order-placed", sync_handler, name="one")
    subscribe_to("order-placed", functools.partial(sync_handler), name="two")
    subscribe_to("order-placed", async_handler, name="three")

    handled = await dispatch(an_event())

    assert outcomes(handled) == {"one": True, "two": True, "three": True}


async def test_each_handler_gets_a_payload_of_its_own(dispatch: Dispatch) -> None:
    seen = []

    async def spoil(payload: Any) -> None:
        payload["items"].append("spoilt")
        seen.append(payload)

    def spoil_too(payload: Any) -> None:
        payload["items"].append("spoilt")
        seen.append(payload)

    subscribe_to("order-placed", spoil, name="one")
    subscribe_to("order-placed", spoil_too, name="two")

    await dispatch(an_event(b'{"items":[]}'))

    assert [payload["items"] for payload in seen] == [["spoilt"], ["spoilt"]]
    assert seen[0] is not seen[1]


async def test_sync_handlers_run_in_threads_that_last(dispatch: Dispatch, configure: Configure) -> None:
    configure(LIMITS={"HANDLER_THREADS": 3})
    threads: list[threading.Thread] = []
    subscribe_to("order-placed", lambda _: threads.append(threading.current_thread()), name="note")

    for _ in range(30):
        await asyncio.gather(*(dispatch(an_event()) for _ in range(5)))

    assert len(threads) == 150
    assert {t.name for t in threads} <= {f"aevents-handler_{n}" for n in range(3)}
    assert len({t.ident for t in threads}) <= 3
    assert threading.current_thread() not in threads


async def test_an_event_without_handlers_has_nobody_to_run(dispatch: Dispatch) -> None:
    assert await dispatch(an_event()) == []


# Each failure alone


class Stop(BaseException):
    """Not an `Exception`, like many a library's own way to say stop."""


class Mute(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


FAILURES = [
    ValueError("no"),
    Mute(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    TimeoutError(),
    Stop(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@KINDS
async def test_a_failing_handler_stops_no_other(
    dispatch: Dispatch, kind: str, failure: BaseException
) -> None:
    # Given
    done = []

    def fail(payload: Any) -> None:
        raise failure

    async def afail(payload: Any) -> None:
        await asyncio.sleep(0)
        raise failure

    async def later(payload: Any) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        done.append("async")

    subscribe_to("order-placed", fail if kind == "sync" else afail, name="fails")
    subscribe_to("order-placed", later, name="later")
    subscribe_to("order-placed", lambda _: done.append("sync"), name="sync")
    # When
    handled = await asyncio.wait_for(dispatch(an_event()), 10)
    # Then
    assert outcomes(handled) == {"fails": False, "later": True, "sync": True}
    assert sorted(done) == ["async", "sync"]
    (failed,) = [entry for entry in handled if entry.error]
    assert failed.exception is failure or failed.exception.__cause__ is failure  # type: ignore[union-attr]
    # And the loop, the threads and the next event are well
    assert outcomes(await asyncio.wait_for(dispatch(an_event()), 10))["sync"]


async def test_a_handler_that_cancels_itself_fails_alone(dispatch: Dispatch) -> None:
    async def give_up(payload: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    subscribe_to("order-placed", give_up, name="gives-up")
    subscribe_to("order-placed", lambda _: None, name="works")

    assert outcomes(await dispatch(an_event())) == {"gives-up": False, "works": True}


async def test_a_caller_that_is_cancelled_stops_no_handler(dispatch: Dispatch) -> None:
    # Given a handler under way
    begun, released, done = threading.Event(), threading.Event(), threading.Event()

    async def slow(payload: Any) -> None:
        begun.set()
        await asyncio.to_thread(released.wait, 10)
        done.set()

    subscribe_to("order-placed", slow, name="slow")
    event = an_event()
    caller = asyncio.ensure_future(dispatch(event))
    await asyncio.to_thread(begun.wait, 10)
    # When
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    again = asyncio.ensure_future(dispatch(event))
    released.set()
    # Then it went on, and the second copy waited for it rather than start it anew
    assert outcomes(await again) == {"slow": True}
    assert done.is_set()


# What a handler finds, and what it leaves


@KINDS
async def test_language_and_time_zone_are_the_settings_own(dispatch: Dispatch, kind: str) -> None:
    # Given a caller, and a handler before, with ideas of their own
    translation.activate("de")
    timezone.activate("Asia/Tokyo")
    seen = []

    def look(payload: Any) -> None:
        seen.append((translation.get_language(), timezone.get_current_timezone_name()))
        translation.activate("fr")
        timezone.activate("Europe/Paris")

    async def alook(payload: Any) -> None:
        look(payload)

    for n in range(3):
        handler = look if kind == "sync" else alook
        subscribe_to("order-placed", functools.partial(handler), name=f"{n}")
    try:
        # When
        for _ in range(3):
            await dispatch(an_event())
        # Then
        assert seen == [("en-us", "UTC")] * 9
        assert (translation.get_language(), timezone.get_current_timezone_name()) == ("de", "Asia/Tokyo")
    finally:
        translation.deactivate()
        timezone.deactivate()


class Zone:
    """Middleware that gives each request a time zone, as Django's documentation shows it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with timezone.override("Asia/Tokyo"):
            return self.get_response(request)


@KINDS
async def test_a_request_s_language_and_time_zone_reach_no_handler(settings: Any, kind: str) -> None:
    settings.MIDDLEWARE = [
        f"{LocaleMiddleware.__module__}.LocaleMiddleware",
        "tests.test_dispatcher.Zone",
    ]
    seen = []

    def look(payload: Any) -> None:
        seen.append((translation.get_language(), timezone.get_current_timezone_name()))

    async def alook(payload: Any) -> None:
        look(payload)

    subscribe_to("order-placed", look if kind == "sync" else alook, name="look")
    body = {"event_type": "order-placed", "payload": {}}
    german = {"accept-language": "de"}

    response = await AsyncClient(headers=german).post("/events/", body, "application/json")
    assert response.status_code == 200
    post = functools.partial(Client(headers=german).post, "/events/", body, "application/json")
    response = await asyncio.to_thread(post)
    assert response.status_code == 200

    assert seen == [("en-us", "UTC")] * 2


_colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@KINDS
async def test_a_context_variable_set_by_one_is_not_seen_by_another(dispatch: Dispatch, kind: str) -> None:
    seen = []

    def paint(payload: Any) -> None:
        seen.append(_colour.get())
        _colour.set("red")

    async def apaint(payload: Any) -> None:
        paint(payload)

    for n in range(3):
        handler = paint if kind == "sync" else apaint
        subscribe_to("order-placed", functools.partial(handler), name=f"{n}")
    for _ in range(3):
        await dispatch(an_event())

    assert seen == ["none"] * 9
    assert _colour.get() == "none"


@pytest.mark.parametrize("kind", ["sync", "async", "sync that returns a coroutine"])
async def test_current_event_is_the_event_the_handler_runs_for(dispatch: Dispatch, kind: str) -> None:
    seen = []

    def look(payload: Any) -> None:
        seen.append(current_event())

    async def alook(payload: Any) -> None:
        await asyncio.sleep(0)
        look(payload)

    handlers = {"sync": look, "async": alook, "sync that returns a coroutine": lambda p: alook(p)}
    subscribe_to("order-placed", handlers[kind], name="look")
    event = an_event(key="k", cause="c", correlation="f", hops=3, trace=f"00-{'a' * 32}-{'b' * 16}-01")

    await dispatch(event)

    assert seen == [event]
    assert event.attempt == 1
    assert current_event() is None


async def test_the_attempt_counts_the_runs_of_each_handler(dispatch: Dispatch) -> None:
    attempts: dict[str, list[int]] = {"good": [], "bad": []}

    def note(name: str) -> None:
        event = current_event()
        assert event is not None
        attempts[name].append(event.attempt)

    def bad(payload: Any) -> None:
        note("bad")
        if len(attempts["bad"]) < 3:
            raise ValueError("not yet")

    subscribe_to("order-placed", lambda _: note("good"), name="good")
    subscribe_to("order-placed", bad, name="bad")
    event = an_event()

    for _ in range(4):
        handled = await dispatch(event)

    assert attempts == {"good": [1], "bad": [1, 2, 3]}
    assert all(entry.again for entry in handled)


async def test_a_sync_handler_may_return_a_coroutine(dispatch: Dispatch) -> None:
    done = []

    async def work(payload: Any) -> None:
        await asyncio.sleep(0)
        done.append((payload, translation.get_language()))

    async def fail(payload: Any) -> None:
        raise ValueError("in the coroutine")

    subscribe_to("order-placed", lambda payload: work(payload), name="decorated")
    subscribe_to("order-placed", lambda payload: fail(payload), name="fails")
    with translation.override("de"):
        handled = await dispatch(an_event())

    assert done == [({"n": 1}, "en-us")]
    assert outcomes(handled) == {"decorated": True, "fails": False}


async def test_events_of_both_halves_of_such_a_handler_have_ids_of_their_own(dispatch: Dispatch) -> None:
    ids = []

    async def work(payload: Any) -> None:
        ids.append((await aemit("followed", {})).id)

    def begin(payload: Any) -> Any:
        ids.append(emit("followed", {}).id)
        return work(payload)

    subscribe_to("order-placed", begin, name="begin")

    await dispatch(an_event())

    assert len(set(ids)) == 2


# Transactions and connections


async def test_a_failing_sync_handler_leaves_nothing_in_the_store(
    dispatch: Dispatch, files: Callable[..., str]
) -> None:
    alias = files()

    def fail(payload: Any) -> None:
        Note.objects.using(alias).create(text="atomic")
        raise ValueError("after the write")

    subscribe_to("order-placed", fail, name="fails")
    assert outcomes(await dispatch(an_event())) == {"fails": False}

    assert notes(alias) == []


async def test_atomic_false_keeps_what_was_written_before_the_failure(
    dispatch: Dispatch, files: Callable[..., str]
) -> None:
    alias = files()

    def fail(payload: Any) -> None:
        Note.objects.using(alias).create(text="kept")
        raise ValueError("after the write")

    subscribe_to("order-placed", fail, name="fails", atomic=False)
    assert outcomes(await dispatch(an_event())) == {"fails": False}

    assert notes(alias) == ["kept"]


async def test_without_a_store_there_is_no_transaction(
    dispatch: Dispatch, files: Callable[..., str], configure: Configure
) -> None:
    alias = files()
    configure(STORE=None)
    subscribe_to(
        "order-placed",
        lambda _: Note.objects.using(alias).create(text=str(connections[alias].in_atomic_block)),
        name="note",
    )

    assert outcomes(await dispatch(an_event())) == {"note": True}

    assert notes(alias) == ["False"]


def test_a_service_without_databases_has_handlers_too() -> None:
    code = """
import asyncio
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["aevents"], ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], AEVENTS={"UNSIGNED": "accept"}
)
django.setup()

from django.test import AsyncClient, Client
from django.urls import include, path
from aevents import subscribe_to

urlpatterns = [path("events/", include("aevents.urls"))]
seen = []

async def ahandle(payload):
    seen.append("async")

def handle(payload):
    seen.append("sync")

subscribe_to("x", handle)
subscribe_to("x", ahandle)
body = {"event_type": "x", "payload": {}}
assert Client().post("/events/", body, "application/json").status_code == 200
assert asyncio.run(AsyncClient().post("/events/", body, "application/json")).status_code == 200
print(*sorted(seen))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["async", "async", "sync", "sync"]


async def test_a_handler_s_work_in_the_store_commits_when_it_returns(
    dispatch: Dispatch, files: Callable[..., str]
) -> None:
    alias = files()
    committed = []

    def work(payload: Any) -> None:
        Note.objects.using(alias).create(text="kept")
        transaction.on_commit(lambda: committed.append(True), using=alias)
        assert not committed

    subscribe_to("order-placed", work, name="works")
    assert outcomes(await dispatch(an_event())) == {"works": True}

    assert committed == [True]
    assert notes(alias) == ["kept"]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_an_atomic_handler_emits_leaves_at_its_commit(
    dispatch: Dispatch, files: Callable[..., str], configure: Configure, fails: bool
) -> None:
    # Given
    files()
    arrived: list[str] = []

    async def receive(message: Message) -> Answer:
        arrived.append(decode(message).type)
        return Answer(200, {})

    MemoryTransport.serve("next", receive)
    configure(SERVICES={"next": "memory://next"}, SUBSCRIPTIONS={"followed": ["next"]})
    inside = []

    def follow(payload: Any) -> None:
        emission = emit("followed", {})
        flush(10)
        inside.append((emission.results[0].outcome, list(arrived)))
        if fails:
            raise ValueError("after the emit")

    subscribe_to("order-placed", follow, name="follows")
    try:
        # When
        await dispatch(an_event())
        assert await asyncio.to_thread(flush, 10)
    finally:
        MemoryTransport.stop("next")
    # Then
    assert inside == [("queued", [])]
    assert arrived == ([] if fails else ["followed"])


def writer(alias: str, kind: str, used: list[Any]) -> Callable[[Any], Any]:
    """A handler that writes a note and tells which connection it had, sync or async."""

    def write(payload: Any) -> None:
        Note.objects.using(alias).create(text="x")
        used.append((connections[alias], connections[alias].connection))

    async def awrite(payload: Any) -> None:
        await sync_to_async(write)(payload)

    return write if kind == "sync" else awrite


@KINDS
async def test_a_connection_ends_with_the_event_by_default(
    dispatch: Dispatch, files: Callable[..., str], kind: str
) -> None:
    used: list[Any] = []
    subscribe_to("order-placed", writer(files(CONN_MAX_AGE=0), kind, used), name="write")

    for _ in range(5):
        assert outcomes(await dispatch(an_event())) == {"write": True}

    assert [wrapper.connection for wrapper, _ in used] == [None] * 5
    assert len({id(wrapper) for wrapper, _ in used}) == 1


@KINDS
async def test_a_connection_lasts_over_events_as_conn_max_age_says(
    dispatch: Dispatch, files: Callable[..., str], kind: str
) -> None:
    # Given
    used: list[Any] = []
    subscribe_to("order-placed", writer(files(CONN_MAX_AGE=600), kind, used), name="write")
    for _ in range(5):
        await dispatch(an_event())
    (wrapper, first), *others = used
    assert all(connection is first for _, connection in others)
    # When its age is over
    wrapper.close_at = time.monotonic() - 1
    await dispatch(an_event())
    # Then the next event has another from its first query on
    assert used[-1][0] is wrapper
    assert used[-1][1] is not first


@KINDS
async def test_after_a_connection_died_during_a_handler_the_next_event_works(
    dispatch: Dispatch, files: Callable[..., str], kind: str
) -> None:
    alias, used = files(CONN_MAX_AGE=0), []  # type: ignore[var-annotated]

    def die(payload: Any) -> None:
        connections[alias].connection.close()
        Note.objects.using(alias).create(text="never")

    async def adie(payload: Any) -> None:
        await sync_to_async(lambda: connections[alias].ensure_connection())()
        await sync_to_async(die)(payload)

    subscribe_to("died", die if kind == "sync" else adie, name="die")
    subscribe_to("order-placed", writer(alias, kind, used), name="write")

    assert outcomes(await dispatch(an_event(type="died"))) == {"die": False}
    assert outcomes(await dispatch(an_event())) == {"write": True}


@KINDS
@pytest.mark.parametrize("health_checks", [True, False])
async def test_a_connection_that_died_between_events_is_replaced(
    dispatch: Dispatch,
    files: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    health_checks: bool,
) -> None:
    # Given a database that can be asked whether it is there, as those behind a network can
    def is_usable(self: DatabaseWrapper) -> bool:
        try:
            self.connection.execute("SELECT 1")
        except sqlite3.Error:
            return False
        return True

    monkeypatch.setattr(DatabaseWrapper, "is_usable", is_usable)
    used: list[Any] = []
    alias = files(CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=health_checks)
    subscribe_to("order-placed", writer(alias, kind, used), name="write")
    await dispatch(an_event())
    # When
    used[0][1].close()
    # Then, as Django has it: with health checks at once, without them after one failure
    if not health_checks:
        assert outcomes(await dispatch(an_event())) == {"write": False}
    assert outcomes(await dispatch(an_event())) == {"write": True}


async def test_a_handler_that_ends_takes_no_connection_from_one_that_reads(
    dispatch: Dispatch, files: Callable[..., str]
) -> None:
    # Given a handler in the midst of its rows
    alias = files(["0", "1", "2"], CONN_MAX_AGE=0)
    begun, released = threading.Event(), threading.Event()
    read = []

    async def read_slowly(payload: Any) -> None:
        async for note in Note.objects.using(alias).order_by("pk").aiterator(chunk_size=1):
            read.append(note.text)
            begun.set()
            await asyncio.to_thread(released.wait, 10)

    async def count_notes(payload: Any) -> None:
        assert await Note.objects.using(alias).acount() == 3

    subscribe_to("read", read_slowly, name="read")
    subscribe_to("order-placed", count_notes, name="count")
    reading = asyncio.ensure_future(dispatch(an_event(type="read")))
    await asyncio.to_thread(begun.wait, 10)
    # When as many others begin and end as there are threads, and more
    handled = await asyncio.gather(*(dispatch(an_event()) for _ in range(10)))
    released.set()
    # Then
    assert [outcomes(entry) for entry in handled] == [{"count": True}] * 10
    assert outcomes(await reading) == {"read": True}
    assert read == ["0", "1", "2"]


async def test_more_async_handlers_than_threads_share_them_and_each_keeps_its_own(
    dispatch: Dispatch, configure: Configure
) -> None:
    # Given five that are all in the midst of their work
    configure(LIMITS={"HANDLER_THREADS": 2})
    used: list[set[str]] = []
    all_have_begun = asyncio.Event()

    async def look(payload: Any) -> None:
        mine = {await sync_to_async(thread_name)()}
        used.append(mine)
        if len(used) == 5:
            all_have_begun.set()
        await all_have_begun.wait()
        for _ in range(3):
            mine.add(await sync_to_async(thread_name)())

    subscribe_to("order-placed", look, name="look")
    # When
    await asyncio.gather(*(dispatch(an_event()) for _ in range(5)))
    # Then
    assert [len(mine) for mine in used] == [1] * 5
    assert set.union(*used) == {"aevents-orm-0_0", "aevents-orm-1_0"}


def thread_name() -> str:
    return threading.current_thread().name


async def test_a_handler_blocked_in_the_orm_lets_others_of_its_thread_end(
    dispatch: Dispatch, configure: Configure
) -> None:
    # Given two handlers that have used the one thread there is
    configure(LIMITS={"HANDLER_THREADS": 1})
    names: list[str] = []
    quick_was_there, blocked, released = asyncio.Event(), threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert released.wait(10)

    async def slow(payload: Any) -> None:
        names.append(await sync_to_async(thread_name)())
        await quick_was_there.wait()
        await sync_to_async(block)()

    async def quick(payload: Any) -> None:
        names.append(await sync_to_async(thread_name)())
        quick_was_there.set()
        await asyncio.to_thread(blocked.wait, 10)

    subscribe_to("slow", slow, name="slow")
    subscribe_to("order-placed", quick, name="quick")
    ends_slowly = asyncio.ensure_future(dispatch(an_event(type="slow")))
    try:
        # When one ends while the other holds the thread
        async with asyncio.timeout(5):
            handled = await dispatch(an_event())
        # Then it has ended
        assert outcomes(handled) == {"quick": True}
        assert not ends_slowly.done()
    finally:
        released.set()
    assert outcomes(await ends_slowly) == {"slow": True}
    assert names == ["aevents-orm-0_0"] * 2


# What succeeded is not run again


async def test_a_handler_that_succeeded_is_not_run_again_and_a_failed_one_is(dispatch: Dispatch) -> None:
    ran: list[str] = []

    async def bad(payload: Any) -> None:
        ran.append("bad")
        if ran.count("bad") < 2:
            raise ValueError("not yet")

    subscribe_to("order-placed", lambda _: ran.append("good"), name="good")
    subscribe_to("order-placed", bad, name="bad")
    event = an_event()

    assert outcomes(await dispatch(event)) == {"good": True, "bad": False}
    assert outcomes(await dispatch(event)) == {"good": True, "bad": True}
    assert outcomes(await dispatch(event)) == {"good": True, "bad": True}
    assert ran == ["good", "bad", "bad"] or ran == ["bad", "good", "bad"]

    assert outcomes(await dispatch(an_event())) == {"good": True, "bad": True}
    assert ran.count("good") == 2


@KINDS
async def test_a_handler_under_way_is_joined_and_never_started_twice(
    dispatch: Dispatch, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    begun, released = threading.Event(), threading.Event()
    starts = []
    arrivals: list[str] = []
    begin = dispatcher._recent.begin

    def arriving(event_id: str, *given: Any, **options: Any) -> Any:
        arrivals.append(event_id)
        return begin(event_id, *given, **options)

    monkeypatch.setattr(dispatcher._recent, "begin", arriving)

    def slow(payload: Any) -> None:
        starts.append(payload)
        begun.set()
        assert released.wait(10)
        raise ValueError("in the end")

    async def aslow(payload: Any) -> None:
        await asyncio.to_thread(slow, payload)

    subscribe_to("order-placed", slow if kind == "sync" else aslow, name="slow")
    event = an_event()
    first = asyncio.ensure_future(dispatch(event))
    await asyncio.to_thread(begun.wait, 10)
    # When
    copies = [asyncio.ensure_future(dispatch(event)) for _ in range(5)]
    await asyncio.to_thread(eventually, lambda: len(arrivals) == 6)
    released.set()
    # Then all have the one outcome
    handled = await asyncio.gather(first, *copies)
    assert [outcomes(entry) for entry in handled] == [{"slow": False}] * 6
    assert len(starts) == 1


async def test_what_succeeded_is_remembered_for_a_time(dispatch: Dispatch, configure: Configure) -> None:
    ran: list[int] = []
    subscribe_to("order-placed", lambda _: ran.append(1), name="note")
    event = an_event()
    for _ in range(3):
        await dispatch(event)
    assert len(ran) == 1

    configure(LIMITS={"REMEMBER_S": 0.001})
    deadline = time.monotonic() + 10
    while len(ran) == 1 and time.monotonic() < deadline:
        await dispatch(event)

    assert len(ran) > 1


async def test_what_succeeded_is_remembered_for_a_number_of_events(
    dispatch: Dispatch, configure: Configure
) -> None:
    configure(LIMITS={"REMEMBER": 10})
    ran: list[Any] = []
    subscribe_to("order-placed", lambda payload: ran.append(payload["n"]), name="note")
    events = [an_event(b'{"n":%d}' % n) for n in range(30)]
    for event in events:
        await dispatch(event)
    assert len(dispatcher._recent._ended) <= 10

    await dispatch(events[29])
    assert ran == list(range(30))
    await dispatch(events[0])
    assert ran == [*range(30), 0]


async def test_a_handler_under_way_is_remembered_however_many_come_after(
    dispatch: Dispatch, configure: Configure
) -> None:
    # Given
    configure(LIMITS={"REMEMBER": 5, "HANDLER_THREADS": 2})
    begun, released = threading.Event(), threading.Event()
    starts = []

    def slow(payload: Any) -> None:
        starts.append(payload)
        begun.set()
        assert released.wait(10)

    subscribe_to("slow", slow, name="slow")
    subscribe_to("order-placed", lambda _: None, name="quick")
    event = an_event(type="slow")
    first = asyncio.ensure_future(dispatch(event))
    await asyncio.to_thread(begun.wait, 10)
    # When
    for _ in range(30):
        await dispatch(an_event())
    copy = asyncio.ensure_future(dispatch(event))
    await asyncio.sleep(0)
    released.set()
    # Then
    assert outcomes(await first) == outcomes(await copy) == {"slow": True}
    assert len(starts) == 1


# Where handlers live


async def where_posted(post: Callable[[], Awaitable[HttpResponse]]) -> tuple[str, bool]:
    """The thread an async handler ran in, and whether its loop was this one."""
    here, found = asyncio.get_running_loop(), []

    async def look(payload: Any) -> None:
        found.append((threading.current_thread().name, asyncio.get_running_loop() is here))

    subscribe_to("order-placed", look, name="look")
    response = await post()
    assert response.status_code == 200
    return found[0]


BODY = {"event_type": "order-placed", "payload": {}}


async def test_under_asgi_async_handlers_run_on_the_server_s_loop() -> None:
    post = functools.partial(AsyncClient().post, "/events/", BODY, "application/json")

    assert await where_posted(post) == (threading.current_thread().name, True)


async def test_under_wsgi_async_handlers_run_on_the_process_s_own_loop() -> None:
    post = functools.partial(Client().post, "/events/", BODY, "application/json")

    assert await where_posted(lambda: asyncio.to_thread(post)) == ("aevents-handlers", False)


def behind_async_to_sync() -> HttpResponse:
    async def view() -> HttpResponse:
        return await AsyncClient().post("/events/", BODY, "application/json")

    return async_to_sync(view)()


@pytest.mark.parametrize("server", ["WSGI", "ASGI", "ASGI behind sync middleware", "async_to_sync"])
async def test_the_orm_calls_of_async_handlers_run_in_their_own_thread_wherever_the_event_arrived(
    settings: Any, files: Callable[..., str], server: str
) -> None:
    # Given a server, of which a thread may wait for the view
    if "middleware" in server:
        settings.MIDDLEWARE = ["tests.project.middleware.in_a_thread"]
    alias, used = files(), []

    def note_the_thread(connection: DatabaseWrapper, **_: Any) -> None:
        if connection.alias == alias:
            used.append(threading.current_thread().name)

    async def handle(payload: Any) -> None:
        await Note.objects.using(alias).acreate(text="x")
        used.append(await sync_to_async(thread_name)())

    subscribe_to("order-placed", handle, name="handle")
    connection_created.connect(note_the_thread)
    # When an event arrives
    try:
        if server == "WSGI":
            response = await asyncio.to_thread(Client().post, "/events/", BODY, "application/json")
        elif server == "async_to_sync":
            response = await asyncio.to_thread(behind_async_to_sync)
        else:
            response = await AsyncClient().post("/events/", BODY, "application/json")
    finally:
        connection_created.disconnect(note_the_thread)
    # Then it is not that thread which its handler's queries run in
    assert response.status_code == 200
    assert used == ["aevents-orm-0_0"] * 2
    assert notes(alias) == ["x"]


async def test_under_wsgi_all_events_share_one_handler_loop() -> None:
    loops = []

    async def look(payload: Any) -> None:
        loops.append(asyncio.get_running_loop())

    subscribe_to("order-placed", look, name="look")
    post = functools.partial(Client().post, "/events/", BODY, "application/json")
    for _ in range(5):
        assert (await asyncio.to_thread(post)).status_code == 200

    assert len(set(loops)) == 1


async def test_one_s_own_events_are_handled_on_the_server_s_loop(configure: Configure) -> None:
    # Given a server that has served a request
    configure(SERVICE="shop", SUBSCRIPTIONS={"own": ["shop"]})
    loops = []

    async def look(payload: Any) -> None:
        loops.append(asyncio.get_running_loop())

    subscribe_to("order-placed", look, name="look")
    subscribe_to("own", look, name="look")
    await AsyncClient().post("/events/", BODY, "application/json")
    # When
    emission = await aemit("own", {})
    # Then
    assert emission.delivered
    assert loops == [asyncio.get_running_loop()] * 2


def test_without_a_server_one_s_own_events_are_handled_on_the_handler_loop(configure: Configure) -> None:
    configure(SERVICE="shop", SUBSCRIPTIONS={"own": ["shop"]})
    threads = []

    async def look(payload: Any) -> None:
        threads.append(threading.current_thread().name)

    subscribe_to("own", look, name="look")

    assert emit("own", {}).delivered
    assert threads == ["aevents-handlers"]


def test_a_server_s_loop_that_has_ended_is_no_home(configure: Configure) -> None:
    threads: list[str] = []

    async def look(payload: Any) -> None:
        threads.append(threading.current_thread().name)

    async def serve_once() -> None:
        assert (await AsyncClient().post("/events/", BODY, "application/json")).status_code == 200

    subscribe_to("order-placed", look, name="look")
    asyncio.run(serve_once())
    response = Client().post("/events/", BODY, "application/json")

    assert response.status_code == 200
    assert threads == [threading.current_thread().name, "aevents-handlers"]


class EndingLoop(asyncio.SelectorEventLoop):
    """A server's loop in a thread, in the midst of a turn: it ends with it, whatever is still given to it."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self._ending = ending
        self._is_held, self._may_end = threading.Event(), threading.Event()
        self._runs = threading.Thread(target=self.run_forever)

    def start(self) -> None:
        self.call_soon(self._hold)
        self._runs.start()
        assert self._is_held.wait(10)

    def _hold(self) -> None:
        self._is_held.set()
        assert self._may_end.wait(10)

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:
        if self._ending == "closed before":
            self._end()
            self.close()
        handle = super().call_soon_threadsafe(*arguments, **options)
        self._end()
        if self._ending == "closed at once":
            self.close()
        return handle

    def _end(self) -> None:
        self.stop()
        self._may_end.set()
        self._runs.join(10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ending", ["closed before", "closed at once", "only stopped"])
async def test_a_server_s_loop_that_ends_as_it_gets_an_event_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    # Given a server that ends in the moment in which its loop is given an event
    monkeypatch.setattr(dispatcher, "_GRACE_S", 0.05)
    ran: list[Any] = []
    subscribe_to("order-placed", ran.append, name="run")
    loop = EndingLoop(ending)
    loop.start()
    dispatcher._home.adopt(loop)
    # When it is dispatched
    with pytest.raises(RuntimeError, match="the handlers' event loop has ended"):
        async with asyncio.timeout(5):
            await dispatch_all(an_event(), at_home=False)
    # Then the caller has been told, and no coroutine is left that nobody awaited
    assert ran == []
    loop.close()
    gc.collect()
