"""The wire format: exact bytes and headers out, whatever comes in is an event or a `MalformedMessage`."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aevents import payload, wire
from aevents.errors import MalformedMessage
from aevents.event import Event, Message, new_id

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
JSON = {"content-type": "application/json"}


def event(**changes: Any) -> Event:
    given: dict[str, Any] = {
        "id": "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6",
        "type": "user-created",
        "data": b'{"user_id":7}',
        "source": "accounts",
        "time": NOON,
    }
    return Event(**{**given, **changes})


def decoded(body: bytes | str, headers: Mapping[str, str] | None = None) -> Event:
    data = body.encode() if isinstance(body, str) else body
    return wire.decode(Message({**JSON, **(headers or {})}, data))


def refusal(body: bytes | str, headers: Mapping[str, str] | None = None) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        decoded(body, headers)
    assert caught.value.detail == str(caught.value) != ""
    return caught.value


# --- out ---


def test_the_body_is_the_agreed_one_and_all_the_rest_is_headers() -> None:
    message = wire.encode(event())
    assert message.body == b'{"event_type":"user-created","payload":{"user_id":7}}'
    assert json.loads(message.body) == {"event_type": "user-created", "payload": {"user_id": 7}}
    assert message.headers == {
        "content-type": "application/json",
        "webhook-id": "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6",
        "ce-specversion": "1.0",
        "ce-id": "01a209d0-dd5c-7a2d-a79b-aca8fb69f8f6",
        "ce-type": "user-created",
        "ce-source": "/accounts",
        "ce-time": "2026-11-23T12:00:00.123456Z",
    }


def test_what_not_every_event_has_is_sent_only_where_it_is_known() -> None:
    message = wire.encode(
        event(
            key="user 7",
            cause="the-cause",
            correlation="the-first",
            hops=3,
            trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
    )
    optional = {
        name: message.headers[name] for name in message.headers if name not in wire.encode(event()).headers
    }
    assert optional == {
        "ce-partitionkey": "user%207",
        "ce-causationid": "the-cause",
        "ce-correlationid": "the-first",
        "ce-hops": "3",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }


def test_each_try_is_stamped_with_its_own_time_and_changes_no_message() -> None:
    message = wire.encode(event())
    before = dict(message.headers)
    headers = wire.stamp(message)
    assert abs(int(headers.pop("webhook-timestamp")) - time.time()) <= 60
    assert headers == before == message.headers


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("user-created", "user-created"),
        ("Grüße", "Gr%C3%BC%C3%9Fe"),
        ('a "b" 50%', "a%20%22b%22%2050%25"),
        ("\N{PILE OF POO}", "%F0%9F%92%A9"),
        ("a,b;c=d/e:f", "a,b;c=d/e:f"),
    ],
)
def test_headers_are_quoted_as_cloudevents_asks(text: str, quoted: str) -> None:
    assert wire.encode(event(type=text)).headers["ce-type"] == quoted


def test_an_older_endpoint_finds_the_two_members_it_knows() -> None:
    # Given a receiver that reads nothing but the body, with any JSON parser
    body = json.loads(wire.encode(event(type='a "b" \\ ü', data=b'{"n":1.50}')).body)
    assert body["event_type"] == 'a "b" \\ ü'
    assert body["payload"] == {"n": 1.5}


# --- out and in again ---

# Neither surrogates nor anything else that is not printable: no name may hold it.
names = st.text(min_size=1, max_size=200).filter(str.isprintable)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
events = st.builds(
    Event,
    id=st.builds(new_id) | st.uuids().map(str) | st.text("abc123-_.:", min_size=1, max_size=200),
    type=names,
    data=st.dictionaries(st.text(), json_values, max_size=3).map(payload.encode),
    source=st.just("") | names,
    time=st.datetimes(
        min_value=datetime(1970, 1, 2), timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))])
    ),
    key=st.none() | names,
    cause=st.none(),
)
caused = st.builds(
    lambda event, cause, correlation, hops: Event(
        event.id,
        event.type,
        event.data,
        event.source,
        event.time,
        event.key,
        cause=cause,
        correlation=correlation,
        hops=hops,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    events,
    names,
    names,
    st.integers(min_value=1, max_value=16),
)


@patiently
@given(events | caused)
@example(event(type='"'))
@example(event(type="\\"))
@example(event(type="100%25", source="/", key="%"))
@example(event(data=b'{"long":123456789012345678901234567890,"big":1e16}'))
def test_what_is_encoded_is_decoded_again(original: Event) -> None:
    message = wire.encode(original)
    assert all(value.isascii() and value.isprintable() for value in message.headers.values())
    assert all(value == value.strip() for value in message.headers.values())
    back = wire.decode(Message(wire.stamp(message), message.body))
    assert repr(back.payload) == repr(original.payload)
    assert Event(**{**_fields(back), "data": original.data}) == original
    assert back.time.utcoffset() == timedelta(0)


@patiently
@given(names.filter(lambda name: '"' not in name and "\\" not in name), json_values)
def test_the_exact_bytes_of_the_payload_are_kept(event_type: str, value: Any) -> None:
    original = event(type=event_type, data=payload.encode(value))
    assert wire.decode(wire.encode(original)).data == original.data


@patiently
@given(
    st.text(max_size=8) | names,
    json_values,
    st.sampled_from(["compact", "spaced", "indented", "escaped", "turned", "more", "newline"]),
)
@example("a", [10**30, 1e300], "turned")
@example('"', {}, "compact")
@example("ü", {"event_type": "b", "payload": 2}, "more")
def test_however_the_body_is_written_it_says_the_same(event_type: str, value: Any, manner: str) -> None:
    # Given the same two members as another JSON writer would put them
    members = {"event_type": event_type, "payload": value}
    body = {
        "compact": lambda: json.dumps(members, separators=(",", ":"), ensure_ascii=False),
        "spaced": lambda: json.dumps(members, ensure_ascii=False),
        "indented": lambda: json.dumps(members, indent=2, ensure_ascii=False),
        "escaped": lambda: json.dumps(members, separators=(",", ":")).replace("event", "\\u0065vent", 1),
        "turned": lambda: json.dumps({"payload": value, "event_type": event_type}),
        "more": lambda: json.dumps({**members, "extra": {"payload": 1}, "id": None}, separators=(",", ":")),
        "newline": lambda: "\r\n " + json.dumps(members, separators=(",", ":")) + "\n",
    }[manner]()
    # When it arrives
    try:
        arrived = decoded(body)
    except MalformedMessage:
        # Then it is refused for its type alone
        assert not (0 < len(event_type) <= 200 and event_type.isprintable())
        return
    # Then it is the same event
    assert arrived.type == event_type
    assert repr(arrived.payload) == repr(value)


def _fields(value: Event) -> dict[str, Any]:
    return {name: getattr(value, name) for name in Event.__dataclass_fields__}


# --- in: the body ---


def test_an_older_client_s_bare_body_is_an_event_with_an_id_of_its_own() -> None:
    body = '{"event_type": "user-created", "payload": {"user_id": 7}}'
    first, second = decoded(body), decoded(body)
    assert (first.type, first.payload, first.source, first.key) == ("user-created", {"user_id": 7}, "", None)
    assert UUID(first.id).version == 7
    assert first.id != second.id
    assert abs(first.time - datetime.now(UTC)) < timedelta(minutes=1)
    assert (first.cause, first.correlation, first.hops, first.trace) == (None, None, 0, None)


@pytest.mark.parametrize("value", [None, 0, "text", [1], {}, True, 1.5], ids=repr)
def test_a_payload_may_be_any_json_value_null_included(value: Any) -> None:
    assert decoded(json.dumps({"event_type": "a", "payload": value})).payload == value


@pytest.mark.parametrize(
    ("body", "event_type", "value"),
    [
        ('{"event_type":"a","payload":1,"payload":2}', "a", 2),
        ('{"event_type":"a","event_type":"b","payload":1}', "b", 1),
        ('{"event_type":"a","payload":1,"event_type":"b"}', "b", 1),
        ('{"event_type":"a","payload":{"x":1,"x":2}}', "a", {"x": 2}),
        ('{"payload":1,"payload":3,"event_type":"a"}', "a", 3),
    ],
)
def test_of_equal_members_the_last_counts_however_the_body_begins(
    body: str, event_type: str, value: Any
) -> None:
    arrived = decoded(body)
    assert (arrived.type, arrived.payload) == (event_type, value)


BAD_BODIES = {
    "nothing": b"",
    "blanks": b" \r\n\t",
    "no JSON": b"hello",
    "half": b'{"event_type":"a","payload":',
    "half a payload": b'{"event_type":"a","payload":{}',
    "half a number": b'{"event_type":"a","payload":12',
    "another bracket": b'{"event_type":"a","payload":1]',
    "two values": b'{"event_type":"a","payload":1}{}',
    "a comma too many": b'{"event_type":"a","payload":1,}',
    "no payload value": b'{"event_type":"a","payload":}',
    "form data": b"event_type=a&payload=1",
    "latin-1 in the payload": '{"event_type":"a","payload":"ü"}'.encode("latin-1"),
    "latin-1 in the type": '{"event_type":"ü","payload":1}'.encode("latin-1"),
    "overlong utf-8": b'{"event_type":"a","payload":"\xc0\xaf"}',
    "utf-8 of a surrogate": b'{"event_type":"a","payload":"\xed\xa0\x80"}',
    "an escaped lone surrogate": b'{"event_type":"a","payload":"\\ud800"}',
    "utf-16": '{"event_type":"a","payload":1}'.encode("utf-16"),
    "utf-16 without mark": '{"event_type":"a","payload":1}'.encode("utf-16-le"),
    "utf-32": '{"event_type":"a","payload":1}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"event_type":"a","payload":1}',
    "NaN": b'{"event_type":"a","payload":NaN}',
    "infinity": b'{"event_type":"a","payload":1e999}',
    "a number too long": b'{"event_type":"a","payload":' + b"9" * 5000 + b"}",
    "a list": b'[{"event_type":"a","payload":1}]',
    "a string": b'"event_type payload"',
    "null": b"null",
    "a number": b"7",
    "an empty object": b"{}",
    "no type": b'{"payload":{}}',
    "no payload": b'{"event_type":"a"}',
    "other names": b'{"type":"a","data":{}}',
    "a type in capitals": b'{"Event_Type":"a","payload":1}',
    "a number as type": b'{"event_type":7,"payload":1}',
    "null as type": b'{"event_type":null,"payload":1}',
    "a list as type": b'{"event_type":["a"],"payload":1}',
    "an object as type": b'{"event_type":{},"payload":1}',
    "true as type": b'{"event_type":true,"payload":1}',
    "an empty type": b'{"event_type":"","payload":1}',
    "a type too long": b'{"event_type":"' + b"a" * 201 + b'","payload":1}',
    "a control character": b'{"event_type":"a\\nb","payload":1}',
    "a raw control character": b'{"event_type":"a\nb","payload":1}',
    "a NUL": b'{"event_type":"a\\u0000","payload":1}',
    "DEL": b'{"event_type":"a\x7f","payload":1}',
    "a line separator": '{"event_type":"a\u2028","payload":1}'.encode(),
    "65 levels": b'{"event_type":"a","payload":' + b"[" * 65 + b"]" * 65 + b"}",
    "65 levels of objects": b'{"event_type":"a","payload":' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
    "65 levels, spaced": b'{"event_type": "a", "payload": ' + b"[" * 65 + b"]" * 65 + b"}",
    "gzip without saying so": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00",
    **{
        f"{levels} levels{name}": start + b"[" * levels + leaf + b"]" * levels + b"}"
        for levels in (254, 255, 256, 980, 1000, 1022, 1024, 100_000)
        for name, start, leaf in (
            ("", b'{"event_type":"a","payload":', b""),
            (", spaced", b'{"event_type": "a", "payload": ', b""),
            (", long number", b'{"event_type":"a","payload":', b"12345678901234567890"),
            (", spaced, long number", b'{"event_type": "a", "payload": ', b"12345678901234567890"),
        )
    },
    "100000 open brackets": b"[" * 100_000,
    "100000 open brackets in the payload": b'{"event_type":"a","payload":' + b"[" * 100_000,
    "100000 open objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_is_no_event_is_refused_with_400(body: bytes) -> None:
    assert refusal(body).status == 400


def test_the_refusal_says_what_is_wrong() -> None:
    assert "empty" in refusal(b"").detail
    assert "JSON in UTF-8" in refusal(b"hello").detail
    assert "object" in refusal(b"[]").detail
    assert "'event_type'" in refusal(b'{"payload":1}').detail
    assert "'payload'" in refusal(b'{"event_type":"a"}').detail
    assert "200" in refusal(b'{"event_type":"","payload":1}').detail
    assert "64" in refusal(BAD_BODIES["65 levels"]).detail
    assert len(refusal(b"x" * 10_000).detail) < 300


@pytest.mark.parametrize("start", ['{"event_type":"a","payload":', '{"event_type": "a", "payload": '])
def test_64_levels_are_taken(start: str) -> None:
    assert decoded(start + "[" * 64 + "]" * 64 + "}").type == "a"


def test_a_type_of_200_characters_is_taken_and_they_are_counted_not_their_bytes() -> None:
    assert decoded(json.dumps({"event_type": "ü" * 200, "payload": 1}, ensure_ascii=False)).type == "ü" * 200


def test_a_body_over_the_limit_is_refused_with_413_and_one_at_the_limit_is_taken() -> None:
    frame = len(b'{"event_type":"a","payload":""}')
    at_the_limit = b'{"event_type":"a","payload":"' + b"x" * (1024 * 1024 - frame) + b'"}'
    assert len(at_the_limit) == 1024 * 1024
    assert decoded(at_the_limit).type == "a"
    assert refusal(at_the_limit + b" ").status == 413


# --- in: the headers ---

BODY = b'{"event_type":"a b","payload":1}'


def test_a_header_longer_than_any_hint_is_not_read_at_all() -> None:
    longest = "\N{PILE OF POO}" * wire.MAX_HINT_LENGTH
    assert wire.unquote(urllib.parse.quote(longest)) == longest
    assert wire.unquote("%41" * 20_000) is wire.unquote('"' + "\\x" * 30_000 + '"') is None
    assert decoded(BODY, {"ce-source": "%41" * 20_000}).source == ""


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; charset=utf8; profile=x",
        " application/json ; foo=bar",
    ],
)
def test_json_is_taken_however_its_type_is_written(value: str) -> None:
    assert decoded(BODY, {"content-type": value}).type == "a b"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json, text/plain"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "\x00"},
        {"content-encoding": "gzip"},
        {"content-encoding": "identity, gzip"},
        {"content-encoding": "br"},
    ],
    ids=repr,
)
def test_another_content_type_or_encoding_is_refused_with_415(headers: dict[str, str]) -> None:
    assert refusal(BODY, headers).status == 415


def test_a_missing_content_type_is_refused_with_415() -> None:
    with pytest.raises(MalformedMessage) as caught:
        wire.decode(Message({}, BODY))
    assert caught.value.status == 415


def test_an_encoding_that_changes_nothing_is_taken() -> None:
    assert decoded(BODY, {"content-encoding": "Identity"}).type == "a b"


@pytest.mark.parametrize("ce_type", ["other", "a", "A%20B", "%ff", "a%20b%20", "a+b"])
def test_a_ce_type_that_says_otherwise_than_the_body_is_refused(ce_type: str) -> None:
    assert refusal(BODY, {"ce-type": ce_type}).status == 400


def test_a_ce_type_that_agrees_is_taken_quoted_or_not() -> None:
    assert decoded(BODY, {"ce-type": "a%20b"}).type == "a b"
    assert decoded(BODY, {"ce-type": "a b"}).type == "a b"


def test_a_ce_id_that_differs_from_the_webhook_id_is_refused() -> None:
    assert refusal(BODY, {"webhook-id": "1", "ce-id": "2"}).status == 400
    assert decoded(BODY, {"webhook-id": "1", "ce-id": "1"}).id == "1"


def test_the_id_comes_from_either_header_or_is_new() -> None:
    assert decoded(BODY, {"webhook-id": "one"}).id == "one"
    assert decoded(BODY, {"ce-id": "two"}).id == "two"
    assert UUID(decoded(BODY, {"webhook-id": ""}).id)
    assert UUID(decoded(BODY, {"ce-id": ""}).id)


@pytest.mark.parametrize("value", ["x" * 201, "a\nb", "a\x00", "\x7f"], ids=ascii)
def test_an_id_that_cannot_be_kept_is_refused(value: str) -> None:
    assert refusal(BODY, {"webhook-id": value}).status == 400
    assert refusal(BODY, {"ce-id": value}).status == 400


@pytest.mark.parametrize("value", ["", "-1", "1.5", "1e3", "x", "٣", "9" * 1000, "1_0", " 1", "+1", "0x1"])
def test_hops_that_are_no_small_number_are_ignored(value: str) -> None:
    assert decoded(BODY, {"ce-hops": value}).hops == 0


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-13-01", "Z" * 5000],
)
def test_a_time_that_is_none_is_ignored(value: str) -> None:
    assert abs(decoded(BODY, {"ce-time": value}).time - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "value", ["2026-11-23T12:00:00.123456Z", "2026-11-23T13:00:00.123456+01:00", "2026-11-23T12:00:00.123456"]
)
def test_a_time_is_read_in_utc(value: str) -> None:
    arrived = decoded(BODY, {"ce-time": value})
    assert arrived.time == NOON
    assert arrived.time.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value", ["", "garbage", "00-" + "0" * 32, "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"]
)
def test_a_trace_that_is_none_is_ignored(value: str) -> None:
    assert decoded(BODY, {"traceparent": value}).trace is None


@pytest.mark.parametrize("value", ["", "%ff", "%C3%28", "a%0Ab", "a\x01b", "x" * 257, "%"[:0]], ids=ascii)
def test_a_key_source_or_cause_that_cannot_be_read_is_ignored(value: str) -> None:
    arrived = decoded(
        BODY,
        {
            "ce-source": value,
            "ce-partitionkey": value,
            "ce-causationid": value,
            "ce-correlationid": value,
        },
    )
    assert (arrived.source, arrived.key, arrived.cause, arrived.correlation) == ("", None, None, None)


def test_the_cause_is_the_beginning_of_a_family_that_names_no_other() -> None:
    arrived = decoded(BODY, {"ce-causationid": "parent"})
    assert (arrived.cause, arrived.correlation) == ("parent", "parent")


# --- in: anything ---

header_values = (
    st.text(max_size=30)
    | st.text("%0123456789abcdefABCDEF", max_size=12)
    | st.binary(max_size=20).map(lambda data: data.decode("latin-1"))
    | st.sampled_from(
        [
            "application/json",
            "application/json; charset=",
            "identity",
            "gzip",
            "a",
            "1",
            "",
            "\ud800",
            "9" * 99,
        ]
    )
)
bodies = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda event_type, value, tail: b'{"event_type":"%b","payload":%b%b' % (event_type, value, tail),
        st.binary(max_size=10) | st.text(max_size=10).map(str.encode),
        st.binary(max_size=20) | json_values.map(lambda value: json.dumps(value).encode()),
        st.sampled_from([b"}", b"", b"}}", b',"payload":1}', b"} ", b',"x":[}']),
    )
    | st.builds(
        lambda event_type, value: json.dumps({"event_type": event_type, "payload": value}).encode(),
        st.text() | json_values,
        json_values,
    )
    | st.builds(
        lambda levels, leaf, spaced: (
            b'{"event_type":%b"a","payload":' % spaced + b"[" * levels + leaf + b"]" * levels + b"}"
        ),
        st.integers(min_value=0, max_value=1100),
        st.sampled_from([b"", b"1", b"null", b"12345678901234567890123"]),
        st.sampled_from([b"", b" "]),
    )
)


@settings(patiently, max_examples=400)
@given(st.dictionaries(st.sampled_from(wire.HEADERS), header_values), bodies)
def test_whatever_arrives_is_an_event_or_a_refusal(headers: dict[str, str], body: bytes) -> None:
    for message in (Message(headers, body), Message({**headers, **JSON, "content-encoding": ""}, body)):
        outcome = event_or_refusal(message)
        if isinstance(outcome, MalformedMessage):
            assert outcome.status in (400, 413, 415)
            assert outcome.detail
        else:
            # What is taken can be handled and sent on: nothing in it breaks later.
            assert 0 < len(outcome.id) <= 200
            assert outcome.payload == json.loads(body)["payload"]
            assert outcome.hops < 1000
            assert wire.decode(wire.encode(outcome)).payload == outcome.payload


def event_or_refusal(message: Message) -> Event | MalformedMessage:
    try:
        return wire.decode(message)
    except MalformedMessage as error:
        return error
