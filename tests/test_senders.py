"""Who may send what: by the secret that verified, not by what a header says. What unsigned events meet."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from django.test import override_settings

from aevents import aemit, batch, cloudevents, emit, receiver, routes, signature, subscribe_to, wire
from aevents.answer import Answer
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from tests.ledger import Ledger
from tests.peers import Fleet, Peer
from tests.project.clients import JSON, WAYS, ask, ask_asgi
from tests.test_wire import event

FLEET, PAYMENTS, OLDER, ORDERS, OWN, STRANGE = (signature.new_secret() for _ in range(6))
BASE = {"SERVICE": "tests", "ENABLED": True, "STORE": None}
SERVICES: dict[str, Any] = {
    "payments": {"URL": "http://127.0.0.1:1/", "SECRETS": [PAYMENTS, OLDER]},
    "orders": {"URL": "http://127.0.0.1:2/", "SECRETS": [ORDERS]},
    "reports": "http://127.0.0.1:3/",
    "tests": {"URL": "http://127.0.0.1:4/", "SECRETS": [OWN]},
}
KEYED = {**BASE, "SECRETS": [FLEET], "SERVICES": SERVICES}
FORMS: dict[str, Callable[[Event], Message]] = {
    "single": wire.encode,
    "structured": cloudevents.encode,
    "batch": lambda sent: batch.encode([sent]),
}


@pytest.fixture(autouse=True)
def handled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the handlers got; and nobody was warned of before."""
    monkeypatch.setattr(receiver, "_warned_at", {})
    calls: list[Any] = []
    for event_type in ("user-created", "user-deleted", "invoice-paid", "other"):
        subscribe_to(event_type, calls.append, name=f"on {event_type}")
    return calls


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "aevents"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "aevents"]


def an_event(event_type: str = "user-created", source: str = "payments") -> Event:
    return event(id=new_id(), type=event_type, source=source)


def stamped(message: Message, *secrets: str) -> Message:
    return Message(wire.stamp(message, [signature.key_of(each) for each in secrets]), message.body)


async def arrive(message: Message) -> Answer:
    return await receive(message, peer="192.0.2.7", at_home=True)


async def sent_by(secret: str | None, event_type: str = "user-created", form: str = "single") -> int:
    """Send one event, signed with a secret; return the status of its answer, or of its verdict."""
    sent = an_event(event_type)
    answer = await arrive(stamped(FORMS[form](sent), *([secret] if secret else [])))
    if form == "batch" and answer.status == 200:
        verdicts = answer.content["events"]
        assert [verdict["id"] for verdict in verdicts] in ([], [sent.id])
        return verdicts[0]["status"] if verdicts else 200
    return answer.status


# --- SENDERS ---


@pytest.mark.parametrize("form", FORMS)
async def test_only_the_named_service_s_own_secret_lets_it_send(
    settings: Any, handled: list[Any], form: str
) -> None:
    settings.AEVENTS = {**KEYED, "UNSIGNED": "accept", "SENDERS": {"user-created": ["payments"]}}
    # Given all who can send here: the named one may, with both secrets of a rotation
    assert await sent_by(PAYMENTS, form=form) == 200
    assert await sent_by(OLDER, form=form) == 200
    assert len(handled) == 2
    # And nobody else, whatever their headers say
    for secret in (ORDERS, FLEET, OWN, None):
        assert await sent_by(secret, form=form) == 403
    # Whose signature is wrong is not even asked
    assert await sent_by(STRANGE, form=form) == 401
    assert len(handled) == 2
    # And what no pattern names may be sent by all
    for secret in (PAYMENTS, ORDERS, FLEET, OWN, None):
        assert await sent_by(secret, "user-deleted", form) == 200


@pytest.mark.parametrize("source", ["payments", "orders", "tests", "", "nobody"])
async def test_what_a_header_says_makes_nobody_a_sender(settings: Any, source: str) -> None:
    settings.AEVENTS = {**KEYED, "SENDERS": {"user-created": ["payments"]}}
    for secret, status in ((PAYMENTS, 200), (ORDERS, 403), (FLEET, 403), (OWN, 403)):
        message = stamped(wire.encode(an_event(source=source)), secret)
        assert (await arrive(message)).status == status


