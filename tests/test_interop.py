"""The official SDKs at the other end of the wire: `standardwebhooks` verifies what we sign and signs what we
verify, `cloudevents` reads what we write and writes what we read. Ten thousand random events in a run.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_http_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from django.test import override_settings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from aevents import aemit, batch, cloudevents, payload, signals, signature, wire
from aevents.errors import MalformedMessage
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from tests.peers import Fleet, Peer
from tests.project.clients import WAYS, ask
from tests.test_wire import NOON, event

AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "ENABLED": True, "STORE": None}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRETS = [signature.new_secret() for _ in range(3)]
KEYS = [signature.key_of(secret) for secret in SECRETS]
FORMS = ("single", "structured", "batch")

EXAMPLES, AT_ONCE = 250, 20  # in each of the two directions
patiently = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# What may be in a String of CloudEvents: no control character, no noncharacter, no surrogate.
names = st.text(max_size=12).map(lambda text: "".join(filter(str.isprintable, text)) or "n") | st.text(
    'ab-._/%"\\ ?#:@é€\N{PILE OF POO}', min_size=1, max_size=12
)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.lists(st.integers() | st.text(max_size=4), max_size=2)
    | st.dictionaries(st.text(max_size=4), st.booleans() | st.text(max_size=4), max_size=2)
)
payloads = st.dictionaries(st.text(max_size=6), values, max_size=2)
times = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))


def _family(made: tuple[str, str, int] | None) -> dict[str, Any]:
    return {} if made is None else dict(zip(("cause", "correlation", "hops"), made, strict=True))


events = st.builds(
    lambda type, value, source, time, key, made, trace: Event(
        new_id(), type, payload.encode(value), source, time, key, trace=trace, **_family(made)
    ),
    names,
    payloads,
    st.just("accounts") | names,
    times,
    st.none() | names,
    st.none() | st.tuples(names, names, st.integers(1, 16)),
    st.none() | st.just(TRACE),
)
AN_EVENT = event(
    type='a "b" 50%',
    source="Grüße an/alle 100%?#",
    key="%25",
    cause="c",
    correlation="r",
    hops=3,
    trace=TRACE,
)


def test_ten_thousand_events_are_in_one_run() -> None:
    assert 2 * EXAMPLES * AT_ONCE == 10_000


# --- ours, read by the others ---


def messages(sent: Sequence[Event]) -> Iterator[tuple[str, Message]]:
    """Give what carries these events, in each of the three forms."""
    for each in sent:
        yield "single", wire.encode(each)
        yield "structured", cloudevents.encode(each)
    yield "batch", batch.encode(sent)


def attributes_of(sent: Event) -> dict[str, Any]:
    """Return the attributes that CloudEvents has of it, by the words of the specification."""
    attributes = {
        "specversion": "1.0",
        "id": sent.id,
        "source": wire.reference_to(sent.source),
        "type": sent.type,
        "time": sent.time,
        "datacontenttype": "application/json",
    }
    if sent.key is not None:
        attributes["partitionkey"] = sent.key
    if sent.cause is not None:
        attributes.update(causationid=sent.cause, correlationid=sent.correlation, hops=sent.hops)
    return attributes


def read(message: Message, headers: dict[str, str]) -> CloudEvent:
    found = from_http_event(HTTPMessage(headers, message.body))
    assert isinstance(found, CloudEvent)
    return found


@patiently
@given(
    st.lists(events, min_size=AT_ONCE, max_size=AT_ONCE), st.lists(st.sampled_from([0, 1, 2]), unique=True)
)
@example([AN_EVENT] * AT_ONCE, [0])
def test_what_we_send_is_verified_and_read_by_the_official_sdks(
    sent: list[Event], signers: list[int]
) -> None:
    for form, message in messages(sent):
        # Given one try's message, signed with some of the keys
        headers = wire.stamp(message, [KEYS[n] for n in signers])
        # Then whoever has one of the secrets verifies it, and nobody else
        for n, secret in enumerate(SECRETS):
            if n in signers:
                assert Webhook(secret).verify(message.body, headers) == json.loads(message.body)
            elif form == "batch":
                with pytest.raises(WebhookVerificationError):
                    Webhook(secret).verify(message.body, headers)
        # And CloudEvents' SDK takes each event for what it is
        if form == "batch":
            assert len(json.loads(message.body)) == len(sent)
            for original, one in zip(sent, json.loads(message.body), strict=True):
                _is_structured(read(Message({}, json.dumps(one).encode()), {}), original)
    for original in sent:
        message = wire.encode(original)
        _is_binary(read(message, wire.stamp(message, KEYS)), original)
        message = cloudevents.encode(original)
        _is_structured(read(message, wire.stamp(message, KEYS)), original)


def _is_binary(found: CloudEvent, original: Event) -> None:
    assert found.get_data() == {"event_type": original.type, "payload": original.payload}
    text = {name: str(value) if name == "hops" else value for name, value in attributes_of(original).items()}
    assert found.get_attributes() == text  # `traceparent` is a header of HTTP's own


def _is_structured(found: CloudEvent, original: Event) -> None:
    assert found.get_data() == original.payload
    attributes = dict(found.get_attributes())
    assert attributes.pop("datalength") == len(original.data)
    assert attributes.pop("traceparent", None) == original.trace
    assert attributes == attributes_of(original)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_changed_on_the_way_the_official_sdk_refuses(form: str) -> None:
    (message,) = {name: each for name, each in messages([AN_EVENT]) if name == form}.values()
    headers = wire.stamp(message, KEYS)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(message.body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(message.body, {**headers, "webhook-id": "another"})


def test_names_of_attributes_are_those_that_cloudevents_allow() -> None:
    structured = json.loads(cloudevents.dump(AN_EVENT))
    headers = [name.removeprefix("ce-") for name in wire.encode(AN_EVENT).headers if name.startswith("ce-")]
    for name in {*structured, *headers} - {"data"}:
        assert re.fullmatch(r"[a-z][a-z0-9]{0,19}", name)
    assert {*headers, "traceparent", "datacontenttype", "datalength", "data"} == {*structured}


def test_times_are_those_of_rfc_3339() -> None:
    for time_, text in (
        (NOON, "2026-11-23T12:00:00.123456Z"),
        (NOON.replace(microsecond=0), "2026-11-23T12:00:00Z"),
        (NOON.replace(microsecond=1), "2026-11-23T12:00:00.000001Z"),
    ):
        assert wire.encode(event(time=time_)).headers["ce-time"] == text
        assert json.loads(cloudevents.dump(event(time=time_)))["time"] == text


@pytest.mark.parametrize(
    ("service", "source", "header"),
    [
        ("accounts", "/accounts", "/accounts"),
        ("", "/", "/"),
        ("team/accounts_2.eu-west~1", "/team/accounts_2.eu-west~1", "/team/accounts_2.eu-west~1"),
        ("a:b@c+d", "/a:b@c+d", "/a:b@c+d"),
        ("my service", "/my%20service", "/my%2520service"),
        ("Grüße", "/Gr%C3%BC%C3%9Fe", "/Gr%25C3%25BC%25C3%259Fe"),
        ("50%", "/50%25", "/50%2525"),
        ("a?b#c", "/a%3Fb%23c", "/a%253Fb%2523c"),
        ('"[]"', "/%22%5B%5D%22", "/%2522%255B%255D%2522"),
        ("//host/x", "/%2F/host/x", "/%252F/host/x"),
    ],
)
def test_a_source_is_a_uri_reference_whatever_the_service_is_called(
    service: str, source: str, header: str
) -> None:
    sent = event(source=service)
    # Given the three forms
    assert json.loads(cloudevents.dump(sent))["source"] == source
    assert wire.encode(sent).headers["ce-source"] == header
    # Then they are written with what RFC 3986 has for a path, which names no host
    assert re.fullmatch(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*", source)
    assert not source.startswith("//")
    # And are the service's name again on our side
    assert wire.decode(wire.encode(sent)).source == service
    assert cloudevents.decode(cloudevents.encode(sent)).source == service
    assert [each.source for each in batch.decode(batch.encode([sent]))] == [service]  # type: ignore[union-attr]


# --- theirs, read by us ---

# What another's event may have: a source of any kind, an id of its own counting.
URIS = {  # and what our handlers are told of them
    "https://github.com/cloudevents?a=%20#b": "https://github.com/cloudevents?a=%20#b",
    "mailto:cncf-wg-serverless@lists.cncf.io": "mailto:cncf-wg-serverless@lists.cncf.io",
    "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66": "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
    "1-555-123-4567": "1-555-123-4567",
    "/sensors/tn-1234567/alerts": "sensors/tn-1234567/alerts",
    "/a%20b": "a b",
    "/%ff": "%ff",
    "//host/path": "/host/path",
}
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-7))])
foreign = st.builds(
    lambda id, source, type, time, more, data: CloudEvent(
        {
            "id": id,
            "source": source,
            "type": type,
            "time": time,
            "datacontenttype": "application/json",
            **{name: value for name, value in more.items() if value is not None},
        },
        data,
    ),
    st.uuids().map(str) | st.integers(0).map(str) | names,
    st.sampled_from(list(URIS)) | names.map(lambda name: f"/{urllib.parse.quote(name, safe='')}"),
    names,
    st.builds(lambda time, zone: time.astimezone(zone), times, zones),
    st.fixed_dictionaries(
        {
            "partitionkey": st.none() | names,
            "causationid": st.none() | names,
            "correlationid": st.none() | names,
            "hops": st.none() | st.integers(0, 16),
            "traceparent": st.none() | st.just(TRACE),
            "subject": st.none() | names,
            "comexampleother": st.none() | names | st.booleans() | st.integers(-(2**31), 2**31 - 1),
        }
    ),
    # An "event_type" in a body makes it one of ours.
    payloads,
)


def is_the_same(found: Event, sent: CloudEvent) -> None:
    attributes = sent.get_attributes()
    assert (found.id, found.type) == (sent.get_id(), sent.get_type())
    assert found.source == URIS.get(sent.get_source(), urllib.parse.unquote(sent.get_source()[1:]))
    assert found.time == sent.get_time()
    assert found.time.utcoffset() == timedelta(0)
    assert found.key == attributes.get("partitionkey")
    assert found.cause == attributes.get("causationid")
    assert found.correlation == (attributes.get("correlationid") or attributes.get("causationid"))
    assert found.hops == attributes.get("hops", 0)
    assert found.trace == attributes.get("traceparent")
    assert found.payload == sent.get_data()


def arrivals(sent: Sequence[Message]) -> list[Event]:
    """Let these messages arrive; return the events that the receiver made of them."""
    found: list[Event] = []

    def note(event: Event, **_: Any) -> None:
        found.append(event)

    async def all_of_them() -> None:
        for message in sent:
            answer = await receive(message, peer="192.0.2.7", at_home=True)
            assert (answer.status, answer.content.get("events", [])) == (200, []), answer.content

    signals.event_received.connect(note)
    try:
        asyncio.run(all_of_them())
    finally:
        signals.event_received.disconnect(note)
    return found


def lower(message: HTTPMessage) -> dict[str, str]:
    return {name.lower(): value for name, value in message.headers.items()}


def signed(message: Message, secret: str = SECRETS[0]) -> Message:
    """Return the message as the official SDK signs it."""
    # Its trap: `sign` takes any datetime for one in UTC.
    id, now = message.headers.get("webhook-id", new_id()), datetime.now(UTC)
    value = Webhook(secret).sign(msg_id=id, timestamp=now, data=message.body.decode())
    more = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": value}
    return Message({**message.headers, **more}, message.body)


@patiently
@given(st.lists(foreign, min_size=AT_ONCE, max_size=AT_ONCE))
def test_what_the_official_sdks_send_is_verified_and_read_by_us(sent: list[CloudEvent]) -> None:
    binary = [Message(lower(made), made.body) for made in map(to_binary_event, sent)]
    structured = [Message(lower(made), made.body) for made in map(to_structured_event, sent)]
    together = Message({"content-type": wire.BATCH}, b"[%b]" % b", ".join(made.body for made in structured))
    # Given unsigned ones, where these are taken, in each form
    with override_settings(AEVENTS=AEVENTS):
        for form in (binary, structured, [together]):
            found = arrivals(form)
            assert len(found) == len(sent)
            for one, original in zip(found, sent, strict=True):
                is_the_same(one, original)
    # And signed ones, where no others are
    with override_settings(AEVENTS={**AEVENTS, "UNSIGNED": "refuse", "SECRETS": SECRETS}):
        found = arrivals([signed(each) for each in (*structured, together)])
        for one, original in zip(found, [*sent, *sent], strict=True):
            is_the_same(one, original)


@pytest.mark.parametrize("secret", SECRETS, ids=range(3))
def test_what_the_official_sdk_signs_is_verified_in_our_own_form(secret: str) -> None:
    for _, message in messages([AN_EVENT, event()]):
        found = signed(message, secret)
        assert signature.verify(found, [(text, signature.key_of(text)) for text in SECRETS]) == secret
        with pytest.raises(MalformedMessage):
            signature.verify(Message(found.headers, found.body + b" "), [("", key) for key in KEYS])


def test_both_sign_alike() -> None:
    for _, message in messages([AN_EVENT]):
        ours = wire.stamp(message, KEYS[:1])
        now = datetime.fromtimestamp(int(ours["webhook-timestamp"]), UTC)
        theirs = Webhook(SECRETS[0]).sign(ours["webhook-id"], now, message.body.decode())
        assert ours["webhook-signature"] == theirs


def a_cloudevent(data: Any = None, **attributes: Any) -> CloudEvent:
    return CloudEvent({"id": new_id(), "source": "/s", "type": "noted", "time": NOON, **attributes}, data)


@pytest.mark.parametrize("to_http", [to_binary_event, to_structured_event])
@pytest.mark.parametrize("attributes", [{}, {"datacontenttype": "application/json"}])
def test_an_event_without_data_has_null_for_its_payload(to_http: Any, attributes: dict[str, Any]) -> None:
    sent = a_cloudevent(**attributes)
    made = to_http(sent)
    with override_settings(AEVENTS=AEVENTS):
        (found,) = arrivals([Message(lower(made), made.body)])
    is_the_same(found, sent)
    assert found.payload is None


@pytest.mark.parametrize("way", WAYS)
def test_an_event_without_data_comes_through_the_view(way: str) -> None:
    made = to_binary_event(a_cloudevent())
    assert made.body == b""
    with override_settings(AEVENTS=AEVENTS):
        reply = ask(way, made.body, lower(made))
    assert (reply.status, reply.content["status"]) == (200, "unhandled")


async def test_one_of_ours_that_has_lost_its_body_on_the_way_is_no_event_without_data() -> None:
    message = wire.encode(event())
    answer = await receive(Message(wire.stamp(message), b""), peer="", at_home=True)
    assert (answer.status, answer.content) == (400, {"detail": "The body is empty."})


@pytest.mark.parametrize("attributes", [{}, {"datacontenttype": "application/json; charset=utf-8"}])
def test_data_in_base64_is_taken_where_it_is_json(attributes: dict[str, Any]) -> None:
    made = to_structured_event(a_cloudevent('{"name":"Zoë","n":[1.5,null]}'.encode(), **attributes))
    assert b"data_base64" in made.body
    found = cloudevents.decode(Message(lower(made), made.body))
    assert found.payload == {"name": "Zoë", "n": [1.5, None]}
    (again,) = batch.decode(Message({"content-type": wire.BATCH}, b"[%b]" % made.body))
    assert isinstance(again, Event)
    assert again.payload == found.payload


@pytest.mark.parametrize("data", [b"\xff\xfe", b"hello", b"", b"NaN"])
def test_data_in_base64_that_is_no_json_is_refused(data: bytes) -> None:
    made = to_structured_event(a_cloudevent(data))
    with pytest.raises(MalformedMessage) as caught:
        cloudevents.decode(Message(lower(made), made.body))
    assert caught.value.status == 400


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "application/octet-stream"])
def test_data_that_is_no_json_is_refused(media_type: str) -> None:
    for data in ("<much wow='xml'/>", b"<much wow='xml'/>"):
        made = to_structured_event(a_cloudevent(data, datacontenttype=media_type))
        with pytest.raises(MalformedMessage) as caught:
            cloudevents.decode(Message(lower(made), made.body))
        assert caught.value.status == 400


def test_a_string_is_data_as_well_and_is_not_parsed_again() -> None:
    made = to_structured_event(a_cloudevent('{"n": 1}'))
    assert cloudevents.decode(Message(lower(made), made.body)).payload == '{"n": 1}'


# --- where the SDK is laxer than the specification ---

BINARY = {"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s"}


def binary(**headers: str) -> Event:
    more = {f"ce-{name}": value for name, value in headers.items()}
    message = Message({**BINARY, "ce-type": "noted", **more}, b"{}")
    assert cloudevents.is_binary(message)
    return cloudevents.decode_binary(message)


@pytest.mark.parametrize("levels", [65, 255, 300, 1000])
@pytest.mark.parametrize("leaf", [b"", b"12345678901234567890"])
def test_a_binary_event_that_nests_too_deep_is_refused(levels: int, leaf: bytes) -> None:
    message = Message({**BINARY, "ce-type": "noted"}, b"[" * levels + leaf + b"]" * levels)
    with pytest.raises(MalformedMessage) as caught:
        (cloudevents.decode_binary if cloudevents.is_binary(message) else wire.decode)(message)
    assert caught.value.status == 400


def test_the_body_of_a_binary_event_is_the_payload_to_the_byte() -> None:
    message = Message({**BINARY, "ce-type": "noted"}, b'{"n": 1.50}')
    assert cloudevents.decode_binary(message).data == b'{"n": 1.50}'


def test_a_header_is_decoded_once_whether_it_had_to_be_encoded_or_not() -> None:
    assert binary(type="%6eoted", id="%31", time="2026-11-23T12%3A00:00.123456z").type == "noted"
    assert binary(type="Euro%20%E2%82%AC%20%f0%9f%98%80").type == "Euro € 😀"
    assert binary(type="a%2520b").type == "a%20b"
    assert binary(time="2026-11-23T12%3A00:00.123456Z").time == NOON


def test_a_header_in_quotes_is_read_as_older_versions_wrote_it() -> None:
    found = binary(type='"a \\"b\\" \\\\ c"', partitionkey='"user 7"', source='"/accounts"')
    assert (found.type, found.key, found.source) == ('a "b" \\ c', "user 7", "accounts")
    # And half a quotation is none
    assert binary(type='"a', partitionkey='"a"b"').type == '"a'
    assert binary(partitionkey='"a"b"').key == '"a"b"'
    # In our own form it agrees with the body all the same
    ours = Message({**BINARY, "ce-type": '"a b"', "ce-id": '"1"'}, b'{"event_type":"a b","payload":1}')
    assert (wire.decode(ours).id, wire.decode(ours).type) == ("1", "a b")


@pytest.mark.parametrize("value", ["%C0%A0", "%ff", "%C3%28", "%ED%A0%80"])
def test_a_header_that_is_not_utf_8_is_refused_where_it_decides_and_ignored_where_it_is_a_hint(
    value: str,
) -> None:
    for name in ("id", "type", "specversion"):
        with pytest.raises(MalformedMessage):
            binary(**{name: value})
    with pytest.raises(MalformedMessage):
        wire.decode(Message({**BINARY, "ce-id": value}, b'{"event_type":"a","payload":1}'))
    found = binary(partitionkey=value, source=value, causationid=value, time=value)
    assert (found.key, found.source, found.cause) == (None, "", None)


def test_a_ce_id_is_compared_as_it_reads() -> None:
    body = b'{"event_type":"a","payload":1}'
    for ce_id in ("a b", "a%20b", '"a b"'):
        headers = {"content-type": wire.JSON, "webhook-id": "a b", "ce-id": ce_id}
        assert wire.decode(Message(headers, body)).id == "a b"
        del headers["webhook-id"]
        assert wire.decode(Message(headers, body)).id == "a b"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T12:00:00.123456Z", NOON),
        ("2026-11-23t12:00:00.123456z", NOON),
        ("2026-11-23T12:00:00.1234567891Z", NOON),
        ("2026-11-23T17:45:00.123456+05:45", NOON),
        ("2026-11-23T12:00:00.123456-00:00", NOON),
        ("2026-11-23T12:00:00Z", NOON.replace(microsecond=0)),
        ("2026-11-23T12:00:00.1Z", NOON.replace(microsecond=100_000)),
    ],
)
def test_a_time_is_read_as_rfc_3339_has_it(text: str, moment: datetime) -> None:
    assert wire.time_of(text) == moment


def test_an_attribute_that_is_null_is_one_that_is_not_there() -> None:
    members = {"specversion": "1.0", "id": "1", "source": "/s", "type": "noted"}
    unset = dict.fromkeys(
        ("time", "datacontenttype", "partitionkey", "causationid", "hops", "traceparent", "data_base64")
    )
    plain, odd = (
        cloudevents.event_of(each, None) for each in (members, {**members, **unset, "subject": None})
    )
    assert replace(odd, time=plain.time) == plain


@pytest.mark.parametrize(
    "media_type", ["Application/JSON", "text/json", "application/vnd.acme+json; charset=utf-8", None]
)
def test_the_media_type_of_data_may_be_any_json_in_any_case(media_type: str | None) -> None:
    members = {"specversion": "1.0", "id": "1", "source": "/s", "type": "noted", "data": {"n": 1}}
    body = json.dumps({**members, "datacontenttype": media_type}).encode()
    assert cloudevents.decode(Message({"content-type": cloudevents.STRUCTURED}, body)).payload == {"n": 1}


def test_of_two_traces_the_event_s_own_is_where_it_began() -> None:
    hop = "00-" + "1" * 32 + "-" + "2" * 16 + "-00"
    for own, expected in ((TRACE, TRACE), (None, hop), ("none", None)):
        headers = {**BINARY, "ce-type": "noted", "traceparent": hop}
        if own is not None:
            headers["ce-traceparent"] = own
        assert cloudevents.decode_binary(Message(headers, b"{}")).trace == expected


# --- over HTTP ---


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as found:
        yield found


async def test_over_http_each_service_gets_the_form_and_the_signature_it_asks_for(fleet: Fleet) -> None:
    # Given a service with a secret of its own, and one that wants CloudEvents
    with Peer() as payments, Peer() as orders:
        fleet(
            SERVICE="my accounts",
            SECRETS=SECRETS[:2],
            SERVICES={
                "payments": {"URL": payments.url, "SECRETS": [SECRETS[2]]},
                "orders": {"URL": orders.url, "FORMAT": "cloudevents"},
            },
            SUBSCRIPTIONS={"*": ["payments", "orders"]},
        )
        # When an event is emitted
        began = time.time()
        emission = await aemit("user-created", {"name": "Zoë"}, key="user 7")
        assert emission.delivered
        (ours,), (theirs,) = payments.requests, orders.requests
    # Then the one verifies it with its own secret, the other with each of the fleet's
    Webhook(SECRETS[2]).verify(ours.body, ours.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(ours.body, ours.headers)
    for secret in SECRETS[:2]:
        Webhook(secret).verify(theirs.body, theirs.headers)
    assert abs(int(theirs.headers["webhook-timestamp"]) - began) < 60
    # And both are the same event to CloudEvents' SDK
    assert not [name for name in theirs.headers if name.startswith("ce-")]
    for request, data in (
        (ours, {"event_type": "user-created", "payload": {"name": "Zoë"}}),
        (theirs, {"name": "Zoë"}),
    ):
        found = from_http_event(HTTPMessage(request.headers, request.body))
        assert (found.get_id(), found.get_type()) == (emission.id, "user-created")
        assert (found.get_source(), found.get_extension("partitionkey")) == ("/my%20accounts", "user 7")
        assert found.get_data() == data
