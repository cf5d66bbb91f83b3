"""`emit` and its twins: what they promise their caller, whatever he hands them."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import inspect
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import models, transaction

import aevents
from aevents import (
    Emission,
    InvalidEvent,
    Result,
    aemit,
    aemit_many,
    emit,
    emit_many,
    emitter,
    flush,
    signals,
    suppressed,
)
from tests.peers import Fleet, Peer, answers, answers_when_released, eventually, hangs, refusing
from tests.project.models import Note


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


class Colour(models.TextChoices):
    RED = "red"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def one_emit(event_type: Any, payload: Any, **options: Any) -> Emission:
    return emit(event_type, payload, **options)


def one_aemit(event_type: Any, payload: Any, **options: Any) -> Emission:
    return async_to_sync(aemit)(event_type, payload, **options)


def one_of_emit_many(event_type: Any, payload: Any, **options: Any) -> Emission:
    (emission,) = emit_many([(event_type, payload)], **options)
    return emission


def one_of_aemit_many(event_type: Any, payload: Any, **options: Any) -> Emission:
    (emission,) = async_to_sync(aemit_many)([(event_type, payload)], **options)
    return emission


EVERY_WAY = pytest.mark.parametrize("send", [one_emit, one_aemit, one_of_emit_many, one_of_aemit_many])
Send = Callable[..., Emission]


# The surface


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (emit, "(event_type, payload, *, key=None)"),
        (aemit, "(event_type, payload, *, key=None)"),
        (emit_many, "(events, *, key=None)"),
        (aemit_many, "(events, *, key=None)"),
        (flush, "(timeout_s=5.0)"),
        (suppressed, "(reason)"),
    ],
)
def test_the_signatures_are_fixed(function: Any, signature: str) -> None:
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]

    assert str(inspect.Signature(bare)) == signature


def test_only_the_async_twins_are_coroutine_functions() -> None:
    assert inspect.iscoroutinefunction(aemit)
    assert inspect.iscoroutinefunction(aemit_many)
    assert not inspect.iscoroutinefunction(emit)
    assert not inspect.iscoroutinefunction(emit_many)


def test_emissions_and_results_have_these_fields_and_cannot_be_changed() -> None:
    assert list(inspect.signature(Emission).parameters) == [
        "id",
        "event_type",
        "results",
        "error",
    ]
    assert list(inspect.signature(Result).parameters) == [
        "service",
        "outcome",
        "attempts",
        "error",
        "elapsed_s",
    ]
    with pytest.raises(AttributeError):
        Emission("id", "type").id = "other"  # type: ignore[misc]  # that it cannot is the test


@pytest.mark.parametrize(
    ("outcomes", "ok", "delivered"),
    [
        ([], True, True),
        (["delivered"], True, True),
        (["delivered", "queued"], True, False),
        (["parked"], True, False),
        (["delivered", "failed"], False, False),
    ],
)
def test_ok_means_nothing_is_lost_and_delivered_means_every_service_has_it(
    outcomes: list[Any], ok: bool, delivered: bool
) -> None:
    emission = Emission("id", "type", tuple(Result("service", outcome) for outcome in outcomes))

    assert (emission.ok, emission.delivered) == (ok, delivered)


# What comes back


@EVERY_WAY
def test_an_event_reaches_its_service_and_the_result_says_so(send: Send, fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)

    emission = send("user-created", {"user_id": 7}, key="user-7")

    (request,) = peer.requests
    (result,) = emission.results
    assert request.content == {"event_type": "user-created", "payload": {"user_id": 7}}
    assert request.headers["ce-partitionkey"] == "user-7"
    assert request.id == emission.id == str(uuid.UUID(emission.id))
    assert (emission.ok, emission.delivered, emission.error) == (True, True, None)
    assert (result.service, result.outcome, result.attempts) == ("payments", "delivered", 1)
    assert result.error is None
    assert result.elapsed_s > 0


@EVERY_WAY
def test_each_service_has_a_result_of_its_own_in_the_order_of_the_mapping(
    send: Send, fleet: Fleet, peer: Peer
) -> None:
    with refusing() as nobody, Peer(answers(410, {"detail": "Moved away"})) as gone:
        fleet(payments=peer, orders=nobody, mails=gone)

        emission = send("user-created", {})

    payments, orders, mails = emission.results
    assert [r.service for r in emission.results] == ["payments", "orders", "mails"]
    assert [r.outcome for r in emission.results] == ["delivered", "failed", "failed"]
    assert (emission.ok, emission.delivered) == (False, False)
    assert orders.attempts == 3
    assert orders.error is not None
    assert "refused" in orders.error.lower() or "cannot connect" in orders.error.lower()
    assert (mails.attempts, mails.error) == (1, "answered 410: 'Moved away'")
    assert payments.error is None


@EVERY_WAY
def test_an_event_that_nobody_is_subscribed_to_is_no_error(send: Send, fleet: Fleet) -> None:
    fleet(SUBSCRIPTIONS={})

    emission = send("user-created", {"user_id": 7})

    assert (emission.results, emission.ok, emission.delivered) == ((), True, True)
    assert str(uuid.UUID(emission.id)) == emission.id


@EVERY_WAY
def test_a_name_that_is_no_service_fails_aloud(send: Send, fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer, SUBSCRIPTIONS={"user-created": ["paymnets", "payments"]})

    emission = send("user-created", {})

    typo, right = emission.results
    assert (typo.outcome, right.outcome) == ("failed", "delivered")
    assert typo.error == "'paymnets' is not in AEVENTS['SERVICES'] or ['BROKERS']"


async def test_the_payload_is_encoded_at_the_call(fleet: Fleet, peer: Peer) -> None:
    # Given an event that is handed over and not waited for
    fleet(payments=peer)
    payload = {"ids": [1]}
    emission = emit("user-created", payload)

    # When the caller goes on with his own object
    payload["ids"].append(2)
    payload["more"] = []

    # Then what he said is what was sent
    assert emission.results[0].outcome == "queued"
    await asyncio.to_thread(peer.wait_for)
    assert peer.payloads == [{"ids": [1]}]


def test_the_payload_may_hold_what_djangos_own_encoder_takes(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)
    one_id = uuid.uuid4()

    emit(
        "user-created",
        {
            "decimal": decimal.Decimal("1.10"),
            "day": datetime.date(2030, 1, 2),
            "when": datetime.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC),
            "duration": datetime.timedelta(hours=1),
            "uuid": one_id,
            "choice": Colour.RED,
            Colour.RED: "as a key",
            "tuple": (1, 2),
            "long": 2**70,
            "text": "snö 🎉 \x00",
        },
    )

    assert peer.payloads == [
        {
            "decimal": "1.10",
            "day": "2030-01-02",
            "when": "2030-01-02T03:04:05.678Z",
            "duration": "P0DT01H00M00S",
            "uuid": str(one_id),
            "choice": "red",
            "red": "as a key",
            "tuple": [1, 2],
            "long": 2**70,
            "text": "snö 🎉 \x00",
        }
    ]


async def test_many_events_return_their_emissions_in_order(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)
    events = [(f"event-{n}", {"n": n}) for n in range(20)]

    emissions = await aemit_many(iter(events))
    more = await asyncio.to_thread(emit_many, events)

    for found in (emissions, more):
        assert [e.event_type for e in found] == [event_type for event_type, _ in events]
        assert all(e.delivered for e in found)
    assert sorted(peer.payloads, key=lambda p: p["n"]) == [{"n": n} for n in range(20) for _ in range(2)]
    by_id = {request.id: request.event_type for request in peer.requests}
    assert by_id == {e.id: e.event_type for e in (*emissions, *more)}


def test_no_events_are_no_emissions(fleet: Fleet) -> None:
    assert emit_many([]) == []
    assert async_to_sync(aemit_many)(()) == []


def test_the_wrong_one_of_many_stops_none_of_the_others(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)

    first, wrong, last = emit_many([("first", {}), ("wrong", {1, 2}), ("last", {})])

    assert (first.delivered, wrong.ok, last.delivered) == (True, False, True)
    assert sorted(request.event_type for request in peer.requests) == ["first", "last"]


# Bad calls

WRONG_CALLS: dict[str, tuple[Any, Any, str]] = {
    "the type is no string": (7, {}, "printable string of 1 to 200 characters, not 7"),
    "the type is None": (None, {}, "printable string"),
    "the type is bytes": (b"user-created", {}, "printable string"),
    "the type is empty": ("", {}, "printable string"),
    "the type has 201 characters": ("x" * 201, {}, "printable string"),
    "the type has a control character": ("user\ncreated", {}, r"not 'user\ncreated'"),
    "the type has half a surrogate pair": ("user\ud800", {}, "printable string"),
    "the payload is a list": ("user-created", [1], "must be a dict, not list"),
    "the payload is None": ("user-created", None, "must be a dict, not NoneType"),
    "the payload is a string": ("user-created", "{}", "must be a dict, not str"),
    "the payload holds an object": ("user-created", {"o": object()}, "is not JSON"),
    "the payload holds a set": ("user-created", {"s": {1}}, "is not JSON"),
    "the payload holds NaN": ("user-created", {"n": float("nan")}, "is not JSON"),
    "the payload holds half a surrogate pair": ("user-created", {"t": "\ud800"}, "is not JSON"),
    "the payload holds itself": ("user-created", circular(), "is not JSON"),
    "a key is a number": ("user-created", {1: 2}, "is not JSON"),
    "a key is a number beside a long one": ("user-created", {1: 2**70}, "is not JSON"),
    "the payload is too large": ("user-created", {"t": "x" * 256 * 1024}, "more than 262144"),
    "the payload nests too deep": ("user-created", nested(65), "nests deeper than 64 levels"),
    "the payload nests absurdly deep": ("user-created", nested(5000), "user-created"),
}
WRONG = pytest.mark.parametrize(
    ("event_type", "payload", "says"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys()
)


def the_error_in(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    return record


@WRONG
@pytest.mark.parametrize("send", [one_emit, one_aemit])
def test_a_wrong_call_is_logged_with_its_stack_and_returned_as_failed(
    send: Send,
    event_type: Any,
    payload: Any,
    says: str,
    fleet: Fleet,
    peer: Peer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet(payments=peer)

    emission = send(event_type, payload)

    assert (emission.ok, emission.delivered, emission.results) == (False, False, ())
    assert emission.error is not None
    assert says in emission.error
    record = the_error_in(caplog)
    assert says in record.getMessage()
    assert record.exc_info is not None
    assert record.stack_info is not None
    assert send.__name__ in record.stack_info or "aemit" in record.stack_info
    assert peer.requests == []


@WRONG
@EVERY_WAY
def test_a_wrong_call_raises_where_strict_is_on(
    send: Send, event_type: Any, payload: Any, says: str, fleet: Fleet
) -> None:
    fleet(STRICT=True)

    with pytest.raises(InvalidEvent) as raised:
        send(event_type, payload)

    assert says in str(raised.value)


@pytest.mark.parametrize("key", ["", "x" * 201, 7, "a\tb"])
@EVERY_WAY
def test_a_wrong_key_is_a_wrong_call(send: Send, key: Any, fleet: Fleet) -> None:
    fleet()

    emission = send("user-created", {}, key=key)

    assert not emission.ok
    assert "the key of 'user-created'" in str(emission.error)


@pytest.mark.parametrize("pair", [None, "ab", ("only-one",), ("a", {}, "three"), {"a": 1, "b": 2}])
def test_what_is_no_pair_is_a_wrong_call(pair: Any, fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)

    for emissions in (emit_many([pair, ("good", {})]), async_to_sync(aemit_many)([pair])):
        assert not emissions[0].ok
        assert "(event_type, payload) pairs" in str(emissions[0].error)

    assert [request.event_type for request in peer.requests] == ["good"]


@pytest.mark.parametrize("events", [None, 7, object()])
def test_what_is_no_list_of_events_is_a_wrong_call(
    events: Any, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet()

    for emissions in (emit_many(events), async_to_sync(aemit_many)(events)):
        assert [emission.ok for emission in emissions] == [False]
        assert "(event_type, payload) pairs" in str(emissions[0].error)

    assert len(caplog.records) == 2


def test_an_object_that_resists_even_its_own_name_raises_nothing(fleet: Fleet) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    fleet()

    calls: list[Any] = [(Hostile(), {}), ("user-created", Hostile()), ("user-created", {"o": Hostile()})]
    for event_type, payload in calls:
        assert not emit(event_type, payload).ok


@pytest.mark.django_db(transaction=True, databases=["default"])
@pytest.mark.parametrize("send", [one_emit, one_of_emit_many])
def test_a_wrong_call_leaves_an_open_transaction_usable(send: Send, fleet: Fleet) -> None:
    fleet()

    with transaction.atomic():
        for name, (event_type, payload, _) in WRONG_CALLS.items():
            assert not send(event_type, payload).ok
            Note.objects.create(text=name)

    assert Note.objects.count() == len(WRONG_CALLS)


WRONG_SETTINGS: dict[str, dict[str, Any]] = {
    "a mapping that cannot be imported": {"SUBSCRIPTIONS": "devops.events.SUBSCRIPTIONS"},
    "a path without an object": {"SUBSCRIPTIONS": "tests.peers.NOTHING_THERE"},
    "services that cannot be imported": {"SERVICES": "nowhere"},
    "a mapping that is None": {"SUBSCRIPTIONS": None},
    "a mapping that is a list": {"SUBSCRIPTIONS": ["user-created"]},
    "services that are None": {"SERVICES": None},
    "a mapping to a number": {"SUBSCRIPTIONS": {"user-created": 7}},
}


@pytest.mark.django_db(transaction=True, databases=["default"])
@pytest.mark.parametrize("wrong", WRONG_SETTINGS.values(), ids=WRONG_SETTINGS.keys())
@pytest.mark.parametrize("send", [one_emit, one_aemit])
def test_wrong_settings_fail_the_event_and_not_the_caller(
    send: Send, wrong: dict[str, Any], fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet(**{"SERVICES": {"payments": "http://127.0.0.1:9/"}, "STRICT": False, **wrong})

    with transaction.atomic():
        emission = send("user-created", {})
        Note.objects.create(text="still here")

    assert (emission.ok, emission.results) == (False, ())
    assert emission.error
    record = the_error_in(caplog)
    assert record.exc_info is not None
    assert record.stack_info is not None
    assert Note.objects.count() == 1


@pytest.mark.parametrize("url", ["", "payments.internal", "smtp://payments", "http://", {}, {"URL": ""}])
@pytest.mark.parametrize("send", [one_emit, one_aemit])
def test_a_url_that_leads_nowhere_fails_for_good(send: Send, url: Any, fleet: Fleet) -> None:
    fleet(payments=url)

    emission = send("user-created", {})

    assert [(r.outcome, r.service) for r in emission.results] == [("failed", "payments")]
    assert emission.results[0].attempts <= 1
    assert emission.results[0].error


def test_without_any_settings_nothing_is_raised() -> None:
    # Given a process that has not even configured Django
    script = (
        "import asyncio, logging, aevents\n"
        "logging.disable()\n"
        "calls = [('user-created', {}), (7, {}), ('user-created', {1, 2})]\n"
        "for call in calls:\n"
        "    print(aevents.emit(*call).ok, asyncio.run(aevents.aemit(*call)).ok)\n"
        "print(aevents.emit_many([1])[0].ok, aevents.flush())\n"
        # When it configures Django, but not aevents
        "from django.conf import settings\n"
        "settings.configure()\n"
        "print(aevents.emit('user-created', {}).ok, aevents.emit(7, {}).ok)\n"
    )
    # Then
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )

    assert done.stderr == ""
    assert done.stdout.split("\n") == [*["False False"] * 3, "False True", "True False", ""]


def test_a_signal_receiver_that_raises_is_logged_and_the_event_arrives(
    fleet: Fleet, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("mine")

    fleet(payments=peer)
    for signal in (signals.event_emitted, signals.event_delivered):
        signal.connect(fail)
    try:
        emission = emit("user-created", {})
    finally:
        for signal in (signals.event_emitted, signals.event_delivered):
            signal.disconnect(fail)

    assert emission.delivered
    assert len([r for r in caplog.records if "signal receiver failed" in r.getMessage()]) == 2


# Loops and threads


@pytest.fixture
def _not_warned_yet() -> Iterator[None]:
    emitter._has_warned.clear()
    yield
    emitter._has_warned.clear()


@pytest.mark.usefixtures("_not_warned_yet")
async def test_emit_in_a_running_loop_returns_at_once_and_warns_once_of_aemit(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a service that does not answer yet
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer)

        # When
        emissions = [emit("user-created", {"n": 0}), *emit_many([("user-created", {"n": 1})])]

        # Then both were handed over, and the events arrive
        assert [e.results[0].outcome for e in emissions] == ["queued", "queued"]
        assert all(e.ok and not e.delivered for e in emissions)
        requests = await asyncio.to_thread(peer.wait_for, 2)
        assert {r.id for r in requests} == {e.id for e in emissions}
        peer.release()
        assert await asyncio.to_thread(flush)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "await aemit(...)" in warning.getMessage()
    assert "test_emit_in_a_running_loop" in str(warning.stack_info)


def test_threads_may_emit_all_at_once(fleet: Fleet, peer: Peer) -> None:
    # Given no courier yet: all find it missing at the same time
    fleet(payments=peer)
    start = threading.Barrier(32)

    def work(n: int) -> list[Emission]:
        start.wait()
        return [emit("user-created", {"n": n, "m": m}) for m in range(5)]

    with ThreadPoolExecutor(32) as pool:
        emissions = [e for found in pool.map(work, range(32)) for e in found]

    assert all(e.delivered for e in emissions)
    assert sorted(r.id for r in peer.requests) == sorted(e.id for e in emissions)
    assert {(p["n"], p["m"]) for p in peer.payloads} == {(n, m) for n in range(32) for m in range(5)}
    assert peer.most_at_once <= 16
    assert len([t for t in threading.enumerate() if t.name == "aevents"]) == 1


async def test_a_cancelled_aemit_goes_on_delivering(fleet: Fleet) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer)
        task = asyncio.create_task(aemit("user-created", {"user_id": 7}))
        await asyncio.to_thread(peer.wait_for)

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        delivered: list[str] = []
        signals.event_delivered.connect(listener := lambda service, **_: delivered.append(service))
        peer.release()
        await asyncio.to_thread(eventually, lambda: delivered)
        signals.event_delivered.disconnect(listener)

        assert delivered == ["payments"]
        assert len(peer.requests) == 1


async def test_an_aemit_cancelled_before_its_first_breath_is_delivered_all_the_same(
    fleet: Fleet, peer: Peer
) -> None:
    fleet(payments=peer)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await aemit("user-created", {"user_id": 7})

    await asyncio.to_thread(peer.wait_for)
    assert peer.payloads == [{"user_id": 7}]


def test_aemit_works_in_one_loop_after_the_other(
    fleet: Fleet, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aevents.transports.http._KEEP_ALIVE_S", 60.0)  # however slow the machine is
    fleet(payments=peer)

    emissions = [asyncio.run(aemit("user-created", {"n": n})) for n in range(3)]

    assert all(e.delivered for e in emissions)
    assert peer.connections == 1  # the courier's, whichever loop called


def test_a_loop_that_ends_before_its_event_went_out_loses_nothing(fleet: Fleet, peer: Peer) -> None:
    # Given a loop that is stopped in the very turn in which the event was handed over
    fleet(payments=peer)
    loop = asyncio.new_event_loop()

    async def call() -> None:
        asyncio.get_running_loop().stop()
        await aemit("user-created", {"user_id": 7})

    task = loop.create_task(call())
    loop.run_forever()

    # When nothing turns it any more
    assert flush()

    # Then
    assert peer.payloads == [{"user_id": 7}]
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


def test_two_loops_in_two_threads_get_each_their_own_answers(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)
    start = threading.Barrier(2)

    async def work(name: str) -> list[Emission]:
        start.wait()
        return await asyncio.gather(*(aemit("user-created", {name: n}) for n in range(50)))

    with ThreadPoolExecutor(2) as pool:
        emissions = [e for found in pool.map(lambda name: asyncio.run(work(name)), ["a", "b"]) for e in found]

    assert all(e.delivered for e in emissions)
    assert len({r.id for r in peer.requests}) == 100


def test_a_loop_that_has_gone_takes_no_answer_and_harms_nobody(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer)

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aemit("user-created", {}), 0.01)

        asyncio.run(give_up())
        peer.release()
        assert flush()

        assert asyncio.run(aemit("user-created", {})).delivered
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


# Switched off


@EVERY_WAY
def test_suppressed_sends_nothing_and_looks_at_nothing(
    send: Send, fleet: Fleet, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    fleet(payments=peer, STRICT=True)

    with suppressed("import"):
        inside = send("user-created", {"user_id": 7})
        wrong = send("user-created", object())
    after = send("user-created", {"user_id": 8})

    assert (inside.ok, inside.results, wrong.ok) == (True, (), True)
    assert after.delivered
    assert peer.payloads == [{"user_id": 8}]
    assert caplog.records == []


async def test_suppressed_holds_for_its_own_task_only(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)
    inside = asyncio.Event()

    async def quiet() -> Emission:
        with suppressed("import"):
            inside.set()
            await asyncio.sleep(0)
            return await aemit("user-created", {"quiet": True})

    async def loud() -> Emission:
        await inside.wait()
        return await aemit("user-created", {"quiet": False})

    quietly, loudly = await asyncio.gather(quiet(), loud())

    assert (quietly.results, loudly.delivered) == ((), True)
    assert peer.payloads == [{"quiet": False}]


def test_suppressed_ends_with_an_exception_too(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)

    with pytest.raises(ZeroDivisionError), suppressed("import"):
        raise ZeroDivisionError

    assert emit("user-created", {}).delivered


@EVERY_WAY
def test_enabled_false_sends_nothing(send: Send, fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer, ENABLED=False)

    emission = send("user-created", {"user_id": 7})

    assert (emission.ok, emission.results) == (True, ())
    assert peer.requests == []


# Waiting


async def test_flush_waits_until_all_is_delivered_and_says_whether_it_was(fleet: Fleet) -> None:
    with Peer(answers_when_released()) as peer:
        fleet(payments=peer)
        emit_many([("user-created", {"n": n}) for n in range(20)])

        assert not await asyncio.to_thread(flush, 0.05)
        peer.release()
        assert await asyncio.to_thread(flush)

        assert len(peer.requests) == 20


async def test_flush_sees_what_was_handed_over_a_moment_ago(fleet: Fleet, peer: Peer) -> None:
    fleet(payments=peer)

    for n in range(50):
        emit("user-created", {"n": n})
        assert flush()
        assert len(peer.requests) == n + 1


def test_flush_with_nothing_to_do_starts_nothing(fleet: Fleet) -> None:
    fleet()

    assert flush(0.0)

    assert [t for t in threading.enumerate() if t.name == "aevents"] == []


def test_emit_waits_no_longer_than_a_call_may_take(fleet: Fleet) -> None:
    with Peer(hangs) as peer:
        fleet(payments=peer, LIMITS={"CALL_S": 0.2})
        began = time.monotonic()

        by_emit = emit("user-created", {"n": 0})
        by_aemit = asyncio.run(aemit("user-created", {"n": 1}))

        assert time.monotonic() - began < 5
    assert [e.results[0].outcome for e in (by_emit, by_aemit)] == ["queued", "queued"]


def test_the_public_names_are_these() -> None:
    assert sorted(aevents.__all__) == [
        "Again",
        "Dead",
        "Emission",
        "Event",
        "InvalidEvent",
        "Result",
        "aemit",
        "aemit_many",
        "current_event",
        "emit",
        "emit_many",
        "flush",
        "subscribe_to",
        "suppressed",
    ]