async def test_the_refusal_names_the_service_the_setting_and_no_secret(
    settings: Any, warnings: Callable[[], list[str]]
) -> None:
    settings.AEVENTS = {**KEYED, "SENDERS": {"user-created": ["payments"]}}
    answer = await arrive(stamped(wire.encode(an_event()), ORDERS))
    assert answer.content == {
        "detail": "'orders' is not among those from whom AEVENTS['SENDERS'] of this service takes events of"
        " this type."
    }
    assert warnings() == [f"Refused an event from 192.0.2.7: 403, {answer.content['detail']}"]
    answer = await arrive(stamped(wire.encode(an_event()), FLEET))
    assert "no secret of its own" in answer.content["detail"]


async def test_whoever_any_of_the_matching_patterns_names_may_send(settings: Any) -> None:
    settings.AEVENTS = {
        **KEYED,
        "SENDERS": {"user-*": ["orders"], "user-created": "payments", "*-paid": ("payments",), "oth": []},
    }
    for event_type, may in (
        ("user-created", {PAYMENTS, ORDERS}),
        ("user-deleted", {ORDERS}),
        ("invoice-paid", {PAYMENTS}),
        ("other", {PAYMENTS, ORDERS, FLEET, OWN}),
    ):
        for secret in (PAYMENTS, ORDERS, FLEET, OWN):
            assert await sent_by(secret, event_type) == (200 if secret in may else 403)


async def test_an_empty_list_lets_nobody_send(settings: Any) -> None:
    settings.AEVENTS = {**KEYED, "SENDERS": {"*": []}}
    for secret in (PAYMENTS, ORDERS, FLEET, OWN):
        assert await sent_by(secret) == 403


@pytest.mark.parametrize("name", ["", "tests", "reports", "nobody"])
async def test_a_name_that_no_secret_tells_lets_nobody_send(settings: Any, name: str) -> None:
    """The fleet's secret tells nobody, whose name is empty: an empty name in the list is not theirs."""
    settings.AEVENTS = {**KEYED, "UNSIGNED": "accept", "SENDERS": {"*": [name]}}
    for secret in (PAYMENTS, FLEET, OWN, None):
        assert await sent_by(secret) == 403


async def test_in_a_batch_each_event_is_judged_by_itself(
    settings: Any, handled: list[Any], warnings: Callable[[], list[str]]
) -> None:
    # Given a batch of one signer, who may send some of its events
    settings.AEVENTS = {**KEYED, "SENDERS": {"user-*": ["payments"], "user-deleted": ["orders"]}}
    sent = [
        event(id=new_id(), type=event_type, data=b'"%b"' % event_type.encode())
        for event_type in ("other", "user-created", "user-deleted", "invoice-paid")
    ]
    # When it arrives
    answer = await arrive(stamped(batch.encode(sent), ORDERS))
    # Then only the others are taken
    assert answer.status == 200
    assert [(verdict["id"], verdict["status"]) for verdict in answer.content["events"]] == [(sent[1].id, 403)]
    assert sorted(handled) == ["invoice-paid", "other", "user-deleted"]
    assert len(warnings()) == 1


async def test_a_malformed_event_of_a_batch_keeps_its_own_verdict(settings: Any, handled: list[Any]) -> None:
    settings.AEVENTS = {**KEYED, "SENDERS": {"user-created": ["payments"]}}
    good, refused = an_event("other"), an_event()
    body = b"[%b,%b,7]" % (cloudevents.dump(refused), cloudevents.dump(good))
    message = Message({"content-type": wire.BATCH, "webhook-id": new_id()}, body)
    answer = await arrive(stamped(message, FLEET))
    assert [(each["id"], each["status"]) for each in answer.content["events"]] == [
        (refused.id, 403),
        ("", 400),
    ]
    assert len(handled) == 1


