"""Messages that come again, many at a time, or almost: one effect for each event, and one for no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aevents import batch, cloudevents, inbox, signature, subscribe_to, wire
from aevents.answer import Answer
from aevents.event import Message, new_id
from aevents.receiver import receive
from tests.ledger import Ledger
from tests.peers import Fleet
from tests.project.models import Note
from tests.test_senders import FORMS, stamped
from tests.test_wire import event

SECRET = signature.new_secret()
OTHER = "an-attacker"
#: What of a request nobody signs, as somebody who captured it would change it.
CHANGES: dict[str, dict[str, str]] = {
    "nothing": {},
    "its source": {"ce-source": f"/{OTHER}"},
    "its time": {"ce-time": "1999-01-01T00:00:00Z"},
    "its key": {"ce-partitionkey": OTHER},
    "its cause": {"ce-causationid": OTHER, "ce-correlationid": OTHER, "ce-hops": "7"},
    "its traces": {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "ce-traceparent": OTHER},
    "its version": {"ce-specversion": "9.9"},
    "all of that away": dict.fromkeys(["ce-source", "ce-time", "ce-specversion", "ce-id", "ce-type"], ""),
}


@pytest.fixture
def effects(ledger: Ledger, settings: Any) -> Iterator[Callable[[], list[str]]]:
    """What the handler wrote into the store of a service that takes only what is signed."""

    def handler(payload: Any) -> None:
        Note.objects.using(ledger.alias).create(text=str(payload))

    subscribe_to("noted", handler, name="handler")
    with Fleet(settings) as fleet:
        fleet(STORE=ledger.alias, INBOX=True, UNSIGNED="refuse", SECRETS=[SECRET], SERVICES={})

        def written() -> list[str]:
            ledger.is_empty()
            return sorted(Note.objects.using(ledger.alias).values_list("text", flat=True))

        with ledger.relaying():  # what has a key is taken in its order
            yield written
        inbox.end(5.0)


def arrive(message: Message) -> Answer:
    return asyncio.run(receive(message, peer="192.0.2.7", at_home=False))


def changed(message: Message, changes: dict[str, str]) -> Message:
    headers = {**message.headers, **changes}
    return Message({name: value for name, value in headers.items() if value}, message.body)


@pytest.mark.parametrize("form", FORMS)
def test_a_captured_message_has_no_second_effect_whatever_of_it_is_changed(
    effects: Callable[[], list[str]], form: str
) -> None:
    # Given a signed message that was taken
    captured = stamped(FORMS[form](event(id=new_id(), type="noted", data=b"1", key="k")), SECRET)
    assert arrive(captured).status in (200, 202)
    # When it comes again with other headers, of those that nobody signs
    answers = [arrive(changed(captured, changes)) for changes in CHANGES.values()]
    # Then it is known, or refused, and its effect is one
    assert {answer.status for answer in answers} <= {200, 400}
    assert {answer.content.get("status", "") for answer in answers} <= {"duplicate", ""}
    assert effects() == ["1"]


@pytest.mark.parametrize("form", FORMS)
def test_a_captured_message_in_another_s_dress_is_none(effects: Callable[[], list[str]], form: str) -> None:
    # Given a signed message that was not taken yet, and the content types of the other forms
    captured = stamped(FORMS[form](event(id=new_id(), type="noted", data=b'{"data":1,"payload":2}')), SECRET)
    for content_type in (wire.JSON, cloudevents.STRUCTURED, wire.BATCH):
        if captured.headers["content-type"] == content_type:
            continue
        more = {"ce-specversion": "1.0", "ce-id": captured.headers["webhook-id"], "ce-type": "noted"}
        for headers in ({}, more):
            # Then it is refused, in whatever dress it comes, with the attributes of a binary event too
            assert arrive(changed(captured, {**headers, "content-type": content_type})).status == 400
    assert effects() == []


@pytest.mark.parametrize("form", ["single", "structured"])
def test_of_fifty_copies_that_come_at_one_moment_one_has_an_effect(
    effects: Callable[[], list[str]], form: str
) -> None:
    message = stamped(FORMS[form](event(id=new_id(), type="noted", data=b"1")), SECRET)
    with ThreadPoolExecutor(50) as pool:
        statuses = sorted(answer.status for answer in pool.map(arrive, [message] * 50))
    # Whoever finds the database busy comes again
    assert statuses.count(202) == 1
    assert set(statuses) <= {200, 202, 503}
    assert effects() == ["1"]


ALIKE = ["order-1", "ORDER-1", "Order-1", "order-1 ", " order-1", "order-1  ", "órder-1", "order-1\xa0"]
ALIKE += ["straße", "strasse", "x" * 199 + "a", "x" * 199 + "b", "ﬁ", "fi"]


def test_ids_that_are_almost_the_same_are_of_two_events(effects: Callable[[], list[str]]) -> None:
    # Given ids that some databases compare as equal; one with other than plain blanks is none
    ids = [id for id in ALIKE if id.isprintable()]
    events = [event(id=id, type="noted", data=b"%d" % n, source=new_id()) for n, id in enumerate(ids)]
    # When they arrive together and once more, each alone
    assert arrive(stamped(batch.encode(events), SECRET)).content["events"] == []
    for each in events:
        message = Message(
            {"content-type": cloudevents.STRUCTURED, "webhook-id": new_id()}, cloudevents.dump(each)
        )
        assert arrive(stamped(message, SECRET)).content["status"] == "duplicate"
    # Then each had its own effect
    assert effects() == sorted(str(n) for n in range(len(ids)))


def test_what_is_longer_than_an_id_may_be_is_not_cut_but_refused(effects: Callable[[], list[str]]) -> None:
    for end in "ab":
        message = wire.encode(event(id="x" * 200 + end, type="noted", data=b"1"))
        assert arrive(stamped(message, SECRET)).status == 400
    assert effects() == []
