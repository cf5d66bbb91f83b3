"""A captured signed message, sent again: in another dress it is the same event or none, later it is 401."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from aevents import batch, cloudevents, inbox, signature, subscribe_to, wire
from aevents.answer import Answer
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from tests.ledger import Ledger
from tests.peers import Fleet
from tests.project.models import Note
from tests.test_store import an_event

SECRET, OTHER = signature.new_secret(), signature.new_secret()
KEY = signature.key_of(SECRET)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STRUCTURED = cloudevents.STRUCTURED
FORMS: dict[str, Callable[[Event], Message]] = {
    "single": wire.encode,
    "structured": cloudevents.encode,
    "batch": lambda sent: batch.encode([sent]),
}
#: What whoever captured a message may change: everything but what is signed.
HINTS: dict[str, Mapping[str, str]] = {
    "as it was": {},
    "another source": {"ce-source": "/somebody"},
    "no source": {"ce-source": ""},
    "a host as source": {"ce-source": "https://example.com/"},
    "a source that cannot be read": {"ce-source": "%ff"},
    "another time": {"ce-time": "2020-01-01T00:00:00Z"},
    "a time that is none": {"ce-time": "yesterday"},
    "another key": {"ce-partitionkey": "another"},
    "another cause": {"ce-causationid": new_id(), "ce-correlationid": new_id(), "ce-hops": "15"},
    "another trace": {"traceparent": TRACE, "ce-traceparent": TRACE},
    "everything": {
        "ce-source": "/x",
        "ce-time": "2021-01-01T00:00:00+01:00",
        "ce-partitionkey": "y",
        "ce-hops": "1",
        "traceparent": TRACE,
    },
    "another specversion": {"ce-specversion": "0.3"},
}


@pytest.fixture
def fleet(settings: Any, ledger: Ledger) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        found(STORE=ledger.alias, INBOX=True, SECRETS=[OTHER, SECRET], UNSIGNED="refuse")
        yield found
        inbox.end(5.0)


@pytest.fixture(autouse=True)
def _handler(ledger: Ledger) -> None:
    def write(payload: Any) -> None:
        Note.objects.using(ledger.alias).create(text=f"done {payload['n']}")

    subscribe_to("user-created", write, name="write")


def signed(message: Message) -> Message:
    return Message(wire.stamp(message, [KEY]), message.body)


def arrive(message: Message) -> Answer:
    return asyncio.run(receive(message, peer="192.0.2.7", at_home=False))


def effects(ledger: Ledger) -> int:
    with ledger.relaying():  # what has a key is the relay's
        ledger.is_empty()
    return Note.objects.using(ledger.alias).count()


def in_another_dress(captured: Message) -> Iterator[tuple[str, Message]]:
    for name, changes in HINTS.items():
        yield name, Message({**captured.headers, **changes}, captured.body)
    media_type = captured.headers["content-type"]
    yield (
        "a charset",
        Message({**captured.headers, "content-type": f"{media_type}; charset=utf-8"}, captured.body),
    )
    yield (
        "the three headers alone",
        Message(
            {name: captured.headers[name] for name in captured.headers if name[:3] in ("web", "con")},
            captured.body,
        ),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("fleet")
def test_a_captured_message_with_other_hints_has_no_second_effect(ledger: Ledger, form: str) -> None:
    # Given a signed message that has arrived
    sent = an_event(key="user-7")
    captured = signed(FORMS[form](sent))
    assert arrive(captured).status in (200, 202)
    assert effects(ledger) == 1
    # When it arrives again, its unsigned headers changed
    for name, again in in_another_dress(captured):
        answer = arrive(again)
        # Then it is known
        assert answer.status == 200, name
        assert answer.content == (
            {"events": []} if form == "batch" else {"id": sent.id, "status": "duplicate"}
        ), name
    assert effects(ledger) == 1


@pytest.mark.parametrize("order", [("single", "structured", "batch"), ("batch", "structured", "single")])
@pytest.mark.usefixtures("fleet")
def test_one_event_in_all_three_forms_has_one_effect(ledger: Ledger, order: tuple[str, ...]) -> None:
    """As when a batch was not answered in time, and its events are sent again singly."""
    sent = an_event()
    for form in order:
        assert arrive(signed(FORMS[form](sent))).status in (200, 202)
    assert effects(ledger) == 1


MEDIA_TYPES = (
    wire.JSON,
    STRUCTURED,
    wire.BATCH,
    "application/cloudevents",
    "application/cloudevents+avro",
    "text/plain",
    "",
)
BINARY = {"ce-specversion": "1.0", "ce-type": "user-created", "ce-source": "/payments"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("fleet")
def test_a_captured_message_under_another_content_type_is_no_event(ledger: Ledger, form: str) -> None:
    captured = signed(FORMS[form](an_event()))
    own = captured.headers["content-type"]
    # Given that it never arrived, so that nothing is known of it
    for media_type in MEDIA_TYPES:
        if media_type == own:
            continue
        # When it arrives as something else, with the headers of a binary event or without
        for more in ({}, BINARY, {**BINARY, "ce-id": captured.headers["webhook-id"]}):
            answer = arrive(Message({**captured.headers, **more, "content-type": media_type}, captured.body))
            # Then it is none
            assert answer.status in (400, 415), (media_type, answer)
    assert effects(ledger) == 0
    # And as itself it is taken still
    assert arrive(captured).status in (200, 202)
    assert effects(ledger) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("fleet")
def test_what_is_signed_cannot_be_changed_into_another_event(ledger: Ledger, form: str) -> None:
    captured = signed(FORMS[form](an_event()))
    assert arrive(captured).status in (200, 202)
    id, body = captured.headers["webhook-id"], captured.body
    now = int(captured.headers["webhook-timestamp"])
    for changes in (
        {"webhook-id": new_id()},
        {"webhook-id": id.upper()},
        {"webhook-id": f"{id} "},
        {"webhook-id": f"{id}.{now}"},
        {"webhook-id": ""},
        {"webhook-timestamp": str(now + 1)},
        {"webhook-timestamp": str(now - 1)},
        {"webhook-timestamp": f"0{now}"},
        {"webhook-signature": ""},
    ):
        assert arrive(Message({**captured.headers, **changes}, body)).status == 401
    for other in (body + b" ", b" " + body, body.replace(b'"n":1', b'"n":2'), b"[%b]" % body, body[:-1], b""):
        assert arrive(Message(captured.headers, other)).status == 401
    assert effects(ledger) == 1


@pytest.mark.usefixtures("fleet")
def test_a_ce_id_or_ce_type_of_another_event_is_400(ledger: Ledger) -> None:
    captured = signed(wire.encode(an_event()))
    for changes in (
        {"ce-id": new_id()},
        {"ce-id": ""},
        {"ce-type": "user-deleted"},
        {"ce-type": "User-Created"},
    ):
        assert arrive(Message({**captured.headers, **changes}, captured.body)).status == 400
    assert effects(ledger) == 0


@pytest.mark.usefixtures("fleet")
def test_a_foreign_event_has_one_effect_for_each_signed_source(ledger: Ledger) -> None:
    """Its id counts within its source, which the body says; what the headers say changes nothing."""
    bodies = [
        b'{"specversion":"1.0","id":"1","source":"%b","type":"user-created","data":{"n":1}}' % source
        for source in (b"https://one.example/", b"https://two.example/")
    ]
    for body in bodies:
        # Other ids of the message, as each of its tries may have with some senders
        for id, source in (("msg_1", "/a"), ("msg_2", "/b"), ("msg_2", "https://two.example/")):
            message = Message({"content-type": STRUCTURED, "webhook-id": id, "ce-source": source}, body)
            assert arrive(signed(message)).status in (200, 202)
    assert effects(ledger) == 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("fleet")
def test_outside_the_five_minutes_a_captured_message_is_401(
    ledger: Ledger, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = signed(FORMS[form](an_event()))
    signed_at = int(captured.headers["webhook-timestamp"])
    clock = [time.time()]
    monkeypatch.setattr(signature, "time", SimpleNamespace(time=lambda: clock[0]))
    # Given that it never arrived in time: not even then
    for apart_s in (301, -301, 3600, 86_400 * 15):
        clock[0] = signed_at + apart_s
        for _, again in in_another_dress(captured):
            answer = arrive(again)
            assert answer.status == 401
            assert "clock" in answer.content["detail"]
    assert effects(ledger) == 0
    # And within them it is taken, once
    for apart_s in (300, -300, 0):
        clock[0] = signed_at + apart_s
        assert arrive(captured).status in (200, 202)
    assert effects(ledger) == 1


@pytest.mark.usefixtures("fleet")
def test_a_try_of_the_emitter_itself_is_stamped_anew_and_known_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = wire.encode(an_event())
    for later_s in (0, 3600, 86_400 * 3):
        clock = SimpleNamespace(time=lambda later_s=later_s: time.time() + later_s)
        monkeypatch.setattr(signature, "time", clock)
        monkeypatch.setattr(wire, "time", clock)
        assert arrive(signed(message)).status in (200, 202)
    assert effects(ledger) == 1
