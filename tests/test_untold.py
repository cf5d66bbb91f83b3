"""What is told to nobody: no `repr` and no exception's text holds a payload, a secret or a signature."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from aevents import aemit, cloudevents, current_event, routes, signature, subscribe_to, wire
from aevents.errors import MalformedMessage
from aevents.event import Message, new_id
from aevents.receiver import receive
from aevents.settings import conf
from aevents.store import Entry
from tests.peers import Fleet, Peer
from tests.test_logging import all_text
from tests.test_senders import FORMS, stamped
from tests.test_wire import event

MARK = "4111-1111-1111-1111"
PASSWORD = "p4ssw0rd"
SECRET, OTHER = signature.new_secret(), signature.new_secret()
DATA = b'{"card":"%b"}' % MARK.encode()


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.AEVENTS = {
        "SERVICE": "tests",
        "STORE": None,
        "ENABLED": True,
        "SECRETS": [SECRET],
        "SERVICES": {"payments": {"URL": f"http://me:{PASSWORD}@127.0.0.1:1/", "SECRETS": [OTHER]}},
        "SUBSCRIPTIONS": {"*": ["payments"]},
        "TRANSPORTS": {"custom": {"BACKEND": "no.such", "password": PASSWORD}},
    }


def assert_untold(*texts: str) -> None:
    keys = [repr(signature.key_of(secret))[2:-1] for secret in (SECRET, OTHER)]
    signed = ["v1,"]
    for text in texts:
        assert not [each for each in (MARK, PASSWORD, SECRET, OTHER, *keys, *signed) if each in text]


@pytest.mark.parametrize("form", FORMS)
def test_no_repr_holds_a_payload_a_secret_or_a_signature(form: str) -> None:
    sent = event(data=DATA)
    message = stamped(FORMS[form](sent), SECRET)
    things: list[Any] = [sent, message, Entry(1, sent, ()), conf(), routes.keys()]
    things += [routes.destination_named("payments"), routes._table]
    assert_untold(*map(repr, things), *map(str, things))
    # And those of an event and of a message say which
    assert sent.id in repr(sent)
    assert message.headers["webhook-id"] in repr(message)
    assert repr(Message({"webhook-id": "x" * 10_000}, b"1")).endswith(" of 1 bytes>")


async def test_no_log_of_a_handler_s_failure_holds_what_it_was_called_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    def handler(payload: Any) -> None:
        raise ValueError(f"the event {current_event()!r} is not to my taste")

    subscribe_to("user-created", handler, name="handler")
    message = stamped(wire.encode(event(id=new_id(), data=DATA)), SECRET)
    answer = await receive(message, peer="192.0.2.7", at_home=True)
    assert answer.status == 503
    assert "is not to my taste" in all_text(caplog)
    assert_untold(all_text(caplog), repr(answer))


async def test_no_wrong_call_repeats_its_payload(caplog: pytest.LogCaptureFixture, settings: Any) -> None:
    caplog.set_level(logging.DEBUG)
    wrong: list[Any] = [{(MARK, 1): 1}, {MARK: {MARK: {1, 2}}}, {b"%b" % MARK.encode(): 1}, {1: MARK}]
    wrong += [{"x": [MARK, object()]}, {"x": {MARK.encode(): MARK}}, {"x": 10**5000, "y": MARK}]
    with Fleet(settings) as fleet, Peer() as peer:
        fleet(peer=peer)
        for payload in wrong:
            emission = await aemit("user-created", payload)
            assert emission.error
            assert_untold(repr(emission))
    assert_untold(all_text(caplog))


@pytest.mark.parametrize("decode", [wire.decode, cloudevents.decode])
def test_no_refusal_repeats_what_it_refuses(decode: Any) -> None:
    content_type = wire.JSON if decode is wire.decode else cloudevents.STRUCTURED
    for body in (DATA, DATA[:-1], b'"%b' % DATA, b"[%b]" % DATA, b'{"event_type":%b,"payload":1}' % DATA):
        with pytest.raises(MalformedMessage) as caught:
            decode(Message({"content-type": content_type, "webhook-id": f"{MARK}\n"}, body))
        assert_untold(str(caught.value), repr(caught.value))