@pytest.mark.parametrize(
    "senders",
    [
        ["payments"],
        "payments",
        "devops.events.SENDERS",
        None,
        7,
        {"user-created": None},
        {"user-created": 7},
        {7: ["payments"]},
        [("user-created", ["payments"])],
    ],
    ids=repr,
)
async def test_senders_that_cannot_be_read_let_nothing_in(
    settings: Any, handled: list[Any], warnings: Callable[[], list[str]], senders: Any
) -> None:
    settings.AEVENTS = {**KEYED, "UNSIGNED": "accept", "SENDERS": senders}
    for secret in (PAYMENTS, FLEET, None):
        for form in FORMS:
            assert await sent_by(secret, "other", form) == 503
    assert handled == []
    assert "AEVENTS['SENDERS'] must be a dict" in warnings()[0]


async def test_one_s_own_events_are_not_asked_who_sent_them(settings: Any, handled: list[Any]) -> None:
    settings.AEVENTS = {
        **KEYED,
        "UNSIGNED": "refuse",
        "SENDERS": {"*": ["payments"]},
        "SUBSCRIPTIONS": {"user-created": ["tests"]},
    }
    with Fleet(settings):
        settings.AEVENTS = {**settings.AEVENTS}
        assert (await aemit("user-created", {"n": 1})).delivered
    assert handled == [{"n": 1}]


# --- unsigned, and wrongly signed ---


@pytest.mark.parametrize("secrets", [[], [FLEET]], ids=["no secrets", "secrets"])
@pytest.mark.parametrize(
    ("rule", "debug", "status"),
    [
        ("accept", False, 200),
        ("warn", False, 200),
        ("refuse", True, 401),
        (None, True, 200),
        (None, False, 401),
    ],
)
async def test_unsigned_events_fare_as_the_setting_says_with_secrets_and_without(
    handled: list[Any],
    warnings: Callable[[], list[str]],
    secrets: list[str],
    rule: str | None,
    debug: bool,
    status: int,
) -> None:
    with override_settings(AEVENTS={**BASE, "SECRETS": secrets, "UNSIGNED": rule}, DEBUG=debug):
        for form in FORMS:
            assert await sent_by(None, form=form) == status
    assert len(handled) == (3 if status == 200 else 0)
    said = {"warn": ["An unsigned event came from 192.0.2.7"], "refuse": [], "accept": [], None: []}[rule]
    assert [text for text in warnings() if "unsigned event" in text] == said


@pytest.mark.parametrize("rule", ["accept", "warn", "refuse", None])
@pytest.mark.parametrize("form", FORMS)
async def test_a_signed_event_is_taken_whatever_is_said_of_unsigned_ones(
    settings: Any, warnings: Callable[[], list[str]], rule: str | None, form: str
) -> None:
    settings.AEVENTS = {**KEYED, "UNSIGNED": rule}
    for secret in (FLEET, PAYMENTS, OWN):
        assert await sent_by(secret, form=form) == 200
    assert warnings() == []


