"""The `aevents` logger and the signals behind it: levels, fields, one event followed by its id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import AsyncClient

from aevents import Again, Dead, aemit, emit, emit_many, log, receiver, signals, subscribe_to
from aevents.answer import Answer
from aevents.event import Event, Message, new_id
from aevents.transports.memory import MemoryTransport
from aevents.transports.rehearsal import Mailbox
from aevents.wire import encode
from tests.ledger import Ledger
from tests.peers import Peer, answers, answers_raw, eventually, refusing

Configure = Callable[..., None]
#: Stands in payloads and secrets, and must stand in no log.
MARK = "xyzzy-s3cret"
EVENT = Event(
    "0190-id", "order-placed", f'{{"card":"{MARK}"}}'.encode(), "shop", datetime.now(UTC), attempt=2
)


@pytest.fixture(autouse=True)
def configure(settings: Any, caplog: pytest.LogCaptureFixture) -> Configure:
    """Set keys of `AEVENTS`; everything is logged, and no test before has warned of any peer."""
    caplog.set_level(logging.DEBUG, "aevents")
    receiver._warned_at.clear()

    def set_keys(**keys: Any) -> None:
        settings.AEVENTS = {"SERVICE": "shop", "ENABLED": True, "UNSIGNED": "accept", "STORE": None, **keys}

    set_keys()
    return set_keys


@pytest.fixture
def serve() -> Iterator[Callable[..., Mailbox]]:
    """Serve `memory://<name>` with these answers."""
    names = []

    def start(name: str, *given: Answer | Exception) -> Mailbox:
        mailbox = Mailbox(*given)
        MemoryTransport.serve(name, mailbox)
        names.append(name)
        return mailbox

    yield start
    for name in names:
        MemoryTransport.stop(name)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "aevents"]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


_PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


# Each fact: its level, its line, its fields


@pytest.mark.parametrize(
    ("signal", "facts", "level", "line", "extra"),
    [
        (
            signals.event_emitted,
            {"services": ("payments", "orders")},
            "DEBUG",
            "Emitted order-placed 0190-id to payments, orders",
            {"to": "payments, orders"},
        ),
        (
            signals.event_emitted,
            {"services": ()},
            "DEBUG",
            "Emitted order-placed 0190-id to nobody",
            {"to": "nobody"},
        ),
        (
            signals.event_delivered,
            {"service": "payments", "attempts": 2, "elapsed_s": 0.25, "verdict": "handled"},
            "DEBUG",
            "Delivered order-placed 0190-id to payments",
            {
                "service": "payments",
                "attempts": 2,
                "elapsed_s": 0.25,
                "outcome": "delivered",
                "verdict": "handled",
            },
        ),
        (
            signals.event_delivered,
            {"service": "payments", "attempts": 1, "elapsed_s": 0.25, "verdict": "unhandled"},
            "DEBUG",
            "Delivered order-placed 0190-id to payments, which has no handler for it",
            {
                "service": "payments",
                "attempts": 1,
                "elapsed_s": 0.25,
                "outcome": "delivered",
                "verdict": "unhandled",
            },
        ),
        (
            signals.delivery_failed,
            {
                "service": "payments",
                "attempts": 1,
                "elapsed_s": 0.1,
                "error": "refused",
                "outcome": "again in 0.20 s",
            },
            "INFO",
            "Not delivered order-placed 0190-id to payments at try 1 (again in 0.20 s): refused",
            {
                "service": "payments",
                "attempts": 1,
                "elapsed_s": 0.1,
                "error": "refused",
                "outcome": "again in 0.20 s",
            },
        ),
        (
            signals.delivery_failed,
            {"service": "payments", "attempts": 3, "elapsed_s": 0.9, "error": "refused", "outcome": "failed"},
            "ERROR",
            "Lost order-placed 0190-id: not delivered to payments after 3 tries: refused",
            {"service": "payments", "attempts": 3, "elapsed_s": 0.9, "error": "refused", "outcome": "failed"},
        ),
        (
            signals.delivery_failed,
            {"service": "payments", "attempts": 3, "elapsed_s": 0.9, "error": "refused", "outcome": "parked"},
            "INFO",
            "Parked order-placed 0190-id for payments after 3 tries, to be tried again: refused",
            {"service": "payments", "attempts": 3, "elapsed_s": 0.9, "error": "refused", "outcome": "parked"},
        ),
        (
            signals.delivery_dead,
            {"target": "payments", "attempts": 16, "error": "refused"},
            "ERROR",
            "Dead letter order-placed 0190-id for payments after 16 tries, kept and can be replayed: refused",
            {"target": "payments", "attempts": 16, "error": "refused", "outcome": "dead"},
        ),
        (
            signals.event_received,
            {"handlers": ("a.b", "c.d")},
            "DEBUG",
            "Received order-placed 0190-id from shop",
            {"source": "shop", "handlers": ("a.b", "c.d")},
        ),
        (
            signals.event_received,
            {"handlers": ()},
            "DEBUG",
            "Received order-placed 0190-id from shop, for which there is no handler",
            {"source": "shop", "handlers": ()},
        ),
        (
            signals.event_duplicate,
            {},
            "DEBUG",
            "Dropped a duplicate of order-placed 0190-id",
            {"outcome": "duplicate"},
        ),
        (
            signals.handler_succeeded,
            {"handler": "a.b", "elapsed_s": 0.5},
            "DEBUG",
            "Handled order-placed 0190-id in a.b",
            {"handler": "a.b", "elapsed_s": 0.5, "outcome": "handled", "attempts": 2},
        ),
        (
            signals.handler_failed,
            {"handler": "a.b", "elapsed_s": 0.5, "error": ValueError("no")},
            "ERROR",
            "The handler a.b failed for order-placed 0190-id at try 2",
            {"handler": "a.b", "elapsed_s": 0.5, "outcome": "failed", "attempts": 2},
        ),
        (
            signals.handler_deferred,
            {"handler": "a.b", "elapsed_s": 0.5, "in_s": 2.0},
            "INFO",
            "The handler a.b wants order-placed 0190-id again in 2.0 s",
            {"handler": "a.b", "elapsed_s": 0.5, "outcome": "deferred", "attempts": 2, "in_s": 2.0},
        ),
    ],
)
def test_a_fact_has_its_level_line_and_fields(
    caplog: pytest.LogCaptureFixture,
    signal: Any,
    facts: dict[str, Any],
    level: str,
    line: str,
    extra: dict[str, Any],
) -> None:
    signals.announce(signal, event=EVENT, **facts)

    assert lines(caplog) == [(level, line)]
    assert fields(caplog.records[0]) == {"event_id": "0190-id", "event_type": "order-placed", **extra}


@pytest.mark.parametrize(
    ("signal", "facts", "line"),
    [
        (
            signals.destination_down,
            {"failures": 5, "pause_s": 1.04, "error": "refused"},
            ("WARNING", "payments is down: 5 failures in a row, no try for 1.0 s. Last: refused"),
        ),
        (signals.destination_up, {}, ("INFO", "payments is up again")),
    ],
)
def test_a_fact_about_a_service_has_its_level_line_and_fields(
    caplog: pytest.LogCaptureFixture, signal: Any, facts: dict[str, Any], line: tuple[str, str]
) -> None:
    signals.announce(signal, service="payments", **facts)

    assert lines(caplog) == [line]
    assert fields(caplog.records[0]) == {"service": "payments"}


def test_a_failed_handler_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def fail(payload: Any) -> None:
        raise ValueError("deep inside")

    async def afail(payload: Any) -> None:
        raise TimeoutError("in async code")

    subscribe_to("order-placed", fail, name="fail")
    subscribe_to("order-placed", afail, name="afail")
    asyncio.run(receiver.receive(encode(EVENT), peer="", at_home=True))

    texts = [record.exc_text or "" for record in caplog.records if record.levelname == "ERROR"]
    assert len(texts) == 2
    for text in texts:
        assert 'raise ValueError("deep inside")' in text or 'raise TimeoutError("in async code")' in text
        assert "test_logging.py" in text


# One event, followed


def test_an_event_is_followed_by_its_id_from_emit_to_handler(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a service that tells itself, through encode and decode
    configure(SUBSCRIPTIONS={"order-placed": ["shop"]})
    subscribe_to("order-placed", lambda _: None, name="pack")
    # When two events go their ways
    emission = emit("order-placed", {"n": 1})
    other = emit("order-placed", {"n": 2})
    # Then
    assert emission.id != other.id
    own = [record for record in caplog.records if getattr(record, "event_id", None) == emission.id]
    assert [record.getMessage().replace(emission.id, "ID") for record in own] == [
        "Emitted order-placed ID to shop",
        "Received order-placed ID from shop",
        "Handled order-placed ID in pack",
        "Delivered order-placed ID to shop",
    ]
    assert {record.event_type for record in own} == {"order-placed"}  # type: ignore[attr-defined]


def test_tries_that_fail_are_told_and_the_end_too(
    configure: Configure, caplog: pytest.LogCaptureFixture, serve: Callable[..., Mailbox]
) -> None:
    configure(
        SERVICES={"down": "memory://down"}, SUBSCRIPTIONS={"order-placed": ["down"]}, LIMITS={"TRIES": 2}
    )
    serve("down", Answer(500, {"detail": "out of ink"}))
    caplog.set_level(logging.INFO, "aevents")

    emit("order-placed", {})

    (first, line), (second, end) = lines(caplog)
    assert (first, second) == ("INFO", "ERROR")
    assert "at try 1 (again in 0." in line
    assert line.endswith("): answered 500: 'out of ink'")
    assert end.startswith("Lost order-placed ")
    assert end.endswith(": not delivered to down after 2 tries: answered 500: 'out of ink'")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_what_is_parked_is_told_at_info_and_a_dead_letter_at_error(
    configure: Configure, caplog: pytest.LogCaptureFixture, serve: Callable[..., Mailbox], ledger: Ledger
) -> None:
    configure(
        SERVICES={"down": "memory://down"},
        SUBSCRIPTIONS={"order-placed": ["down"]},
        LIMITS={"TRIES": 1},
        STORE=ledger.alias,
    )
    serve("down", Answer(500, {}), Answer(410, {"detail": "no more of that"}))
    caplog.set_level(logging.INFO, "aevents")

    assert emit("order-placed", {}).results[0].outcome == "parked"
    assert emit("order-placed", {}).results[0].outcome == "failed"

    (first, parked), (second, dead) = lines(caplog)
    assert (first, second) == ("INFO", "ERROR")
    assert parked.startswith("Parked order-placed ")
    assert parked.endswith(" for down after 1 tries, to be tried again: answered 500")
    assert dead.startswith("Dead letter order-placed ")
    assert dead.endswith(" for down after 1 tries, kept and can be replayed: answered 410: 'no more of that'")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_handler_that_comes_again_or_gives_up_has_no_traceback_in_the_log(
    configure: Configure, caplog: pytest.LogCaptureFixture, ledger: Ledger
) -> None:
    configure(STORE=ledger.alias)
    caplog.set_level(logging.INFO, "aevents")

    def waits(payload: Any) -> None:
        raise Again(60)

    def gives_up(payload: Any) -> None:
        raise Dead("no such order")

    subscribe_to("order-placed", waits, name="waits", atomic=False)
    subscribe_to("order-placed", gives_up, name="gives_up", atomic=False)
    answer = asyncio.run(receiver.receive(encode(EVENT), peer="", at_home=True))

    assert answer.status == 202
    assert sorted(lines(caplog)) == [
        (
            "ERROR",
            "Dead letter order-placed 0190-id for gives_up after 1 tries, kept and can be replayed:"
            " Dead: no such order",
        ),
        ("INFO", "The handler waits wants order-placed 0190-id again in 60.0 s"),
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_on_most_days_nothing_is_logged_above_debug(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SUBSCRIPTIONS={"order-placed": ["shop"]})
    subscribe_to("order-placed", lambda _: None, name="pack")
    emit_many([("order-placed", {}), ("nobody-listens", {})])

    assert {level for level, _ in lines(caplog)} == {"DEBUG"}


# What must never stand there


def all_text(caplog: pytest.LogCaptureFixture) -> str:
    """Everything a formatter could write of every record, of every logger."""
    formatter = logging.Formatter("%(name)s %(message)s")
    return "\n".join(
        f"{formatter.format(record)} {record.stack_info} {fields(record)}" for record in caplog.records
    )


async def test_no_log_holds_a_payload_or_a_secret(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    payload = {"card": MARK, MARK: 1}

    def fail(payload: Any) -> None:
        raise ValueError("says nothing of it")

    subscribe_to("order-placed", fail, name="fail")
    subscribe_to("order-placed", lambda _: None, name="works")
    with Peer(answers(500)) as broken, Peer(answers_raw(b"no HTTP\r\n\r\n")) as garbled, refusing() as closed:
        urls = {"broken": broken.url, "garbled": garbled.url, "closed": closed}
        configure(
            SERVICES={
                **{name: url.replace("//", f"//me:{MARK}@") for name, url in urls.items()},
                "wrong": f"ftp://me:{MARK}@host/",
                "port": f"http://me:{MARK}/@host/",
            },
            SUBSCRIPTIONS={"order-placed": ["shop", *urls, "wrong", "port", "unknown"]},
            LIMITS={"TRIES": 2},
        )
        emission = await aemit("order-placed", payload)
    assert {result.outcome for result in emission.results} == {"failed"}
    # And what is wrong with the call, or with what arrives
    circular: dict[str, Any] = {"card": MARK}
    circular["self"] = circular
    wrong: list[Any] = [MARK, [MARK], {"card": MARK, "x": object()}, {"card": [MARK, float("nan")]}, circular]
    wrong += [{"x": MARK * 30_000}, {"card": MARK, "x": {1, 2}}, {"card": MARK, "x": "\ud800"}]
    for value in wrong:
        assert not (await aemit("order-placed", value)).ok
    for body in (f'{{"event_type":"x","payload":"{MARK}"', f'["{MARK}"]', f'{{"event_type":["{MARK}"]}}'):
        response = await AsyncClient().post("/events/", body, "application/json")
        assert response.status_code == 400

    text = all_text(caplog)
    assert len(text) > 1000
    assert MARK not in text


async def test_what_comes_from_outside_cannot_write_lines_or_colours(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    # Given peers, answers, ids, types and sources that try
    evil = "ok\r\nERROR all is lost \x1b[2J\x9b31m\u2028\u202e"
    headers = dict(encode(EVENT).headers)
    event = Event(new_id(), "order-placed", b"{}", evil, datetime.now(UTC))
    for message in (
        encode(event),
        Message({**headers, "ce-source": evil, "ce-time": evil, "traceparent": evil}, encode(EVENT).body),
        Message({**headers, "webhook-id": evil, "ce-id": evil}, encode(EVENT).body),
        Message({**headers, "content-type": evil}, b"{}"),
        Message(headers, f'{{"event_type":"{evil}","payload":1}}'.encode()),
        Message(headers, b'{"event_type":"order-placed\\r\\n","payload":1}'),
    ):
        receiver._warned_at.clear()
        await receiver.receive(message, peer=evil, at_home=True)
    configure(UNSIGNED="warn")
    receiver._warned_at.clear()
    await receiver.receive(encode(EVENT), peer=evil, at_home=True)
    for status in (b"200 " + evil.encode(), b"503 " + evil.encode(), evil.encode()):
        with Peer(answers_raw(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")) as peer:
            configure(
                SERVICES={"peer": peer.url}, SUBSCRIPTIONS={"order-placed": ["peer"]}, LIMITS={"TRIES": 1}
            )
            await aemit("order-placed", {})
    await aemit(evil, {})
    signals.announce(signals.destination_down, service="peer", failures=5, pause_s=1.0, error=evil)
    # Then no line of ours and no field holds anything that is not printable
    records = [record for record in caplog.records if record.name == "aevents"]
    assert len(records) > 10
    for record in records:
        assert record.getMessage().isprintable(), record.getMessage()
        for value in fields(record).values():
            assert not isinstance(value, str) or value.isprintable(), value


def test_a_peer_is_warned_of_once_a_minute(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    configure(UNSIGNED="refuse")
    for peer in ("10.0.0.1", "10.0.0.2"):
        for _ in range(5):
            answer = asyncio.run(receiver.receive(encode(EVENT), peer=peer, at_home=True))
            assert answer.status == 401

    assert [level for level, _ in lines(caplog)] == ["WARNING"] * 2
    assert [fields(record) for record in caplog.records] == [{"peer": "10.0.0.1"}, {"peer": "10.0.0.2"}]
    assert "AEVENTS['UNSIGNED']" in caplog.text


def test_any_number_of_peers_is_remembered_within_bounds(configure: Configure) -> None:
    configure(UNSIGNED="refuse")

    async def from_everywhere() -> None:
        for n in range(3000):
            await receiver.receive(encode(EVENT), peer=f"10.0.{n // 256}.{n % 256}", at_home=True)

    asyncio.run(from_everywhere())
    assert len(receiver._warned_at) <= 1000


# Listeners of others


@pytest.fixture
def listen() -> Iterator[Callable[[Any, Callable[..., Any]], None]]:
    connected: list[tuple[Any, Any]] = []

    def connect(signal: Any, listener: Callable[..., Any]) -> None:
        signal.connect(listener, weak=False)
        connected.append((signal, listener))

    yield connect
    for signal, listener in connected:
        signal.disconnect(listener)


ALL = [
    signals.event_emitted,
    signals.event_delivered,
    signals.delivery_failed,
    signals.event_received,
    signals.event_duplicate,
    signals.handler_succeeded,
    signals.handler_failed,
]


def test_every_fact_of_an_event_carries_the_event(
    configure: Configure, listen: Callable[..., None], serve: Callable[..., Mailbox]
) -> None:
    # Given
    seen: list[tuple[Any, set[str], Event]] = []
    for signal in ALL:

        def note(signal: Any, event: Event, **facts: Any) -> None:
            seen.append((signal, set(facts) - {"sender"}, event))

        listen(signal, note)
    configure(
        SERVICES={"down": "memory://down"},
        SUBSCRIPTIONS={"order-placed": ["shop", "down"]},
        LIMITS={"TRIES": 1},
    )
    serve("down", Answer(410, {}))
    subscribe_to("order-placed", lambda _: None, name="works")
    # When
    emission = emit("order-placed", {})
    asyncio.run(_receive_twice())
    # Then
    keys = {signal: facts for signal, facts, _ in seen}
    assert keys == {
        signals.event_emitted: {"services"},
        signals.event_received: {"handlers"},
        signals.handler_succeeded: {"handler", "elapsed_s"},
        signals.event_delivered: {"service", "attempts", "elapsed_s", "verdict"},
        signals.delivery_failed: {"service", "attempts", "elapsed_s", "error", "outcome"},
        signals.event_duplicate: set(),
        signals.handler_failed: {"handler", "elapsed_s", "error"},
    }
    assert {event.id for signal, _, event in seen if signal is signals.event_emitted} == {emission.id}


async def _receive_twice() -> None:
    subscribe_to("fails", _fail, name="fails")
    await receiver.receive(encode(EVENT), peer="", at_home=True)
    await receiver.receive(encode(EVENT), peer="", at_home=True)
    await receiver.receive(
        encode(Event(new_id(), "fails", b"{}", "", datetime.now(UTC))), peer="", at_home=True
    )


def _fail(payload: Any) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_listener_that_fails_stops_nobody_and_is_logged(
    configure: Configure, listen: Callable[..., None], caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    # Given listeners that fail at every fact, and one that works after them
    def fail(**facts: Any) -> None:
        raise RuntimeError("a bug in a metric")

    async def afail(**facts: Any) -> None:
        raise RuntimeError("a bug in a metric")

    heard: list[Any] = []
    for signal in ALL:
        listen(signal, afail if is_async else fail)
        listen(signal, lambda signal, **facts: heard.append(signal))
    configure(SUBSCRIPTIONS={"order-placed": ["shop"]})
    subscribe_to("order-placed", lambda _: None, name="works")
    # When
    emission = await aemit("order-placed", {})
    # Then
    assert emission.delivered
    assert set(heard) >= {signals.event_emitted, signals.event_received, signals.handler_succeeded}
    assert eventually(lambda: signals.event_delivered in heard)
    assert ("DEBUG", f"Handled order-placed {emission.id} in works") in lines(caplog)
    said = "must be sync" if is_async else "A signal receiver failed: "
    assert len([line for level, line in lines(caplog) if level == "ERROR" and said in line]) == 4


def test_connecting_the_log_again_writes_no_line_twice(caplog: pytest.LogCaptureFixture) -> None:
    log.connect()
    signals.announce(signals.event_duplicate, event=EVENT)

    assert len(lines(caplog)) == 1


def test_a_listener_gets_facts_even_where_nothing_is_logged(
    configure: Configure, listen: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aevents")
    heard: list[str] = []
    for name in ("event_emitted", "event_received", "handler_succeeded", "event_delivered"):
        listen(getattr(signals, name), lambda name=name, **facts: heard.append(name))
    configure(SUBSCRIPTIONS={"order-placed": ["shop"]})
    subscribe_to("order-placed", lambda _: None, name="works")

    assert emit("order-placed", {}).delivered

    assert eventually(lambda: len(heard) == 4)
    assert heard == ["event_emitted", "event_received", "handler_succeeded", "event_delivered"]
    assert caplog.records == []