@pytest.mark.parametrize("rule", ["accept", "warn"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_wrong_signature_is_refused_even_where_none_is_needed(
    settings: Any, handled: list[Any], rule: str, form: str
) -> None:
    settings.AEVENTS = {**KEYED, "UNSIGNED": rule}
    assert await sent_by(STRANGE, form=form) == 401
    message = stamped(FORMS[form](an_event()), FLEET)
    assert (await arrive(Message(message.headers, message.body + b" "))).status == 401
    assert (
        await arrive(Message({**message.headers, "webhook-signature": "v1,"}, message.body))
    ).status == 401
    assert handled == []


async def test_a_service_without_secrets_takes_what_others_sign_for_unsigned(settings: Any) -> None:
    """So a fleet may begin to sign at either end."""
    for rule, status in (("accept", 200), ("refuse", 401)):
        settings.AEVENTS = {**BASE, "UNSIGNED": rule}
        for form in FORMS:
            assert await sent_by(STRANGE, form=form) == status


async def test_a_binary_event_whose_type_nobody_signed_is_taken_only_unsigned(settings: Any) -> None:
    settings.AEVENTS = {**KEYED, "UNSIGNED": "accept"}
    headers = {**JSON, "ce-specversion": "1.0", "ce-id": new_id(), "ce-source": "/s", "ce-type": "other"}
    assert (await arrive(Message(headers, b'{"n":1}'))).status == 200
    again = Message({**headers, "ce-id": new_id(), "webhook-id": new_id()}, b'{"n":1}')
    assert (await arrive(stamped(again, FLEET))).status == 400


@pytest.mark.parametrize("way", WAYS)
def test_signatures_are_verified_through_the_view(way: str, handled: list[Any]) -> None:
    message = stamped(wire.encode(an_event()), FLEET)
    with override_settings(AEVENTS={**KEYED, "UNSIGNED": "refuse"}):
        assert ask(way, message.body, message.headers).status == 200
        assert ask(way, message.body + b" ", message.headers).status == 401
        # What is not looked at: two headers, which servers and Django join by a comma
        both = {
            **message.headers,
            "webhook-signature": "{0},{0}".format(message.headers["webhook-signature"]),
        }
        assert ask(way, message.body, both).status == 401
        for value in ("v1,\xff", "v1", ",", "v1," * 10_000):
            odd = {**message.headers, "webhook-signature": value}
            assert ask(way, message.body, odd).status == 401
    assert len(handled) == 1


async def test_a_header_with_an_underscore_is_not_the_one_with_a_dash(handled: list[Any]) -> None:
    """CVE-2026-3902: both have one name in Django's `META`."""
    message = stamped(wire.encode(an_event()), FLEET)
    headers = {**message.headers, "content-length": str(len(message.body))}
    spoofed = {name.replace("webhook-", "webhook_"): value for name, value in headers.items()}
    with override_settings(AEVENTS={**KEYED, "UNSIGNED": "refuse"}):
        assert (await ask_asgi(message.body, spoofed)).status == 401
        assert (await ask_asgi(message.body, {**headers, "webhook_signature": "v1,x"})).status == 200
        assert len(handled) == 1


# --- settings that are wrong ---

MISTAKES: dict[str, tuple[Mapping[str, Any], str]] = {
    "a bad secret": ({"SECRETS": ["whsec_bad!"]}, "AEVENTS['SECRETS'][0] is no secret"),
    "a secret that is no list": ({"SECRETS": FLEET}, "AEVENTS['SECRETS'] is a str"),
    "a bad secret of a service": (
        {"SERVICES": {"payments": {"URL": "http://127.0.0.1:1/", "SECRETS": ["short"]}}},
        "AEVENTS['SERVICES']['payments']['SECRETS'][0] is no secret",
    ),
    "one secret twice": ({"SECRETS": [FLEET, FLEET]}, "AEVENTS['SECRETS'][1] is the same as"),
    "services that are a list": ({"SERVICES": ["payments"]}, "AEVENTS cannot be read (AttributeError)"),
    "services nowhere": ({"SERVICES": "no.such"}, "AEVENTS cannot be read (ModuleNotFoundError)"),
    "services that are a URL": ({"SERVICES": "https://user:pass@word/"}, "AEVENTS cannot be read"),
    "subscriptions that are no lists": ({"SUBSCRIPTIONS": {"*": 7}}, "AEVENTS cannot be read (TypeError)"),
}


@pytest.mark.parametrize(("wrong", "says"), MISTAKES.values(), ids=MISTAKES.keys())
async def test_a_service_with_wrong_settings_takes_nothing_and_its_log_says_where(
    settings: Any, handled: list[Any], warnings: Callable[[], list[str]], wrong: dict[str, Any], says: str
) -> None:
    settings.AEVENTS = {**BASE, "UNSIGNED": "accept", **wrong}
    # Given events signed and unsigned, in each form
    for secret in (None, FLEET, STRANGE):
        for form in FORMS:
            answer = await arrive(stamped(FORMS[form](an_event()), *([secret] if secret else [])))
            # Then the emitter shall come again, and is told nothing of what is wrong
            assert answer.status == 503
            assert answer.content == {"detail": "This service's settings are wrong; its log says where."}
    assert handled == []
    # And the log says it once a minute, with no part of a secret
    first, second = warnings()
    assert first.startswith("No event is taken in before this is mended: ")
    assert says in first
    assert second == f"Refused an event from 192.0.2.7: 503, {answer.content['detail']}"
    assert not [word for word in ("bad!", "short", FLEET, "pass") if word in first]


@pytest.mark.parametrize("way", WAYS)
def test_a_service_with_wrong_settings_answers_503_over_http_too(way: str) -> None:
    message = wire.encode(an_event())
    for wrong, _ in MISTAKES.values():
        with override_settings(AEVENTS={**BASE, "UNSIGNED": "accept", **wrong}):
            assert ask(way, message.body, message.headers).status == 503


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        yield found


@pytest.mark.parametrize("how", ["async", "sync"])
def test_a_service_with_a_bad_secret_sends_nothing_and_says_why(
    fleet: Fleet, handled: list[Any], how: str
) -> None:
    with Peer() as payments, Peer() as orders:
        # Given a mistake in the secrets of one service: no key is to be trusted
        fleet(
            SERVICES={"payments": {"URL": payments.url, "SECRETS": ["whsec_bad!"]}, "orders": orders.url},
            SECRETS=[FLEET],
            SUBSCRIPTIONS={"*": ["payments", "orders", "tests"]},
        )
        # When events are emitted
        emission = emit("user-created", {}) if how == "sync" else asyncio.run(aemit("user-created", {}))
        # Then none leaves the process, and the result says why
        assert payments.requests == orders.requests == []
    by_name = {result.service: result for result in emission.results}
    for name in ("payments", "orders"):
        assert by_name[name].outcome == "failed"
        assert "AEVENTS['SERVICES']['payments']['SECRETS'][0] is no secret" in str(by_name[name].error)
        assert "bad!" not in str(by_name[name].error)
    # And the service's own handlers, to whom nothing travels, have it
    assert by_name["tests"].outcome == "delivered"
    assert handled == [{}]


@pytest.mark.parametrize("outbox", [False, True])
def test_where_there_is_a_store_what_could_not_be_signed_waits_there_for_its_mend(
    fleet: Fleet, ledger: Ledger, outbox: bool
) -> None:
    with Peer() as payments:
        # Given an event that was emitted while a secret was wrong
        wrong: dict[str, Any] = {"payments": payments, "STORE": ledger.alias, "OUTBOX": outbox}
        fleet(**wrong, SECRETS=["whsec_bad!"])
        emission = emit("user-created", {"n": 1})
        ledger.has(1, error__contains="AEVENTS['SECRETS'][0] is no secret")
        assert emission.results[0].outcome == ("queued" if outbox else "parked")
        assert ledger.row().attempts == 0
        assert payments.requests == []
        # When it is mended
        fleet(**wrong, SECRETS=[FLEET])
        with ledger.relaying():
            ledger.make_due()
            ledger.look()
            (request,) = payments.wait_for(1)
            ledger.is_empty()
    # Then it arrives, signed
    signed = Message(request.headers, request.body)
    assert signature.verify(signed, [("ours", signature.key_of(FLEET))]) == "ours"


def test_the_hint_of_a_service_with_an_odd_name_is_read_as_it_was_written(settings: Any) -> None:
    name = "Grüße an/alle 100%"
    settings.AEVENTS = {**KEYED, "SERVICES": {name: {"URL": "http://127.0.0.1:1/", "SECRETS": [STRANGE]}}}
    message = wire.encode(an_event(source=name))
    assert urllib.parse.unquote(message.headers["ce-source"]) == wire.reference_to(name)
    first = next(routes.keys().verifying(wire.source_in(message.headers)))
    assert first == (name, signature.key_of(STRANGE))
